"""The HTTP server: OpenAI's API for programs, one page for people.

The event loop never computes: requests are read and checked in a worker thread, tokens come from the engine's. Whatever
a client does (leaves, reads slowly, sends half a body) costs at most its own request. Nothing of a conversation is
logged or kept.
"""

import asyncio
import base64
import gc
import hashlib
import hmac
import json
import re
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ramp.errors import UserError
from ramp.serve import protocol
from ramp.serve.engine import Engine, Full, Job, Token
from ramp.serve.protocol import CompletionRequest, Refused, Server
from ramp.serve.text_stream import TextStream, logprob, old_logprobs
from ramp.tasks import TASKS, tool

PATIENCE = 15.0  # seconds for a body to arrive
DEADLINE = 900.0  # seconds for an answer
LOCAL = ("localhost", "127.0.0.1", "[::1]")
LEVELS = 12  # hardest problem of a task that is made on request


def plain(data: Any, status: int = 200, headers: dict | None = None) -> Response:
    return Response(json.dumps(data, allow_nan=False), status, headers, "application/json")


# ---------------------------------------------------------------------------------------------------- answers
class Answers:
    """The answers to one `Ask`, from the engine's thread to this one. Full: see `Engine.submit`."""

    def __init__(self, engine: Engine, ask: CompletionRequest):
        self.engine, self.ask = engine, ask
        self.events: asyncio.Queue = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(choice: int, tokens: list[Token], why: str) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(self.events.put_nowait, (choice, tokens, why))

        after = partial(tool.reply, engine.tokenizer) if ask.chat else Job.after
        seeds = [(ask.seed + i) % 2**32 for i in range(ask.n)]
        self.jobs = [
            Job(ask.ids, ask.limit, ask.sampling, seed, partial(emit, i), after)
            for i, seed in enumerate(seeds)
        ]
        self.speeches = [TextStream(engine.tokenizer, ask.stops) for _ in self.jobs]
        self.counted = 0  # tokens said
        self.id, self.born = (
            ("chatcmpl-" if ask.chat else "cmpl-") + uuid.uuid4().hex,
            int(time.time()),
        )
        engine.submit(self.jobs)

    async def pieces(self) -> AsyncIterator[tuple[int, str, list[Token], str | None]]:
        """(choice, new text, its tokens, why it ended or None) until every choice has ended."""
        open_choices = set(range(self.ask.n))
        until = asyncio.get_running_loop().time() + DEADLINE
        while open_choices:
            try:
                async with asyncio.timeout_at(until):
                    choice, tokens, why = await self.events.get()
            except TimeoutError:
                raise Refused(504, "the answer took too long") from None
            if choice not in open_choices:
                continue  # a stop string ended it before the engine knew
            if why == "error":
                raise Refused(503, "the engine has stopped; see the server's log")
            speech = self.speeches[choice]
            text, shown = speech.push(tokens, ended=bool(why))
            self.counted += len(tokens)
            if speech.stopped:
                self.engine.cancel([self.jobs[choice]])
                why = "stop"
            if why:
                open_choices.discard(choice)
            yield choice, text, shown, why or None

    def usage(self) -> dict[str, int]:
        asked = len(self.ask.ids)
        return {
            "prompt_tokens": asked,
            "completion_tokens": self.counted,
            "total_tokens": asked + self.counted,
        }

    def close(self) -> None:
        self.engine.cancel(self.jobs)


class Stream(StreamingResponse):
    """Events for a client; `close` is called however it ends, even where the first event was never asked for."""

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream")
        self.close = close

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.close()


class Api:
    """The application: routes over one engine, behind the question who may ask."""

    def __init__(self, engine: Engine, server: Server, key: str = "", local: bool = True):
        self.engine, self.server, self.key, self.local = engine, server, key, local
        self.born = int(time.time())
        self.page = Path(__file__).with_name("page.html").read_bytes()
        self.headers = [  # of every answer: what keeps a browser from doing more than it should
            (b"content-security-policy", policy(self.page.decode()).encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"no-store"),
        ]
        routes = [
            Route("/", self.index),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", partial(self.answer, chat=True), methods=["POST"]),
            Route("/v1/completions", partial(self.answer, chat=False), methods=["POST"]),
            Route("/ramp/info", self.info),
            Route("/ramp/problem", self.problem),
            Route("/ramp/judge", self.judge, methods=["POST"]),
        ]
        handlers = dict.fromkeys((Refused, HTTPException, UserError, Exception), self.failed)
        self.routes = Starlette(routes=routes, exception_handlers=handlers)

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        async def send_more(message: dict) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message["headers"], *self.headers]}
            await send(message)

        refusal = self.forbidden(scope)
        await (plain(refusal.body(), refusal.status) if refusal else self.routes)(
            scope, receive, send_more
        )

    def forbidden(self, scope: dict) -> Refused | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if (
            self.local and re.sub(r":\d+$", "", host) not in LOCAL
        ):  # a page elsewhere whose name now points here
            return Refused(403, "this server answers to localhost only", code="wrong_host")
        if self.key and scope["path"] not in ("/", "/health"):
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not hmac.compare_digest(given, self.key.encode()):
                says = "wrong or missing key; send it as 'Authorization: Bearer KEY'"
                return Refused(401, says, code="invalid_api_key")
        return None

    async def failed(self, request: Request, error: Exception) -> Response:
        """Whatever went wrong, in OpenAI's shape."""
        headers = {}
        if isinstance(error, HTTPException):  # Starlette's own: no such address, no such method
            says = {
                404: "there is nothing at this address",
                405: f"{request.method} is not allowed here",
            }
            headers = dict(error.headers or {})
            error = Refused(error.status_code, says.get(error.status_code, error.detail))
        elif isinstance(error, UserError):
            error = Refused(400, str(error))
        elif not isinstance(error, Refused):
            error = Refused(500, "the server made a mistake; its log tells more")
        headers |= {"Retry-After": "1"} if error.status == 429 else {}
        return plain(error.body(), error.status, headers)

    # ---- for programs

    async def models(self, request: Request) -> Response:
        return plain({"object": "list", "data": [self.described()]})

    async def model(self, request: Request) -> Response:
        if request.path_params["name"] != self.server.name:
            raise Refused(404, "this model does not exist", "model", "model_not_found")
        return plain(self.described())

    def described(self) -> dict[str, Any]:
        return {"id": self.server.name, "object": "model", "created": self.born, "owned_by": "ramp"}

    async def answer(self, request: Request, chat: bool) -> Response:
        raw = await body_of(request)
        ask = await run_in_threadpool(
            lambda: protocol.parse_request(protocol.parse(raw), self.server, chat)
        )
        try:
            answers = Answers(self.engine, ask)
        except Full:
            raise Refused(
                429, "all slots are taken and the line is full; come back in a moment", code="busy"
            ) from None
        except RuntimeError as error:
            raise Refused(503, str(error)) from None
        if ask.stream:
            return Stream(self.events(answers), answers.close)
        return await whole_or_gone(request, self.whole(answers), answers.close)

    def frame(self, answers: Answers, choices: list[dict], **more: Any) -> dict[str, Any]:
        ask = answers.ask
        kind = "chat.completion" + ".chunk" * ask.stream if ask.chat else "text_completion"
        head = {
            "id": answers.id,
            "object": kind,
            "created": answers.born,
            "model": self.server.name,
        }
        more |= {"ramp": {"turns_left_out": ask.left_out}} if ask.left_out else {}
        return head | {"choices": choices} | more

    def choice(
        self,
        ask: CompletionRequest,
        i: int,
        said: dict,
        tokens: list[Token],
        why: str | None,
        offset: int = 0,
    ) -> dict:
        """One of a frame's `choices`; `said` is its "message", its "delta" or its "text", which begins at `offset`."""
        t, figures = self.server.tokenizer, None
        if ask.logprobs and ask.chat:
            figures = {"content": [logprob(t, token) for token in tokens], "refusal": None}
        elif ask.logprobs:
            figures = old_logprobs(t, tokens, offset)
        return {"index": i, **said, "logprobs": figures, "finish_reason": why}

    async def whole(self, answers: Answers) -> Response:
        ask, texts = answers.ask, [""] * answers.ask.n
        tokens: list[list[Token]] = [[] for _ in texts]
        reasons: list[str | None] = [None] * ask.n
        async for i, text, more, why in answers.pieces():
            texts[i] += text
            tokens[i] += more
            reasons[i] = why
        choices = []
        for i, text in enumerate(texts):
            said = (
                {"message": {"role": "assistant", "content": text, "refusal": None}}
                if ask.chat
                else {"text": text}
            )
            choices.append(self.choice(ask, i, said, tokens[i], reasons[i]))
        return plain(self.frame(answers, choices, usage=answers.usage()))

    async def events(self, answers: Answers) -> AsyncIterator[str]:
        ask, offsets = answers.ask, [0] * answers.ask.n

        def event(choices: list[dict], **more: Any) -> str:
            return f"data: {json.dumps(self.frame(answers, choices, **more), allow_nan=False)}\n\n"

        try:
            for i in range(ask.n) if ask.chat else ():
                yield event(
                    [self.choice(ask, i, {"delta": {"role": "assistant", "content": ""}}, [], None)]
                )
            async for i, text, tokens, why in answers.pieces():
                if text or tokens or why:
                    said = (
                        {"delta": {"content": text} if text else {}} if ask.chat else {"text": text}
                    )
                    yield event([self.choice(ask, i, said, tokens, why, offsets[i])])
                    offsets[i] += len(text)
            if ask.usage:
                yield event([], usage=answers.usage())
            yield "data: [DONE]\n\n"
        except Refused as error:
            yield f"data: {json.dumps(error.body())}\n\n"

    # ---- for people

    async def index(self, request: Request) -> Response:
        return Response(self.page, media_type="text/html; charset=utf-8")

    async def info(self, request: Request) -> Response:
        s, m = self.server.c.sample, self.server.c.model
        settings = {
            key: getattr(s, key) for key in ("temperature", "top_k", "top_p", "min_p", "tokens")
        }
        shape = {
            "depth": m.depth,
            "width": m.width,
            "context": m.context_len,
            "vocab": self.server.tokenizer.vocab_size,
        }
        told = {
            "model": self.server.name,
            "stage": self.server.stage,
            "can_chat": self.server.can_chat,
            "shape": shape,
        }
        return plain(told | {"settings": settings, "tasks": list(TASKS), "levels": LEVELS})

    async def problem(self, request: Request) -> Response:
        problem = await run_in_threadpool(problem_of, dict(request.query_params))
        return plain(
            {
                "task": problem.task,
                "level": problem.level,
                "seed": problem.seed,
                "question": problem.question,
            }
        )

    async def judge(self, request: Request) -> Response:
        """Verdicts on the lines of an answer: all but the last are steps."""
        body = protocol.parse(await body_of(request))
        text = body.get("text")
        if not isinstance(text, str) or len(text) > 1 << 14:
            raise protocol.make_error(
                "text", f"must be the answer to judge, of at most {1 << 14} characters"
            )
        problem = await run_in_threadpool(problem_of, body)
        *steps, answer = [line.strip() for line in text.split("\n")][:256]
        verdict = TASKS[problem.task].judge(problem, steps, answer)
        judged = zip((*steps, answer), verdict.all_steps, strict=True)
        lines = [{"text": line, "right": step.right, "why": step.why} for line, step in judged]
        told = {
            "lines": lines,
            "right": verdict.final_right,
            "verified": verdict.verified,
            "lucky": verdict.lucky,
        }
        return plain(
            told | {"answer": problem.answer, "solution": TASKS[problem.task].solution(problem)}
        )

    async def health(self, request: Request) -> Response:
        return (
            plain({"status": "ok"})
            if not self.engine.fault
            else plain({"status": "the engine has stopped"}, 503)
        )

    async def metrics(self, request: Request) -> Response:
        e, counts, seconds = self.engine, self.engine.counts, "ramp_first_token_seconds"
        lines = [f"# TYPE {seconds} summary", f"{seconds}_sum {counts['first_token_seconds']:.6f}"]
        lines += [f"{seconds}_count {counts['first_tokens']}"]
        totals = ("requests", "finished", "cancelled", "tokens", "prompt_tokens", "chunks")
        shown = {(f"{name}_total", "counter"): counts[name] for name in totals}
        now = {
            "active": len(e.live),
            "waiting": len(e.waiting),
            "slots": e.slots,
            "cache_tokens": e.size,
        }
        shown |= {(name, "gauge"): value for name, value in now.items()}
        for (name, kind), value in shown.items():
            lines += [f"# TYPE ramp_{name} {kind}", f"ramp_{name} {value}"]
        return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


# ---------------------------------------------------------------------------------------------------- small parts
def policy(page: str) -> str:
    """A Content-Security-Policy that lets the page run its own script and style and nothing else."""

    def hashes(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(p.encode()).digest()).decode()}'"
            for p in parts
        )

    script, style = hashes("script"), hashes("style")
    closed = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'"
    return f"{closed}; img-src data:; script-src {script}; style-src {style}"


async def body_of(request: Request) -> bytes:
    """The body, no longer and no slower than allowed. Other sites' forms cannot send JSON without asking first."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send the body as application/json")
    raw = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                raw += part
                if len(raw) > protocol.BODY:
                    raise Refused(
                        413, f"the body is longer than {protocol.BODY} bytes", code="too_large"
                    )
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {PATIENCE:g} seconds") from None
    except ClientDisconnect:
        raise Refused(400, "the client left") from None
    return bytes(raw)


async def whole_or_gone(request: Request, work: Any, close: Callable[[], None]) -> Response:
    """Do the work unless the client leaves first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else Response(status_code=499)
    finally:
        close()
        for task in tasks:
            task.cancel()


def problem_of(asked: dict[str, Any]) -> Any:
    """The problem that {"task", "seed", "level"} names, from a query or from a body."""
    task, numbers = asked.get("task"), []
    if not isinstance(task, str) or task not in TASKS:
        raise protocol.make_error("task", f"must be one of {', '.join(TASKS)}")
    for name, low, high in (("seed", 0, 2**31 - 1), ("level", 1, LEVELS)):
        value = str(asked.get(name, ""))
        if not re.fullmatch(r"\d{1,10}", value, re.ASCII) or not low <= int(value) <= high:
            raise protocol.make_error(name, f"must be a whole number from {low} to {high}")
        numbers.append(int(value))
    return TASKS[task].sample(*numbers)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, before anything slow is done."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        says = f"cannot listen at {host}:{port} ({error.strerror}); choose another with --port or --host"
        raise UserError(says) from None


def settings(app: Api) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=2048,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=1 << 16,
    )


def come_first() -> None:
    """Let the event loop wait for little: the interpreter's lock changes hands in half a millisecond instead of five, and
    collections pass over what is here to stay."""
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(5e-4)


def serve(engine: Engine, server: Server, sock: socket.socket, key: str) -> None:
    """Warm up, then answer until interrupted."""
    host, port = sock.getsockname()[:2]
    engine.warm(lambda text: print(f"compiling: {text:<40}", end="\r", flush=True))
    come_first()
    engine.start()
    at = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    print(f"{server.name} ({server.stage}): {at}  API at /v1  (Ctrl-C ends it)")
    app = Api(engine, server, key, local=host in ("127.0.0.1", "::1"))
    try:
        uvicorn.Server(settings(app)).run(sockets=[sock])
    finally:
        engine.close()

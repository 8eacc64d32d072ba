"""The HTTP server: OpenAI's API for programs, one page for people.

The event loop never computes: requests are read and checked in a worker thread, and tokens come
from the engine's. Whatever a client does (leaves, reads slowly, sends half a body) costs at most
its own request. Nothing of a conversation is logged or kept.
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
from dataclasses import dataclass
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
from starlette.types import Receive, Scope, Send

from ramp.errors import UserError
from ramp.serve import protocol
from ramp.serve.engine import Engine, Job, QueueFull, Token
from ramp.serve.protocol import ApiError, CompletionRequest, ServedModel
from ramp.serve.text_stream import TextStream, make_chat_logprob, make_completion_logprobs
from ramp.tasks import TASKS, Problem, tool

BODY_TIMEOUT = 15.0  # seconds for a body to arrive
ANSWER_TIMEOUT = 900.0  # seconds
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
MAX_LEVEL = 12  # hardest problem of a task that is made on request
MAX_JUDGED = 1 << 14  # characters of an answer to judge


def to_json(data: Any) -> str:
    """JSON without NaN, which is no JSON; dataclasses as objects."""
    return json.dumps(data, allow_nan=False, default=vars)


def to_response(data: Any, status: int = 200) -> Response:
    """The answer to a request that was understood."""
    return Response(to_json(data), status, media_type="application/json")


def to_error_response(error: ApiError, headers: dict | None = None) -> Response:
    """The answer to a request that was not."""
    return Response(error.to_json(), error.status, headers, "application/json")


@dataclass(frozen=True)
class Usage:
    """Tokens of a request, as OpenAI counts them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


# Answers


class Answers:
    """The answers to one request, brought from the engine's thread to the event loop.

    QueueFull, RuntimeError: see `Engine.submit`.
    """

    def __init__(self, engine: Engine, request: CompletionRequest):
        self.engine = engine
        self.request = request
        self.events = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(choice, *news):
            with suppress(RuntimeError):  # the loop is closed: nobody listens
                # Called in the engine's thread: a queue of asyncio is not safe there.
                loop.call_soon_threadsafe(self.events.put_nowait, (choice, *news))

        self.jobs = []
        for i in range(request.n):
            # Answer i of n is the one that a request with seed + i gets alone.
            seed = (request.seed + i) % 2**32
            job = Job(
                request.prompt,
                request.max_new_tokens,
                request.sampling,
                seed,
                partial(emit, i),
            )
            # Only chat models are taught to call the calculator.
            if request.is_chat:
                job.insert = partial(tool.reply, engine.tokenizer)
            self.jobs.append(job)
        self.texts = [TextStream(engine.tokenizer, request.stop) for _ in self.jobs]
        self.num_generated = 0
        kind = "chatcmpl" if request.is_chat else "cmpl"
        self.id = f"{kind}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        # Last: from here on the engine calls `emit`.
        engine.submit(self.jobs)

    async def pieces(self) -> AsyncIterator[tuple[int, str, list[Token], str | None]]:
        """(choice, new text, its tokens, finish reason or None) until every choice has ended."""
        unfinished = set(range(self.request.n))
        deadline = asyncio.get_running_loop().time() + ANSWER_TIMEOUT
        while unfinished:
            try:
                async with asyncio.timeout_at(deadline):
                    choice, tokens, reason = await self.events.get()
            except TimeoutError:
                raise ApiError(504, "the answer took too long") from None
            if choice not in unfinished:
                continue  # a stop string ended it before the engine knew
            if reason == "error":
                raise ApiError(503, "the engine has stopped; see the server's log")
            stream = self.texts[choice]
            text, sent = stream.push(tokens, ended=bool(reason))
            self.num_generated += len(tokens)
            # The engine knows no stop strings and would go on to the limit.
            if stream.stopped:
                self.engine.cancel([self.jobs[choice]])
                reason = "stop"
            if reason:
                unfinished.discard(choice)
            yield choice, text, sent, reason or None

    def usage(self) -> Usage:
        """Tokens so far."""
        num_prompt = len(self.request.prompt)
        return Usage(num_prompt, self.num_generated, num_prompt + self.num_generated)

    def close(self) -> None:
        """Give the slots back, however the request ended."""
        self.engine.cancel(self.jobs)


class EventStream(StreamingResponse):
    """Server-sent events. `close` is called however it ends, even before the first event."""

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream")
        self.close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.close()


class Api:
    """The application: routes over one engine, behind the check of who may ask."""

    def __init__(self, engine: Engine, model: ServedModel, key: str = "", local: bool = True):
        self.engine = engine
        self.model = model
        self.key = key
        self.local = local
        self.model_object = {
            "id": model.name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "ramp",
        }
        self.page = Path(__file__).with_name("page.html").read_bytes()
        self.headers = [  # of every response: they keep a browser from doing more than it should
            # The page may run its own script and nothing that a model wrote.
            (b"content-security-policy", content_security_policy(self.page.decode()).encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"no-store"),
        ]
        routes = [
            Route("/", self.index),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.list_models),
            Route("/v1/models/{name:path}", self.retrieve_model),
            Route("/v1/chat/completions", partial(self.complete, is_chat=True), methods=["POST"]),
            Route("/v1/completions", partial(self.complete, is_chat=False), methods=["POST"]),
            Route("/ramp/info", self.info),
            Route("/ramp/problem", self.problem),
            Route("/ramp/judge", self.judge, methods=["POST"]),
        ]
        errors = (ApiError, HTTPException, UserError, Exception)
        self.routes = Starlette(
            routes=routes, exception_handlers=dict.fromkeys(errors, self.handle_error)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self.headers]}
            await send(message)

        error = self.check_access(scope)
        app = to_error_response(error) if error else self.routes
        await app(scope, receive, send_with_headers)

    def check_access(self, scope: Scope) -> ApiError | None:
        """The error for a request from somebody who may not ask."""
        headers = dict(scope["headers"])
        host = re.sub(r":\d+$", "", headers.get(b"host", b"").decode("latin-1"))
        # A page elsewhere can make its own name point to this machine (DNS rebinding).
        if self.local and host not in LOCAL_HOSTS:
            return ApiError(403, "this server answers to localhost only", code="wrong_host")
        if self.key and scope["path"] not in ("/", "/health"):
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            # In constant time, so that a key cannot be guessed letter by letter.
            if not hmac.compare_digest(given, self.key.encode()):
                text = "wrong or missing key; send it as 'Authorization: Bearer KEY'"
                return ApiError(401, text, code="invalid_api_key")
        return None

    async def handle_error(self, request: Request, error: Exception) -> Response:
        """Whatever went wrong, in OpenAI's shape."""
        headers = {}
        if isinstance(error, HTTPException):  # Starlette's own: no such address, no such method
            texts = {
                404: "there is nothing at this address",
                405: f"{request.method} is not allowed here",
            }
            # For instance `Allow` with a 405.
            headers |= error.headers or {}
            error = ApiError(error.status_code, texts.get(error.status_code, error.detail))
        elif isinstance(error, UserError):
            error = ApiError(400, str(error))
        elif not isinstance(error, ApiError):
            error = ApiError(500, "the server made a mistake; its log tells more")
        # OpenAI's client waits for that many seconds and tries again.
        if error.status == 429:
            headers["Retry-After"] = "1"
        return to_error_response(error, headers)

    # For programs

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models"""
        return to_response({"object": "list", "data": [self.model_object]})

    async def retrieve_model(self, request: Request) -> Response:
        """GET /v1/models/NAME"""
        if request.path_params["name"] != self.model.name:
            raise ApiError(404, "this model does not exist", "model", "model_not_found")
        return to_response(self.model_object)

    async def complete(self, request: Request, is_chat: bool) -> Response:
        """POST /v1/chat/completions and /v1/completions"""
        # Bodies are read here, on the event loop: a slow one holds up nobody.
        raw = await read_body(request)

        def parse():
            return protocol.parse_request(protocol.parse_body(raw), self.model, is_chat)

        # A megabyte of text takes long enough to encode to hold up other requests.
        completion = await run_in_threadpool(parse)
        try:
            answers = Answers(self.engine, completion)
        except QueueFull:
            text = "all slots are taken and the queue is full; try again in a moment"
            raise ApiError(429, text, code="busy") from None
        except RuntimeError as error:
            raise ApiError(503, str(error)) from None
        if completion.stream:
            return EventStream(self.stream_events(answers), answers.close)
        return await run_unless_disconnected(request, self.collect(answers), answers.close)

    def make_object(self, answers: Answers, choices: list[dict], **more: Any) -> dict[str, Any]:
        """A completion object, or one chunk of a stream."""
        request = answers.request
        kind = "text_completion"
        if request.is_chat:
            kind = "chat.completion.chunk" if request.stream else "chat.completion"
        if request.num_dropped_turns:
            more["ramp"] = {"turns_left_out": request.num_dropped_turns}
        return dict(
            id=answers.id,
            object=kind,
            created=answers.created,
            model=self.model.name,
            choices=choices,
            **more,
        )

    def make_choice(
        self,
        request: CompletionRequest,
        index: int,
        content: dict,
        tokens: list[Token],
        reason: str | None,
        offset: int = 0,
    ) -> dict[str, Any]:
        """One of an object's `choices`.

        content: its "message", its "delta" or its "text"; that text begins at `offset`.
        """
        tokenizer = self.model.tokenizer
        logprobs = None
        if request.logprobs and request.is_chat:
            entries = [make_chat_logprob(tokenizer, token) for token in tokens]
            logprobs = {"content": entries, "refusal": None}
        elif request.logprobs:
            logprobs = make_completion_logprobs(tokenizer, tokens, offset)
        return dict(index=index, **content, logprobs=logprobs, finish_reason=reason)

    async def collect(self, answers: Answers) -> Response:
        """The response of a request that does not stream."""
        request = answers.request
        texts = [""] * request.n
        tokens = [[] for _ in texts]
        reasons = {}
        async for i, text, new_tokens, reason in answers.pieces():
            texts[i] += text
            tokens[i] += new_tokens
            reasons[i] = reason
        choices = []
        for i, text in enumerate(texts):
            content = {"text": text}
            if request.is_chat:
                message = {"role": "assistant", "content": text, "refusal": None}
                content = {"message": message}
            choices.append(self.make_choice(request, i, content, tokens[i], reasons[i]))
        return to_response(self.make_object(answers, choices, usage=answers.usage()))

    async def stream_events(self, answers: Answers) -> AsyncIterator[str]:
        """The server-sent events of a request that streams."""
        request = answers.request
        offsets = [0] * request.n

        def event(choices, **more):
            chunk = self.make_object(answers, choices, **more)
            return f"data: {to_json(chunk)}\n\n"

        try:
            if request.is_chat:
                # OpenAI opens each choice with its role and no text.
                start = {"delta": {"role": "assistant", "content": ""}}
                for i in range(request.n):
                    yield event([self.make_choice(request, i, start, [], None)])
            async for i, text, tokens, reason in answers.pieces():
                # All that was new may be held back as the start of a stop string.
                if not (text or tokens or reason):
                    continue
                content = {"text": text}
                if request.is_chat:
                    content = {"delta": {"content": text} if text else {}}
                yield event([self.make_choice(request, i, content, tokens, reason, offsets[i])])
                offsets[i] += len(text)
            # In a chunk of its own that has no choices.
            if request.include_usage:
                yield event([], usage=answers.usage())
            yield "data: [DONE]\n\n"
        # The status has been sent, so the error comes as an event.
        except ApiError as error:
            yield f"data: {error.to_json()}\n\n"

    # For the page

    async def index(self, request: Request) -> Response:
        """GET /"""
        return Response(self.page, media_type="text/html; charset=utf-8")

    async def info(self, request: Request) -> Response:
        """GET /ramp/info: the model, its default settings and the tasks."""
        sample = self.model.c.sample
        shape = self.model.c.model
        info = {
            "model": self.model.name,
            "stage": self.model.stage,
            "can_chat": self.model.can_chat,
            "shape": {
                "depth": shape.depth,
                "width": shape.width,
                "context": shape.context_len,
                "vocab": self.model.tokenizer.vocab_size,
            },
            "settings": {
                "temperature": sample.temperature,
                "top_k": sample.top_k,
                "top_p": sample.top_p,
                "min_p": sample.min_p,
                "tokens": sample.max_new_tokens,
            },
            "tasks": list(TASKS),
            "levels": MAX_LEVEL,
        }
        return to_response(info)

    async def problem(self, request: Request) -> Response:
        """GET /ramp/problem?task=&seed=&level=: a problem of a task."""
        problem = await run_in_threadpool(make_problem, dict(request.query_params))
        fields = ("task", "level", "seed", "question")
        return to_response({name: getattr(problem, name) for name in fields})

    async def judge(self, request: Request) -> Response:
        """POST /ramp/judge: verdicts on the lines of an answer; all but the last are steps."""
        body = protocol.parse_body(await read_body(request))
        text = body.get("text")
        if not isinstance(text, str) or len(text) > MAX_JUDGED:
            reason = f"must be the answer to judge, of at most {MAX_JUDGED} characters"
            raise protocol.make_field_error("text", reason)
        problem = await run_in_threadpool(make_problem, body)
        task = TASKS[problem.task]
        lines = [line.strip() for line in text.split("\n")]
        # A task judges steps one by one; no honest answer has more lines.
        *steps, answer = lines[:256]
        verdict = task.judge(problem, steps, answer)
        judged = zip((*steps, answer), verdict.all_steps, strict=True)
        result = {
            "lines": [{"text": line} | vars(step) for line, step in judged],
            "right": verdict.final_right,
            # Right all the way, or right in the end in spite of a wrong step.
            "verified": verdict.verified,
            "lucky": verdict.lucky,
            "answer": problem.answer,
            "solution": task.solution(problem),
        }
        return to_response(result)

    # For operators

    async def health(self, request: Request) -> Response:
        """GET /health: 200 while the engine runs."""
        if self.engine.error:
            return to_response({"status": "the engine has stopped"}, 503)
        return to_response({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, in Prometheus' text format."""
        engine = self.engine
        counts = engine.counts
        # Sums since the start; whoever reads them computes rates.
        totals = ("requests", "finished", "cancelled", "tokens", "prompt_tokens", "chunks")
        rows = [(f"{name}_total", "counter", counts[name]) for name in totals]
        rows += [
            ("active", "gauge", len(engine.running)),
            ("waiting", "gauge", len(engine.waiting)),
            ("slots", "gauge", engine.slots),
            ("cache_tokens", "gauge", engine.size),
        ]
        lines = [
            "# TYPE ramp_first_token_seconds summary",
            f"ramp_first_token_seconds_sum {counts['first_token_seconds']:.6f}",
            f"ramp_first_token_seconds_count {counts['first_tokens']}",
        ]
        for name, kind, value in rows:
            lines += [f"# TYPE ramp_{name} {kind}", f"ramp_{name} {value}"]
        return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


# Parts


def content_security_policy(page: str) -> str:
    """A policy that lets the page run its own script and style and nothing else."""

    def list_hashes(tag):
        # A hash allows exactly this script; an inserted one would have another.
        hashes = []
        for part in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL):
            digest = hashlib.sha256(part.encode()).digest()
            hashes.append(f"'sha256-{base64.b64encode(digest).decode()}'")
        return " ".join(hashes)

    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "connect-src 'self'; img-src data:; "
        f"script-src {list_hashes('script')}; style-src {list_hashes('style')}"
    )


async def read_body(request: Request) -> bytes:
    """The body, no longer and no slower than allowed.

    Only JSON is taken: a form on another site cannot send that without asking the browser first.
    """
    content_type = request.headers.get("content-type", "").split(";")[0]
    if content_type.strip().lower() != "application/json":
        raise ApiError(415, "send the body as application/json")
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for part in request.stream():
                raw += part
                if len(raw) > protocol.MAX_BODY_BYTES:
                    text = f"the body is longer than {protocol.MAX_BODY_BYTES} bytes"
                    raise ApiError(413, text, code="too_large")
    except TimeoutError:
        text = f"the body did not arrive within {BODY_TIMEOUT:g} seconds"
        raise ApiError(408, text) from None
    except ClientDisconnect:
        raise ApiError(400, "the client left") from None
    return bytes(raw)


async def run_unless_disconnected(
    request: Request, work: Any, close: Callable[[], None]
) -> Response:
    """Do the work unless the client leaves first."""

    async def wait_for_disconnect():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    # Starlette does not end a handler whose client has left.
    answer = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait([answer, disconnect], return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else Response(status_code=499)
    finally:
        close()
        for task in (answer, disconnect):
            task.cancel()


def make_problem(fields: dict[str, Any]) -> Problem:
    """The problem that {"task", "seed", "level"} names, from a query or from a body."""
    task = fields.get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise protocol.make_field_error("task", f"must be one of {', '.join(TASKS)}")
    numbers = []
    for name, low, high in (("seed", 0, 2**31 - 1), ("level", 1, MAX_LEVEL)):
        # Text in a query, a number in a body.
        value = str(fields.get(name, ""))
        is_number = re.fullmatch(r"\d{1,10}", value, re.ASCII)
        if not is_number or not low <= int(value) <= high:
            raise protocol.make_field_error(name, f"must be a whole number from {low} to {high}")
        numbers.append(int(value))
    return TASKS[task].sample(*numbers)


# The server


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, before anything slow is done."""
    # Only an IPv6 address has colons.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}:{port} ({error.strerror}); "
            "choose another with --port or --host"
        ) from None


def make_server_config(app: Api) -> uvicorn.Config:
    """uvicorn's settings: quiet, bounded, and gone three seconds after it is told to stop."""
    return uvicorn.Config(
        app,
        # Pure Python, which bounds what half a request can cost.
        http="h11",
        ws="none",
        lifespan="off",
        # Nothing of a request is logged.
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=2048,
        timeout_keep_alive=15,
        # Streams that are under way are cut off then.
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=1 << 16,
    )


def serve(engine: Engine, model: ServedModel, sock: socket.socket, key: str) -> None:
    """Warm up, then answer until interrupted."""
    host, port = sock.getsockname()[:2]
    engine.warm_up(lambda text: print(f"compiling: {text:<40}", end="\r", flush=True))
    # Garbage collections skip what is here to stay.
    gc.collect()
    gc.freeze()
    # The event loop waits less for the engine's thread: the default is 5 ms.
    sys.setswitchinterval(5e-4)
    engine.start()
    netloc = f"[{host}]" if ":" in host else host
    print(f"{model.name} ({model.stage}): http://{netloc}:{port}/  API at /v1  (Ctrl-C ends it)")
    # Behind an address that others reach, the name they use for it is not known here.
    app = Api(engine, model, key, local=host in ("127.0.0.1", "::1"))
    try:
        uvicorn.Server(make_server_config(app)).run(sockets=[sock])
    finally:
        engine.close()

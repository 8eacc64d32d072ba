"""The HTTP server: OpenAI's API for programs, one page for people.

The event loop never computes: requests are read and checked in a worker thread, and tokens come
from the engine's. Whatever a client does (leaves, reads slowly, sends half a body) costs at most
its own request. Nothing of a conversation is logged or kept.
"""

import asyncio
import gc
import re
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from ramp.errors import UserError
from ramp.serve import protocol
from ramp.serve.access import Access
from ramp.serve.answers import Answers, EventStream, collect, embed, stream_events, to_response
from ramp.serve.connections import Connections
from ramp.serve.engine import Engine
from ramp.serve.fields import ApiError, make_field_error
from ramp.serve.protocol import ServedModel
from ramp.serve.record import Histogram, RequestLog
from ramp.serve.responses import collect_response, parse_response_request, write_events
from ramp.tasks import TASKS, Problem, Task

BODY_TIMEOUT = 15.0  # seconds for a body to arrive
SEND_TIMEOUT = 60.0  # seconds for a client to read what was sent to it
MAX_LEVEL = 12  # hardest problem of a task that is made on request
MAX_JUDGED = 1 << 14  # characters of an answer to judge

PAGE = Path(__file__).with_name("page")
# What a browser may do with whatever comes from here: load the page's own files and nothing else.
# With trusted types no text can be made markup or script, even where the page forgets itself.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "connect-src 'self'; img-src data:; script-src 'self'; style-src 'self'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


def to_error_response(error: ApiError, headers: dict | None = None) -> Response:
    """The answer to a request that was not."""
    return Response(error.to_json(), error.status, headers, "application/json")


class Api:
    """The application: routes over one engine, behind the check of who may ask."""

    def __init__(
        self,
        engine: Engine,
        model: ServedModel,
        access: Access | None = None,
        log: RequestLog | None = None,
    ):
        self.engine = engine
        self.model = model
        self.access = access or Access()
        self.log = log or RequestLog(None)
        self.seconds = Histogram("ramp_request_seconds")
        # A thread of its own keeps what it has freed: forty of them would keep forty times as much.
        self.parser = ThreadPoolExecutor(1, "ramp-parser")
        self.model_object = {
            "id": model.name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "ramp",
        }
        self.headers = [  # of every response: they keep a browser from doing more than it should
            (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
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
            Route("/v1/embeddings", self.embed, methods=["POST"]),
            Route("/v1/responses", self.respond, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/tokenizer_info", self.tokenizer_info),
            Mount("/page", StaticFiles(directory=PAGE)),
            Route("/ramp/info", self.info),
            Route("/ramp/problem", self.problem),
            Route("/ramp/judge", self.judge, methods=["POST"]),
        ]
        errors = (ApiError, HTTPException, UserError, Exception)
        self.routes = Starlette(
            routes=routes, exception_handlers=dict.fromkeys(errors, self.handle_error)
        )

        self.app: ASGIApp = self.answer
        if self.access.origins:
            # Outermost, since a browser asks without a key whether it may send one.
            self.app = CORSMiddleware(
                self.answer, self.access.origins, ("GET", "POST"), ("authorization", "content-type")
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, measure it and write its line."""
        start = time.perf_counter()
        scope["state"] = figures = {}

        async def send_or_leave(message):
            if message["type"] == "http.response.start":
                figures["status"] = message["status"]
                message = {**message, "headers": [*message["headers"], *self.headers]}
            # A client that does not read would hold the answer, and its place, for ever.
            async with asyncio.timeout(SEND_TIMEOUT):
                await send(message)

        try:
            await self.app(scope, receive, send_or_leave)
        except TimeoutError:
            figures["status"] = 499
            raise ClientDisconnect from None
        finally:
            seconds = time.perf_counter() - start
            self.seconds.add(seconds)
            # The route and not the path, which is whatever a client wrote.
            route = scope.get("route")
            path = route.path if route else None
            client = scope.get("client") or [None]
            self.log.write(address=client[0], path=path, seconds=round(seconds, 4), **figures)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request of somebody who may ask."""
        try:
            scope["state"]["key"] = self.access.check(scope)
        except ApiError as error:
            # How to send a key, for clients that look it up.
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            await to_error_response(error, headers)(scope, receive, send)
        else:
            await self.routes(scope, receive, send)

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
        completion = await self.parse(request, protocol.parse_request, self.model, is_chat)
        answers = Answers(self.engine, self.model, completion, request.scope["state"])
        if completion.stream:
            return EventStream(stream_events(answers), answers.close)
        return await run_unless_disconnected(request, collect(answers), answers.close)

    async def embed(self, request: Request) -> Response:
        """POST /v1/embeddings"""
        asked = await self.parse(request, protocol.parse_embeddings, self.model)
        answers = Answers(self.engine, self.model, asked, request.scope["state"])
        return await run_unless_disconnected(request, embed(answers), answers.close)

    async def respond(self, request: Request) -> Response:
        """POST /v1/responses, in its basic form"""
        asked = await self.parse(request, parse_response_request, self.model)
        answers = Answers(self.engine, self.model, asked, request.scope["state"])
        if asked.stream:
            return EventStream(write_events(answers), answers.close)
        return await run_unless_disconnected(request, collect_response(answers), answers.close)

    async def parse(self, request: Request, parse: Callable, *args: Any) -> Any:
        """What `parse` makes of the request's body."""
        # Bodies are read here, on the event loop: a slow one holds up nobody.
        raw = await read_body(request)
        loop = asyncio.get_running_loop()

        def work():
            return parse(protocol.parse_body(raw), *args)

        # A megabyte of text takes long enough to encode to hold up other requests.
        return await loop.run_in_executor(self.parser, work)

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize, as vLLM has it"""
        tokens = await self.parse(request, protocol.tokenize, self.model)
        context = self.model.c.model.context_len
        return to_response({"count": len(tokens), "max_model_len": context, "tokens": tokens})

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize, as vLLM has it"""
        return to_response({"prompt": await self.parse(request, protocol.detokenize, self.model)})

    async def tokenizer_info(self, request: Request) -> Response:
        """GET /tokenizer_info: the names of the tokens that begin and end a text."""
        tokenizer = self.model.tokenizer
        names = {"bos_token": "bos", "eos_token": "end", "pad_token": "pad"}
        info = {key: tokenizer.name_of(tokenizer.special(name)) for key, name in names.items()}
        return to_response(info)

    # For the page

    async def index(self, request: Request) -> Response:
        """GET /"""
        return FileResponse(PAGE / "index.html")

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
            "tasks": {name: find_highest_level(task) for name, task in TASKS.items()},
        }
        return to_response(info)

    async def problem(self, request: Request) -> Response:
        """GET /ramp/problem?task=&seed=&level=: a problem of a task."""
        problem = await run_in_threadpool(make_problem, dict(request.query_params))
        fields = ("task", "level", "seed", "question")
        return to_response({name: getattr(problem, name) for name in fields})

    async def judge(self, request: Request) -> Response:
        """POST /ramp/judge: verdicts on the lines of an answer; all but the last are steps."""
        body = await self.parse(request, dict)
        text = body.get("text")
        if not isinstance(text, str) or len(text) > MAX_JUDGED:
            reason = f"must be the answer to judge, of at most {MAX_JUDGED} characters"
            raise make_field_error("text", reason)
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
            ("cache_tokens", "gauge", engine.device.size),
        ]
        lines = [*self.seconds.lines(), *engine.first_token_seconds.lines()]
        for name, kind, value in rows:
            lines += [f"# TYPE ramp_{name} {kind}", f"ramp_{name} {value}"]
        return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


# Parts


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


def find_highest_level(task: Task) -> int:
    """The hardest level that a task has problems of, as far as they are made on request."""
    for level in range(MAX_LEVEL, 1, -1):
        with suppress(UserError):
            return task.sample(0, level).level
    return 1


def make_problem(fields: dict[str, Any]) -> Problem:
    """The problem that {"task", "seed", "level"} names, from a query or from a body."""
    task = fields.get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise make_field_error("task", f"must be one of {', '.join(TASKS)}")
    numbers = []
    for name, low, high in (("seed", 0, 2**31 - 1), ("level", 1, MAX_LEVEL)):
        # Text in a query, a number in a body.
        value = str(fields.get(name, ""))
        is_number = re.fullmatch(r"\d{1,10}", value, re.ASCII)
        if not is_number or not low <= int(value) <= high:
            raise make_field_error(name, f"must be a whole number from {low} to {high}")
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


def make_server_config(app: Api, connections: Connections) -> uvicorn.Config:
    """uvicorn's settings: quiet, bounded, and gone three seconds after it is told to stop."""
    make_connection: Any = connections.protocol  # it wants a class, and only calls it
    return uvicorn.Config(
        app,
        # Pure Python, which bounds what half a request can cost.
        http=make_connection,
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


def serve(
    engine: Engine,
    model: ServedModel,
    sock: socket.socket,
    access: Access,
    log: RequestLog,
    connections: Connections,
) -> None:
    """Warm up, then answer until interrupted."""
    host, port = sock.getsockname()[:2]
    engine.warm_up(lambda text: print(f"{text:<60}", end="\r", flush=True))
    # Garbage collections skip what is here to stay.
    gc.collect()
    gc.freeze()
    # The event loop waits less for the engine's thread: the default is 5 ms.
    sys.setswitchinterval(5e-4)
    engine.start()
    netloc = f"[{host}]" if ":" in host else host
    print(f"{model.name} ({model.stage}): http://{netloc}:{port}/  API at /v1  (Ctrl-C ends it)")
    app = Api(engine, model, access, log)
    try:
        uvicorn.Server(make_server_config(app, connections)).run(sockets=[sock])
    finally:
        engine.close()

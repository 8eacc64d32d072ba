"""The answers to a request as they come from the engine, and OpenAI's objects around them."""

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ramp.serve.engine import Engine, QueueFull
from ramp.serve.fields import ApiError
from ramp.serve.jobs import Job, Token
from ramp.serve.protocol import CompletionRequest, ServedModel
from ramp.serve.text_stream import TextStream, make_chat_logprob, make_completion_logprobs
from ramp.serve.tools import Call, CallStream
from ramp.tasks import tool

ANSWER_TIMEOUT = 900.0  # seconds


def to_json(data: Any) -> str:
    """JSON without NaN, which is no JSON; dataclasses as objects."""
    return json.dumps(data, allow_nan=False, default=vars)


def to_response(data: Any, status: int = 200) -> Response:
    """The answer to a request that was understood."""
    return Response(to_json(data), status, media_type="application/json")


@dataclass(frozen=True)
class Usage:
    """Tokens of a request, as OpenAI counts them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class Piece:
    """What is new of one answer."""

    choice: int
    text: str
    tokens: list[Token]
    calls: list[Call]
    reason: str | None  # why it has ended, if it has


class Answers:
    """The answers to one request, brought from the engine's thread to the event loop.

    figures: gets what the log of requests tells of it. ApiError: the engine has no room for them.
    """

    def __init__(
        self, engine: Engine, model: ServedModel, request: CompletionRequest, figures: dict
    ):
        self.engine = engine
        self.model = model
        self.request = request
        self.events = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(choice, *news):
            with suppress(RuntimeError):  # the loop is closed: nobody listens
                # Called in the engine's thread: a queue of asyncio is not safe there.
                loop.call_soon_threadsafe(self.events.put_nowait, (choice, *news))

        # Answers to one prompt stand together, as OpenAI numbers them.
        self.prompts = [prompt for prompt in request.prompts for _ in range(request.n)]
        self.jobs = [
            self._make_job(i, prompt, partial(emit, i)) for i, prompt in enumerate(self.prompts)
        ]
        self.texts = [TextStream(model.tokenizer, request.stop) for _ in self.jobs]
        use = request.tools
        self.calls = [CallStream(use) if use else None for _ in self.jobs]
        self.num_generated = 0
        self.figures = figures
        kind = "chatcmpl" if request.is_chat else "cmpl"
        self.id = f"{kind}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        # Last: from here on the engine calls `emit`.
        submit(engine, self.jobs)

    def _make_job(self, number, prompt, emit):
        request = self.request
        wants_logprobs = request.num_logprobs is not None
        job = Job(
            prompt.ids,
            prompt.max_new_tokens,
            request.sampling,
            request.seed,
            emit,
            number=number,
            logprobs=request.num_logprobs or 0,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            logit_bias=request.logit_bias,
            exact=request.has_seed,
            scores_prompt=request.echo and wants_logprobs,
            embeds_prompt=bool(request.embeds),
        )
        if request.constraint:
            job.constraint = request.constraint.copy(prompt.ids)
        # Only chat models are taught to call the calculator, which no grammar knows.
        elif request.is_chat:
            job.insert = partial(tool.reply, self.model.tokenizer)
        return job

    async def pieces(self) -> AsyncIterator[Piece]:
        """What is new, until every choice has ended."""
        unfinished = set(range(len(self.jobs)))
        unheard = set(unfinished) if self.request.echo else set()
        deadline = asyncio.get_running_loop().time() + ANSWER_TIMEOUT
        while unfinished:
            try:
                async with asyncio.timeout_at(deadline):
                    choice, tokens, reason = await self.events.get()
            except TimeoutError:
                raise ApiError(504, "the answer took too long") from None
            if choice not in unfinished:
                continue  # a stop string ended it before the engine knew
            check_reason(reason)
            stream = self.texts[choice]
            # The prompt has been read by now, so its figures are there.
            if choice in unheard:
                unheard.discard(choice)
                stream.echo(self._prompt_tokens(choice))
            text, sent = stream.push(tokens, ended=bool(reason))
            self.num_generated += len(tokens)
            is_over, new_calls = stream.stopped, []
            # Calls are looked for in what stop strings have left.
            calls = self.calls[choice]
            if calls:
                text, new_calls = calls.push(text, bool(reason) or is_over)
                is_over = is_over or calls.is_over
            # The engine knows no stop strings and would go on to the limit.
            if is_over:
                self.engine.cancel([self.jobs[choice]])
                reason = "stop"
            if calls and calls.calls and reason == "stop":
                reason = "tool_calls"
            if reason:
                unfinished.discard(choice)
            yield Piece(choice, text, sent, new_calls, reason or None)

    def _prompt_tokens(self, choice):
        """The prompt as the client sent it, with figures where it asked for them."""
        job = self.jobs[choice]
        tokens = job.prompt_tokens or [Token(id) for id in job.prompt]
        return tokens[self.prompts[choice].num_own :]

    def usage(self) -> Usage:
        """Tokens so far."""
        num_prompt = sum(len(prompt.ids) for prompt in self.request.prompts)
        return Usage(num_prompt, self.num_generated, num_prompt + self.num_generated)

    def close(self) -> None:
        """Give the slots back, however the request ended."""
        self.engine.cancel(self.jobs)
        self.figures |= vars(self.usage())


def submit(engine: Engine, jobs: list[Job]) -> None:
    """Queue all of the jobs or none; ApiError where there is no room."""
    # Trying again would not help.
    if len(jobs) > engine.capacity:
        text = f"this is {len(jobs)} answers at once; the server has room for {engine.capacity}"
        raise ApiError(400, f"{text}: ask for fewer, or start it with a larger --queue", "n")
    try:
        engine.submit(jobs)
    except QueueFull:
        text = "all slots are taken and the queue is full; try again in a moment"
        raise ApiError(429, text, code="busy") from None
    except RuntimeError as error:
        raise ApiError(503, str(error)) from None


def check_reason(reason: str) -> None:
    """ApiError where an answer ended for no reason that a client could be told as one."""
    if reason == "error":
        raise ApiError(503, "the engine has stopped; see the server's log")
    if reason == "invalid":
        raise ApiError(422, "the model's numbers are not finite after this prompt")
    if reason == "failed":
        raise ApiError(422, "the grammar leads where no token follows, or costs too much to follow")


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


def make_object(answers: Answers, choices: list[dict], **more: Any) -> dict[str, Any]:
    """A completion object, or one chunk of a stream."""
    request = answers.request
    kind = "text_completion"
    if request.is_chat:
        kind = "chat.completion.chunk" if request.stream else "chat.completion"
    num_dropped = request.prompts[0].num_dropped_turns
    if num_dropped:
        more["ramp"] = {"turns_left_out": num_dropped}
    return dict(
        id=answers.id,
        object=kind,
        created=answers.created,
        model=answers.model.name,
        choices=choices,
        **more,
    )


def make_choice(
    answers: Answers, index: int, content: dict, tokens: list[Token], reason: str | None
) -> dict[str, Any]:
    """One of an object's `choices`. content: its "message", its "delta" or its "text"."""
    tokenizer = answers.model.tokenizer
    logprobs = None
    if answers.request.num_logprobs is not None:
        if answers.request.is_chat:
            entries = [make_chat_logprob(tokenizer, token) for token in tokens]
            logprobs = {"content": entries, "refusal": None}
        else:
            logprobs = make_completion_logprobs(tokenizer, tokens)
    return dict(index=index, **content, logprobs=logprobs, finish_reason=reason)


async def collect(answers: Answers) -> Response:
    """The response of a request that does not stream."""
    texts = [""] * len(answers.jobs)
    tokens = [[] for _ in texts]
    reasons = {}
    async for piece in answers.pieces():
        texts[piece.choice] += piece.text
        tokens[piece.choice] += piece.tokens
        reasons[piece.choice] = piece.reason
    choices = []
    for i, text in enumerate(texts):
        content = {"text": text}
        if answers.request.is_chat:
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            calls = answers.calls[i]
            if calls and calls.calls:
                message |= {"content": text or None, "tool_calls": calls.calls}
            content = {"message": message}
        choices.append(make_choice(answers, i, content, tokens[i], reasons[i]))
    return to_response(make_object(answers, choices, usage=answers.usage()))


async def embed(answers: Answers) -> Response:
    """The response to a request for embeddings: means of the last hidden states, of length 1."""
    async for _ in answers.pieces():
        pass
    rows = []
    for i, job in enumerate(answers.jobs):
        norm = np.linalg.norm(job.embedding)
        # The mean points where the sum does.
        vector = np.float32(job.embedding / norm)
        if not np.isfinite(vector).all():
            check_reason("invalid")
        value = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        embedding = value if answers.request.embeds == "base64" else vector.tolist()
        rows.append({"object": "embedding", "index": i, "embedding": embedding})
    num_tokens = answers.usage().prompt_tokens
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    model = answers.model.name
    return to_response({"object": "list", "data": rows, "model": model, "usage": usage})


async def stream_events(answers: Answers) -> AsyncIterator[str]:
    """The server-sent events of a request that streams."""
    request = answers.request

    def event(choices, **more):
        chunk = make_object(answers, choices, **more)
        return f"data: {to_json(chunk)}\n\n"

    try:
        if request.is_chat:
            # OpenAI opens each choice with its role and no text.
            start = {"delta": {"role": "assistant", "content": ""}}
            for i in range(len(answers.jobs)):
                yield event([make_choice(answers, i, start, [], None)])
        async for piece in answers.pieces():
            # All that was new may be held back as the start of a stop string.
            if not (piece.text or piece.tokens or piece.calls or piece.reason):
                continue
            content = {"text": piece.text}
            if request.is_chat:
                delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
                # Each call comes whole.
                delta |= {"tool_calls": piece.calls} if piece.calls else {}
                content = {"delta": delta}
            choice = make_choice(answers, piece.choice, content, piece.tokens, piece.reason)
            yield event([choice])
        # In a chunk of its own that has no choices.
        if request.include_usage:
            yield event([], usage=answers.usage())
        yield "data: [DONE]\n\n"
    # The status has been sent, so the error comes as an event.
    except ApiError as error:
        yield f"data: {error.to_json()}\n\n"

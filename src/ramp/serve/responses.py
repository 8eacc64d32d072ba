"""OpenAI's /v1/responses in its basic form: a chat request in other words, answered in events.

Nothing is stored, so `previous_response_id` is refused: clients send the conversation each time.
"""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.responses import Response

from ramp.serve import fields
from ramp.serve.answers import Answers, to_json, to_response
from ramp.serve.fields import ApiError, make_field_error
from ramp.serve.protocol import CompletionRequest, ServedModel, parse_request

# What a chat request has too, by the same name.
SHARED = ("model", "temperature", "top_p", "stream", "truncation", *fields.WITHOUT_EFFECT)
FORMAT = fields.Field(fields.mapping, "the form of the answer")


def parse_response_request(body: dict, model: ServedModel) -> CompletionRequest:
    """Check every field, and say the same as a chat request."""
    given = fields.read_fields(body, fields.RESPONSES, "/v1/responses")
    chat = {name: given[name] for name in SHARED}
    messages = given["input"]
    # A text is one question.
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list):
        raise make_field_error("input", "must be text or a list of messages")
    messages = [_read_item(item, f"input[{i}]") for i, item in enumerate(messages)]
    if given["instructions"]:
        messages.insert(0, {"role": "system", "content": given["instructions"]})
    # Here the form is a part of what is said of the text.
    form = fields.read_fields(given["text"] or {}, {"format": FORMAT}, "text")["format"]
    chat |= {"messages": messages, "response_format": form}
    chat["max_completion_tokens"] = given["max_output_tokens"]
    return parse_request(chat, model, is_chat=True)


def _read_item(item, where):
    if not isinstance(item, dict) or item.get("type", "message") != "message":
        raise make_field_error(where, "must be a message: this server takes no other items")
    content = item.get("content")
    if isinstance(content, list):
        # Text has one name here where a model reads it and another where it wrote it.
        kinds = {"input_text": "text", "output_text": "text"}
        parts = [part if isinstance(part, dict) else {} for part in content]
        content = [part | {"type": kinds.get(str(part.get("type")))} for part in parts]
    return {"role": item.get("role"), "content": content}


@dataclass(frozen=True)
class TextPart:
    """The text of a message."""

    text: str
    type: str = "output_text"
    annotations: tuple = ()
    logprobs: tuple = ()


@dataclass(frozen=True)
class Message:
    """The one item of an output."""

    id: str
    status: str
    content: tuple[TextPart, ...] = ()
    type: str = "message"
    role: str = "assistant"


@dataclass(frozen=True)
class ResponseUsage:
    """Tokens, as this form counts them."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class ResponseObject:
    """A response as it stands."""

    id: str
    created_at: int
    model: str
    temperature: float
    top_p: float
    status: str = "in_progress"
    output: tuple[Message, ...] = ()
    usage: ResponseUsage | None = None
    incomplete_details: dict | None = None
    object: str = "response"
    error: None = None
    instructions: None = None
    metadata: dict = field(default_factory=dict)
    parallel_tool_calls: bool = False
    tool_choice: str = "none"
    tools: tuple = ()
    store: bool = False


async def stream_response(answers: Answers) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The events (type, what they hold) of a response, the last of which has all of it."""
    sampling = answers.request.sampling
    start = ResponseObject(
        f"resp_{uuid.uuid4().hex}",
        answers.created,
        answers.model.name,
        float(sampling.temperature),
        float(sampling.top_p),
    )
    item = Message(f"msg_{uuid.uuid4().hex}", start.status)
    # There is one message with one part in it.
    at = {"output_index": 0}
    place = {"item_id": item.id, "content_index": 0} | at
    yield "response.created", {"response": start}
    yield "response.output_item.added", {"item": item} | at
    yield "response.content_part.added", {"part": TextPart("")} | place
    text, reason = "", None
    async for piece in answers.pieces():
        text += piece.text
        reason = piece.reason
        if piece.text:
            yield "response.output_text.delta", {"delta": piece.text, "logprobs": []} | place
    # All that has been sent comes once more, for clients that look at the end only.
    status = "incomplete" if reason == "length" else "completed"
    part = TextPart(text)
    item = replace(item, status=status, content=(part,))
    used = answers.usage()
    whole = replace(
        start,
        status=status,
        output=(item,),
        usage=ResponseUsage(used.prompt_tokens, used.completion_tokens, used.total_tokens),
        incomplete_details={"reason": "max_output_tokens"} if reason == "length" else None,
    )
    yield "response.output_text.done", {"text": text, "logprobs": []} | place
    yield "response.content_part.done", {"part": part} | place
    yield "response.output_item.done", {"item": item} | at
    yield f"response.{status}", {"response": whole}


async def collect_response(answers: Answers) -> Response:
    """The response of a request that does not stream."""
    events = [content async for _, content in stream_response(answers)]
    return to_response(events[-1]["response"])


async def write_events(answers: Answers) -> AsyncIterator[str]:
    """The server-sent events of one that does."""
    number = 0
    try:
        async for kind, content in stream_response(answers):
            event = {"type": kind, "sequence_number": number} | content
            yield f"event: {kind}\ndata: {to_json(event)}\n\n"
            number += 1
    # The status has been sent, so the error comes as an event.
    except ApiError as error:
        shown = {"message": str(error), "code": error.code, "param": error.param}
        event = {"type": "error", "sequence_number": number} | shown
        yield f"event: error\ndata: {to_json(event)}\n\n"

"""The fields of every request: type, range and what each does, one row a field.

What has no row is refused by name, so nothing that a client asks for is ignored in silence. Many
clients send every field that they know, so a field that ramp cannot serve has a row too where some
value of it changes nothing.
"""

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_CHOICES = 16
MAX_MESSAGES = 512
MAX_PROMPTS = 256
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 64  # characters
MAX_TOKENS = 1 << 20  # that a request may name; the context decides
MAX_LOGPROBS = 20  # as `ramp.decode.batch` reports, which needs jax
MAX_BIASED = 1024  # tokens of a logit_bias
SHOWN = 80  # characters of what a client sent that an error repeats


class ApiError(Exception):
    """An HTTP status with an error in OpenAI's shape."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def to_json(self) -> str:
        """The body of the response."""
        # Clients choose their exception by status and type.
        types = {401: "authentication_error", 429: "rate_limit_error"}
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = types.get(self.status, default)
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error})


def make_field_error(name: str, text: str, code: str = "invalid_value") -> ApiError:
    """The error for a field that is not as it must be."""
    return ApiError(400, f"'{name}' {text}", name, code)


# Kinds of fields: each takes a value and says what it must be, or "" where it is that.

Check = Callable[[Any], str]


def number(low: float, high: float, *kinds: type) -> Check:
    """A number from `low` to `high`."""
    kinds = kinds or (int, float)
    text = "number" if float in kinds else "whole number"

    def check(value):
        # By its exact type: a bool is an int to isinstance.
        is_valid = type(value) in kinds and low <= value <= high
        return "" if is_valid else f"must be a {text} from {low:g} to {high:g}"

    return check


def integer(low: int, high: int) -> Check:
    """A whole number from `low` to `high`."""
    return number(low, high, int)


def flag(value: Any) -> str:
    """True or false."""
    return "" if type(value) is bool else "must be true or false"


def text(value: Any) -> str:
    """A string."""
    return "" if isinstance(value, str) else "must be text"


def mapping(value: Any) -> str:
    """A JSON object, whose fields are checked where it is read."""
    return "" if isinstance(value, dict) else "must be an object"


def anything(value: Any) -> str:
    """Checked where it is read, or never read at all."""
    return ""


def only(*values: Any) -> Check:
    """One of a few values, of which the others are not served."""
    shown = " or ".join(json.dumps(value) for value in values)

    def check(value):
        # `in` alone would take 1 for true.
        same = any(type(value) is type(v) and value == v for v in values)
        return "" if same else f"is not supported here (but {shown} is)"

    return check


def stop_strings(value: Any) -> str:
    """A string, or a few in a list."""
    texts = [value] if isinstance(value, str) else value
    is_list = isinstance(texts, list) and len(texts) <= MAX_STOP_STRINGS
    if is_list and all(isinstance(t, str) and 0 < len(t) <= MAX_STOP_LENGTH for t in texts):
        return ""
    return (
        f"must be a string or at most {MAX_STOP_STRINGS}, each of 1 to {MAX_STOP_LENGTH} characters"
    )


def biases(value: Any) -> str:
    """An object from token ids to numbers."""
    is_valid = isinstance(value, dict) and len(value) <= MAX_BIASED
    if is_valid and all(
        key.isascii() and key.isdigit() and len(key) < 10 and not number(-100, 100)(bias)
        for key, bias in value.items()
    ):
        return ""
    return f"must be an object of at most {MAX_BIASED} token ids, each with a number -100 to 100"


# Endpoints: the fields of each, with the check of its value and what it does.


@dataclass(frozen=True)
class Field:
    """One field of a request."""

    check: Check
    help: str


MODEL = {"model": Field(text, "the name that /v1/models gives")}
SAMPLING = {
    "temperature": Field(number(0, 2), "0: the most likely token; 1: the model as it is"),
    "top_p": Field(number(0, 1), "draw from the most likely tokens that hold this share"),
    "top_k": Field(integer(0, 1 << 20), "draw from the k most likely tokens; 0: from all"),
    "min_p": Field(number(0, 1), "draw from tokens this share as likely as the likeliest"),
    "seed": Field(integer(-(2**63), 2**64 - 1), "the same seed gives the same answer again"),
    "presence_penalty": Field(number(-2, 2), "off the logits of tokens in the answer so far"),
    "frequency_penalty": Field(number(-2, 2), "the same, for each time that they occur"),
    "logit_bias": Field(biases, "added to the logits of tokens by their id"),
}
# They name a request for its sender's own books, or ask for what is so here anyway.
WITHOUT_EFFECT = {
    "user": Field(text, "no effect: nothing of a request is kept"),
    "metadata": Field(anything, "no effect"),
    "safety_identifier": Field(text, "no effect"),
    "prompt_cache_key": Field(text, "no effect"),
    "service_tier": Field(only("auto", "default"), "no effect"),
    "store": Field(only(False), "no effect: nothing is stored"),
}
COMPLETION = {
    **MODEL,
    **SAMPLING,
    **WITHOUT_EFFECT,
    "n": Field(integer(1, MAX_CHOICES), "answers to each prompt"),
    "stop": Field(stop_strings, "the answer ends before one of these"),
    "stream": Field(flag, "send the answer as server-sent events while it is written"),
    "stream_options": Field(mapping, "include_usage: count the tokens at the end of a stream"),
    "response_format": Field(mapping, "the form of the answer: JSON, a schema or a grammar"),
    "truncation": Field(only("auto", "disabled"), "auto: drop the oldest turns where room ends"),
}
TEXT = {
    **COMPLETION,
    "prompt": Field(anything, "a text or token ids, or a list of these"),
    "max_tokens": Field(integer(0, MAX_TOKENS), "longest answer; 0: none, for echo"),
    "logprobs": Field(integer(0, MAX_LOGPROBS), "report this many of the likeliest tokens"),
    "echo": Field(flag, "put the prompt in front of the answer, its logprobs too"),
    "best_of": Field(only(1), "no effect"),
    "suffix": Field(only(""), "no effect"),
}
CHAT = {
    **COMPLETION,
    "messages": Field(anything, "the conversation so far: role and content of each turn"),
    "max_tokens": Field(integer(1, MAX_TOKENS), "longest answer, in tokens"),
    "max_completion_tokens": Field(integer(1, MAX_TOKENS), "the same, in OpenAI's newer word"),
    "logprobs": Field(flag, "report the log-probability of each token"),
    "top_logprobs": Field(integer(0, MAX_LOGPROBS), "and of this many of the likeliest"),
    "tools": Field(anything, "functions that the model may call"),
    "tool_choice": Field(anything, "none, auto, required, or the function to call"),
    "parallel_tool_calls": Field(flag, "false: one call at most"),
    "functions": Field(only([]), "no effect"),
    "function_call": Field(only("none", "auto"), "no effect"),
    "modalities": Field(only(["text"]), "no effect"),
}
EMBEDDINGS = {
    **MODEL,
    "input": Field(anything, "a text or token ids, or a list of these"),
    "encoding_format": Field(only("float", "base64"), "base64: of float32, the lowest byte first"),
    "user": WITHOUT_EFFECT["user"],
}
RESPONSES = {
    **MODEL,
    **WITHOUT_EFFECT,
    "temperature": SAMPLING["temperature"],
    "top_p": SAMPLING["top_p"],
    "input": Field(anything, "a text, or messages: role and content of each turn"),
    "instructions": Field(text, "a system turn in front"),
    "max_output_tokens": Field(integer(1, MAX_TOKENS), "longest answer, in tokens"),
    "stream": COMPLETION["stream"],
    "text": Field(mapping, "format: the form of the answer, as text, JSON or a schema"),
    "truncation": COMPLETION["truncation"],
    "tools": Field(only([]), "no effect; /v1/chat/completions has tools"),
    "tool_choice": Field(only("none", "auto"), "no effect"),
    "parallel_tool_calls": Field(flag, "no effect"),
}
TOKENIZE = {
    **MODEL,
    "prompt": Field(text, "the text to encode"),
    "messages": Field(anything, "or a conversation, as the model reads it"),
    "add_special_tokens": Field(flag, "whether a text begins as /v1/completions begins it"),
}
DETOKENIZE = {**MODEL, "tokens": Field(anything, "token ids")}


def read_fields(body: dict, fields: dict[str, Field], path: str) -> dict[str, Any]:
    """The checked value of each field of an endpoint, None where it is missing or null."""
    for name in body:
        if name in fields:
            continue
        shown = name[:SHOWN]
        close = difflib.get_close_matches(shown, fields, 1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        reason = f"is not a field that {path} knows{hint}"
        raise ApiError(400, f"'{shown}' {reason}", shown, "unsupported_parameter")
    for name, field in fields.items():
        value = body.get(name)
        problem = field.check(value) if value is not None else ""
        if problem:
            code = "unsupported_parameter" if problem.startswith("is not") else "invalid_value"
            raise make_field_error(name, problem, code)
    return {name: body.get(name) for name in fields}

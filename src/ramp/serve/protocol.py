"""What a client may ask, in OpenAI's words: a body of JSON becomes an `Ask`, or is `Refused` with the field at fault.

A body is somebody else's: its size, depth, numbers and lengths are bounded before anything is computed from them. A
field that ramp does not know is passed over as OpenAI's clients expect; one that would change the answer and that ramp
does not do is refused rather than ignored.
"""

import json
import math
import secrets
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ramp.config import Config
from ramp.decode.batch import MAX_LOGPROBS
from ramp.decode.sample import SamplingParams
from ramp.text.chat import ROLES, encode_turn, render_prompt
from ramp.text.tokenizer import Tokenizer

BODY = 1 << 20  # bytes
TURNS, CHOICES, STOPS, STOP_LENGTH = 512, 16, 4, 64


class Refused(Exception):
    """An answer in OpenAI's shape of errors."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error"
        )
        kind = "server_error" if self.status >= 500 else kind
        return {
            "error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        }


@dataclass(frozen=True)
class CompletionRequest:
    """One request, checked: `n` answers to `ids`."""

    chat: bool
    ids: tuple[int, ...]
    limit: int
    n: int
    sampling: SamplingParams
    seed: int
    stops: tuple[str, ...]
    stream: bool
    usage: bool
    logprobs: bool
    left_out: int = 0  # turns left out to make room, where the client asked for that


@dataclass(frozen=True)
class Server:
    """What requests are checked against."""

    name: str
    c: Config
    tokenizer: Tokenizer
    stage: str  # whose weights answer

    @property
    def can_chat(self) -> bool:
        return self.stage != "pretrain" or self.tokenizer.chatml


def parse(raw: bytes) -> dict[str, Any]:
    """A JSON object; no NaN, no depth that would exhaust the stack."""

    def no(word: str) -> float:
        raise Refused(400, f"{word} is not JSON")

    try:
        body = json.loads(raw, parse_constant=no)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not readable as JSON in UTF-8") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object")
    return body


def make_error(name: str, says: str, code: str = "invalid_value") -> Refused:
    """A field that is not as it must be."""
    return Refused(400, f"'{name}' {says}", name, code)


def read_number(
    body: dict, name: str, default: float, low: float, high: float, whole: bool = False
) -> float:
    value = body.get(name)
    if value is None:
        return default
    if (
        type(value) not in ((int,) if whole else (int, float))
        or not (low <= value <= high)
        or not math.isfinite(value)
    ):
        kind = "a whole number" if whole else "a number"
        raise make_error(name, f"must be {kind} from {low:g} to {high:g}")
    return value


def read_flag(body: dict, name: str) -> bool:
    value = body.get(name)
    if value is not None and type(value) is not bool:
        raise make_error(name, "must be true or false", "invalid_type")
    return bool(value)


# What would change the answer, with the values that ask for nothing.
UNDONE: dict[str, tuple] = {
    "tools": ([],), "functions": ([],), "logit_bias": ({},), "frequency_penalty": (0,), "presence_penalty": (0,),
    "suffix": ("",), "echo": (False,), "best_of": (1,), "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"), "audio": (), "prediction": (),
}  # fmt: skip


def parse_request(body: dict, server: Server, chat: bool) -> CompletionRequest:
    model = body.get("model")
    if not isinstance(model, str):
        raise make_error("model", "must be the name of a model", "invalid_type")
    if model != server.name:
        says = f"the model {model[:80]!r} does not exist; this server has {server.name!r}"
        raise Refused(404, says, "model", "model_not_found")
    for name, nothing in UNDONE.items():
        if body.get(name) is not None and body[name] not in nothing:
            raise make_error(name, "is not supported here", "unsupported_parameter")
    s, n = server.c.sample, int(read_number(body, "n", 1, 1, CHOICES, whole=True))
    tops, logprobs = _logprobs(body, chat)
    sampling = SamplingParams(
        temperature=read_number(body, "temperature", s.temperature, 0, 2),
        top_k=read_number(body, "top_k", s.top_k, 0, server.c.model.vocab_size, whole=True),
        top_p=read_number(body, "top_p", s.top_p, 0, 1),
        min_p=read_number(body, "min_p", s.min_p, 0, 1),
        logprobs=tops,
    )
    seed = read_number(body, "seed", secrets.randbits(32), -(2**63), 2**64 - 1, whole=True)
    stream, options = read_flag(body, "stream"), body.get("stream_options")
    if options is not None and not (stream and isinstance(options, dict)):
        raise make_error("stream_options", "is an object that goes with 'stream': true")
    ids, limit, left_out = _room(body, server, chat)
    usage = bool(options) and read_flag(options, "include_usage")
    return CompletionRequest(
        chat,
        tuple(ids),
        limit,
        n,
        sampling,
        int(seed) % 2**32,
        _stops(body),
        stream,
        usage,
        logprobs,
        left_out,
    )


def _logprobs(body: dict, chat: bool) -> tuple[int, bool]:
    """(how many of the most likely tokens, whether log-probabilities at all)."""
    if not chat:
        return int(read_number(body, "logprobs", 0, 0, MAX_LOGPROBS, whole=True)), body.get(
            "logprobs"
        ) is not None
    wanted, tops = (
        read_flag(body, "logprobs"),
        int(read_number(body, "top_logprobs", 0, 0, MAX_LOGPROBS, whole=True)),
    )
    if tops and not wanted:
        raise make_error("top_logprobs", "goes with 'logprobs': true")
    return tops, wanted


def _stops(body: dict) -> tuple[str, ...]:
    stops = body.get("stop")
    stops = [] if stops is None else [stops] if isinstance(stops, str) else stops
    fits = isinstance(stops, list) and len(stops) <= STOPS
    if not fits or not all(isinstance(s, str) and 0 < len(s) <= STOP_LENGTH for s in stops):
        raise make_error(
            "stop", f"must be a string or at most {STOPS}, each of 1 to {STOP_LENGTH} characters"
        )
    return tuple(stops)


def _room(body: dict, server: Server, chat: bool) -> tuple[list[int], int, int]:
    """(prompt, tokens to draw at most, turns left out). The two must fit the context together."""
    context, t, trim, left_out = (
        server.c.model.context_len,
        server.tokenizer,
        body.get("truncation") == "auto",
        0,
    )
    limits = (
        read_number(body, name, 0, 1, 1 << 20, whole=True)
        for name in ("max_completion_tokens", "max_tokens")
    )
    limit = int(next(filter(None, limits), 0))  # 0: as many as there is room for
    if chat:
        turns = messages(body, server)
        ids = render_prompt(t, turns)
        if trim:
            kept = drop_oldest_turns(
                turns, len(ids) + min(limit or context // 4, context // 4) - context, t
            )
            ids, left_out = render_prompt(t, kept), len(turns) - len(kept)
    else:
        prompt = body.get("prompt", "")
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str):
            raise make_error(
                "prompt", "must be one text; lists and token numbers are not supported"
            )
        text = t.encode(prompt)
        ids = text if t.chatml and text else [t.bos, *text]
    room = context - len(ids)
    if room < 1 or (limit > room and not trim):
        name = "messages" if chat else "prompt"
        says = f"the model's context is {context} tokens; the {name} take {len(ids)} and 'max_tokens' asks for {limit or 1}"
        raise Refused(400, says, name, "context_length_exceeded")
    return ids, min(limit or room, room), left_out


def drop_oldest_turns(turns: list[dict], surplus: int, tokenizer: Tokenizer) -> list[dict]:
    """The turns without the oldest questions and their answers, as many as hold `surplus` tokens. Turns before the first
    question stay, and so does the last question."""
    asked = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
    for first, after in pairwise(asked):
        if surplus <= 0:
            return [*turns[: asked[0]], *turns[first:]]
        surplus -= sum(len(encode_turn(tokenizer, turn)) for turn in turns[first:after])
    return [*turns[: asked[0]], *turns[asked[-1] :]] if asked else turns


def messages(body: dict, server: Server) -> list[dict[str, str]]:
    if not server.can_chat:
        says = "this checkpoint never learnt to chat: it has no turns, only text; ask /v1/completions, or fine-tune it"
        raise Refused(400, says, "messages", "no_chat_template")
    given = body.get("messages")
    if not isinstance(given, list) or not 1 <= len(given) <= TURNS:
        raise make_error("messages", f"must be a list of 1 to {TURNS} turns")
    return [_turn(turn, f"messages[{i}]") for i, turn in enumerate(given)]


def _turn(turn: Any, where: str) -> dict[str, str]:
    role, content = (
        (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
    )
    role = (
        {"developer": "system", "function": "tool"}.get(role, role)
        if isinstance(role, str)
        else role
    )
    if role not in ROLES:
        raise make_error(f"{where}.role", f"must be one of {', '.join(ROLES)} and developer")
    if isinstance(content, list):
        parts = [
            p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None
            for p in content
        ]
        content = "".join(parts) if all(isinstance(p, str) for p in parts) else None
    if not isinstance(content, str):
        raise make_error(f"{where}.content", "must be text; ramp reads no pictures or sounds")
    return {"role": role, "content": content}

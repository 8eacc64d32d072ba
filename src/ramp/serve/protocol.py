"""OpenAI's requests: a JSON body becomes a `CompletionRequest`, or an `ApiError` names the field.

A body comes from anybody: its size, depth, numbers and lengths are bounded before anything is
computed from them. A field that ramp does not know is ignored, as OpenAI's clients expect. One that
would change the answer and that ramp cannot do is refused.

The checks are written out because a schema library made them no shorter: the limits depend on the
model, and the messages and `param` names are part of the API.
"""

import json
import secrets
from bisect import bisect_left
from dataclasses import dataclass
from functools import partial
from typing import Any

from ramp.config import Config
from ramp.decode.batch import MAX_LOGPROBS
from ramp.decode.sample import SamplingParams
from ramp.errors import UserError
from ramp.text.chat import ROLES, render_prompt
from ramp.text.tokenizer import Tokenizer

MAX_BODY_BYTES = 1 << 20
MAX_MESSAGES = 512
MAX_CHOICES = 16
MAX_STOP_STRINGS = 4
MAX_STOP_LENGTH = 64  # characters
MAX_TOKENS = 1 << 20  # that a request may name; the context decides

# Fields that would change the answer and that ramp lacks, with the values that change nothing.
UNSUPPORTED: dict[str, tuple] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
    "response_format": ({"type": "text"},),
    "audio": (),
    "prediction": (),
}


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


@dataclass(frozen=True)
class ServedModel:
    """What requests are checked against."""

    name: str
    c: Config
    tokenizer: Tokenizer
    stage: str  # whose weights answer

    @property
    def can_chat(self) -> bool:
        """Whether the weights have seen conversations."""
        # A model that came with a template was taught to chat by others.
        if self.tokenizer.template:
            return True
        # A generation knows what the model knew that the first one began from.
        generation = self.stage.startswith("synthesize")
        return (self.c.synthesize.start_stage if generation else self.stage) != "pretrain"


@dataclass(frozen=True)
class CompletionRequest:
    """A request that has been checked: `n` answers to one prompt."""

    is_chat: bool
    prompt: tuple[int, ...]
    max_new_tokens: int
    n: int
    sampling: SamplingParams
    seed: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool  # at the end of a stream
    logprobs: bool
    num_dropped_turns: int  # left out to make room, where the client asked for that


def parse_body(raw: bytes) -> dict[str, Any]:
    """A JSON object without NaN; ApiError for anything else."""

    def refuse(word):
        raise ApiError(400, f"{word} is not JSON")

    try:
        body = json.loads(raw, parse_constant=refuse)
    except (ValueError, RecursionError):
        # RecursionError: brackets nested too deep.
        raise ApiError(400, "the body is not readable as JSON in UTF-8") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    return body


def make_field_error(name: str, text: str, code: str = "invalid_value") -> ApiError:
    """The error for a field that is not as it must be."""
    return ApiError(400, f"'{name}' {text}", name, code)


def read_number(
    body: dict,
    name: str,
    default: float,
    low: float,
    high: float,
    kinds: tuple[type, ...] = (int, float),
) -> Any:
    """A number from `low` to `high`; `default` where the field is missing or null."""
    value = body.get(name)
    if value is None:
        return default
    # By its exact type: a bool is an int to isinstance.
    if type(value) not in kinds or not low <= value <= high:
        kind = "number" if float in kinds else "whole number"
        raise make_field_error(name, f"must be a {kind} from {low:g} to {high:g}")
    return value


read_integer = partial(read_number, kinds=(int,))


def read_flag(body: dict, name: str) -> bool:
    """A boolean; False where the field is missing or null."""
    value = body.get(name)
    if value is not None and type(value) is not bool:
        raise make_field_error(name, "must be true or false", "invalid_type")
    return bool(value)


def parse_request(body: dict, model: ServedModel, is_chat: bool) -> CompletionRequest:
    """Check every field of a chat request, or of a text completion."""
    # Clients look at `param` and `code`, people at the message.
    name = body.get("model")
    if not isinstance(name, str):
        raise make_field_error("model", "must be the name of a model", "invalid_type")
    if name != model.name:
        # The name is cut: it is echoed, and could be a megabyte.
        text = f"the model {name[:80]!r} does not exist; this server has {model.name!r}"
        raise ApiError(404, text, "model", "model_not_found")
    # Many clients send every field, so a value that changes nothing is accepted.
    for field, harmless in UNSUPPORTED.items():
        if body.get(field) is not None and body[field] not in harmless:
            raise make_field_error(field, "is not supported here", "unsupported_parameter")
    num_top, logprobs = _read_logprobs(body, is_chat)
    default = model.c.sample
    sampling = SamplingParams(
        temperature=read_number(body, "temperature", default.temperature, 0, 2),
        top_k=read_integer(body, "top_k", default.top_k, 0, model.c.model.vocab_size),
        top_p=read_number(body, "top_p", default.top_p, 0, 1),
        min_p=read_number(body, "min_p", default.min_p, 0, 1),
        logprobs=num_top,
    )
    # Without a seed each request gets another one, as with OpenAI.
    seed = read_integer(body, "seed", secrets.randbits(32), -(2**63), 2**64 - 1)
    stream = read_flag(body, "stream")
    options = body.get("stream_options")
    if options is not None and not (stream and isinstance(options, dict)):
        raise make_field_error("stream_options", "is an object that goes with 'stream': true")
    prompt, max_new_tokens, num_dropped = _fit_context(body, model, is_chat)
    return CompletionRequest(
        is_chat=is_chat,
        prompt=tuple(prompt),
        max_new_tokens=max_new_tokens,
        n=read_integer(body, "n", 1, 1, MAX_CHOICES),
        sampling=sampling,
        seed=seed % 2**32,
        stop=_read_stop(body),
        stream=stream,
        include_usage=read_flag(options or {}, "include_usage"),
        logprobs=logprobs,
        num_dropped_turns=num_dropped,
    )


def _read_logprobs(body, is_chat):
    """(how many of the most likely tokens, whether log-probabilities at all)."""
    # In chat `logprobs` says whether, and `top_logprobs` how many; else the first is the number.
    number = "top_logprobs" if is_chat else "logprobs"
    num_top = read_integer(body, number, 0, 0, MAX_LOGPROBS)
    if not is_chat:
        return num_top, body.get(number) is not None
    logprobs = read_flag(body, "logprobs")
    if num_top and not logprobs:
        raise make_field_error("top_logprobs", "goes with 'logprobs': true")
    return num_top, logprobs


def _read_stop(body):
    stop = body.get("stop")
    if stop is None:
        return ()
    texts = [stop] if isinstance(stop, str) else stop
    is_valid = isinstance(texts, list) and len(texts) <= MAX_STOP_STRINGS
    if not is_valid or not all(
        isinstance(text, str) and 0 < len(text) <= MAX_STOP_LENGTH for text in texts
    ):
        raise make_field_error(
            "stop",
            f"must be a string or at most {MAX_STOP_STRINGS}, "
            f"each of 1 to {MAX_STOP_LENGTH} characters",
        )
    return tuple(texts)


def _fit_context(body, model, is_chat):
    """(the prompt's ids, tokens that may be generated, turns dropped)."""
    tokenizer = model.tokenizer
    context = model.c.model.context_len
    may_drop = body.get("truncation") == "auto"
    num_dropped = 0
    # 0: as many as there is room for.
    wanted = read_integer(body, "max_completion_tokens", 0, 1, MAX_TOKENS)
    # The name that OpenAI gave up and most clients still send.
    wanted = wanted or read_integer(body, "max_tokens", 0, 1, MAX_TOKENS)
    if is_chat:
        messages = _read_messages(body, model)
        try:
            prompt = render_prompt(tokenizer, messages)
            if may_drop:
                # Leave a quarter of the context for the answer, or less where less was asked for.
                quarter = context // 4
                room = context - min(wanted or quarter, quarter)
                kept = drop_oldest_turns(messages, room, tokenizer)
                num_dropped = len(messages) - len(kept)
                prompt = render_prompt(tokenizer, kept)
        except UserError as error:
            # The model's chat template refuses some conversations.
            raise make_field_error("messages", f"cannot be written down: {error}") from None
    else:
        prompt = _read_prompt(body, tokenizer)
    # Without truncation a limit that does not fit is refused, not lowered.
    room = context - len(prompt)
    if room < 1 or (wanted > room and not may_drop):
        name = "messages" if is_chat else "prompt"
        text = (
            f"the model's context is {context} tokens; the {name} take {len(prompt)} "
            f"and 'max_tokens' asks for {wanted or 1}"
        )
        raise ApiError(400, text, name, "context_length_exceeded")
    return prompt, min(wanted or room, room), num_dropped


def _read_prompt(body, tokenizer):
    prompt = body.get("prompt", "")
    if isinstance(prompt, list) and len(prompt) == 1:
        # Clients wrap a single prompt in a list.
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise make_field_error(
            "prompt", "must be one text; lists and token numbers are not supported"
        )
    return tokenizer.encode_prompt(prompt)


def drop_oldest_turns(
    messages: list[dict], room: int, tokenizer: Tokenizer
) -> list[dict[str, str]]:
    """The messages without the fewest oldest questions that let the prompt fit into `room` tokens.

    A question goes with all that answers it. Messages before the first question stay, and so does
    the last question, whatever its length.
    """
    questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not questions:
        return messages

    def keep(first):
        return [*messages[: questions[0]], *messages[first:]]

    # Halving, since every try renders the conversation.
    last = bisect_left(
        questions[:-1], True, key=lambda first: len(render_prompt(tokenizer, keep(first))) <= room
    )
    return keep(questions[last])


def _read_messages(body, model):
    if not model.can_chat:
        text = (
            "this checkpoint was not trained on conversations; use /v1/completions, or fine-tune it"
        )
        raise ApiError(400, text, "messages", "no_chat_template")
    messages = body.get("messages")
    if not isinstance(messages, list) or not 0 < len(messages) <= MAX_MESSAGES:
        raise make_field_error("messages", f"must be a list of 1 to {MAX_MESSAGES} turns")
    return [_read_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _read_message(message, where):
    message = message if isinstance(message, dict) else {}
    role = message.get("role")
    content = message.get("content")
    if isinstance(role, str):
        # OpenAI renamed these roles; both names are taken.
        role = {"developer": "system", "function": "tool"}.get(role, role)
    if role not in ROLES:
        raise make_field_error(f"{where}.role", f"must be one of {', '.join(ROLES)} and developer")
    if isinstance(content, list):
        # Newer clients send a list of parts in place of a string.
        content = _join_text_parts(content)
    if not isinstance(content, str):
        raise make_field_error(f"{where}.content", "must be text; ramp reads no images or audio")
    return {"role": role, "content": content}


def _join_text_parts(parts):
    """The text of a list of content parts; None where one of them is no text."""
    texts = []
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                return None
    return "".join(texts)

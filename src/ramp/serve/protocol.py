"""OpenAI's requests: a JSON body becomes a `CompletionRequest`, or an `ApiError` names the field.

A body comes from anybody: its size, depth, numbers and lengths are bounded before anything is
computed from them. `fields.py` has the fields; what is checked here depends on the model or on
several fields together.
"""

import json
import secrets
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ramp.config import Config
from ramp.decode.sample import SamplingParams
from ramp.errors import UserError
from ramp.serve import fields
from ramp.serve.fields import MAX_MESSAGES, MAX_PROMPTS, ApiError, make_field_error
from ramp.serve.grammar import GrammarConstraint, Grammars, read_format
from ramp.serve.tools import ToolUse, find_form, read_calls, read_tools
from ramp.text.chat import ROLES, list_texts, render_prompt
from ramp.text.tokenizer import Tokenizer

MAX_BODY_BYTES = 1 << 20


@dataclass(frozen=True)
class ServedModel:
    """What requests are checked against."""

    name: str
    c: Config
    tokenizer: Tokenizer
    stage: str  # whose weights answer

    @cached_property
    def longest_text(self) -> int:
        """Bytes of text that could fit the context if every token were the longest there is."""
        longest = max(map(len, self.tokenizer.text_pieces))
        return longest * self.c.model.context_len

    @cached_property
    def grammars(self) -> Grammars:
        """What makes constraints for this model."""
        return Grammars(self.tokenizer)

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
class Prompt:
    """What an answer goes on from."""

    ids: tuple[int, ...]
    max_new_tokens: int
    num_own: int = 0  # tokens in front that the client did not send
    num_dropped_turns: int = 0  # left out to make room, where the client asked for that


@dataclass(frozen=True)
class CompletionRequest:
    """A request that has been checked: `n` answers to each prompt."""

    is_chat: bool
    prompts: tuple[Prompt, ...]
    n: int
    sampling: SamplingParams
    seed: int
    has_seed: bool  # or else another one each time
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False  # at the end of a stream
    num_logprobs: int | None = None  # likeliest tokens to report; None: no log-probabilities
    echo: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    constraint: GrammarConstraint | None = None  # each answer has a copy
    tools: ToolUse | None = None
    # "float" or "base64": the prompts are read for their last hidden states.
    embeds: str = ""


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


def check_model(name: str | None, model: ServedModel) -> None:
    """ApiError where a request names another model."""
    if name is None:
        raise make_field_error("model", "must be the name of a model", "invalid_type")
    if name != model.name:
        # The name is cut: it is echoed, and could be a megabyte.
        shown = name[: fields.SHOWN]
        text = f"the model {shown!r} does not exist; this server has {model.name!r}"
        raise ApiError(404, text, "model", "model_not_found")


def parse_request(body: dict, model: ServedModel, is_chat: bool) -> CompletionRequest:
    """Check every field of a chat request, or of a text completion."""
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    # Clients look at `param` and `code`, people at the message.
    given = fields.read_fields(body, fields.CHAT if is_chat else fields.TEXT, path)
    check_model(given["model"], model)
    stream = bool(given["stream"])
    options = given["stream_options"]
    if options is not None and not stream:
        raise make_field_error("stream_options", "goes with 'stream': true")
    options = fields.read_fields(options or {}, {"include_usage": FLAG}, "stream_options")
    stop = given["stop"] or ()
    # Without a seed each request gets another one, as with OpenAI.
    seed = secrets.randbits(64) if given["seed"] is None else given["seed"]
    read_prompts = _read_conversation if is_chat else _read_prompts
    tools = read_tools(given, model.tokenizer.template) if is_chat else None
    prompts = tuple(read_prompts(given, model, tools))
    return CompletionRequest(
        is_chat=is_chat,
        prompts=prompts,
        n=given["n"] or 1,
        sampling=_read_sampling(given, model),
        seed=seed % 2**64,
        has_seed=given["seed"] is not None,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stream=stream,
        include_usage=bool(options["include_usage"]),
        num_logprobs=_read_logprobs(given, is_chat),
        echo=bool(given.get("echo")),
        presence_penalty=given["presence_penalty"] or 0.0,
        frequency_penalty=given["frequency_penalty"] or 0.0,
        logit_bias=_read_bias(given["logit_bias"] or {}, model),
        constraint=_read_constraint(given, model, tools),
        tools=tools,
    )


FLAG = fields.Field(fields.flag, "whether it is wanted")


def _read_sampling(given, model):
    default = model.c.sample
    names = ("temperature", "top_k", "top_p", "min_p")
    values = {name: given[name] for name in names}
    # The run's own settings stand where a request says nothing.
    chosen = {
        name: getattr(default, name) if value is None else value for name, value in values.items()
    }
    return SamplingParams(**chosen)


def _read_logprobs(given, is_chat):
    """How many of the most likely tokens are to be reported; None: no log-probabilities at all."""
    # In chat `logprobs` says whether, and `top_logprobs` how many; else the first is the number.
    if not is_chat:
        return given["logprobs"]
    if given["top_logprobs"] and not given["logprobs"]:
        raise make_field_error("top_logprobs", "goes with 'logprobs': true")
    return given["top_logprobs"] or 0 if given["logprobs"] else None


def _read_bias(bias, model):
    for key in bias:
        _check_id(int(key), model, "logit_bias")
    return {int(key): float(value) for key, value in bias.items()}


def _read_constraint(given, model, tools):
    name = "response_format"
    grammar = read_format(given[name], name)
    if grammar and tools:
        raise make_field_error(name, "goes without 'tools', or with 'tool_choice': 'none'")
    if tools:
        name, grammar = "tools", tools.write_grammar()
    return grammar and model.grammars.compile(grammar, name)


def _check_id(id, model, name):
    # By its exact type: true is 1 to Python.
    if type(id) is not int or not 0 <= id < model.tokenizer.vocab_size:
        text = f"holds {str(id)[: fields.SHOWN]}; token ids go from 0"
        raise make_field_error(name, f"{text} to {model.tokenizer.vocab_size - 1}")
    return id


# Prompts


def _make_prompt(ids, wanted, model, name, num_own=0, num_dropped=0, may_lower=False):
    """A prompt with as many tokens for the answer as are wanted; None: as there is room for."""
    context = model.c.model.context_len
    room = context - len(ids)
    least = 1 if wanted is None else wanted
    # Without truncation a limit that does not fit is refused, not lowered.
    if room < min(least, 1) or (least > room and not may_lower):
        text = (
            f"the model's context is {context} tokens; the {name} take {len(ids)} "
            f"and 'max_tokens' asks for {least}"
        )
        raise ApiError(400, text, name, "context_length_exceeded")
    limit = room if wanted is None else min(wanted, room)
    return Prompt(tuple(ids), limit, num_own, num_dropped)


def check_length(texts: list[str], model: ServedModel, name: str) -> None:
    """ApiError for text that cannot fit the context: reading a megabyte takes a gigabyte."""
    num_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    if num_bytes > model.longest_text:
        text = (
            f"the model's context is {model.c.model.context_len} tokens, "
            f"which {num_bytes} bytes of {name} cannot fit"
        )
        raise ApiError(400, text, name, "context_length_exceeded")


def _read_prompts(given, model, tools):
    prompts = _list_prompts("" if given["prompt"] is None else given["prompt"], "prompt")
    may_lower = given["truncation"] == "auto"
    for prompt in prompts:
        ids, num_own = encode_prompt(prompt, model, "prompt")
        yield _make_prompt(ids, given["max_tokens"], model, "prompt", num_own, 0, may_lower)


def _list_prompts(prompts, name):
    """The texts of a field that takes one or several."""
    # A list of numbers is one prompt, any other list is several.
    is_several = isinstance(prompts, list) and not all(type(x) is int for x in prompts)
    prompts = prompts if is_several else [prompts]
    if len(prompts) > MAX_PROMPTS:
        raise make_field_error(name, f"has {len(prompts)} texts; {MAX_PROMPTS} are the most")
    return prompts


def encode_prompt(prompt: Any, model: ServedModel, name: str) -> tuple[list[int], int]:
    """(ids of a text or of token ids, how many of them stand in front of what was sent)."""
    if isinstance(prompt, str):
        check_length([prompt], model, name)
        ids = model.tokenizer.encode_prompt(prompt)
        # No text spells this token, so it is not the client's.
        return ids, int(ids[0] == model.tokenizer.bos)
    # Ids are taken as they are: whoever sends them has chosen the first one too.
    if isinstance(prompt, list) and prompt:
        if len(prompt) > model.c.model.context_len:
            _make_prompt(prompt, 0, model, name)
        return [_check_id(id, model, name) for id in prompt], 0
    raise make_field_error(name, "must be a text or a list of token ids, or a list of these")


def _read_conversation(given, model, tools):
    """The one prompt of a chat."""
    tokenizer = model.tokenizer
    context = model.c.model.context_len
    may_drop = given["truncation"] == "auto"
    # The second is the name that OpenAI gave up and most clients still send.
    wanted = given["max_completion_tokens"] or given["max_tokens"]
    messages = read_messages(given["messages"], model)
    # What the template reads besides the turns.
    options: dict[str, Any] = {"tools": list(tools.tools)} if tools else {}
    kept = messages
    try:
        if may_drop:
            # Leave a quarter of the context for the answer, or less where less was asked for.
            quarter = context // 4
            room = context - min(wanted or quarter, quarter)
            kept = drop_oldest_turns(messages, room, tokenizer, **options)
        check_length(list_texts(tokenizer, kept, **options), model, "messages")
        prompt = render_prompt(tokenizer, kept, **options)
    except UserError as error:
        # The model's chat template refuses some conversations.
        raise make_field_error("messages", f"cannot be written down: {error}") from None
    num_dropped = len(messages) - len(kept)
    yield _make_prompt(prompt, wanted, model, "messages", 0, num_dropped, may_drop)


def drop_oldest_turns(
    messages: list[dict], room: int, tokenizer: Tokenizer, **options: Any
) -> list[dict[str, Any]]:
    """The messages without the fewest oldest questions that let the prompt fit into `room` tokens.

    A question goes with all that answers it. Messages before the first question stay, and so does
    the last question, whatever its length.
    """
    questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not questions:
        return messages

    def keep(first):
        return [*messages[: questions[0]], *messages[first:]]

    longest = max(map(len, tokenizer.text_pieces))  # bytes of a token

    def fits(first):
        # Much too long is told without splitting it into tokens: a megabyte takes a second.
        texts = list_texts(tokenizer, keep(first), **options)
        if sum(map(len, texts)) > longest * room:
            return False
        return len(render_prompt(tokenizer, keep(first), **options)) <= room

    # Halving, since every try renders the conversation.
    last = bisect_left(questions[:-1], True, key=fits)
    return keep(questions[last])


def read_messages(messages: Any, model: ServedModel) -> list[dict[str, Any]]:
    """The checked turns of a conversation."""
    if not model.can_chat:
        text = (
            "this checkpoint was not trained on conversations; use /v1/completions, or fine-tune it"
        )
        raise ApiError(400, text, "messages", "no_chat_template")
    if not isinstance(messages, list) or not 0 < len(messages) <= MAX_MESSAGES:
        raise make_field_error("messages", f"must be a list of 1 to {MAX_MESSAGES} turns")
    template = model.tokenizer.template
    return [_read_message(m, f"messages[{i}]", template) for i, m in enumerate(messages)]


def _read_message(message, where, template):
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
    more = {}
    if role == "assistant" and message.get("tool_calls"):
        more["tool_calls"] = read_calls(message["tool_calls"], f"{where}.tool_calls")
        if find_form(template) is None:
            text = "is not supported here: this model's chat template knows no tools"
            raise make_field_error(f"{where}.tool_calls", text, "unsupported_parameter")
        # Such a turn may say nothing besides.
        content = "" if content is None else content
    # Some templates name the call, others the tool, whose result this is.
    if role == "tool":
        names = ("tool_call_id", "name")
        more = {name: message[name] for name in names if isinstance(message.get(name), str)}
    if not isinstance(content, str):
        raise make_field_error(f"{where}.content", "must be text; ramp reads no images or audio")
    return {"role": role, "content": content} | more


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


# Embeddings


def parse_embeddings(body: dict, model: ServedModel) -> CompletionRequest:
    """Check every field of a request for embeddings."""
    given = fields.read_fields(body, fields.EMBEDDINGS, "/v1/embeddings")
    check_model(given["model"], model)
    prompts = []
    for text in _list_prompts(given["input"], "input"):
        ids, num_own = encode_prompt(text, model, "input")
        prompts.append(_make_prompt(ids, 0, model, "input", num_own))
    form = given["encoding_format"] or "float"
    # Nothing is drawn, so how is of no matter.
    return CompletionRequest(False, tuple(prompts), 1, SamplingParams(), 0, False, embeds=form)


# Tokens for those who count them


def tokenize(body: dict, model: ServedModel) -> list[int]:
    """The ids of a text or of a conversation, as the other endpoints would read it."""
    given = fields.read_fields(body, fields.TOKENIZE, "/tokenize")
    check_model(given["model"] or model.name, model)
    if given["messages"] is not None:
        messages = read_messages(given["messages"], model)
        check_length(list_texts(model.tokenizer, messages), model, "messages")
        return render_prompt(model.tokenizer, messages)
    prompt = given["prompt"] or ""
    # Clients ask for the id of a special token by its name alone.
    if prompt in model.tokenizer.names:
        return [model.tokenizer.id_of(prompt)]
    ids, num_own = encode_prompt(prompt, model, "prompt")
    return ids if given["add_special_tokens"] in (None, True) else ids[num_own:]


def detokenize(body: dict, model: ServedModel) -> str:
    """The text of token ids, special tokens by name."""
    given = fields.read_fields(body, fields.DETOKENIZE, "/detokenize")
    check_model(given["model"] or model.name, model)
    if not isinstance(given["tokens"], list):
        raise make_field_error("tokens", "must be a list of token ids")
    return model.tokenizer.decode(_check_id(id, model, "tokens") for id in given["tokens"])

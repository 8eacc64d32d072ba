"""Answers in a form: JSON by a schema, a regular expression or a Lark grammar.

The library llguidance says before each token which ones may follow; the device draws from those.
A schema is a program from anybody: its size is bounded here, its cost by the library.
"""

import importlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ramp.decode.batch import count_words
from ramp.serve.fields import ApiError, make_field_error
from ramp.text.tokenizer import Tokenizer

MAX_GRAMMAR = 1 << 16  # characters of a schema or grammar, after which one takes seconds to read
# White space between the parts of JSON: a blank, or a line end and how far the next line is
# indented. Without an end to it a model that has lost its way writes nothing else.
WHITE_SPACE = r" |\n {0,40}"
MAX_PROBLEM = 300  # characters of what the library says of it
DEPTH = 60  # of a schema; the library gives up at 128 brackets, Python's parser later


class GrammarConstraint:
    """One answer's place in a grammar; see `engine.Constraint`.

    begins_after: the token from which on the grammar counts, at the end of what a model thinks.
    """

    def __init__(self, matcher: Any, tokenizer: Tokenizer, begins_after: int | None = None):
        self.matcher = matcher
        self.tokenizer = tokenizer
        self.begins_after = begins_after
        self.num_tokens: int | None = None
        self.failed_after: int | None = None
        self._count = 0

    def copy(self, prompt: Sequence[int]) -> "GrammarConstraint":
        """The beginning of an answer to a prompt, behind the thinking that it has opened."""
        begins_after = _find_end_of_thinking(self.tokenizer, prompt)
        return GrammarConstraint(self.matcher.deep_copy(), self.tokenizer, begins_after)

    def fill(self, allowed_w: np.ndarray) -> None:
        """Clear the bits of the tokens that may not come next."""
        # The rest of a round is drawn and not used.
        if self.num_tokens is not None:
            return
        if self.begins_after is None:
            # A model may have more ids than its tokenizer, which are never drawn.
            words_w = allowed_w[: count_words(self.tokenizer.vocab_size)]
            self.matcher.unsafe_compute_mask_ptr(words_w.ctypes.data, words_w.nbytes)
            # Then it allows the end, which would not be one.
            if self.matcher.is_error():
                self.failed_after = self._count
            return
        # Thinking goes on until the answer begins.
        for id in self.tokenizer.stop_ids:
            allowed_w.view(np.uint32)[id // 32] &= ~np.uint32(1 << id % 32)

    def accept(self, id: int) -> None:
        """Go on behind a token."""
        self._count += 1
        if self.num_tokens is not None:
            return
        if self.begins_after is not None:
            if id == self.begins_after:
                self.begins_after = None
            return
        # A token that was not allowed comes only where the mask could not be told.
        if self.failed_after is None and not self.matcher.consume_token(id):
            self.failed_after = self._count - 1
        if self.failed_after is not None or self.matcher.is_stopped():
            self.num_tokens = self._count


class Grammars:
    """The grammars of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    @cached_property
    def _vocabulary(self) -> Any:
        """The library's view of the tokenizer, which takes half a second to make."""
        library = import_library()
        wrapper = library.TokenizerWrapper(_Vocabulary(self.tokenizer))
        return library.LLTokenizer(wrapper, eos_token=[*self.tokenizer.stop_ids])

    def compile(self, grammar: str, name: str) -> GrammarConstraint:
        """A grammar in llguidance's form of Lark; ApiError names the field and what is wrong."""
        library = import_library()
        _check_size(grammar, name)
        # Nothing of it is written to the server's own output.
        limits = library.LLParserLimits(verbose_errors=False)
        matcher = library.LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        constraint = GrammarConstraint(matcher, self.tokenizer)
        problem = matcher.get_error()
        # Some that hold no text at all, as `{"$ref": "#"}`, show it at the first token only.
        if not problem:
            constraint.fill(np.zeros(count_words(self.tokenizer.vocab_size), np.int32))
            problem = "no text has this form" if matcher.is_stopped() else ""
        if problem:
            raise make_field_error(name, f"cannot be followed: {_shorten(problem)}")
        return constraint


def _find_end_of_thinking(tokenizer, prompt):
    """The id that ends the thinking which a chat template has opened, if it has."""
    if "<think>" not in tokenizer.names or "</think>" not in tokenizer.names:
        return None
    # A template writes the mark and a line end.
    is_open = tokenizer.id_of("<think>") in prompt[-3:]
    return tokenizer.id_of("</think>") if is_open else None


def import_library() -> Any:
    """The package llguidance; ApiError where it is not installed."""
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        text = "needs the package llguidance, which this server lacks: `uv sync --extra serve`"
        raise ApiError(501, text, "response_format", "unsupported_parameter") from None


def _shorten(problem):
    """What the library says, without the place in a grammar that no client wrote."""
    lines = [line for line in problem.split("\n") if line and not line[0].isspace()]
    text = re.sub(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?", "", " ".join(lines))
    return text[:MAX_PROBLEM]


class _Vocabulary:
    """A tokenizer in the shape that llguidance reads."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.eos_token_id = tokenizer.end
        self.bos_token_id = None
        self.tokens = tokenizer.display_pieces
        self.special_token_ids = [id for id, text in enumerate(tokenizer.text_pieces) if not text]

    def __call__(self, text):
        return self.tokenizer.encode_bytes(text)


def write_json_grammar(schema: dict, name: str) -> str:
    """The grammar of the JSON texts that a schema describes."""
    check_depth(schema, name)
    # In place of the client's own options, one of which ignores what cannot be followed.
    schema = schema | {"x-guidance": {"whitespace_pattern": WHITE_SPACE}}
    return f"start: %json {json.dumps(schema)}"


def check_depth(value: Any, name: str, depth: int = 0) -> None:
    """ApiError for JSON that is nested too deep to be written or compiled."""
    if depth > DEPTH:
        raise make_field_error(name, f"is nested more than {DEPTH} deep")
    inner = value.values() if isinstance(value, dict) else value
    if isinstance(inner, str) or not isinstance(value, dict | list):
        return
    # Each step down is one bracket of the text.
    for item in inner:
        check_depth(item, name, depth + 1)


def _read_pattern(pattern, name):
    _check_size(pattern, name)
    try:
        return import_library().LLMatcher.grammar_from_regex(pattern)
    except ValueError:  # half a surrogate pair
        raise make_field_error(f"{name}.definition", "is no text") from None


def _check_size(grammar, name):
    # Before the library sees it: what is refused has cost nothing.
    if len(grammar) > MAX_GRAMMAR:
        raise make_field_error(name, f"is longer than {MAX_GRAMMAR} characters")


def read_format(value: dict | None, name: str) -> str | None:
    """The grammar that a `response_format` asks for; None: any text."""
    wanted = {"type": "text"} if value is None else value
    match wanted:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return write_json_grammar({"type": "object"}, name)
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return write_json_grammar(schema, f"{name}.json_schema.schema")
        case {"type": "json_schema", "schema": dict(schema)}:  # as /v1/responses has it
            return write_json_grammar(schema, f"{name}.schema")
        # The words in which OpenAI has a grammar for a tool of its newer kind.
        case {"type": "grammar", "syntax": "lark", "definition": str(grammar)}:
            return grammar
        case {"type": "grammar", "syntax": "regex", "definition": str(pattern)}:
            return _read_pattern(pattern, name)
    raise make_field_error(
        name,
        "must be of type text, json_object, json_schema with its 'schema', "
        "or grammar with 'syntax' (lark or regex) and 'definition'",
    )

"""Chat templates in Jinja, which come with models of others: conversations become text.

A template is a program in a file from anybody, so it runs in Jinja's sandbox. What it may use is
what Hugging Face's `apply_chat_template` gives it. Names of special tokens that people write are
guarded: they stay text, as in conversations of ramp's own form.
"""

import json
import secrets
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

from ramp.errors import UserError
from ramp.text.tokenizer import Tokenizer

# `chat.render_prompt` of a tokenizer without a template, for tools that read nothing else.
OWN_TEMPLATE = (
    "{{ '<|bos|>' }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Stands inside the name of a special token that somebody wrote; nobody can guess it.
GUARD = f"\ufdd0{secrets.token_hex(8)}\ufdd0"


def render_template(
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, Any]],
    add_generation_prompt: bool,
    **options: Any,
) -> str:
    """The conversation as text, in which names of special tokens are these tokens.

    options: `tools`, `enable_thinking` and whatever else a template reads. UserError for one that
    the template does not mention, and for a conversation that it refuses.
    """
    from jinja2 import TemplateError

    for name in options:
        if name not in tokenizer.template:
            raise UserError(f"the chat template of this model does not know {name!r}; leave it out")
    written = _guard(tokenizer.special_names, {"messages": list(messages)} | options)
    marks = {"bos_token": tokenizer.names[0], "eos_token": tokenizer.name_of(tokenizer.end)}
    try:
        template = compile_template(tokenizer.template)
        return template.render(add_generation_prompt=add_generation_prompt, **marks, **written)
    except RecursionError:
        problem = "it nests too deep"
    # A template may also take a message for something that it is not.
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        problem = str(error)
    raise UserError(f"the model's chat template refuses this conversation: {problem}")


@cache
def compile_template(source: str) -> Any:
    """A Jinja template in its sandbox; jinja2.TemplateSyntaxError where it is none."""
    try:
        from jinja2 import TemplateError, ext, nodes
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UserError(
            "the chat template of this model needs the package jinja2; "
            "install it with `uv sync --extra export`"
        ) from None

    class Generation(ext.Extension):
        """`{% generation %}` marks what an assistant says, for trainers; here its body counts."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            """The statements between the two tags."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    # These two functions and the filter are what templates count on.
    def refuse(message):
        raise TemplateError(message)

    def to_json(value, indent=None, separators=None, sort_keys=False):
        # Jinja's own filter escapes what HTML would read, and a model has never seen that.
        return json.dumps(
            value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    functions = {"raise_exception": refuse, "strftime_now": datetime.now().strftime}
    return environment.from_string(source, globals=functions)


def _guard(names, value):
    """The same data, in which no string holds one of these names."""
    if isinstance(value, str):
        for name in names:
            value = value.replace(name, name[:1] + GUARD + name[1:])
        return value
    if isinstance(value, dict):
        return {key: _guard(names, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_guard(names, item) for item in value]
    return value

"""Function calling: tools go into the model's own chat template, and calls come out of its answers.

A model writes calls in the form that its template taught it. The forms that ramp reads are those of
`FORMS`; with a template of another form, tools are refused.
"""

import json
import re
import uuid
from dataclasses import dataclass
from typing import Any

from ramp.serve.fields import Field, anything, flag, make_field_error, read_fields, text
from ramp.serve.grammar import check_depth, write_json_grammar

MAX_TOOLS = 128
# It stands in a grammar and in text that the model reads.
NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


@dataclass(frozen=True)
class CallForm:
    """How the models of a family write a call: JSON with `name` and the arguments."""

    mark: str  # stands in the template of such a model
    opening: str
    closing: str
    arguments: str  # the field that holds them


FORMS = (
    CallForm("<tool_call>", "<tool_call>\n", "\n</tool_call>", "arguments"),  # Hermes, Qwen
    CallForm('"parameters":', "", "", "parameters"),  # Llama 3: the answer is one call
)
OTHER_FORMS = ("<function=", "[TOOL_CALLS]", "<arg_key>")  # in templates whose calls are no JSON


@dataclass(frozen=True)
class ToolUse:
    """The tools of a request, and how their calls are written."""

    tools: tuple[dict, ...]  # as the template reads them
    names: tuple[str, ...]
    form: CallForm
    wanted: tuple[str, ...]  # tools of which one must be called; empty: the model decides
    max_calls: int | None  # None: any number

    def write_grammar(self) -> str | None:
        """The grammar of an answer that must be a call; None: it may be any text."""
        if not self.wanted:
            return None
        rules, kinds = [], []
        for i, tool in enumerate(self.tools):
            name = self.names[i]
            if name not in self.wanted:
                continue
            # A schema of its own each, so that `#/$defs` means what it meant.
            schema = {"type": "object"} | tool["function"].get("parameters", {"properties": {}})
            where = f"tools[{i}].function.parameters"
            rules.append(write_json_grammar(schema, where).replace("start", f"arguments_{i}", 1))
            # As the template writes calls, so that the model is on ground that it knows.
            before = f'{self.form.opening}{{"name": "{name}", "{self.form.arguments}": '
            after = f"}}{self.form.closing}"
            kinds.append(f"{json.dumps(before)} arguments_{i} {json.dumps(after)}")
        # Further calls follow on lines of their own.
        more = "" if self.max_calls == 1 else r' ("\n" call)*'
        return "\n".join([f"start: call{more}", f"call: {' | '.join(kinds)}", *rules])


def find_form(template: str) -> CallForm | None:
    """The form of calls that a chat template teaches, if it is one that ramp reads."""
    if "tools" not in template or any(mark in template for mark in OTHER_FORMS):
        return None
    return next((form for form in FORMS if form.mark in template), None)


TOOL = {"type": Field(text, "function"), "function": Field(anything, "the function")}
FUNCTION = {
    "name": Field(text, "what the model calls it"),
    "description": Field(text, "for the model"),
    "parameters": Field(anything, "a JSON schema"),
    "strict": Field(flag, "no effect: with 'tool_choice' required, all arguments obey the schema"),
}


def read_tools(given: dict, template: str) -> ToolUse | None:
    """The checked `tools` of a request; None where there are none or none may be called."""
    tools, choice = given["tools"] or [], given["tool_choice"] or "auto"
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise make_field_error("tools", f"must be a list of at most {MAX_TOOLS} functions")
    names = tuple(_check_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools))
    # Then nothing of them is shown to the model.
    if choice == "none" or (choice == "auto" and not tools):
        return None
    match choice:
        case "auto":
            wanted = ()
        case "required" if tools:
            wanted = names
        case {"function": {"name": name}} if name in names:
            wanted = (name,)
        case _:
            text = "must be none, auto, required or one of the 'tools'"
            raise make_field_error("tool_choice", text)
    # Now that somebody wants calls, there must be a way to write them.
    form = find_form(template)
    if form is None:
        text = "is not supported here: this model's chat template knows no tools, or writes calls"
        text += " in a form that ramp does not read"
        raise make_field_error("tools", text, "unsupported_parameter")
    # A Llama answers with one call; one that is asked for by its name is made once.
    is_single = given["parallel_tool_calls"] is False or len(wanted) == 1 or not form.closing
    return ToolUse(tuple(tools), names, form, wanted, 1 if is_single else None)


def _check_tool(tool, where):
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise make_field_error(where, "must be an object of type 'function'")
    # A field that is misspelt would leave the model without it.
    function = read_fields(tool, TOOL, where)["function"]
    if not isinstance(function, dict):
        raise make_field_error(f"{where}.function", "must be an object")
    name = read_fields(function, FUNCTION, f"{where}.function")["name"]
    if not name or not NAME.fullmatch(name):
        raise make_field_error(
            f"{where}.function.name", "must be 1 to 64 letters, digits, _, . or -"
        )
    parameters = function.get("parameters", {})
    # Calls are read as objects: of another type none could be.
    kind = parameters.get("type", "object") if isinstance(parameters, dict) else None
    if "object" not in (kind if isinstance(kind, list) else [kind]):
        raise make_field_error(f"{where}.function.parameters", "must be a JSON schema of an object")
    check_depth(function, f"{where}.function")
    return name


def read_calls(calls: Any, where: str) -> list[dict]:
    """The checked `tool_calls` of an earlier turn, arguments as the objects that templates want."""
    checked = []
    for i, call in enumerate(calls if isinstance(calls, list) else [None]):
        match call:
            case {"function": {"name": str(name), "arguments": arguments}}:
                pass
            case _:
                raise make_field_error(where, "must be a list of calls: function, name, arguments")
        try:
            # OpenAI sends them as text.
            value = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise make_field_error(f"{where}[{i}].function.arguments", "must be a JSON object")
        check_depth(value, f"{where}[{i}].function.arguments")
        function = {"name": name, "arguments": value}
        checked.append({"id": call.get("id"), "type": "function", "function": function})
    return checked


@dataclass(frozen=True)
class Call:
    """A call of a tool, as `tool_calls` shows it."""

    index: int
    function: dict
    id: str
    type: str = "function"


class CallStream:
    """Takes the calls out of an answer as it grows; whatever is no call of a tool stays text."""

    def __init__(self, use: ToolUse):
        self.use = use
        self.calls: list[Call] = []
        self._held = ""  # text that may be, or is, the beginning of a call
        self._searched = 0  # of it, for a closing mark
        self._is_after_call = False
        self._has_said = False
        self._mark = use.form.opening.strip()
        self._closing = use.form.closing.strip()

    @property
    def is_over(self) -> bool:
        """Whether as many calls have been made as may be."""
        return len(self.calls) == self.use.max_calls

    def push(self, text: str, ended: bool) -> tuple[str, list[Call]]:
        """(text that belongs to no call, calls that are whole now)."""
        self._held += text
        said, num_before = "", len(self.calls)
        while not self.is_over:
            # The line ends between calls are no text.
            if self._is_after_call:
                self._held = self._held.lstrip()
                self._is_after_call = not self._held
            at = self._find_opening()
            said += self._held[:at]
            self._has_said |= bool(self._held[:at].strip())
            self._held = self._held[at:]
            taken = self._take_call(ended)
            if taken is None:
                break
            said += taken
        # Nothing follows the last one that may be made.
        if ended or self.is_over:
            said += "" if self.is_over else self._held
            self._held = ""
        return said, self.calls[num_before:]

    def _find_opening(self):
        """Where a call begins, or may begin once more text comes."""
        if not self._mark:  # only a whole answer is one
            may_begin = self._held.lstrip()[:1] in ("", "{") and not self._has_said
            return 0 if may_begin else len(self._held)
        at = self._held.find(self._mark)
        # Or else the mark may have begun at the end.
        if at >= 0:
            return at
        ends = range(min(len(self._mark) - 1, len(self._held)), 0, -1)
        return next(
            (len(self._held) - n for n in ends if self._held.endswith(self._mark[:n])),
            len(self._held),
        )

    def _take_call(self, ended):
        """What stands in front, once it is whole: "" for a call, or text that looked like one."""
        if not self._held.startswith(self._mark):
            return None
        # Where no mark closes it, the end of the answer does.
        if not self._closing:
            return self._take(self._held, len(self._held)) if ended else None
        # A string in the arguments may hold the closing mark, so each is tried, once.
        at = self._held.find(self._closing, self._searched)
        while at >= 0:
            taken = self._take(self._held[len(self._mark) : at], at + len(self._closing))
            if taken is not None:
                return taken
            self._searched = at + 1
            at = self._held.find(self._closing, self._searched)
        return None

    def _take(self, text, length):
        """Take `length` characters off if `text` is whole JSON: a call, or text to be shown."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        whole = self._held[:length]
        self._held = self._held[length:]
        self._searched = 0
        # The name of the field is that of the form.
        match value:
            case {"name": str(name), self.use.form.arguments: dict(arguments)}:
                pass
            case _:
                return whole
        # A client could do nothing with the name of something else.
        if name not in self.use.names:
            return whole
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        self.calls.append(Call(len(self.calls), function, f"call_{uuid.uuid4().hex[:24]}"))
        self._is_after_call = True
        return ""

"""Frozen dataclasses as a schema: overlay tables and flags on them, check, list and write them.

Knows nothing of ramp's own keys, which are in `config.py`. A key's type, range, default and
documentation each stand once, in the dataclass; a TOML file and the command line go through the
same checks.
"""

import ast
import dataclasses
import difflib
import importlib.resources
import inspect
import json
import math
import shlex
import sys
import tomllib
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal

from ramp.errors import UserError

EXECUTION = "execution"
"""Marks a key that says how a result is computed or watched, not what the result is.

It may change between two starts of a run, and a checkpoint does not depend on it.
"""


@dataclass(frozen=True)
class Range:
    """Bounds of a number, inclusive; `above` is an exclusive lower bound."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf

    def holds(self, value: float) -> bool:
        """Whether a value is finite and within the bounds."""
        return math.isfinite(value) and self.low <= value <= self.high and value > self.above

    def __str__(self) -> str:
        if max(self.low, self.above) == -math.inf and self.high == math.inf:
            return "a finite number"
        lower = f"at least {self.low:g}"
        if self.above > -math.inf:
            lower = f"more than {self.above:g}"
        return lower if self.high == math.inf else f"{lower} and at most {self.high:.10g}"


@dataclass(frozen=True)
class Key:
    """One key of a schema."""

    name: str  # dotted
    type: Any  # without annotations
    marks: tuple[Any, ...]  # the annotations: `Range` and `EXECUTION`
    default: Any
    doc: str  # the string under the field


# --- reading


def overlay(node: Any, table: dict[str, Any], where: str, prefix: str = "") -> Any:
    """A dataclass with the values of a (nested) table in place of its own.

    Nested tables are laid over what the field already holds, so a section keeps the defaults of its
    owner. Raises `UserError` for an unknown key, a wrong type or a wrong choice, with `where` and
    the dotted name.
    """
    types = read_types(type(node))
    values = {}
    for key, value in table.items():
        name = prefix + key
        if key not in types:
            raise UserError(f"{where}: {describe_unknown(name, types, prefix)}")
        current = getattr(node, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise UserError(f"{where}: '{name}' is a table [{name}], not {value!r}")
            values[key] = overlay(current, value, where, name + ".")
        else:
            values[key] = convert(types[key], value, where, name)
    return dataclasses.replace(node, **values)


def convert(hint: Any, value: Any, where: str, name: str) -> Any:
    """A value of a TOML file as the type that a key takes.

    Lists become tuples, and whole numbers become floats where a float is wanted.
    """
    base, _ = split_annotated(hint)
    if typing.get_origin(base) is Literal:
        choices = typing.get_args(base)
        if value not in choices:
            listed = ", ".join(map(repr, choices))
            raise UserError(f"{where}: '{name}' is {value!r}; it can be {listed}")
        return value
    if is_table(base):
        return convert_table(value, where, name)
    if typing.get_origin(base) is tuple:
        if not isinstance(value, list | tuple) or not all(type(item) is str for item in value):
            raise UserError(f"{where}: '{name}' takes a list of strings, not {value!r}")
        return tuple(value)  # frozen dataclasses hold nothing that can change
    # People write `lr = 1`; the other way round, 1.5 steps, is a mistake.
    if base is float and type(value) is int:
        return float(value)
    if type(value) is not base:  # bool is an int to isinstance
        given = f"{type(value).__name__} ({value!r})"
        raise UserError(f"{where}: '{name}' takes {base.__name__}, not {given}")
    return value


def is_table(kind: Any) -> bool:
    """Whether a key takes a table of name = number, kept as pairs since a dict can change."""
    return typing.get_origin(kind) is tuple and typing.get_args(kind)[0] == tuple[str, float]


def convert_table(value: Any, where: str, name: str) -> tuple[tuple[str, float], ...]:
    """A table of numbers as pairs. Raises `UserError`."""
    # An empty list, since an empty table cannot be told from one in what is saved.
    pairs = list(value.items()) if isinstance(value, dict) else value
    if pairs and not isinstance(value, dict):
        raise UserError(f"{where}: '{name}' is a table of name = number, not {value!r}")
    for key, number in pairs:
        if type(number) not in (int, float) or not 0 < number < math.inf:
            raise UserError(f"{where}: '{name}' gives {key!r} {number!r}; it takes numbers above 0")
    return tuple((key, float(number)) for key, number in pairs)


def check_ranges(node: Any, where: str, prefix: str = "") -> None:
    """Raise `UserError` for the first number outside its `Range`."""
    for key, hint in read_types(type(node)).items():
        value = getattr(node, key)
        if dataclasses.is_dataclass(value):
            check_ranges(value, where, f"{prefix}{key}.")
        for mark in split_annotated(hint)[1]:
            if isinstance(mark, Range) and not mark.holds(value):
                raise UserError(f"{where}: '{prefix}{key}' is {value}; it must be {mark}")


@cache
def read_types(cls: type) -> dict[str, Any]:
    """Type hints by field, with their annotations."""
    return typing.get_type_hints(cls, include_extras=True)


def split_annotated(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its annotations, and the annotations."""
    if typing.get_origin(hint) is Annotated:
        base, *marks = typing.get_args(hint)
        return base, tuple(marks)
    return hint, ()


def describe_unknown(name: str, known: Iterable[str], prefix: str = "") -> str:
    """What is wrong with an unknown key: it has a new name, looks like another, or neither."""
    names = [prefix + key for key in known]
    # Keys of older configurations, so that these can be brought up to date.
    if new := renamed_keys().get(name):
        return f"'{name}' is now '{new}'"
    if new == "":
        return f"there is no '{name}' any more; take it out"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"unknown key '{name}'; did you mean '{close[0]}'?"
    # Of very many keys only the sections: a sentence has to stay readable.
    shown = names if len(names) < 20 else sorted({key.split(".")[0] for key in names})
    listed = ", ".join(key.removeprefix(prefix) for key in shown)
    return f"unknown key '{name}'; known here: {listed}"


@cache
def renamed_keys() -> dict[str, str]:
    """Today's name of every key that had another one before; empty where it is gone."""
    file = importlib.resources.files("ramp") / "renamed_keys.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def forget_gone_keys(table: dict[str, Any], prefix: str = "") -> list[str]:
    """Take the keys that are gone out of a table, in place; returns their names."""
    gone = []
    for key, value in list(table.items()):
        name = prefix + key
        if isinstance(value, dict):
            gone += forget_gone_keys(value, f"{name}.")
        elif renamed_keys().get(name) == "":
            del table[key]
            gone.append(name)
    return gone


# --- flags


def parse_flags(words: Sequence[str], keys: Sequence[Key]) -> dict[str, Any]:
    """`--model.depth 8 --text.sources a b` or `--model.depth=8` as a nested table.

    Raises `UserError` for a flag that is not among the keys, or a value that does not read as the
    key's type.
    """
    by_name = {key.name: key for key in keys}
    table: dict[str, Any] = {}
    for flag, values in split_flags(words):
        # As command lines usually spell it, `--model.head-dim`, and as files do.
        name = flag.removeprefix("--").replace("-", "_")
        if name not in by_name:
            raise UserError(f"{flag}: {describe_unknown(name, by_name)}")
        *sections, last = name.split(".")
        node = table
        for section in sections:
            node = node.setdefault(section, {})
        # A flag that is given twice: the last one counts, as shells' users expect.
        node[last] = parse_words(by_name[name], values)
    return table


def split_words(text: str, where: str) -> list[str]:
    """Words as a shell splits them. Raises `UserError` where a quote is not closed."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{where} is {text!r}: {str(error).lower()}") from None


def split_flags(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the words that follow it, up to the next flag."""
    flag, values = "", []
    for word in words:
        if not word.startswith("--"):
            if not flag:
                raise UserError(f"unexpected argument {word!r}; flags look like --model.depth 8")
            values.append(word)
            continue
        if flag:
            yield flag, values
        flag, equals, value = word.partition("=")
        values = [value] if equals else []
    # The last flag has no other behind it to end it.
    if flag:
        yield flag, values


def parse_words(key: Key, words: list[str]) -> Any:
    """The value of a flag. Lists are several words, or one TOML array such as '["a", "b"]'."""
    where = f"--{key.name}"
    if is_table(key.type):
        return parse_table(where, words)
    if typing.get_origin(key.type) is tuple:
        return parse_list(where, words)
    if len(words) != 1:
        raise UserError(f"{where} takes one value, not {len(words)}")
    word = words[0]
    if key.type is bool:
        if word.lower() not in ("true", "false"):
            raise UserError(f"{where} takes true or false, not {word!r}")
        return word.lower() == "true"
    if key.type in (int, float):
        try:
            return key.type(word)
        except ValueError:
            kind = "a whole number" if key.type is int else "a number"
            raise UserError(f"{where} takes {kind}, not {word!r}") from None
    # A text, or one of several choices, which `convert` checks.
    return word


def parse_list(where: str, words: list[str]) -> list[str]:
    """Several words, or one TOML array."""
    # TOML's own form, the only one that can say an empty list or a word that begins with "--".
    joined = " ".join(words)
    if not joined.startswith("["):
        return words
    try:
        return tomllib.loads(f"list = {joined}")["list"]
    except tomllib.TOMLDecodeError as error:
        # People leave out the quotes, which shells take away anyway.
        if joined.endswith("]") and not {'"', "'"} & set(joined):
            return joined[1:-1].replace(",", " ").split()
        raise UserError(f"{where} is not a list: {error}") from None


def parse_table(where: str, words: list[str]) -> dict[str, float]:
    """`a=0.7 b=0.3` as a table; the last = counts, since names may hold one too."""
    table = {}
    for word in words:
        name, _, number = word.rpartition("=")
        if name in table:
            raise UserError(f"{where} names {name!r} twice")
        try:
            table[name] = float(number)
        except ValueError:
            raise UserError(f"{where} takes words such as 'file:a.txt=0.7', not {word!r}") from None
    return table


# --- listing and writing


def list_keys(node: Any, prefix: str = "") -> list[Key]:
    """All keys below a dataclass, in order."""
    docs = read_docs(type(node))
    keys = []
    for name, hint in read_types(type(node)).items():
        value = getattr(node, name)
        base, marks = split_annotated(hint)
        if dataclasses.is_dataclass(value):
            keys += list_keys(value, f"{prefix}{name}.")
        else:
            keys.append(Key(prefix + name, base, marks, value, docs.get(name, "")))
    return keys


@cache
def read_docs(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass, from its source."""
    # Python keeps no docstrings of fields, so the source is the one place to read them.
    module = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    body = next(
        n.body for n in module.body if isinstance(n, ast.ClassDef) and n.name == cls.__name__
    )
    docs = {}
    for field, below in pairwise(body):
        match field, below:
            case ast.AnnAssign(), ast.Expr(ast.Constant(str(text))):
                docs[ast.unparse(field.target)] = " ".join(text.split())
    return docs


def format_keys(keys: Sequence[Key]) -> str:
    """The keys as lines of help: name, type or choices, documentation, range, default."""
    lines = []
    section = None
    for key in keys:
        head = key.name.rpartition(".")[0]
        # Keys of one section follow each other.
        if head != section:
            lines.append(f"\n[{head or 'top level'}]")
            section = head
        bounds = [str(mark) for mark in key.marks if isinstance(mark, Range)]
        notes = [key.doc, *bounds, f"default {format_toml(key.default)}"]
        text = "; ".join(note for note in notes if note)
        lines.append(f"  --{key.name} {describe_type(key.type)}\n        {text}")
    return "\n".join(lines)


def describe_type(kind: Any) -> str:
    """INT, FLOAT, TEXT, {true,false}, {a,b} or [TEXT ...]."""
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    if is_table(kind):
        return "[TEXT=FLOAT ...]"
    if typing.get_origin(kind) is tuple:
        return "[TEXT ...]"
    return {bool: "{true,false}", int: "INT", float: "FLOAT", str: "TEXT"}[kind]


def to_toml(node: Any, prefix: str = "") -> str:
    """A TOML text that `overlay` reads back to an equal dataclass."""
    lines, tables = [], []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            name = prefix + field.name
            tables.append(f"\n[{name}]\n{to_toml(value, name + '.')}")
        else:
            lines.append(f"{field.name} = {format_toml(value)}\n")
    # Tables last: in TOML a key after a table's head would belong to that table.
    return "".join(lines + tables)


def format_toml(value: Any) -> str:
    """One value of a TOML file."""
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        pairs = [f"{format_toml(name)} = {format_toml(number)}" for name, number in value]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(format_toml, value)) + "]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for surrogate pairs and DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if isinstance(value, bool) else repr(value)

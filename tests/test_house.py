"""How the code reads, as numbers with bars: its size, density, comments, docstrings and imports.

`python tests/test_house.py` prints the table and every bar, and needs nothing but Python.
`python tests/test_house.py PATH/src` measures another checkout.

The counting rules reproduce the survey of commit bc5c0e7 in notes/house.md:

| measure                      | survey  | here    | the rule, in short                            |
|------------------------------|---------|---------|-----------------------------------------------|
| tokens of src/ramp           | 182,923 | 182,918 | see `count_tokens`; five docstrings of        |
|                              |         |         | `async def` were tokens to the survey         |
| tokens per code line         | 12.9    | 12.94   | a code line holds a token, or a part of one   |
| comments per 100 code lines  | 4.3     | 4.31    | every `#` comment, pragmas too                |
| functions                    | 1,394   | 1,394   | methods and nested ones too, lambdas not      |
| functions that return a dict | 242     | 242     | the word `dict` is in the return annotation   |
| public, without a docstring  | 292     | 192     | see `public_functions`; the survey counted    |
|                              |         |         | nested ones too, and no `async def`           |

The bar on dicts is about something narrower, `returns_string_keys`: 128 functions at that commit.
"""

import ast
import io
import re
import subprocess
import sys
import textwrap
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"

# The bars.
# A ratchet: the aim is 130,000, and src/experiments/LOG.md says why it was not reached.
MAX_TOKENS = 331_800  # of product code, src/ramp
MAX_TOKENS_PER_LINE = 10.0
MIN_COMMENTS_PER_100_LINES = 10.0
MAX_COLUMNS = 100  # of every line of every Python file in src, experiments too
MAX_PAGE = 120  # lines of a package's README, and columns of these, but for tables and code
MAX_DICT_FUNCTIONS = 40
DOCUMENTED = ("train", "model", "decode", "tasks", "credit", "synth", "nines")

# Who may import whom, from the top down: a row imports itself and the rows below it, never above.
# A name is a folder or a module of src/ramp. A longer name takes its module out of its folder:
# `reporting.figure` stands low although `reporting` does not. `stages.__init__` is the file itself.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("run",),
    ("branch", "rivals"),
    ("stages",),
    ("credit", "synth", "nines", "ladder", "serve", "pods", "export", "evals", "reporting"),
    ("decode", "tasks"),
    ("host", "sizes"),
    ("train",),
    ("model",),
    # Text knows neither model nor train. The table of stages is plain data that config reads.
    ("config", "schema", "rundir", "text", "stages.__init__"),
    ("reporting.metrics", "reporting.figure", "reporting.html"),
    ("errors", "files", "interrupts", "user_code", "__init__"),
)

# These work on tables and texts alone: no import of theirs may lead to jax, by whatever way.
WITHOUT_JAX = ("nines", "synth.measure_report", "synth.select", "synth.decide")
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}

# Layout and comments are no code. The rest is: names, operators, numbers and strings.
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
# Python 3.12 cuts an f-string into pieces. Here it stays one token, as in Python 3.11.
STRING_OPENS = {getattr(tokenize, f"{kind}STRING_START", None) for kind in "FT"}
STRING_CLOSES = {getattr(tokenize, f"{kind}STRING_END", None) for kind in "FT"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
HOLDS_STATEMENTS = ast.stmt | ast.excepthandler | ast.match_case
Scope = Function | ast.ClassDef | ast.Lambda


@dataclass
class Measure:
    """What is counted in a file, or in several files together."""

    files: int = 0
    lines: int = 0
    tokens: int = 0  # without comments, docstrings and layout
    code_lines: int = 0  # lines that hold at least a part of such a token
    comments: int = 0
    long_lines: list[str] = field(default_factory=list)
    functions: int = 0
    undocumented: list[str] = field(default_factory=list)  # public functions without a docstring
    dicts: list[str] = field(default_factory=list)  # see `returns_string_keys`
    dict_annotations: int = 0

    @property
    def tokens_per_line(self) -> float:
        return self.tokens / max(self.code_lines, 1)

    @property
    def comments_per_100_lines(self) -> float:
        return 100 * self.comments / max(self.code_lines, 1)

    def __add__(self, other: "Measure") -> "Measure":
        return Measure(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@cache
def measure_file(path: Path, src: Path) -> Measure:
    """Every count of one file; offenders are named by their path from the root of the checkout."""
    return measure_source(path.read_text("utf-8"), path.relative_to(src.parent).as_posix())


def measure_source(source: str, path: str) -> Measure:
    """Every count of one source text."""
    tree = ast.parse(source)
    lines = source.removesuffix("\n").split("\n") if source else []
    functions = [node for node in walk_statements(tree) if isinstance(node, Function)]
    measure = Measure(files=1, lines=len(lines), functions=len(functions))
    count_tokens(measure, source, tree)
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_COLUMNS:
            measure.long_lines.append(f"{path}:{number} {len(line)} columns")
    for name, function in public_functions(tree.body):
        if ast.get_docstring(function) is None:
            measure.undocumented.append(f"{path}:{function.lineno} {name}")
    for function in functions:
        if returns_string_keys(function):
            measure.dicts.append(f"{path}:{function.lineno} {function.name}")
        if function.returns and re.search(r"\bdict\b", ast.unparse(function.returns)):
            measure.dict_annotations += 1
    return measure


def walk_statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and every statement in it, however deep; much quicker than `ast.walk`."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        yield node
        inner = [n for n in ast.iter_child_nodes(node) if isinstance(n, HOLDS_STATEMENTS)]
        nodes.extend(reversed(inner))  # the last one is taken next: the order of the file


def count_tokens(measure: Measure, source: str, tree: ast.Module) -> None:
    """Add the tokens, code lines and comments of a file.

    A docstring is the string that opens a module, a class or a function. A string that stands
    anywhere else, under the field of a dataclass for example, is a token.
    """
    docstrings = {
        (node.body[0].lineno, node.body[0].col_offset)
        for node in walk_statements(tree)
        if isinstance(node, ast.Module | ast.ClassDef | Function)
        and ast.get_docstring(node) is not None
    }
    code_lines = set()
    depth = 0  # of f-strings inside f-strings
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        measure.comments += token.type == tokenize.COMMENT
        if depth or token.type in STRING_OPENS:
            measure.tokens += depth == 0
            depth += (token.type in STRING_OPENS) - (token.type in STRING_CLOSES)
        elif token.type in NOT_CODE or token.start in docstrings:
            continue
        else:
            measure.tokens += 1
        code_lines.update(range(token.start[0], token.end[0] + 1))
    measure.code_lines += len(code_lines)


def public_functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Function]]:
    """The functions of a module and the methods of its public classes.

    Whatever begins with `_` is private, dunder methods too. A function in a function is its own
    business.
    """
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            handlers = [line for h in getattr(node, "handlers", []) for line in h.body]
            yield from public_functions(node.body + getattr(node, "orelse", []) + handlers, prefix)
        elif isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef):
                yield from public_functions(node.body, f"{prefix}{node.name}.")
            else:
                yield prefix + node.name, node


def walk_body(function: Function) -> Iterator[ast.AST]:
    """Every node of a function, but not what is inside a function or a class within it."""
    nodes: list[ast.AST] = list(function.body)
    while nodes:
        node = nodes.pop()
        yield node
        if not isinstance(node, Scope):
            nodes.extend(ast.iter_child_nodes(node))


def returns_string_keys(function: Function) -> bool:
    """Whether a function returns a dict in which its own text writes a key as a string.

    Such a dict is `{"key": ...}` or `dict(key=...)`. It counts when it is returned as it is, as a
    part of a tuple, as a side of `a | b`, of `a or b` or of `a if x else b`, and through a variable
    that is assigned one of these, or whose `name["key"]` is set, in the same function.
    A dict whose keys are all computed does not count, nor does a list of dicts, nor one that a
    called function returns. Who reads the dict does not matter: jax, JSON and TensorBoard count.
    """
    values = defaultdict(list)  # variable -> what is assigned to it
    filled = set()  # variables that get a string key
    returned = []
    for node in walk_body(function):
        match node:
            case ast.Return(value=ast.expr() as value):
                returned.append(value)
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    match target:
                        case ast.Name(id=name):
                            values[name].append(value)
                        case ast.Subscript(ast.Name(id=name), slice=ast.Constant(value=str())):
                            filled.add(name)
            case (
                ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
                | ast.AugAssign(target=ast.Name(id=name), op=ast.BitOr(), value=value)
                | ast.NamedExpr(target=ast.Name(id=name), value=value)
            ):
                values[name].append(value)
    while returned:
        match returned.pop():
            case ast.Dict(keys=keys):
                if any(isinstance(k, ast.Constant) and isinstance(k.value, str) for k in keys):
                    return True
            case ast.Call(func=ast.Name(id="dict"), keywords=keywords):
                if any(keyword.arg for keyword in keywords):
                    return True
            case ast.Name(id=name):
                if name in filled:
                    return True
                returned.extend(values.pop(name, []))  # popped: `a = a | b` comes back once
            case ast.Tuple(elts=parts) | ast.BoolOp(values=parts):
                returned.extend(parts)
            case ast.BinOp(left=one, op=ast.BitOr(), right=two) | ast.IfExp(body=one, orelse=two):
                returned.extend((one, two))
            case ast.NamedExpr(value=value):
                returned.append(value)
    return False


def measure_packages(root: Path) -> dict[str, Measure]:
    """One measure per folder of src/ramp or src/experiments; the files beside them are `*.py`."""
    found = defaultdict(Measure)
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        found[parts[0] + "/" if len(parts) > 1 else "*.py"] += measure_file(path, root.parent)
    return dict(found)


def total(root: Path) -> Measure:
    """All of src/ramp, or all of src/experiments, as one measure."""
    return sum(measure_packages(root).values(), Measure())


# Imports


@dataclass(frozen=True)
class Imports:
    """Who imports what. Modules of ramp are named without their `ramp.`, a package `p.__init__`."""

    inside: dict[str, dict[str, int]]  # module -> module of ramp, and the line that says so
    outside: dict[str, dict[str, int]]  # module -> top name of anything else, and the line


@cache
def read_imports(src: Path) -> Imports:
    """Every import statement of src/ramp, also inside functions and `if TYPE_CHECKING`.

    `from ramp.a import b` is an arrow to the module `a.b` where there is one, else to `a`.
    A module that is named by a string, as in the table of stages, is no arrow.
    """
    modules = {}
    for path in sorted((src / "ramp").rglob("*.py")):
        modules[".".join(path.relative_to(src / "ramp").with_suffix("").parts)] = path
    return find_imports({name: path.read_text("utf-8") for name, path in modules.items()})


def find_imports(sources: dict[str, str]) -> Imports:
    """The imports of modules given as name -> source text."""
    imports = Imports({name: {} for name in sources}, {name: {} for name in sources})
    for name, source in sources.items():
        for node in walk_statements(ast.parse(source)):
            for target in imported_names(node, name):
                if target.split(".")[0] == "ramp":
                    other = resolve(target, sources)
                    if other != name:
                        imports.inside[name].setdefault(other, node.lineno)
                else:
                    imports.outside[name].setdefault(target.split(".")[0], node.lineno)
    return imports


def imported_names(node: ast.AST, module: str) -> list[str]:
    """The full dotted names that an import statement names; nothing for any other node."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=base, names=names, level=level):
            if level:  # a relative import counts from the folder of its module
                folder = ["ramp", *module.split(".")][:-level]
                base = ".".join([*folder, *([base] if base else [])])
            return [f"{base}.{alias.name}" for alias in names]
    return []


def resolve(target: str, modules: dict[str, str]) -> str:
    """The module of `modules` that a dotted name stands in: `ramp.a.b.NAME` is in `a.b`."""
    parts = target.split(".")[1:]
    while parts:
        for name in (".".join(parts), ".".join([*parts, "__init__"])):
            if name in modules:
                return name
        parts.pop()
    return "__init__"


def place(module: str) -> str:
    """The entry of LAYERS that a module belongs to: the longest that fits, else its top name."""
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((name for name in names if layer(name) is not None), parts[0])


def layer(name: str) -> int | None:
    """The row of LAYERS that has an entry, 0 at the top; None for a name that is in no row."""
    return next((row for row, entries in enumerate(LAYERS) if name in entries), None)


def arrows_up(imports: Imports) -> list[str]:
    """Imports that run back up the table, as path:line."""
    found = []
    for module, others in imports.inside.items():
        for other, line in others.items():
            here, there = layer(place(module)), layer(place(other))
            if here is not None and there is not None and there < here:
                found.append(f"{path_of(module)}:{line} imports {other}")
    return found


def path_of(module: str) -> str:
    """The file of a module of ramp, from the root of the checkout."""
    return f"src/ramp/{module.replace('.', '/')}.py"


def package_arrows(imports: Imports) -> dict[str, set[str]]:
    """The same arrows between entries of LAYERS; a top-level module is an entry of its own."""
    found = defaultdict(set)
    for module, others in imports.inside.items():
        found[place(module)] |= {place(other) for other in others} - {place(module)}
    return dict(found)


def find_cycle(arrows: dict[str, dict[str, int]] | dict[str, set[str]]) -> str:
    """One circle of imports, as `a -> b -> a`, or nothing."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return " -> ".join(reversed(error.args[1]))  # it lists who is imported first
    return ""


def way_to_jax(module: str, imports: Imports) -> str:
    """The shortest way by which a module imports jax, or nothing.

    To import `a.b` also runs `a/__init__.py`, so that file counts as imported too.
    """
    ways = [[module]]
    seen = {module}
    for way in ways:  # grows while it is read: nearest modules first
        last = way[-1]
        for name in sorted(JAX & imports.outside[last].keys()):
            return " -> ".join([*way, f"{name} (line {imports.outside[last][name]})"])
        parts = last.split(".")
        parents = {".".join([*parts[:n], "__init__"]) for n in range(len(parts))}
        for other in sorted(imports.inside[last].keys() | (parents & imports.inside.keys())):
            if other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return ""


# The bars, as tests


def listed(offenders: list[str], limit: int = 400) -> str:
    """Offenders as the text of a failure, one a line."""
    more = [f"... and {len(offenders) - limit} more"] if len(offenders) > limit else []
    return "\n".join([f"{len(offenders)} found:", *offenders[:limit], *more])


def test_product_is_small():
    """Tokens and not lines: they do not shrink when two lines are packed into one."""
    tokens = total(SRC / "ramp").tokens
    assert tokens <= MAX_TOKENS, f"{tokens:,} tokens in src/ramp, at most {MAX_TOKENS:,}"


def test_lines_are_not_dense():
    """One idea a line."""
    density = total(SRC / "ramp").tokens_per_line
    assert density <= MAX_TOKENS_PER_LINE, (
        f"{density:.2f} tokens per code line in src/ramp, at most {MAX_TOKENS_PER_LINE:g}"
    )


def test_comments_help_the_reader():
    """Comments say why, beside the line, where a reader would ask."""
    comments = total(SRC / "ramp").comments_per_100_lines
    assert comments >= MIN_COMMENTS_PER_100_LINES, (
        f"{comments:.2f} comments per 100 code lines in src/ramp, "
        f"at least {MIN_COMMENTS_PER_100_LINES:g}"
    )


def test_lines_fit_the_page():
    """Code, comments and docstrings alike, in product and experiments."""
    long = total(SRC / "ramp").long_lines + total(SRC / "experiments").long_lines
    assert not long, f"lines over {MAX_COLUMNS} columns: {listed(long, 60)}"


def test_readmes_fit_the_page():
    """What a package is for can be read at one sitting, and in an editor too."""
    over = []
    for path in sorted((SRC / "ramp").glob("*/README.md")):
        lines = path.read_text("utf-8").splitlines()
        name = path.relative_to(SRC.parent)
        if len(lines) > MAX_PAGE:
            over.append(f"{name} {len(lines)} lines")
        is_code = False
        for number, line in enumerate(lines, 1):
            is_code ^= line.startswith("```")
            if len(line) > MAX_PAGE and not is_code and not line.startswith("|"):
                over.append(f"{name}:{number} {len(line)} columns")
    assert not over, listed(over)


def test_public_functions_have_docstrings():
    """In the packages that people build on."""
    packages = measure_packages(SRC / "ramp")
    offenders = []
    for name in DOCUMENTED:
        if f"{name}/" in packages:
            offenders += packages[f"{name}/"].undocumented
        else:
            offenders.append(f"src/ramp/{name}: no such package")
    assert not offenders, f"public functions without a docstring: {listed(offenders)}"


def test_results_are_declared():
    """What a function hands back has a class that names its fields; dicts are for other tools."""
    dicts = total(SRC / "ramp").dicts
    assert len(dicts) <= MAX_DICT_FUNCTIONS, (
        f"functions that return a dict with string keys, "
        f"at most {MAX_DICT_FUNCTIONS}: {listed(dicts)}"
    )


def test_every_module_has_a_layer():
    """A package that the table does not know is judged by no arrow."""
    unknown = sorted({place(m) for m in read_imports(SRC).inside if layer(place(m)) is None})
    assert not unknown, f"not in LAYERS: {', '.join(unknown)}"


def test_imports_run_one_way():
    """From the command line down to the model, as LAYERS says; text knows no model and no train."""
    up = arrows_up(read_imports(SRC))
    assert not up, f"imports that run back up: {listed(up)}"


def test_no_circle_of_modules():
    """Imports inside functions count: a circle that is hidden there is still one."""
    cycle = find_cycle(read_imports(SRC).inside)
    assert not cycle, cycle


def test_no_circle_of_packages():
    """Packages can be read one after the other."""
    cycle = find_cycle(package_arrows(read_imports(SRC)))
    assert not cycle, cycle


def test_tables_and_texts_need_no_jax():
    """Reliability and the measures of diversity run where jax is not installed."""
    imports = read_imports(SRC)
    ways = []
    for name in WITHOUT_JAX:
        modules = [m for m in imports.inside if m == name or m.startswith(f"{name}.")]
        assert modules, f"no such module in src/ramp: {name}"
        ways += filter(None, (way_to_jax(module, imports) for module in modules))
    assert not ways, f"ways to jax: {listed(ways)}"


def test_product_does_not_import_experiments():
    """Experiments are not in the wheel."""
    outside = read_imports(SRC).outside
    found = [
        f"{path_of(module)}:{names['experiments']}"
        for module, names in outside.items()
        if "experiments" in names
    ]
    assert not found, listed(found)


def test_files_of_tests_have_names_of_their_own():
    """pytest imports a file of tests by its bare name: of two with one name the second never runs."""
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    twins = [file.name for file in files if sum(other.name == file.name for other in files) > 1]
    assert not twins, listed(twins)


def test_top_level():
    """What a command or a test left behind in the clone was committed twice."""
    done = subprocess.run(["git", "ls-files"], cwd=SRC.parent, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a clone")
    top = {line.split("/")[0] for line in done.stdout.splitlines()}
    known = {"README.md", "LICENSE", "pyproject.toml", "src", "configs", "tpu_scripts", "tests"}
    assert top - known <= {".ci", ".gitignore"}


# The measures themselves, on texts small enough to count by hand


def test_counting():
    """Docstrings, comments and layout are left out, and an f-string is one token."""
    source = textwrap.dedent('''
        """A module."""

        class Public:
            """A class."""

            size: int = 3  # a comment
            """A note, which is a token."""

            async def read(self):
                """A method."""
                return f"{self.size!r:>{3}} of \\
        {dict(a=1)}"

            def write(self):
                def nested():
                    pass

        def _private():
            pass
    ''')
    measure = measure_source(source, "f.py")
    by_line = {
        "class Public:": 3,
        "size: int = 3": 5,
        "a note": 1,
        "async def read(self):": 7,
        "return, over two lines": 2,
        "def write(self):": 6,
        "def nested():": 5,
        "pass": 1,
        "def _private():": 5,
        "another pass": 1,
    }
    assert measure.tokens == sum(by_line.values())
    assert measure.code_lines == len(by_line) + 1
    assert measure.comments == 1
    assert measure.functions == 4
    assert measure.undocumented == ["f.py:15 Public.write"]
    wide = measure_source("#" * MAX_COLUMNS + "\n" + "#" * (MAX_COLUMNS + 1), "f.py")
    assert wide.long_lines == [f"f.py:2 {MAX_COLUMNS + 1} columns"]


def test_dicts_that_count():
    """Fixed keys count however they leave the function; computed keys do not."""
    counted = (
        'return {"a": 1, **b}',
        "return dict(a=1)",
        'return x, {"a": 1}',
        'return b | {"a": 1}',
        'return {"a": 1} if x else None',
        'out = {"a": 1}\nreturn out',
        'out: dict = {}\nout["a"] = 1\nreturn out, x',
        "out = b\nout |= dict(a=1)\nout = out | b\nreturn out",
    )
    free = (
        "return {}",
        "return {k: v for k, v in b}",
        "return {x: 1}",
        "return dict(b)",
        'return f({"a": 1})',
        'out = {"a": 1}\nreturn f(out)',
        'def nested():\n    return {"a": 1}\nreturn nested',
    )
    for body, expected in [(b, True) for b in counted] + [(b, False) for b in free]:
        function = ast.parse("def f(x, b):\n" + textwrap.indent(body, "    ")).body[0]
        assert returns_string_keys(function) is expected, body


def test_imports_are_found():
    """Each form of import leads to its module, and each fault is seen."""
    imports = find_imports(
        {
            "__init__": "",
            "cli": "from ramp import errors\nimport ramp.nines.audit as a",
            "errors": "",
            "nines.__init__": "from ramp.nines.audit import check",
            "nines.audit": "def f():\n  from ramp.model import SIZE, cost\n  import numpy.linalg",
            "nines.bare": "import math",
            "nines.page": "from . import audit\nfrom ..errors import UserError",
            "model.__init__": "SIZE = 1",
            "model.cost": "import jax.numpy as jnp\nfrom ramp.nines import page",
        }
    )
    assert {name: set(others) for name, others in imports.inside.items()} == {
        "__init__": set(),
        "cli": {"errors", "nines.audit"},
        "errors": set(),
        "nines.__init__": {"nines.audit"},
        "nines.audit": {"model.__init__", "model.cost"},
        "nines.bare": set(),
        "nines.page": {"nines.audit", "errors"},
        "model.__init__": set(),
        "model.cost": {"nines.page"},
    }
    assert imports.outside["nines.audit"] == {"numpy": 3}
    assert arrows_up(imports) == ["src/ramp/model/cost.py:2 imports nines.page"]

    circle = find_cycle(imports.inside).split(" -> ")
    assert set(circle) == {"nines.audit", "model.cost", "nines.page"}
    assert circle[0] == circle[-1]
    assert all(b in imports.inside[a] for a, b in pairwise(circle))
    assert set(find_cycle(package_arrows(imports)).split(" -> ")) == {"nines", "model"}
    assert find_cycle({"a": {"b"}, "b": set()}) == ""

    assert way_to_jax("nines.page", imports) == (
        "nines.page -> nines.audit -> model.cost -> jax (line 1)"
    )
    # To import any module of a folder runs the folder's own file.
    assert way_to_jax("nines.bare", imports) == (
        "nines.bare -> nines.__init__ -> nines.audit -> model.cost -> jax (line 1)"
    )
    assert way_to_jax("errors", imports) == ""


def test_places():
    """The longest entry of LAYERS decides."""
    assert place("reporting.figure") == "reporting.figure"
    assert place("reporting.report") == "reporting"
    assert place("stages.__init__") == "stages.__init__"
    assert place("stages.pretrain") == "stages"
    assert place("cli") == "cli"
    assert place("unheard_of.thing") == "unheard_of"
    entries = [name for entries in LAYERS for name in entries]
    assert len(set(entries)) == len(entries), "a name stands in two rows of LAYERS"


# The table


def print_table(title: str, rows: dict[str, Measure]) -> None:
    """One line a package, and their sum."""
    if not rows:
        print(f"{title}: nothing there\n")
        return
    print(
        f"{title:<16}{'files':>6}{'lines':>8}{'tokens':>9}{'code lines':>12}{'tok/line':>10}"
        f"{'#/100':>7}{'>100':>6}{'funcs':>7}{'no doc':>8}{'str keys':>10}{'-> dict':>9}"
    )
    for name, m in [*rows.items(), ("in all", sum(rows.values(), Measure()))]:
        print(
            f"{name:<16}{m.files:>6}{m.lines:>8,}{m.tokens:>9,}{m.code_lines:>12,}"
            f"{m.tokens_per_line:>10.2f}{m.comments_per_100_lines:>7.1f}{len(m.long_lines):>6}"
            f"{m.functions:>7}{len(m.undocumented):>8}{len(m.dicts):>10}{m.dict_annotations:>9}"
        )
    print()


def main() -> None:
    """Print the tables, then what each bar says."""
    global SRC
    SRC = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else SRC
    print_table("src/ramp", measure_packages(SRC / "ramp"))
    print_table("src/experiments", measure_packages(SRC / "experiments"))
    for name, test in [*globals().items()]:
        if name.startswith("test_"):
            try:
                test()
                print(f"ok    {name}")
            except AssertionError as error:
                text = str(error).split("\n")
                print(f"OVER  {name}: " + "\n        ".join(text[:12] + ["..."] * (len(text) > 12)))


if __name__ == "__main__":
    main()

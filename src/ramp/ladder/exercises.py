"""`ramp ladder exercise` writes a file with a part missing; `ramp ladder check` says what is wrong.

There is one source: an exercise is the function of `mechanisms.py` without its lines, and a typical
mistake is that function with one line changed (lessons.toml). An answer that agrees with a changed
function, or with one that two mistakes have changed, gets the hints of these.
"""

import inspect
import textwrap
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from ramp.errors import UserError
from ramp.files import quote_path, write_atomic
from ramp.ladder import mechanisms, sums
from ramp.ladder.rungs import Mistake, Rung, select_rung
from ramp.user_code import call, load_object

SECONDS = 10.0  # that an answer may take on one input
TOLERANCE = 1e-6  # of values, relative and absolute
SLOPE_STEP = 1e-5  # of the numbers that a slope is measured with
SLOPE_TOLERANCE = 1e-4
SEEDS = (0, 1, 2)  # of the hidden inputs

EXERCISE = '''"""Exercise {number} of the ladder: {name}.

{story}

Write the lines of `{function}`: its docstring says what goes in and what comes out,
its comments name the main steps. Then

    ramp ladder check {file}
"""

{imports}
EXERCISE = {number}  # which exercise this file answers


{blank}'''


def draw_inputs(name: str, seed: int) -> list[Any]:
    """The arguments of a mechanism, drawn at random; their sizes grow with the seed."""
    rng = np.random.default_rng(seed)
    # No two of these are equal, so that a size that is taken for another does not fit.
    T, D, F, H, h, G = 5 + seed, 9, 11, 2 + seed, 4 * (seed + 1), 3 + seed

    def draw(*shape):
        return rng.normal(size=shape)

    def draw_heads():
        width = H * h
        return (draw(D, width), draw(D, width), draw(D, width), draw(width, D), H)

    def draw_sizes():
        # Beside such rows it shows whether 1e-6 is added, and where.
        return draw(T, D) * np.array([0, 1e-4] + [3] * (T - 2))[:, None]

    def draw_text():
        return [bytes(rng.integers(97, 101, 40).tolist())]

    def draw_solutions(count, n):
        digits = sums.draw_digits(rng, n, count)
        # A third of them is one too high at some steps, and right again at others.
        slips = rng.integers(0, 2, (count, n - 1)) * (rng.random((count, 1)) < 1 / 3)
        return [digits, (sums.solve(digits) + slips) % sums.BASE]

    inputs = {
        "unigram_bits": draw_text,
        "bigram_bits": draw_text,
        "learn_bigrams": lambda: [draw(5, 5), rng.integers(0, 5, 9), rng.integers(0, 5, 9)],
        "mix_window": lambda: [draw(T, D), draw(3, D, D)],
        "mean_of_past": lambda: [draw(T, D), draw(D, h), draw(h, D)],
        "attend": lambda: [draw(T, D), draw(D, h), draw(D, h), draw(D, h), draw(h, D)],
        "rotate": lambda: [draw(T, 2 * (seed + 2)), 100.0],
        "attend_heads": lambda: [draw(T, D), *draw_heads()],
        "feed_forward": lambda: [draw(T, D), draw(D, F), draw(F, D)],
        "run_blocks": lambda: [
            draw(T, D) / 4,
            [(draw_heads(), (draw(D, F) / 4, draw(F, D) / 4)) for _ in range(2)],
        ],
        "rms_norm": lambda: [draw_sizes(), draw(D)],
        "score_normed": lambda: [3 * draw(T, h), 3 * draw(T, h), draw(h), draw(h)],
        "swiglu": lambda: [draw(T, D), draw(D, F), draw(D, F), draw(F, D)],
        "attend_groups": lambda: [draw(T, G * H, h), draw(T, H, h), draw(T, H, h)],
        "orthogonalize": lambda: [draw(9 - 2 * seed, 7)],
        "add_values": lambda: [draw(T, D), draw(T, H, h), draw(T, H, h), draw(3, H)],
        "mix_embedding": lambda: [draw(T, D), draw(T, D), 0.7, 0.2],
        "near_mask": lambda: [T + 3, 2 + seed],
        "answer_loss": lambda: [draw(T, F), rng.integers(0, F, T), 2 + seed],
        "compare_with_others": lambda: [draw(H + 1, T)],
        "compare_steps": lambda: [draw(T, H + 1)],
        "keep_right": lambda: draw_solutions(40 + seed, 4),
        # The second time every bet loses.
        "weigh_evidence": lambda: [(draw(T + 20) + 0.3).clip(-1, -0.1 if seed == 1 else None)],
        "prove": lambda: [
            (rng.random(60) < 0.97).astype(float),
            0.9,
            np.array([0.3, 0.9]),
            np.array([0.25, 0.75]),
        ],
    }
    return inputs[name]()


def split_over_devices(name: str, args: list) -> list[list]:
    """The arguments as each of two devices has them, whose answers add up; empty: not such a part.

    The way of Shoeybi et al. 2019: columns of the first matrices, rows of the last.
    """
    if name in ("feed_forward", "swiglu"):
        x, *ups, down = args
        half = len(down) // 2
        parts = (slice(None, half), slice(half, None))
        return [[x, *(up[:, part] for up in ups), down[part]] for part in parts]
    if name == "attend_heads":
        x, wq, wk, wv, wo, heads = args
        # Whole heads, not columns: a head on two devices would have to be put together first.
        width = len(wo) // heads
        parts = [(slice(None, width), 1), (slice(width, None), heads - 1)]
        return [[x, wq[:, p], wk[:, p], wv[:, p], wo[p], count] for p, count in parts]
    return []


# Writing


def write_exercise(number: int, out: Path | None) -> Path:
    """Write the file of an exercise; returns its path. Raises `UserError`."""
    rung = select_exercise(number)
    path = out or Path(f"exercise-{number}.py")
    if path.suffix != ".py":
        raise UserError(f"{path}: an exercise is Python; end the name with .py")
    if path.exists():
        raise UserError(f"{path} is there already; name another file with --out")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; make it, or name another with --out")
    function = getattr(mechanisms, rung.lesson.mechanism)
    fill = partial(textwrap.fill, width=96)
    text = EXERCISE.format(
        number=number,
        name=rung.name,
        story="\n\n".join(map(fill, [rung.lesson.fails, *rung.lesson.idea.split("\n\n")])),
        function=function.__name__,
        file=quote_path(path),
        imports=write_imports(function),
        blank=blank_out(function),
    )
    write_atomic(path, text)
    return path


def list_helpers(function: FunctionType) -> list[str]:
    """What a mechanism takes from mechanisms.py, by name."""
    return sorted(set(function.__code__.co_names) & vars(mechanisms).keys() - {"np"})


def write_imports(function: FunctionType) -> str:
    """The imports with which the lines of a mechanism run by themselves."""
    names = ", ".join(list_helpers(function))
    helpers = f"\nfrom ramp.ladder.mechanisms import {names}\n" if names else ""
    return f"import numpy as np\nfrom numpy import ndarray\n{helpers}"


def select_exercise(number: int) -> Rung:
    """The rung whose part is to be written. Raises `UserError` where there is none."""
    rung = select_rung(number)
    if not rung.lesson.mechanism:
        raise UserError(f"rung {number} has no exercise; take one that lessons.toml has")
    return rung


def blank_out(function: FunctionType) -> str:
    """The source of a function without its lines: the docstring and the comments stay."""
    head, quotes, body = inspect.getsource(function).rpartition('"""')
    comments = [line.strip() for line in body.splitlines() if line.strip().startswith("#")]
    lines = [f"    {comment}" for comment in comments]
    lines.append('    raise NotImplementedError("write this function")')
    return head + quotes + "\n" + "\n".join(lines) + "\n"


# Checking


def check_answer(path: Path) -> tuple[Rung, list[str]]:
    """The rung that a file answers, and what is wrong with it: nothing, if it is right.

    The file is run, with the rights of whoever runs this. Raises `UserError` where it fails.
    """
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{path} is no exercise; `ramp ladder exercise 5` writes one, a .py file")
    number = _load(path, "EXERCISE", int)
    if type(number) is not int:
        raise UserError(f"{path}: EXERCISE is {number!r}; write a number, as in EXERCISE = 5")
    rung = select_exercise(number)
    with warnings.catch_warnings():
        # A hint says what is wrong; beside it, NumPy's warnings of nan are noise to a learner.
        warnings.simplefilter("ignore", RuntimeWarning)
        return rung, _find_faults(path, rung)


def _load(path, name, kind):
    """What an answer's file calls so; the file may run as long as an answer may."""

    def load():
        try:
            return load_object(f"{path}:{name}", "ladder check", kind)
        # A sentence already, which `call` would take for the failure of a function.
        except UserError as error:
            return error

    loaded = call(load, seconds=SECONDS, what=str(path))
    if isinstance(loaded, UserError):
        raise loaded
    return loaded


def _find_faults(path, rung):
    """What is wrong with the answer of a file to the exercise of a rung."""
    name = rung.lesson.mechanism
    answer = _load(path, name, FunctionType)
    solution = getattr(mechanisms, name)
    run = partial(call, answer, seconds=SECONDS, what=name)
    cases = [draw_inputs(name, seed) for seed in SEEDS]
    got = []
    for args in cases:
        given = copy_arrays(args)
        got.append(run(*given))
        if not _agree([given], [args]):
            changed = "it changes an array that it was given: write `x = x + y`, not `x += y`"
            return [changed]
    wanted = [solution(*args) for args in cases]
    if not _agree(got, wanted):
        return explain(rung, cases, got, wanted)
    slopes = _check_slopes(run, solution, cases, isinstance(wanted[0], tuple))
    return slopes + _check_split(name, run, cases, wanted)


def explain(rung: Rung, cases: list[list], got: list, wanted: list) -> list[str]:
    """Why answers are not those that are wanted: hints of one or two mistakes, or where they part.

    rung: whose mechanism it is; cases: the arguments; got and wanted: an answer for each.
    """
    for count in (1, 2):
        for mistakes in combinations(rung.lesson.mistakes, count):
            wrong = make_mistakes(rung.lesson.mechanism, mistakes)
            # Two mistakes may leave nothing but nan, which then tells nothing of either.
            if wrong and _agree(got, _run_quietly(wrong, cases), equal_nan=count == 1):
                return [mistake.hint for mistake in mistakes]
    return [next(_find_differences(got[0], wanted[0]), "it is right for some sizes, not for all")]


def make_mistakes(name: str, mistakes: tuple[Mistake, ...]) -> Callable | None:
    """The mechanism with these lines changed; None where one mistake has no place for another."""
    source = inspect.getsource(getattr(mechanisms, name))
    for mistake in mistakes:
        if mistake.line not in source:
            return None
        source = source.replace(mistake.line, mistake.wrong)
    namespace = dict(vars(mechanisms))
    exec(source, namespace)
    return namespace[name]


def copy_arrays(value: Any) -> Any:
    """A copy of arguments: arrays in lists and tuples, and what else there is."""
    if isinstance(value, list | tuple):
        return type(value)(copy_arrays(part) for part in value)
    return value.copy() if isinstance(value, np.ndarray) else value


def _run_quietly(function, cases):
    """The answers of a wrong function: nothing at all where it fails."""
    try:
        with np.errstate(all="ignore"):
            return [function(*copy_arrays(args)) for args in cases]
    except (ValueError, IndexError):
        return []


def _agree(ones, others, equal_nan=True):
    """Whether two lists of arrays, numbers or lists of these are equal, shapes too."""
    if len(ones) != len(others):
        return False
    for one, other in zip(ones, others, strict=True):
        if isinstance(other, list | tuple):
            same = isinstance(one, list | tuple) and _agree(one, other, equal_nan)
        elif isinstance(other, bytes):
            same = one == other
        else:
            one, other = _to_array(one), np.asarray(other)
            same = one.shape == other.shape and one.dtype.kind in "bif"
            same = same and np.allclose(one, other, TOLERANCE, TOLERANCE, equal_nan=equal_nan)
        if not same:
            return False
    return True


def _to_array(value):
    """A value as an array; of objects, which agrees with nothing, where it is several."""
    try:
        return np.asarray(value)
    except ValueError:
        return np.array([None] * len(value))


def _find_differences(got, wanted) -> Iterator[str]:
    """How an answer that no mistake of the list explains differs, the most telling thing first."""
    if isinstance(wanted, tuple):
        if not isinstance(got, list | tuple) or len(got) != len(wanted):
            yield f"it must return {len(wanted)} things, as the docstring says"
            return
        for pair in zip(got, wanted, strict=True):
            yield from _find_differences(*pair)
        return
    if got is None:
        yield "it returns nothing: end with `return`"
    got, wanted = _to_array(got), np.asarray(wanted)
    if got.dtype.kind == "O" and got.ndim:
        yield "it returns several arrays, or rows of several lengths, where one array is wanted"
    if got.shape != wanted.shape:
        yield f"it returns an array of shape {got.shape}; for these inputs it is {wanted.shape}"
    elif got.dtype.kind not in "bif":
        yield f"it returns an array of {got.dtype}, not of numbers"
    elif np.isnan(got).any():
        yield "some numbers are nan: something is divided by zero, or minus infinity taken off"
    else:
        yield from _find_first(got, wanted)


def _find_first(got, wanted):
    """The first number that is wrong, if there is one."""
    is_wrong = ~np.isclose(got, wanted, TOLERANCE, TOLERANCE)
    if not is_wrong.any():
        return
    # Of a single number it is ().
    place = tuple(int(i) for i in np.argwhere(is_wrong)[0])
    where = f"at {list(place)} " if place else ""
    yield (
        f"it is right for {np.mean(~is_wrong):.0%} of the numbers; the first wrong one {where}is "
        f"{got[place]:.4g}, and should be {wanted[place]:.4g}"
    )


def _check_slopes(answer, solution, cases, has_loss):
    """Whether an answer changes as the solution does when its first argument is changed a little.

    A function that rounds, or takes the values of its inputs apart, has the values but learns
    nothing. has_loss: what they return is a loss with its gradient.
    """
    first = cases[0][0]
    # Digits, and what is 1 or 0, do not change a little.
    if not isinstance(first, np.ndarray) or (first == first.round()).all():
        return []
    rng = np.random.default_rng(3)
    step = SLOPE_STEP * rng.normal(size=first.shape)

    def slope(function):
        ends = [function(first + side * step, *copy_arrays(cases[0][1:])) for side in (1, -1)]
        ends = [end[0] if has_loss else end for end in ends]
        return (np.asarray(ends[0], float) - np.asarray(ends[1], float)) / (2 * SLOPE_STEP)

    if np.allclose(slope(answer), slope(solution), SLOPE_TOLERANCE, SLOPE_TOLERANCE):
        return []
    return ["its values are right, its gradient is not: something is rounded or made an integer"]


def _check_split(name, answer, cases, wanted):
    """Whether the answers of two devices that share the weights add up to the whole one."""
    for args, whole in zip(cases, wanted, strict=True):
        parts = split_over_devices(name, args)
        if parts and not _agree([sum(answer(*part) for part in parts)], [whole]):
            return [
                "with its weights split over two devices the answers do not add up: take sizes "
                "from the arrays you are given, not from elsewhere"
            ]
    return []

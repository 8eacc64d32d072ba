"""A user's own Python: what is there is opened, and what is not is said in a sentence with its line."""

import time
from functools import partial
from types import FunctionType

import pytest

from ramp.errors import UserError
from ramp.tasks import Task
from ramp.user_code import call, is_user_code, load_object


def write(folder, text, name="mine.py"):
    path = folder / name
    path.write_text(text)
    return path


def test_an_object_is_opened_with_its_neighbours(tmp_path):
    write(tmp_path, "FACTOR = 3\n", "neighbour_of_mine.py")
    path = write(
        tmp_path,
        "from dataclasses import dataclass\nfrom neighbour_of_mine import FACTOR\n"
        "@dataclass(frozen=True)\nclass Thing:\n    x: int\nTHING = Thing(FACTOR)\n",
    )
    assert load_object(f"{path}:THING", "x").x == 3
    # Run once: the class is the same one whichever name is asked for.
    assert isinstance(load_object(f"{path}:THING", "x"), load_object(f"{path}:Thing", "y"))
    assert is_user_code(f"{path}:THING") and not is_user_code("verified")


def test_an_edited_file_is_run_again(tmp_path):
    path = write(tmp_path, "X = 1\n")
    assert load_object(f"{path}:X", "x") == 1
    write(tmp_path, "X = 2\n")
    assert load_object(f"{path}:X", "x") == 2


def test_a_misspelt_name_gets_the_nearest_or_those_that_fit(tmp_path):
    """No imports: what is a task is offered for a task, and own functions for a reward."""
    path = write(
        tmp_path,
        "import re\nfrom textwrap import dedent\nfrom ramp.tasks.protocol import Task, make_rng\n"
        "from ramp.tasks.chain import TASK as GIVEN\nMINE = Task('a', None, None, None)\n"
        "def reward(records): pass\ndef other(records): pass\n",
    )
    for name, kind, said in (
        ("rewrd", FunctionType, "there is no 'rewrd'; did you mean 'reward'[?]$"),
        ("zzz", FunctionType, "it can be reward, other$"),
        ("MNE", Task, "did you mean 'MINE'"),
        ("zzz", Task, "it can be GIVEN, MINE$"),
    ):
        with pytest.raises(UserError, match=said):
            load_object(f"{path}:{name}", "x", kind)


@pytest.mark.parametrize(
    ("text", "spec", "words"),
    [
        ("X = 1", "{}:Y", r"^reward, \S+mine\.py: there is no 'Y'; it can be X$"),
        ("X = 1", "{}x.py:Y", "there is no file"),
        ("X = 1", "{}", r"mine\.py is a file, with X; add the name, as \S+mine\.py:X$"),
        ("X = 1", "X", "write PATH.py:NAME"),
        ("", "{}", r"mine\.py has no object to name; write one there"),
        ("", "{}:Y", r"mine\.py has no object to name; write one there"),
        ("X = 1\ny = X.z\n", "{}:X", r"mine\.py, line 2: AttributeError"),
        ("X = 1\nX = (\n", "{}:X", r"mine\.py, line 2: SyntaxError"),
        ("import json\nX = json.loads('')\n", "{}:X", r"mine\.py, line 2: JSONDecodeError"),
        ("X = 1\nexit(3)\n", "{}:X", r"mine\.py, line 2: SystemExit"),
        ("import nothing_of_this_name\n", "{}:X", r"line 1: ModuleNotFoundError"),
    ],
)
def test_what_is_missing_or_fails_is_one_sentence(tmp_path, text, spec, words):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=words) as raised:
        load_object(spec.format(path), "reward")
    assert "\n" not in str(raised.value)


def test_a_call_that_fails_or_hangs_is_one_sentence(tmp_path):
    path = write(
        tmp_path,
        "import time\ndef half(x):\n    return x / 2\ndef hang(x):\n    time.sleep(x)\n",
    )
    half, hang = (load_object(f"{path}:{name}", "reward") for name in ("half", "hang"))
    assert call(half, 4, seconds=5, what="half") == 2
    with pytest.raises(UserError, match=r"mine.py:half fails: \S+mine.py, line 3: TypeError"):
        call(half, "a", seconds=5, what="mine.py:half")
    # One in C has no line of its own, and is named once; what it is wrapped in hides no line.
    with pytest.raises(UserError, match=r"^mine.py:f fails: TypeError: '<' not [^;]*; mend it$"):
        call(sorted, ["a", 1], seconds=5, what="mine.py:f")
    with pytest.raises(UserError, match=r"mine.py:part fails: \S+mine.py, line 3: TypeError"):
        call(partial(half, "a"), seconds=5, what="mine.py:part")
    began = time.perf_counter()
    with pytest.raises(UserError, match=r"has not returned after 0.1 seconds"):
        call(hang, 20, seconds=0.1, what="mine.py:hang")
    assert time.perf_counter() - began < 5

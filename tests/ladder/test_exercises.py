"""Exercises are written from the one source, and what is wrong with an answer is said."""

import doctest
import html
import inspect
import re

import numpy as np
import pytest

from ramp.cli import main
from ramp.ladder import exercises, lesson, mechanisms
from ramp.ladder.rungs import RUNGS, rung_below

ALL = [(rung, mistake) for rung in RUNGS for mistake in rung.lesson.mistakes]


def write(tmp_path, rung, line="", wrong=""):
    """An answer: the solution with one line changed, in the file that the exercise comes as."""
    path = exercises.write_exercise(rung.number, tmp_path / "answer.py")
    function = getattr(mechanisms, rung.lesson.mechanism)
    source = inspect.getsource(function)
    assert not line or line in source
    text = path.read_text()
    blank = exercises.blank_out(function)
    assert blank in text and "NotImplementedError" in blank
    path.write_text(text.replace(blank, source.replace(line, wrong)))
    return path


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_the_solution_is_right(rung, tmp_path, capsys):
    assert main(["ladder", "check", str(write(tmp_path, rung))]) == 0
    assert capsys.readouterr().out.startswith(f"right: rung {rung.number}, ")


@pytest.mark.parametrize(("rung", "mistake"), ALL, ids=lambda x: getattr(x, "hint", "")[:40])
def test_a_typical_mistake_gets_its_hint(rung, mistake, tmp_path, capsys):
    path = write(tmp_path, rung, mistake.line, mistake.wrong)
    assert main(["ladder", "check", str(path)]) == 1
    assert capsys.readouterr().out == f"not yet: {mistake.hint}\n"


def test_two_mistakes_at_once(tmp_path, capsys):
    rung = RUNGS[5]
    path = write(tmp_path, rung, " / np.sqrt(q.shape[1])", "")
    text = path.read_text().replace("np.where(future, -np.inf, scores)", "scores")
    path.write_text(text)
    assert main(["ladder", "check", str(path)]) == 1
    told = capsys.readouterr().out
    assert "the mask is missing" in told and "the scale is missing" in told


@pytest.mark.filterwarnings("default::RuntimeWarning")
def test_a_hint_stands_alone(tmp_path, capfd, recwarn):
    """Rows that are masked as a whole are nan, of which NumPy warns; only the hint is shown."""
    masks = "np.triu(np.ones(scores.shape, bool), 1)", "np.triu(np.ones(scores.shape, bool), 0)"
    path = write(tmp_path, RUNGS[5], *masks)
    # What the answer itself makes of such a row, and of an empty one.
    text = path.read_text().replace("    q, k, v =", "    np.zeros(0).mean()\n    q, k, v =")
    path.write_text(text)
    assert main(["ladder", "check", str(path)]) == 1
    said = capfd.readouterr()
    assert said.out.startswith("not yet: the mask is off by one") and said.err == ""
    assert not recwarn.list


@pytest.mark.parametrize(
    ("body", "sentence", "code"),
    [
        ("return x", "the first wrong one at [0, 0] is", 1),
        ("x @ wq", "it returns nothing", 1),
        ("return (x @ wv @ wo)[:1]", "of shape (1, 9)", 1),
        ("return np.full(x.shape, np.nan)", "nan", 1),
        ("return 'five'", "of shape ()", 1),
        ("x += 1\n    return x", "write `x = x + y`", 1),
        ("return x @ nonsense", "NameError: name 'nonsense' is not defined; mend it", 2),
        ("import time; time.sleep(20)", "has not returned after", 2),
        ("return (", "SyntaxError", 2),
        ("return x, x @ x.T", "it returns several arrays, or rows of several lengths", 1),
        ("return [row[: i + 1] for i, row in enumerate(x)]", "rows of several lengths", 1),
    ],
)
def test_what_nobody_thought_of(body, sentence, code, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exercises, "SECONDS", 0.3)
    path = exercises.write_exercise(5, tmp_path / "mine.py")
    text = path.read_text()
    path.write_text(text.replace('raise NotImplementedError("write this function")', body))
    assert main(["ladder", "check", str(path)]) == code
    said = capsys.readouterr()
    assert sentence in said.out + said.err


def test_values_without_a_gradient(tmp_path, capsys):
    """Rounded so little that values agree; training could not follow such a slope."""
    path = write(tmp_path, RUNGS[10], "x / size * gain", "(x / size * gain).round(7)")
    text = path.read_text().replace(".round(7)", ".astype(np.float32).astype(float)")
    path.write_text(text)
    main(["ladder", "check", str(path)])
    assert "its gradient is not" in capsys.readouterr().out


def write_own(tmp_path, number, body):
    """An answer with these lines."""
    path = exercises.write_exercise(number, tmp_path / "mine.py")
    text = path.read_text()
    path.write_text(text.replace('raise NotImplementedError("write this function")', body))
    return path


@pytest.mark.parametrize(("factor", "code"), [("", 0), (" * 2", 1)])
def test_a_loss_with_its_gradient_may_be_a_list(factor, code, tmp_path, capsys):
    path = write(tmp_path, RUNGS[2])
    path.write_text(f"""{path.read_text()}
right = learn_bigrams
def learn_bigrams(*args):
    loss, gradient = right(*args)
    return [loss{factor}, gradient]
""")
    assert main(["ladder", "check", str(path)]) == code
    said = capsys.readouterr().out
    assert said.startswith("right: ") if code == 0 else "for 0% of the numbers" in said


@pytest.mark.parametrize("value", ["'17'", "17.0", "None", "[17]", "True"])
def test_a_number_that_is_none_is_one_sentence(value, tmp_path, capsys):
    path = exercises.write_exercise(5, tmp_path / "mine.py")
    path.write_text(path.read_text().replace("EXERCISE = 5", f"EXERCISE = {value}"))
    assert main(["ladder", "check", str(path)]) == 2
    assert f"EXERCISE is {value}; write a number" in capsys.readouterr().err


def test_a_file_that_does_not_end_is_given_up(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exercises, "SECONDS", 0.3)
    (tmp_path / "mine.py").write_text("EXERCISE = 5\nimport time; time.sleep(20)\n")
    assert main(["ladder", "check", str(tmp_path / "mine.py")]) == 2
    assert "mine.py has not returned after 0.3 seconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "line", "wrong"),
    [
        (10, " + 1e-6", ""),
        (10, " + 1e-6)", ") + 1e-6"),
        (5, "np.sqrt(q.shape[1])", "2"),
        (13, "i // group", "i // 2"),
        (13, "i // group", "i // 3"),
        (13, "i // group", "i // k.shape[1]"),
    ],
)
def test_what_fits_some_inputs_alone_is_not_right(number, line, wrong, tmp_path, capsys):
    path = write(tmp_path, RUNGS[number], line, wrong)
    # 0 / 0, or a head that is not there, is refused in other words.
    assert main(["ladder", "check", str(path)]) != 0
    assert not capsys.readouterr().out.startswith("right: ")


PROVE = "return float(np.log(shares @ {}))"
KEEP = """rows = []
    for d, s in zip(digits, steps):
        last, good = d[0], True
        for a, b in zip(d[1:], s):
            good, last = good and (last + a) % 5 == b, b
        if good:
            rows.append(np.concatenate([d, s]))
    return np.{}(rows)"""


@pytest.mark.parametrize(
    ("number", "body"),
    [
        (
            23,
            "s = stakes[:, None]\n    "
            + PROVE.format("np.where(passed == 1, 1 + s * (1 / bar - 1), 1 - s).prod(axis=1)"),
        ),
        (
            23,
            "n = (passed == 1).sum()\n    "
            + PROVE.format("((1 + stakes * (1 / bar - 1)) ** n * (1 - stakes) ** (60 - n))"),
        ),
        (
            23,
            "c = np.ones(len(stakes))\n    for p in passed:\n"
            "        c = c * (1 + stakes * (1 / bar - 1) if p else 1 - stakes)\n    "
            + PROVE.format("c"),
        ),
        (21, KEEP.format("array")),
        (21, KEEP.format("stack")),
    ],
)
def test_what_is_1_or_0_or_a_digit_has_no_slope(number, body, tmp_path, capsys):
    assert main(["ladder", "check", str(write_own(tmp_path, number, body))]) == 0
    assert capsys.readouterr().out.startswith("right: ")


@pytest.mark.parametrize("number", [7, 8, 12])
def test_sizes_that_are_not_taken_from_the_arrays(number, tmp_path, capsys):
    """Right for whole weights; half of them, as one of two devices has, do not fit."""
    rung = RUNGS[number]
    path = write(tmp_path, rung)
    last = "assert wq.shape[1] % 8 == 0" if number == 7 else "assert w_up.shape[1] == 11"
    text = path.read_text()
    end = text.rindex("    return ")
    path.write_text(f"{text[:end]}    {last}\n{text[end:]}")
    assert main(["ladder", "check", str(path)]) != 0
    assert "AssertionError" in capsys.readouterr().err


def test_an_exercise_is_never_written_over_a_file(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("mine")
    assert main(["ladder", "exercise", "5", "--out", str(tmp_path / "mine.py")]) == 2
    assert "is there already; name another file with --out" in capsys.readouterr().err
    assert (tmp_path / "mine.py").read_text() == "mine"
    # The remedy works.
    assert main(["ladder", "exercise", "5", "--out", str(tmp_path / "other.py")]) == 0


def test_what_is_written_can_be_checked(tmp_path, capsys):
    """A name that the check would refuse is not written; what is no exercise is said as such."""
    for name in ("ex.txt", "ex"):
        assert main(["ladder", "exercise", "5", "--out", str(tmp_path / name)]) == 2
        assert "end the name with .py" in capsys.readouterr().err
        assert not (tmp_path / name).exists()
    (tmp_path / "ex.txt").write_text("EXERCISE = 5")
    for name in ("ex.txt", "none.py"):
        assert main(["ladder", "check", str(tmp_path / name)]) == 2
        assert f"{name} is no exercise; `ramp ladder exercise 5` writes" in capsys.readouterr().err
    assert main(["ladder", "exercise", "5", "--out", str(tmp_path / "my own.py")]) == 0
    assert f"`ramp ladder check '{tmp_path}/my own.py'`" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("99",), ("-1",), ("5", "--out", "/nowhere/at/all.py")])
def test_refusals(words, capsys):
    assert main(["ladder", "exercise", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_file_is_python_that_stands_alone(tmp_path):
    for rung in RUNGS:
        path = exercises.write_exercise(rung.number, tmp_path / f"{rung.number}.py")
        text = path.read_text()
        assert max(map(len, text.splitlines())) <= 100
        compile(text, path, "exec")


def test_an_exercise_points_at_nothing_that_is_not_in_its_file(tmp_path):
    elsewhere = re.compile(
        r"pictures?\b|that follows|the line ['`]|were kept|(row|table|words|lines|told|see) below|see `"
    )
    for rung in RUNGS:
        path = exercises.write_exercise(rung.number, tmp_path / f"{rung.number}.py")
        text = " ".join(path.read_text().split())
        assert not elsewhere.search(text), (rung.name, elsewhere.search(text))
        # It says that comments name the main steps.
        blank = exercises.blank_out(getattr(mechanisms, rung.lesson.mechanism))
        assert "\n    # " in blank, rung.name


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_what_the_page_prints_runs_by_itself(rung):
    """Copied into an empty file, with the inputs of its exercise and of its docstring."""
    (shown,) = re.findall(
        r'The mechanism, to run</h3><pre class="code">(.*?)</pre>',
        "".join(lesson.render_code(rung.lesson, rung.number)),
        re.DOTALL,
    )
    space = {}
    exec(html.unescape(shown), space)
    name = rung.lesson.mechanism
    args = exercises.draw_inputs(name, 0)
    given = exercises.copy_arrays(args)
    ours, printed = getattr(mechanisms, name)(*args), space[name](*given)
    assert exercises._agree([printed], [ours])
    (test,) = doctest.DocTestFinder().find(space[name], name, module=False, globs=space)
    assert test.examples and not doctest.DocTestRunner().run(test).failed


# Lessons
def test_every_rung_has_its_lesson():
    for rung in RUNGS:
        taught = rung.lesson
        assert taught.fails and taught.idea and taught.pays and taught.mechanism and taught.lines
        for line in taught.lines:
            assert len(lesson.read_lines(*line).splitlines()) > 1
        if 3 <= rung.number <= 11:
            assert len(taught.mistakes) >= 4


def test_a_word_is_explained_before_it_is_used():
    """The words of the note that nobody understood stand in the lesson where they are new."""
    known = set()
    for rung in RUNGS:
        known |= {word.split(" (")[0] for word in rung.lesson.words}
        if rung_below(rung) and rung.number == 5:
            assert {"token", "loss", "bits per byte", "embedding", "softmax", "query"} <= known
    assert len(known) > 40


def test_inputs_tell_sizes_apart():
    """T, D, F and the width of heads differ, so that one taken for another does not fit."""
    for seed in exercises.SEEDS:
        x, wq, *_ = exercises.draw_inputs("attend_heads", seed)
        _, up, _ = exercises.draw_inputs("feed_forward", seed)
        assert len({*x.shape, wq.shape[1], up.shape[1]}) == 4
        assert np.isfinite(x).all()

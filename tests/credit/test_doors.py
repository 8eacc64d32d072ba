"""A stranger's way, from another tool's model and a file of questions to the page; and runs from runs."""

import json
import re
import textwrap
from pathlib import Path

import jax
import pytest
import tiny

import ramp.credit
from ramp import cli, config
from ramp.config import Config, Text
from ramp.export.export import export
from ramp.rundir import RunDir
from ramp.tasks import protocol
from ramp.text.tokenizer import Tokenizer

README = Path(ramp.credit.__file__).with_name("README.md").read_text("utf-8")
SMALL = [
    *("--reinforce.train.steps", "2", "--reinforce.train.seq_len", "64"),
    *("--reinforce.num_prompts", "2", "--reinforce.group_size", "4"),
    *("--reinforce.max_new_tokens", "12", "--reinforce.num_eval_problems", "4"),
]


def ramp_(*words: object) -> int:
    # A run sets its mesh for good: here it ends with the run, for the tests that follow.
    with jax.set_mesh(tiny.mesh()):
        return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as another tool left it, questions, and what a README's reader would write."""
    folder = tmp_path_factory.mktemp("doors")
    c = config.resolve(
        Config(
            text=Text(tokenizer="bytes"), model=tiny.model(depth=1, vocab_size=264, context_len=96)
        )
    )
    with jax.set_mesh(tiny.mesh()):
        lm = tiny.lively(c.model)
        export(c, lm, Tokenizer.bytes_only(), {}, "finetune", folder / "model")
    rows = [{"question": f"What is {i}+{i}?", "answer": 2 * i} for i in range(80)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (source,) = re.findall(r"```py\n(# mine.py.*?)```", README, re.DOTALL)
    (folder / "mine.py").write_text(source)
    return folder


@pytest.fixture(scope="module")
def base(folder):
    pytest.importorskip("safetensors")
    assert ramp_("import", folder / "model", "--run", folder / "base", "--context", 96) == 0
    return folder / "base"


def readme_commands(heading: str) -> list[list[str]]:
    """The commands of a section of the README, of its first block."""
    (section,) = re.findall(rf"## {heading}\n.*?```sh\n(.*?)```", README, re.DOTALL)
    return [line.split() for line in section.splitlines()]


def test_three_commands_from_a_model_to_the_page(folder, monkeypatch, capsys):
    """Those of the README, with files of the README's reader: no edit of the package."""
    pytest.importorskip("safetensors")
    monkeypatch.chdir(folder)
    commands = readme_commands("Your own questions and reward")
    assert [words[:2] for words in commands] == [
        ["ramp", "import"],
        ["ramp", "reinforce"],
        ["ramp", "credit"],
    ]
    for words, more in zip(commands, ([], SMALL, ["--groups", 2]), strict=True):
        assert ramp_(*words[1:], *more) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "questions in the field 'question'" in said and "its last number" in said
    # Nobody judged a step: no figure says that somebody did.
    assert "mean reward" in said and "verified" not in said and "steps right" not in said
    page = (folder / "runs" / "mine" / "credit.html").read_text()
    assert "What is" in page
    report = json.loads((folder / "runs" / "mine" / "report.json").read_text())["reinforce"]
    known = {"right", "entropy", "reward", "reward_error"}
    assert report["steps"] == 2 and report["after"].keys() == known


def test_a_task_is_written_taught_and_compared(base, folder, monkeypatch, capsys):
    """The README's commands, with the file that the first of them prints."""
    monkeypatch.chdir(folder)
    show, teach, compare = readme_commands("A task of your own")
    assert show == ["python", "-m", "pydoc", protocol.__name__]
    example = protocol.__doc__.split("`ramp/tasks/doubling.py`:")[1].split("As tokens")[0]
    (folder / "task").mkdir()
    monkeypatch.chdir(folder / "task")
    (folder / "task" / "mine.py").write_text(textwrap.dedent(example))
    (folder / "task" / "runs").mkdir()
    (folder / "task" / "runs" / "base").symlink_to(base)
    # Two steps teach nothing: a reward that has a signal all the same.
    more = ["--reinforce.reward", "random", *SMALL]
    assert ramp_(*teach[1:], *more, "--reinforce.sft_steps", 2) == 0, capsys.readouterr().err
    assert ramp_(*compare[1:], *more) == 0, capsys.readouterr().err
    origins = [RunDir(folder / "task" / "runs" / name).origin() for name in "ab"]
    assert [origin and origin.stage for origin in origins][1] == "sft"


def test_an_edit_after_the_end_is_said_and_its_remedy_works(base, folder, monkeypatch, capsys):
    """Reward or questions: what is done is left, with a command that does it again."""
    monkeypatch.chdir(folder)
    reward, questions = folder / "length.py", folder / "edited.jsonl"
    reward.write_text("def length(records): return [float(len(r.text)) for r in records]\n")
    questions.write_text((folder / "questions.jsonl").read_text())
    how = ["--reinforce.prompts", questions, "--reinforce.reward", f"{reward}:length", *SMALL]
    how += ["--reinforce.method", "rloo"]
    run = folder / "edited"
    assert ramp_("reinforce", "--from", base, "--run", run, *how) == 0, capsys.readouterr().err
    assert ramp_("reinforce", run) == 0
    assert "reinforce: done before\n" in capsys.readouterr().out
    before = {file: file.read_text() for file in (reward, questions)}
    for file, text in before.items():
        file.write_text(text + "\n")
        assert ramp_("reinforce", run) == 0
        said = capsys.readouterr().out
        assert "as they were before an edit" in said
        file.write_text(text)
    assert ramp_("reinforce", run) == 0
    assert "before an edit" not in capsys.readouterr().out
    reward.write_text(before[reward].replace("float(", "0.5 * float("))
    (remedy,) = re.findall(r"`ramp (.*?)`", said)
    assert ramp_(*remedy.split()) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert ramp_("reinforce", run) == 0
    assert "reinforce: done before\n" in capsys.readouterr().out
    # What is done needs its files no more.
    reward.unlink()
    assert ramp_("reinforce", run) == 0
    assert "reinforce: done before\n" in capsys.readouterr().out


@pytest.mark.slow
def test_comparing_methods_on_one_base_and_on_what_came_of_it(base, folder, capsys):
    """Another method from the same weights, and another one from the run of the first.

    Half a minute: `uv run pytest -m slow tests/credit/test_doors.py`.
    """
    task = ["--reinforce.task", "chain", "--reinforce.reward", "random"]
    one, two, three = (folder / name for name in ("one", "two", "three"))
    how = ["--reinforce.method", "rloo", *task, *SMALL]
    assert ramp_("reinforce", "--from", base, "--run", one, *how) == 0, capsys.readouterr().err
    # With the whole state another method goes on where the first has ended.
    how = ["--reinforce.method", "step_local", "--reinforce.train.steps", "3"]
    code = ramp_("reinforce", "--from", one, "--run", folder / "on", *how)
    assert code == 0, capsys.readouterr().err
    # The run of the first is a base itself: with another method it begins from the weights.
    how = ["--reinforce.method", "step_local", "--reinforce.epochs", "2"]
    # 16 rollouts in two parts, over the eight devices of the tests.
    how += ["--reinforce.minibatches", "2", "--reinforce.num_prompts", "4"]
    code = ramp_("reinforce", "--from", one, "--run", two, "--from-weights", *how)
    assert code == 0, capsys.readouterr().err
    assert RunDir(two).origin().stage == "reinforce"
    how = ["--reinforce.method", "implicit", "--reinforce.reward", "random"]
    how += ["--reinforce.task", "addition", "--reinforce.level", "1"]
    code = ramp_("reinforce", "--from", f"{one}@2", "--run", three, "--from-weights", *how)
    assert code == 0, capsys.readouterr().err
    # With a head it is a base too; its optimizer's state is that of other parameters.
    four = folder / "four"
    how = ["--reinforce.method", "rloo", "--reinforce.reward", "random"]
    more = ["--run", folder / "five", "--reinforce.train.steps", "4"]
    assert ramp_("reinforce", "--from", three, *how, *more) == 2
    assert "add --from-weights" in capsys.readouterr().err
    code = ramp_("reinforce", "--from", three, "--run", four, "--from-weights", *how)
    assert code == 0, capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_cannot_learn_says_why_and_its_remedy_works(base, folder, capsys):
    """All rewards alike: exit code 2 and a sentence, not a loss of 0 and exit code 0.

    Half a minute: `uv run pytest -m slow tests/credit/test_doors.py`.
    """
    (folder / "zero.py").write_text(
        "def zero(records): return [0.0] * len(records)\n"
        "def lines(records): return [[float(len(s)) for s in r.steps] for r in records]\n"
    )
    words = ["reinforce", "--from", base, "--reinforce.task", "chain", *SMALL]
    zero = ["--reinforce.method", "rloo", "--reinforce.reward", f"{folder}/zero.py:zero"]
    assert ramp_(*words, "--run", folder / "zero", *zero) == 2
    err = capsys.readouterr().err
    assert "no reward told one rollout of a group from another in 2 iterations" in err
    assert "Traceback" not in err
    # Entropy acts where no reward does.
    control = ["--reinforce.reward", "none", "--reinforce.keep_all_groups", "true"]
    control += ["--reinforce.entropy_coef", "-0.1", "--reinforce.method", "rloo"]
    assert ramp_(*words, "--run", folder / "none", *control) == 0, capsys.readouterr().err

"""Rivals: a stage done once more in another way, from the same weights, beside the run."""

import json

import jax
import pytest
import tiny
from whole_run import CONFIG, make_texts

from ramp import cli
from ramp.config import Config
from ramp.errors import UserError
from ramp.rivals import list_rivals, parse_rival
from ramp.train.checkpoint import Checkpoints

STAGES = """stages = ["prepare", "pretrain", "finetune", "reinforce", "synthesize"]
rivals = [
  "outcome: reinforce --reinforce.method rloo",
  "naive: synthesize --synthesize.policy replace",
]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rivals")
    make_texts(directory / "texts")
    file = directory / "tiny.toml"
    # Trials, preferences and samples are no part of this.
    rest = CONFIG.format(texts=directory / "texts").split("\n", 2)[2]
    rest = rest.replace('tasks = ["addition/1"]', "tasks = []")
    file.write_text(STAGES + rest)
    with jax.set_mesh(tiny.mesh()):
        assert cli.main(["run", str(file), "--run", str(directory / "run")]) == 0
    return directory / "run"


def test_a_rival_is_a_run_from_the_weights_of_the_stage(run):
    report = json.loads((run / "rivals/outcome/report.json").read_text())
    own = json.loads((run / "report.json").read_text())
    assert report["reinforce"]["method"] == "rloo"
    assert own["reinforce"]["method"] == "step_local"
    # The same weights: before anything is learned both solve as much.
    assert report["reinforce"]["before"] == own["reinforce"]["before"]
    origin = json.loads((run / "rivals/outcome/origin.json").read_text())
    assert origin["stage"] == "sft"
    naive = json.loads((run / "rivals/naive/report.json").read_text())["synthesize"]
    assert naive["policy"] == "replace"
    assert naive["first_bpb"] == own["synthesize"]["first_bpb"]


def test_asked_again_nothing_is_done_again(run, capsys):
    before = {p: p.stat().st_mtime_ns for p in run.glob("rivals/*/checkpoints/*/*")}
    with jax.set_mesh(tiny.mesh()):
        assert cli.main(["run", str(run)]) == 0
    assert before == {p: p.stat().st_mtime_ns for p in run.glob("rivals/*/checkpoints/*/*")}
    assert "reinforce: done before" in capsys.readouterr().out
    assert Checkpoints(run / "rivals/outcome/checkpoints/reinforce").steps()


def test_the_page_sets_them_beside_the_run(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "outcome" in text and "naive" in text
    assert "How well it reads" in text and "Credit for every step" in text
    assert "How reliable it is" not in text  # no trials, no promise


def test_a_run_that_began_from_another_has_rivals_too(run, tmp_path, capsys):
    file = run.parent / "tiny.toml"
    words = ["run", str(file), "--from", str(run), "--stages", "synthesize"]
    with jax.set_mesh(tiny.mesh()):
        assert cli.main([*words, "--from-stage", "pretrain", "--run", str(tmp_path / "new")]) == 0
    naive = json.loads((tmp_path / "new/rivals/naive/report.json").read_text())["synthesize"]
    first = json.loads((run / "rivals/naive/report.json").read_text())["synthesize"]
    assert naive["final_bpb"] == first["final_bpb"]
    # Its reinforcement goes on with a whole state: where that began is in the other run alone.
    words = ["run", str(file), "--from", str(run), "--stages", "reinforce"]
    words += ["--reinforce.train.steps", "3", "--run", str(tmp_path / "more")]
    with jax.set_mesh(tiny.mesh()):
        assert cli.main(words) == 2
        assert "leave its rivals out with --rivals []" in capsys.readouterr().err
        assert cli.main([*words, "--rivals", "[]"]) == 0


def test_a_stage_that_begins_anew_takes_its_rivals_with_it(run, capsys):
    """They would stand beside it with other weights."""
    weights = run / "rivals/naive/checkpoints"
    before = weights.stat().st_ino
    with jax.set_mesh(tiny.mesh()):
        assert cli.main(["run", str(run), "--stages", "synthesize", "--force"]) == 0
    assert weights.stat().st_ino != before
    assert list(run.glob("replaced/*/rivals/naive")) and not list(run.glob("replaced/*/rivals/o*"))
    assert "rival of reinforce" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("reinforce --reinforce.method rloo", "write NAME: STAGE FLAGS"),
        ("a/b: reinforce", "write NAME: STAGE FLAGS"),
        ("x: prepare", "write NAME: STAGE FLAGS"),
        ("x:", "write NAME: STAGE FLAGS"),
        ("x: reinforce --reinforce.task What's", "no closing quotation"),
    ],
)
def test_what_is_no_rival_is_one_sentence(line, message):
    with pytest.raises(UserError, match=message):
        parse_rival(line)


def test_flags_of_a_rival_are_checked_before_the_run():
    wrong = Config(rivals=("x: reinforce --reinforce.metod rloo",))
    with pytest.raises(UserError, match=r"reinforce\.method"):
        list_rivals(wrong, ("reinforce",))
    twice = Config(rivals=("x: reinforce", "x: synthesize"))
    with pytest.raises(UserError, match="twice"):
        list_rivals(twice, ("reinforce",))


def test_rivals_of_stages_that_do_not_run_stay_out():
    c = Config(rivals=("x: reinforce", "y: synthesize"))
    assert [rival.name for rival in list_rivals(c, ("synthesize",))] == ["y"]

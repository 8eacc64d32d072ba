"""What opens the page of a run: a sentence, a number and a picture for each promise."""

import json
import math
import re

import pytest

from ramp.reporting.promises import list_promises
from ramp.reporting.report import update_report, write_report
from ramp.reporting.run_files import read_run


def accuracy(before: float, after: float, method: str) -> dict:
    return {
        "before": {"right": 0.9, "verified": before},
        "after": {"right": 0.9, "verified": after},
        "problems": 400,
        "task": "addition",
        "level": 2,
        "method": method,
    }


def generations(*bits: float) -> dict:
    made = [{"generation": i, "bpb": b, "first_bpb": bits[0]} for i, b in enumerate(bits[1:], 1)]
    own = {"distinct_2": {"value": 0.125 * len(made), "null": 0.5, "z": -3.0}}
    return {
        "generations": made,
        "generation": len(made),
        "first_bpb": bits[0],
        "final_bpb": bits[-1],
        "own_samples": own,
    }


def write_run(path, **stages):
    path.mkdir(parents=True)
    for stage, figures in stages.items():
        update_report(path, stage, figures)


@pytest.fixture
def run(tmp_path):
    forecast = {"addition/2": "addition/2: 80% today."}
    record = {"count": 6, "covered80": 0.5}
    write_run(
        tmp_path / "run",
        eval={"val_bpb": 1.4, "baselines": {"kn5": 1.5, "xz": 1.9}},
        finetune={"forecast": forecast, "record": record},
        reinforce=accuracy(0.25, 0.5, "step_local"),
        synthesize=generations(1.7, 1.69, 1.68),
    )
    lines = [
        {"stage": "finetune", "step": i, "nines/addition/2": i / 40, "nines/addition/2, longer": 0}
        for i in (8, 16, 32)
    ]
    (tmp_path / "run/metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write_run(tmp_path / "run/rivals/outcome", reinforce=accuracy(0.25, 0.375, "rloo"))
    write_run(tmp_path / "run/rivals/naive", synthesize=generations(1.7, 1.75, 1.8))
    return tmp_path / "run"


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_each_promise_has_a_number_a_sentence_and_the_rivals(run):
    text, credit, own, reliable = map(words, list_promises(read_run(run)))
    assert "1.400 bits per byte of held-out text: better than Kneser-Ney 5 (1.500)" in text
    # Of a difference of two shares of 400, 1.96 standard errors.
    error = 196 * math.sqrt((0.25 * 0.75 + 0.5 * 0.5) / 400)
    assert f"+25 ± {error:.0f} points of 400 held-out problems" in credit
    assert "25% were solved with every step right before reinforcement, 50% after it" in credit
    assert "outcome 38% (-12 ± 7 points)" in credit
    assert (
        "-0.0200 bits per byte" in own
        and "naive 1.7000 → 1.8000 (pairs of tokens in its samples: 25% differ, 50% before, z -3.0)"
        in own
    )
    assert "80% of trials" in reliable and "addition/2: 80% today." in reliable
    assert "Of 6 forecasts made on the way, 80% intervals covered 50%." in reliable


def test_what_stands_for_the_first_model_and_for_what_was_taught_wrong_is_said(run):
    update_report(run, "synthesize", generations(1.7, 1.8) | {"generation": 0, "own_samples": {}})
    update_report(
        run, "finetune", {"mistakes": ["addition/2: a carry is forgotten 80% of the time"]}
    )
    credit, own, *_ = map(words, list_promises(read_run(run))[1:])
    assert "guarded 1.7000 → 1.8000 (the first model is handed back)" in own
    assert "taught it wrong on purpose (addition/2: a carry is forgotten 80% of the time)" in credit


def test_a_run_that_has_done_less_promises_less(run):
    for stage in ("reinforce", "synthesize", "finetune"):
        report = json.loads((run / "report.json").read_text())
        report.pop("crc", None)
        update_report(run, stage, dict.fromkeys(report[stage], None))
    assert len(list_promises(read_run(run))) == 1


def test_a_loss_of_points_or_bits_is_shown_as_one(run):
    figures = accuracy(0.5, 0.25, "step_local")
    figures["before"]["steps"], figures["after"]["steps"] = 0.75, 0.5
    update_report(run, "reinforce", figures)
    update_report(run, "synthesize", generations(1.7, 1.75, 1.8))
    _, credit, own, _ = map(words, list_promises(read_run(run)))
    assert "-25 ±" in credit and "right steps 75% and 50% (-25 points)" in credit
    assert own.startswith("Its own samples +0.1000")


def log(path, *records: dict) -> None:
    lines = [json.dumps({"stage": "reinforce"} | record) for record in records]
    (path / "metrics.jsonl").write_text("\n".join(lines))


def test_where_the_start_is_kept_the_page_says_what_training_did(run):
    """On the problems that chose it; no interval of a model with itself."""
    log(
        run,
        {"step": 0, "rl/verified": 0.5, "rl/steps": 0.75},
        {"step": 10, "rl/verified": 0.25, "rl/steps": 0.5},
        {"step": 20, "rl/verified": 0.125, "rl/steps": 0.25},
    )
    update_report(run, "reinforce", accuracy(0.25, 0.25, "step_local") | {"best_step": 0})
    update_report(run / "rivals/outcome", "reinforce", accuracy(0.25, 0.25, "rloo"))
    _, credit, *_ = map(words, list_promises(read_run(run)))
    assert "Credit for every step -38 points of problems to choose with" in credit
    assert (
        "solved with every step right: 50% at the start, 12% at step 20, the last, "
        "25% at step 10, the best of the others" in credit
    )
    assert (
        "right steps 75% and at last 25%; no step was chosen over the start, which is kept"
        in credit
    )
    assert "it solves 25% of 400 held-out problems" in credit and "the start, kept" in credit
    assert "outcome 25% (+0 ±" in credit
    # A rival that has kept the start too is the same model.
    update_report(run / "rivals/outcome", "reinforce", {"best_step": 0})
    _, credit, *_ = map(words, list_promises(read_run(run)))
    assert "outcome 25%" in credit and "±" not in credit
    # Chosen by a reward of one's own: what rose beside it is no gain of the start.
    log(run, {"step": 0, "rl/verified": 0.5}, {"step": 10, "rl/verified": 0.75})
    _, credit, *_ = map(words, list_promises(read_run(run)))
    assert "Credit for every step +0 points of problems" in credit
    assert "50% at the start, 75% at step 10" in credit


def test_links_reach_sections_of_the_page(run):
    page = write_report(run).read_text()
    anchors = set(re.findall(r'href="#(\w+)"', page))
    assert {"reinforce", "synthesize", "finetune"} <= anchors
    assert {"reinforce", "synthesize", "finetune"} <= set(re.findall(r'section id="(\w+)"', page))


def test_answers_that_stages_cost_are_named(tmp_path):
    """Of a model that others made, which has no figure of how it reads."""
    rows = [
        {"model": model, "asked": asked, "different": different, "change": change}
        | {"example": f"a {model} said"}
        for model, asked, different, change in (
            ("origin", "plain", 9.5, 0.0),
            ("origin", "seeds", 9.9, 0.4),
            ("finetune", "plain", 5.25, -4.25),
            ("reinforce", "plain", 6.0, -3.5),
        )
    ]
    path = tmp_path / "run"
    write_run(path, finetune={"chat_nats": 1.0}, diversity={"answers": rows})
    (section,) = list_promises(read_run(path))
    said = words(section)
    assert "How many answers it has" in said
    assert "-4.2" in said and "(finetune)" in said
    assert "a finetune said" in said
    assert "9.9" not in said  # another way of asking is no stage


def test_where_nobody_verifies_the_reward_is_what_was_gained(tmp_path):
    figures = {"before": {"reward": -0.5, "reward_error": 0.03, "right": 0.25}}
    figures["after"] = {"reward": 0.25, "reward_error": 0.04, "right": 0.5}
    figures |= {"problems": 64, "prompts": "q.jsonl", "method": "rloo", "reward": "mine.py:reward"}
    write_run(tmp_path / "run", prepare={}, reinforce=figures)
    # And no word of text that nobody asked about.
    (section,) = map(words, list_promises(read_run(tmp_path / "run")))
    assert "+0.750 ± 0.098" in section
    assert "-0.500 before reinforcement, 0.250 after it" in section
    assert "right answers 25% and 50%" in section and "64 held-out problems (q.jsonl)" in section
    log(tmp_path / "run", {"step": 0, "rl/reward": 0.5}, {"step": 2, "rl/reward": 0.25})
    update_report(tmp_path / "run", "reinforce", {"best_step": 0, "after": figures["before"]})
    *_, section = map(words, list_promises(read_run(tmp_path / "run")))
    assert "What the reward gained -0.250 of the mean reward (mine.py:reward)" in section
    assert "0.500 at the start, 0.250 at step 2, the last; no step was chosen" in section
    assert "it has -0.500 on 64 held-out problems" in section and "±" not in section


def test_none_of_few_is_not_never(tmp_path):
    write_run(tmp_path / "run", reinforce=accuracy(0, 0, "rloo") | {"problems": 64})
    (section,) = map(words, list_promises(read_run(tmp_path / "run")))
    assert "+0 ± 4" in section

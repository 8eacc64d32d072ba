"""Jobs of two and four real processes: struck anywhere, gone on with by another number, they are the run of one process.

The proofs marked slow, about five minutes: `uv run pytest -m slow tests/test_hosts.py -s`.
"""

import json
import random
import signal
from pathlib import Path

import pytest
from hosts import Life, Strike, launch, write_config

from ramp.interrupts import EXIT_PREEMPTED


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("xla")))
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("tiny"))


def flags(steps: int, eval_every: int, save_every: int) -> list:
    return [
        "--pretrain.steps",
        steps,
        "--pretrain.eval_every",
        eval_every,
        "--pretrain.save_every",
        save_every,
    ]


def lines(run: Path, tag: str) -> list[tuple[int, float]]:
    """Every line of pretraining that has the tag, in the order of the file."""
    every = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        (line["step"], line[tag]) for line in every if line["stage"] == "pretrain" and tag in line
    ]


def saved(run: Path) -> list[int]:
    return sorted(
        int(p.name) for p in (run / "checkpoints" / "pretrain").iterdir() if p.name.isdigit()
    )


def stops(life: Life) -> int:
    """The step all processes of a job stopped at, saved."""
    assert set(life.codes) == {EXIT_PREEMPTED}, life.said
    assert len(life.stopped_at) == len(life.codes) and len(set(life.stopped_at)) == 1, life.said
    assert len(set(life.stopped_in)) == 1, life.stopped_in
    return life.stopped_at[0]


def ends(life: Life) -> None:
    assert set(life.codes) == {0}, life.said


def assert_same_run(parts: Path, lives: list[Life], whole: Path, alone: Life) -> float:
    """Every step once, every batch the same rows, every evaluation made; the largest difference of losses and scores."""
    for life in lives:
        assert life.rows.items() <= alone.rows.items()
    assert set().union(*(life.rows for life in lives)) == set(alone.rows)
    worst = 0.0
    for tag in ("train/loss", "eval/val_bpb"):
        got, want = lines(parts, tag), lines(whole, tag)
        assert [step for step, _ in got] == [step for step, _ in want]
        worst = max(worst, *(abs(a - b) for (_, a), (_, b) in zip(got, want, strict=True)))
    assert worst < 1e-5
    return worst


def test_two_processes_killed_stopped_and_gone_on_with_by_one(config, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = ["run", config, *flags(20, 10, 3)]
    alone = launch(tmp_path / "0", 1, 1, [*words, "--run", whole])
    ends(alone)
    across = [*words, "--run", parts, "--mesh.model", 2]

    killed = launch(
        tmp_path / "1", 2, 2, across, Strike(signal.SIGKILL, 1, "train", steps=8, delay=0.1)
    )
    assert killed.codes[1] == -signal.SIGKILL and killed.codes[0] != 0, killed.said
    kept = saved(parts)
    assert kept and max(kept) % 3 == 0

    stopped = launch(tmp_path / "2", 2, 2, across, Strike(signal.SIGTERM, 1, "sample"))
    assert stopped.first == max(kept)  # nothing that was saved is done again
    assert stops(stopped) == 10 == max(saved(parts))
    assert set(stopped.stopped_in) == {"sample"}
    assert not lines(
        parts, "eval/val_bpb"
    )  # its samples are missing, so this evaluation is made up for

    last = launch(tmp_path / "3", 1, 1, [*words, "--run", parts])
    ends(last)
    assert last.first == 10
    assert_same_run(parts, [killed, stopped, last], whole, alone)
    for _, share in lines(parts, "time/goodput"):
        assert 0 < share < 1


def test_a_mistake_that_only_process_0_sees_stops_both(config, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "letter.txt").write_text("dear diary")
    refused = launch(tmp_path / "notes", 2, 1, ["run", config, "--run", run], timeout=60)
    assert refused.codes == [2, 2], refused.said
    assert "not empty" in refused.logs[0] and "process 0" in refused.logs[1]


# ---------------------------------------------------------------------------------------------------- long proofs
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_processes_killed_and_gone_on_with_by_two_one_and_four(config, tmp_path):
    whole, parts, draw = tmp_path / "whole", tmp_path / "parts", random.Random(3)
    words = ["run", config, *flags(48, 12, 4)]
    alone = launch(tmp_path / "0", 1, 1, [*words, "--run", whole])
    ends(alone)
    lives = []
    for processes, devices, rank, mesh in [
        (4, 1, 2, 2),
        (2, 2, 0, 1),
        (1, 1, 0, 1),
        (4, 2, 3, 2),
        (2, 1, 1, 1),
    ]:
        before = max(saved(parts), default=0) if lives else 0
        strike = Strike(
            signal.SIGKILL, rank, "train", steps=draw.randint(5, 8), delay=draw.uniform(0, 0.3)
        )
        notes = tmp_path / str(len(lives) + 1)
        life = launch(
            notes, processes, devices, [*words, "--run", parts, "--mesh.model", mesh], strike
        )
        assert life.codes[rank] == -signal.SIGKILL and 0 not in life.codes, life.said
        assert life.first == before
        lives.append(life)
        print(
            f"{processes} x {devices}: from step {life.first}, rank {rank} killed; saved {saved(parts)}; {life.codes}"
        )
    before = max(saved(parts))
    lives.append(launch(tmp_path / "last", 4, 1, [*words, "--run", parts]))
    ends(lives[-1])
    assert lives[-1].first == before
    print(
        f"seconds lost, as told: {lines(parts, 'time/lost')[-1][1]:.1f}; goodput {lines(parts, 'time/goodput')[-1][1]:.2f}"
    )
    print(
        f"largest difference of a loss or score: {assert_same_run(parts, lives, whole, alone):.1e}"
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("phase", ["train", "eval", "sample"])
def test_sigterm_to_one_of_two_stops_both_ten_of_ten_times(config, tmp_path, phase):
    """Each time going on from where the last one ended; then the rest, and all of it is one run."""
    draw, lives = random.Random(phase), []
    words = ["run", config, *(flags(400, 400, 400) if phase == "train" else flags(24, 4, 50))]
    alone = launch(tmp_path / "alone", 1, 1, [*words, "--run", tmp_path / "whole"])
    ends(alone)
    parts = tmp_path / "parts"
    for i in range(10):
        # In every second start the evaluation that is owed is struck again, before any step.
        steps = draw.randint(1, 3) if phase == "train" else 1 - i % 2
        strike = Strike(signal.SIGTERM, draw.randrange(2), phase, steps, draw.uniform(0, 0.6))
        life = launch(tmp_path / str(i), 2, 1, [*words, "--run", parts], strike)
        assert stops(life) == max(saved(parts))
        assert set(life.stopped_in) == {phase}
        assert not life.rows or life.first == (max(lives[-1].stopped_at) if i else 0)
        lives.append(life)
        print(
            f"{phase} {i + 1}: rank {strike.rank} struck, both stopped at step {stops(life)}",
            flush=True,
        )
    lives.append(launch(tmp_path / "last", 2, 1, [*words, "--run", parts]))
    ends(lives[-1])
    worst = assert_same_run(parts, lives, tmp_path / "whole", alone)
    print(f"{phase}: 10 of 10; largest difference of a loss or score {worst:.1e}")

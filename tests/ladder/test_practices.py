"""The rungs beyond pretraining: the task, the models on it, and what their results depend on."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from ramp.cli import main
from ramp.config import Config
from ramp.credit.loss import token_logps
from ramp.ladder import generations, mechanisms, practices, reliability, run, sums
from ramp.ladder import post_training as post
from ramp.ladder.learn import ProbeResult
from ramp.ladder.practices import PRACTICES
from ramp.ladder.rungs import RUNGS, select_rung
from ramp.rundir import RunDir

FIRST = 18  # of these rungs


@pytest.fixture(autouse=True)
def on_a_mesh():
    with jax.set_mesh(tiny.mesh()):
        yield


@pytest.fixture
def short(monkeypatch):
    """Every course of training cut to a few steps, and nothing kept of it afterwards."""
    for name in ("READ_STEPS", "ANSWER_STEPS", "SLIP_STEPS", "UPDATES"):
        monkeypatch.setattr(post, name, 2)
    monkeypatch.setattr(post, "NUM_PROMPTS", 4)
    monkeypatch.setattr(post, "HELD_OUT", 16)
    monkeypatch.setattr(practices, "write_accepted", lambda n, seed: np.zeros((3, 5, 2 * n), int))
    monkeypatch.setattr(generations, "FIRST_STEPS", 2)
    monkeypatch.setattr(generations, "STEPS", 2)
    monkeypatch.setattr(generations, "GENERATIONS", 2)
    caches = (post.read_text, practices.imitate_slips, practices.reinforce)
    yield
    for cache in caches:
        cache.cache_clear()


# The task
def test_steps_are_sums_of_what_was_stated():
    digits = np.array([3, 4, 1, 0])
    assert sums.solve(digits).tolist() == [2, 3, 3]
    assert sums.judge_steps(digits, np.array([2, 3, 3])).tolist() == [True] * 3
    # One slip is one wrong step; what follows from it is right.
    assert sums.judge_steps(digits, np.array([3, 4, 4])).tolist() == [False, True, True]
    # Back to the right answer by luck: two wrong steps.
    assert sums.judge_steps(digits, np.array([2, 4, 3])).tolist() == [True, False, False]
    # A sign is no number.
    assert not sums.judge_steps(digits, np.array([sums.IS, 1, 1]))[:2].any()


def test_a_teacher_slips_as_often_as_is_said():
    rng = np.random.default_rng(0)
    digits = sums.draw_digits(rng, 5, 4000)
    right = sums.judge_steps(digits, sums.slip(rng, digits, 0.8))
    np.testing.assert_allclose(right.mean(axis=0), 0.2, atol=0.03)


def test_problems_can_be_drawn_apart_from_others():
    rng = np.random.default_rng(0)
    others = sums.draw_digits(rng, 4, 256)
    digits = sums.draw_apart(rng, 4, 4096, others)
    assert digits.shape == (4096, 4)
    left = sums.BASE**4 - len(np.unique(others, axis=0))
    assert len(np.unique(digits, axis=0)) == left  # all others, and as likely as each other
    assert not set(map(tuple, digits.tolist())) & set(map(tuple, others.tolist()))
    every = np.stack(np.divmod(np.arange(25), 5), axis=1)
    with pytest.raises(ValueError, match="take more digits"):
        sums.draw_apart(rng, 2, 3, every)


@pytest.mark.parametrize("n", [4, 8])
def test_nothing_that_is_graded_is_among_own_problems(n, monkeypatch):
    """All that rung 21 learns from, the few solved problems and its own, seed by seed."""
    seen = []

    def record(rows, *args, **kwargs):
        seen.append(rows)
        raise StopIteration  # what comes behind is training

    monkeypatch.setattr(practices, "reinforce", lambda *a: practices.Taught(None, [], []))
    monkeypatch.setattr(post, "sample", lambda lm, digits, *a, **k: sums.solve(digits))
    monkeypatch.setattr(post, "repeat", record)
    for seed in (0, 41):
        with pytest.raises(StopIteration):
            practices.begin_anew(True, n, seed)
        graded = post.draw_held_out(seed, n)
        assert seen[-1].shape == (3, practices.NUM_FEW + practices.NUM_OWN, 2 * n)
        for rows, problems in zip(seen[-1], graded, strict=True):
            shared = set(map(tuple, rows[:, :n].tolist())) & set(map(tuple, problems.tolist()))
            assert not shared


# Asking
def test_answers_are_what_the_model_says_of_the_whole_row():
    """Step by step, as a solution is written, against all places of the finished row at once."""
    lm, m = post.init(3), post.make_config(1, 1.0).model
    digits = post.draw_held_out(3, 4)[:, :8]
    steps = post.sample(lm, digits, 0, 0, temperature=0.0)
    rows = sums.write_rows(digits, sums.ASK, steps)
    for s in range(len(rows)):
        own = jax.tree.map(lambda a, s=s: a[s], lm)
        best = np.asarray(tiny.logits(m, own, rows[s].astype(np.int32))).argmax(axis=-1)
        assert np.array_equal(best[:, 4:7], steps[s])


def test_samples_follow_the_probabilities():
    lm, m = post.init(0), post.make_config(1, 1.0).model
    digits = np.tile(np.array([1, 2, 3]), (3, 8_000, 1))
    drawn = post.sample(lm, digits, 7, 1, temperature=1.0)[0, :, 0]
    own = jax.tree.map(lambda a: a[0], lm)
    row = np.array([[1, 2, 3, sums.ASK]], np.int32)
    said = np.asarray(tiny.logits(m, own, row))[0, -1]
    wanted = np.exp(said - said.max())
    wanted /= wanted.sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=sums.VOCAB) / 8_000, wanted, atol=0.02)


def test_rollouts_begin_at_a_ratio_of_one():
    """What the sampler gave each token is what the loss says of it before the update."""
    lm, m = post.init(1), post.make_config(1, 1.0).model
    batch = post.reinforce("rloo", post.reward_share, 1, 3).make_batch(1, lm)
    own = jax.tree.map(lambda a: a[2], lm)
    logps, _ = token_logps(m, own, batch["tokens"][2], batch["targets"][2])
    np.testing.assert_allclose(batch["old"][2], logps, atol=1e-5)
    # The first step is the fourth token of the row, and so the third target.
    assert batch["weights"][0, 0].tolist() == [0, 0, 0, 1, 1]
    assert not np.asarray(batch["advantage"])[:, :, :3].any()


def test_credit_is_that_of_the_mechanisms():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, (3, 2 * post.GROUP, 4)).astype(np.float32)
    reward = post.reward_share(right)
    whole = np.asarray(post.assign_credit("rloo", reward, right))
    steps = np.asarray(post.assign_credit("step_local", reward, right))
    for s in range(3):
        wanted = mechanisms.compare_with_others(reward[s].reshape(2, post.GROUP)).ravel()
        np.testing.assert_allclose(whole[s, :, 5:], np.tile(wanted[:, None], 4), atol=1e-6)
        groups = right[s].reshape(2, post.GROUP, 4)
        wanted = np.concatenate([mechanisms.compare_steps(group) for group in groups])
        np.testing.assert_allclose(steps[s, :, 5:], wanted, atol=1e-6)


# Generations
def test_kinds_have_their_probabilities():
    n = 24
    lm = post.init(0, generations.count_tokens(n))
    m = post.make_config(1, 1.0, generations.count_tokens(n)).model
    probability = np.asarray(generations.measure_kinds(m, n, lm))
    assert probability.shape == (3, n) and (probability.sum(axis=1) < 1).all()
    rows = generations.write_rows(n, np.arange(n)).astype(np.int32)
    own = jax.tree.map(lambda a: a[1], lm)
    logits = np.asarray(tiny.logits(m, own, rows[:, :-1]))
    logps = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    wanted = [logps[i, 0, row[1]] + logps[i, 1, row[2]] for i, row in enumerate(rows)]
    np.testing.assert_allclose(np.log(probability[1]), wanted, atol=1e-4)


def test_kinds_are_drawn_as_often_as_they_are_likely():
    real = np.tile(generations.list_probabilities(8), (3, 1))
    kinds = generations.draw_kinds(0, 1, real, 30_000)
    np.testing.assert_allclose(np.bincount(kinds[2]) / 30_000, real[0], atol=0.01)
    assert generations.find_kept(8, real * [[1], [0.5], [0.1]]) == [1, 1, 0]


def test_the_guard_hands_back_no_model_that_lost_kinds(short, monkeypatch):
    """A generation that forgets half of the kinds is dropped, one that does not is kept."""
    n = 16
    real = generations.list_probabilities(n)
    worse = np.where(np.arange(n) < 8, 0.01, 1.99) * real

    def forget(m, n, lm):
        generation = lm["generation"]
        return np.stack([worse if generation and s < 2 else real for s in range(3)])

    def count(lm, n, kinds, steps, key):
        return {"generation": np.full(3, key[1])}

    monkeypatch.setattr(generations, "init", lambda *a: {})
    monkeypatch.setattr(generations, "learn", count)
    monkeypatch.setattr(
        generations,
        "measure_kinds",
        lambda m, n, lm: forget(m, n, {"generation": lm["generation"].max()}),
    )
    guarded = generations.run_generations(0.0, True, n, 0)
    assert guarded.accuracy == [[1, 1, 1]] * 3
    # Of two models both generations are dropped, the second with a tenth of real rows.
    real_rows = round(0.1 * generations.NUM_ROWS)
    assert guarded.notes == (
        "The guard dropped 2, 2, 0 models and ended 2 of 3 loops; after the first model they read "
        f"{real_rows}, {real_rows}, 0 real rows."
    )
    alone = generations.run_generations(0.0, False, n, 0)
    assert alone.accuracy[-1] == [0.5, 0.5, 1] and not alone.notes


# Reliability
def test_a_demonstration_tells_little():
    result = reliability.judge_systems(reliability.judge_demo, 200, 0)
    chance = (0.999**10 + 1 - 0.98**10) / 2
    np.testing.assert_allclose(result.accuracy[-1], chance, atol=0.1)


def test_proof_never_ships_what_is_below_the_bar_more_often_than_is_said():
    rng = np.random.default_rng(5)
    trials = rng.random((400, 1000)) < reliability.BAR
    assert np.mean([reliability.judge_proof(passed) for passed in trials]) <= 0.05
    assert reliability.judge_proof(np.ones(366)) and not reliability.judge_proof(np.ones(365))


# The climb
@pytest.mark.parametrize("number", range(FIRST, FIRST + 6))
def test_a_rung_is_climbed_and_kept(number, short, tmp_path, monkeypatch, capsys):
    words = ["ladder", "--only", str(number), "--run", str(tmp_path), "--scale", "0.5"]
    before = jax.sharding.get_mesh()
    assert main(words) == 0
    practice = PRACTICES[RUNGS[number].probe]
    said = capsys.readouterr().out
    assert f"{number} {RUNGS[number].name}" in said and "earn" in said
    page = (tmp_path / "ladder.html").read_text()
    assert all(name in page for name in (*practice.sides, *practice.more, RUNGS[number].name))
    # The text was not read for a rung that needs none.
    assert not any((tmp_path / "data").iterdir())
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "ladder").glob("*.json")}
    assert len(files) == 2 + len(practice.more)
    # What is done is not done again, unless something that it depends on has changed.
    assert main(words) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "ladder").glob("*.json")} == files
    monkeypatch.setattr(post, "SLIPS", 0.7)
    assert main(words) == 0
    assert len(list((tmp_path / "ladder").glob("*.json"))) == 2 * len(files)
    jax.set_mesh(before)


def test_what_is_asked_and_said_can_be_read():
    practice = PRACTICES["long solutions"]
    steps = np.array([[2, 3, 3], [sums.ASK, 0, 4]])
    asked, other = sums.number(steps).tolist()
    assert practice.name_answer(4, asked) == "2 3 3" and practice.name_answer(4, other) == "? 0 4"


def test_every_rung_beyond_pretraining_has_its_practice():
    beyond = [rung for rung in RUNGS if rung.post_training]
    assert [rung.number for rung in beyond] == list(range(FIRST, len(RUNGS)))
    assert [rung.probe for rung in beyond] == list(PRACTICES)
    json.dumps(practices.list_constants())


def test_a_changed_formula_is_another_result(tmp_path, monkeypatch):
    """What a practice comes to is kept by its code: what another formula gave is not shown."""
    climb = run.Climb(Config(), RunDir(tmp_path), 1.0, {})
    practice, rung = PRACTICES["promises"], RUNGS[FIRST + 5]
    results = [ProbeResult(n=1, steps=[0], accuracy=[[share]]) for share in (0.5, 0.9)]

    def measure():
        return climb.measure_practice(rung, practice, "this", lambda n, seed: results.pop(0))

    assert measure().accuracy == measure().accuracy == [[0.5]]
    code = Path(reliability.__file__).read_text()
    edited = tmp_path / "reliability.py"
    edited.write_text(code.replace("log_capital_above(", "-log_capital_above("))
    assert edited.read_text() != code
    monkeypatch.setattr(reliability, "__file__", str(edited))
    assert measure().accuracy == [[0.9]]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRACTICES)
def test_a_rung_holds_with_a_fresh_seed_and_half_as_large_again(name):
    """`pytest -n 0 -m slow tests/ladder/test_practices.py`: some ten minutes."""
    rung = next(rung for rung in RUNGS if rung.probe == name)
    practice = PRACTICES[name]
    n = round(1.5 * practice.size)
    below, this = (run.RungResult(probe=way(n, 41)) for way in (practice.below, practice.this))
    assert run.judge(select_rung(rung.number), below, this).earned

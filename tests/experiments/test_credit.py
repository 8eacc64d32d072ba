"""The benchmark of credit: exact values, estimators, the head's faults and figures, its table."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from experiments import results
from experiments.credit import (
    __main__,
    benchmark,
    chain_values,
    estimators,
    example,
    head_quality,
    heads,
    training,
)
from experiments.credit.first_errors import first_error_f1
from ramp.config import Config, Reinforce, replace_train
from ramp.credit import learn, process_head
from ramp.errors import UserError
from ramp.model import cost
from ramp.tasks import chain

SLOW = pytest.mark.slow


def test_exact_values_against_all_ways():
    """Dynamic programming equals summing over all 10^3 sequences of values."""
    problem, table = (
        chain.make(3, (("a", "+", 4), ("b", "*", 2), ("c", "-", 1))),
        chain_values.skilled(1, 0.5),
    )
    probs = np.asarray(jnp.exp(table - jnp.log(jnp.sum(jnp.exp(table), -1, keepdims=True))))
    (start,), (ops,), (answer,) = chain_values.encode([problem])
    total = 0.0
    for x in range(10):
        for y in range(10):
            path = [start, x, y, answer]
            total += np.prod([probs[path[i], ops[i][0], ops[i][1], path[i + 1]] for i in range(3)])
    assert float(chain_values.success(table, [problem])) == pytest.approx(total, rel=1e-5)
    for value, op, n in ((3, 0, 4), (7, 2, 2), (4, 1, 9)):
        assert chain_values.truth()[value, op, n] == chain.apply(value, "+-*"[op], n)


@pytest.mark.parametrize(
    "method", ["rloo", pytest.param("oracle", marks=SLOW), pytest.param("vine", marks=SLOW)]
)
def test_outcome_estimators_are_unbiased(method):
    found = estimators.audit_gradient(
        chain_values.skilled(0, 0.6), [chain.sample(i, 3) for i in range(2)], method, 8, 300
    )
    assert found.cos > 0.97


def test_process_credit_is_another_gradient():
    """Step validity is not the outcome's gradient, and does not claim to be."""
    found = estimators.audit_gradient(
        chain_values.skilled(0, 0.3), [chain.sample(i, 4) for i in range(2)], "step_local", 8, 200
    )
    assert found.cos < 0.9 and found.wrong_up == found.right_down == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=30))
def test_auc_against_all_pairs(pairs):
    p, y = (np.array(x, np.float64) for x in zip(*pairs, strict=True))
    right, wrong = p[y > 0.5], p[y <= 0.5]
    got = head_quality.auc(p, y)
    if len(right) and len(wrong):
        want = np.mean([(a > b) + 0.5 * (a == b) for a in right for b in wrong])
        assert got == pytest.approx(want)
    else:
        assert np.isnan(got)


def test_calibration_error_of_known_cases():
    assert head_quality.calibration_error(
        np.array([0.95] * 4), np.array([1, 1, 1, 1.0])
    ) == pytest.approx(0.05)
    assert head_quality.calibration_error(
        np.array([0.95, 0.05]), np.array([0.0, 1.0])
    ) == pytest.approx(0.95)


def test_the_benchmark_keeps_what_it_has(tmp_path):
    b = results.Results(tmp_path, tiny.model(vocab_size=264), Reinforce())
    calls = []
    work = lambda: calls.append(1) or {"x": len(calls)}  # noqa: E731
    assert (
        b.once({"part": "a"}, work)["x"] == 1
        and b.once({"part": "a"}, work)["x"] == 1
        and len(calls) == 1
    )
    with b.path.open("a") as file:
        file.write('{"key": {"part": "b"}, "x"')  # a kill tears the line
    assert [r["x"] for r in b.results()] == [1]
    assert b.once({"part": "b"}, work)["x"] == 2 and [r["x"] for r in b.results()] == [1, 2]


def test_gradients_of_a_split_model_are_compared_whole():
    c = tiny.model(vocab_size=264)
    with jax.set_mesh(tiny.mesh(2, 2, 2)):
        params = results.init_lm(c)
        assert benchmark.flat(params).shape == (cost.count_params(c),)
        assert benchmark.flat({"w": params["lm"]["head"]["norm"] * 2}).tolist() == [2.0] * c.width


def test_faults_are_of_the_kind_requested():
    for kind, why in (
        ("value", {"wrong value", "wrong operand"}),
        ("operation", {"wrong operation"}),
    ):
        r = heads.solve_faulty(kind, 4, 0, 60)
        found = {step.why for v in r.verdicts for step in v.steps if not step.right}
        assert found and found <= why
        assert 0 < r.verified_b.mean() < 1


def test_a_stretched_row_is_the_same_row_with_gaps_before_an_operation_and_before_the_solution():
    """Without the gaps everything is as it was, and label, operation and operand still stand side by side."""
    r = heads.solve_faulty("value", 4, 0, 20)
    plain = process_head.label_rows(r, 80, process_head.first_error_labels(r))
    longer = heads.stretch_rows(
        {name: a.copy() for name, a in plain.items()}, r, np.random.default_rng(0)
    )
    gaps = {"operation": set(), "solution": set()}
    for b, prompt in enumerate(r.prompts):
        used = np.flatnonzero(longer["tokens"][b])
        for name, a in plain.items():
            np.testing.assert_array_equal(longer[name][b, used], a[b, : len(used)])
        for cut in np.flatnonzero(np.diff(used) > 1):
            kind = "solution" if cut + 1 == len(prompt) else "operation"
            assert kind == "solution" or longer["tokens"][b, used[cut + 1]] == ord(" ")
            gaps[kind].add(int(used[cut + 1] - used[cut]))
    assert min(map(len, gaps.values())) > 5


def test_the_example_of_the_readme_is_luck_and_a_right_step_of_a_failure(tmp_path):
    r, methods = example.make_example()
    lucky, wrong = example.SHOWN
    assert r.verdicts[lucky].lucky and not r.verdicts[wrong].final_right
    first = r.step_bn == 0
    praised, blamed = methods["rloo"] > 0, methods["rloo"] < 0
    assert praised[lucky][first[lucky]].all() and blamed[wrong][first[wrong]].all()
    local = methods["step_local"]
    assert (local[lucky][first[lucky]] < 0).all() and (local[wrong][first[wrong]] > 0).all()
    paths = [tmp_path / name for name in ("one.svg", "two.svg")]
    for path in paths:
        example.write_example(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_size < 60_000


def test_the_command_refuses_other_tasks_and_writes_between_its_marks(tmp_path, capsys):
    with pytest.raises(UserError, match="chain"):
        benchmark.run(tmp_path, Config(reinforce=Reinforce(task="swaps")))
    assert __main__.main([str(tmp_path / "none.toml")]) == 2
    assert "no such configuration" in capsys.readouterr().err
    page = "# Results\n\n<!-- table -->\nold\n<!-- end of table -->\n<!-- races -->\n<!-- end of races -->\nNotes.\n"
    once = __main__.insert_table(page, "| new |", "table")
    assert "old" not in once and "| new |" in once and once.endswith("Notes.\n")
    assert __main__.insert_table(once, "| new |", "table") == once
    both = __main__.insert_table(once, "| fast |", "races")
    assert "| new |" in both and both.index("| fast |") > both.index("<!-- races -->")


@SLOW
def test_parts_of_the_benchmark_run(tmp_path, monkeypatch):
    """One update, credit on sampled rollouts and a head's faults, on a policy that knows nothing."""
    t = Reinforce(task="chain", level=2, num_prompts=2, group_size=4, max_new_tokens=12)
    t = replace_train(replace(t, num_eval_problems=8), steps=1, seq_len=40, eval_every=1)
    t = replace_train(t, adam_lr=1.0, embed_lr=1.0, head_lr=1.0, scalar_lr=1.0, lr_scale=1e-3)
    make_problems = learn.make_problems
    monkeypatch.setattr(learn, "make_problems", lambda *args: make_problems(*args[:3], 2))
    monkeypatch.setattr(heads, "STEPS", 1)
    with jax.set_mesh(tiny.mesh()):
        b = results.Results(tmp_path, tiny.model(vocab_size=264, context_len=64), t)
        base = results.init_lm(b.model)
        one = replace(t, method="step_local")
        ((iteration, _, metrics),) = training.run_reinforce(b, one, base, 0)
        assert iteration.num_labels > 0 and np.isfinite(float(metrics["train/loss"]))
        benchmark.misassigned(b, base, "half")
        (found,) = results.part(b.results(), "misassigned")
        assert {"rloo", "vine", "step_local"} <= found["methods"].keys()
        start = jax.jit(lambda: process_head.init_head(b.model, base["lm"]))()
        trained = heads.train(b, start, [lambda i, k: heads.solve_by_attacks(k, i)])
        assert trained["labels"] > 0
        # The search asks the head; one that nobody trained says the same of everything.
        monkeypatch.setattr(heads, "ATTACKS", 200)
        found = heads.measure(b, trained["process"])
        assert 0 <= found["false_positives"] <= 1 and isinstance(found["attacks"], list)


def test_first_error_f1():
    assert first_error_f1([1, None, 2], [1, None, 2]).f1 == 1.0
    score = first_error_f1([1, 0, None, None], [1, 1, None, 3])
    assert (
        score.wrong == pytest.approx(1 / 3)
        and score.clean == 1.0
        and score.f1 == pytest.approx(0.5)
    )
    assert first_error_f1([None], [None]).f1 == 0.0
    with pytest.raises(ValueError):
        first_error_f1([1], [])

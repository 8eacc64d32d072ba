"""The races of the benchmark of credit: its policies, rewards and figures, each held against something independent."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.credit import chain_values, mlp, race, race_table, tabular
from experiments.results import Results
from ramp.config import Model, Reinforce

IMITATED = ("imitation of verified rollouts", "imitation of right steps")


@pytest.fixture(scope="module")
def chains():
    """(first value, operations, operands) of 64 problems, eight rollouts each, and keys."""
    start, op, n = tabular.make_chains(jax.random.PRNGKey(3), 64, 5)
    return tuple(np.repeat(np.asarray(x), tabular.GROUP, axis=0) for x in (start, op, n))


@pytest.mark.parametrize("one", race.RACES, ids=lambda one: one.name)
def test_the_most_likely_answer_of_a_base_is_wrong(one):
    """At temperature 0 at most a fifth is verified (a quarter of 4 operations), so sharpening is no help."""
    table = 1000 * tabular.make_table(one.rule, 1)
    problems = tabular.make_chains(jax.random.PRNGKey(0), 512, one.num_steps)
    verified = float(tabular.measure_verified(table, *problems))
    assert verified < (0.2 if one.num_steps > 4 else 0.25)


def test_accuracy_is_exact(chains):
    """The share of many sampled rollouts that are right at every step."""
    table = jnp.asarray(tabular.make_table("products, loosely", 2))
    d = jax.vmap(lambda key: tabular.draw_rollouts(table, key, *chains))(
        jax.random.split(jax.random.PRNGKey(1), 40)
    )
    sampled = np.asarray(d.right).all(axis=2).mean()
    exact = float(tabular.measure_verified(table, *chains))
    assert sampled == pytest.approx(exact, abs=0.01)


def test_rollouts_are_judged_as_the_definition_says(chains):
    table = jnp.asarray(tabular.make_table("products, loosely", 2))
    d = tabular.draw_rollouts(table, jax.random.PRNGKey(1), *chains)
    apply = {0: lambda v, n: v + n, 1: lambda v, n: v - n, 2: lambda v, n: v * n}
    start, op, n = chains
    for b in range(0, len(start), 37):
        value = gold = int(start[b])
        for s in range(5):
            assert int(d.before[b, s]) == value
            want = apply[int(op[b, s])](value, int(n[b, s])) % 10
            value = int(d.stated[b, s])
            assert float(d.right[b, s]) == (value == want)
            gold = apply[int(op[b, s])](gold, int(n[b, s])) % 10
        assert float(d.is_answer_b[b]) == (value == gold)
    rewards = {
        name: np.asarray(tabular.compute_reward(name, jax.random.PRNGKey(0), d))
        for name in (
            "none",
            "random",
            "majority",
            "answer",
            "verified",
            "share",
            "verified + share",
        )
    }
    right = np.asarray(d.right)
    np.testing.assert_allclose(rewards["verified"], right.all(axis=1))
    np.testing.assert_allclose(rewards["share"], right.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(
        rewards["verified + share"], (right.all(axis=1) + right.mean(axis=1)) / 2, rtol=1e-6
    )
    assert not rewards["none"].any() and 0.3 < rewards["random"].mean() < 0.7
    answers = np.asarray(d.stated)[:, -1].reshape(-1, tabular.GROUP)
    for group, paid in zip(answers, rewards["majority"].reshape(answers.shape), strict=True):
        counts = np.bincount(group, minlength=10)
        assert (paid == (counts[group] == counts.max())).all()


def test_a_goal_counts_where_it_is_held():
    tokens = [0, 100, 200, 300, 400, 500]
    assert race.tokens_to_hold(tokens, [0.5, 0.8, 1.0, 0.95, 0.9, 0.5]) == pytest.approx(150)
    # Reached, lost, and reached again.
    assert race.tokens_to_hold(tokens, [0.5, 1.0, 0.5, 0.9, 0.9, 0.9]) == pytest.approx(300)
    assert race.tokens_to_hold(tokens, [0.5, 1.0, 0.5, 1.0, 0.9, 0.5]) is None
    assert race.tokens_to_hold(tokens, [0.95] * 6) == 0


def outcome(base, to_goal):
    return race.Outcome(base, to_goal, spent=1000, start=0.1, end=0.95, area=0.5)


def test_a_ratio_is_paired_by_base_and_bounds_what_never_arrives():
    fast = [outcome(base, 100.0 * (base + 1)) for base in range(5) for _ in range(3)]
    slow = [replace(run, to_goal=2 * run.to_goal) for run in fast]
    ratio = race_table.compare(slow, fast)
    # Bases differ five times, but every pair agrees: the interval is a point.
    assert (ratio.low, ratio.mean, ratio.high) == pytest.approx((2, 2, 2))
    assert not ratio.is_bound
    never = [replace(run, to_goal=None) for run in fast]
    bound = race_table.compare(never, fast)
    assert bound.is_bound and str(bound).startswith("≥ ")
    one = race_table.compare(slow[:3], fast[:3])
    assert one.low == 0 and one.high == np.inf  # one base is no interval


def test_a_race_is_kept_and_a_control_that_gains_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "NUM_LANES", 6)
    monkeypatch.setattr(race, "MAX_ROLLOUTS", 8)
    b = Results(tmp_path, Model(), Reinforce())
    arms = ("no reward, entropy minimised", "RLOO, verified", "step-local")
    small = {"rates": (0.1, 0.4), "num_rollouts": (8,), "tuning_seeds": (0, 1), "bases": (1, 2)}
    short = race.Race("products, loosely", 3, 6000, arms, **small)
    results = list(short.run(b))
    kept = b.path.read_bytes()
    assert list(short.run(b)) == results and b.path.read_bytes() == kept
    assert [len(r.runs) for r in results] == [6, 6, 6]
    assert {run.base for r in results for run in r.runs} == {1, 2}  # not the one settings come from
    text = race_table.report([(short.name, results)])
    assert (
        "### a table, products, loosely, 3 operations" in text
        and "RLOO, verified / step-local" in text
    )
    (control, *_) = results
    gained = replace(control, runs=[replace(run, end=0.9) for run in control.runs])
    assert "measures sharpening" in race_table.race_table([gained])
    assert "measures sharpening" not in race_table.race_table([control])
    assert all(json.loads(line)["key"]["part"] == "race" for line in kept.splitlines())


@pytest.mark.parametrize(("best", "tried"), [(64, 4), (8, 5), (1024, 6), (512, 6)])
def test_the_grid_grows_until_the_best_is_inside_or_at_its_bounds(monkeypatch, best, tried):
    asked = []

    def once(self, b, name, plan, lanes):
        asked.append((plan.num_rollouts, plan.decay))
        steps = 1000 * (1 + abs(np.log2(plan.num_rollouts / best)))
        return [race.Outcome(base, steps + 100 * rate, 10**6, 0, 1, 0.5) for rate, base, _ in lanes]

    monkeypatch.setattr(race.Race, "once", once)
    one = race.Race("products", 12, 10**6)
    setting, (steps, _) = one.choose_setting(None, "step-local")
    assert (setting.rate, setting.plan.num_rollouts) == (min(one.rates), best)
    assert len(asked) == tried and asked[-1] == (best, True)
    assert steps == pytest.approx(1000 + 100 * min(one.rates))


def test_truth_is_the_tasks():
    assert chain_values.truth()[7, 2, 8] == 6


@pytest.mark.parametrize(
    ("plain", "with_baseline"), list(zip(IMITATED, ("RLOO, verified", "step-local"), strict=True))
)
def test_imitation_has_the_mean_gradient_of_its_like(plain, with_baseline):
    """Over many draws; what a baseline takes away is noise."""
    table = jnp.asarray(tabular.make_table("products, loosely", 2))
    start, op, n = tabular.make_chains(jax.random.PRNGKey(3), 32, 3)
    rows = tuple(jnp.repeat(x, tabular.GROUP, axis=0) for x in (start, op, n))

    @jax.jit
    def gradients(key):
        d = tabular.draw_rollouts(table, key, *rows)
        arms = (race.ARMS[plain], race.ARMS[with_baseline])
        return [jax.grad(tabular.policy_loss)(table, arm, key, d, *rows[1:]) for arm in arms]

    keys = jax.random.split(jax.random.PRNGKey(4), 300)
    sums = [np.mean(np.asarray(g), axis=0).ravel() for g in jax.lax.map(gradients, keys)]
    a, b = (x / np.linalg.norm(x) for x in sums)
    assert a @ b > 0.97
    assert np.linalg.norm(sums[0]) == pytest.approx(np.linalg.norm(sums[1]), rel=0.05)


def test_a_network_states_what_the_table_states(monkeypatch):
    monkeypatch.setattr(mlp, "FIT_STEPS", 600)
    mlp.make_fit.cache_clear()
    tables = np.stack([tabular.make_table("products", base) for base in (1, 2)])
    weights = tabular.POLICIES["network"].make(tables, np.array([1, 2]))
    mlp.make_fit.cache_clear()
    for lane, table in enumerate(tables):
        mine = jax.tree.map(lambda a, lane=lane: a[lane], weights)
        stated = jax.nn.softmax(mlp.evaluate_facts(mine), axis=-1)
        far = jnp.abs(stated - jax.nn.softmax(table, axis=-1)).sum(axis=-1).mean() / 2
        assert float(far) < 0.05


def test_a_network_is_trained_like_a_table():
    """Its loss is that of the table that it writes: the same gradient, through the network."""
    weights = mlp.init_mlp(jax.random.PRNGKey(0))
    start, op, n = tabular.make_chains(jax.random.PRNGKey(1), 16, 4)
    table, pull = jax.vjp(mlp.evaluate_facts, weights)
    d = tabular.draw_rollouts(table, jax.random.PRNGKey(2), start, op, n)
    args = race.ARMS["step-local"], jax.random.PRNGKey(3), d, op, n

    def loss(weights):
        return tabular.policy_loss(mlp.evaluate_facts(weights), *args)

    (through,) = pull(jax.grad(tabular.policy_loss)(table, *args))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), through, jax.grad(loss)(weights)
    )


def test_an_entropy_bonus_is_tried_where_a_race_asks_for_it(monkeypatch):
    """Not for controls, whose own bonus is what they are."""
    asked = []

    def once(self, b, name, plan, lanes):
        asked.append(plan)
        steps = 500 if plan.entropy_coef == 0.03 else 1000
        return [race.Outcome(base, steps + rate, 10**6, 0, 1, 0.5) for rate, base, _ in lanes]

    monkeypatch.setattr(race.Race, "once", once)
    one = race.Race("products", 12, 10**6, num_rollouts=(8,), entropy_coefs=(0.0, 0.03))
    monkeypatch.setattr(race, "MAX_ROLLOUTS", 8)
    setting, _ = one.choose_setting(None, "step-local")
    assert setting.plan == race.Plan(8, False, 0.03)
    assert asked == [race.Plan(8), race.Plan(8, False, 0.03), race.Plan(8, True, 0.03)]
    asked.clear()
    one.choose_setting(None, "no reward, entropy minimised")
    assert {plan.entropy_coef for plan in asked} == {0.0}

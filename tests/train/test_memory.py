"""A step fits itself to the memory of a device: the fewest microbatches, the same global batch."""

import re
from dataclasses import replace

import jax
import pytest
import tiny

from ramp import config
from ramp.config import Config, Text, Train
from ramp.errors import UserError
from ramp.train import memory


@pytest.fixture
def c():
    """A step of 64 rows, of which activations are nearly all."""
    model = tiny.model(context_len=128)
    train = Train(steps=2, batch_size=64, seq_len=128)
    return Config(text=Text(vocab_size=320), model=model, pretrain=train)


@pytest.fixture
def plans(monkeypatch):
    """What was compiled: microbatches. The compiler's plan is a little above the arithmetic."""
    asked = []

    def plan(c, name, t):
        asked.append(t.grad_accum_steps)
        return 1.2 * memory._estimate_bytes(c, name, t)

    monkeypatch.setattr(memory, "plan_stage_bytes", plan)
    return asked


def needs(c, k: int) -> float:
    """Bytes of a step in k microbatches, as `plans` has them."""
    t = replace(c.pretrain, grad_accum_steps=k)
    return 1.2 * memory._estimate_bytes(c, "pretrain", t)


def fit(asked: Config, budget: float) -> Config:
    with jax.set_mesh(tiny.mesh()):
        return memory.fit_batch(asked, config.resolve(asked), ["pretrain"], budget)


def test_what_fits_stays_and_compiles_nothing(c, plans):
    with jax.set_mesh(tiny.mesh()):
        budget = 100 * needs(config.resolve(c), 1)
    assert fit(c, budget) == config.resolve(c)
    assert plans == []


@pytest.mark.parametrize("k", [2, 4, 16])
def test_the_fewest_microbatches_that_fit_are_taken(c, plans, k):
    resolved = config.resolve(c)
    with jax.set_mesh(tiny.mesh()):
        budget = 1.001 * needs(resolved, k)
        assert needs(resolved, k // 2) > budget
    fitted = fit(c, budget)
    assert fitted.pretrain.grad_accum_steps == k
    # The global batch, and so the run, stays what it was.
    assert replace(fitted.pretrain, grad_accum_steps=1) == resolved.pretrain
    assert len(plans) <= 3


def test_what_was_set_by_hand_is_refused_and_the_remedy_fits(c, plans):
    resolved = config.resolve(c)
    with jax.set_mesh(tiny.mesh()):
        budget = 1.001 * needs(resolved, 4)
    asked = replace(c, pretrain=replace(c.pretrain, grad_accum_steps=2))
    with pytest.raises(UserError, match="does not fit into the") as error:
        fit(asked, budget)
    remedy = re.search(r"--pretrain.grad_accum_steps (\d+)", str(error.value))
    by_hand = replace(c, pretrain=replace(c.pretrain, grad_accum_steps=int(remedy[1])))
    assert fit(by_hand, budget).pretrain.grad_accum_steps == 4


def test_a_machine_that_is_too_small_is_one_sentence(c, plans):
    with pytest.raises(UserError, match=r"lower model\.depth or model\.context_len"):
        fit(c, 1e3)


def test_the_compiler_agrees_with_the_arithmetic(c):
    """Within the factor that is taken for certain, for a step that is really compiled."""
    resolved = config.resolve(c)
    with jax.set_mesh(tiny.mesh()):
        planned = memory.plan_stage_bytes(resolved, "pretrain", resolved.pretrain)
        estimated = memory._estimate_bytes(resolved, "pretrain", resolved.pretrain)
    assert 1 / 2 < planned / estimated < memory.CERTAIN

"""The plainest rivals: imitate what the checker passed, without a baseline, push nothing down.

Their mean gradients are those of `rloo` and of `step_local`; what differs is the noise.
"""

import jax.numpy as jnp

from ramp.credit.advantages import Method
from ramp.credit.baselines import Array, Credit, spread_to_rows, spread_to_tokens


def imitate_rollouts(c: Credit) -> Array:
    """Rollouts in proportion to their reward: rejection sampling on the fly (arXiv:2304.06767)."""
    return spread_to_rows(c, jnp.nan_to_num(c.reward_pg))


def imitate_steps(c: Credit) -> Array:
    """Right steps, whatever stands around them."""
    return spread_to_tokens(c, jnp.nan_to_num(c.right_bs) * c.exists_bs)


IMITATION = {
    "imitate_rollouts": Method(imitate_rollouts, "outcome"),
    "imitate_steps": Method(imitate_steps, "process"),
}

"""The one pytree that every stage shares."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All that a stage carries from one step to the next; a checkpoint of any stage opens in any other.

    `step` counts finished steps: the state with step k has seen the batches 0 .. k-1, and k is the whole data position.
    """

    step: jax.Array  # int32
    key: jax.Array  # uint32 [2]; the key of a step is fold_in(key, step)
    params: dict[str, Any]  # "lm": the model; "process": a process-reward head, once there is one
    opt: dict[
        str, Any
    ]  # "tx": state of the optax transformation; "ema": averaged parameters, or None
    ref: Any  # a frozen policy, or None
    guard: dict[str, jax.Array]  # see `step.judge`


def init_guard() -> dict[str, jax.Array]:
    """Nothing skipped yet; `mean` and `var` are of (loss, gradient norm) over the steps that counted."""
    return {
        "skipped": jnp.zeros((), jnp.int32),
        "streak": jnp.zeros((), jnp.int32),
        "count": jnp.zeros((), jnp.int32),
        "mean": jnp.zeros(2, jnp.float32),
        "var": jnp.zeros(2, jnp.float32),
    }


def init_state(
    params: dict[str, Any],
    tx: optax.GradientTransformation,
    seed: int,
    average: bool = False,
    ref: Any = None,
) -> State:
    """Step 0 of a stage that starts from these parameters. Call it under `jax.jit`."""
    opt = {"tx": tx.init(params), "ema": params if average else None}
    return State(jnp.zeros((), jnp.int32), jax.random.PRNGKey(seed), params, opt, ref, init_guard())


def eval_params(state: State) -> dict[str, Any]:
    """The parameters to evaluate and to sample with: the average where one is kept."""
    return state.params if state.opt["ema"] is None else state.opt["ema"]


def abstract_state(make: Callable, mesh: jax.sharding.Mesh, *args: Any) -> Any:
    """Shapes, dtypes and shardings of what `make(*args)` would return, without making it: the template for a restore.
    args may be abstract themselves."""

    def concrete(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = leaf.sharding.spec if leaf.sharding else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(concrete, jax.eval_shape(make, *args))

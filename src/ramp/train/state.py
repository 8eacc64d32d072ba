"""The one pytree that every stage shares."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ramp.train.guard import Guard, init_guard


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All that a stage carries from one step to the next.

    A checkpoint of any stage opens in any other. `step` counts finished steps: the state with step
    k has consumed the batches 0 .. k-1, so k is the whole position in the data.
    """

    step: jax.Array  # int32
    key: jax.Array  # uint32 [2]; the key of a step is fold_in(key, step)
    params: dict[str, Any]  # "lm": the model; "process": a process-reward head, once there is one
    opt: dict[str, Any]  # "tx": state of the optax transformation; "ema": averaged params, or None
    ref: Any  # a frozen policy, or None
    guard: Guard


def init_state(
    params: dict[str, Any],
    tx: optax.GradientTransformation,
    seed: int,
    average: bool = False,
    ref: Any = None,
) -> State:
    """Return step 0 of a stage that starts from these parameters. Call it under `jax.jit`."""
    return State(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.PRNGKey(seed),
        params=params,
        opt={"tx": tx.init(params), "ema": params if average else None},
        ref=ref,
        guard=init_guard(),
    )


def eval_params(state: State) -> dict[str, Any]:
    """Return the parameters to evaluate and to sample with: the average where one is kept."""
    return state.params if state.opt["ema"] is None else state.opt["ema"]


def abstract_state(make: Callable, mesh: jax.sharding.Mesh, *args: Any) -> Any:
    """Return shapes, dtypes and shardings of `make(*args)` without making it.

    It is the template for a restore. args may be abstract themselves.
    """

    # `eval_shape` gives shardings over an abstract mesh; a restore needs the devices.
    def concrete(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = leaf.sharding.spec if leaf.sharding else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(concrete, jax.eval_shape(make, *args))

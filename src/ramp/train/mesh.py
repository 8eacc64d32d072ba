"""Devices: who they are, how they are arranged, and how a batch reaches them.

Three mesh axes: `replica` (between slices, data-parallel over the data-centre network), `data` (batch, and parameters
fully sharded), `model` (tensor-parallel). All are Explicit, so a sharding mistake is an error at trace time, on a
laptop. One device is the mesh (1, 1, 1) and runs the same code.
"""

import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ramp import config
from ramp.errors import UserError
from ramp.model.attention import ROWS

AXES = ("replica", "data", "model")


def connect_processes() -> None:
    """Join the other processes of a multi-host job; must come before any other use of jax.

    `RAMP_DISTRIBUTED=auto` lets jax find the cluster (Cloud TPU, GKE, Slurm); `RAMP_DISTRIBUTED=HOST:PORT,COUNT,INDEX`
    names it. Unset: one process. Asked for by name because a guess that fails silently trains N separate models.
    """
    wish = os.environ.get("RAMP_DISTRIBUTED", "")
    if not wish:
        return
    if wish == "auto":
        jax.distributed.initialize()
        return
    try:
        address, count, index = wish.split(",")
        numbers = int(count), int(index)
    except ValueError:
        raise UserError(
            f"RAMP_DISTRIBUTED is {wish!r}; it takes 'auto' or 'HOST:PORT,COUNT,INDEX'"
        ) from None
    jax.distributed.initialize(address, *numbers)


def resolve_mesh_shape(m: config.Mesh, devices: int) -> tuple[int, int, int]:
    """Devices along (replica, data, model), with the -1 filled in."""
    wish = [m.replica, m.data, m.model]
    known = int(np.prod([n for n in wish if n > 0]))
    if -1 in wish and devices % known == 0:
        wish[wish.index(-1)] = devices // known
    if int(np.prod(wish)) != devices:
        axes = ", ".join(
            f"mesh.{a} = {n}" for a, n in zip(AXES, (m.replica, m.data, m.model), strict=True)
        )
        raise UserError(
            f"the mesh {axes} does not fill the {devices} devices here; set one axis to -1"
        )
    return tuple(wish)


def make_mesh(m: config.Mesh, devices: list | None = None) -> jax.sharding.Mesh:
    """The mesh, set as jax's current one. Slices of a multi-slice job become the axis `replica`."""
    devices = devices or jax.devices()
    dims = resolve_mesh_shape(m, len(devices))
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices > 1:
        if dims[0] % slices:
            raise UserError(
                f"mesh.replica = {dims[0]} is not a multiple of the {slices} slices of this job"
            )
        inside = (dims[0] // slices, *dims[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            inside, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(dims, devices, allow_split_physical_axes=True)
    mesh = jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * 3)
    jax.set_mesh(mesh)
    return mesh


def check_divisible(c: config.Config, dims: tuple[int, int, int]) -> None:
    """Every array that is split must divide; said before any array is made, with the key to change."""
    m, rows = c.model, dims[0] * dims[1]
    splits = [
        ("model.width", m.width, dims[1]),
        ("model.vocab_size", m.vocab_size, dims[2]),
        ("model.num_heads", m.num_heads, dims[2]),
        ("model.num_kv_heads", m.num_kv_heads, dims[2]),
        (
            "model.num_kv_heads x model.head_dim",
            m.num_kv_heads * m.head_dim if m.value_embeds else 0,
            dims[1],
        ),
        ("model.mlp_dim", m.mlp_dim, dims[2]),
        (
            "pretrain.batch_size / pretrain.grad_accum_steps",
            c.pretrain.batch_size // c.pretrain.grad_accum_steps,
            rows,
        ),
        (
            "finetune.batch_size / finetune.grad_accum_steps",
            c.finetune.batch_size // c.finetune.grad_accum_steps,
            rows,
        ),
        (
            "reinforce.num_prompts x group / accum",
            c.reinforce.train.batch_size // c.reinforce.train.grad_accum_steps
            if "reinforce" in c.stages
            else 0,
            rows,
        ),
        ("eval.batch_size", c.eval.batch_size, rows),
    ]
    for key, value, parts in splits:
        if value % parts:
            raise UserError(
                f"{key} = {value} does not divide over {parts} devices of the mesh {dict(zip(AXES, dims, strict=True))}; "
                f"make it a multiple of {parts}, or change the mesh"
            )


def compiler_options(m: config.Mesh) -> dict[str, str | bool]:
    """The options of the flag sets that `mesh.compiler_flags` names, for `jax.jit` and `lower().compile()`."""
    known = tomllib.loads(Path(__file__).with_name("flags.toml").read_text(encoding="utf-8"))
    for name in m.compiler_flags:
        if name not in known:
            raise UserError(
                f"mesh.compiler_flags: there is no set '{name}'; train/flags.toml has {', '.join(known)}"
            )
    return {key: value for name in m.compiler_flags for key, value in known[name].items()}


def shard_batch(
    mesh: jax.sharding.Mesh, make_rows: Callable[[int, int], dict[str, np.ndarray]], size: int
) -> dict:
    """A global batch, [size, ...] split over the rows axes, of which each process makes only its devices' rows.

    make_rows(lo, hi): rows lo..hi of the global batch, a pure function; who calls it does not change what it returns.
    """
    sharding = NamedSharding(mesh, P(ROWS))
    mine = {
        index[0].indices(size)[:2]
        for index in sharding.addressable_devices_indices_map((size,)).values()
    }
    made = {bounds: make_rows(*bounds) for bounds in mine}
    names = next(iter(made.values())).keys()

    def assemble(name: str) -> jax.Array:
        tail = next(iter(made.values()))[name].shape[1:]
        return jax.make_array_from_callback(
            (size, *tail), sharding, lambda index: made[index[0].indices(size)[:2]][name]
        )

    return {name: assemble(name) for name in names}

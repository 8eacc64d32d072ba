"""Devices: which there are, how they are arranged, and how a batch reaches them.

Three mesh axes: `replica` (between slices, data-parallel over the data-centre network), `data`
(batch, and parameters fully sharded), `model` (tensor-parallel). All are Explicit, so a sharding
mistake is an error at trace time, on a laptop. One device is the mesh (1, 1, 1) and runs the same
code.
"""

import math
import os
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ramp import config
from ramp.errors import UserError
from ramp.model.linear import AXES, ROWS
from ramp.model.transformer import param_shapes
from ramp.stages import STAGES
from ramp.train.preemption import take_signals_back


def connect_processes(hosts: config.Hosts) -> None:
    """Join the other processes of a multi-host job; must come before any other use of jax.

    `RAMP_DISTRIBUTED=auto` lets jax find the cluster (Cloud TPU, GKE, Slurm);
    `RAMP_DISTRIBUTED=HOST:PORT,COUNT,INDEX` names it. Unset: one process. It has to be asked for,
    because a guess that fails silently trains N separate models.
    """
    setting = os.environ.get("RAMP_DISTRIBUTED", "")
    # The import of a base and every rival set up devices too, in a job that has met by then.
    if not setting or jax.distributed.is_initialized():
        return
    address, _, rest = setting.partition(",")
    host, colon, port = hosts.coordinator.rpartition(":")
    if hosts.coordinator and not (colon and port.isdecimal()):
        raise UserError(f"hosts.coordinator is {hosts.coordinator!r}; it takes HOST:PORT or :PORT")
    # What is left out, jax asks the cluster for.
    joined: dict[str, Any] = {}
    if setting == "auto":
        if host:
            joined = {"coordinator_address": hosts.coordinator}
        elif port:
            # The cluster tells the host, and jax takes the port from here.
            os.environ["JAX_COORDINATOR_PORT"] = port
    else:
        try:
            count, index = map(int, rest.split(","))
        except ValueError:
            raise UserError(
                f"RAMP_DISTRIBUTED is {setting!r}; it takes 'auto' or 'HOST:PORT,COUNT,INDEX'"
            ) from None
        # The configuration wins over what started this process.
        if hosts.coordinator:
            address = f"{host or address.rpartition(':')[0]}:{port}"
        joined = {"coordinator_address": address, "num_processes": count, "process_id": index}
    # Where they do not find each other in time, jax itself ends the process.
    jax.distributed.initialize(
        **joined,
        initialization_timeout=hosts.start_timeout,
        heartbeat_timeout_seconds=hosts.heartbeat_timeout,
    )
    take_signals_back()


def resolve_mesh_shape(m: config.Mesh, devices: int) -> tuple[int, int, int]:
    """Return the devices along (replica, data, model), with the -1 filled in."""
    dims = [m.replica, m.data, m.model]
    known = math.prod(n for n in dims if n > 0)
    # Where the rest does not divide, -1 stays and the error below lists it.
    if -1 in dims and devices % known == 0:
        dims[dims.index(-1)] = devices // known
    if math.prod(dims) != devices:
        axes = ", ".join(f"mesh.{axis} = {getattr(m, axis)}" for axis in AXES)
        raise UserError(
            f"the mesh {axes} does not fill the {devices} devices here; set one axis to -1"
        )
    replica, data, model = dims
    return replica, data, model


def make_mesh(m: config.Mesh, devices: list | None = None) -> jax.sharding.Mesh:
    """Return the mesh, set as jax's current one.

    Slices of a multi-slice job become the axis `replica`.
    """
    devices = devices or jax.devices()
    dims = resolve_mesh_shape(m, len(devices))
    # Only TPUs of several slices have the attribute.
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices > 1:
        if dims[0] % slices:
            raise UserError(
                f"mesh.replica = {dims[0]} is not a multiple of the {slices} slices of this job"
            )
        # "data" and "model" stay within a slice: between slices the network is slow.
        within_slice = (dims[0] // slices, *dims[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            within_slice, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    elif len(devices) < jax.device_count():
        # One of each process: how they are joined is not looked at.
        grid = np.array(devices).reshape(dims)
    else:
        grid = mesh_utils.create_device_mesh(dims, devices, allow_split_physical_axes=True)
    mesh = jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * 3)
    jax.set_mesh(mesh)
    return mesh


# ------------------------------------------------------------------------------- what must divide
def check_divisible(c: config.Config, dims: tuple[int, int, int], stages: Sequence[str]) -> None:
    """Raise `UserError` with every key whose array does not divide over a mesh, and what would.

    It comes before any array is made. dims: devices along (replica, data, model). stages: those
    that will run; what others could not do does not matter.
    """
    mesh = dict(zip(AXES, dims, strict=True))
    wrong = {}  # in their order, each once
    for key, size, parts in _split_sizes(c, mesh, stages):
        if size % parts:
            above = size + -size % parts
            would = " or ".join(str(n) for n in (above - parts, above) if n)
            # Other rules hold for a model's sizes, which the next size may break.
            would = f"a multiple of {parts}" if key.startswith("model.") else would
            wrong[key] = f"{key} = {size} does not divide over {parts} devices ({would} would)"
    if wrong:
        # Weights are whole on every replica.
        whole = mesh["replica"] * mesh["data"]
        remedy = f", such as --mesh.replica {whole} --mesh.data 1, which splits batches only"
        is_split = mesh["data"] > 1 and any(key.startswith("model.") for key in wrong)
        remedy = remedy if is_split else ""
        raise UserError(f"{'; '.join(wrong.values())}: change that, or the mesh {mesh}{remedy}")


def _split_sizes(
    c: config.Config, mesh: dict[str, int], stages: Sequence[str]
) -> Iterator[tuple[str, int, int]]:
    """Yield (key, size, parts it is split into)."""
    # Heads are split whole, although their weights would divide at any place.
    yield "model.num_heads", c.model.num_heads, mesh["model"]
    yield "model.num_kv_heads", c.model.num_kv_heads, mesh["model"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(c.model)):
        for dim, axis in enumerate(leaf.sharding.spec):
            size, parts = leaf.shape[dim], mesh.get(axis, 1)
            # The key is only looked up for the message: it takes more traces.
            if size % parts:
                yield _find_keys(c.model, path, dim), size, parts
    rows = mesh["replica"] * mesh["data"]
    # Every microbatch is split over all rows of devices.
    for stage in (STAGES[name] for name in stages if name in STAGES):
        if stage.train:
            t = config.get(c, stage.train)
            key = f"{stage.train}.batch_size"
            if stage.name == "reinforce":  # its batch follows from these
                key = "reinforce.num_prompts x reinforce.group_size"
                if c.reinforce.minibatches > 1:
                    key += " / reinforce.minibatches"
            if t.grad_accum_steps > 1:
                key += f" / {stage.train}.grad_accum_steps"
            yield key, t.batch_size // t.grad_accum_steps, rows
    # What is no stage is an evaluation.
    if any(name not in STAGES or STAGES[name].measures for name in stages):
        yield "eval.batch_size", c.eval.batch_size, rows


def _find_keys(m: config.Model, path: tuple, dim: int) -> str:
    """Name the keys that one dimension of a parameter is a product of: those that change it."""

    def size(m: config.Model) -> int:
        leaf: Any = param_shapes(m)
        for part in path:
            leaf = leaf[part.key]
        return leaf.shape[dim]

    keys = ("width", "vocab_size", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
    found = []
    # By experiment, not by a table of formulas: a new switch of the model needs no entry here.
    for key in keys:
        larger = replace(m, **{key: 2 * getattr(m, key)})
        if size(larger) != size(m):
            found.append(f"model.{key}")
    return " x ".join(found) or jax.tree_util.keystr(path)


def compiler_options(m: config.Mesh) -> dict[str, str | bool]:
    """Return compiler options for `jax.jit` and `lower().compile()`.

    They are those of the sets in flags.toml that `mesh.compiler_flags` names.
    """
    path = Path(__file__).with_name("flags.toml")
    sets = tomllib.loads(path.read_text(encoding="utf-8"))
    options = {}  # a later set wins
    for name in m.compiler_flags:
        if name not in sets:
            raise UserError(
                f"mesh.compiler_flags: there is no set '{name}'; "
                f"train/flags.toml has {', '.join(sets)}"
            )
        options |= sets[name]
    return options


def shard_batch(
    mesh: jax.sharding.Mesh, make_rows: Callable[[int, int], dict[str, np.ndarray]], size: int
) -> dict[str, jax.Array]:
    """Return a global batch, [size, ...] split over the rows axes.

    make_rows(lo, hi): rows lo..hi of the global batch. It is a pure function, so each process makes
    only the rows of its own devices, and the batch is the same on any number of processes.
    """
    sharding = NamedSharding(mesh, P(ROWS))

    def find_range(index: Any) -> tuple[int, int]:
        start, stop, _ = index[0].indices(size)
        return start, stop

    # Devices along "model" hold the same rows, so there are fewer ranges than devices.
    indices = sharding.addressable_devices_indices_map((size,)).values()
    ranges = {find_range(index) for index in indices}
    local = {bounds: make_rows(*bounds) for bounds in ranges}
    example = next(iter(local.values()))

    def assemble(name: str) -> jax.Array:
        shape = (size, *example[name].shape[1:])
        return jax.make_array_from_callback(
            shape, sharding, lambda index: local[find_range(index)][name]
        )

    return {name: assemble(name) for name in example}

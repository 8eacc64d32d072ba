"""Which mesh, microbatch and remat to use on a topology: every choice ranked by arithmetic, the best one then compiled.

The order is by the roofline's bound with what recomputation adds; what does not fit by `cost.step_bytes` is left out.
"""

import itertools
from dataclasses import dataclass, replace

from ramp import config
from ramp.config import Config
from ramp.errors import UserError
from ramp.model import cost
from ramp.pods import roofline
from ramp.pods.chips import Topology
from ramp.train import mesh as meshes

MARGIN = (
    0.8  # of the memory: compilers were found to need up to 1.25 times what `cost.step_bytes` says
)


@dataclass(frozen=True)
class Choice:
    c: Config
    times: roofline.Times
    bytes: float


def best(c: Config, topology: Topology, show: int = 8) -> Config:
    """The fastest choice that fits, after printing the first few."""
    found = rank_choices(c, topology)
    if not found:
        raise UserError(
            f"nothing fits on {topology}, whatever the mesh, microbatch and remat; take more chips"
        )
    print(f"{'data':>6} {'model':>6} {'accum':>6} {'remat':>6} {'GiB':>7} {'ms':>9}  binds")
    for choice in found[:show]:
        m = choice.c.mesh
        print(
            f"{m.data:6} {m.model:6} {choice.c.pretrain.grad_accum_steps:6} {choice.c.model.remat:>6} {choice.bytes / 2**30:7.2f} "
            f"{1e3 * choice.times.bound:9.1f}  {choice.times.binds}"
        )
    return found[0].c


def rank_choices(c: Config, topology: Topology) -> list[Choice]:
    """All meshes (tensor-parallel up to 16 ways, inside a slice), microbatches and remats that fit, fastest first."""
    m = replace(c.model, dtype="bfloat16") if c.model.dtype == "auto" else c.model
    c = config.resolve(replace(c, model=m))
    replica = max(c.mesh.replica, topology.slices)
    inside = topology.device_count // replica
    found = []
    for model, accum, remat in itertools.product(
        (1, 2, 4, 8, 16), (1, 2, 4, 8, 16, 32), ("none", "saved", "full")
    ):
        if inside % model or c.pretrain.batch_size % accum:
            continue
        tried = replace(
            c,
            mesh=replace(c.mesh, replica=replica, data=inside // model, model=model),
            model=replace(
                c.model,
                remat=remat,
                loss_chunk=c.model.loss_chunk or max(c.pretrain.seq_len // 4, 1),
            ),
            pretrain=replace(c.pretrain, grad_accum_steps=accum),
        )
        try:
            meshes.check_divisible(tried, (replica, inside // model, model))
        except UserError:
            continue
        need = cost.step_bytes(tried.model, tried.pretrain, inside // model, model, replica)
        if need <= MARGIN * topology.hbm_bytes:
            found.append(Choice(tried, estimate_times(tried, topology), need))
    return sorted(found, key=lambda choice: (choice.times.bound, choice.bytes))


def estimate_times(c: Config, topology: Topology) -> roofline.Times:
    """The roofline with the collectives that the design calls for instead of those of a compiled program."""
    moved = roofline.predict_times(c)
    inside = {
        "bytes": sum(moved[k] for k in moved if k != "between slices"),
        "between_slices": False,
        "asynchronous": True,
    }
    between = {"bytes": moved["between slices"], "between_slices": True, "asynchronous": True}
    return roofline.train_times(c, topology, {"collectives": [inside, between]})

"""Which mesh, microbatch and remat to use on a topology: all choices ranked by arithmetic.

The order is by the roofline, recomputation included, with collectives waited for, as compilers
were seen to do; what does not fit by `memory.step_bytes` is left out.
"""

import itertools
from dataclasses import dataclass, replace

from ramp import config
from ramp.config import Config
from ramp.errors import UserError
from ramp.pods import roofline
from ramp.pods.chips import Topology
from ramp.pods.hlo import CollectiveTotal
from ramp.train import memory
from ramp.train import mesh as meshes

# Of the memory: compilers were found to need up to 1.25 times what `memory.step_bytes` says.
MARGIN = 0.8
MODEL_AXES = (1, 2, 4, 8, 16)  # tensor-parallel ways, inside a slice
MICROBATCHES = (1, 2, 4, 8, 16, 32)
REMATS = ("none", "saved", "full")
SHOWN = 8  # choices that are printed


@dataclass(frozen=True)
class Choice:
    """A configuration that fits, and what it costs."""

    c: Config
    times: roofline.Times
    bytes: float


def find_best(c: Config, topology: Topology) -> Config:
    """The fastest choice that fits, after printing the first few."""
    choices = rank_choices(c, topology)
    if not choices:
        raise UserError(
            f"nothing fits on {topology}, whatever the mesh, microbatch and remat; take more chips"
        )
    print(f"{'data':>6} {'model':>6} {'accum':>6} {'remat':>6} {'GiB':>7} {'ms':>9}  binds")
    for choice in choices[:SHOWN]:
        mesh, t, times = choice.c.mesh, choice.c.pretrain, choice.times
        print(
            f"{mesh.data:6} {mesh.model:6} {t.grad_accum_steps:6} {choice.c.model.remat:>6} "
            f"{choice.bytes / 2**30:7.2f} {1e3 * times.waiting:9.1f}  {times.binds}"
        )
    return choices[0].c


def rank_choices(c: Config, topology: Topology) -> list[Choice]:
    """All meshes, microbatches and remats that fit, fastest first."""
    m = replace(c.model, dtype="bfloat16") if c.model.dtype == "auto" else c.model
    c = config.resolve(replace(c, model=m))
    # A loss in pieces costs little and saves the logits, which are large.
    chunk = c.model.loss_chunk or max(c.pretrain.seq_len // 4, 1)
    # Slices are joined by data parallelism alone: the network between them is slow.
    replica = max(c.mesh.replica, topology.slices)
    inside = topology.device_count // replica
    choices = []
    # The grid is small, and a choice costs arithmetic only: all of them are tried.
    for model, accum, remat in itertools.product(MODEL_AXES, MICROBATCHES, REMATS):
        if inside % model or c.pretrain.batch_size % accum:
            continue
        data = inside // model
        tried = replace(
            c,
            mesh=replace(c.mesh, replica=replica, data=data, model=model),
            model=replace(c.model, remat=remat, loss_chunk=chunk),
            pretrain=replace(c.pretrain, grad_accum_steps=accum),
        )
        # A mesh that does not divide the model is no choice.
        try:
            meshes.check_divisible(tried, (replica, data, model), ("pretrain",))
        except UserError:
            continue
        needed = memory.step_bytes(tried.model, tried.pretrain, data, model, replica)
        if needed <= MARGIN * topology.hbm_bytes:
            choices.append(Choice(tried, _estimate_times(tried, topology), needed))
    return sorted(choices, key=lambda choice: (choice.times.waiting, choice.bytes))


def _estimate_times(c: Config, topology: Topology):
    """The roofline with the collectives of the design instead of those of a compiled program."""
    moved = roofline.predict_received(c)
    inside = moved.gathered + moved.scattered + moved.exchanged + moved.reduced
    totals = [
        CollectiveTotal("inside", True, False, 1, 1, inside),
        CollectiveTotal("between", True, True, 1, 1, moved.between_slices),
    ]
    return roofline.train_times(c, topology, totals)

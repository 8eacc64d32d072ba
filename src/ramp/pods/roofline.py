"""How long a planned step takes, by arithmetic: the time that compute, memory and each network need by themselves.

A step cannot be faster than the slowest of them, which is the bound; it reaches the bound only if all of them overlap.
Beside it stands what the TPU compiler's cycle estimates add up to, which see bad fusions and serial loops but neither
kernels (Pallas) nor waiting. None of these figures has been held against the hardware.
"""

from dataclasses import dataclass
from typing import Any

from ramp.config import Config, Model
from ramp.model import cost
from ramp.pods.chips import Topology

KERNEL_SHARE = 0.5  # of the peak that flash attention kernels reach; an assumption
PRODUCT_SHARE = (
    0.9  # of the peak that an 8192^3 product reaches; turns the compiler's cycles into seconds
)


@dataclass(frozen=True)
class Times:
    """Seconds of one step, by what they are spent on; `compiler` is 0 where the backend gives no estimate."""

    compute: float
    memory: float
    ici: float
    dcn: float
    compiler: float

    @property
    def bound(self) -> float:
        return max(self.compute, self.memory, self.ici, self.dcn)

    @property
    def binds(self) -> str:
        return max(("compute", "memory", "ici", "dcn"), key=lambda name: getattr(self, name))


def network(topology: Topology, collectives: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds on the links inside a slice and between slices, of the bytes that each device receives."""
    inside, between = (
        sum(k["bytes"] for k in collectives if k["between_slices"] == crossing)
        for crossing in (False, True)
    )
    return inside / topology.ici_rate, between / (
        topology.chip.dcn * 1e9 / topology.chip.devices_per_chip
    )


def predict_times(c: Config) -> dict[str, float]:
    """Bytes that the design has a device receive in a train step; the tests hold compiled programs against it.

    For each microbatch: every matrix gathered over "data" in half precision for the forward and for the backward pass
    (which shares it with what remat computes again), its float32 gradient scattered; between slices the scattered
    gradients all-reduced. Embedded rows are exchanged instead of tables; Muon exchanges matrices once a step, there and
    back; over "model", the partial sums of two products of a block in each direction.
    """
    m, t, (replica, data, model) = c.model, c.pretrain, (c.mesh.replica, c.mesh.data, c.mesh.model)
    others, half = (data - 1) / data, 2 if m.dtype == "bfloat16" else 4
    weights = (cost.count_matrix_params(m) + m.width * m.vocab_size) / model
    tables = 1 + m.depth * m.value_embeds * m.num_kv_heads * m.head_dim / m.width
    rows = t.batch_size * t.seq_len / (replica * data)
    again = m.remat != "none"
    return {
        "all-gather": t.grad_accum_steps * 2 * half * weights * others,
        "reduce-scatter": t.grad_accum_steps * cost.FLOAT32 * weights * others,
        "all-to-all": 2 * half * rows * m.width * tables * others
        + (
            2 * half * cost.count_matrix_params(m) / (data * model) * (data * model > 1)
            if t.optimizer == "muon"
            else 0
        ),
        "all-reduce": (4 + 2 * again) * m.depth * half * rows * m.width * 2 * (model - 1) / model,
        "between slices": t.grad_accum_steps
        * 2
        * cost.FLOAT32
        * weights
        / data
        * (replica - 1)
        / replica,
    }


def recompute_factor(m: Model) -> float:
    """Products of the forward pass that the backward pass does again, in FLOPs a token."""
    blocks = 0 if m.remat == "none" else 2 * cost.count_matrix_params(m)
    return blocks + (2 * m.width * m.vocab_size if m.loss_chunk else 0)


def traffic(c: Config, topology: Topology) -> float:
    """Bytes a device moves through its memory in a step: gathered weights written and read in each pass, activations
    of a block written and read in each pass, and the optimizer's arrays, float32."""
    m, t = c.model, c.pretrain
    split = topology.device_count // max(c.mesh.replica, 1)
    passes = 2 + (m.remat != "none")
    weights = (
        2 * 2 * passes * cost.count_matrix_params(m) / max(c.mesh.model, 1) * t.grad_accum_steps
    )
    one = 2 * (
        6 * m.width
        + 2 * (m.num_heads + m.num_kv_heads) * m.head_dim
        + 4 * m.mlp_dim / max(c.mesh.model, 1)
    )
    activations = (
        2
        * passes
        * one
        * m.depth
        * t.batch_size
        * t.seq_len
        / (topology.device_count / max(c.mesh.model, 1))
    )
    return weights + activations + 8 * cost.FLOAT32 * cost.count_params(m) / split


def train_times(c: Config, topology: Topology, program: dict[str, Any]) -> Times:
    m, t, peak = c.model, c.pretrain, topology.chips * topology.chip.bf16 * 1e12
    tokens = t.batch_size * t.seq_len
    flops = tokens * (cost.flops_per_token(m, t.seq_len) + recompute_factor(m))
    kernels = tokens * cost.attention_flops_per_token(m, t.seq_len) / (KERNEL_SHARE * peak)
    cycles = program.get("cycles") or 0
    seconds = (
        cycles / topology.chip.product_cycles * product_seconds(topology)
        if topology.chip.product_cycles
        else 0
    )
    waited = [k for k in program["collectives"] if not k["asynchronous"]]
    return Times(
        flops / peak,
        traffic(c, topology) / (topology.chip.hbm * 1e9 / topology.chip.devices_per_chip),
        *network(topology, program["collectives"]),
        seconds + kernels + sum(network(topology, waited)) if seconds else 0.0,
    )


def product_seconds(topology: Topology) -> float:
    """Of an 8192^3 bfloat16 product on one device."""
    return (
        2 * 8192**3 / (PRODUCT_SHARE * topology.chip.bf16 * 1e12 / topology.chip.devices_per_chip)
    )


def train_lines(c: Config, topology: Topology, program: dict[str, Any], price: float) -> list[str]:
    m, t, peak = c.model, c.pretrain, topology.chips * topology.chip.bf16 * 1e12
    times = train_times(c, topology, program)
    tokens, useful = (
        t.batch_size * t.seq_len,
        t.batch_size * t.seq_len * cost.flops_per_token(m, t.seq_len),
    )
    parts = ", ".join(
        f"{name} {1e3 * getattr(times, name):.1f}" for name in ("compute", "memory", "ici", "dcn")
    )
    lines = [f"{'':9} a step, in ms if alone: {parts}; {times.binds} binds"]
    ways = [("bound", times.bound)] + (
        [("compiler's cycles + kernels + waiting", times.compiler)] if times.compiler else []
    )
    for name, seconds in ways:
        hours = t.steps * seconds / 3600
        lines.append(
            f"{'':9} {name}: {1e3 * seconds:.1f} ms a step, MFU {useful / peak / seconds:.0%}, {tokens / seconds:,.0f} tokens/s, "
            f"{hours:,.2f} h for {t.steps:,} steps, {hours * topology.chips * price:,.0f} dollars"
        )
    return lines


def decode_lines(c: Config, topology: Topology, program: dict[str, Any]) -> list[str]:
    rows = decode_rows(c)
    least = decode_bytes(c, rows)
    moved = program.get("traffic") or 0
    seconds = least / (topology.chip.hbm * 1e9 / topology.chip.devices_per_chip)
    said = f"; the program moves {moved / 1e6:,.1f} MB, {moved / least:.2f}x" if moved else ""
    return [
        f"{'':9} a token of {rows} rows reads {least / 1e6:,.1f} MB of weights and full cache a device{said}; at best "
        f"{1e3 * seconds:.2f} ms, {rows / seconds:,.0f} tokens/s"
    ]


def decode_rows(c: Config) -> int:
    """Rows that are planned: 16, or one for each data-parallel row of devices where those are more."""
    ways = c.mesh.replica * c.mesh.data
    return max(1, 16 // ways) * ways


def decode_bytes(c: Config, rows: int) -> float:
    """What a device must read for one token of each row: the matrices and its rows' keys and values."""
    m, model = c.model, max(c.mesh.model, 1)
    weights = 2 * (cost.count_matrix_params(m) + m.width * m.vocab_size) / model
    return weights + cost.cache_bytes(m, rows, m.context_len) / (
        c.mesh.replica * c.mesh.data * model
    )

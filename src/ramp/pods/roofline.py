"""How long a planned step takes, by arithmetic: what compute, memory and each network need alone.

A step cannot be faster than the slowest of them, which is the bound; it reaches the bound only if
all of them overlap. Compared with it is the sum of the TPU compiler's cycle estimates, which see
bad fusions and serial loops but neither kernels (Pallas) nor waiting. None of these figures has
been checked on the hardware.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ramp.config import Config, Model
from ramp.model import cost
from ramp.pods.chips import Topology
from ramp.pods.hlo import CollectiveTotal, Work

KERNEL_FRACTION = 0.5  # of the peak that flash attention kernels reach; an assumption
# Of the peak that an 8192^3 product reaches; it turns the compiler's cycles into seconds.
PRODUCT_FRACTION = 0.9
PRODUCT_FLOPS = 2 * 8192**3
INDENT = " " * 9
ATTENTION, COLLECTIVES = "attention kernels", "collectives"  # beside the compiler's kinds of work
PARTS = ("compute", "memory", "ici", "dcn")


@dataclass(frozen=True)
class Times:
    """Seconds of one step, by what they are spent on."""

    compute: float
    memory: float
    ici: float  # links inside a slice
    dcn: float  # the network between slices
    # One after the other, by kind of work; empty where the compiler gives no estimate.
    serial: dict[str, float] = field(default_factory=dict)

    @property
    def waiting(self) -> float:
        """What to expect at best where collectives are waited for."""
        return max(self.compute, self.memory) + self.ici + self.dcn

    @property
    def compiler(self) -> float:
        """All kinds of work, one after the other."""
        return sum(self.serial.values())

    @property
    def bound(self) -> float:
        """The slowest part."""
        return getattr(self, self.binds)

    @property
    def binds(self) -> str:
        """The name of the slowest part."""
        return max(PARTS, key=lambda part: getattr(self, part))


def network_seconds(topology: Topology, totals: Sequence[CollectiveTotal]) -> tuple[float, float]:
    """Seconds inside a slice and between slices, of the bytes that each device receives."""
    between = sum(total.bytes for total in totals if total.between_slices)
    inside = sum(total.bytes for total in totals if not total.between_slices)
    return inside / topology.ici_rate, between / topology.chip.dcn_rate


@dataclass(frozen=True)
class Received:
    """Bytes that the design has a device receive in a train step."""

    gathered: float  # weights, all-gather
    scattered: float  # gradients, reduce-scatter
    exchanged: float  # embedded rows, and matrices by Muon, all-to-all
    reduced: float  # partial sums of tensor parallelism, all-reduce
    between_slices: float  # gradients


def predict_received(c: Config) -> Received:
    """What a step must move; the tests compare compiled programs with it.

    For each microbatch: every matrix gathered over "data" in half precision for the forward and for
    the backward pass (which shares it with what remat computes again), its float32 gradient
    scattered; between slices the scattered gradients all-reduced. Embedded rows are exchanged
    instead of tables; Muon exchanges matrices once a step, there and back; over "model", the
    partial sums of two products of a block in each direction.
    """
    m, t = c.model, c.pretrain
    replica, data, model = c.mesh.replica, c.mesh.data, c.mesh.model
    half = 2 if m.dtype == "bfloat16" else 4  # bytes
    others = (data - 1) / data
    matrices = cost.count_matrix_params(m)
    weights = (matrices + m.width * m.vocab_size) / model
    gradients = t.grad_accum_steps * cost.FLOAT32 * weights
    rows = t.batch_size * t.seq_len / (replica * data)
    tables = 1 + m.depth * m.value_embeds * m.num_kv_heads * m.head_dim / m.width
    exchanged = 2 * half * rows * m.width * tables * others
    if t.optimizer == "muon" and data * model > 1:
        exchanged += 2 * half * matrices / (data * model)
    sums = 4 if m.remat == "none" else 6  # of a block, in a step
    return Received(
        gathered=t.grad_accum_steps * 2 * half * weights * others,
        scattered=gradients * others,
        exchanged=exchanged,
        reduced=sums * m.depth * half * rows * m.width * 2 * (model - 1) / model,
        between_slices=2 * gradients / data * (replica - 1) / replica,
    )


def _recompute_flops(m: Model):
    """FLOPs per token of the forward pass that the backward pass does again."""
    blocks = 0 if m.remat == "none" else 2 * cost.count_matrix_params(m)
    return blocks + (2 * m.width * m.vocab_size if m.loss_chunk else 0)


def _memory_traffic(c: Config, topology: Topology):
    """Bytes that a device moves through its memory in a step.

    Gathered weights and the activations of a block, written and read in each pass, and the
    optimizer's arrays, float32.
    """
    m, t = c.model, c.pretrain
    model = max(c.mesh.model, 1)
    passes = 2 if m.remat == "none" else 3
    matrices = cost.count_matrix_params(m)
    weights = 2 * 2 * passes * matrices / model * t.grad_accum_steps
    rows = t.batch_size * t.seq_len / (topology.device_count / model)
    heads = 2 * (m.num_heads + m.num_kv_heads) * m.head_dim
    block = 2 * (6 * m.width + heads + 4 * m.mlp_dim / model)  # bytes per token
    activations = 2 * passes * block * m.depth * rows
    # Parameters, gradients and moments, read and written; split over the devices of a slice.
    split = topology.device_count // max(c.mesh.replica, 1)
    return weights + activations + 8 * cost.FLOAT32 * cost.count_params(m) / split


def train_times(
    c: Config,
    topology: Topology,
    totals: Sequence[CollectiveTotal],
    work: dict[str, Work] | None = None,
) -> Times:
    """The roofline of a train step with these collectives; work: of the compiled program."""
    m, t = c.model, c.pretrain
    peak = topology.device_count * topology.chip.flops
    tokens = t.batch_size * t.seq_len
    flops = cost.flops_per_token(m, t.seq_len) + _recompute_flops(m)
    return Times(
        tokens * flops / peak,
        _memory_traffic(c, topology) / topology.chip.hbm_rate,
        *network_seconds(topology, totals),
        _serial_times(c, topology, totals, work) if work and topology.chip.product_cycles else {},
    )


def _serial_times(c: Config, topology: Topology, totals, work: dict[str, Work]):
    """Seconds of each kind of work, if nothing overlaps."""
    t, chip = c.pretrain, topology.chip
    clock = chip.product_cycles * PRODUCT_FRACTION * chip.flops / PRODUCT_FLOPS
    kinds = {kind: one.cycles / clock + one.bytes / chip.hbm_rate for kind, one in work.items()}
    attention = t.batch_size * t.seq_len * cost.attention_flops_per_token(c.model, t.seq_len)
    kinds[ATTENTION] = attention / KERNEL_FRACTION / (topology.device_count * chip.flops)
    waited_for = [total for total in totals if not total.asynchronous]
    kinds[COLLECTIVES] = sum(network_seconds(topology, waited_for))
    return kinds


def describe_train(c: Config, topology: Topology, times: Times, price: float) -> list[str]:
    """Lines on the time, utilization and price of the whole training."""
    t = c.pretrain
    tokens = t.batch_size * t.seq_len
    useful = tokens * cost.flops_per_token(c.model, t.seq_len)
    peak = topology.device_count * topology.chip.flops
    parts = ", ".join(f"{part} {1e3 * getattr(times, part):.1f}" for part in PARTS)
    lines = [f"{INDENT} a step, in ms if alone: {parts}; {times.binds} binds"]
    if times.serial:
        kinds = (f"{k} {1e3 * s:,.0f} ({s / times.compiler:.0%})" for k, s in times.serial.items())
        lines.append(f"{INDENT} by kind, in ms: {'; '.join(kinds)}")
    estimates = {
        "bound, if everything overlaps (no run reaches it)": times.bound,
        "one after the other, by the compiler's cycles": times.compiler,
    }
    for name, seconds in estimates.items():
        if seconds:
            hours = t.steps * seconds / 3600
            lines.append(
                f"{INDENT} {name}: {1e3 * seconds:.1f} ms a step, "
                f"MFU {useful / peak / seconds:.0%}, {tokens / seconds:,.0f} tokens/s, "
                f"{hours:,.2f} h for {t.steps:,} steps, "
                f"{hours * topology.chips * price:,.0f} dollars"
            )
    return lines


def describe_decode(c: Config, topology: Topology, moved: float | None) -> list[str]:
    """A line on the bytes and time of a token; moved: bytes of the compiled program, if known."""
    rows = decode_rows(c)
    least = decode_bytes(c, rows)
    seconds = least / topology.chip.hbm_rate
    program = ""
    if moved:
        program = f"; the program moves {moved / 1e6:,.1f} MB, {moved / least:.2f}x"
    return [
        f"{INDENT} a token of {rows} rows reads {least / 1e6:,.1f} MB of weights and full cache "
        f"a device{program}; at best {1e3 * seconds:.2f} ms, {rows / seconds:,.0f} tokens/s"
    ]


def decode_rows(c: Config) -> int:
    """Rows that are planned: 16, or one for each data-parallel row of devices if those are more."""
    ways = c.mesh.replica * c.mesh.data
    return max(1, 16 // ways) * ways


def decode_bytes(c: Config, rows: int) -> float:
    """What a device must read for one token of each row: matrices, and its keys and values."""
    m, model = c.model, max(c.mesh.model, 1)
    weights = 2 * (cost.count_matrix_params(m) + m.width * m.vocab_size) / model
    cache = cost.cache_bytes(m, rows, m.context_len)
    return weights + cache / (c.mesh.replica * c.mesh.data * model)

"""What a compiled program tells of itself: its collectives, how often each runs, cycle estimates.

XLA's own cost analysis counts the body of a loop once; here the program is walked from its entry
with the trip counts of its loops multiplied. An asynchronous TPU collective appears several times,
in the fusions that start it, advance it and end it: their common name is counted once per place it
is run from. (Channel ids will not do: shard_map gives all collectives the same.)
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import numpy as np

CONTROL = {"while", "call", "conditional"}
# What a fusion is for, by the instructions inside it: the first kind that fits.
PRODUCTS, LOOKUPS, COPIES, REST = "products", "gathers, scatters, sorts", "copies", "norms, casts"
DECISIVE = {"convolution": PRODUCTS, "dot": PRODUCTS}
DECISIVE |= dict.fromkeys(("gather", "scatter", "sort"), LOOKUPS)
# Nothing is computed by these: alone in a fusion they make a copy.
MOVES = {"copy", "transpose", "reshape", "slice", "concatenate", "pad", "reverse"}
MOVES |= {"dynamic-slice", "dynamic-update-slice"}
# Instructions that move nothing: names for what is there already, and the ends of transfers.
FREE = {
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "constant",
    "copy-done",
    "slice-done",
    "after-all",
    "domain",
    "all-gather-done",
    "all-reduce-done",
    "collective-permute-done",
    "partition-id",
    "iota",
}
KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "send",
)
# Fusions of this name hold an all-reduce and a slice of it, and are computed as a scatter: they
# were measured to take a scatter's time (Austin et al., How to Scale Your Model, 2025, part 9).
FUSED_SCATTER = "all-reduce-scatter"
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
SHAPE = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
PLACED_SHAPE = re.compile(r"[a-z]+\d*[a-z0-9]*\[[\d,]*\](?:\{[^}]*\})?")
CALLED = re.compile(
    r"(?:calls|to_apply|called_computations|branch_computations|true_computation|"
    r"false_computation)=\{?(%[\w.-]+(?:, ?%[\w.-]+)*)\}?"
)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    op: str
    rest: str  # operands and attributes


@dataclass(frozen=True)
class Execution:
    """An instruction that a run of the program executes."""

    instruction: Instruction
    times: float
    scope: str  # the innermost loop body, or the entry
    computation: str  # that the instruction is written in


@dataclass(frozen=True)
class Collective:
    """One collective of the program, per device."""

    kind: str
    bytes: float  # received by one device each time
    count: float  # times a step
    group: int  # devices that take part
    asynchronous: bool
    between_slices: bool
    where: str  # the operation of the source that caused it


def _parse_computations(text):
    """The computations of an HLO module by name, and the name of the entry."""
    computations = {}
    entry, current = "", None
    for line in text.splitlines():
        if line[:1] in "%E" and line.endswith("{"):
            name = line.removeprefix("ENTRY ").split()[0].removeprefix("%")
            entry = name if line.startswith("ENTRY") else entry
            current = computations.setdefault(name, [])
        elif current is not None and (match := INSTRUCTION.match(line)):
            current.append(Instruction(*match.groups()))
    return computations, entry


def list_executions(text: str) -> Iterator[Execution]:
    """Every instruction that a run of the module executes, inside fusions too, and how often.

    Of a conditional the costlier branch runs: the update that is not skipped; of two windows, the
    wider.
    """
    computations, entry = _parse_computations(text)

    def walk(name: str, times: float, scope: str) -> Iterator[Execution]:
        for i in computations.get(name, []):
            yield Execution(i, times, scope, name)
            if i.op == "while":
                parts = dict(re.findall(r"(body|condition)=%?([\w.-]+)", i.rest))
                trips = _count_trips(i, computations[parts["condition"]])
                yield from walk(parts["body"], times * trips, parts["body"])
                continue
            called = _list_called(i)
            if i.op == "conditional":
                called = [max(called, key=weigh)]
            for part in called:
                yield from walk(part, times, scope)

    def weigh(name: str) -> tuple[float, int]:
        # Compilers without estimates leave the number of instructions.
        inside = list(walk(name, 1.0, name))
        return sum(e.times * read_cycles(e.instruction) for e in inside), len(inside)

    yield from walk(entry, 1.0, entry)


def read_cycles(i: Instruction) -> float:
    """The TPU compiler's estimate for an instruction; 0 where it has none."""
    estimate = re.search(r'"estimated_cycles":"(\d+)"', i.rest)
    cycles = int(estimate[1]) if estimate else 0
    return cycles if cycles < 1e12 else 0  # the largest integer stands for "unknown"


def _list_called(i: Instruction):
    """The computations that an instruction calls; not those of a loop."""
    return [name.strip(" %") for names in CALLED.findall(i.rest) for name in names.split(",")]


def _count_trips(loop: Instruction, condition):
    """How often a loop runs: the compiler's own figure, else the constant of its condition."""
    trips = re.findall(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
    if not trips:
        # Such a loop counts up to its only constant, or to its largest.
        constants = [i.rest for i in condition if i.op == "constant"]
        trips = re.findall(r"^(\d+)\)", "\n".join(constants), re.MULTILINE)
    return max(map(int, trips), default=1)


def list_moves(text: str) -> Iterator[tuple[Execution, float]]:
    """Every instruction that moves bytes of a TPU's main memory (HBM), and how many each time.

    Arrays in the scratchpad carry the layout mark S(1). A slice reads what it yields, an update in
    place writes what it is given, a gather reads the rows it returns; the cost analysis of XLA
    counts whole operands there.
    """
    executions = list(list_executions(text))
    # The inside of a fusion touches registers only: its operands and results are the fusion's.
    fused = set()
    shapes = {}
    for e in executions:
        shapes[e.computation, e.instruction.name] = e.instruction.shape
        if e.instruction.op not in CONTROL:
            fused.update(_list_called(e.instruction))
    for e in executions:
        moves = e.instruction.op not in FREE | CONTROL
        if moves and e.computation not in fused:
            operands = re.findall(r"%([\w.-]+)", e.instruction.rest.split("), ")[0])
            inputs = [shapes.get((e.computation, name), "") for name in operands]
            yield e, _count_moved_bytes(e.instruction, inputs)


def traffic(text: str) -> float:
    """Bytes that a TPU program moves through its main memory, loops multiplied."""
    return sum(e.times * moved for e, moved in list_moves(text))


def _count_moved_bytes(i: Instruction, inputs):
    """Bytes that one instruction reads and writes in main memory; inputs: shapes of operands."""
    sizes = [_count_memory_bytes(shape) for shape in inputs]
    both = sum(sizes) + _count_memory_bytes(i.shape)
    if i.op.endswith("-start"):
        # Between memory and scratchpad: (from, to, ...), of which the smaller is what travels.
        return min(list_bytes(i.shape)[:2], default=0.0)
    if "update" in i.name:
        largest = max(sizes, default=0.0)  # what is updated in place
        return 2 * (sum(sizes) - largest) if largest else both
    if "gather" in i.name or "slice" in i.name:
        return 2 * sum(list_bytes(i.shape))
    return both


def _count_memory_bytes(shape):
    """Bytes of the arrays of a type that are not in the scratchpad."""
    arrays = PLACED_SHAPE.findall(shape)
    return sum(sum(list_bytes(one)) for one in arrays if not re.search(r"S\([1-9]\)", one))


def list_bytes(shape: str) -> list[float]:
    """Bytes of each array in a type: `(f32[8,128]{1,0}, s32[])` is [4096, 4]."""
    sizes = []
    for kind, dims in SHAPE.findall(shape):
        # A name holds its number of bits: s4, bf16, f8e4m3fn; only pred has none.
        bits = re.search(r"\d+", kind)
        width = int(bits[0]) / 8 if bits else 1
        sizes.append(width * np.prod([int(d) for d in dims.split(",") if d], initial=1.0))
    return sizes


def list_collectives(text: str, per_slice: int, devices: int) -> list[Collective]:
    """The collectives of a step. per_slice: devices 0 .. per_slice-1 are the first slice."""
    collectives = {}
    for e in list_executions(text):
        i = e.instruction
        kind = i.op.removesuffix("-start")
        is_local_send = kind == "send" and "is_host_transfer=true" not in i.rest
        if kind not in KINDS or e.times == 0 or is_local_send:
            continue
        chain = re.search(r'(?:chain_id|async_collective_name)="([^"]*)"', i.rest)
        where = re.findall(r'op_name="([^"]*)"', i.rest)
        groups = parse_groups(i.rest, devices)
        largest = max(map(len, groups), default=devices)
        crosses = any(len({d // per_slice for d in group}) > 1 for group in groups)
        received = _count_received_bytes(kind, i, largest)
        if kind == "all-reduce" and e.computation.startswith(FUSED_SCATTER):
            # Of a sum whose parts alone are kept, half travels.
            kind, received = "reduce-scatter", received / 2
        collectives[e.scope, kind, chain[0] if chain else i.name] = Collective(
            kind,
            bytes=received,
            count=e.times,
            group=largest,
            asynchronous=i.op.endswith("-start") or chain is not None,
            between_slices=crosses or kind == "send",
            where=where[0] if where else "",
        )
    return list(collectives.values())


def _count_received_bytes(kind, i: Instruction, group):
    """Bytes that one device of `group` receives.

    Of a gather all shards but its own; of a scatter all partial sums of its shard.
    """
    sizes = list_bytes(i.shape)
    total = sum(sizes)
    # The type of a `-start` holds what goes in as well as what comes out.
    started = i.op.endswith("-start")
    others = (group - 1) / group
    match kind:
        case "all-gather":
            return total * others * (group / (group + 1) if started else 1)
        case "reduce-scatter":
            return total * (group - 1) / (group + 1 if started else 1)
        case "all-reduce":
            return 2 * total * others
        case "all-to-all":
            return total * others
    return max(sizes, default=0.0)


def parse_groups(rest: str, devices: int) -> list[list[int]]:
    """Replica groups in any of XLA's three spellings, or the pairs of a permutation."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", rest):
        return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])]
    # {{0,1},{2,3}}
    if listed := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", rest):
        return [_integers(group) for group in re.findall(r"\{([\d, ]+)\}", listed[1])]
    # [2,2]<=[2,2]T(1,0): a shape of groups, over device ids in an order of axes
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, order, axes = (_integers(part or "") for part in iota.groups())
        ids = np.arange(np.prod(order)).reshape(order)
        return (ids.transpose(axes) if axes else ids).reshape(shape).tolist()
    # mesh['x'=2,'y'=2] {'x'}: named axes, and those that are joined
    named = re.search(
        r"replica_groups=(?:@?\w+)?mesh\[([^\]]*)\](?:<=\[[\d,]+\])?\s*\{([^}]*)\}", rest
    )
    if named:
        names = re.findall(r"'(\w+)'=", named[1])
        sizes = [int(n) for n in re.findall(r"=(\d+)", named[1])]
        joined = [names.index(name) for name in re.findall(r"'(\w+)'", named[2])]
        ids = np.arange(np.prod(sizes)).reshape(sizes)
        # A group is all devices that differ in the joined axes alone.
        last = np.moveaxis(ids, joined, range(-len(joined), 0))
        return last.reshape(-1, np.prod([sizes[i] for i in joined], dtype=int)).tolist()
    return [list(range(devices))]


def _integers(text):
    return [int(n) for n in text.split(",") if n.strip()]


@dataclass(frozen=True)
class Work:
    """What instructions of one kind cost in a step."""

    cycles: float = 0  # the TPU compiler's estimates; it has none for kernels and waiting
    bytes: float = (
        0  # through main memory, of lookups and small kernels, which it does not estimate
    )


def sum_work(text: str, tokens: int = 1) -> dict[str, Work]:
    """The work of a TPU program by kind (PRODUCTS, LOOKUPS, COPIES, REST), for each of `tokens`."""
    computations, _ = _parse_computations(text)
    total = dict.fromkeys((PRODUCTS, LOOKUPS, COPIES, REST), Work())
    for e, moved in list_moves(text):
        i, ops = e.instruction, _list_ops(e.instruction, computations)
        kind = next((DECISIVE[op] for op in ops if op in DECISIVE), REST)
        if kind == REST and ops <= MOVES | FREE | {"fusion"}:
            kind = COPIES
        cycles, unknown = read_cycles(i), 0.0
        if kind == LOOKUPS and not cycles:
            # Small tables and sorts stay in the scratchpad, where it is no faster for single rows.
            unknown = _count_sort_passes(i) * max(moved, 2 * sum(list_bytes(i.shape)))
        elif "tpu_custom_call" in i.rest and "splash" not in i.name:
            # Kernels before and behind attention, whose own time is assumed.
            unknown = moved
        known = total[kind]
        times = e.times / tokens
        total[kind] = Work(known.cycles + times * cycles, known.bytes + times * unknown)
    return total


def _list_ops(i: Instruction, computations):
    """What an instruction consists of: itself, and what its fusion holds."""
    called = _list_called(i) if i.op == "fusion" else []
    inside = [_list_ops(part, computations) for name in called for part in computations[name]]
    return {i.op}.union(*inside)


def _count_sort_passes(i: Instruction):
    """How often a sorting network goes over its n numbers: log n (log n + 1) / 2; else 1."""
    if i.op != "sort":
        return 1
    n = max(list_bytes(i.shape)) / 4  # they are 32-bit
    return np.log2(n) * (np.log2(n) + 1) / 2


@dataclass(frozen=True)
class CollectiveTotal:
    """All collectives of one kind, by network and by whether they overlap with work."""

    kind: str
    asynchronous: bool
    between_slices: bool
    places: int  # in the program
    count: float  # times a step
    bytes: float  # received by one device in a step

    def __str__(self) -> str:
        """What it is a total of."""
        overlap = "overlapped" if self.asynchronous else "waited for"
        return f"{self.kind:18} {overlap} {'between slices' if self.between_slices else 'inside'}"


def sum_collectives(collectives: list[Collective]) -> list[CollectiveTotal]:
    """Totals in alphabetic order."""
    key = attrgetter("kind", "asynchronous", "between_slices")
    totals = []
    for kind, group in groupby(sorted(collectives, key=key), key):
        figures = [(1, one.count, one.count * one.bytes) for one in group]
        totals.append(CollectiveTotal(*kind, *map(sum, zip(*figures, strict=True))))
    return totals

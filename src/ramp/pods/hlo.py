"""What a compiled program says about itself: its collectives, how often each runs, and the compiler's cycle estimates.

XLA's own cost analysis counts the body of a loop once; here the program is walked from its entry with the trip counts of
its loops multiplied. An asynchronous TPU collective appears several times, in the fusions that start it, advance it and
end it: their common name is counted once per place it is run from. (Channels will not do: shard_map gives all the same.)
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

BYTES = {"pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
         "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "s4": 0.5, "u4": 0.5}  # fmt: skip
FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "copy-done", "slice-done", "after-all", "domain",
        "all-gather-done", "all-reduce-done", "collective-permute-done", "partition-id", "iota"}  # fmt: skip
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "send")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
SHAPE = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
CALLED = re.compile(r"(?:calls|to_apply|called_computations|branch_computations|true_computation|false_computation)="
                    r"\{?(%[\w.-]+(?:, ?%[\w.-]+)*)\}?")  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    op: str
    rest: str  # operands and attributes


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


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of an HLO module by name, and the name of the entry."""
    found: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line[:1] in "%E" and line.endswith("{"):
            name = re.match(r"(?:ENTRY )?%?([\w.-]+)", line)[1]
            entry = name if line.startswith("ENTRY") else entry
            current = found.setdefault(name, [])
        elif current is not None and (match := INSTRUCTION.match(line)):
            current.append(Instruction(*match.groups()))
    return found, entry


def count_executions(text: str) -> Iterator[tuple[Instruction, float, str]]:
    """Every instruction that a run of the module executes, how often, and the computation it is run from: that of the
    innermost loop, since a fusion belongs to its caller. Both branches of a conditional are counted."""
    parts, entry = computations(text)

    def walk(name: str, times: float, scope: str) -> Iterator[tuple[Instruction, float, str]]:
        for i in parts.get(name, []):
            yield i, times, scope
            if i.op == "while":
                condition, body = (
                    re.search(rf"{k}=%?([\w.-]+)", i.rest)[1] for k in ("condition", "body")
                )
                yield from walk(body, times * trips(i, parts[condition]), body)
            else:
                for names in CALLED.findall(i.rest):
                    for called in names.split(","):
                        yield from walk(called.strip().lstrip("%"), times, scope)

    yield from walk(entry, 1, entry)


def traffic(text: str) -> float:
    """Bytes that a TPU program moves through its main memory (HBM): what its instructions read and write there, loops
    multiplied. Arrays in the scratchpad carry the layout mark S(1). A slice reads what it yields, an update in place
    writes what it is given, a gather reads the rows it returns; the cost analysis of XLA counts whole operands there."""
    parts, entry = computations(text)
    total, todo = 0.0, [(entry, 1.0)]
    while todo:
        name, times = todo.pop()
        shapes = {i.name: i.shape for i in parts.get(name, [])}
        for i in parts.get(name, []):
            if i.op == "while":
                condition, body = (
                    re.search(rf"{k}=%?([\w.-]+)", i.rest)[1] for k in ("condition", "body")
                )
                todo.append((body, times * trips(i, parts[condition])))
            elif i.op in ("call", "conditional"):
                todo += [
                    (n.strip().lstrip("%"), times)
                    for names in CALLED.findall(i.rest)
                    for n in names.split(",")
                ]
            elif i.op not in FREE:
                total += times * _moved(i, shapes)
    return total


def _moved(i: Instruction, shapes: dict[str, str]) -> float:
    inputs = [shapes.get(name, "") for name in re.findall(r"%([\w.-]+)", i.rest.split("), ")[0])]
    read, written = sum(map(in_memory, inputs)), in_memory(i.shape)
    if i.op.endswith(
        "-start"
    ):  # between memory and scratchpad: (from, to, ...), the smaller is what travels
        return min(size(i.shape)[:2], default=0.0)
    if "update" in i.name:
        largest = max(map(in_memory, inputs), default=0.0)
        return 2 * (read - largest) if largest else read + written
    if "gather" in i.name or "slice" in i.name:
        return 2 * sum(size(i.shape))
    return read + written


def in_memory(shape: str) -> float:
    """Bytes of the arrays of a type that are not in the scratchpad."""
    placed = re.findall(r"[a-z]+\d*[a-z0-9]*\[[\d,]*\](?:\{[^}]*\})?", shape)
    return sum(sum(size(one)) for one in placed if not re.search(r"S\([1-9]\)", one))


def trips(loop: Instruction, condition: list[Instruction]) -> int:
    """How often a loop runs: what the compiler wrote down, else the constant that its condition compares with."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    constants = [
        int(i.rest.split(")")[0])
        for i in condition
        if i.op == "constant" and re.match(r"\d+\)", i.rest)
    ]
    return max(constants, default=1)


def size(shape: str) -> list[float]:
    """Bytes of each array in a type: `(f32[8,128]{1,0}, s32[])` is [4096, 4]."""
    out = []
    for kind, dims in SHAPE.findall(shape):
        n = BYTES.get(kind, 4)
        for d in filter(None, dims.split(",")):
            n *= int(d)
        out.append(n)
    return out


def collectives(text: str, per_slice: int, devices: int) -> list[Collective]:
    """The collectives of a step. per_slice: devices 0 .. per_slice-1 are the first slice, and so on."""
    seen: dict[tuple, Collective] = {}
    for i, times, scope in count_executions(text):
        kind = i.op.removesuffix("-start")
        if kind not in KINDS or times == 0:
            continue
        chain = re.search(r'(?:chain_id|async_collective_name)="([^"]*)"', i.rest)
        key = (scope, kind, chain[0] if chain else i.name)
        group, crosses = members(i.rest, per_slice, devices)
        if kind == "send" and "is_host_transfer=true" not in i.rest:
            continue
        where = re.search(r'op_name="([^"]*)"', i.rest)
        asynchronous = i.op.endswith("-start") or chain is not None
        seen[key] = Collective(
            kind,
            received_bytes(kind, i, group),
            times,
            group,
            asynchronous,
            crosses or kind == "send",
            where[1] if where else "",
        )
    return list(seen.values())


def received_bytes(kind: str, i: Instruction, group: int) -> float:
    """Bytes that one device receives: all shards but its own of a gather, all partial sums of its shard of a scatter."""
    sizes = size(i.shape)
    total = sum(sizes)
    started = i.op.endswith("-start")  # those carry what went in as well
    if kind == "all-gather":
        total *= group / (group + 1) if started else 1
        return total * (group - 1) / group
    if kind == "reduce-scatter":
        return total * (group - 1) / (group + 1 if started else 1)
    if kind == "all-reduce":
        return 2 * total * (group - 1) / group
    if kind == "all-to-all":
        return total * (group - 1) / group
    return max(sizes, default=0.0)


def members(rest: str, per_slice: int, devices: int) -> tuple[int, bool]:
    """How many devices a collective joins, and whether any of its groups crosses a slice."""
    groups = parse_groups(rest, devices)
    crosses = any(len({d // per_slice for d in group}) > 1 for group in groups)
    return max((len(g) for g in groups), default=devices), crosses


def parse_groups(rest: str, devices: int) -> list[list[int]]:
    """Replica groups in any of XLA's three spellings, or the pairs of a permutation."""
    import numpy as np

    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", rest):
        return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])]
    if listed := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", rest):
        return [[int(d) for d in g.split(",")] for g in re.findall(r"\{([\d, ]+)\}", listed[1])]
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, order, turn = ([int(n) for n in (g or "").split(",") if n] for g in iota.groups())
        ids = np.arange(np.prod(order)).reshape(order)
        return (ids.transpose(turn) if turn else ids).reshape(shape).tolist()
    if named := re.search(
        r"replica_groups=(?:@?\w+)?mesh\[([^\]]*)\](?:<=\[[\d,]+\])?\s*\{([^}]*)\}", rest
    ):
        axes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
        joined = re.findall(r"'(\w+)'", named[2])
        ids = np.arange(np.prod(list(axes.values()))).reshape(list(axes.values()))
        keep = [i for i, a in enumerate(axes) if a not in joined]
        over = [i for i, a in enumerate(axes) if a in joined]
        width = int(np.prod([ids.shape[i] for i in over], initial=1))
        return ids.transpose(keep + over).reshape(-1, width).tolist()
    return [list(range(devices))]


def cycles(text: str) -> float:
    """The TPU compiler's cycle estimates summed over the program; nothing for kernels and waiting (see the plan)."""
    total = 0.0
    for i, times, _ in count_executions(text):
        found = re.search(r'"estimated_cycles":"(\d+)"', i.rest)
        if found and int(found[1]) < 1e12:  # the largest integer stands for "unknown"
            total += times * int(found[1])
    return total

"""The programs of a run, compiled for a machine that is not here.

The step that is planned is the step that runs: `make_step` (of pretraining, of process-reward RL),
`sample.prefill` and the decode loop are lowered on abstract arrays over a mesh of compile-only
devices. Memory and collectives are the compiler's own. Time is arithmetic: a roofline
(`roofline.py`), compared with the cycles that the TPU compiler estimates for its fusions. None of
it has been checked on the hardware.

A plan is kept under the hash of the lowered program, the options and the versions: asked for again,
it costs the lowering only. (XLA's persistent cache saves nothing for compile-only devices.)
"""

import gzip
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ramp import config
from ramp.config import Config
from ramp.credit import learn, process_head
from ramp.decode import sample
from ramp.errors import UserError
from ramp.files import write_atomic
from ramp.model import transformer
from ramp.pods import hlo, roofline
from ramp.pods.chips import Topology, installed
from ramp.pods.hlo import Collective, CollectiveTotal
from ramp.pods.roofline import INDENT
from ramp.train import mesh as meshes
from ramp.train.mesh import ROWS
from ramp.train.state import abstract_state
from ramp.train.trainer import lower_train_step

LARGEST = 12  # collectives that a plan lists one by one
NEW_TOKENS = 128  # room for them in the output of the planned decode loop
UNITS = {"M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class ProgramPlan:
    """What the compiler tells of one program. Bytes are of one device."""

    fits: bool
    needs: float | None = None  # bytes, if the compiler gave up; it says nothing else then
    argument: int = 0
    alias: int = 0  # part of the arguments that is updated in place
    temporary: int = 0
    peak: int = 0
    collectives: list[CollectiveTotal] = field(default_factory=list)
    largest: list[Collective] = field(default_factory=list)
    cycles: float = 0
    traffic: float | None = None  # bytes through main memory, of TPUs
    compile_seconds: float = 0
    hlo: str = ""  # the compiled program; a saved plan has it as a file of its own

    @staticmethod
    def from_json(record: dict[str, Any]) -> "ProgramPlan":
        """The inverse of `asdict`."""
        totals = [CollectiveTotal(**total) for total in record["collectives"]]
        largest = [Collective(**one) for one in record["largest"]]
        return replace(ProgramPlan(**record), collectives=totals, largest=largest)


@dataclass(frozen=True)
class Plan:
    """The programs of a configuration on a topology."""

    topology: str
    mesh: dict[str, int]
    config: str  # TOML
    programs: dict[str, ProgramPlan]


def make_plan(c: Config, mesh: Mesh, topology: Topology, programs: Sequence[str]) -> Plan:
    """Compile `programs` for a topology; c and mesh are those of `resolve`."""
    compiled = {name: compile_program(name, LOWER[name](c, mesh), c, topology) for name in programs}
    return Plan(str(topology), dict(mesh.shape), config.to_toml(c), compiled)


def save(plan: Plan, directory: Path) -> None:
    """Write plan.json and the HLO of each program."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, program in plan.programs.items():
        if program.hlo:
            write_atomic(directory / f"{name}.hlo.txt", program.hlo)
    # Megabytes of text have no place in the JSON.
    programs = {name: replace(program, hlo="") for name, program in plan.programs.items()}
    record = asdict(replace(plan, programs=programs))
    write_atomic(directory / "plan.json", json.dumps(record, indent=2) + "\n")


def load(path: Path) -> Plan:
    """A saved plan: its file, or the directory it was saved to."""
    file = path / "plan.json" if path.is_dir() else path
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        programs = {name: ProgramPlan.from_json(p) for name, p in record["programs"].items()}
        return replace(Plan(**record), programs=programs)
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such plan; make one with `ramp plan CONFIG --topology ... --save {path}`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a plan ({error})") from None


def resolve(
    c: Config, topology: Topology, programs: Sequence[str] = ("train",)
) -> tuple[Config, Mesh]:
    """The configuration as the target would resolve it, and the mesh, which becomes jax's own."""
    stages = [STAGE_OF[name] for name in programs if name in STAGE_OF]
    m = c.model
    if m.dtype == "auto":
        m = replace(m, dtype="bfloat16")
    # Tracing the cuDNN kernel asks the library for its version.
    if topology.chip.kind == "gpu" and m.attention == "auto" and not installed("nvidia-cudnn-cu12"):
        m = replace(m, attention="xla")
    c = config.resolve(replace(c, model=m))
    # Slices are data-parallel unless the configuration says otherwise.
    if topology.slices > 1 and c.mesh.replica == 1:
        c = replace(c, mesh=replace(c.mesh, replica=topology.slices))
    shape = meshes.resolve_mesh_shape(c.mesh, topology.device_count)
    meshes.check_divisible(c, shape, stages)
    meshes.compiler_options(c.mesh)  # a wrong name is refused before anything is compiled
    axes = dict(zip(meshes.AXES, shape, strict=True))
    c = replace(c, mesh=replace(c.mesh, **axes))
    return c, meshes.make_mesh(c.mesh, topology.devices())


# Programs


def _lower_train(c: Config, mesh):
    """The update of pretraining."""
    return lower_train_step(c, c.pretrain, mesh)


def _lower_reinforce(c: Config, mesh):
    """The update of process-reward RL: policy and process head learn from the same rollouts."""
    t = c.reinforce

    def add_head(params: dict) -> dict:
        return params | {"process": process_head.init_head(c.model, params["lm"])}

    floats = ("weights", "advantage", "old", "labels", "label_weights", "lm_weights")
    return lower_train_step(c, t.train, mesh, learn.make_loss(c.model, t), add_head, floats)


def _abstract_params(c: Config, mesh):
    """The parameters as shapes on the mesh."""
    return abstract_state(lambda: transformer.init_params(c.model, jax.random.PRNGKey(0)), mesh)


def _abstract_prompts(c: Config, mesh):
    """Tokens, lengths and seeds as shapes; half the context is the prompt."""
    rows = roofline.decode_rows(c)
    # Rows are split like the rows of a training batch.
    make = partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, P(ROWS)))
    tokens = make((rows, c.model.context_len // 2), jnp.int32)
    return tokens, make((rows,), jnp.int32), make((rows,), jnp.uint32)


def _lower_prefill(c: Config, mesh):
    """The pass over the prompts."""
    params, prompts = _abstract_params(c, mesh), _abstract_prompts(c, mesh)
    return sample.prefill.lower(c.model, params, *prompts, c.model.context_len)


def _lower_decode(c: Config, mesh):
    """The loop that draws tokens into a cache as long as the context.

    Its outer loop ends when rows do, so the compiler counts one turn of it: `sample.TAIL` tokens.
    The plan divides by them.
    """
    params = _abstract_params(c, mesh)

    def prefill(params: dict, *prompts: jax.Array) -> sample.DecodeState:
        return sample.prefill(c.model, params, *prompts, c.model.context_len)

    # The arrays as the loop gets them: prepared weights, a filled cache, room for the output.
    weights = abstract_state(partial(sample.prepare_decode_params, c.model), mesh, params)
    state = abstract_state(prefill, mesh, params, *_abstract_prompts(c, mesh))
    state = abstract_state(partial(sample.init_output, n=NEW_TOKENS), mesh, state)
    sampling = sample.SamplingParams(top_k=50)
    return sample.decode_until.lower(c.model, weights, state, sampling, 0, NEW_TOKENS)


LOWER = {
    "train": _lower_train,
    "reinforce": _lower_reinforce,
    "prefill": _lower_prefill,
    "decode": _lower_decode,
}
# Stages whose step it is.
STAGE_OF = {"train": "pretrain", "reinforce": "reinforce"}
# Tokens that one program is of, as the compiler counts it; the figures of a plan are of one.
TOKENS = {"decode": sample.TAIL}


# Compiling


def compile_program(name: str, lowered: Any, c: Config, topology: Topology) -> ProgramPlan:
    """What the compiler tells of one program; from the cache where it was asked before."""
    options = meshes.compiler_options(c.mesh)
    # A new compiler may plan differently, so versions are part of the key; "" if it is not here.
    versions = [installed(package) for package in ("jax", "libtpu", "jax-cuda12-pjrt")]
    key = config.fingerprint(lowered.as_text(), str(topology), options, versions)
    path = _cache_dir() / f"{key}.json.gz"  # a program is megabytes of text
    if path.exists():
        return ProgramPlan.from_json(json.loads(gzip.decompress(path.read_bytes())))
    program = _compile_lowered(lowered, options, topology, TOKENS.get(name, 1))
    # A compiler that ran out of memory gives no figures worth keeping.
    if program.peak:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, gzip.compress(json.dumps(asdict(program)).encode()))
    return program


def _cache_dir():
    """Where plans are kept."""
    return Path(os.environ.get("RAMP_PLAN_CACHE", Path.home() / ".cache" / "ramp" / "plans"))


def _compile_lowered(lowered, options, topology: Topology, tokens):
    """Compile a program of `tokens` tokens and read what came out."""
    began = time.perf_counter()
    try:
        program = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # Only the message tells by how much.
        needs = re.search(r"\(([\d.]+)([GMT])\) exceeds", str(error))
        return ProgramPlan(False, needs=float(needs[1]) * UNITS[needs[2]] if needs else None)
    seconds = time.perf_counter() - began
    memory, text = program.memory_analysis(), program.as_text()
    argument, alias = memory.argument_size_in_bytes, memory.alias_size_in_bytes
    # What is returned but not written over an argument needs room of its own.
    peak = argument + memory.output_size_in_bytes - alias + memory.temp_size_in_bytes
    collectives = hlo.list_collectives(text, topology.per_slice, topology.device_count)
    collectives = [replace(one, count=one.count / tokens) for one in collectives]
    by_size = sorted(collectives, key=lambda one: -one.bytes * one.count)
    return ProgramPlan(
        fits=peak <= topology.hbm_bytes,
        argument=argument,
        alias=alias,
        temporary=memory.temp_size_in_bytes,
        peak=peak,
        collectives=hlo.sum_collectives(collectives),
        largest=by_size[:LARGEST],
        cycles=hlo.sum_cycles(text) / tokens,
        traffic=hlo.traffic(text) / tokens if topology.chip.kind == "tpu" else None,
        compile_seconds=seconds,
        hlo=text,
    )


# Plans as text


def describe(plan: Plan, c: Config, topology: Topology, dollars: float | None = None) -> str:
    """The plan as text. `c` is resolved; dollars: of a chip and hour, by default the list price."""
    price = topology.chip.dollars if dollars is None else dollars
    m = c.model
    lines = [
        f"{topology}: {topology.chips:,} chips, mesh {plan.mesh}",
        f"model     depth {m.depth}, width {m.width}, {m.num_heads} heads of {m.head_dim} over "
        f"{m.num_kv_heads} kv, mlp {m.mlp_dim}, vocabulary {m.vocab_size}, "
        f"context {m.context_len}, {m.dtype}, remat {m.remat}",
    ]
    for name, program in plan.programs.items():
        # Only the step of pretraining and the decode loop have a roofline.
        lines += ["", *_describe_memory(name, program, c, topology)]
        for total in program.collectives:
            lines.append(
                f"{INDENT} {total}: {total.places} places, {total.count:,.0f} times, "
                f"{total.bytes / 1e6:,.1f} MB a device"
            )
        if name == "train" and program.peak:
            times = roofline.train_times(c, topology, program.collectives, program.cycles)
            lines += roofline.describe_train(c, topology, times, price)
        if name == "decode" and program.peak:
            lines += roofline.describe_decode(c, topology, program.traffic)
    return "\n".join(lines)


def _describe_memory(name, p: ProgramPlan, c: Config, topology: Topology):
    """Whether a program fits, and what to change if not."""
    room = f"{_gib(topology.hbm_bytes)} a device"
    if not p.peak:
        needs = _gib(p.needs) if p.needs else "more than there is"
        return [f"{name:9} DOES NOT FIT: needs {needs} of {room}; {_advise(c)}"]
    verdict = "fits" if p.fits else f"DOES NOT FIT; {_advise(c)}"
    return [
        f"{name:9} {verdict}: peak {_gib(p.peak)} of {room} (arguments {_gib(p.argument)}, of "
        f"which {_gib(p.alias)} are updated in place; temporaries {_gib(p.temporary)}); "
        f"compiled in {p.compile_seconds:.0f} s"
    ]


def _gib(n):
    """Bytes as GiB."""
    return f"{n / 2**30:.2f} GiB"


def _advise(c: Config):
    """What to change first when memory is short, the cheapest first."""
    m, t = c.model, c.pretrain
    ways = []
    # Pieces of the loss cost nothing, remat costs FLOPs, microbatches cost gathers.
    if not m.loss_chunk:
        ways.append(f"--model.loss_chunk {max(t.seq_len // 8, 1)} (logits in pieces)")
    if m.remat != "full":
        ways.append(f"--model.remat {'saved' if m.remat == 'none' else 'full'}")
    if t.batch_size // t.grad_accum_steps > 1:
        ways.append(f"--pretrain.grad_accum_steps {2 * t.grad_accum_steps}")
    return "try " + (", then ".join(ways) or "more chips, or a mesh with a larger model axis")


def compare(a: Plan, b: Plan) -> str:
    """What changed between two saved plans, program by program."""
    lines = [f"{a.topology} {a.mesh}  ->  {b.topology} {b.mesh}"]
    # A program that only one of them has cannot be compared.
    for name in a.programs.keys() & b.programs.keys():
        before, after = a.programs[name], b.programs[name]
        for figure in ("argument", "temporary", "peak", "cycles"):
            x, y = getattr(before, figure), getattr(after, figure)
            if x and y:
                lines.append(f"{name:9} {figure:12} {x:18,.0f} -> {y:18,.0f}  ({y / x - 1:+.1%})")
        x, y = ({str(t): t.bytes / 1e6 for t in p.collectives} for p in (before, after))
        for key in sorted(x.keys() | y.keys()):
            lines.append(f"{name:9} {key} {x.get(key, 0):12,.1f} -> {y.get(key, 0):12,.1f} MB")
    old, new = a.config.splitlines(), b.config.splitlines()
    lines += [f"- {line}" for line in sorted({*old} - {*new})]
    lines += [f"+ {line}" for line in sorted({*new} - {*old})]
    return "\n".join(lines)

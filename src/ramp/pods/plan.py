"""The programs of a run, compiled for a machine that is not here.

The step that is planned is the step that runs: `make_step` (of pretraining, process-reward RL and
synthesis), `sample.prefill` and the decode loop are lowered on abstract arrays over a mesh of
compile-only devices. Memory and collectives are the compiler's own. Time is arithmetic: a roofline
(`roofline.py`), compared with the cycles that the TPU compiler estimates for its fusions. None of
it has been checked on the hardware.

A plan is kept under the hash of the lowered program, the options and the versions: asked for again,
it costs the lowering only. (XLA's persistent cache saves nothing for compile-only devices.)
"""

import gzip
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ramp import config
from ramp.config import Config, Reinforce
from ramp.credit import learn
from ramp.credit.rewards import Rewards
from ramp.credit.rollouts import Rollouts
from ramp.decode import sample
from ramp.decode.cache import round_to_bucket
from ramp.decode.sample import SamplingParams
from ramp.errors import UserError
from ramp.files import quote_path, write_atomic
from ramp.model import transformer
from ramp.pods import hlo, roofline
from ramp.pods.chips import Topology, installed
from ramp.pods.hlo import Collective, CollectiveTotal, Work
from ramp.pods.roofline import INDENT
from ramp.stages import STAGES
from ramp.synth import scores
from ramp.synth.generate import BATCH_SIZE
from ramp.synth.prompts import MAX_PROMPT_TOKENS
from ramp.train import mesh as meshes
from ramp.train.memory import COPIES_OF
from ramp.train.mesh import ROWS
from ramp.train.state import abstract_state
from ramp.train.trainer import lower_train_step

LARGEST = 12  # collectives that a plan lists one by one
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
    beside: int = 0  # what else stays on the device meanwhile
    collectives: list[CollectiveTotal] = field(default_factory=list)
    largest: list[Collective] = field(default_factory=list)
    work: dict[str, Work] = field(default_factory=dict)  # of TPUs, by kind
    traffic: float | None = None  # bytes through main memory, of TPUs
    compile_seconds: float = 0
    hlo: str = ""  # the compiled program; a saved plan has it as a file of its own

    @property
    def cycles(self) -> float:
        """All that the TPU compiler estimates."""
        return sum(work.cycles for work in self.work.values())

    @staticmethod
    def from_json(record: dict[str, Any]) -> "ProgramPlan":
        """The inverse of `asdict`."""
        totals = [CollectiveTotal(**total) for total in record["collectives"]]
        largest = [Collective(**one) for one in record["largest"]]
        work = {kind: Work(**one) for kind, one in record["work"].items()}
        return replace(ProgramPlan(**record), collectives=totals, largest=largest, work=work)


@dataclass(frozen=True)
class Plan:
    """The programs of a configuration on a topology."""

    topology: str
    mesh: dict[str, int]
    config: str  # TOML
    programs: dict[str, ProgramPlan]


def make_plan(c: Config, mesh: Mesh, topology: Topology, programs: Sequence[str]) -> Plan:
    """Compile `programs` for a topology; c and mesh are those of `resolve`."""
    names = [part for name in programs for part in list_programs(name)]
    compiled = {name: compile_program(name, LOWER[name](c, mesh), c, topology) for name in names}
    for name, beside in find_bytes_beside(compiled).items():
        program = compiled[name]
        fits = program.fits and program.peak + beside <= topology.hbm_bytes
        compiled[name] = replace(program, beside=beside, fits=fits)
    return Plan(str(topology), dict(mesh.shape), config.to_toml(c), compiled)


def find_bytes_beside(programs: dict[str, ProgramPlan]) -> dict[str, int]:
    """What stays on a device while programs run that do not know of it, by their name."""
    beside = {}
    if "reinforce" in programs:
        # What an update writes over is the state. Prompts are read with its weights.
        state, params = programs["reinforce"].alias, programs["reinforce-prefill"].argument
        beside = {"reinforce-prefill": max(state - params, 0), "reinforce-decode": state}
    if "synthesize" in programs:
        params = programs["synthesize-prefill"].argument
        # The first model, the one that samples, and the one that learns from it.
        beside |= {"synthesize": COPIES_OF["synthesize"] * params, "synthesize-prefill": params}
        beside |= {"synthesize-decode": 2 * params, "synthesize-scores": params}
    return beside


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
            f"{file}: no such plan; make one with "
            f"`ramp plan CONFIG --topology ... --save {quote_path(path)}`"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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


def _lower_finetune(c: Config, mesh):
    """The update of fine-tuning."""
    return lower_train_step(c, c.finetune, mesh)


def _lower_reinforce(c: Config, mesh):
    """An update of process-reward RL, with the very arrays that its settings make."""
    t = c.reinforce
    add_head, example = partial(learn.add_head, c.model, t), _make_rl_batch(t)
    loss, keeps_ref = learn.make_loss(c.model, t), learn.needs_ref(t)
    return lower_train_step(c, t.train, mesh, loss, add_head, keeps_ref, example)


def _make_rl_batch(t: Reinforce):
    """The rows of one update, from rollouts that say nothing."""
    # An iteration's, which its updates share.
    rows, n = t.num_prompts * t.group_size, t.max_new_tokens
    zero_bn = np.zeros((rows, n), np.float32)
    ids_bn = zero_bn.astype(np.int32)
    zero_bs = np.zeros((rows, n + 1), np.float32)
    ended_b = np.ones(rows, bool)
    # Problems and verdicts are not read here.
    nothing = ([], [], t.group_size, [[0]] * rows)
    r = Rollouts(*nothing, ids_bn, zero_bn, ids_bn, zero_bs, zero_bs, [None] * rows, ended_b)
    # Only some settings make these.
    ref_bt = np.zeros((rows, t.train.seq_len), np.float32) if learn.needs_ref(t) else None
    judged = learn.Judged(r, Rewards(zero_bn[:, 0]), zero_bn, ref_bt, 0)
    batch, _ = learn.make_batch(t, judged, 0)
    return {name: a[: t.train.batch_size] for name, a in batch.items()}


def _lower_synthesize(c: Config, mesh):
    """The update of a generation."""
    return lower_train_step(c, c.synthesize.train, mesh)


def _lower_scores(c: Config, mesh):
    """The largest program of scoring samples: projected gradients, with all logits of a batch."""
    make = partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, P(ROWS)))
    rows = round_to_mesh(c, BATCH_SIZE)
    ids_bt = make((rows, c.synthesize.max_new_tokens), jnp.int32)
    params, weights_bt = _abstract_params(c, mesh), make(ids_bt.shape, jnp.float32)
    return scores.sketch_gradients.lower(c.model, params, ids_bt, ids_bt, weights_bt)


def _abstract_params(c: Config, mesh):
    """The parameters as shapes on the mesh."""
    return abstract_state(lambda: transformer.init_params(c.model, jax.random.PRNGKey(0)), mesh)


@dataclass(frozen=True)
class Sampled:
    """What is sampled at once."""

    rows: int
    prompt: int  # tokens of the longest
    new: int  # tokens, at most
    sampling: SamplingParams
    stop: tuple[int, ...] = ()  # which ids they are makes no other program
    times: int = 1  # each prompt stands behind itself, and is read once


def _sample_chat(c: Config):
    """Answers: half the context is the prompt."""
    half = c.model.context_len // 2
    return Sampled(roofline.decode_rows(c), half, half, SamplingParams(top_k=50))


def _sample_rollouts(c: Config):
    """The rollouts of an iteration; prompts as long as the rows of the update leave room for."""
    t = c.reinforce
    rows = round_to_mesh(c, t.num_prompts * t.group_size)
    longest = t.train.seq_len - t.max_new_tokens
    times = math.gcd(t.group_size, rows // (c.mesh.replica * c.mesh.data))
    sampling = SamplingParams(t.temperature)
    return Sampled(rows, longest, t.max_new_tokens, sampling, stop=(0,), times=times)


def _sample_documents(c: Config):
    """The samples of a generation."""
    t = c.synthesize
    sampling = SamplingParams(t.temperature, t.top_k, min_p=t.min_p)
    rows = round_to_mesh(c, BATCH_SIZE)
    return Sampled(rows, MAX_PROMPT_TOKENS, t.max_new_tokens, sampling, stop=(0,))


def round_to_mesh(c: Config, rows: int) -> int:
    """Rows as the sampler fills them up for the mesh."""
    return rows + -rows % (c.mesh.replica * c.mesh.data)


def _abstract_prompts(c: Config, mesh, s: Sampled, times: int = 1):
    """Tokens, lengths and seeds as shapes, of every so many rows."""
    # Rows are split like the rows of a training batch.
    make = partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, P(ROWS)))
    width = min(round_to_bucket(s.prompt), c.model.context_len)
    rows = s.rows // times
    tokens = make((rows, width), jnp.int32)
    return tokens, make((rows,), jnp.int32), make((rows,), jnp.uint32)


def _cache_size(c: Config, s: Sampled):
    """Tokens that the cache holds at the end, when it is the largest."""
    return min(round_to_bucket(s.prompt + s.new), c.model.context_len)


def _lower_prefill(choose: Callable[[Config], Sampled], c: Config, mesh):
    """The pass over the prompts."""
    s = choose(c)
    params, prompts = _abstract_params(c, mesh), _abstract_prompts(c, mesh, s, s.times)
    return sample.prefill.lower(c.model, params, *prompts, _cache_size(c, s))


def _lower_decode(choose: Callable[[Config], Sampled], c: Config, mesh):
    """The loop that draws tokens into the largest cache.

    Its outer loop ends when rows do, so the compiler counts one turn of it: `sample.TAIL` tokens.
    The plan divides by them.
    """
    s, params = choose(c), _abstract_params(c, mesh)

    def prefill(params: dict, *prompts: jax.Array) -> sample.DecodeState:
        return sample.prefill(c.model, params, *prompts, _cache_size(c, s))

    # The arrays as the loop gets them: prepared weights, a filled cache, room for the output.
    weights = abstract_state(partial(sample.prepare_decode_params, c.model), mesh, params)
    state = abstract_state(prefill, mesh, params, *_abstract_prompts(c, mesh, s))
    state = abstract_state(partial(sample.init_output, n=s.new), mesh, state)
    return sample.decode_until.lower(c.model, weights, state, s.sampling, 0, s.new, s.stop)


LOWER = {
    "train": _lower_train,
    "finetune": _lower_finetune,
    "prefill": partial(_lower_prefill, _sample_chat),
    "decode": partial(_lower_decode, _sample_chat),
    "reinforce": _lower_reinforce,
    "reinforce-prefill": partial(_lower_prefill, _sample_rollouts),
    "reinforce-decode": partial(_lower_decode, _sample_rollouts),
    "synthesize": _lower_synthesize,
    "synthesize-prefill": partial(_lower_prefill, _sample_documents),
    "synthesize-decode": partial(_lower_decode, _sample_documents),
    "synthesize-scores": _lower_scores,
}
# Stages whose step it is.
STAGE_OF = {"train": "pretrain"} | {n: n for n in ("finetune", "reinforce", "synthesize")}


def list_programs(name: str) -> list[str]:
    """The programs that a stage, or a program by its name, consists of."""
    return [key for key in LOWER if key == name or key.startswith(f"{name}-")]


# Compiling


def compile_program(name: str, lowered: Any, c: Config, topology: Topology) -> ProgramPlan:
    """What the compiler tells of one program; from the cache where it was asked before."""
    options = meshes.compiler_options(c.mesh)
    # A new compiler may plan differently, so versions are part of the key; "" if it is not here.
    versions = [installed(package) for package in ("jax", "libtpu", "jax-cuda12-pjrt")]
    # A plan of older figures, or that was read in another way, is made again.
    reader = [list(ProgramPlan.__dataclass_fields__), Path(hlo.__file__).read_text("utf-8")]
    key = config.fingerprint(lowered.as_text(), str(topology), options, versions, reader)
    path = _cache_dir() / f"{key}.json.gz"  # a program is megabytes of text
    if path.exists():
        return ProgramPlan.from_json(json.loads(gzip.decompress(path.read_bytes())))
    tokens = sample.TAIL if name.endswith("decode") else 1
    program = _compile_lowered(lowered, options, topology, tokens)
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
    is_tpu = topology.chip.kind == "tpu"
    by_size = sorted(collectives, key=lambda one: -one.bytes * one.count)
    return ProgramPlan(
        fits=peak <= topology.hbm_bytes,
        argument=argument,
        alias=alias,
        temporary=memory.temp_size_in_bytes,
        peak=peak,
        collectives=hlo.sum_collectives(collectives),
        largest=by_size[:LARGEST],
        work=hlo.sum_work(text, tokens) if is_tpu else {},
        traffic=hlo.traffic(text) / tokens if is_tpu else None,
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
        lines += ["", *_describe_memory(name, program, c, topology)]
        for total in program.collectives:
            lines.append(
                f"{INDENT} {total}: {total.places} places, {total.count:,.0f} times, "
                f"{total.bytes / 1e6:,.1f} MB a device"
            )
        if name in STAGE_OF and program.peak:
            # An update's FLOPs are those of pretraining, also with LoRA: gradients are of matrices.
            of_stage = replace(c, pretrain=config.get(c, STAGES[STAGE_OF[name]].train))
            times = roofline.train_times(of_stage, topology, program.collectives, program.work)
            lines += roofline.describe_train(of_stage, topology, times, price)
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
    peak = _gib(p.peak) + (f" beside {_gib(p.beside)} that stay" if p.beside else "")
    return [
        f"{name:9} {verdict}: peak {peak} of {room} (arguments {_gib(p.argument)}, of "
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

"""`ramp plan CONFIG --topology v6e:16x16`: the programs of a run, compiled for a machine that is not here.

The step that is planned is the step that runs: `make_step` (of pretraining, of process-reward RL), `sample.prefill` and
the decode loop are lowered on abstract arrays over a mesh of compile-only devices. Memory and collectives are the
compiler's own. Time is arithmetic: a roofline (`roofline.py`), beside the cycles that the TPU compiler estimates for its
fusions. None of it has met the hardware.

A plan is kept under the hash of the lowered program, the options and the versions: asked for again, it costs the
lowering only. (XLA's persistent cache saves nothing for compile-only devices.)
"""

import gzip
import hashlib
import json
import os
import re
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
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
from ramp.train import mesh as meshes
from ramp.train.mesh import ROWS
from ramp.train.state import abstract_state
from ramp.train.trainer import lower_train_step

Report = dict[str, Any]


def plan(
    c: Config, topology: Topology, programs: tuple[str, ...], save: Path | None = None
) -> Report:
    """Compile `programs` of a configuration for a topology: {"topology", "mesh", "config", "programs": {name: ...}}."""
    c, mesh = prepare(c, topology)
    if save:
        save.mkdir(parents=True, exist_ok=True)
    report = {
        "topology": str(topology),
        "mesh": dict(mesh.shape),
        "config": config.to_toml(c),
        "programs": {
            name: compile_program(name, LOWER[name](c, mesh), c, topology, save)
            for name in programs
        },
    }
    if save:
        write_atomic(save / "plan.json", json.dumps(report, indent=2) + "\n")
    return report


def prepare(c: Config, topology: Topology) -> tuple[Config, jax.sharding.Mesh]:
    """The configuration as the target would resolve it, checked against the mesh, which becomes jax's current one."""
    m = c.model
    if m.dtype == "auto":
        m = replace(m, dtype="bfloat16")
    if topology.chip.kind == "gpu" and m.attention == "auto" and not installed("nvidia-cudnn-cu12"):
        m = replace(m, attention="xla")  # tracing the cuDNN kernel asks the library for its version
    c = config.resolve(replace(c, model=m))
    if topology.slices > 1 and c.mesh.replica == 1:
        c = replace(c, mesh=replace(c.mesh, replica=topology.slices))
    dims = meshes.resolve_mesh_shape(c.mesh, topology.device_count)
    meshes.check_divisible(c, dims)
    meshes.compiler_options(c.mesh)  # a wrong name is said before anything is compiled
    c = replace(c, mesh=replace(c.mesh, replica=dims[0], data=dims[1], model=dims[2]))
    return c, meshes.make_mesh(c.mesh, topology.devices())


# ---------------------------------------------------------------------------------------------------- programs
def lower_train(c: Config, mesh: jax.sharding.Mesh) -> Any:
    return lower_train_step(c, c.pretrain, mesh)


def lower_reinforce(c: Config, mesh: jax.sharding.Mesh) -> Any:
    """The update of process-reward RL: the policy and a process head learn from the same rollouts."""
    m, t = c.model, c.reinforce
    floats = ("weights", "advantage", "old", "labels", "label_weights", "lm_weights")
    return lower_train_step(
        c,
        t.train,
        mesh,
        learn.make_loss(m, t),
        lambda p: p | {"process": process_head.init_head(m, p["lm"])},
        floats,
    )


def _params(c: Config, mesh: jax.sharding.Mesh) -> Any:
    return abstract_state(lambda: transformer.init_params(c.model, jax.random.PRNGKey(0)), mesh)


def _prompts(c: Config, mesh: jax.sharding.Mesh) -> tuple[Any, ...]:
    """Tokens, lengths, seeds; half the context is the prompt."""
    B, place = roofline.decode_rows(c), NamedSharding(mesh, P(ROWS))
    make = partial(jax.ShapeDtypeStruct, sharding=place)
    return (
        make((B, c.model.context_len // 2), jnp.int32),
        make((B,), jnp.int32),
        make((B,), jnp.uint32),
    )


def lower_prefill(c: Config, mesh: jax.sharding.Mesh) -> Any:
    return sample.prefill.lower(c.model, _params(c, mesh), *_prompts(c, mesh), c.model.context_len)


def lower_decode(c: Config, mesh: jax.sharding.Mesh) -> Any:
    """The loop that draws tokens into a cache as long as the context. Its outer loop ends when rows do, so that the compiler
    counts one turn of it: `sample.TAIL` tokens. The plan divides by them."""
    params, prompts = _params(c, mesh), _prompts(c, mesh)
    weights = abstract_state(partial(sample.prepare_decode_params, c.model), mesh, params)
    stream = abstract_state(
        lambda p, *rest: sample.prefill(c.model, p, *rest, c.model.context_len),
        mesh,
        params,
        *prompts,
    )
    stream = abstract_state(partial(sample.init_output, n=128), mesh, stream)
    return sample.decode_until.lower(
        c.model, weights, stream, sample.SamplingParams(top_k=50), 0, 128
    )


TOKENS = {
    "decode": sample.TAIL
}  # that a program as the compiler counts it is of; figures are of one
LOWER = {
    "train": lower_train,
    "reinforce": lower_reinforce,
    "prefill": lower_prefill,
    "decode": lower_decode,
}


# ---------------------------------------------------------------------------------------------------- compiling
def compile_program(
    name: str, program: Any, c: Config, topology: Topology, save: Path | None = None
) -> Report:
    """What the compiler says of one program; from the cache where it has been asked before."""
    options = meshes.compiler_options(c.mesh)
    packages = [p for p in ("jax", "libtpu", "jax-cuda12-pjrt") if installed(p)]
    what = [
        program.as_text(),
        str(topology),
        sorted(options.items()),
        [(p, version(p)) for p in packages],
    ]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]
    kept = cache_dir() / f"{key}.json.gz"
    if kept.exists():
        found = json.loads(gzip.decompress(kept.read_bytes()))
    else:
        found = _compile(program, options, topology, TOKENS.get(name, 1))
        if "needs" not in found:
            kept.parent.mkdir(parents=True, exist_ok=True)
            scratch = kept.with_suffix(f".{os.getpid()}")
            scratch.write_bytes(gzip.compress(json.dumps(found).encode()))
            scratch.replace(kept)
    text = found.pop("hlo", "")
    if save and text:
        write_atomic(save / f"{name}.hlo.txt", text)
    return found


def cache_dir() -> Path:
    return Path(os.environ.get("RAMP_PLAN_CACHE", Path.home() / ".cache" / "ramp" / "plans"))


def _compile(lowered: Any, options: dict, topology: Topology, tokens: int = 1) -> Report:
    began = time.perf_counter()
    try:
        program = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs = re.search(r"\(([\d.]+)([GMT])\) exceeds", str(error))
        unit = {"M": 2**20, "G": 2**30, "T": 2**40}
        return {"fits": False, "needs": float(needs[1]) * unit[needs[2]] if needs else None}
    memory, text = program.memory_analysis(), program.as_text()
    resident = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    )
    peak = resident + memory.temp_size_in_bytes
    found = hlo.list_collectives(text, topology.per_slice, topology.device_count)
    found = [replace(one, count=one.count / tokens) for one in found]
    return {
        "fits": peak <= topology.hbm_bytes,
        "argument": memory.argument_size_in_bytes,
        "alias": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "peak": peak,
        "collectives": sum_collectives(found),
        "largest": [
            vars(one) for one in sorted(found, key=lambda one: -one.bytes * one.count)[:12]
        ],
        "cycles": hlo.sum_cycles(text) / tokens,
        "traffic": hlo.traffic(text) / tokens if topology.chip.kind == "tpu" else None,
        "compile_seconds": time.perf_counter() - began,
        "hlo": text,
    }


def sum_collectives(found: list[hlo.Collective]) -> list[Report]:
    """Collectives by kind, by whether they overlap with work, and by network."""
    totals: dict[tuple, list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for one in found:
        entry = totals[one.kind, one.asynchronous, one.between_slices]
        entry[0] += 1
        entry[1] += one.count
        entry[2] += one.count * one.bytes
    return [
        {
            "kind": kind,
            "asynchronous": a,
            "between_slices": b,
            "places": n,
            "count": count,
            "bytes": total,
        }
        for (kind, a, b), (n, count, total) in sorted(totals.items())
    ]


# ---------------------------------------------------------------------------------------------------- for a person
def describe(report: Report, c: Config, topology: Topology, dollars: float | None = None) -> str:
    """The plan as text. `c` is resolved, as `prepare` returns it."""
    price = topology.chip.dollars if dollars is None else dollars
    m = c.model
    lines = [
        f"{topology}: {topology.chips:,} chips, mesh {report['mesh']}",
        f"model     depth {m.depth}, width {m.width}, {m.num_heads} heads of {m.head_dim} over {m.num_kv_heads} kv, ff {m.mlp_dim}, "
        f"vocabulary {m.vocab_size}, context {m.context_len}, {m.dtype}, remat {m.remat}",
    ]
    for name, program in report["programs"].items():
        lines += ["", *_program(name, program, c, topology, price)]
    return "\n".join(lines)


def _program(name: str, p: Report, c: Config, topology: Topology, price: float) -> list[str]:
    room = topology.hbm_bytes
    if not p["fits"] and "peak" not in p:
        needs = f"{gib(p['needs'])} a device" if p["needs"] else "more than there is"
        return [f"{name:9} DOES NOT FIT: needs {needs} of {gib(room)}; {advice(c)}"]
    verdict = "fits" if p["fits"] else f"DOES NOT FIT; {advice(c)}"
    lines = [
        f"{name:9} {verdict}: peak {gib(p['peak'])} of {gib(room)} a device (arguments {gib(p['argument'])}, of which "
        f"{gib(p['alias'])} are updated in place; temporaries {gib(p['temporary'])}); compiled in {p['compile_seconds']:.0f} s"
    ]
    for kind in p["collectives"]:
        way = "overlapped" if kind["asynchronous"] else "waited for"
        net = "between slices" if kind["between_slices"] else "inside"
        lines.append(
            f"{'':9} {kind['kind']:18} {kind['places']:4} places {kind['count']:7,.0f} times {kind['bytes'] / 1e6:12,.1f} MB a "
            f"device, {way}, {net}"
        )
    if name == "train":
        lines += roofline.train_lines(c, topology, p, price)
    if name == "decode":
        lines += roofline.decode_lines(c, topology, p)
    return lines


def gib(n: float) -> str:
    return f"{n / 2**30:.2f} GiB"


def advice(c: Config) -> str:
    """What to change first when memory is short, by what it costs."""
    m, t = c.model, c.pretrain
    ways = []
    if not m.loss_chunk:
        ways.append(f"--model.loss_chunk {max(t.seq_len // 8, 1)} (logits in pieces)")
    if m.remat != "full":
        ways.append(f"--model.remat {'saved' if m.remat == 'none' else 'full'}")
    if t.batch_size // t.grad_accum_steps > 1:
        ways.append(f"--pretrain.grad_accum_steps {2 * t.grad_accum_steps}")
    return "try " + (", then ".join(ways) or "more chips, or a mesh with a larger model axis")


def diff(a: Report, b: Report) -> str:
    """What changed between two saved plans, program by program."""
    lines = [f"{a['topology']} {a['mesh']}  ->  {b['topology']} {b['mesh']}"]
    for name in a["programs"].keys() & b["programs"].keys():
        p, q = a["programs"][name], b["programs"][name]
        for key in ("argument", "temporary", "peak", "cycles"):
            if p.get(key) and q.get(key):
                lines.append(
                    f"{name:9} {key:12} {p[key]:18,.0f} -> {q[key]:18,.0f}  ({q[key] / p[key] - 1:+.1%})"
                )
        moved = [
            {
                (k["kind"], k["asynchronous"], k["between_slices"]): k["bytes"]
                for k in r.get("collectives", [])
            }
            for r in (p, q)
        ]
        for kind in sorted(moved[0].keys() | moved[1].keys()):
            before, after = (m.get(kind, 0) / 1e6 for m in moved)
            way = "overlapped" if kind[1] else "waited for"
            lines.append(f"{name:9} {kind[0]:18} {way} {before:12,.1f} -> {after:12,.1f} MB")
    was, now = (set(r["config"].splitlines()) for r in (a, b))
    lines += [f"- {line}" for line in sorted(was - now)] + [
        f"+ {line}" for line in sorted(now - was)
    ]
    return "\n".join(lines)


def load(path: Path) -> Report:
    file = path / "plan.json" if path.is_dir() else path
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such plan; make one with `ramp plan CONFIG --topology ... --save {path}`"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is not a plan ({error})") from None

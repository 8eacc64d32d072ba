"""Two real processes over loopback, two devices each: checkpoints cross over to one process and back."""

import json
import math
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ramp.train.checkpoint import Checkpoints
from ramp.train.fingerprint import fingerprint

# Run as is by both processes; `make`, `like` and `value` below are the same rules for one process.
WORKER = """
    import json, os, signal, sys
    import jax
    port, rank, ours, theirs = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    sys.path.insert(0, sys.argv[5])
    import test_two_processes as here
    from ramp.train.checkpoint import Checkpoints
    from ramp.train.fingerprint import fingerprint
    from ramp.train.preemption import Preemption, take_signals_back

    take_signals_back()  # as `mesh.connect_processes` does after joining
    assert jax.process_count() == 2 and jax.device_count() == 4 and jax.local_device_count() == 2
    said = {}
    mesh = here.mesh_of((2, 2))
    jax.set_mesh(mesh)

    # What one process saved; its newest step is spoilt, which must be seen by both.
    reader = Checkpoints(theirs)
    state, said["meta"], said["restored"] = reader.restore(here.like(mesh))
    said["fingerprint"], said["quarantined"] = fingerprint(state), [step for step, _ in reader.quarantined]
    reader.close()

    # A step that only one process cannot read is put aside by both, and the older one used by both.
    writer = Checkpoints(ours, keep=2)
    for step, score in [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]:
        writer.save(step, here.make(step, mesh), {"at": step}, score)
        writer.check()
    writer.wait()
    said["kept"] = writer.steps()
    if rank == 1:
        read, broken = writer._orbax.handler.restore, []
        def fail_once(*args, **kwargs):
            if not broken:
                broken.append(1)
                raise ValueError("unreadable here only")
            return read(*args, **kwargs)
        writer._orbax.handler.restore = fail_once
    said["fell_back_to"] = writer.restore(here.like(mesh))[2]
    writer.close()

    # SIGTERM to one process stops both at the same call, though `step` stands still and leaps.
    with Preemption() as stop:
        for poll in range(10**6):
            if poll == 3 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if stop.requested(step=10 * (poll // 10)):
                break
            jax.block_until_ready(jax.jit(lambda x: x.sum())(state["w"]))
    said["stopped_at"] = poll
    print(json.dumps(said))
    jax.distributed.shutdown()
"""


def mesh_of(shape):
    return jax.make_mesh(shape, ("data", "model"), devices=jax.devices()[: math.prod(shape)])


def value(step):
    rng = np.random.default_rng(step)
    return {
        "w": rng.normal(size=(8, 12)).astype(np.float32),
        "b": rng.normal(size=4).astype(np.float32),
        "n": np.int32(7),
    }


def sharding(mesh, name):
    return NamedSharding(
        mesh,
        {"w": PartitionSpec("data", "model"), "b": PartitionSpec("data")}.get(
            name, PartitionSpec()
        ),
    )


def make(step, mesh):
    def place(name, x):
        return jax.make_array_from_callback(x.shape, sharding(mesh, name), lambda index: x[index])

    return {name: place(name, np.asarray(x)) for name, x in value(step).items()}


def like(mesh):
    return {
        n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(mesh, n))
        for n, x in value(0).items()
    }


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_both(*arguments):
    """Both processes' reports. A failed one takes the other with it."""
    command, port = (
        [sys.executable, "-c", textwrap.dedent(WORKER), str(free_port())],
        Path(__file__).parent,
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    children = [
        subprocess.Popen(
            [*command, str(rank), *map(str, arguments), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        outputs = [child.communicate(timeout=200) for child in children]
    finally:
        for child in children:
            child.kill()
    for child, (_, err) in zip(children, outputs, strict=True):
        assert child.returncode == 0, err[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def same(state, step):
    return all(
        np.asarray(state[name]).tobytes() == np.asarray(x).tobytes()
        for name, x in value(step).items()
    )


def test_checkpoints_cross_between_two_processes_and_one(tmp_path):
    ours, theirs = tmp_path / "by_two", tmp_path / "by_one"
    mesh = mesh_of((4, 1))
    with jax.set_mesh(mesh):
        single = Checkpoints(theirs)
        for step in (1, 2):
            single.save(step, make(step, mesh), {"at": step})
        single.close()
    spoilt = max((theirs / "2" / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
    spoilt.write_bytes(spoilt.read_bytes()[:-5])

    reports = run_both(ours, theirs)
    for said in reports:
        assert said["restored"] == 1 and said["meta"] == {"at": 1} and said["quarantined"] == [2]
        assert said["fingerprint"] == fingerprint(value(1))
        assert said["kept"] == [1, 3, 4] and said["fell_back_to"] == 3
    assert reports[0]["stopped_at"] == reports[1]["stopped_at"] >= 3
    assert sorted(p.name for p in theirs.iterdir()) == ["1", "2.bad"]

    (ours / "4.bad").rename(ours / "4")  # nothing was wrong with it
    for shape in [(4, 1), (2, 2), (1, 1)]:
        mesh = mesh_of(shape)
        with jax.set_mesh(mesh):
            state, meta, step = Checkpoints(ours).restore(like(mesh))
        assert step == 4 and meta == {"at": 4} and same(state, 4)
        assert not same(state, 3)

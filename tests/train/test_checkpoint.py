"""Checkpoints: what is saved comes back bit for bit or not at all, and whatever is damaged is named."""

import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from ramp.errors import UserError
from ramp.files import warn_once
from ramp.interrupts import EXIT_PREEMPTED
from ramp.train.checkpoint import Checkpoints
from ramp.train.fingerprint import fingerprint, fingerprints
from ramp.train.preemption import Preempted, Preemption

State = namedtuple("State", "params opt_state ema step key")
MESHES = [(1, 1), (8, 1), (2, 4), (1, 8)]
# Orbax leaves coroutines behind when a read fails, which says nothing about us.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning"
)
META = {
    "config": "abc",
    "dtype": "bfloat16",
    "stage": "pretrain",
    "nested": {"lr": 0.1, "list": [1, None]},
}


def mesh_of(shape):
    return jax.make_mesh(shape, ("data", "model"), devices=jax.devices()[: math.prod(shape)])


def host_state(seed=0):
    """Numpy leaves of every dtype and rank that a training state has, an empty one and a None among them."""
    rng = np.random.default_rng(seed)
    params = {
        "embed.w": rng.normal(size=(128, 64)).astype(np.float32),
        "blocks": {"w": rng.normal(size=(2, 8, 16)).astype(np.float32).astype(jnp.bfloat16)},
        "scale": rng.normal(size=(8,)).astype(np.float16),
        "none_yet": np.zeros((0, 8), np.float32),
    }
    opt = (
        {"mu": rng.normal(size=(16, 8)).astype(np.float32)},
        {"count": np.int32(seed), "skip": np.array(seed % 2 > 0)},
    )
    return State(params, opt, None, np.int32(seed), np.array([1, 2**32 - 1 - seed], np.uint32))


def spec_of(x):
    return {2: PartitionSpec("data", "model"), 3: PartitionSpec(None, "data", "model")}.get(
        np.ndim(x), PartitionSpec()
    )


def on_mesh(state, mesh):
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec_of(x))), state)


def template(state, mesh):
    def leaf(x):
        return jax.ShapeDtypeStruct(
            np.shape(x), np.asarray(x).dtype, sharding=NamedSharding(mesh, spec_of(x))
        )

    return jax.tree.map(leaf, state)


def assert_bitwise(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def save_steps(directory, steps, **options):
    """Save host_state(step) for each step, on one device."""
    checkpoints = Checkpoints(directory, **options)
    for step in steps:
        checkpoints.save(step, on_mesh(host_state(step), mesh_of((1, 1))), META | {"at": step})
    checkpoints.close()


def restore(directory, mesh_shape=(1, 1), like=None, **options):
    mesh = mesh_of(mesh_shape)
    with jax.set_mesh(mesh):
        return Checkpoints(directory).restore(
            template(host_state(), mesh) if like is None else like, **options
        )


def data_files(step_directory):
    return sorted(
        (p for p in step_directory.rglob("*") if p.is_file()),
        key=lambda p: (-p.stat().st_size, str(p)),
    )


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


# ---- fingerprints


def slow_fingerprint(x):
    """The written rule in numpy, one word at a time in exact integers."""

    def mix(v):
        v = (v ^ (v >> 16)) * 0x7FEB352D % 2**32
        v = (v ^ (v >> 15)) * 0x846CA68B % 2**32
        return v ^ (v >> 16)

    x = np.ascontiguousarray(x)
    words = x.reshape(-1).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize]).tolist()
    u = [mix(word ^ mix(i)) for i, word in enumerate(words)]
    return [sum(u) % 2**32, sum(mix((v + 0x9E3779B9) % 2**32) for v in u) % 2**32]


def test_fingerprint_equals_the_slow_one_and_names_leaves():
    state = host_state(3)
    got = fingerprint(state)
    assert set(got) == {
        "params/embed.w", "params/blocks/w", "params/scale", "params/none_yet",
        "opt_state/0/mu", "opt_state/1/count", "opt_state/1/skip", "step", "key",
    }  # fmt: skip
    assert got["params/blocks/w"] == slow_fingerprint(state.params["blocks"]["w"])
    assert list(got.values()) == [slow_fingerprint(x) for x in jax.tree.leaves(state)]


@pytest.mark.parametrize("shape", MESHES)
def test_fingerprint_is_the_same_on_every_mesh(shape):
    with jax.set_mesh(mesh_of(shape)):
        assert fingerprint(on_mesh(host_state(5), mesh_of(shape))) == fingerprint(host_state(5))


@settings(max_examples=60, deadline=None)
@given(dtype=st.sampled_from(["float32", "bfloat16", "int32", "uint32"]), data=st.data())
def test_fingerprint_sees_one_bit_and_a_swap_of_rows(dtype, data):
    rows = (
        np.frombuffer(data.draw(st.binary(min_size=128, max_size=128)), np.uint8)
        .reshape(4, 32)
        .copy()
    )
    as_array = lambda raw: raw.view(jnp.dtype(dtype))  # noqa: E731
    before = fingerprint({"x": as_array(rows)})
    flipped = rows.copy()
    flipped[data.draw(st.integers(0, 3)), data.draw(st.integers(0, 31))] ^= 1 << data.draw(
        st.integers(0, 7)
    )
    assert fingerprint({"x": as_array(flipped)}) != before
    i, j = data.draw(st.permutations(range(4)))[:2]
    swapped = rows.copy()
    swapped[[i, j]] = swapped[[j, i]]
    assert (fingerprint({"x": as_array(swapped)}) == before) == bool((rows[i] == rows[j]).all())


def test_fingerprint_sees_a_swap_of_two_leaves():
    a, b = np.arange(6.0, dtype=np.float32), np.ones(6, np.float32)
    assert fingerprint({"a": a, "b": b}) != fingerprint({"a": b, "b": a})


def test_fingerprint_compiles_once_for_a_tree():
    state = {f"leaf{i}": np.full((i + 1, 7), i, np.float32) for i in range(20)}
    before = fingerprints._cache_size()
    fingerprint(state)
    fingerprint(jax.tree.map(lambda x: x + 1, state))
    assert fingerprints._cache_size() == before + 1


# ---- save and restore


@pytest.mark.parametrize("saved_on", [(2, 4), (1, 1)])
def test_restores_bitwise_onto_any_mesh(tmp_path, saved_on):
    mesh = mesh_of(saved_on)
    with jax.set_mesh(mesh):
        checkpoints = Checkpoints(tmp_path / "c")
        checkpoints.save(7, on_mesh(host_state(7), mesh), META)
        checkpoints.close()
    for shape in MESHES:
        state, meta, step = restore(tmp_path / "c", shape)
        assert step == 7 and meta == META
        assert_bitwise(state, host_state(7))
        assert state.params["embed.w"].sharding == NamedSharding(
            mesh_of(shape), PartitionSpec("data", "model")
        )


def test_like_may_come_from_eval_shape(tmp_path):
    """`jax.eval_shape` under a mesh gives shardings over an abstract mesh."""
    mesh = mesh_of((2, 4))
    with jax.set_mesh(mesh):
        state = on_mesh(host_state(1), mesh)
        like = jax.eval_shape(lambda s: jax.tree.map(lambda x: x, s), state)
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, state, META)
        assert_bitwise(checkpoints.restore(like)[0], host_state(1))


def test_the_state_may_be_donated_at_once(tmp_path):
    """The save goes on while the train step writes over the same buffers."""
    update = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    mesh = mesh_of((8, 1))
    with jax.set_mesh(mesh):
        first = {"w": np.arange(2**20, dtype=np.float32).reshape(1024, 1024)}
        checkpoints, state = Checkpoints(tmp_path), on_mesh(first, mesh)
        checkpoints.save(1, state, META)
        for _ in range(5):
            state = update(state)
        jax.block_until_ready(state)
        assert_bitwise(checkpoints.restore(template(first, mesh))[0], first)


def test_save_returns_before_the_step_is_on_disk(tmp_path, monkeypatch):
    checkpoints, allowed = Checkpoints(tmp_path), threading.Event()
    commit = checkpoints._orbax._save_step_metadata
    monkeypatch.setattr(
        checkpoints._orbax,
        "_save_step_metadata",
        lambda *a, **k: allowed.wait() and commit(*a, **k),
    )
    checkpoints.save(1, on_mesh(host_state(1), mesh_of((1, 1))), META)
    checkpoints.check()
    assert checkpoints.steps() == []
    allowed.set()
    checkpoints.wait()
    assert checkpoints.steps() == [1]


def test_meta_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="JSON"):
        Checkpoints(tmp_path / "c").save(
            1, on_mesh(host_state(1), mesh_of((1, 1))), {"x": object()}
        )
    assert not (tmp_path / "c").exists()


def test_nothing_saved_is_none(tmp_path):
    assert restore(tmp_path / "never") is None
    assert not (tmp_path / "never").exists()


def test_keeps_the_last_and_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    state = on_mesh(host_state(), mesh_of((1, 1)))
    for step, score in enumerate([math.nan, 1.0, 2.0, None, 3.0, 5.0]):
        checkpoints.save(step, state, META, score)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 4, 5] and checkpoints.best_step() == 1
    checkpoints.close()
    again = Checkpoints(tmp_path, keep=1, keep_best=False)
    assert again.best_step() == 1
    again.save(6, state, META, 9.0)
    again.close()
    assert again.steps() == [6]


def test_saving_the_latest_step_again_does_nothing_and_an_earlier_one_is_refused(tmp_path):
    save_steps(tmp_path, [1, 5])
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, on_mesh(host_state(9), mesh_of((1, 1))), META)
    assert_bitwise(restore(tmp_path)[0], host_state(5))
    with pytest.raises(UserError, match="holds step 5: to save step 3"):
        checkpoints.save(3, on_mesh(host_state(3), mesh_of((1, 1))), META)


def test_a_given_step_and_a_part_of_the_state(tmp_path):
    save_steps(tmp_path, [1, 2, 3], keep=3)
    like = template(host_state(), mesh_of((1, 1)))._replace(opt_state=None, key=None)
    state, meta, step = restore(tmp_path, like=like, step=2, partial=True)
    assert step == 2 and meta["at"] == 2 and state.opt_state is None
    assert_bitwise(state.params, host_state(2).params)
    with pytest.raises(UserError, match=r"has no step 9; it has \[1, 2, 3\]"):
        restore(tmp_path, step=9)


@pytest.mark.parametrize("change", ["dtype", "shape", "missing", "extra"])
def test_another_model_is_the_users_mistake_and_damages_nothing(tmp_path, change):
    save_steps(tmp_path, [1, 2])
    state = host_state()
    if change == "dtype":
        state = state._replace(step=np.float32(0))
    elif change == "shape":
        state.params["scale"] = np.zeros(9, np.float16)
    elif change == "missing":
        del state.params["scale"]
    else:
        state.params["more"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match="checkpoint of another model"):
        restore(tmp_path, like=template(state, mesh_of((1, 1))))
    assert Checkpoints(tmp_path).steps() == [1, 2]


# ---- damage


def quarantined(directory, caplog):
    """Restore; step 2 must have been put aside, aloud, and step 1 used."""
    checkpoints = Checkpoints(directory)
    with caplog.at_level(logging.WARNING):
        state, meta, step = checkpoints.restore(template(host_state(), mesh_of((1, 1))))
    assert step == 1 and meta["at"] == 1
    assert_bitwise(state, host_state(1))
    assert [s for s, _ in checkpoints.quarantined] == [2] and "2.bad" in caplog.text
    assert checkpoints.steps() == [1] and (directory / "2.bad").is_dir()


def test_a_flipped_byte_in_the_biggest_file(tmp_path, caplog):
    save_steps(tmp_path, [1, 2])
    biggest = data_files(tmp_path / "2")[0]
    assert biggest.parent.name == "d"  # array data
    flip(biggest, biggest.stat().st_size // 2)
    quarantined(tmp_path, caplog)


def empty(step):
    for path in data_files(step):
        path.unlink()


def truncate(step):
    biggest = data_files(step)[0]
    os.truncate(biggest, biggest.stat().st_size // 2)


def change_meta(step):
    path = step / "meta" / "metadata"
    path.write_text(path.read_text().replace('"abc"', '"abd"'))


@pytest.mark.parametrize(
    "harm",
    [
        empty,
        truncate,
        change_meta,
        lambda step: (step / "meta" / "metadata").unlink(),
        lambda step: (step / "meta" / "metadata").write_text("[]"),
        lambda step: (step / "state" / "manifest.ocdbt").write_bytes(b""),
        lambda step: [p.unlink() for p in (step / "state").rglob("d/*")],
    ],
    ids=[
        "emptied",
        "truncated",
        "meta-changed",
        "meta-missing",
        "meta-garbage",
        "manifest",
        "data-missing",
    ],
)
def test_a_damaged_step_is_put_aside(tmp_path, caplog, harm):
    save_steps(tmp_path, [1, 2])
    harm(tmp_path / "2")
    quarantined(tmp_path, caplog)


def test_a_step_directory_with_nothing_in_it(tmp_path, caplog):
    save_steps(tmp_path, [1])
    (tmp_path / "2").mkdir()
    quarantined(tmp_path, caplog)


def test_a_flip_anywhere_is_found_or_harmless(tmp_path):
    """Every file of a step, at several places: the restored values are the saved ones, or the step is put aside."""
    save_steps(tmp_path, [2])
    step, like = tmp_path / "2", template(host_state(), mesh_of((1, 1)))
    rng, found, tried = np.random.default_rng(0), 0, 0
    for path in data_files(step):
        whole, size = path.read_bytes(), path.stat().st_size
        for position in {0, size - 1, *rng.integers(size, size=4).tolist()}:
            flip(path, position, bit=int(rng.integers(8)))
            tried += 1
            try:
                state, meta, _ = Checkpoints(tmp_path).restore(like)
                assert_bitwise(state, host_state(2))
                assert meta == META | {"at": 2}
            except UserError as error:
                assert "is damaged" in str(error)
                found += 1
                (tmp_path / "2.bad").rename(step)
            path.write_bytes(whole)
    assert tried > 50 and found > tried // 4
    assert_bitwise(Checkpoints(tmp_path).restore(like)[0], host_state(2))


def test_all_damaged_raises_and_keeps_raising(tmp_path):
    save_steps(tmp_path, [1, 2])
    for step in (1, 2):
        empty(tmp_path / str(step))
    for _ in range(2):  # a job that is started again must not begin from nothing unawares
        with pytest.raises(UserError, match=r"every step .* damaged \(1.bad, 2.bad\); delete"):
            restore(tmp_path)


def test_a_step_that_only_a_stop_has_saved_is_never_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score, extra in ((2, 2.0, False), (3, 1.0, True), (4, 3.0, False)):
        state = on_mesh(host_state(step), mesh_of((1, 1)))
        checkpoints.save(step, state, META, score, extra)
    checkpoints.close()
    assert checkpoints.best_step() == 2


def test_readers_fall_back_from_the_best_step_aloud_and_change_nothing(tmp_path, caplog):
    """By score, then the newest without one; a step whose very record is damaged is named too."""
    checkpoints = Checkpoints(tmp_path, keep=9)
    for step, score in ((1, 0.3), (2, 0.1), (3, 0.2), (4, None)):
        checkpoints.save(step, host_state(step), META, score)
    checkpoints.close()
    like = template(host_state(), mesh_of((1, 1)))
    names, used = [], 0
    for harm, best in ((None, 2), (empty, 3), (change_meta, 1), (empty, 4)):
        if harm:
            names.append(f"step {used} of")
            harm(tmp_path / str(used))
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        warn_once.cache_clear()
        caplog.clear()
        state, _, step = Checkpoints(tmp_path).restore_best(like)
        assert_bitwise(state, host_state(best))
        assert step == best
        assert len(caplog.records) == bool(names)
        assert all(name in caplog.text for name in names)
        assert not names or f"step {best} is used" in caplog.text
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
        used = best
    empty(tmp_path / "4")
    with pytest.raises(UserError, match=r"every step .* \(1, 2, 3, 4\); do this"):
        Checkpoints(tmp_path, remedy="do this").restore_best(like)


def test_the_same_step_may_be_bad_twice(tmp_path):
    for _ in range(2):
        save_steps(tmp_path, [2])
        empty(tmp_path / "2")
        with pytest.raises(UserError):
            restore(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"2.bad", "2.bad_"}


def test_a_fault_of_the_machine_damages_no_checkpoint(tmp_path, monkeypatch):
    save_steps(tmp_path, [1, 2])
    checkpoints = Checkpoints(tmp_path)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(checkpoints._orbax.handler, "restore", refuse)
    with pytest.raises(PermissionError):
        checkpoints.restore(template(host_state(), mesh_of((1, 1))))
    assert checkpoints.steps() == [1, 2] and not checkpoints.quarantined


# ---- a save that fails


def big_state(megabytes):
    """Random, so that compression does not make it small."""
    bits = np.random.default_rng(0).integers(0, 2**32, megabytes * 2**18, dtype=np.uint32)
    return on_mesh({"w": bits}, mesh_of((1, 1)))


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs: {made.stderr}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_no_space_is_said_before_anything_is_written(small_disk):
    checkpoints = Checkpoints(small_disk / "c")
    with pytest.raises(RuntimeError, match=r"no space left .* 2\d\.\d MB free, 33\.6 MB wanted"):
        checkpoints.save(1, big_state(16), META)
    assert list((small_disk / "c").iterdir()) == []


def test_a_disk_that_fills_while_saving(small_disk, monkeypatch):
    monkeypatch.setattr(Checkpoints, "_require_space", lambda *_: None)
    checkpoints, state = Checkpoints(small_disk), big_state(16)
    checkpoints.save(1, state, META)
    checkpoints.wait()
    with pytest.raises(RuntimeError, match=r"step 2 was not saved .* the last complete step is 1"):
        checkpoints.save(2, state, META)
        while True:
            time.sleep(0.05)
            checkpoints.check()  # it is check() that must say it, not the next save
    assert [p.name for p in small_disk.iterdir()] == ["1"]
    checkpoints.close()
    mesh = mesh_of((1, 1))
    assert_bitwise(
        Checkpoints(small_disk).restore(template(jax.tree.map(np.asarray, state), mesh))[0], state
    )


def test_what_is_left_of_a_failed_save_may_vanish_meanwhile(tmp_path, monkeypatch):
    """A thread of the save may still remove its own files: the failure is told all the same."""

    def vanish(*_, **__):
        raise FileNotFoundError("manifest.ocdbt.__lock")

    save_steps(tmp_path, [1])
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    monkeypatch.setattr("shutil.rmtree", vanish)
    with pytest.raises(RuntimeError, match=r"was not saved .* the last complete step is 1"):
        checkpoints._fail(OSError("no space"))


def test_a_failure_in_the_background_reaches_check_and_wait(tmp_path, monkeypatch):
    save_steps(tmp_path, [1])
    for ask in (Checkpoints.check, Checkpoints.wait, Checkpoints.close):
        checkpoints = Checkpoints(tmp_path)
        monkeypatch.setattr(checkpoints._orbax, "_save_step_metadata", lambda *_, **__: 1 / 0)
        checkpoints.save(2, on_mesh(host_state(2), mesh_of((1, 1))), META)
        with pytest.raises(
            RuntimeError, match=r"step 2 was not saved .* the last complete step is 1"
        ):
            for _ in range(200):
                time.sleep(0.05)
                ask(checkpoints)
        assert [p.name for p in tmp_path.iterdir()] == ["1"]


SAVE_IN_A_LOOP = """
    import sys, numpy as np, jax, jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec
    from ramp.train.checkpoint import Checkpoints
    place = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec())
    value = lambda step: jnp.arange(2**19, dtype=jnp.uint32) * jnp.uint32(2 * step + 1)
    like = {"step": jax.ShapeDtypeStruct((), jnp.int32, sharding=place),
            "w": jax.ShapeDtypeStruct((2**19,), jnp.uint32, sharding=place)}
    checkpoints = Checkpoints(sys.argv[1])
    found, first = checkpoints.restore(like), 0
    if found:
        state, meta, first = found
        assert int(state["step"]) == first == meta["at"], "mixed steps"
        assert (np.asarray(state["w"]) == np.asarray(value(first))).all(), "wrong values"
    print("from", first, len(checkpoints.quarantined), flush=True)
    for step in range(first + 1, 10**6):
        state = {"step": jax.device_put(np.int32(step), place), "w": jax.device_put(value(step), place)}
        checkpoints.save(step, state, {"at": step}, score=float(step % 7))
        checkpoints.check()
"""


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_at_any_moment(tmp_path, kills):
    rng, reached = np.random.default_rng(), -1
    for delay in [*rng.uniform(0.02, 0.8, size=kills), 0]:
        command = [sys.executable, "-c", textwrap.dedent(SAVE_IN_A_LOOP), str(tmp_path / "c")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            word, step, bad = child.stdout.readline().split()
            while (
                reached == -1 and child.poll() is None and not Checkpoints(tmp_path / "c").steps()
            ):
                time.sleep(0.05)  # the first child lives until something is there to be spoilt
            time.sleep(delay)
            child.kill()
        assert word == "from" and bad == "0"
        assert int(step) >= reached, "a complete step was lost"
        reached = max(Checkpoints(tmp_path / "c").steps(), default=0)
    assert reached > 0


# ---- preemption


def test_a_signal_asks_and_a_second_interrupt_is_immediate(caplog):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Preempted), Preemption() as stop:
        assert not stop.requested(1)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested(2) and stop.requested(3)
        assert caplog.text.count("asked to stop") == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(Preempted), Preemption() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested(1)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert EXIT_PREEMPTED == os.EX_TEMPFAIL


def test_the_record_is_plain_json(tmp_path):
    save_steps(tmp_path, [4])
    record = json.loads((tmp_path / "4" / "meta" / "metadata").read_text())["record"]
    assert record["step"] == 4 and record["leaves"]["params/blocks/w"] == ["bfloat16", [2, 8, 16]]
    assert not [p for p in Path(tmp_path).rglob("*") if "pickle" in p.name or p.suffix == ".pkl"]

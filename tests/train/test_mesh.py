"""Meshes: which are possible, what must divide, and a batch that is the same on all of them."""

import math
import os
import subprocess
import sys
from importlib import metadata

import jax
import numpy as np
import pytest
import tiny

from ramp import config, host
from ramp.errors import UserError
from ramp.stages import STAGES
from ramp.train import mesh


@pytest.mark.parametrize(
    ("wish", "devices", "want"),
    [
        ((1, -1, 1), 8, (1, 8, 1)),
        ((2, -1, 2), 8, (2, 2, 2)),
        ((-1, 4, 1), 8, (2, 4, 1)),
        ((1, 2, -1), 8, (1, 2, 4)),
        ((1, 4, 2), 8, (1, 4, 2)),
        ((1, -1, 1), 1, (1, 1, 1)),
    ],
)
def test_shape(wish, devices, want):
    assert mesh.resolve_mesh_shape(config.Mesh(*wish), devices) == want


@pytest.mark.parametrize("wish", [(1, 3, 1), (3, -1, 1), (1, 4, 1), (4, -1, 4), (1, 16, 1)])
def test_impossible_meshes_are_named(wish):
    with pytest.raises(UserError, match=rf"mesh.data = {wish[1]}.* does not fill the 8 devices"):
        mesh.resolve_mesh_shape(config.Mesh(*wish), 8)


def test_make_sets_the_mesh_with_explicit_axes():
    with jax.set_mesh(tiny.mesh()):
        made = mesh.make_mesh(config.Mesh(replica=2, model=2))
        assert jax.sharding.get_mesh() == made
    assert dict(made.shape) == {"replica": 2, "data": 2, "model": 2}
    assert set(made.axis_types) == {jax.sharding.AxisType.Explicit}


def run(**over):
    model = tiny.model(**over.pop("model", {}))
    stages = {
        name: config.Train(batch_size=16, seq_len=16, steps=1) for name in ("pretrain", "finetune")
    }
    return config.resolve(
        config.Config(text=config.Text(vocab_size=264), model=model, **(stages | over))
    )


@pytest.mark.parametrize(
    ("key", "over", "dims"),
    [
        ("model.width", {"model": {"width": 60}}, (1, 8, 1)),
        ("model.vocab_size", {"model": {"vocab_size": 321}}, (1, 1, 2)),
        ("model.num_heads", {"model": {"num_heads": 6, "num_kv_heads": 2}}, (1, 1, 4)),
        ("model.num_kv_heads", {}, (1, 1, 4)),
        ("model.mlp_dim", {"model": {"mlp_dim": 130, "num_kv_heads": 4}}, (1, 1, 4)),
        (
            "pretrain.batch_size",
            {"pretrain": config.Train(batch_size=12, seq_len=16, steps=1)},
            (2, 4, 1),
        ),
        (
            "pretrain.batch_size / pretrain.grad_accum_steps",
            {"pretrain": config.Train(batch_size=16, grad_accum_steps=4, seq_len=16, steps=1)},
            (1, 8, 1),
        ),
        (
            "finetune.batch_size",
            {"finetune": config.Train(batch_size=4, seq_len=16, steps=1)},
            (1, 8, 1),
        ),
        ("eval.batch_size", {"eval": config.Eval(batch_size=10)}, (1, 4, 1)),
    ],
)
def test_what_does_not_divide_is_named_with_its_key(key, over, dims):
    over = {"model": {"num_kv_heads": 4}} | over if key == "pretrain.batch_size" else over
    c = run(**over)
    mesh.check_divisible(c, (1, 1, 1), STAGES)
    with pytest.raises(
        UserError, match=rf"{key} = \d+ does not divide over {math.prod(dims)} devices.* would"
    ):
        mesh.check_divisible(c, dims, STAGES)


def test_all_that_does_not_divide_is_said_at_once_with_what_would():
    c = run(model={"width": 60, "num_kv_heads": 4}, eval=config.Eval(batch_size=10))
    with pytest.raises(UserError) as caught:
        mesh.check_divisible(c, (1, 3, 1), ("pretrain",))
    said = str(caught.value)
    assert "pretrain.batch_size = 16 does not divide over 3 devices (15 or 18 would)" in said
    assert "eval.batch_size = 10" in said and "finetune" not in said and "\n" not in said
    assert said.count("pretrain.batch_size") == 1
    # Only what runs counts.
    mesh.check_divisible(run(eval=config.Eval(batch_size=10)), (1, 4, 1), ("reinforce",))


def test_the_mesh_that_is_offered_works():
    c = run(model={"width": 64}, reinforce=config.Reinforce(num_prompts=6, group_size=2))
    with pytest.raises(UserError, match=r"model.width.*--mesh.replica 3 --mesh.data 1"):
        mesh.check_divisible(c, (1, 3, 1), ("reinforce",))
    offered = mesh.resolve_mesh_shape(config.Mesh(replica=3, data=1), 3)
    mesh.check_divisible(c, offered, ("reinforce",))


def test_what_check_passes_can_be_made():
    """The widest meshes that `check` allows do hold this model's parameters, the switches' tables included."""
    c = run(model=tiny.ALL)
    for dims in ((1, 8, 1), (2, 2, 2)):
        mesh.check_divisible(c, dims, STAGES)
        with jax.set_mesh(tiny.mesh(*dims)):
            tiny.init(c.model)


def test_value_tables_are_checked_too():
    """Their side of kv_heads x head_dim is split over `data`."""
    c = run(model={"value_embeds": True, "num_kv_heads": 1, "head_dim": 12})
    with pytest.raises(UserError, match="num_kv_heads"):
        mesh.check_divisible(c, (1, 8, 1), STAGES)


@pytest.mark.parametrize("dims", [(1, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2), (1, 1, 8)])
def test_put_batch_gives_the_same_batch_on_every_mesh(dims):
    whole = {
        "tokens": tiny.tokens(16, 5),
        "weights": np.random.default_rng(0).random((16, 5)).astype(np.float32),
    }
    asked = []

    def rows(lo, hi):
        asked.append((lo, hi))
        return {name: a[lo:hi] for name, a in whole.items()}

    made = mesh.shard_batch(tiny.mesh(*dims), rows, 16)
    parts = dims[0] * dims[1]
    for name, array in made.items():
        np.testing.assert_array_equal(array, whole[name])
        assert array.sharding.shard_shape(array.shape) == (16 // parts, 5)
    assert sorted(asked) == [
        (i * 16 // parts, (i + 1) * 16 // parts) for i in range(parts)
    ]  # each row is made once


def test_float32_on_a_cpu_is_multiplied_by_eigen():
    """In a process of its own: XLA reads its flags once."""
    said = (
        "import jax, jax.numpy as jnp; from ramp import config, host\n"
        "host.setup_devices(config.Config(model=config.Model(dtype='float32')), one_each=True)\n"
        "x = jnp.ones((256, 256)); print(jax.jit(lambda x: x @ x).lower(x).compile().as_text())"
    )
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", said], env=env, capture_output=True, text=True, check=True
    )
    assert "dot" in done.stdout and "ynn" not in done.stdout


def test_eigen_is_asked_for_once_and_for_float32_alone(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--mine=1")
    host.prefer_eigen(config.Config(model=config.Model(dtype="bfloat16")))
    assert os.environ["XLA_FLAGS"] == "--mine=1"
    for _ in range(2):
        host.prefer_eigen(config.Config(model=config.Model(dtype="float32")))
    assert os.environ["XLA_FLAGS"] == f"--mine=1 {host.EIGEN}"


def test_eigen_is_not_asked_of_an_xla_that_was_not_tried(monkeypatch):
    """It ends the process that does not know the flag."""
    monkeypatch.setenv("XLA_FLAGS", "--mine=1")
    monkeypatch.setattr(metadata, "version", lambda name: "0.13.0")
    host.prefer_eigen(config.Config(model=config.Model(dtype="float32")))
    assert os.environ["XLA_FLAGS"] == "--mine=1"


@pytest.mark.parametrize(
    ("device", "package", "chosen", "want"),
    [
        (None, "libtpu", None, "cpu"),
        (None, "jax_cuda12_plugin", None, "cpu"),
        (None, None, None, None),  # no compiler for other machines: jax looks by itself, in silence
        ("nvidia0", "libtpu", None, None),
        ("accel0", "libtpu", None, None),
        ("vfio/0", "libtpu", None, None),
        ("vfio/vfio", "libtpu", None, "cpu"),  # the driver without a device
        (None, "libtpu", ("JAX_PLATFORMS", ""), ""),
        (None, "libtpu", ("TPU_WORKER_ID", "0"), None),
    ],
)
def test_jax_is_kept_to_the_cpu_where_only_compilers_for_others_are(
    tmp_path, monkeypatch, device, package, chosen, want
):
    for name in [n for n in os.environ if n.startswith(("JAX_PLATFORM", "JAX_FORCE_TPU", "TPU_"))]:
        monkeypatch.delenv(name)
    # Set and unset, so that monkeypatch takes back what the function sets.
    monkeypatch.setenv("JAX_PLATFORMS", "before")
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: name == package or None)
    if chosen:
        monkeypatch.setenv(*chosen)
    if device:
        (tmp_path / device).parent.mkdir(exist_ok=True)
        (tmp_path / device).touch()
    host.skip_absent_devices(tmp_path)
    assert os.environ.get("JAX_PLATFORMS") == want


def test_huge_pages_are_asked_for_once(monkeypatch):
    asked = []
    monkeypatch.setattr(
        host.os, "execve", lambda program, argv, env: asked.append(env["GLIBC_TUNABLES"])
    )
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    host.use_huge_pages()
    able = len(asked)  # 0 where glibc or the kernel cannot
    monkeypatch.setenv("GLIBC_TUNABLES", host.TUNABLE)
    host.use_huge_pages()
    assert asked == [host.TUNABLE] * able and able <= 1 and host.has_huge_pages()


@pytest.mark.parametrize(
    ("environment", "plugin", "device", "small"),
    [
        ({}, "", "", True),
        ({}, "", "nvidia0", True),  # jax without a plugin computes on the CPU all the same
        ({}, "jax_cuda13_plugin", "nvidia0", False),
        ({}, "jax_cuda13_plugin", "", True),
        ({"JAX_PLATFORMS": "cpu"}, "libtpu", "accel0", True),
        ({"JAX_PLATFORMS": "cpu,cuda"}, "libtpu", "accel0", True),
        ({"JAX_PLATFORM_NAME": "cpu"}, "libtpu", "accel0", True),
        ({"JAX_PLATFORMS": "tpu,cpu"}, "", "", False),
        ({"JAX_PLATFORMS": "proxy"}, "", "", False),
        ({"RAMP_DISTRIBUTED": "1"}, "", "", False),
    ],
)
def test_who_computes_without_bfloat16(monkeypatch, tmp_path, environment, plugin, device, small):
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "RAMP_DISTRIBUTED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if device:
        (tmp_path / device).touch()
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: name == plugin or None)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512f\n")
    assert host.lacks_bfloat16(tmp_path, cpuinfo) == small
    for text in ("flags\t\t: fpu avx512_bf16\n", "Features\t: fp asimd\n"):
        cpuinfo.write_text(f"processor\t: 0\n{text}")
        assert not host.lacks_bfloat16(tmp_path, cpuinfo)
    cpuinfo.unlink()
    assert not host.lacks_bfloat16(tmp_path, cpuinfo)

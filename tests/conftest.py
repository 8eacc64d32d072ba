"""Every test runs on the CPU, with eight virtual devices so that meshes of all shapes can be tried."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs this small spend their time in the compiler: these two flags make it four times as quick.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

import jax

jax.config.update("jax_num_cpu_devices", 8)

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("shared", deadline=None)  # a busy machine is no failure
settings.load_profile("shared")


@pytest.fixture(autouse=True)
def same_mesh_after():
    """jax's current mesh is global; a test that sets one, by calling the command line for example, takes it back."""
    before = jax.sharding.get_mesh()
    yield
    jax.set_mesh(before)

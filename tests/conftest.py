"""Every test runs on the CPU, with eight virtual devices so that meshes of all shapes can be tried."""

import os
from importlib import metadata

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs this small spend their time in the compiler: these flags make it up to four times as quick.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# From jax 0.11 on XLA does not know this one, and a flag that it does not know ends the process.
if metadata.version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", QUICK)

import jax  # noqa: E402

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

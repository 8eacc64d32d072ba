"""Every test runs on the CPU, with eight virtual devices so that meshes of all shapes can be tried."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_num_cpu_devices", 8)

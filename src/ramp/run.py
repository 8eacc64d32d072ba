"""A run: its stages in order, what is done skipped, what is not resumed."""

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ramp import config
from ramp.config import Config
from ramp.errors import UserError
from ramp.rundir import RunDir

NEEDS = {
    "pretrain": "prepare",
    "eval": "pretrain",
    "finetune": "pretrain",
    "sample": "finetune",
    "reinforce": "finetune",
    "synthesize": "pretrain",
    "core": "pretrain",
}


def setup_devices(c: Config, devices: int | None = None) -> Config:
    """Join the job's processes, choose the device's dtype, make the mesh, check that everything divides; resolved.

    `devices`: use only the first so many.
    """
    import jax

    from ramp.train import mesh

    keep_memory()
    prefer_eigen(c)
    mesh.connect_processes()
    cache = os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "ramp" / "xla")
    )
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    c = config.resolve(choose_dtype(c, jax.default_backend()))
    use = jax.devices()[:devices]
    mesh.check_divisible(c, mesh.resolve_mesh_shape(c.mesh, len(use)))
    mesh.make_mesh(c.mesh, use)
    return c


TUNABLE = "glibc.malloc.hugetlb=1"
EIGEN = "--xla_cpu_experimental_ynn_fusion_type="


def use_huge_pages() -> None:
    """Start this process again with a glibc that asks the kernel for huge pages; it reads the wish at a start only.

    XLA:CPU allocates a step's temporaries anew each time, and pages of 4 kB cost it 15% of the step."""
    kernel, (name, version) = (
        Path("/sys/kernel/mm/transparent_hugepage/enabled"),
        platform.libc_ver(),
    )
    able = name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35) and kernel.exists()
    if able and "[never]" not in kernel.read_text() and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": TUNABLE})


def has_huge_pages() -> bool:
    return TUNABLE in os.environ.get("GLIBC_TUNABLES", "")


def keep_memory() -> None:
    """Without huge pages, ask glibc to keep freed memory. As fast, but holes in the heap up to double what is resident."""
    if platform.libc_ver()[0] == "glibc" and not has_huge_pages():
        libc = ctypes.CDLL(None)
        for option, value in (
            (-4, 0),
            (-1, -1),
            (-8, 1),
        ):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX of malloc.h
            libc.mallopt(option, value)


def prefer_eigen(c: Config) -> None:
    """Ask XLA:CPU for products by Eigen instead of YNNPACK where they are of float32: 100 to 108 GFLOP/s a core (Zen 4) against
    67 to 88. In bfloat16 YNNPACK has 165 to 200 and Eigen 65 to 100. XLA reads the wish once, before its first device."""
    float32 = c.model.dtype == "float32" or (c.model.dtype == "auto" and not has_bfloat16())
    asked = os.environ.get("XLA_FLAGS", "")
    known = metadata.version("jax").startswith(
        "0.10."
    )  # a flag that an XLA does not know ends the process
    if float32 and known and EIGEN not in asked:
        os.environ["XLA_FLAGS"] = f"{asked} {EIGEN}".strip()


def choose_dtype(c: Config, backend: str) -> Config:
    """Fill in model.dtype = "auto" by what `ramp bench` measured faster: bfloat16, but on processors that lack it."""
    if c.model.dtype != "auto":
        return c
    dtype = "float32" if backend == "cpu" and not has_bfloat16() else "bfloat16"
    return config.replace(c, model=config.replace(c.model, dtype=dtype))


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 (avx512_bf16); emulated, it is slower than float32."""
    info = Path("/proc/cpuinfo")
    return info.exists() and "avx512_bf16" in info.read_text()


def run(
    c: Config,
    directory: Path,
    stages: tuple[str, ...] | None = None,
    force: bool = False,
    more: dict[str, Callable[..., dict]] | None = None,
) -> None:
    """Do `stages` (all of the configuration's) in `directory`; a stage that is done is skipped unless `force`.

    `more`: work by name beside that of the configuration's stages.
    """
    import jax

    c = setup_devices(
        c
    )  # before imports that start threads: each would bring an arena that `keep_memory` does not hold
    from ramp.evals import bpb, samples
    from ramp.reporting import report
    from ramp.stages import finetune, pretrain, reinforce, synthesize
    from ramp.train.preemption import Preemption

    work = {
        "pretrain": pretrain.run,
        "eval": bpb.run,
        "finetune": finetune.run,
        "reinforce": reinforce.run,
        "synthesize": synthesize.run,
        "sample": samples.run,
    } | (more or {})
    rundir = RunDir(directory)
    first, stop = jax.process_index() == 0, Preemption()
    with ExitStack() as held:
        on_process_zero(lambda: (held.enter_context(rundir.lock()), rundir.check_or_create(c)))
        for stage in stages or c.stages:
            if rundir.is_done(stage) and not force:
                print(f"{stage}: done before")
                continue
            need = NEEDS.get(stage)
            if need and not rundir.is_done(need):
                raise UserError(
                    f"{stage} needs {need}, which {directory} has not finished; run `ramp {need} {directory}`"
                )
            stop.check(0)
            result = (
                on_process_zero(partial(prepare_in_subprocess, rundir, c))
                if stage == "prepare"
                else work[stage](rundir, c, stop)
            )
            on_process_zero(
                partial(report.update_report, directory, stage, (result or {}) | {"done": True})
            )
            on_process_zero(partial(report.write_report, directory))
    if first:
        print(f"report: {directory / 'report.html'}")


def prepare_in_subprocess(rundir: RunDir, c: Config) -> dict:
    """`prepare` in a process of its own: in this one the tokenizer's threads would wait for the one arena that
    `keep_memory` leaves (30 s for 7), and its garbage would stay."""
    from ramp.stages import prepare

    with ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent) as one:
        return one.submit(prepare.run, rundir, c).result()


def end_with_parent() -> None:
    """Ask Linux to end this process when the one that started it is gone: what it writes is under that one's lock."""
    if platform.system() == "Linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def on_process_zero(action: Callable[[], Any]) -> Any:
    """Process 0, the only one that writes, does it; the others wait, get None, and stop too where it fails."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    result = error = None
    if jax.process_index() == 0:
        try:
            result = action()
        except Exception as fault:
            error = fault
    failed = (
        jax.process_count() > 1
        and multihost_utils.process_allgather(np.array(error is not None)).any()
    )
    if error is not None:
        raise error
    if failed:
        raise UserError("process 0 could not go on, and says why")
    return result

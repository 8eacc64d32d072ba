"""This machine, tuned before jax starts: memory, kernels, compilation cache, mesh.

Imported by every command that computes. No jax at the top: flags are
checked before it is paid for.
"""

import ctypes
import importlib.util
import os
import platform
import sys
from pathlib import Path

from ramp import config, interrupts
from ramp.config import Config

TUNABLE = "glibc.malloc.hugetlb=1"
EIGEN = "--xla_cpu_experimental_ynn_fusion_type="
# Versions of jaxlib, which holds XLA, that were tried: an XLA that does not know a flag ends the
# process.
KNOW_EIGEN = ("0.10.", "0.11.", "0.12.")
# What the kernel shows of an accelerator: NVIDIA (in WSL: dxg), AMD, TPUs to v4, TPUs from v5e on.
DEVICE_FILES = ("nvidia*", "dxg", "kfd", "accel[0-9]*", "vfio/[0-9]*")
# What lets jax compute on something else than a CPU.
PLUGINS = (
    "libtpu",
    "jax_cuda12_plugin",
    "jax_cuda13_plugin",
    "jax_rocm60_plugin",
    "jax_rocm7_plugin",
)


def setup_devices(
    c: Config, one_each: bool = False, stages: tuple[str, ...] | None = None
) -> Config:
    """Join the job's processes, choose the dtype, make the mesh, check that everything divides.

    Returns the resolved configuration. Call it before imports that start threads: each of them
    would bring a memory arena that `keep_memory` does not hold.

    Args:
      one_each: use only one device of each process; all of them hold and do the same.
      stages: those that will run; by default the configuration's.
    """
    import jax

    from ramp.train import mesh
    from ramp.train.watchdog import watch

    # All three before the first device: it fixes allocator, flags and processes.
    keep_memory()
    prefer_eigen(c)
    mesh.connect_processes(c.hosts)
    # On a laptop a run may be put aside for as long as one likes.
    if os.environ.get("RAMP_DISTRIBUTED"):
        watch.seconds = 60 * c.hosts.hang_minutes
    # One cache for all runs of this user: a second run with the same shapes starts at once.
    default_cache = str(Path.home() / ".cache" / "ramp" / "xla")
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", default_cache)
    jax.config.update("jax_compilation_cache_dir", cache)
    # Cache every program, however small: a run has hundreds that take half a second each.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    c = config.resolve(choose_dtype(c, jax.default_backend()))
    used = jax.devices()
    if one_each:
        # The first of each, in the order of processes.
        used = [d for d in used if d == jax.local_devices(d.process_index)[0]]
        c = config.replace(c, mesh=config.Mesh(replica=len(used), data=1))
    shape = mesh.resolve_mesh_shape(c.mesh, len(used))
    mesh.check_divisible(c, shape, c.stages if stages is None else stages)
    mesh.make_mesh(c.mesh, used)
    return c


def use_huge_pages() -> None:
    """Start this process again with a glibc that asks the kernel for huge pages.

    glibc decides that only when a process starts. XLA:CPU allocates a step's temporaries anew each
    time, and pages of 4 kB cost it 15% of the step.
    """
    # Whoever has set tunables, this function included, is left alone: no second restart.
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return
    # glibc knows the tunable from 2.35 on.
    version = tuple(map(int, platform.libc_ver()[1].split(".")))
    kernel = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if version >= (2, 35) and kernel.exists() and "[never]" not in kernel.read_text():
        # A signal on the way is heard by the new process, once it listens.
        interrupts.block()
        try:
            os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": TUNABLE})
        finally:
            interrupts.unblock()  # it has failed, and this process goes on


def has_huge_pages() -> bool:
    """Whether this process was started by `use_huge_pages`."""
    return TUNABLE in os.environ.get("GLIBC_TUNABLES", "")


def keep_memory() -> None:
    """Without huge pages, ask glibc to keep freed memory.

    It is as fast, but holes in the heap up to double the footprint.
    """
    if platform.libc_ver()[0] != "glibc" or has_huge_pages():
        return
    libc = ctypes.CDLL(None)
    # M_MMAP_MAX, M_TRIM_THRESHOLD and M_ARENA_MAX of malloc.h.
    for option, value in ((-4, 0), (-1, -1), (-8, 1)):
        libc.mallopt(option, value)


def prefer_eigen(c: Config) -> None:
    """Ask XLA:CPU to multiply float32 matrices with Eigen instead of YNNPACK.

    XLA reads the flag before its first device. On Zen 4 a core does 100 to 108 GFLOP/s with Eigen
    and 67 to 88 with YNNPACK; in bfloat16 YNNPACK has 165 to 200 and Eigen 65 to 100. With jax 0.12
    on a Xeon (Sapphire Rapids): 134 against 103 in float32, 85 against 300 in bfloat16.
    """
    from importlib import metadata

    dtype = c.model.dtype
    float32 = dtype == "float32" or (dtype == "auto" and not has_bfloat16())
    flags = os.environ.get("XLA_FLAGS", "")
    known = metadata.version("jaxlib").startswith(KNOW_EIGEN)
    # A user's own choice of this flag stands.
    if float32 and known and EIGEN not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {EIGEN}".strip()


def choose_dtype(c: Config, backend: str) -> Config:
    """Fill in model.dtype = "auto" by what was measured faster.

    That is bfloat16, except on processors that lack it.
    """
    if c.model.dtype != "auto":
        return c
    dtype = "float32" if backend == "cpu" and not has_bfloat16() else "bfloat16"
    return config.replace(c, model=config.replace(c.model, dtype=dtype))


def skip_absent_devices(dev: Path = Path("/dev")) -> None:
    """Keep jax to the CPU where the extra `plan` is installed and no accelerator is here.

    Otherwise jax asks each of its compilers for a device, and each answers with a page of errors. A
    machine that has a device, or whose user says which platform to use, is left alone. Call it
    before jax is imported.
    """
    # Found, not imported: an import would start the search for devices.
    has_compilers = any(importlib.util.find_spec(name) for name in PLUGINS)
    chosen = any(name.startswith(("JAX_PLATFORM", "JAX_FORCE_TPU", "TPU_")) for name in os.environ)
    if has_compilers and not chosen and not has_device(dev):
        os.environ["JAX_PLATFORMS"] = "cpu"


def has_device(dev: Path = Path("/dev")) -> bool:
    """Whether the kernel shows an accelerator."""
    return any(any(dev.glob(name)) for name in DEVICE_FILES)


def lacks_bfloat16(dev: Path = Path("/dev"), info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether an x86 CPU will compute that does not multiply bfloat16, seen before jax starts.

    Of other processors nobody has measured how long they take.
    """
    # Processes of one job may see different processors, and must agree.
    if os.environ.get("RAMP_DISTRIBUTED"):
        return False
    asked = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME") or ""
    has_plugin = any(importlib.util.find_spec(name) for name in PLUGINS)
    on_cpu = asked.split(",")[0] == "cpu" if asked else not (has_plugin and has_device(dev))
    is_x86 = info.exists() and "\nflags" in info.read_text()
    return on_cpu and is_x86 and not has_bfloat16(info)


def measure_budget() -> float:
    """Bytes that a training step may take on one device here, the same in every process.

    Of an accelerator 95% of what its allocator may have. Of a CPU 80% of this machine's memory, or
    of what its control group may have: the rest is for Python, data and a checkpoint on its way.
    """
    import jax

    from ramp.train import processes

    devices = jax.local_devices()
    if jax.default_backend() == "cpu":
        budget = 0.8 * find_memory() / len(devices)
    else:
        budget = 0.95 * (devices[0].memory_stats() or {}).get("bytes_limit", float("inf"))
    return min(processes.gather(lambda: budget))


def find_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process can have: the machine's, or less by its control group."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    groups = root / "proc/self/cgroup"
    lines = groups.read_text().splitlines() if groups.exists() else []
    for line in lines:
        _, kind, path = line.split(":", 2)
        # Version 1 has a tree for memory alone, version 2 one tree, which has no name.
        tree = {"memory": "memory", "": ""}.get(kind)
        if tree is None:
            continue
        folder = root / "sys/fs/cgroup" / tree
        # A limit of a group holds for all below it. In a container its own group is the root.
        own = folder / path.lstrip("/")
        for group in {folder, own, *(p for p in own.parents if folder in p.parents)}:
            for name in ("memory.max", "memory.limit_in_bytes"):
                file = group / name
                limit = file.read_text().strip() if file.exists() else "max"
                if limit.isdigit():
                    found.append(int(limit))
    return min(found)


def has_bfloat16(info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bfloat16 (avx512_bf16).

    Emulated, it is slower than float32.
    """
    return info.exists() and "avx512_bf16" in info.read_text()

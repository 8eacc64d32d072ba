"""Chips and topologies: the data file, the names people type, and the devices that a compiler without hardware plans for.

topology = parse("v6e:16x16", slices=2)      v6e chips, two slices of 256
topology.devices()                           compile-only jax devices; needs libtpu, or the CUDA plugin for GPUs
"""

import difflib
import math
import os
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ramp.errors import UserError

USABLE = 0.98  # of the HBM: what libtpu leaves to programs (15.75 of 16 GiB on v5e)


@dataclass(frozen=True)
class Chip:
    """One chip, as `topologies.toml` has it. Rates: bf16 TFLOP/s, GB/s one way, GiB, dollars an hour."""

    name: str
    kind: str
    axes: int
    bf16: float
    hbm_gib: float
    hbm: float
    ici: float
    dcn: float
    dollars: float
    wrap: int = 0
    product_cycles: float = 0
    devices_per_chip: int = 1
    examples: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    gpu: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Topology:
    chip: Chip
    dims: tuple[int, ...]  # of one slice, in chips; of a GPU cluster: hosts, GPUs a host
    slices: int = 1

    def __str__(self) -> str:
        name = f"{self.chip.name}:{'x'.join(map(str, self.dims))}"
        return f"{name} x {self.slices} slices" if self.slices > 1 else name

    @property
    def chips(self) -> int:
        return math.prod(self.dims) * self.slices

    @property
    def device_count(self) -> int:
        return self.chips * self.chip.devices_per_chip

    @property
    def per_slice(self) -> int:
        """Devices that reach each other without the data-centre network: those of a slice, or of a GPU host."""
        if self.chip.kind == "gpu":
            return self.dims[-1]
        return self.device_count // self.slices

    @property
    def hbm_bytes(self) -> float:
        """What a program can use of one device's memory."""
        return USABLE * self.chip.hbm_gib * 2**30 / self.chip.devices_per_chip

    @property
    def ici_rate(self) -> float:
        """Bytes a second that a device can receive inside its slice. A torus axis that is too short to close into a ring
        carries half: the chips at its ends have one link."""
        c = self.chip
        if c.kind == "gpu":
            return c.ici * 1e9
        link = c.ici * 1e9 / (2 * c.axes)
        links = sum(0 if d == 1 else 2 if d >= c.wrap else 1 for d in self.dims)
        return max(links, 1) * link / c.devices_per_chip

    def devices(self) -> list:
        """Compile-only devices. Import nothing of jax before `quiet()` has been called."""
        from jax.experimental import topologies

        try:
            if self.chip.kind == "gpu":
                where = "x".join(map(str, (1, *self.dims)))
                described = topologies.get_topology_desc(
                    platform="cuda",
                    topology_name="",
                    target_config=target(self.chip),
                    topology=where,
                )
            else:
                size = f"{self.chip.name}:{'x'.join(map(str, self.dims))}"
                single = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(self.dims) == 1 else {}
                described = topologies.get_topology_desc(
                    platform="tpu",
                    topology_name=size,
                    num_slices=self.slices,
                    **self.chip.options,
                    **single,
                )
        except Exception as error:  # the plugins raise whatever they like
            need = "jax-cuda12-plugin" if self.chip.kind == "gpu" else "libtpu"
            if not installed(need):
                raise UserError(
                    f"planning for {self.chip.name} needs the compiler in {need}; run `uv sync --extra plan`"
                ) from None
            raise UserError(
                f"the compiler refuses the topology {self}: {str(error).splitlines()[0][:200]}"
            ) from None
        return list(described.devices)


def installed(package: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def quiet() -> None:
    """Environment of a planning process, before jax is imported: no search for accelerators, no lock on libtpu."""
    here = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    for name, value in here.items():
        os.environ.setdefault(name, value)


@cache
def chips() -> dict[str, Chip]:
    table = tomllib.loads(Path(__file__).with_name("topologies.toml").read_text(encoding="utf-8"))
    return {
        name: Chip(name=name, **(row | {k: tuple(row[k]) for k in ("examples", "device")}))
        for name, row in table.items()
    }


def peak(kind: str) -> float | None:
    """Dense bfloat16 TFLOP/s of one device of jax's `device_kind`; None: not in the table."""
    return next((c.bf16 / c.devices_per_chip for c in chips().values() if kind in c.device), None)


def parse(name: str, slices: int = 1) -> Topology:
    """A topology from CHIP:AxB or CHIP:AxBxC, such as v5e:4x4, v5p:4x4x8, h100:1x8 (hosts x GPUs)."""
    known = chips()
    chip, _, size = name.partition(":")
    if chip not in known:
        near = difflib.get_close_matches(chip, known, n=3, cutoff=0.3) or list(known)
        raise UserError(f"unknown chip '{chip}' in topology '{name}'; near it: {', '.join(near)}")
    c = known[chip]
    choices = ", ".join(f"{chip}:{e}" for e in c.examples)
    dims = tuple(int(d) for d in size.split("x") if d.isdigit())
    if len(dims) != c.axes or len(size.split("x")) != c.axes or 0 in dims:
        raise UserError(
            f"'{name}' is not a topology of {chip}, which takes {c.axes} sizes; for example {choices}"
        )
    if slices < 1 or (slices > 1 and c.kind == "gpu"):
        raise UserError(
            f"--slices {slices}: {'GPU hosts are in the topology itself' if slices > 1 else 'at least 1'}"
        )
    return Topology(c, dims, slices)


def target(chip: Chip) -> str:
    """XLA's description of a GPU (a GpuTargetConfig text proto): the limits that shape its kernels."""
    g = chip.gpu
    return f"""
gpu_device_info {{
  name: "{g["name"]}" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {g["major"]} feature_extension: ACCELERATED_FEATURES }}
  core_count: {g["cores"]} fpus_per_core: 128 clock_rate_ghz: {g["ghz"]}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: {g["shared"]}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: {int(chip.hbm * 1e9)} device_memory_size: {g["memory"]} l2_cache_size: {g["l2"]}
  device_address_bits: 64 pcie_bandwidth: 34359738368 ecc_enabled: true
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{g["name"]}"
"""

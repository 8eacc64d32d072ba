"""Chips and topologies: the data file, the names people type, and devices of absent hardware.

topology = parse("v6e:16x16", slices=2)      v6e chips, two slices of 256
topology.devices()                           compile-only jax devices; needs libtpu, or for GPUs
                                             the CUDA plugin
"""

import difflib
import math
import os
import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ramp.errors import UserError

MAX_CHIPS = 9216  # of a slice: tpu7x
USABLE = 0.98  # of the HBM: what libtpu leaves to programs (15.75 of 16 GiB on v5e)


@dataclass(frozen=True)
class Chip:
    """One chip; topologies.toml explains the fields at its head."""

    name: str
    kind: str  # tpu or gpu
    axes: int  # of a topology
    bf16: float  # TFLOP/s
    hbm_gib: float
    hbm: float  # GB/s
    ici: float  # GB/s one way, inside a slice
    dcn: float  # GB/s one way, between slices
    dollars: float  # an hour
    wrap: int = 0
    product_cycles: float = 0
    cores: int = 1
    devices_per_chip: int = 1
    examples: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    gpu: dict[str, Any] = field(default_factory=dict)

    @property
    def flops(self) -> float:
        """Peak bfloat16 FLOP/s of one device."""
        return self.bf16 * 1e12 / self.devices_per_chip

    @property
    def hbm_rate(self) -> float:
        """Bytes per second of one device's memory."""
        return self.hbm * 1e9 / self.devices_per_chip

    @property
    def dcn_rate(self) -> float:
        """Bytes per second that one device can receive from another slice."""
        return self.dcn * 1e9 / self.devices_per_chip


@dataclass(frozen=True)
class Topology:
    """Chips of one kind, and how they are joined."""

    chip: Chip
    dims: tuple[int, ...]  # of one slice, in chips; of a GPU cluster: hosts, GPUs a host
    slices: int = 1

    def __str__(self) -> str:
        return f"{self.name} x {self.slices} slices" if self.slices > 1 else self.name

    @property
    def name(self) -> str:
        """Of one slice, as people type it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.dims))}"

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.dims) * self.slices

    @property
    def device_count(self) -> int:
        """Devices, as jax counts them."""
        return self.chips * self.chip.devices_per_chip

    @property
    def per_slice(self) -> int:
        """Devices that reach each other without the data-center network: of a slice or GPU host."""
        if self.chip.kind == "gpu":
            return self.dims[-1]
        return self.device_count // self.slices

    @property
    def hbm_bytes(self) -> float:
        """What a program can use of one device's memory."""
        return USABLE * self.chip.hbm_gib * 2**30 / self.chip.devices_per_chip

    @property
    def ici_rate(self) -> float:
        """Bytes per second that a device can receive inside its slice."""
        c = self.chip
        if c.kind == "gpu":
            return c.ici * 1e9
        # A torus axis too short to close into a ring carries half: its ends have one link.
        links = sum(0 if d == 1 else 2 if d >= c.wrap else 1 for d in self.dims)
        link_rate = c.ici * 1e9 / (2 * c.axes)
        return max(links, 1) * link_rate / c.devices_per_chip

    def devices(self) -> list:
        """Compile-only devices. Import nothing of jax before `set_environment` was called."""
        from jax.experimental import topologies

        options: dict[str, Any] = {"platform": "tpu", "topology_name": self.name}
        options |= {"num_slices": self.slices, **self.chip.options}
        # libtpu plans for whole hosts of several chips unless it is told.
        if math.prod(self.dims) == 1:
            options["chips_per_host_bounds"] = (1, 1, 1)
        if self.chip.kind == "gpu":
            options = {"platform": "cuda", "topology_name": ""}
            options["target_config"] = describe_gpu(self.chip)
            options["topology"] = "x".join(map(str, (1, *self.dims)))
        try:
            return list(topologies.get_topology_desc(**options).devices)
        except Exception as error:  # the plugins raise whatever they like
            is_gpu = self.chip.kind == "gpu"
            need, extra = ("jax-cuda12-plugin", "plan-gpu") if is_gpu else ("libtpu", "plan")
            if installed(need):
                cause = str(error).splitlines()[0][:200]
                raise UserError(f"the compiler refuses the topology {self}: {cause}") from None
            raise UserError(
                f"planning for {self.chip.name} needs the compiler in {need}; "
                f"run `uv sync --extra {extra}`"
            ) from None


def installed(package: str) -> str:
    """The version of a package in this environment; empty: not there. It is not imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def set_environment() -> None:
    """Environment of a planning process: no search for accelerators, no lock on libtpu.

    To be called before jax is imported.
    """
    defaults = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    # What the user has set stays.
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@cache
def read_chips() -> dict[str, Chip]:
    """All chips of topologies.toml by name."""
    table = tomllib.loads(Path(__file__).with_name("topologies.toml").read_text(encoding="utf-8"))
    return {name: Chip(name, **row) for name, row in table.items()}


def parse(name: str, slices: int = 1) -> Topology:
    """A topology from CHIP:AxB or CHIP:AxBxC, such as v5e:4x4, v5p:4x4x8, h100:1x8 (hosts x GPUs).

    Cloud's own names, such as v6e-8, are understood too. Raises `UserError` with what would be
    right.
    """
    known = read_chips()
    name = translate_cloud_name(name)
    chip, _, size = name.partition(":")
    if chip not in known:
        # A near miss is named in the error.
        close = difflib.get_close_matches(chip, known, n=3, cutoff=0.3) or known
        raise UserError(f"unknown chip '{chip}' in topology '{name}'; similar: {', '.join(close)}")
    c = known[chip]
    parts = size.split("x")
    is_whole = len(parts) == c.axes and all(part.isdecimal() and int(part) for part in parts)
    if not is_whole or not is_offered(c, tuple(map(int, parts))):
        choices = ", ".join(f"{chip}:{example}" for example in c.examples)
        raise UserError(
            f"'{name}' is not a topology of {chip}, which takes {c.axes} sizes; "
            f"for example {choices}"
        )
    if slices < 1:
        raise UserError(f"--slices {slices}: at least 1")
    if slices > 1 and c.kind == "gpu":
        raise UserError(f"--slices {slices}: GPU hosts are in the topology itself")
    return Topology(c, tuple(map(int, parts)), slices)


def is_offered(c: Chip, dims: tuple[int, ...]) -> bool:
    """Whether there are slices of these sizes: halves and doubles, up to 256 chips in a plane."""
    if c.kind == "gpu":
        return True
    # A plane is cut into hosts of 2 x 2 or 2 x 4.
    if c.axes == 2:
        return all(d in (1, 2, 4, 8, 16) for d in dims)
    # A torus is put together of cubes of 4.
    return all(d in (1, 2) or d % 4 == 0 for d in dims) and math.prod(dims) <= MAX_CHIPS


def translate_cloud_name(name: str) -> str:
    """`v6e:2x4` for v6e-8, as Cloud shapes a slice unless it is told; other names as they are."""
    kind, dash, number = name.partition("-")
    c = read_chips().get("v5e" if kind == "v5litepod" else kind)
    if not dash or c is None or c.kind == "gpu" or not number.isdecimal():
        return name
    chips, rest = divmod(int(number), c.cores)
    power = chips.bit_length() - 1
    if rest or chips == 2 or chips != 2**power:
        raise UserError(
            f"{name} has {int(number) / c.cores:g} chips, of which no slice follows; say its "
            f"topology, such as {c.name}:{c.examples[-1]}"
        )
    # As near to a cube as powers of two come, the shortest axis first; one host is flat.
    dims = sorted(2 ** ((power + i) // c.axes) for i in range(c.axes))
    if dims[0] == 1:
        dims.reverse()
    return f"{c.name}:{'x'.join(map(str, dims))}"


def describe_gpu(chip: Chip) -> str:
    """XLA's description of a GPU (a GpuTargetConfig text proto): the limits of its kernels."""
    g = chip.gpu
    return f"""
gpu_device_info {{
  name: "{g["name"]}" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {g["major"]} feature_extension: ACCELERATED_FEATURES }}
  core_count: {g["cores"]} fpus_per_core: 128 clock_rate_ghz: {g["ghz"]}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: {g["shared"]}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: {int(chip.hbm * 1e9)} device_memory_size: {g["memory"]}
  l2_cache_size: {g["l2"]} device_address_bits: 64
  pcie_bandwidth: 34359738368 ecc_enabled: true
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{g["name"]}"
"""

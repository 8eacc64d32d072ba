"""Topologies: names, sizes, and the rates that time is computed from."""

import math
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ramp.errors import UserError
from ramp.pods.chips import parse, read_chips


@pytest.mark.parametrize(
    "name, slices, devices, per_slice",
    [
        ("v4:2x2x1", 1, 4, 4),
        ("v5e:4x4", 2, 32, 16),
        ("v5p:16x16x24", 1, 6144, 6144),
        ("tpu7x:2x2x1", 1, 8, 8),
        ("h100:8x8", 1, 64, 8),
    ],
)
def test_sizes(name, slices, devices, per_slice):
    topology = parse(name, slices)
    assert (topology.device_count, topology.per_slice) == (devices, per_slice)


@pytest.mark.parametrize(
    "name, slices, said",
    [
        ("v6:2x4", 1, "v6e"),
        ("v6e:2x2x2", 1, "takes 2 sizes; for example v6e:2x2"),
        ("v5p:4x4", 1, "takes 3 sizes"),
        ("v5e", 1, "v5e:4x4"),
        ("v6e:3x5", 1, "for example v6e:2x2"),
        ("v6e:100x100", 1, "for example v6e:2x2"),
        ("v5p-24", 1, "12 chips.*v5p:16x16x24"),
        ("v5p-7", 1, "3.5 chips"),
        ("v6e-2", 1, "2 chips"),
        ("v5e:4xfour", 1, "v5e:4x4"),
        ("v5e:0x4", 1, "v5e:4x4"),
        ("v5e:4x4", 0, "at least 1"),
        ("h100:1x8", 2, "GPU hosts are in the topology"),
    ],
)
def test_wrong_names_are_told_what_would_be_right(name, slices, said):
    with pytest.raises(UserError, match=said):
        parse(name, slices)


@pytest.mark.parametrize(
    "cloud, name",
    [
        ("v6e-1", "v6e:1x1"),
        ("v6e-4", "v6e:2x2"),
        ("v6e-8", "v6e:2x4"),
        ("v5litepod-16", "v5e:4x4"),
        ("v5e-32", "v5e:4x8"),
        ("v6e-256", "v6e:16x16"),
        ("v4-8", "v4:2x2x1"),
        ("v5p-16", "v5p:2x2x2"),
        ("v5p-128", "v5p:4x4x4"),
        ("v5p-1024", "v5p:8x8x8"),
        ("tpu7x-8", "tpu7x:2x2x1"),
    ],
)
def test_names_of_cloud_are_understood(cloud, name):
    topology = parse(cloud)
    assert topology.name == name and topology.chips == math.prod(topology.dims)


def test_a_pod_has_the_compiler_that_planned_for_it():
    """jax and libtpu are one exact pair in both extras, and the one that jax itself asks for."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    pairs = []
    for name in ("plan", "tpu"):
        asked = [Requirement(text) for text in extras[name]]
        pairs.append({one.name: str(one.specifier) for one in asked})
    assert pairs[0] == pairs[1] and all(pin.startswith("==") for pin in pairs[0].values())
    if metadata.version("jax") == pairs[0]["jax"].removeprefix("=="):
        needs = map(Requirement, metadata.requires("jax") or ())
        (libtpu,) = [one for one in needs if one.name == "libtpu"]
        assert pairs[0]["libtpu"].removeprefix("==") in libtpu.specifier


def test_a_torus_axis_too_short_for_a_ring_has_half_the_links():
    v5e = read_chips()["v5e"]
    link = v5e.ici * 1e9 / 4
    assert parse("v5e:16x16").ici_rate == 4 * link
    assert parse("v5e:4x16").ici_rate == 3 * link
    assert parse("v5e:2x4").ici_rate == 2 * link
    assert parse("v5e:1x1").ici_rate == link


def test_every_chip_has_sane_figures():
    for chip in read_chips().values():
        assert 100 < chip.bf16 < 5000 and 10 < chip.hbm_gib < 300 and chip.dcn < chip.ici < chip.hbm
        for example in chip.examples:
            assert parse(f"{chip.name}:{example}").chips > 0


def test_the_scripts_and_the_plans_know_the_same_prices():
    rows = (Path(__file__).parents[2] / "tpu_scripts" / "chips.tsv").read_text().splitlines()
    prices = {
        row[0]: float(row[4])
        for row in (line.split("\t") for line in rows if line and line[0] != "#")
    }
    assert {"v4", "v5litepod", "v5p", "v6e"} == prices.keys()
    for name, price in prices.items():
        assert read_chips()[name.replace("litepod", "e")].dollars == price

"""Topologies: names, sizes, and the rates that time is computed from."""

from pathlib import Path

import pytest

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
        ("v5e:4xfour", 1, "v5e:4x4"),
        ("v5e:0x4", 1, "v5e:4x4"),
        ("v5e:4x4", 0, "at least 1"),
        ("h100:1x8", 2, "GPU hosts are in the topology"),
    ],
)
def test_wrong_names_are_told_what_would_be_right(name, slices, said):
    with pytest.raises(UserError, match=said):
        parse(name, slices)


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

"""Topologies: names, sizes, and the rates that time is computed from."""

import pytest

from ramp.errors import UserError
from ramp.pods.chips import chips, parse


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
    v5e = chips()["v5e"]
    link = v5e.ici * 1e9 / 4
    assert parse("v5e:16x16").ici_rate == 4 * link
    assert parse("v5e:4x16").ici_rate == 3 * link
    assert parse("v5e:2x4").ici_rate == 2 * link
    assert parse("v5e:1x1").ici_rate == link


def test_every_chip_has_sane_figures():
    for chip in chips().values():
        assert 100 < chip.bf16 < 5000 and 10 < chip.hbm_gib < 300 and chip.dcn < chip.ici < chip.hbm
        for example in chip.examples:
            assert parse(f"{chip.name}:{example}").chips > 0

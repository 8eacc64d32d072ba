"""Gradients on a TPU are scattered in two stages; every device must end with the part it would get from one."""

from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from ramp.model import linear


@pytest.mark.parametrize("n, first, second", [(8, 2, 4), (16, 4, 4), (64, 8, 8), (96, 8, 12)])
def test_groups_cover_all_devices_once(monkeypatch, n, first, second):
    monkeypatch.setattr(linear, "platform", lambda: "tpu")
    across, along = linear.scatter_groups(n)
    assert {len(g) for g in across} == {first} and {len(g) for g in along} == {second}
    for groups in (across, along):
        assert sorted(chain.from_iterable(groups)) == list(range(n))


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_few_devices_and_primes_take_one_stage(monkeypatch, n):
    monkeypatch.setattr(linear, "platform", lambda: "tpu")
    assert linear.scatter_groups(n) == [None]


@pytest.mark.parametrize("n, stages", [(8, 1), (16, 2), (32, 1), (64, 2)])
def test_in_a_plane_only_squares_take_two_stages(monkeypatch, n, stages):
    """v6e:2x4 and 4x8 keep one scatter; 4x4 and 8x8 do not."""
    monkeypatch.setattr(linear, "platform", lambda: "tpu")
    monkeypatch.setattr(linear, "lie_in_plane", lambda: True)
    assert len(linear.scatter_groups(n)) == stages


@pytest.mark.parametrize("spec", [P("data", "model"), P("model", "data")])
def test_two_stages_are_one_scatter(monkeypatch, spec):
    jax.set_mesh(
        jax.make_mesh((1, 8, 1), ("replica", "data", "model"), axis_types=(AxisType.Explicit,) * 3)
    )
    rows_ndf = jax.random.normal(jax.random.PRNGKey(0), (8, 16, 24), out_sharding=P("data"))

    def local(x_1df):
        return linear.scatter_grad(x_1df[0], spec, jnp.float32)

    def scatter():
        return jax.jit(jax.shard_map(local, in_specs=P("data"), out_specs=spec, check_vma=False))(
            rows_ndf
        )

    one = scatter()
    monkeypatch.setattr(linear, "platform", lambda: "tpu")
    two = scatter()
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(two, rows_ndf.sum(0), rtol=1e-5, atol=1e-6)

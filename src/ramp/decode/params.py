"""Weights laid out for decoding."""

from functools import partial

import jax
from jax.sharding import PartitionSpec as P

from ramp.config import Model
from ramp.model.transformer import Params, split_blocks


@partial(jax.jit, static_argnames="c")
def prepare_decode_params(c: Model, params: Params) -> Params:
    """The language model's weights as `decode_step` reads them; make them once, not at every token.

    Matrices are in the compute dtype and blocks are a tuple, one entry a layer, because a token
    reads every weight and should not cast and index it as well. Nothing is split over "data" but
    the tables that tokens are looked up in, so a token gathers no weight either. Of a tied table
    the head gets a whole copy for it.
    """

    def convert(path, weight):
        # The weights of all blocks are stacked, so their first axis is the layer.
        layer_axes = 1 if path[0].key == "blocks" else 0
        if weight.ndim - layer_axes < 2:
            return weight  # norms and other vectors stay float32
        spec = jax.typeof(weight).sharding.spec
        # Splitting over "model" stays: each device holds its own heads and columns.
        spec = [None if axis == "data" else axis for axis in spec]
        # A lookup moves single rows, so a table may stay split, by columns.
        if path[-1].key.endswith("table"):
            spec = [None] * (weight.ndim - 1) + ["data"]
        weight = weight.astype(c.dtype)
        return jax.reshard(weight, P(*spec))

    table_vd = params["embed"]["table"]
    params = jax.tree_util.tree_map_with_path(convert, params)
    if c.tie_embeddings and jax.sharding.get_abstract_mesh().shape["data"] > 1:
        w_dv = jax.reshard(table_vd.astype(c.dtype).T, P(None, "model"))
        params |= {"head": params["head"] | {"weight": w_dv}}
    return params | {"blocks": split_blocks(c, params["blocks"])}

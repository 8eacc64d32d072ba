"""The switches that came with models of others: in training's pass, unrolled, and token by token."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from ramp.config import Model
from ramp.decode import sample
from ramp.model import transformer
from ramp.train.restore import LATER, model_identity

ALL = {
    "window_pattern": "SLN",
    "depth": 3,
    "rope_theta_short": 100.0,
    "post_norm": True,
    "embed_scale": True,
    "qkv_bias": True,
    "mlp": "geglu",
    "rope_scaling": "yarn",
    "rope_factor": 4.0,
    "rope_original_len": 32,
}


run = jax.jit(tiny.logits, static_argnums=0)


def test_one_pass_and_token_by_token_agree():
    c = tiny.model(**ALL)
    rng = np.random.default_rng(0)
    with jax.set_mesh(tiny.mesh()):
        lm = transformer.init_params(c, jax.random.PRNGKey(0))
        lm = jax.tree.map(lambda x: x + 0.1 * jnp.asarray(rng.normal(size=x.shape), x.dtype), lm)
        prompt = tiny.tokens(1, 20, 300)[0].tolist()
        greedy = sample.SamplingParams(temperature=0.0)
        new = sample.generate(c, lm, [prompt], [0], greedy, 8, vocab_size=320).rows()[0]
        whole = np.array([prompt + new])
        logits = np.asarray(run(c, lm, whole))
        assert logits[0, 19:27].argmax(-1).tolist() == new
        unrolled = np.asarray(run(replace(c, unroll=True), lm, whole))
        np.testing.assert_allclose(unrolled, logits, atol=1e-4)


def test_checkpoints_from_before_the_switches_still_fit():
    plain = model_identity(Model())
    assert not set(LATER) & set(plain)
    assert model_identity(Model(qkv_bias=True)) == plain | {"qkv_bias": True}

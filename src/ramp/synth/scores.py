"""What a model says of texts: log-probabilities of their tokens, and projected gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as P
from numpy import ndarray

from ramp.config import Model
from ramp.decode.sample import shard_rows
from ramp.model.loss import token_cross_entropy
from ramp.model.transformer import ROWS, apply_head, compute_hidden, unembed
from ramp.synth.docs import Ids
from ramp.train.processes import to_host


@dataclass(frozen=True)
class DocumentRows:
    """Documents one a row, padded: each array is [N, T]."""

    tokens: ndarray
    targets: ndarray
    weights: ndarray  # 1 where there is a target


@dataclass(frozen=True)
class ModelScorer:
    """A model as the rest of synth asks it; see `corpus.Scorer`.

    Documents are cut at `length` + 1 tokens. The first token, such as bos, is only a context.
    """

    c: Model
    params: dict  # of the language model alone
    length: int
    batch_size: int = 64  # rows scored at once

    def nats(self, docs: Sequence[Ids]) -> list[ndarray]:
        """-log p, in nats, of each token of each document given those before it."""
        scores = []
        for rows, batch in self._batch(docs):
            nats_bt = _nats(self.c, self.params, rows["tokens"], rows["targets"])
            for nats, doc in zip(to_host(nats_bt), batch, strict=False):
                # A copy, so that the padded batch can be freed.
                scores.append(nats[: len(doc[1:])].copy())
        return scores

    def gradients(self, docs: Sequence[Ids], dim: int = 16) -> ndarray:
        """[N, dim^2]: a fixed random projection of each document's gradient by the output matrix.

        That gradient is sum_t x_t (p_t - y_t)^T, a sum of outer products, so it is projected by a
        projection of each side: (R1 x_t) (R2 (p_t - y_t))^T. Nothing of its size, D x V for each
        document, is ever made.
        """
        sketches = [np.zeros((0, dim * dim), np.float32)]
        for rows, batch in self._batch(docs):
            sketch = sketch_gradients(self.c, self.params, **rows, dim=dim)
            sketches.append(to_host(sketch)[: len(batch)])
        return np.concatenate(sketches)

    def _batch(self, docs):
        """Batches of one shape, on the mesh, each with its documents."""
        for first in range(0, len(docs), self.batch_size):
            batch = docs[first : first + self.batch_size]
            # Filled up with empty rows, so that one shape is compiled.
            rows = pack_documents([*batch, *[()] * (self.batch_size - len(batch))], self.length)
            yield dict(zip(vars(rows), shard_rows(*vars(rows).values()), strict=True)), batch


def pack_documents(docs: Sequence[Ids], length: int) -> DocumentRows:
    """Documents one a row, cut at `length` + 1 tokens."""
    ids = np.zeros((len(docs), length + 1), np.int32)
    for row, doc in zip(ids, docs, strict=True):
        row[: len(doc)] = doc[: length + 1]
    # A document of k tokens has k - 1 targets.
    num_targets = np.array([len(doc) - 1 for doc in docs])
    has_target = np.arange(length) < num_targets[:, None]
    return DocumentRows(ids[:, :-1] * has_target, ids[:, 1:], has_target.astype(np.float32))


@partial(jax.jit, static_argnames="c")
def _nats(c: Model, params, tokens_bt, targets_bt):
    x_nd = compute_hidden(c, params, tokens_bt)
    return token_cross_entropy(c, params, x_nd, targets_bt)[0]


@partial(jax.jit, static_argnames=("c", "dim"))
def sketch_gradients(
    c: Model, params: dict, tokens: Array, targets: Array, weights: Array, dim: int = 16
) -> Array:
    """[B, dim^2]: the projected gradients of a batch of rows [B, T]."""
    B, T = tokens.shape
    x_nd = compute_hidden(c, params, tokens)
    y_nd, _ = apply_head(c, params, x_nd)
    targets_n = jax.lax.reshape(targets, (B * T,), out_sharding=P(ROWS))
    # The vocabulary whole on every device, for the softmax.
    logits_nv = jax.reshard(unembed(c, params, x_nd), P(ROWS, None))
    one_hot_nv = jax.nn.one_hot(targets_n, c.vocab_size, dtype=jnp.float32)
    # The gradient of the loss by the logits.
    error_nv = jax.nn.softmax(logits_nv) - one_hot_nv
    # One key for ever: sketches of different calls are compared with each other.
    key_left, key_right = jax.random.split(jax.random.PRNGKey(0), 2)
    left = jax.random.rademacher(key_left, (c.width, dim), jnp.float32)
    right = jax.random.rademacher(key_right, (c.vocab_size, dim), jnp.float32)

    def to_rows(a_nk):
        return jax.lax.reshape(a_nk, (B, T, dim), out_sharding=P(ROWS))

    a_bti = to_rows(jnp.dot(y_nd.astype(jnp.float32), left))
    b_btj = to_rows(jnp.dot(error_nv, right))
    sketch_bij = jnp.einsum("bti,btj,bt->bij", a_bti, b_btj, weights)
    return jax.lax.reshape(sketch_bij, (B, dim * dim), out_sharding=P(ROWS))

"""Samples to train on, each of which can be made again: prompts with entropy from outside, the jitted sampler, and what
the model itself says of a text (log-probabilities, projected gradients).

A sample follows from weights, prompt, key and settings alone. Temperature 1 and no truncation by default: whatever cuts
tails here is gone in the next generation.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from scipy.stats import qmc

from ramp.config import Model
from ramp.decode import sample
from ramp.decode.sample import SamplingParams
from ramp.model.loss import token_cross_entropy
from ramp.model.transformer import ROWS, apply_head, compute_hidden, unembed

BATCH = 64  # rows sampled or scored at once
LONGEST_SEED = 8  # most tokens that a prompt takes from real text: a direction, too short to be copied into the samples


@dataclass(frozen=True)
class Prompt:
    ids: tuple[int, ...]
    parents: tuple[str, ...] = ()  # names of the real documents it was cut from


@dataclass(frozen=True)
class Sample:
    prompt: Prompt
    key: int
    ids: tuple[int, ...]  # drawn, the stop token included
    logp: float  # nats, under exactly what they were drawn from


# ---------------------------------------------------------------------------------------------------- prompts
def rare_contexts(
    docs: Sequence[np.ndarray], count_v: np.ndarray, n: int, rng: np.random.Generator, bos: int
) -> list[Prompt]:
    """n passages of 2 to `LONGEST_SEED` tokens that end in a rare token, rare tokens in proportion to 1/count."""
    where = [(d, int(np.argmin(count_v[doc]))) for d, doc in enumerate(docs) if len(doc) > 2]
    if not where:
        return []
    chance = np.array([1.0 / max(count_v[docs[d][i]], 1) for d, i in where])
    found = []
    for pick in rng.choice(len(where), n, p=chance / chance.sum()):
        d, i = where[pick]
        begin = max(0, i + 1 - int(rng.integers(2, LONGEST_SEED + 1)))
        found.append(
            Prompt((bos, *map(int, docs[d][begin : max(i + 1, begin + 2)])), (f"real-{d}",))
        )
    return found


def entity_pairs(
    texts: Sequence[str], n: int, rng: np.random.Generator
) -> list[tuple[str, tuple[str, ...]]]:
    """n openings "A and B" of names from different documents, with the documents' names (after EntiGraph,
    arXiv:2409.07431: relations between entities that the corpus never relates)."""
    held = [
        (d, names)
        for d, text in enumerate(texts)
        if (names := re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,}(?: [A-Z][a-z]+)*", text))
    ]
    if len(held) < 2:
        return []
    found = []
    for _ in range(n):
        (d, one), (e, two) = (held[i] for i in rng.choice(len(held), 2, replace=False))
        pair = one[rng.integers(len(one))], two[rng.integers(len(two))]
        found.append((f"{pair[0]} and {pair[1]}", (f"real-{d}", f"real-{e}")))
    return found


def sobol_grid(attributes: Mapping[str, Sequence[str]], n: int, seed: int) -> list[dict[str, str]]:
    """n combinations by a scrambled Sobol sequence: every value, pair and triple about equally often, which independent
    draws are not at any n that matters."""
    names = list(attributes)
    points = qmc.Sobol(len(names), seed=seed).random_base2(
        max(0, int(np.ceil(np.log2(max(n, 1)))))
    )[:n]
    return [
        {
            name: attributes[name][int(x * len(attributes[name]))]
            for name, x in zip(names, row, strict=True)
        }
        for row in points
    ]


# ---------------------------------------------------------------------------------------------------- sampling
def first_key(seed: int, generation: int) -> int:
    """Keys of a generation are this and the numbers after it."""
    return (
        int.from_bytes(
            hashlib.blake2b(f"synth:{seed}:{generation}".encode(), digest_size=4).digest()
        )
        >> 1
    )


def generate_samples(
    c: Model,
    params: dict,
    prompts: Sequence[Prompt],
    key: int,
    n: int,
    how: SamplingParams,
    stop: tuple[int, ...],
    vocab_size: int,
    batch: int = BATCH,
) -> list[Sample]:
    """Up to n tokens after each prompt; sample i has the key `key` + i. `params` of the language model alone."""
    keys = range(key, key + len(prompts))
    result = sample.generate(
        c,
        params,
        [p.ids for p in prompts],
        keys,
        how,
        n,
        stop=stop,
        vocab_size=vocab_size,
        batch_size=batch,
    )
    logp_b = result.logps_bn.sum(axis=1)
    return [
        Sample(prompt, key, tuple(ids), float(logp))
        for prompt, key, ids, logp in zip(prompts, keys, result.rows(), logp_b, strict=True)
    ]


def regenerate(
    c: Model,
    params: dict,
    prompt: Sequence[int],
    key: int,
    n: int,
    how: SamplingParams,
    stop: tuple[int, ...],
    vocab_size: int,
    batch: int = BATCH,
) -> tuple[int, ...]:
    """The ids of the sample with this prompt and key, from its ledger row alone; the batch has the same shape."""
    prompts = [Prompt(tuple(prompt))]
    return generate_samples(c, params, prompts, key, n, how, stop, vocab_size, batch)[0].ids


def fill_batch(batch: int) -> int:
    """The least multiple of the devices along the rows that is at least `batch`."""
    shape = jax.sharding.get_mesh().shape
    return batch + -batch % (shape["replica"] * shape["data"])


# ---------------------------------------------------------------------------------------------------- scoring
def score_documents(
    c: Model, params: dict, docs: Sequence[Sequence[int]], length: int, batch: int = BATCH
) -> list[np.ndarray]:
    """-log p of each token of each document given those before it; the first token, such as bos, is only a context.
    Documents are cut at `length` + 1 tokens."""
    found = []
    for rows, sizes in _padded(docs, length, batch):
        out = np.asarray(jax.reshard(_nats(c, params, rows["tokens"], rows["targets"]), P()))
        found += [out[i, :size].copy() for i, size in enumerate(sizes)]
    return found


def pack_documents(docs: Sequence[Sequence[int]], length: int) -> dict[str, np.ndarray]:
    """Documents one a row, cut at `length` + 1 tokens: tokens, targets and weights (1 where there is a target), [N, length]."""
    rows = {k: np.zeros((len(docs), length), np.int32) for k in ("tokens", "targets")}
    rows["weights"] = np.zeros((len(docs), length), np.float32)
    for i, ids in enumerate(docs):
        k = min(max(len(ids) - 1, 0), length)
        rows["tokens"][i, :k], rows["targets"][i, :k], rows["weights"][i, :k] = (
            ids[:k],
            ids[1 : k + 1],
            1,
        )
    return rows


def _padded(docs: Sequence[Sequence[int]], length: int, batch: int):
    """Batches of one shape: ({tokens, targets, weights} on the mesh, how many targets each document has)."""
    place, batch = jax.NamedSharding(jax.sharding.get_mesh(), P(ROWS)), fill_batch(batch)
    for first in range(0, len(docs), batch):
        part = docs[first : first + batch]
        rows = pack_documents([*part, *[()] * (batch - len(part))], length)
        sizes = rows["weights"].sum(axis=1).astype(int)[: len(part)]
        yield {k: jax.device_put(a, place) for k, a in rows.items()}, sizes


@partial(jax.jit, static_argnames="c")
def _nats(c: Model, params: dict, tokens_bt, targets_bt):
    return token_cross_entropy(c, params, compute_hidden(c, params, tokens_bt), targets_bt)[0]


def gradients(
    c: Model,
    params: dict,
    docs: Sequence[Sequence[int]],
    length: int,
    dim: int = 16,
    batch: int = BATCH,
) -> np.ndarray:
    """[N, dim^2]: a fixed random projection of each document's gradient with respect to the output matrix.

    That gradient is sum_t x_t (p_t - y_t)^T, a sum of outer products, so it is projected by a projection of each side:
    (R1 x_t) (R2 (p_t - y_t))^T. Nothing of its size, D x V a document, is ever made.
    """
    found = []
    for rows, sizes in _padded(docs, length, batch):
        out = _sketch(c, params, rows["tokens"], rows["targets"], rows["weights"], dim)
        found.append(np.asarray(jax.reshard(out, P()))[: len(sizes)])
    return np.concatenate(found) if found else np.zeros((0, dim * dim), np.float32)


@partial(jax.jit, static_argnames=("c", "dim"))
def _sketch(c: Model, params: dict, tokens_bt, targets_bt, weights_bt, dim: int):
    B, T = tokens_bt.shape
    x_nd = compute_hidden(c, params, tokens_bt)
    y_nd, _ = apply_head(c, params, x_nd)
    targets_n = jax.lax.reshape(targets_bt, (B * T,), out_sharding=P(ROWS))
    logits_nv = jax.reshard(unembed(c, params, x_nd), P(ROWS, None))
    off_nv = jax.nn.softmax(logits_nv) - jax.nn.one_hot(targets_n, c.vocab_size, dtype=jnp.float32)
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    left, right = (
        jax.random.rademacher(k, (n, dim), jnp.float32)
        for k, n in zip(keys, (c.width, c.vocab_size), strict=True)
    )
    a, b = jnp.dot(y_nd.astype(jnp.float32), left), jnp.dot(off_nv, right)
    a, b = (jax.lax.reshape(z, (B, T, dim), out_sharding=P(ROWS)) for z in (a, b))
    return jax.lax.reshape(
        jnp.einsum("bti,btj,bt->bij", a, b, weights_bt), (B, dim * dim), out_sharding=P(ROWS)
    )

"""Prompts with entropy from outside the model, and the samples that follow from them. No jax.

What a model no longer writes by itself can still be asked for: samples begin with rare passages of
real text, or with pairs of names that never met.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Tokens that a prompt takes from real text at most: a direction, too short to be copied.
MAX_PROMPT_TOKENS = 8

# One or more capitalized words inside a sentence.
NAME = r"(?<=[a-z,] )[A-Z][a-z]{2,}(?: [A-Z][a-z]+)*"


@dataclass(frozen=True)
class Prompt:
    """What a sample begins with."""

    ids: tuple[int, ...]
    parents: tuple[str, ...] = ()  # names of the real documents it was cut from


@dataclass(frozen=True)
class Sample:
    """A text that a model has written; weights, prompt, key and settings determine it."""

    prompt: Prompt
    key: int
    ids: tuple[int, ...]  # what was drawn, the stop token included
    logp: float  # nats, under exactly what the ids were drawn from

    def document(self, bos: int) -> list[int]:
        """Prompt and continuation, without the marks of beginning and end."""
        return [i for i in (*self.prompt.ids, *self.ids) if i != bos]


def first_key(seed: int, generation: int) -> int:
    """Key of the first sample of a generation; the others have the numbers after it."""
    name = f"synth:{seed}:{generation}".encode()
    digest = hashlib.blake2b(name, digest_size=4).digest()
    return int.from_bytes(digest) >> 1  # of 31 bits


def rare_contexts(
    docs: Sequence[np.ndarray], count_v: np.ndarray, n: int, rng: np.random.Generator, bos: int
) -> list[Prompt]:
    """n passages of 2 to `MAX_PROMPT_TOKENS` tokens that end in the rarest token of a document.

    A document is chosen in proportion to 1 / the count of that token in `count_v`, [V].
    """
    rarest = [(d, int(np.argmin(count_v[doc]))) for d, doc in enumerate(docs) if len(doc) > 2]
    if not rarest:
        return []
    chance = np.array([1.0 / max(count_v[docs[d][i]], 1) for d, i in rarest])
    prompts = []
    for choice in rng.choice(len(rarest), n, p=chance / chance.sum()):
        d, i = rarest[choice]
        start = max(0, i + 1 - int(rng.integers(2, MAX_PROMPT_TOKENS + 1)))
        end = max(i + 1, start + 2)
        prompts.append(Prompt((bos, *map(int, docs[d][start:end])), (f"real-{d}",)))
    return prompts


def entity_pairs(
    texts: Sequence[str], n: int, rng: np.random.Generator
) -> list[tuple[str, tuple[str, ...]]]:
    """n openings "A and B" with names from different documents, and the documents' names.

    After EntiGraph (arXiv:2409.07431): relations between entities that the corpus never relates.
    """
    names = [re.findall(NAME, text) for text in texts]
    named = [d for d in range(len(texts)) if names[d]]
    if len(named) < 2:
        return []
    openings = []
    for _ in range(n):
        d, e = rng.choice(named, 2, replace=False)
        a = names[d][rng.integers(len(names[d]))]
        b = names[e][rng.integers(len(names[e]))]
        openings.append((f"{a} and {b}", (f"real-{d}", f"real-{e}")))
    return openings

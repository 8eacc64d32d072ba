"""Slots on a mesh of jax: the host's side of `decode/batch.py`."""

from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np

from ramp.config import Model
from ramp.decode import batch
from ramp.decode.batch import ALLOW_ALL, ROUND_TOKENS, DrawnTokens, DrawSettings
from ramp.decode.cache import grow_cache
from ramp.decode.params import prepare_decode_params
from ramp.decode.sample import SamplingParams, shard_rows
from ramp.serve.jobs import Job, Token, read_token

PREFILL_TOKENS = 64  # of a prompt, read at a time
# Least length of the cache; it doubles up to the context. XLA:CPU sums over caches of 128 in
# another order than over all longer ones: an answer would depend on how long its neighbours are.
MIN_CACHE = 256


class JaxSlots:
    """Slots on the current mesh, for an `Engine`, which says what each call does."""

    def __init__(
        self,
        c: Model,
        lm: dict,
        vocab_size: int,
        slots: int = 16,
        prefill_tokens: int = PREFILL_TOKENS,
    ):
        self.mesh = jax.sharding.get_mesh()
        self.num_devices = self.mesh.shape["replica"] * self.mesh.shape["data"]
        # Slots are split over devices, each of which has the same number.
        self.slots = slots + -slots % self.num_devices
        self.c = c
        self.vocab_size = vocab_size
        self.weights = prepare_decode_params(c, lm)
        # All lengths that the cache can have: each is compiled by `warm_up`.
        self.sizes = [min(MIN_CACHE, c.context_len)]
        while self.sizes[-1] < c.context_len:
            self.sizes.append(min(2 * self.sizes[-1], c.context_len))
        self.prefill_tokens = min(prefill_tokens, self.sizes[0])
        self.reset()

    def enter_thread(self) -> None:
        """Set the mesh, which is a thread's own."""
        jax.set_mesh(self.mesh)

    @property
    def is_grown(self) -> bool:
        """Whether the cache is longer than short answers need."""
        return self.size > self.sizes[0]

    def wait(self) -> None:
        """Wait for the device: newcomers would stand behind every chunk that was sent ahead."""
        jax.block_until_ready(self.state.length_b)

    def warm_up(self, report: Callable[[str], None]) -> DrawnTokens:
        """Compile every shape, or read it from the compilation cache."""
        for size in self.sizes:
            report(f"compiling: {size} tokens")
            self._grow(size)
            # Any job will do: shapes do not depend on it.
            job = Job((0,), 1, SamplingParams(), 0, lambda tokens, reason: None)
            job.scores_prompt = job.embeds_prompt = True
            self.read(0, job)
            self.copy(0, 0, job)
            self.clear(0)
            drawn = self.draw({})
        return drawn

    def reset(self) -> None:
        """Empty slots with the least room."""
        self.size = self.sizes[0]
        self.state = batch.init_slots(self.c, self.slots, self.size)

    def _grow(self, need):
        # By one size at a time: `warm_up` has compiled these steps only.
        while need > self.size < self.c.context_len:
            self.size = next(size for size in self.sizes if size > self.size)
            cache = grow_cache(self.state.cache, self.size)
            self.state = replace(self.state, cache=cache)

    def read(self, slot: int, job: Job) -> int:
        """Read the next chunk of a job's tokens into its slot.

        The last chunk ends where the prompt does, even if that reads some tokens twice: no chunk
        reaches beyond the cache.
        """
        ids = (0, *job.prompt, *job.answer)  # each chunk begins with the token before it
        width = self.prefill_tokens
        start = min(job.num_cached, max(0, len(ids) - 1 - width))
        end = min(start + width, len(ids) - 1)
        self._grow(end)
        # The same chunk for each device; the one that owns the slot keeps it.
        tokens = np.zeros((self.num_devices, 1 + width), np.int32)
        tokens[:, : end + 1 - start] = ids[start : end + 1]
        self.state, x_rpd = batch.prefill_chunk(
            self.c,
            self.weights,
            self.state,
            *shard_rows(tokens),
            np.int32(slot),
            np.int32(start),
            np.int32(end - start),
            self._settings(job),
        )
        if job.scores_prompt:
            self._score(job, x_rpd, start, end)
        if job.embeds_prompt:
            places = np.int32(job.num_cached - start), np.int32(end - start)
            total_rd = batch.sum_hidden(self.c, self.weights, x_rpd, *places)
            job.embedding = job.embedding + np.asarray(total_rd)[0]
        num_new = end - job.num_cached
        job.num_cached = end
        return num_new

    def _score(self, job, x_rpd, start, end):
        """Figures of the prompt's tokens after those at start .. end, but for those that are known.

        The first token of a prompt has none: nothing stands before it.
        """
        job.prompt_tokens = job.prompt_tokens or [Token(job.prompt[0])]
        targets = np.zeros((self.num_devices, self.prefill_tokens), np.int32)
        following = job.prompt[start + 1 : end + 1]
        targets[:, : len(following)] = following
        scores = batch.score_chunk(
            self.c, self.weights, x_rpd, *shard_rows(targets), self.vocab_size
        )
        scores = jax.device_get(scores)
        for place in range(job.num_cached, min(end, len(job.prompt) - 1)):
            job.prompt_tokens.append(read_token(scores, (place - start,), job.logprobs))

    def copy(self, source: int, slot: int, job: Job) -> None:
        """Copy what slot `source` has read, for a job with the same prompt."""
        places = np.int32(source), np.int32(slot)
        self.state = batch.copy_slot(self.state, *places, self._settings(job))
        job.num_cached = len(job.prompt)

    def clear(self, slot: int) -> None:
        """Zero the cache of a slot."""
        self.state = batch.clear_slot(self.state, np.int32(slot))

    def draw(self, jobs: dict[int, Job]) -> DrawnTokens:
        """Draw a round of tokens for all slots, of which those of `jobs` are used."""
        # The longest row decides; the cache has one length for all.
        self._grow(max((job.num_cached for job in jobs.values()), default=0) + ROUND_TOKENS)
        constraints = {slot: job.constraint for slot, job in jobs.items() if job.constraint}
        parts = []
        # Constraints look at each token before the next one is drawn.
        for first in range(0, ROUND_TOKENS, 1 if constraints else ROUND_TOKENS):
            places = np.int32(first), np.int32(1 if constraints else ROUND_TOKENS)
            allowed = self._list_allowed(constraints)
            self.state, drawn = batch.decode_slots(
                self.c, self.weights, self.state, *places, allowed, self.vocab_size
            )
            parts.append(drawn)
            for slot, constraint in constraints.items():
                constraint.accept(int(drawn.token_bn[slot, first]))
        self.state = batch.finish_round(self.state)
        # Each has zeros where the others have tokens.
        return jax.tree.map(lambda *parts: sum(parts), *jax.device_get(parts))

    def _list_allowed(self, constraints):
        """Which tokens may follow in each slot, as `decode_slots` reads it."""
        shape = self.slots, batch.count_words(self.c.vocab_size)
        allowed_bw = np.full(shape, ALLOW_ALL, np.int32)
        for slot, constraint in constraints.items():
            constraint.fill(allowed_bw[slot])
        return shard_rows(allowed_bw)[0]

    def _settings(self, job):
        """How a job's tokens are drawn, in fixed dtypes: plain numbers would compile again."""
        bias_v = counts_v = np.zeros(self.c.vocab_size, np.float32)
        is_adjusted = bool(job.constraint or job.logit_bias)
        penalties = job.presence_penalty, job.frequency_penalty
        if job.logit_bias:
            bias_v = bias_v.copy()
            bias_v[list(job.logit_bias)] = list(job.logit_bias.values())
        if any(penalties):
            is_adjusted = True
            counts = np.bincount(np.array(job.answer, np.int64), minlength=len(counts_v))
            counts_v = counts.astype(np.float32)
        return DrawSettings(
            seed=np.array((job.seed % 2**32, job.seed >> 32, job.number), np.uint32),
            sampling=jax.tree.map(np.float32, job.sampling),
            logprobs=np.float32(job.logprobs),
            is_adjusted=np.float32(is_adjusted),
            presence_penalty=np.float32(job.presence_penalty),
            frequency_penalty=np.float32(job.frequency_penalty),
            bias_v=bias_v,
            counts_v=counts_v,
        )

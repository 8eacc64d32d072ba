"""Continuous batching: one thread that owns the device, and the requests it turns into tokens.

Requests wait in a bounded queue; free slots are filled from its head. Prompts are read in chunks,
two between two rounds of decoding: one chunk of the prompt that came first, one of the prompt with
the least left. So a running answer waits for at most two chunks, a short prompt does not wait for
a long one, and none waits for ever. A round draws `ROUND_TOKENS` for all slots and hands them to
each job's `emit`, which must be quick and safe to call from this thread. A cancelled job loses its
slot at the next round or chunk.

A slot that is given back keeps what it has read, so the next turn of a conversation reads only what
is new. Tokens that were drawn are not summed in the order of tokens that were read: a job whose
answer must be the same every time, as one with a seed, takes nothing from others (`exact`).

A job may have a constraint, such as a grammar, which says before each token which ones may follow.
While there is one, a round is drawn token by token.
"""

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Protocol

import jax
import numpy as np

from ramp.config import Model
from ramp.decode import batch
from ramp.decode.batch import ALLOW_ALL, ROUND_TOKENS, DrawSettings
from ramp.decode.cache import grow_cache
from ramp.decode.params import prepare_decode_params
from ramp.decode.sample import SamplingParams, shard_rows
from ramp.errors import UserError
from ramp.serve.record import Histogram
from ramp.text.tokenizer import Tokenizer

PREFILL_TOKENS = 64  # of a prompt, read at a time
# Least length of the cache; it doubles up to the context. XLA:CPU sums over caches of 128 in
# another order than over all longer ones: an answer would depend on how long its neighbours are.
MIN_CACHE = 256


@dataclass(frozen=True)
class Token:
    """One token of an answer or of a prompt, with the model's own figures for it."""

    id: int
    logp: float | None = None  # None: the first of a prompt, which nothing predicts
    entropy: float = 0.0  # nats
    top: tuple[tuple[int, float], ...] = ()  # (id, log-probability), the most likely first
    forced: bool = False  # not drawn but inserted, as the result of a tool is
    start: int = 0  # where its text begins; set by `TextStream`


class Constraint(Protocol):
    """What an answer may be, token by token; `grammar.py` has one."""

    num_tokens: int | None  # of the whole answer, once nothing may follow
    failed: bool  # what may follow cannot be told

    def fill(self, allowed_w: np.ndarray) -> None:
        """Clear the bits of the tokens that may not come next; all are set."""

    def accept(self, id: int) -> None:
        """Go on behind a token that was allowed."""


@dataclass(eq=False)
class Job:
    """One answer to be generated, or a prompt to be told about."""

    prompt: tuple[int, ...]
    max_new_tokens: int  # prompt and answer together fit the context
    sampling: SamplingParams
    seed: int
    # Called with the new tokens and the finish reason: "", "stop", "length", "invalid" (the model's
    # numbers are not finite), "failed" (the constraint did) or "error" (the engine has died).
    emit: Callable[[list[Token], str], None]
    number: int = 0  # of the answer among those to one request: each has draws of its own
    logprobs: int = 0  # most likely tokens to report with each token
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    # From the answer so far to tokens that are inserted after it; usually none.
    insert: Callable[[Sequence[int]], list[int]] = lambda answer: []
    constraint: Constraint | None = None
    exact: bool = True  # never begins with what another job left in a slot
    scores_prompt: bool = False  # fill `prompt_tokens`
    embeds_prompt: bool = False  # fill `embedding`
    cancelled: bool = False
    started: float = field(default_factory=time.perf_counter)
    answer: list[int] = field(default_factory=list)
    num_cached: int = 0  # tokens of prompt and answer that are in its slot
    prompt_tokens: list[Token] = field(default_factory=list)
    embedding: np.ndarray | float = 0.0  # float32 [D], the sum of the prompt's last hidden states

    @cached_property
    def keeps_prompt(self) -> bool:
        """Whether every token of the prompt has to be read for this job itself."""
        return self.scores_prompt or self.embeds_prompt

    @property
    def num_unread(self) -> int:
        """Tokens that have to be read into its slot before more can be drawn."""
        return len(self.prompt) + len(self.answer) - self.num_cached


class QueueFull(Exception):
    """As many requests wait as may."""


class Engine:
    """Slots on the current mesh. `submit` and `cancel` are for any thread."""

    def __init__(
        self,
        c: Model,
        lm: dict,
        tokenizer: Tokenizer,
        slots: int = 16,
        max_waiting: int = 64,
        prefill_tokens: int = PREFILL_TOKENS,
    ):
        self.mesh = jax.sharding.get_mesh()
        self.num_devices = self.mesh.shape["replica"] * self.mesh.shape["data"]
        # Slots are split over devices, each of which has the same number.
        self.slots = slots + -slots % self.num_devices
        self.c = c
        self.tokenizer = tokenizer
        self.weights = prepare_decode_params(c, lm)
        self.stop_ids = set(tokenizer.stop_ids)
        # All lengths that the cache can have: each is compiled by `warm_up`.
        self.sizes = [min(MIN_CACHE, c.context_len)]
        while self.sizes[-1] < c.context_len:
            self.sizes.append(min(2 * self.sizes[-1], c.context_len))
        self.prefill_tokens = min(prefill_tokens, self.sizes[0])
        self.max_waiting = max_waiting
        # Shared with other threads: changed only while `_changed` is held.
        self.waiting: deque[Job] = deque()
        self.running: dict[int, Job] = {}  # by slot
        # What free slots have read, by slot, the one that was given back first in front.
        self.kept: dict[int, tuple[int, ...]] = {}
        self.counts = defaultdict(float)
        self.first_token_seconds = Histogram("ramp_first_token_seconds")
        self.error: BaseException | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ramp-engine", daemon=True)
        self._reset()

    # Called from any thread

    def start(self) -> None:
        """Begin to serve jobs, in a thread of its own."""
        self._thread.start()

    @property
    def capacity(self) -> int:
        """Answers that one request may ask for: more would never find room."""
        return self.slots + self.max_waiting

    def submit(self, jobs: list[Job]) -> None:
        """Queue all of the jobs or none. QueueFull: try later. RuntimeError: the engine died."""
        with self._changed:
            if self._closing:
                raise RuntimeError("the engine has stopped")
            num_free = self.slots - len(self.running)
            if len(self.waiting) + len(jobs) > self.max_waiting + num_free:
                raise QueueFull
            self.waiting.extend(jobs)
            self.counts["requests"] += len(jobs)
            self._changed.notify()

    def cancel(self, jobs: list[Job]) -> None:
        """Drop jobs; those that have ended already are no mistake."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self.waiting = deque(job for job in self.waiting if not job.cancelled)

    def close(self) -> None:
        """Stop the thread; answers that are under way end with "error"."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        # It may never have been started, or have died.
        if self._thread.is_alive():
            self._thread.join(timeout=60)

    def warm_up(self, report: Callable[[str], None] = lambda text: None) -> None:
        """Compile every shape before the first request, or read it from the compilation cache.

        UserError: the weights give numbers that are not finite.
        """
        for size in self.sizes:
            report(f"{size} tokens")
            self._grow(size)
            # Any job will do: shapes do not depend on it.
            job = Job((0,), 1, SamplingParams(), 0, lambda tokens, reason: None)
            job.scores_prompt = job.embeds_prompt = True
            self._prefill(0, job)
            self._copy(0, 0, job)
            self._allow({})
            drawn = self._decode({})
        if not np.isfinite(drawn.entropy_bn[0]).all():
            raise UserError(
                "the weights give numbers that are not finite; import the model again, "
                "or choose an earlier stage with --stage"
            )
        self._reset()

    # The engine's thread

    def _run(self):
        jax.set_mesh(self.mesh)  # the current mesh is a thread's own
        try:
            while self._admit():
                self._read_prompts()
                self._advance()
        # Whatever it is: a panic of a library in Rust is no `Exception`.
        except BaseException as error:
            # The API answers 503 from here on, and /health says so.
            self.error = error
            raise
        finally:
            with self._changed:
                self._closing = True
                unfinished = [*self.running.values(), *self.waiting]
                self.running = {}
                self.waiting = deque()
            for job in unfinished:
                job.emit([], "error")

    def _admit(self):
        """Fill free slots, or wait where there is nothing to do. False: the engine is closing."""
        with self._changed:
            while not (self.waiting or self.running or self._closing):
                self._changed.wait()
            if self._closing:
                return False
            for slot, job in list(self.running.items()):
                if job.cancelled:
                    self.counts["cancelled"] += 1
                    self._give_back(slot)
            is_idle = not self.running and self.size > self.sizes[0]
            # A long answer is over, and short ones need no long cache; its next turn does.
            if is_idle and not any(
                self._count_shared(job, slot) for job in self.waiting for slot in self.kept
            ):
                self._reset()
            while self.waiting and len(self.running) < self.slots:
                job = self.waiting.popleft()
                slot = self._choose_slot(job)
                job.num_cached = self._count_shared(job, slot)
                self.kept.pop(slot, None)
                self.running[slot] = job
        return True

    def _choose_slot(self, job):
        """The free slot that has read most of the prompt, or else one of least use to others."""
        free = [slot for slot in range(self.slots) if slot not in self.running]
        if any(self._count_shared(job, slot) for slot in free):
            return max(free, key=lambda slot: self._count_shared(job, slot))
        # One that keeps nothing, or what was kept longest.
        ages = {slot: age for age, slot in enumerate(self.kept)}
        return min(free, key=lambda slot: ages.get(slot, -1))

    def _count_shared(self, job, slot):
        """How many tokens of a job's prompt a free slot has read; the last is always read again."""
        if job.exact or job.keeps_prompt:
            return 0
        kept = self.kept.get(slot, ())
        count = 0
        for mine, theirs in zip(job.prompt[:-1], kept, strict=False):
            if mine != theirs:
                break
            count += 1
        return count

    def _give_back(self, slot):
        """Free a slot, which keeps what it has read."""
        job = self.running.pop(slot)
        self.kept[slot] = (*job.prompt, *job.answer)[: job.num_cached]

    def _read_prompts(self):
        """A chunk of the prompt that came first, then one of the prompt with the least left."""
        for shortest_first in (False, True):
            unread = {slot: job for slot, job in self.running.items() if job.num_unread}
            if not unread:
                return
            # Jobs are in the order in which they got their slots.
            slot = next(iter(unread))
            if shortest_first:
                slot = min(unread, key=lambda slot: unread[slot].num_unread)
            job = unread.pop(slot)
            self._prefill(slot, job)
            if job.num_unread or job.answer:
                continue
            for other_slot, other in unread.items():  # n answers to one prompt: it is read once
                if other.prompt != job.prompt or other.answer:
                    continue
                if job.exact >= other.exact and job.keeps_prompt >= other.keeps_prompt:
                    self._copy(slot, other_slot, other)
                    other.prompt_tokens = job.prompt_tokens
                    other.embedding = job.embedding

    def _advance(self):
        """One round of decoding, for all jobs whose prompt has been read."""
        ready = {slot: job for slot, job in self.running.items() if not job.num_unread}
        for slot, job in list(ready.items()):
            if not job.max_new_tokens:  # its prompt was all there was to read
                del ready[slot]
                self._finish(slot, [], "length")
        if not ready:
            # Otherwise newcomers would stand behind every chunk that was sent ahead.
            jax.block_until_ready(self.state.length_b)
            return
        # The longest row decides; the cache has one length for all.
        self._grow(max(job.num_cached for job in ready.values()) + ROUND_TOKENS)
        drawn = self._decode(ready)
        self.counts["chunks"] += 1
        for slot, job in ready.items():
            tokens, reason = self._take_tokens(job, drawn, slot)
            # Inserted tokens are not in the slot yet: the next rounds read them as a prompt.
            job.num_cached += sum(not token.forced for token in tokens)
            if reason:
                self._finish(slot, tokens, reason)
            else:
                job.emit(tokens, "")

    def _finish(self, slot, tokens, reason):
        job = self.running[slot]
        self._give_back(slot)
        self.counts["finished"] += 1
        job.emit(tokens, reason)

    def _take_tokens(self, job, drawn, slot):
        """A round's tokens for one job, and its finish reason or "".

        What was drawn after inserted tokens is not used: it did not see them.
        """
        if not job.answer:
            self.first_token_seconds.add(time.perf_counter() - job.started)
        tokens = []
        for i, id in enumerate(drawn.token_bn[slot].tolist()):
            if job.constraint and job.constraint.failed:
                return tokens, "failed"
            # A stop token ends the answer and is not part of it.
            if id in self.stop_ids:
                return tokens, "stop"
            token = _read_token(drawn, (slot, i), job.logprobs)
            # Rather no answer than one that was drawn from no distribution.
            if not math.isfinite(token.entropy):
                return tokens, "invalid"
            tokens.append(token)
            job.answer.append(id)
            self.counts["tokens"] += 1
            if job.constraint and job.constraint.num_tokens == len(job.answer):
                return tokens, "stop"
            # Inserted tokens count against the limit as well.
            room = job.max_new_tokens - len(job.answer)
            inserted = job.insert(job.answer)[:room]
            job.answer += inserted
            tokens += [Token(id, 0.0, forced=True) for id in inserted]
            if len(job.answer) == job.max_new_tokens:
                return tokens, "length"
            if inserted:
                break
        return tokens, ""

    # The device

    def _reset(self):
        self.size = self.sizes[0]
        self.state = batch.init_slots(self.c, self.slots, self.size)
        self.kept = {}

    def _grow(self, need):
        # By one size at a time: `warm_up` has compiled these steps only.
        while need > self.size < self.c.context_len:
            self.size = next(size for size in self.sizes if size > self.size)
            cache = grow_cache(self.state.cache, self.size)
            self.state = replace(self.state, cache=cache)

    def _prefill(self, slot, job):
        """The next chunk of a job's tokens into its slot.

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
        self.counts["prompt_tokens"] += end - job.num_cached
        job.num_cached = end

    def _score(self, job, x_rpd, start, end):
        """Figures of the prompt's tokens after those at start .. end, but for those that are known.

        The first token of a prompt has none: nothing stands before it.
        """
        job.prompt_tokens = job.prompt_tokens or [Token(job.prompt[0])]
        targets = np.zeros((self.num_devices, self.prefill_tokens), np.int32)
        following = job.prompt[start + 1 : end + 1]
        targets[:, : len(following)] = following
        scores = batch.score_chunk(
            self.c, self.weights, x_rpd, *shard_rows(targets), self.tokenizer.vocab_size
        )
        scores = jax.device_get(scores)
        for place in range(job.num_cached, min(end, len(job.prompt) - 1)):
            job.prompt_tokens.append(_read_token(scores, (place - start,), job.logprobs))

    def _copy(self, source, slot, job):
        """What slot `source` has read, for a job with the same prompt."""
        places = np.int32(source), np.int32(slot)
        self.state = batch.copy_slot(self.state, *places, self._settings(job))
        job.num_cached = len(job.prompt)

    def _decode(self, jobs):
        """A round of tokens for all slots, of which `jobs` are read."""
        constraints = {slot: job.constraint for slot, job in jobs.items() if job.constraint}
        parts = []
        # Constraints look at each token before the next one is drawn.
        for first in range(0, ROUND_TOKENS, 1 if constraints else ROUND_TOKENS):
            if constraints:
                self._allow(constraints)
            places = np.int32(first), np.int32(1 if constraints else ROUND_TOKENS)
            self.state, drawn = batch.decode_slots(
                self.c, self.weights, self.state, *places, self.tokenizer.vocab_size
            )
            parts.append(drawn)
            for slot, constraint in constraints.items():
                constraint.accept(int(drawn.token_bn[slot, first]))
        self.state = batch.finish_round(self.state)
        # Each has zeros where the others have tokens.
        return jax.tree.map(lambda *parts: sum(parts), *jax.device_get(parts))

    def _allow(self, constraints):
        """Tell the device which tokens may follow."""
        shape = self.slots, batch.count_words(self.c)
        allowed_bw = np.full(shape, ALLOW_ALL, np.int32)
        for slot, constraint in constraints.items():
            constraint.fill(allowed_bw[slot])
        self.state = batch.set_allowed(self.state, *shard_rows(allowed_bw))

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
            allowed_w=np.full(batch.count_words(self.c), ALLOW_ALL, np.int32),
        )


def _read_token(drawn, at, num_top):
    """The token at one place of what the device gave, with its `num_top` most likely rivals."""
    top = zip(drawn.top_bnk[at].tolist(), drawn.top_logp_bnk[at].tolist(), strict=True)
    return Token(
        int(drawn.token_bn[at]),
        float(drawn.logp_bn[at]),
        float(drawn.entropy_bn[at]),
        tuple(islice(top, num_top)),
    )

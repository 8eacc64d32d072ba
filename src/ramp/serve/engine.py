"""Continuous batching: one thread that owns the device, and the requests it turns into tokens.

Requests wait in a bounded queue; free slots are filled from its head. Prompts are read in chunks,
two between two rounds of decoding: one chunk of the prompt that came first, one of the prompt with
the least left. So a running answer waits for at most two chunks, a short prompt does not wait for
a long one, and none waits for ever. A round draws `DECODE_TOKENS` for all slots and hands them to
each job's `emit`, which must be quick and safe to call from this thread. A cancelled job loses its
slot at the next round or chunk.
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import jax
import numpy as np

from ramp.config import Model
from ramp.decode import batch
from ramp.decode.cache import grow_cache
from ramp.decode.params import prepare_decode_params
from ramp.decode.sample import SamplingParams, shard_rows
from ramp.text.tokenizer import Tokenizer

DECODE_TOKENS = 4  # drawn in one round, before newcomers are admitted
PREFILL_TOKENS = 64  # of a prompt, read at a time
# Least length of the cache; it doubles up to the context. XLA:CPU sums over caches of 128 in
# another order than over all longer ones: an answer would depend on how long its neighbours are.
MIN_CACHE = 256


@dataclass(frozen=True)
class Token:
    """One token of an answer, with the model's own figures for it."""

    id: int
    logp: float
    entropy: float  # nats
    top: tuple[tuple[int, float], ...] = ()  # (id, log-probability), the most likely first
    forced: bool = False  # not drawn but inserted, as the result of a tool is


@dataclass(eq=False)
class Job:
    """One answer to be generated."""

    prompt: tuple[int, ...]
    max_new_tokens: int  # at least 1; prompt and answer together fit the context
    sampling: SamplingParams
    seed: int
    # Called with the new tokens and the finish reason: "", "stop", "length" or "error".
    emit: Callable[[list[Token], str], None]
    # From the answer so far to tokens that are inserted after it; usually none.
    insert: Callable[[Sequence[int]], list[int]] = lambda answer: []
    cancelled: bool = False
    started: float = field(default_factory=time.perf_counter)
    answer: list[int] = field(default_factory=list)
    num_cached: int = 0  # tokens of prompt and answer that are in its slot

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
        self.counts = defaultdict(float)
        self.error: Exception | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ramp-engine", daemon=True)
        self._reset()

    # Called from any thread

    def start(self) -> None:
        """Begin to serve jobs, in a thread of its own."""
        self._thread.start()

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
        """Compile every shape before the first request, or read it from the compilation cache."""
        for size in self.sizes:
            report(f"{size} tokens")
            self._grow(size)
            # Any job will do: shapes do not depend on it.
            job = Job((0,), 1, SamplingParams(), 0, lambda tokens, reason: None)
            self._prefill(0, job)
            self._copy(0, 0, job)
            self._decode()
        self._reset()

    # The engine's thread

    def _run(self):
        jax.set_mesh(self.mesh)  # the current mesh is a thread's own
        try:
            while self._admit():
                self._read_prompts()
                self._advance()
        except Exception as error:
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
                    del self.running[slot]
            if not self.running and self.size > self.sizes[0]:
                self._reset()  # a long answer is over: short ones need no long cache
            for slot in range(self.slots):
                if slot not in self.running and self.waiting:
                    self.running[slot] = self.waiting.popleft()
        return True

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
                if other.prompt == job.prompt and not other.answer:
                    self._copy(slot, other_slot, other)

    def _advance(self):
        """One round of decoding, for all jobs whose prompt has been read."""
        ready = {slot: job for slot, job in self.running.items() if not job.num_unread}
        if not ready:
            # Otherwise newcomers would stand behind every chunk that was sent ahead.
            jax.block_until_ready(self.state.length_b)
            return
        # The longest row decides; the cache has one length for all.
        self._grow(max(job.num_cached for job in ready.values()) + DECODE_TOKENS)
        drawn = self._decode()
        self.counts["chunks"] += 1
        for slot, job in ready.items():
            tokens, reason = self._take_tokens(job, drawn, slot)
            # Inserted tokens are not in the slot yet: the next rounds read them as a prompt.
            job.num_cached += sum(not token.forced for token in tokens)
            if reason:
                del self.running[slot]
                self.counts["finished"] += 1
            job.emit(tokens, reason)

    def _take_tokens(self, job, drawn, slot):
        """A round's tokens for one job, and its finish reason or "".

        What was drawn after inserted tokens is not used: it did not see them.
        """
        if not job.answer:
            self.counts["first_tokens"] += 1
            self.counts["first_token_seconds"] += time.perf_counter() - job.started
        tokens = []
        for i, id in enumerate(drawn.token_bn[slot].tolist()):
            # A stop token ends the answer and is not part of it.
            if id in self.stop_ids:
                return tokens, "stop"
            at = slot, i
            top = zip(drawn.top_bnk[at].tolist(), drawn.top_logp_bnk[at].tolist(), strict=True)
            top = tuple(islice(top, int(job.sampling.logprobs)))
            logp = float(drawn.logp_bn[at])
            entropy = float(drawn.entropy_bn[at])
            tokens.append(Token(id, logp, entropy, top))
            job.answer.append(id)
            self.counts["tokens"] += 1
            # Inserted tokens count against the limit as well.
            room = job.max_new_tokens - len(job.answer)
            inserted = job.insert(job.answer)[:room]
            job.answer += inserted
            tokens += [Token(id, 0.0, 0.0, forced=True) for id in inserted]
            if len(job.answer) == job.max_new_tokens:
                return tokens, "length"
            if inserted:
                break
        return tokens, ""

    # The device

    def _reset(self):
        self.size = self.sizes[0]
        self.state = batch.init_slots(self.c, self.slots, self.size)

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
        self.state = batch.prefill_chunk(
            self.c,
            self.weights,
            self.state,
            *shard_rows(tokens),
            np.int32(slot),
            np.int32(start),
            np.int32(end - start),
            *_sampling_arrays(job),
        )
        self.counts["prompt_tokens"] += end - job.num_cached
        job.num_cached = end

    def _copy(self, source, slot, job):
        """What slot `source` has read, for a job with the same prompt."""
        sampling, seed = _sampling_arrays(job)
        self.state = batch.copy_slot(self.state, np.int32(source), np.int32(slot), sampling, seed)
        job.num_cached = len(job.prompt)

    def _decode(self):
        self.state, drawn = batch.decode_slots(
            self.c, self.weights, self.state, DECODE_TOKENS, self.tokenizer.vocab_size
        )
        return jax.device_get(drawn)


def _sampling_arrays(job):
    """A job's settings and seed in fixed dtypes: plain Python numbers would compile again."""
    return jax.tree.map(np.float32, job.sampling), np.uint32(job.seed)

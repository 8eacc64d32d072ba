"""One thread that owns the device, and the requests it turns into tokens.

Requests wait in a bounded line; free slots are filled from its head, at most `ADMIT` prompts between two chunks of
decoding, so that those who are already being answered do not stall. A chunk is `CHUNK` tokens for all slots; its tokens
are handed over by each request's own `emit`, which must be quick and safe to call from this thread. A request that is
cancelled loses its slot at the next chunk.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Model
from ramp.model import sample
from ramp.serve import batch
from ramp.serve.batch import Way
from ramp.text.tokenizer import Tokenizer

CHUNK = 4  # tokens between two looks at the world
ADMIT = 2  # prompts run between two chunks
# Least lengths; they double up to the context. XLA:CPU sums over caches of 128 in another order than over all longer
# ones, so that an answer would depend on what its neighbours had made the cache grow to.
PROMPT, CACHE = 32, 256


@dataclass(frozen=True)
class Token:
    """One token of an answer. `forced`: not drawn but put there, as the result of a tool is."""

    id: int
    logp: float
    entropy: float
    top: tuple[tuple[int, float], ...] = ()
    forced: bool = False


Emit = Callable[[list[Token], str], None]  # the new tokens; why it ended: "", "stop", "length", "error"


@dataclass(eq=False)
class Job:
    """One answer to be written. `after(said)`: tokens to put into the answer behind those said so far, or none."""

    ids: tuple[int, ...]
    limit: int  # tokens to draw, at least 1; ids and limit together fit the context
    way: Way
    seed: int
    emit: Emit
    after: Callable[[Sequence[int]], list[int]] = lambda said: []
    cancelled: bool = False
    began: float = field(default_factory=time.perf_counter)
    said: list[int] = field(default_factory=list)


class Full(Exception):
    """The line is as long as it may be."""


class Engine:
    """B slots on the current mesh. `submit` and `cancel` from any thread; `start` once, `close` at the end."""

    def __init__(self, c: Model, lm: dict, tokenizer: Tokenizer, slots: int = 16, waiting: int = 64):
        shape = jax.sharding.get_mesh().shape
        self.rows = shape["replica"] * shape["data"]  # a prefill has one row a device, of which one counts
        self.slots = -(-slots // self.rows) * self.rows
        self.c, self.tokenizer, self.mesh = c, tokenizer, jax.sharding.get_mesh()
        self.params, self.weights = lm, sample.ready(c, lm)
        self.stops = {tokenizer.end, tokenizer.bos}
        self.buckets, self.sizes = _doubling(PROMPT, c.context), _doubling(CACHE, c.context)  # of prompts, of the cache
        self.waiting: deque[Job] = deque()
        self.most_waiting = waiting
        self.live: dict[int, Job] = {}
        self.counts: Counter = Counter()
        self.fault: Exception | None = None
        self._wake, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="ramp-engine", daemon=True)
        self._reset()
        self._last: tuple[tuple[int, ...], sample.Stream] | None = None  # n answers to one prompt: one prefill

    # ---- from any thread

    def start(self) -> None:
        self._thread.start()

    def submit(self, jobs: list[Job]) -> None:
        """All of them or none. Full: come back later. RuntimeError: the engine has died."""
        with self._wake:
            if self._closing:
                raise RuntimeError("the engine has stopped")
            idle = self.slots - len(self.live)
            if len(self.waiting) + len(jobs) > self.most_waiting + idle:
                raise Full
            self.waiting.extend(jobs)
            self.counts["requests"] += len(jobs)
            self._wake.notify()

    def cancel(self, jobs: list[Job]) -> None:
        with self._wake:
            for job in jobs:
                job.cancelled = True
            self.waiting = deque(job for job in self.waiting if not job.cancelled)

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=60)

    def warm(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Compile every shape before the first request; with a filled compilation cache this is reading files."""
        rows = {}
        for length in self.buckets:
            say(f"prompts of up to {length} tokens")
            rows[length] = self._prefill((0,) * length)
        for size in self.sizes:
            say(f"caches of {size} tokens")
            self._grow(size)
            for length, row in rows.items():
                if length <= size:
                    self._insert(row, 0, Way(), 0)
            self._chunk()
        self._reset()

    # ---- the engine's thread

    def _run(self) -> None:
        jax.set_mesh(self.mesh)  # the current mesh is a thread's own
        try:
            while self._admit():
                if self.live:
                    self._step()
        except Exception as error:
            self.fault = error
            raise
        finally:
            with self._wake:
                left, self._closing = [*self.live.values(), *self.waiting], True
                self.live, self.waiting = {}, deque()
            for job in left:
                job.emit([], "error")

    def _admit(self) -> bool:
        """Fill free slots; with nothing to do, wait. False: it is time to go."""
        with self._wake:
            while not (self.waiting or self.live or self._closing):
                self._wake.wait()
            if self._closing:
                return False
            if not self.live and self.size > self.sizes[0]:
                self._reset()
            free = [at for at in range(self.slots) if at not in self.live][:ADMIT]
            taken = [(at, self.waiting.popleft()) for at in free if self.waiting]
            self.live.update(taken)
        for at, job in taken:
            self._put(at, job)
        return True

    def _put(self, at: int, job: Job) -> None:
        ids = (*job.ids, *job.said)
        self._grow(len(ids))
        if self._last is None or self._last[0] != ids:
            self._last = ids, self._prefill(ids)
            self.counts["prompt_tokens"] += len(ids)
        self._insert(self._last[1], at, job.way, job.seed)

    def _step(self) -> None:
        gone = [at for at, job in self.live.items() if job.cancelled]
        self.counts["cancelled"] += len(gone)
        for at in gone:
            del self.live[at]
        if not self.live:
            return
        self._grow(max(len(job.ids) + len(job.said) for job in self.live.values()) + CHUNK)
        drawn = self._chunk()
        self.counts["chunks"] += 1
        for at, job in list(self.live.items()):
            tokens, why = self._tokens(job, drawn, at)
            if why:
                del self.live[at]
                self.counts["finished"] += 1
            elif tokens[-1].forced:
                self._put(at, job)
            job.emit(tokens, why)

    def _tokens(self, job: Job, drawn: batch.Drawn, at: int) -> tuple[list[Token], str]:
        """What a chunk brought to one job: (tokens, why it ended or ""). Behind tokens put in nothing of it counts."""
        tokens: list[Token] = []
        if not job.said:
            self.counts["first_tokens"] += 1
            self.counts["first_token_seconds"] += time.perf_counter() - job.began
        for i, id in enumerate(drawn.token_bn[at].tolist()):
            if id in self.stops:
                return tokens, "stop"
            top = ()
            if job.way.tops:
                pairs = zip(drawn.top_bnk[at, i].tolist(), drawn.top_logp_bnk[at, i].tolist(), strict=True)
                top = tuple(pairs)[: int(job.way.tops)]
            tokens.append(Token(id, float(drawn.logp_bn[at, i]), float(drawn.entropy_bn[at, i]), top))
            job.said.append(id)
            self.counts["tokens"] += 1
            if len(job.said) >= job.limit:
                return tokens, "length"
            if forced := job.after(job.said)[: job.limit - len(job.said)]:
                job.said += forced
                tokens += [Token(f, 0.0, 0.0, forced=True) for f in forced]
                return tokens, "length" if len(job.said) >= job.limit else ""
        return tokens, ""

    # ---- the device

    def _reset(self) -> None:
        self.size = self.sizes[0]
        self.state = batch.blank(self.c, self.slots, self.size)

    def _grow(self, need: int) -> None:
        while need > self.size < self.c.context:
            self.size = next(s for s in self.sizes if s > self.size)
            self.state = batch.grow(self.state, self.size)

    def _prefill(self, ids: tuple[int, ...]) -> sample.Stream:
        length = next(b for b in self.buckets if b >= len(ids))
        padded = np.zeros((self.rows, length), np.int32)
        padded[:, : len(ids)] = ids
        place = jax.NamedSharding(self.mesh, P(batch.ROWS))
        lengths, seeds = np.full(self.rows, len(ids), np.int32), np.zeros(self.rows, np.uint32)
        tokens, lengths, seeds = (jax.device_put(a, place) for a in (padded, lengths, seeds))
        return sample.prefill(self.c, self.params, tokens, lengths, seeds, length)

    def _insert(self, row: sample.Stream, at: int, way: Way, seed: int) -> None:
        way = jax.tree.map(np.float32, way)
        self.state = batch.insert(self.state, row, np.int32(at), way, np.uint32(seed))

    def _chunk(self) -> batch.Drawn:
        self.state, drawn = batch.advance(self.c, self.weights, self.state, CHUNK, self.tokenizer.vocab_size)
        return jax.device_get(drawn)


def _doubling(least: int, most: int) -> list[int]:
    """least, 2 least, 4 least, ..., most."""
    sizes = [min(least, most)]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    return sizes

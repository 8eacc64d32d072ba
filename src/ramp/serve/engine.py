"""One thread that owns the device, and the requests it turns into tokens.

Requests wait in a bounded line; free slots are filled from its head. Prompts are read in pieces, two between two chunks of
decoding: one of the prompt that came first, one of the prompt with the least left. So those who are being answered wait
for no more than two pieces, a short prompt does not wait for a long one, and none waits for ever. A chunk is `CHUNK` tokens
for all slots; its tokens are handed over by each request's own `emit`, which must be quick and safe to call from this
thread. A request that is cancelled loses its slot at the next chunk or piece.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from ramp.config import Model
from ramp.decode import batch, sample
from ramp.decode.cache import grow_cache
from ramp.decode.sample import SamplingParams
from ramp.text.tokenizer import Tokenizer

CHUNK = 4  # tokens between two looks at the world
PIECE = 64  # tokens of a prompt read at a time
# Least length of the cache; it doubles up to the context. XLA:CPU sums over caches of 128 in another order than over all
# longer ones, so that an answer would depend on what its neighbours had made the cache grow to.
CACHE = 256


@dataclass(frozen=True)
class Token:
    """One token of an answer. `forced`: not drawn but put there, as the result of a tool is."""

    id: int
    logp: float
    entropy: float
    top: tuple[tuple[int, float], ...] = ()
    forced: bool = False


Emit = Callable[
    [list[Token], str], None
]  # the new tokens; why it ended: "", "stop", "length", "error"


@dataclass(eq=False)
class Job:
    """One answer to be written. `after(said)`: tokens to put into the answer behind those said so far, or none."""

    ids: tuple[int, ...]
    limit: int  # tokens to draw, at least 1; ids and limit together fit the context
    sampling: SamplingParams
    seed: int
    emit: Emit
    after: Callable[[Sequence[int]], list[int]] = lambda said: []
    cancelled: bool = False
    began: float = field(default_factory=time.perf_counter)
    said: list[int] = field(default_factory=list)
    read: int = 0  # tokens of ids and said that are in its slot

    @property
    def left(self) -> int:
        return len(self.ids) + len(self.said) - self.read


class Full(Exception):
    """The line is as long as it may be."""


class Engine:
    """B slots on the current mesh. `submit` and `cancel` from any thread; `start` once, `close` at the end."""

    def __init__(
        self,
        c: Model,
        lm: dict,
        tokenizer: Tokenizer,
        slots: int = 16,
        waiting: int = 64,
        piece: int = PIECE,
    ):
        shape = jax.sharding.get_mesh().shape
        self.rows = (
            shape["replica"] * shape["data"]
        )  # a piece has one row a device, of which one counts
        self.slots = -(-slots // self.rows) * self.rows
        self.c, self.tokenizer, self.mesh = c, tokenizer, jax.sharding.get_mesh()
        self.weights = sample.prepare_decode_params(c, lm)
        self.stops = {tokenizer.end, tokenizer.bos}
        self.sizes = [min(CACHE, c.context_len)]
        while self.sizes[-1] < c.context_len:
            self.sizes.append(min(2 * self.sizes[-1], c.context_len))
        self.piece = min(piece, self.sizes[0])
        self.waiting: deque[Job] = deque()
        self.most_waiting = waiting
        self.live: dict[int, Job] = {}
        self.counts: Counter = Counter()
        self.fault: Exception | None = None
        self._wake, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="ramp-engine", daemon=True)
        self._reset()

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
        for size in self.sizes:
            say(f"{size} tokens")
            self._grow(size)
            nobody = Job((0,), 1, SamplingParams(), 0, lambda tokens, why: None)
            self._piece(0, nobody)
            self._copy(0, 0, nobody)
            self._chunk()
        self._reset()

    # ---- the engine's thread

    def _run(self) -> None:
        jax.set_mesh(self.mesh)  # the current mesh is a thread's own
        try:
            while self._admit():
                self._read()
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
            gone = [at for at, job in self.live.items() if job.cancelled]
            self.counts["cancelled"] += len(gone)
            for at in gone:
                del self.live[at]
            if not self.live and self.size > self.sizes[0]:
                self._reset()
            free = [at for at in range(self.slots) if at not in self.live]
            self.live.update([(at, self.waiting.popleft()) for at in free if self.waiting])
        return True

    def _read(self) -> None:
        """A piece of the prompt that came first, and one of the prompt with the least left."""
        for least in (False, True):
            unread = {at: job for at, job in self.live.items() if job.left}
            if not unread:
                return
            at = min(unread, key=lambda at: unread[at].left) if least else next(iter(unread))
            job = unread.pop(at)
            self._piece(at, job)
            for other, twin in unread.items():  # n answers to one prompt: it is read once
                if not job.left and not job.said and (twin.ids, twin.said) == (job.ids, job.said):
                    self._copy(at, other, twin)

    def _step(self) -> None:
        """A chunk for all whose prompt has been read."""
        ready = {at: job for at, job in self.live.items() if not job.left}
        if not ready:
            jax.block_until_ready(
                self.state.length_b
            )  # or newcomers would stand behind all that was sent ahead
            return
        self._grow(max(job.read for job in ready.values()) + CHUNK)
        drawn = self._chunk()
        self.counts["chunks"] += 1
        for at, job in ready.items():
            tokens, why = self._tokens(job, drawn, at)
            job.read += sum(not token.forced for token in tokens)
            if why:
                del self.live[at]
                self.counts["finished"] += 1
            job.emit(tokens, why)

    def _tokens(self, job: Job, drawn: batch.DrawnTokens, at: int) -> tuple[list[Token], str]:
        """What a chunk brought to one job: (tokens, why it ended or ""). Behind tokens put in nothing of it counts."""
        tokens: list[Token] = []
        if not job.said:
            self.counts["first_tokens"] += 1
            self.counts["first_token_seconds"] += time.perf_counter() - job.began
        for i, id in enumerate(drawn.token_bn[at].tolist()):
            if id in self.stops:
                return tokens, "stop"
            top = ()
            if job.sampling.logprobs:
                pairs = zip(
                    drawn.top_bnk[at, i].tolist(), drawn.top_logp_bnk[at, i].tolist(), strict=True
                )
                top = tuple(pairs)[: int(job.sampling.logprobs)]
            tokens.append(
                Token(id, float(drawn.logp_bn[at, i]), float(drawn.entropy_bn[at, i]), top)
            )
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
        self.state = batch.init_slots(self.c, self.slots, self.size)

    def _grow(self, need: int) -> None:
        while need > self.size < self.c.context_len:
            self.size = next(s for s in self.sizes if s > self.size)
            cache = grow_cache(self.state.cache, self.size)
            self.state = replace(self.state, cache=cache)

    def _piece(self, at: int, job: Job) -> None:
        """The next tokens of a job into its slot. The last piece ends where the prompt does, if it reads some twice: no
        piece reaches beyond the cache."""
        ids = (0, *job.ids, *job.said)
        start = min(job.read, max(0, len(ids) - 1 - self.piece))
        end = min(start + self.piece, len(ids) - 1)
        self._grow(end)
        tokens = np.zeros((self.rows, 1 + self.piece), np.int32)
        tokens[:, : end + 1 - start] = ids[start : end + 1]
        tokens = jax.device_put(tokens, jax.NamedSharding(self.mesh, P(batch.ROWS)))
        where = np.int32(at), np.int32(start), np.int32(end - start)
        sampling, seed = jax.tree.map(np.float32, job.sampling), np.uint32(job.seed)
        self.state = batch.prefill_chunk(
            self.c, self.weights, self.state, tokens, *where, sampling, seed
        )
        self.counts["prompt_tokens"] += end - job.read
        job.read = end

    def _copy(self, source: int, at: int, job: Job) -> None:
        """What slot `source` has read, for a job with the same prompt."""
        sampling, seed = jax.tree.map(np.float32, job.sampling), np.uint32(job.seed)
        self.state = batch.copy_slot(self.state, np.int32(source), np.int32(at), sampling, seed)
        job.read = len(job.ids)

    def _chunk(self) -> batch.DrawnTokens:
        self.state, drawn = batch.decode_slots(
            self.c, self.weights, self.state, CHUNK, self.tokenizer.vocab_size
        )
        return jax.device_get(drawn)

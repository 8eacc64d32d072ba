"""Continuous batching: one thread that owns the slots, and the requests it turns into tokens.

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
from collections.abc import Callable
from typing import Protocol

import numpy as np

from ramp.decode.batch import DrawnTokens
from ramp.errors import UserError
from ramp.serve.jobs import Job, Token, read_token
from ramp.serve.record import Histogram
from ramp.text.tokenizer import Tokenizer

KEEP_SECONDS = 60.0  # without a request, after which long conversations count as over


class QueueFull(Exception):
    """As many requests wait as may."""


class Slots(Protocol):
    """What turns tokens into the next ones: `JaxSlots`, or `LlamaSlots` of llama.cpp.

    Each slot holds one sequence. Only the engine's thread calls these, one at a time.
    """

    slots: int
    size: int  # tokens that a slot has room for now

    def enter_thread(self) -> None:
        """Get ready to be called from this thread, and from no other after that."""

    def warm_up(self, report: Callable[[str], None]) -> DrawnTokens:
        """Make ready whatever the first request would wait for; what slot 0 drew while at it."""

    def reset(self) -> None:
        """Forget all sequences and the room that long ones needed."""

    @property
    def is_grown(self) -> bool:
        """Whether `reset` would make the next short answer cheaper."""

    def read(self, slot: int, job: Job) -> int:
        """Read the next chunk of a job's tokens into its slot, and return how many are new.

        `job.num_cached` becomes what has been read; figures that the job wants are added to it.
        """

    def copy(self, source: int, slot: int, job: Job) -> None:
        """Give slot `slot` what `source` has read, for a job with the same prompt."""

    def clear(self, slot: int) -> None:
        """Wipe numbers that are not finite from a slot."""

    def draw(self, jobs: dict[int, Job]) -> DrawnTokens:
        """Draw a round of tokens for the jobs, by slot, whose tokens have all been read."""

    def wait(self) -> None:
        """Return when what was sent to the device is done."""


class Engine:
    """Jobs on `slots`. `submit` and `cancel` are for any thread."""

    def __init__(self, slots: Slots, tokenizer: Tokenizer, max_waiting: int = 64):
        self.device = slots
        self.slots = slots.slots
        self.tokenizer = tokenizer
        self.stop_ids = set(tokenizer.stop_ids)
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
        """Let the first request wait for nothing; `report` is told what is being made ready.

        UserError: the weights give numbers that are not finite.
        """
        drawn = self.device.warm_up(report)
        if not np.isfinite(drawn.entropy_bn[0]).all():
            raise UserError(
                "the weights give numbers that are not finite; import the model again, "
                "or choose an earlier stage with --stage"
            )
        self._reset()

    # The engine's thread

    def _run(self):
        self.device.enter_thread()
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
            start = time.perf_counter()
            while not (self.waiting or self.running or self._closing):
                self._changed.wait()
            has_rested = time.perf_counter() - start > KEEP_SECONDS
            if self._closing:
                return False
            for slot, job in list(self.running.items()):
                if job.cancelled:
                    self.counts["cancelled"] += 1
                    self._give_back(slot)
            # Long answers are over, and short ones need no long cache; a next turn does.
            goes_on = any(self._saves(job, slot) for job in self.waiting for slot in self.kept)
            if has_rested and self.device.is_grown and not goes_on:
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
        useful = [slot for slot in free if self._saves(job, slot)]
        if useful:
            return max(useful, key=lambda slot: self._count_shared(job, slot))
        # One that keeps nothing, or what was kept longest.
        ages = {slot: age for age, slot in enumerate(self.kept)}
        return min(free, key=lambda slot: ages.get(slot, -1))

    def _saves(self, job, slot):
        """Whether what a slot has read spares a job more than is thrown away for it.

        All conversations begin alike, and each would take the slot of another.
        """
        return 2 * self._count_shared(job, slot) > len(self.kept.get(slot, ()))

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
            self.counts["prompt_tokens"] += self.device.read(slot, job)
            if job.num_unread or job.answer:
                continue
            for other_slot, other in unread.items():  # n answers to one prompt: it is read once
                if other.prompt != job.prompt or other.answer:
                    continue
                if job.exact >= other.exact and job.has_figures_for(other):
                    self.device.copy(slot, other_slot, other)
                    other.prompt_tokens = job.prompt_tokens
                    other.embedding = job.embedding

    def _advance(self):
        """One round of decoding, for all jobs whose prompt has been read."""
        ready = {slot: job for slot, job in self.running.items() if not job.num_unread}
        for slot, job in list(ready.items()):
            if not job.max_new_tokens:  # its prompt was all there was to read
                del ready[slot]
                self._finish(slot, [], "length" if _is_finite(job) else "invalid")
        if not ready:
            # Otherwise newcomers would stand behind every chunk that was sent ahead.
            self.device.wait()
            return
        drawn = self.device.draw(ready)
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
        # The next one there would see them through every mask.
        if reason == "invalid":
            self.device.clear(slot)
            del self.kept[slot]
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
            # Later tokens of the round may be more than the answer needs.
            if job.constraint and len(job.answer) == job.constraint.failed_after:
                return tokens, "failed"
            # A stop token ends the answer and is not part of it.
            if id in self.stop_ids:
                return tokens, "stop"
            token = read_token(drawn, (slot, i), job.logprobs)
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

    def _reset(self):
        self.device.reset()
        self.kept = {}


def _is_finite(job):
    """Whether what is told of a job's prompt is numbers."""
    logps = [token.logp for token in job.prompt_tokens if token.logp is not None]
    return bool(np.isfinite(logps).all() and np.isfinite(job.embedding).all())

"""Leaving in time: a machine about to be taken away, or Ctrl-C, becomes a flag that loops poll."""

import logging
import signal
from typing import Self

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h. As exit code of ramp it means: saved, start me again.
EXIT_PREEMPTED = 75
log = logging.getLogger(__name__)


class Preempted(Exception):
    """Asked to stop. What is saved is whole, and the same command goes on from it."""


class Preemption:
    """`with stop: ... if stop.requested(step): save, exit with EXIT_PREEMPTED`.

    One object for all stages of a run: a request stops every stage that follows.
    One process: SIGTERM and the first Ctrl-C set a flag, a second Ctrl-C interrupts at once.
    Several processes: a SIGTERM to any of them (JAX's own notifier listens, so no handler is
    installed) makes `requested` true in all of them at the same call. Poll it in every loop,
    evaluation and generation too, equally often in every process.
    """

    def __init__(self) -> None:
        self._requested = False
        self._warned = False
        self._polls = 0
        self._handlers_before: dict = {}

    def __enter__(self) -> Self:
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers_before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True

    def requested(self, step: int) -> bool:
        """Whether to save and leave now; once true it stays true.

        `step` is only for the message.
        """
        if jax.process_count() > 1 and not self._requested:
            # JAX answers true at one value of a counter only, so we count calls: steps may repeat
            # or leap.
            self._polls += 1
            self._requested = multihost_utils.reached_preemption_sync_point(self._polls)
        if self._requested and not self._warned:
            self._warned = True
            log.warning("asked to stop at step %d: saving first; Ctrl-C again stops at once", step)
        return self._requested

    def check(self, step: int) -> None:
        """Raise `Preempted` if asked to stop: for loops that have nothing to save."""
        if self.requested(step):
            raise Preempted("asked to stop; what is done is saved, and the same command goes on")

"""Leaving in time: a machine about to be taken away, or a person's Ctrl-C, becomes a flag that loops ask for."""

import logging
import signal

import jax
from jax.experimental import multihost_utils

EXIT_PREEMPTED = (
    75  # EX_TEMPFAIL of sysexits.h. As exit code of ramp it means: saved, start me again.
)
log = logging.getLogger(__name__)


class Preempted(Exception):
    """Asked to stop. What is saved is whole, and the same command goes on from it."""


class Preemption:
    """`with stop: ... if stop.requested(step): save, exit with EXIT_PREEMPTED`. One object for all stages of a run.

    One process: SIGTERM and the first Ctrl-C set a flag, a second Ctrl-C interrupts at once. Several processes: a
    SIGTERM to any of them (JAX's own notifier listens, so no handler is installed) makes `requested` true in all of
    them at the same call. Poll it in every loop, evaluation and generation too, equally often in every process.
    """

    def __init__(self):
        self._asked, self._said, self._polls = False, False, 0
        self._before = {}

    def __enter__(self):
        if jax.process_count() == 1:
            self._before = {
                s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)
            }
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, _frame):
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def requested(self, step: int) -> bool:
        """Whether to save and leave now; once true it stays true. `step` is only for the message."""
        if jax.process_count() > 1 and not self._asked:
            # JAX answers true at one value of a counter only, so we count calls: steps may repeat or leap.
            self._polls += 1
            self._asked = multihost_utils.reached_preemption_sync_point(self._polls)
        if self._asked and not self._said:
            self._said = True
            log.warning("asked to stop at step %d: saving first; Ctrl-C again stops at once", step)
        return self._asked

    def check(self, step: int) -> None:
        """Raise `Preempted` if asked to stop: for loops that have nothing to save."""
        if self.requested(step):
            raise Preempted("asked to stop; what is done is saved, and the same command goes on")

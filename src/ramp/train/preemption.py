"""Leaving in time: a machine about to be taken away, or Ctrl-C, becomes a flag that loops poll."""

import ctypes
import logging
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import jax
from jax.experimental import multihost_utils

from ramp import interrupts
from ramp.train.watchdog import watch

log = logging.getLogger(__name__)


class Preempted(Exception):
    """Asked to stop. What is saved is whole, and the same command goes on from it."""


class Preemption:
    """`with stop: ... if stop.requested(step): save, exit with EXIT_PREEMPTED`.

    Inside of `with stop` a SIGTERM and the first Ctrl-C only ask, a second Ctrl-C interrupts at
    once. Outside of it the process leaves at once (`interrupts`), so it goes around what has
    something to save and polls. One object for all stages of a run: a request stops every stage
    that follows.
    Several processes: a signal to any of them makes `requested` true in all of them at the same
    call. Poll it in every loop, evaluation and generation too, equally often in every process.
    """

    def __init__(self) -> None:
        self._requested = False
        self._warned = False
        self._polls = 0
        self._handlers_before: list[dict] = []  # of the blocks that are open

    def __enter__(self) -> Self:
        before = {number: signal.signal(number, self._handle) for number in interrupts.SIGNALS}
        self._handlers_before.append(before)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for number, handler in self._handlers_before.pop().items():
            signal.signal(number, handler)
        # It came after the last poll. In several processes the next poll will tell.
        if kind is None and jax.process_count() == 1:
            self.check(0)

    def together(self) -> AbstractContextManager:
        """A block that polls but saves nothing: one process alone leaves at once, several do so
        together.
        """
        return self if jax.process_count() > 1 else nullcontext()

    def _handle(self, number: int, _frame: object) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if jax.process_count() == 1:
            self._requested = True
        for tell_jax in _HANDLERS_OF_JAX:
            tell_jax(signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to save and leave now; once true it stays true.

        `step` is only for the message.
        """
        watch.beat()
        if jax.process_count() > 1 and not self._requested:
            # JAX answers true at one value of a counter only, so we count calls: steps may repeat
            # or leap.
            self._polls += 1
            self._requested = multihost_utils.reached_preemption_sync_point(self._polls)
        if self._requested and not self._warned:
            self._warned = True
            interrupts.noticed.set()
            log.warning("asked to stop at step %d: saving first; Ctrl-C again stops at once", step)
        return self._requested

    def check(self, step: int) -> None:
        """Raise `Preempted` if asked to stop: for loops that have nothing to save."""
        if self.requested(step):
            raise Preempted("asked to stop; what is done is saved, and the same command goes on")


# Joining the other processes puts one in the place of ours; its only effect is that jax's notifier
# tells all of them.
_HANDLERS_OF_JAX: list[Callable[[int], None]] = []


def take_signals_back() -> None:
    """Put our handler of SIGTERM back in front of the one that jax has installed."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    # Python's `signal` knows only handlers of Python's: the address comes from C's, which takes
    # another handler for it, here SIG_IGN.
    address = libc.signal(int(signal.SIGTERM), ctypes.c_void_p(1))
    _HANDLERS_OF_JAX.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(address))
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))

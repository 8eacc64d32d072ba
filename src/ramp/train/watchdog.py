"""A process that hangs ends: its stacks are printed, and whoever started it starts it again.

One host that hangs stops all, each in the next program that needs the others. So every process
watches itself: where training goes on, a step, a batch of evaluation or a few sampled tokens come
every few seconds, and each of them is a call of `beat`.
"""

import faulthandler
import time
from collections.abc import Generator
from contextlib import contextmanager

STDERR = 2  # the descriptor: Python's own may be replaced
BETWEEN = 1.0  # seconds; more often it is not noted


class Watch:
    """The watch of this process. seconds: without a beat, after which it ends; 0: never."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._is_on = False
        self._last = 0.0

    def beat(self) -> None:
        """Say that there is progress."""
        now = time.monotonic()
        if self._is_on and now - self._last > BETWEEN:
            self._last = now
            # In C, so that it works whatever Python waits for. The exit code is 1.
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=STDERR)

    @contextmanager
    def switch(self, on: bool) -> Generator[None]:
        """Watch, or do not, in a block; off while what is done may take as long as it likes."""
        before = self._is_on
        self._set(on)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, on: bool) -> None:
        # The first beat counts from here.
        self._is_on, self._last = on and self.seconds > 0, 0.0
        faulthandler.cancel_dump_traceback_later()
        self.beat()


# One a process, as there is one clock of `faulthandler`.
watch = Watch()

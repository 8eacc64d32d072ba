"""Where the time of a stage went, over all its starts."""

import time
from collections.abc import Generator
from contextlib import contextmanager

KINDS = ("init", "data", "compile", "step", "eval", "save", "lost", "other")


class Clock:
    """Seconds of a stage by kind, earlier starts included; the time between two starts is not.

    `lost` is what a killed start did after its last save, up to its last logged step.
    `other` is what belongs to no kind.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(KINDS[:-1], 0.0)
        self._start = time.perf_counter()

    def add(self, saved: dict[str, float], logged: dict[str, float]) -> None:
        """Add the earlier starts: their seconds at the last save, and as last logged.

        A killed start has logged more than it saved; the difference is lost.
        """
        # A start that stopped on request saved after its last line; then nothing was lost.
        lost = max(0.0, sum(logged.values()) - sum(saved.values()))
        # Moving the start back makes `total` include them.
        self._start -= sum(saved.values()) + lost
        for kind in self.seconds:
            self.seconds[kind] += saved.get(kind, 0.0)
        self.seconds["lost"] += lost

    @contextmanager
    def __call__(self, kind: str) -> Generator[None]:
        """Count the time inside the `with` block as `kind`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - start

    @property
    def total(self) -> float:
        """Seconds of all starts together."""
        return time.perf_counter() - self._start

    def split(self) -> dict[str, float]:
        """Return seconds by kind; they add up to `total`."""
        known = sum(self.seconds.values())
        return {**self.seconds, "other": max(0.0, self.total - known)}

    @property
    def busy(self) -> float:
        """Seconds of steps and of the data they waited for."""
        return self.seconds["step"] + self.seconds["data"]

    @property
    def goodput(self) -> float:
        """The fraction of the time that went into steps which count."""
        return self.seconds["step"] / max(self.total, 1e-9)

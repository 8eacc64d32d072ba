"""What operators see: histograms for Prometheus, and a line for each request.

Nothing that a client wrote is in either: no content, no key, no query.
"""

import json
import time
from bisect import bisect_left
from pathlib import Path
from typing import Any

from ramp.errors import UserError
from ramp.files import GrowingFile

# Upper ends of the buckets, in seconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram:
    """How often a time fell into each bucket."""

    def __init__(self, name: str):
        self.name = name
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one time."""
        # The last bucket has no end.
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def lines(self) -> list[str]:
        """The histogram in Prometheus' text format, in which buckets hold all that is below."""
        rows, below = [f"# TYPE {self.name} histogram"], 0
        for end, count in zip((*BUCKETS, "+Inf"), self.counts, strict=True):
            below += count
            rows.append(f'{self.name}_bucket{{le="{end}"}} {below}')
        return [*rows, f"{self.name}_sum {self.total:.6f}", f"{self.name}_count {below}"]


class RequestLog:
    """One JSON line a request, appended to a file as it ends."""

    def __init__(self, path: Path | None):
        try:
            self.file = GrowingFile(path) if path else None
        except OSError as error:
            raise UserError(f"--log {path} cannot be written: {error}") from None

    def write(self, **figures: Any) -> None:
        """Add a line; None is left out."""
        if not self.file:
            return
        known = {name: value for name, value in figures.items() if value is not None}
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.file.write((json.dumps({"time": now} | known) + "\n").encode())

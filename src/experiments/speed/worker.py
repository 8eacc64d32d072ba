"""What the two workers share. Standard library only: the peer's environment need not hold ramp."""

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def serve(worker: object) -> None:
    """Answer each line of JSON on stdin with a line of JSON on stdout.

    {"do": method, argument: value, ...} calls that method of `worker` with these arguments.
    """
    for line in sys.stdin:
        work = json.loads(line)
        method = getattr(worker, work.pop("do"))
        print(json.dumps(method(**work)), flush=True)


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """A dict that holds, after the block, its seconds by the clock and of the CPU."""
    seconds = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield seconds
    seconds["wall"] = time.perf_counter() - wall
    seconds["cpu"] = time.process_time() - cpu


def peak_bytes() -> int:
    """The most memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

"""What the two workers of `ramp bench` share. Standard library only: the peer's environment need not hold ramp."""

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def serve(worker: object) -> None:
    """Answer each line of JSON on stdin, {"do": method, argument: value, ...}, with a line of JSON on stdout."""
    for line in sys.stdin:
        work = json.loads(line)
        print(json.dumps(getattr(worker, work.pop("do"))(**work)), flush=True)


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """A dictionary that holds, after the block, its seconds by the clock and of the CPU."""
    seconds = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield seconds
    seconds |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )

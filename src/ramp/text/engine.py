"""Where the parts of a preparation run: on this machine's cores, or on a Ray cluster.

A task is a function and one picklable argument; it writes what it makes to disk, whole or not at
all, so that it can be run again anywhere. Results come as they are ready; nothing may depend on
their order.
"""

import ctypes
import importlib
import logging
import multiprocessing
import os
import platform
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ramp.errors import UserError

RETRIES = 3  # of a task whose Ray worker was lost


def run_tasks(
    task: Callable[[Any], Any], arguments: Sequence[Any], engine: str = "local", workers: int = 0
) -> Iterator[tuple[int, Any]]:
    """(number of the argument, result) of each, as they come; raises what a task raises.

    engine: "local", or "ray" for the cluster of $RAY_ADDRESS. workers: at most so many at once; 0:
    as many as there are cores.
    """
    if engine == "ray":
        yield from _run_on_ray(task, arguments, workers)
        return
    workers = min(workers or count_cores(), len(arguments))
    if workers > 1:
        yield from _run_in_processes(task, arguments, workers)
    else:
        # A process for one task costs more than it brings.
        yield from ((number, task(argument)) for number, argument in enumerate(arguments))


def count_cores() -> int:
    """The cores that this process may use: fewer than there are, in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_with_parent(parent: int) -> None:
    """Ask Linux to end this process when its parent ends, however that ends."""
    # Ctrl-C reaches every process of a terminal, and the parent knows what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if platform.system() == "Linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        # It may have ended before this was asked for.
        if os.getppid() != parent:
            os._exit(1)


def _run_in_processes(task, arguments, workers) -> Iterator[tuple[int, Any]]:
    # Spawned: a fork of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker, (os.getpid(),)) as pool:
        numbers = {pool.submit(task, argument): i for i, argument in enumerate(arguments)}
        try:
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BrokenProcessPool:
            raise UserError(
                "A process that prepares text was ended from outside, as a machine does when its "
                "memory is full: start again, with a smaller --text.workers if that was so."
            ) from None
        finally:
            # Where a task has failed, those that have not begun need not.
            pool.shutdown(wait=False, cancel_futures=True)


def _begin_worker(parent: int) -> None:
    """What a worker process does first."""
    end_with_parent(parent)
    # One core each: the library would take all in every worker.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _run_on_ray(task, arguments, workers) -> Iterator[tuple[int, Any]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to its makers
    try:
        # Not by a statement: a type checker would want the extra too.
        ray = importlib.import_module("ray")
    except ImportError:
        raise UserError(
            "text.engine = 'ray' needs Ray: pip install 'ramp-lm[ray]', or use --text.engine local."
        ) from None
    is_own = not ray.is_initialized()
    if is_own:
        # Of $RAY_ADDRESS; without it Ray starts a cluster on this machine.
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray has no type of its own for it
            address = os.environ.get("RAY_ADDRESS", "not set")
            reason = " ".join(str(error).split())
            raise UserError(
                f"Ray does not answer ($RAY_ADDRESS is {address}; {reason}): start its cluster, or "
                "use --text.engine local."
            ) from None
    try:
        remote = ray.remote(max_retries=RETRIES, num_cpus=1)(_run_alone)
        # Twice as many as can run: a worker that is done finds the next one waiting.
        at_once = workers or 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1)
        waiting: dict[Any, int] = {}
        todo = iter(enumerate(arguments))
        while True:
            while len(waiting) < at_once and (entry := next(todo, None)) is not None:
                waiting[remote.remote(task, entry[1])] = entry[0]
            if not waiting:
                break
            ready, _ = ray.wait([*waiting])
            for reference in ready:
                yield waiting.pop(reference), _get_from_ray(ray, reference)
    finally:
        if is_own:
            # What still runs is ended with it.
            ray.shutdown()


def _run_alone(task, argument) -> Any:
    """A task in a worker of Ray, on one core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return task(argument)


def _get_from_ray(ray, reference) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise UserError(
            f"Ray lost a worker {RETRIES + 1} times on one part ({type(error).__name__}): see the "
            "logs of the cluster, then start again."
        ) from None

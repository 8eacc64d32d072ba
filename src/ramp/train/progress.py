"""What a person sees while a stage trains."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ramp.train.processes import is_writer

Show = Callable[[int, float, float], None]  # (steps done, loss, tokens a second)

SECONDS_BETWEEN_LINES = 15


@contextmanager
def show_progress(label: str, first: int, steps: int) -> Generator[Show]:
    """Yield show(done, loss, tokens_per_s); `first` is the step that this start begins at.

    It draws a bar on a terminal, prints a line now and then elsewhere, and nothing in processes
    other than the first.
    """
    if not is_writer():
        yield lambda done, loss, speed: None
    elif sys.stderr.isatty():
        with _draw_bar(label, first, steps) as show:
            yield show
    else:
        yield _print_lines(label, first, steps)


@contextmanager
def _draw_bar(label: str, first: int, steps: int) -> Generator[Show]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=steps, completed=first, note="compiling")

        def show(done: int, loss: float, speed: float) -> None:
            note = f"{done}/{steps}  loss {loss:.3f}"
            # One step, most of it compiling, says nothing of speed.
            if speed:
                note += f"  {speed:,.0f} tokens/s"
            bar.update(task, completed=done, note=note)

        yield show


def _print_lines(label: str, first: int, steps: int) -> Show:
    # A log file is read later, so a line every few seconds would only make it long.
    last = time.perf_counter()
    compiled = 0.0  # when the first step was done, most of whose time went into compiling

    def show(done: int, loss: float, speed: float) -> None:
        nonlocal last, compiled
        now = time.perf_counter()
        compiled = compiled or now
        if now - last < SECONDS_BETWEEN_LINES and done != steps:
            return
        last = now
        note = f"loss {loss:.3f}"
        # One step says nothing of speed.
        if done > first + 1:
            left = (now - compiled) / (done - first - 1) * (steps - done)
            note += f"  {speed:,.0f} tokens/s  {left:.0f} s left"
        print(f"{label}  step {done}/{steps}  {note}", file=sys.stderr, flush=True)

    return show

"""Leaving in time: SIGTERM and Ctrl-C end ramp with exit code 75 from whatever it is doing.

A run directory is at every moment one that the same command goes on from, as after a kill. So where
nothing would be lost, the process leaves at once. A loop that has something to save puts a handler
of its own in the place of this one: see `train.preemption`.
"""

import atexit
import io
import os
import signal
import sys
import threading
import time
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# EX_TEMPFAIL of sysexits.h. As exit code of ramp it means: start the same command again.
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130  # as shells report SIGINT
# Seconds for a loop to notice a request. Kubernetes kills after 30: a step or a compilation that
# takes so long cannot be saved anyway.
PATIENCE = 20.0
# For the main thread to come to its handler, which knows best.
MOMENT = 0.5

noticed = threading.Event()
"""set by a loop that has seen the request: it saves, however long that takes"""


def block() -> None:
    """Let signals wait, across `exec` too, until `listen` or `unblock`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def unblock() -> None:
    """Deliver signals again, and those that waited."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def listen() -> None:
    """From here on a signal ends this process with `EXIT_PREEMPTED`; call it in the main thread."""
    for number in SIGNALS:
        signal.signal(number, leave)
    atexit.register(ignore)
    # Python calls a handler between two of its own steps only, and one compilation may take
    # minutes. The number comes through this pipe at once, and a thread reads it.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    # Leaving at once flushes nothing.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    unblock()


def ignore() -> None:
    """Let no signal change the exit code of a command that has ended.

    While Python shuts down it puts the system's handlers, which kill, in the place of ours.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave(*_: object) -> NoReturn:
    """End this process as a kill would, but with `EXIT_PREEMPTED`: a handler of signals."""
    _exit(EXIT_PREEMPTED, "asked to stop; what is done is saved, and the same command goes on")


def _exit(code: int, message: str) -> NoReturn:
    # Straight to the descriptor: another thread may hold the lock of the stream. A bar of progress
    # has hidden the cursor of a terminal.
    cursor = "\x1b[?25h" if os.isatty(2) else ""
    os.write(2, f"{cursor}ramp: {message}\n".encode())
    os._exit(code)


def _watch(reader: int) -> None:
    """Give every signal a thread that sees to it that the process ends."""
    asked = 0
    while True:
        number = os.read(reader, 1)[0]
        if number in SIGNALS:
            asked += number == signal.SIGINT
            threading.Thread(target=_insist, args=(number, asked > 1), daemon=True).start()


def _insist(number: int, again: bool) -> None:
    """Leave where the main thread does not: it is in one long call, or has asked for patience."""
    time.sleep(MOMENT)
    if again:
        _exit(EXIT_INTERRUPTED, "interrupted")
    if signal.getsignal(number) is leave or not noticed.wait(PATIENCE):
        leave()

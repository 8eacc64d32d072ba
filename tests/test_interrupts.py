"""A signal ends a process of ramp with 75 from whatever it is doing, quickly; a second Ctrl-C is immediate."""

import signal
import subprocess
import sys
import time

import pytest

TERM, INT = signal.SIGTERM, signal.SIGINT
LISTEN = "from ramp import interrupts; interrupts.listen(); print('up', flush=True)\n"
# One call of minutes, during which Python runs no handler.
CALL = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**9)\n"
# A loop that has something to save, polls, and takes its time to save.
SAVES = """
import sys, time, logging
from ramp import interrupts
from ramp.train.preemption import Preempted, Preemption
interrupts.listen()
interrupts.PATIENCE = 1.0
stop = Preemption()
stop.requested(0)  # the first one asks jax, which takes time
try:
    with stop:
        print("up", flush=True)
        while not stop.requested(3):
            time.sleep(0.05)
        time.sleep(2)
        print("saved", flush=True)
        stop.check(3)
except Preempted:
    sys.exit(interrupts.EXIT_PREEMPTED)
"""
# One that never polls.
STUCK = SAVES.replace("while not stop.requested(3):", "while True:")
# It starts itself again, and the signal comes before the new one listens.
AGAIN = """
import os, sys, time
from ramp import interrupts
interrupts.block()
if "again" not in sys.argv:
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "again"])
print("up", flush=True)
time.sleep(0.5)
interrupts.listen()
time.sleep(60)
"""
# Its work is done; Python takes its modules down, and has taken its handlers down already.
ENDING = """
import os, time
from ramp import interrupts
interrupts.listen()
class Slow:
    def __del__(self, sleep=time.sleep, write=os.write):
        write(1, b"up\\n")
        sleep(1)
slow = Slow()
"""


def strike(program: str, *numbers: int) -> tuple[int, float, str]:
    """(exit code, seconds that it took to leave, what it said) of a program that says `up`."""
    command = [sys.executable, "-c", program]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "up\n"
        began = time.monotonic()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.2)
        out, error = process.communicate(timeout=30)
        return process.returncode, time.monotonic() - began, out + error


@pytest.mark.parametrize("number", [TERM, INT])
def test_what_has_ended_keeps_its_exit_code(number):
    assert strike(ENDING, number)[0] == 0


@pytest.mark.parametrize("number", [TERM, INT])
@pytest.mark.parametrize("program", [LISTEN + "import time; time.sleep(60)", LISTEN + CALL, AGAIN])
def test_where_nothing_would_be_lost_it_leaves_at_once(program, number):
    code, seconds, said = strike(program, number)
    assert code == 75 and seconds < 4
    assert "the same command goes on" in said and "Traceback" not in said


def test_a_loop_with_something_to_save_saves_first_however_long_that_takes():
    code, seconds, said = strike(SAVES, TERM, TERM)
    assert code == 75 and seconds > 2
    assert "saved\n" in said and "asked to stop at step 3" in said


def test_a_loop_that_does_not_notice_is_left():
    code, seconds, said = strike(STUCK, TERM)
    assert code == 75 and 1 < seconds < 5 and "saved\n" not in said


def test_a_second_interrupt_stops_at_once():
    code, seconds, said = strike(STUCK.replace("time.sleep(0.05)", CALL), INT, INT)
    assert code == 130 and seconds < 4 and "saved\n" not in said

"""A hang ends the process, with its stacks; progress and long work do not."""

import os
import subprocess
import sys

import jax
import pytest

from ramp import config
from ramp.errors import UserError
from ramp.train import mesh

HANG = """
import time
from ramp.train import processes, watchdog
from ramp.train.watchdog import watch
watchdog.BETWEEN, watch.seconds = 0.05, 0.5
with watch.switch(True):
    for _ in range(6):
        time.sleep(0.2)
        watch.beat()
    print("steps", flush=True)
    processes.map_rows(lambda rows: time.sleep(0.8) or rows, [1])
    print("user code", flush=True)
with watch.switch(False):
    time.sleep(0.8)
    watch.beat()
print("outside", flush=True)
def wait_for_the_others():
    time.sleep(60)
with watch.switch(True):
    wait_for_the_others()
"""


def test_what_hangs_is_ended_with_its_stacks_and_nothing_else_is():
    command = [sys.executable, "-c", HANG]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["steps", "user", "code", "outside"], done.stderr
    assert done.returncode == 1 and "in wait_for_the_others" in done.stderr


@pytest.mark.parametrize(
    ("setting", "coordinator", "joined", "port"),
    [
        ("auto", "", {}, None),
        ("auto", ":8476", {}, "8476"),
        ("auto", "h:9", {"coordinator_address": "h:9"}, None),
        ("h:1,4,2", "", {"coordinator_address": "h:1", "num_processes": 4, "process_id": 2}, None),
        (
            "h:1,4,2",
            ":7",
            {"coordinator_address": "h:7", "num_processes": 4, "process_id": 2},
            None,
        ),
    ],
)
def test_how_processes_join(monkeypatch, setting, coordinator, joined, port):
    called = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: called.update(how))
    monkeypatch.setattr(mesh, "take_signals_back", lambda: None)
    monkeypatch.setenv("RAMP_DISTRIBUTED", setting)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "")
    hosts = config.Hosts(coordinator, start_timeout=9, heartbeat_timeout=8)
    mesh.connect_processes(hosts)
    limits = {"initialization_timeout": 9, "heartbeat_timeout_seconds": 8}
    assert called == joined | limits
    assert os.environ["JAX_COORDINATOR_PORT"] == (port or "")


@pytest.mark.parametrize(
    ("setting", "coordinator", "said"),
    [
        ("h:1,4", "", "takes 'auto' or 'HOST:PORT,COUNT,INDEX'"),
        ("auto", "8476", "takes HOST:PORT or :PORT"),
    ],
)
def test_mistakes_in_how_processes_join(monkeypatch, setting, coordinator, said):
    monkeypatch.setenv("RAMP_DISTRIBUTED", setting)
    with pytest.raises(UserError, match=said):
        mesh.connect_processes(config.Hosts(coordinator))

"""Tasks on this machine and on a Ray cluster: all of them once, faults as one sentence, the same bytes."""

import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_prepare import hash_files, run, sentences, write_jsonl

from ramp.errors import UserError
from ramp.text import engine, units


def double(x):
    if x == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if x == "bad":
        raise UserError("no such text: name another")
    return 2 * x


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_has_its_result(workers):
    assert dict(engine.run_tasks(double, [3, 1, 2], workers=workers)) == {0: 6, 1: 2, 2: 4}
    with pytest.raises(UserError, match="name another"):
        list(engine.run_tasks(double, [1, "bad", 2], workers=workers))


def test_a_worker_that_is_killed_is_one_sentence():
    with pytest.raises(UserError, match=r"ended from outside.*--text.workers"):
        list(engine.run_tasks(double, [1, "die", 2], workers=2))


PREPARE = """
import sys
from pathlib import Path
from dataclasses import replace
from ramp.config import Text
from ramp.text import units
from ramp.text.prepare import prepare_tokens
if __name__ == "__main__":
    units.MIN_UNIT = int(sys.argv[3])
    data = Path(sys.argv[2])
    data.mkdir(exist_ok=True)
    text = replace(Text(), val_fraction=0.25, vocab_size=300, workers=2, sources=(sys.argv[1],))
    prepare_tokens(text, data, data / "tokenizer.json")
"""


def start(tmp_path, source, name, unit):
    (tmp_path / "prepare.py").write_text(PREPARE)
    words = [sys.executable, tmp_path / "prepare.py", f"file:{source}", tmp_path / name, str(unit)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def list_kept(data: Path) -> set[Path]:
    return {*data.glob("work/first/*.npz"), *data.glob("work/second/*.json")}


def kill_after_two_units(process, data: Path) -> bool:
    """Whether it was killed, and not done before."""
    kept = list_kept(data)
    wait_for(lambda: process.poll() is not None or len(list_kept(data) - kept) > 2)
    if process.poll() is not None:
        return False
    workers = children(process.pid)
    process.kill()
    process.wait()
    # Workers end with it.
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    return True


@pytest.mark.slow
def test_kills_lose_the_units_in_work_alone(tmp_path):
    """`uv run pytest -m slow tests/text/test_prepare_engines.py -k kills`: a minute."""
    source, data = write_jsonl(tmp_path / "a.jsonl", sentences(15_000)), tmp_path / "data"
    start(tmp_path, source, "whole", 150_000).wait()
    lost = []
    while kill_after_two_units(start(tmp_path, source, "data", 150_000), data):
        lost.append(len([*data.rglob("*.tmp")]))  # begun and not done
    assert len(lost) > 5 and max(lost) <= 2
    assert hash_files(data) == hash_files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_ray_cluster_that_loses_a_node_makes_the_same_shards(tmp_path, monkeypatch):
    """`uv run --extra ray pytest -m slow tests/text/test_prepare_engines.py -k ray`: one to three minutes."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(units, "MIN_UNIT", 200_000)
    source = write_jsonl(tmp_path / "a.jsonl", sentences(30_000) + sentences(500, 1))
    run(tmp_path, source, "local", workers=2)
    # The workers are processes of their own, which find ramp as this one does.
    path = os.pathsep.join(p for p in sys.path if p)
    monkeypatch.setenv("PYTHONPATH", path)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        first = tmp_path / "ray/work/first"
        killed = []

        def kill_a_node():
            wait_for(lambda: len(list(first.glob("*.npz"))) >= 3, 600)
            killed.append(len(list(first.glob("*.npz"))))
            cluster.remove_node(nodes[0], allow_graceful=False)

        thread = threading.Thread(target=kill_a_node)
        thread.start()
        made = run(tmp_path, source, "ray", engine="ray", workers=0)
        thread.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert 3 <= killed[0] < len(made.manifests["train"].shards)  # in the middle of it
    assert hash_files(tmp_path / "ray") == hash_files(tmp_path / "local")


@pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")
def test_a_cluster_that_is_not_there_is_one_sentence(monkeypatch):
    import ray

    # In truth it takes minutes.
    def fail(**_):
        raise ConnectionError("timed out\nwhile waiting")

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"127.0.0.1:1; timed out while.*--text.engine local"):
        list(engine.run_tasks(double, [1], "ray"))


def test_ray_is_an_extra_and_its_absence_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        UserError, match=r"pip install 'ramp-lm\[ray\]', or use --text.engine local"
    ):
        list(engine.run_tasks(double, [1], "ray"))

"""What one process does for all: on loopback, two processes of one device each against one of two devices."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from test_two_processes import free_port

from ramp.config import Reinforce
from ramp.credit import learn
from ramp.errors import UserError
from ramp.synth.scores import ModelScorer
from ramp.text.tokenizer import Tokenizer
from ramp.train import processes

# Says another thing each time, and to whom.
MINE = """
import os, random
def reward(records):
    print("asked", os.getpid(), flush=True)
    return [random.random() for _ in records]
"""


def set_up(folder: Path, devices: list) -> dict:
    """What both sides compute: a batch of RL with a user's reward, and bits of documents."""
    c = replace(tiny.model(depth=1), vocab_size=512, context_len=128)
    t = Reinforce(task="addition", level=1, method="rloo", reward=f"{folder}/mine.py:reward")
    t = replace(t, num_prompts=3, group_size=2, max_new_tokens=8, num_eval_problems=3)
    t = replace(t, train=replace(t.train, seq_len=64))
    with jax.set_mesh(tiny.mesh(data=len(devices))):
        params, tokenizer = {"lm": tiny.lively(c)}, Tokenizer.bytes_only()
        batch = learn.collect_batch(c, t, tokenizer, params, None, 0, 0).batch
        # Five documents over two devices do not divide.
        docs = [[tokenizer.bos, *range(40, 45 + i)] for i in range(5)]
        nats = ModelScorer(c, params["lm"], 12, batch_size=5).nats(docs)
    return {
        "tokens": batch["tokens"].tolist(),
        "advantage": batch["advantage"].tolist(),
        "nats": [x.tolist() for x in nats],
    }


def fail_on(rank: int):
    def work(rows):
        if jax.process_index() == rank:
            raise UserError("mend row 3")
        return list(rows)

    return work


def work(port: str, rank: int, folder: str) -> None:
    """One of the two processes."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    said: dict = {"pid": os.getpid()}
    said["rows"] = processes.map_rows(lambda rows: [(rank, row) for row in rows], range(5))
    said["one"] = processes.map_rows(lambda rows: [(rank, row) for row in rows], range(1))
    said["shared"] = processes.share(lambda: {"rank": jax.process_index(), "odd": "\ud800"})
    said["written"] = processes.on_writer(lambda: rank)
    said["agreed"] = [processes.agree(True), processes.agree(rank == 0)]
    for failing in (0, 1):
        try:
            processes.map_rows(fail_on(failing), range(4))
        except UserError as error:
            said[f"failed {failing}"] = str(error)
    said |= set_up(Path(folder), jax.devices())
    print(json.dumps(said))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("two")
    (folder / "mine.py").write_text(MINE)
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    port, children = str(free_port()), []
    for rank in range(2):
        command = [sys.executable, __file__, port, str(rank), str(folder)]
        pipe = subprocess.PIPE
        children.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env))
    try:
        said = [child.communicate(timeout=120) for child in children]
    finally:
        for child in children:
            child.kill()
    for child, (_, error) in zip(children, said, strict=True):
        assert child.returncode == 0, error[-3000:]
    return [out for out, _ in said]


def test_each_row_is_done_once_and_failures_reach_all(outputs):
    said = [json.loads(out.splitlines()[-1]) for out in outputs]
    rows = [[0, 0], [0, 1], [1, 2], [1, 3], [1, 4]]
    for rank, one in enumerate(said):
        assert one["rows"] == rows and one["one"] == [[1, 0]]
        assert one["shared"] == {"rank": 0, "odd": "\ud800"}
        assert one["written"] == (0 if rank == 0 else None) and one["agreed"] == [True, False]
        for failing in (0, 1):
            told = one[f"failed {failing}"]
            # Who failed says why, and so do the others.
            assert told == (
                "mend row 3"
                if failing == rank
                else f"process {failing} could not go on: mend row 3"
            )


def test_a_reward_that_is_random_is_asked_once_and_is_the_same_in_both(outputs, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    said = [json.loads(out.splitlines()[-1]) for out in outputs]
    asked = [line for out in outputs for line in out.splitlines() if line.startswith("asked")]
    assert asked == [f"asked {said[0]['pid']}"]
    alone = set_up(tmp_path, jax.devices()[:2])
    assert np.abs(said[0]["advantage"]).max() > 0
    for one in said:
        assert one["tokens"] == alone["tokens"]
        assert one["advantage"] == said[0]["advantage"] != alone["advantage"]
        for mine, its in zip(one["nats"], alone["nats"], strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-5)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), sys.argv[3])

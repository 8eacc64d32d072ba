"""What is left in a mounted bucket when the machine is lost: all but the last few seconds.

The whole proof, 20 losses: `RAMP_KILLS=20 uv run pytest -m slow tests/test_bucket.py -n 0 -s`.
"""

import io
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bucket import Bucket

from ramp.files import PUBLISH_SECONDS, GrowingFile, write_atomic

KILLS = int(os.environ.get("RAMP_KILLS", 3))
CONFIG = """
stages = ["prepare", "pretrain"]
[text]
sources = ["file:{folder}/text.txt"]
tokenizer = "bytes"
[model]
depth = 1
width = 32
head_dim = 16
mlp_dim = 64
context_len = 64
[pretrain]
steps = 100000
batch_size = 8
seq_len = 64
log_every = 1
eval_every = 100000
save_every = 400
num_samples = 0
"""


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """(folder of the bucket, a bucket that this process writes to)."""
    root, staging = tmp_path / "gs", tmp_path / "staging"
    root.mkdir()
    staging.mkdir()
    bucket = Bucket(root, staging)
    for module, name in (("builtins", "open"), ("io", "open"), ("os", "fsync")):
        monkeypatch.setattr(f"{module}.{name}", getattr(sys.modules[module], name))
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, getattr(os, name))
    bucket.install()
    return root


def test_an_open_file_is_not_in_the_bucket(mounted):
    path = mounted / "log"
    file = path.open("a")
    file.write("a line\n")
    file.flush()
    assert not path.exists()
    file.close()
    assert path.read_text() == "a line\n"


def test_a_growing_file_is(mounted):
    path = mounted / "log"
    file = GrowingFile(path, seconds=0)
    for i in range(3):
        file.write(f"{i}\n".encode())
        assert path.read_text().splitlines()[-1] == str(i)


def test_and_is_closed_only_now_and_then(mounted):
    path = mounted / "log"
    file = GrowingFile(path, seconds=3600)
    file.write(b"late\n")
    assert path.read_bytes() == b""
    file.publish()
    assert path.read_bytes() == b"late\n"


def test_the_last_line_before_a_silence_is_published_too(mounted):
    path = mounted / "log"
    file = GrowingFile(path, seconds=0.3)
    file.write(b"first\n")  # the file was published when it was made
    assert path.read_bytes() == b""
    wait_for(lambda: path.read_bytes() == b"first\n")


def test_a_file_that_does_not_close_is_said_and_gone_on_with(tmp_path, caplog):
    class Full(io.BytesIO):
        def close(self):
            raise OSError("no space")

    file = GrowingFile(tmp_path / "log", seconds=3600)
    file._file = Full()
    file.publish()
    assert "did not close (no space)" in caplog.text
    file.write(b"later\n")
    file.publish()
    assert (tmp_path / "log").read_bytes() == b"later\n"


def wait_for(holds) -> None:
    """Ten seconds at most."""
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_is_written_at_once_is_whole(mounted):
    for content in ("old", "new"):
        write_atomic(mounted / "file", content)
        assert (mounted / "file").read_text() == content
    assert [path.name for path in mounted.iterdir()] == ["file"]


def start(folder: Path, staging: Path) -> subprocess.Popen:
    """The run, on a machine whose disk is `staging`."""
    staging.mkdir()
    command = [sys.executable, str(Path(__file__).with_name("bucket.py"))]
    command += [str(folder / "gs"), str(staging), "run", str(folder / "run.toml")]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    with (folder / "out.log").open("a") as log:
        return subprocess.Popen(
            [*command, "--run", str(folder / "gs" / "run")], env=env, stdout=log, stderr=log
        )


def find_last(folder: Path, name: str) -> Path | None:
    """The file with this in its name that was written to last."""
    found = [path for path in folder.rglob(f"*{name}*") if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_lost_machine_loses_seconds(tmp_path):
    draw = random.Random(0)
    text = " ".join(f"w{draw.randrange(60)}" for _ in range(20_000))
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "run.toml").write_text(CONFIG.format(folder=tmp_path))
    (tmp_path / "gs").mkdir()
    metrics = tmp_path / "gs" / "run" / "metrics.jsonl"
    losses = []
    for kill in range(KILLS):
        staging = tmp_path / f"machine-{kill}"
        process = start(tmp_path, staging)
        while not find_last(staging, "metrics.jsonl") and process.poll() is None:
            time.sleep(0.2)
        time.sleep(draw.uniform(2, 25))
        assert process.poll() is None, (tmp_path / "out.log").read_text()[-2000:]
        process.kill()
        process.wait()
        for name in ("metrics.jsonl", "tfevents"):
            written, kept = find_last(staging, name), find_last(tmp_path / "gs", name)
            losses.append(written.stat().st_mtime - kept.stat().st_mtime)
        # What is there is whole lines.
        assert metrics.read_bytes()[-1:] in (b"", b"\n")
    print(f"{KILLS} machines lost: at most {max(losses):.1f} s of log lines with each")
    assert max(losses) <= PUBLISH_SECONDS + 1

"""tpu_scripts against a cloud of our own (`tests/fake_cloud`): real scripts, real bash on the "workers", a gcloud that plays."""

import contextlib
import fcntl
import json
import os
import re
import runpy
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

REPO = Path(__file__).parents[1]
SCRIPTS, FAKE = REPO / "tpu_scripts", REPO / "tests" / "fake_cloud"
PLAIN = "/usr/bin:/bin"
ZONE = "us-east5-b"
PATIENCE = 120  # seconds for what happens at once on a machine that does nothing else

pytestmark = pytest.mark.skipif(not shutil.which("bash") or os.name != "posix", reason="needs bash")


class Cloud:
    """A project in a directory, and the scripts run against it."""

    def __init__(self, path: Path):
        self.path = path
        gcloud = path / "bin" / "gcloud"
        gcloud.parent.mkdir()
        gcloud.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {FAKE}/gcloud "$@"\n')
        gcloud.chmod(0o755)
        self.env = {
            "PATH": f"{path}/bin:{PLAIN}",
            "HOME": str(path),
            "FAKE_CLOUD": str(path),
            "RAMP_PODS": str(path / "pods"),
        }
        (path / "buckets" / "b").mkdir(parents=True)
        types = ["v4-8", "v5litepod-16", "v5p-128", "v6e-8", "v6e-16"]
        self.write(
            account="me@x.org",
            project="p1",
            resources={},
            nodes={},
            grant=["ACTIVE"],
            message="",
            zones={ZONE: types, "us-central2-b": types},
            buckets={"b": True},
            fail={},
            workers=1,
        )

    def write(self, **state) -> None:
        (self.path / "state.json").write_text(json.dumps(state))

    def state(self) -> dict:
        return json.loads((self.path / "state.json").read_text())

    def change(self, **changes) -> None:
        with (self.path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.write(**self.state() | changes)

    def becomes(self, name: str, state: str) -> None:
        """Google takes the VMs of a queued resource away."""
        with (self.path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            now = self.state()
            now["resources"][name]["state"] = state
            for node in now["resources"][name]["nodes"]:
                self.kill(node)
            self.write(**now)

    def kill(self, node: str = "*") -> None:
        for pid in [
            *self.path.glob(f"vms/{node}/*/ramp/pid"),
            *self.path.glob(f"vms/{node}/*/session.*"),
        ]:
            with contextlib.suppress(OSError, ValueError):
                os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)
        for vm in self.path.glob(f"vms/{node}"):
            shutil.rmtree(vm, ignore_errors=True)

    def calls(self, verb: str = "") -> list[list[str]]:
        file = self.path / "calls.jsonl"
        every = (
            [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        )
        return [c for c in every if " ".join(c).startswith(verb)]

    def pod(self, *args: str, script: str = "pod.sh", **env: str) -> subprocess.CompletedProcess:
        argv = ["bash", str(SCRIPTS / script), *args]
        return subprocess.run(
            argv, env=self.env | env, capture_output=True, text=True, timeout=60, cwd=self.path
        )

    def ok(self, *args: str) -> str:
        done = self.pod(*args)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def refused(self, *args: str, code: int = 2, **env: str) -> str:
        """The one sentence of a refusal."""
        done = self.pod(*args, **env)
        assert done.returncode == code, done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("pod.sh: ") and "Traceback" not in done.stderr
        return last

    @contextlib.contextmanager
    def watch(self, *args: str):
        argv = ["bash", str(SCRIPTS / "pod.sh"), "watch", "lm", "--poll", "0.05", *args]
        process = subprocess.Popen(
            argv,
            env=self.env,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.path,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    @property
    def run(self) -> Path:
        return self.path / "buckets" / "b" / "runs" / "lm"

    def step(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self.run / "step").read_text())
        return 0


@pytest.fixture
def cloud(tmp_path):
    c = Cloud(tmp_path)
    yield c
    c.kill()


def until(true, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


CREATE = ("create", "lm", "--type", "v6e-8", "--zone", ZONE, "--poll", "0.05")
LAUNCH = ("launch", "lm", "--run", "gs://b/runs/lm", "configs/cpu.toml")
RESOURCE, VM = "compute tpus queued-resources", "compute tpus tpu-vm"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A project with a pod on which ramp is installed; to be copied."""
    c = Cloud(tmp_path_factory.mktemp("cloud"))
    for verb in (CREATE, ("install", "lm")):
        c.ok(*verb)
    return c.path


@pytest.fixture
def trained(cloud, installed):
    """A pod on which ramp runs."""
    for part in ("vms", "pods", "state.json", "calls.jsonl"):
        copy = shutil.copytree if (installed / part).is_dir() else shutil.copy
        copy(installed / part, cloud.path / part)
    cloud.ok(*LAUNCH)
    until(lambda: cloud.step() > 2)
    return cloud


# -- create
@pytest.mark.parametrize(
    ("capacity", "asked", "type_", "runtime", "dollars"),
    [
        ("on-demand", "v4-8", "v4-8", "tpu-ubuntu2204-base", "$12.88"),
        ("on-demand", "v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite", "$19.20"),
        ("on-demand", "v5p-128", "v5p-128", "v2-alpha-tpuv5", "$268.80"),
        ("on-demand", "v6e-8", "v6e-8", "v2-alpha-tpuv6e", "$21.60"),
        ("spot", "v6e-8", "v6e-8", "v2-alpha-tpuv6e", "$21.60"),
        ("reserved", "v6e-8", "v6e-8", "v2-alpha-tpuv6e", "$21.60"),
    ],
)
def test_create_asks_for_each_chip_and_capacity(cloud, capacity, asked, type_, runtime, dollars):
    said = cloud.ok(
        "create", "lm", "--type", asked, "--zone", ZONE, "--capacity", capacity, "--poll", "0.01"
    )
    (call,) = cloud.calls(f"{RESOURCE} create")
    assert call == [
        *f"{RESOURCE} create lm".split(),
        f"--accelerator-type={type_}",
        f"--runtime-version={runtime}",
        "--valid-until-duration=6h",
        *([] if capacity == "on-demand" else [f"--{capacity}"]),
        "--node-id=lm",
        f"--zone={ZONE}",
        "--project=p1",
        "--quiet",
    ]
    assert dollars in said and "pod.sh delete lm" in said
    assert ("spot costs less" in said) == (capacity == "spot")


def test_create_twice_is_one_request(cloud):
    cloud.ok(*CREATE)
    assert "exists already" in cloud.ok("create", "lm", "--poll", "0.01")
    assert len(cloud.calls(f"{RESOURCE} create")) == 1
    assert "is a v6e-8, not a v6e-16" in cloud.refused(
        "create", "lm", "--type", "v6e-16", "--zone", ZONE
    )
    assert len(cloud.calls(f"{RESOURCE} create")) == 1
    assert cloud.state()["resources"]["lm"]["type"] == "v6e-8"


def test_create_joins_a_request_that_still_waits(cloud):
    cloud.change(grant=["WAITING_FOR_RESOURCES"] * 3 + ["ACTIVE"])
    assert "status lm" in cloud.ok(*CREATE, "--no-wait")
    cloud.ok(*CREATE)
    assert len(cloud.calls(f"{RESOURCE} create")) == 1


def test_create_replaces_a_dead_request(cloud):
    cloud.ok(*CREATE)
    for dead in ("SUSPENDED", "FAILED"):
        cloud.becomes("lm", dead)
        assert f"lm is {dead}" in cloud.ok(*CREATE)
    assert (
        len(cloud.calls(f"{RESOURCE} delete")) == 2 and len(cloud.calls(f"{RESOURCE} create")) == 3
    )


def test_a_name_used_again_forgets_the_old_price(cloud):
    cloud.ok(*CREATE)
    cloud.ok("delete", "lm", "--poll", "0.01")
    assert "$268.80" in cloud.ok("create", "lm", "--type", "v5p-128", "--poll", "0.01")


def test_slices_and_further_flags(cloud):
    cloud.ok(
        *CREATE, "--slices", "2", "--gcloud", "--network=n1 --service-account=s@x", "--price", "1.5"
    )
    (call,) = cloud.calls(f"{RESOURCE} create")
    assert {"--node-count=2", "--node-prefix=lm", "--network=n1", "--service-account=s@x"} <= set(
        call
    )
    cloud.ok("install", "lm", "--from", "https://git.example/ramp", "--dry-run")
    assert "$24.00 an hour (16 chips at $1.5)" in cloud.ok("status", "lm")


def test_interrupted_wait_says_what_may_cost(cloud):
    cloud.change(grant=["WAITING_FOR_RESOURCES"])
    argv = ["bash", str(SCRIPTS / "pod.sh"), *CREATE]
    waiting = subprocess.Popen(argv, env=cloud.env, stderr=subprocess.PIPE, text=True)
    until(lambda: len(cloud.calls(f"{RESOURCE} describe")) > 2)
    waiting.terminate()
    _, said = waiting.communicate(timeout=20)
    assert waiting.returncode == 130 and "costs $21.60" in said and "`pod.sh delete lm`" in said
    cloud.ok("delete", "lm")  # the settings were kept, so the name is enough
    assert cloud.state()["resources"] == {}


# -- mistakes
QUOTA = "RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone us-east5-b."


def test_quota_denied_at_once(cloud):
    cloud.change(fail={f"{RESOURCE} create": QUOTA})
    done = cloud.pod(*CREATE)
    assert done.returncode == 2 and "nothing was created, nothing costs" in done.stderr
    assert (
        "TPUV6EPerProjectPerZoneForTPUAPI" in done.stderr.splitlines()[-1]
        and "ask for more" in done.stderr
    )


def test_quota_denied_later(cloud):
    cloud.change(grant=["ACCEPTED", "FAILED"], message=QUOTA)
    done = cloud.pod(*CREATE)
    assert done.returncode == 2 and "lm is FAILED and costs nothing" in done.stderr
    assert "Google denied the quota" in done.stderr.splitlines()[-1]


def test_no_capacity_is_no_mistake(cloud):
    cloud.change(grant=["ACCEPTED", "FAILED"], message="There is no more capacity in the zone")
    assert "no more capacity" in cloud.refused(*CREATE, code=1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"account": ""}, "not logged in to Google Cloud; run `gcloud auth login`"),
        ({"project": ""}, "which project?"),
        ({"project": "(unset)"}, "which project?"),
        ({"zones": {}}, "zone us-east5-b has no v6e-8; zones that have this chip: us-central1-b"),
        (
            {"fail": {f"{RESOURCE} describe": "SERVICE_DISABLED"}},
            "gcloud services enable tpu.googleapis.com --project=p1",
        ),
        ({"fail": {f"{RESOURCE} create": "BILLING_DISABLED"}}, "no billing account"),
        ({"fail": {f"{RESOURCE} create": "PERMISSION_DENIED: no"}}, "TPU Admin"),
        (
            {"fail": {f"{RESOURCE} describe": "Reauthentication failed. gcloud auth login"}},
            "not logged in",
        ),
    ],
)
def test_each_mistake_is_one_sentence(cloud, changes, sentence):
    cloud.change(**changes)
    assert sentence in cloud.refused(*CREATE)
    assert cloud.state()["resources"] == {}


def test_no_gcloud(cloud, tmp_path):
    (tmp_path / "few").mkdir()
    for tool in ("bash", "dirname", "mktemp", "grep", "cat", "rm", "awk"):
        (tmp_path / "few" / tool).symlink_to(shutil.which(tool))
    assert "gcloud is not installed" in cloud.refused(*CREATE, PATH=str(tmp_path / "few"))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["fly", "lm"], "unknown verb 'fly'"),
        (["create"], "after the verb comes a name"),
        (["create", "LM", "--type", "v6e-8"], "got 'LM'"),
        (["create", "lm", "--zone", ZONE], "say --type and --zone"),
        (["create", "lm", "--type", "v6e-8", "--zone"], "--zone needs a value"),
        (["create", "lm", "--tpye", "v6e-8"], "unknown option --tpye"),
        (["create", "lm", "--type", "h100-8", "--zone", ZONE], "types look like"),
        (["create", "lm", "--type", "v5p-7", "--zone", ZONE], "types look like"),
        (
            ["create", "lm", "--type", "v6e-8", "--zone", ZONE, "--slices", "x"],
            "takes a number, not 'x'",
        ),
        (
            ["create", "lm", "--type", "v6e-8", "--zone", ZONE, "--slices", "09"],
            "--slices takes a number, not '09'",
        ),
        (
            ["create", "lm", "--type", "v6e-8", "--zone", ZONE, "--slices", "010"],
            "--slices takes a number, not '010'",
        ),
        (["create", "lm", "--type", "v6e-8", "--zone", ZONE, "--slices", "0"], "not offered"),
        (
            ["create", "lm", "--type", "v6e-8", "--zone", ZONE, "--poll", "abc"],
            "--poll takes seconds, not 'abc'",
        ),
        (
            ["tensorboard", "lm", "--type", "v6e-8", "--zone", ZONE],
            "`pod.sh launch lm` first, or say --run",
        ),
        (
            ["create", "lm", "--type", "v6e-8", "--zone", ZONE, "--capacity", "free"],
            "on-demand, spot or reserved",
        ),
        ([*CREATE, "--price", "cheap"], "dollars per chip-hour, not 'cheap'"),
        ([*CREATE, "configs/cpu.toml"], "what is 'configs/cpu.toml'?"),
        (["launch", "lm"], "I know no pod 'lm'"),
    ],
)
def test_wrong_words(cloud, args, sentence):
    assert sentence in cloud.refused(*args)
    assert not cloud.calls(f"{RESOURCE} create")


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (
            "gs://other/lm",
            "looking at gs://other: there is no such bucket, or you have no permission",
        ),
        ("gs://b", "names a bucket only"),
        ("gs://proc/lm", "service account of the TPU VM may not write to gs://proc"),
        ("gs://seen/lm", "gs://seen cannot be mounted: bucket seen: no such bucket or no access"),
    ],
)
def test_buckets_that_cannot_be_used(cloud, run, sentence):
    cloud.change(buckets={"b": True, "proc": True, "seen": False})
    (cloud.path / "buckets" / "proc").symlink_to("/proc")
    cloud.ok(*CREATE)
    cloud.ok("install", "lm")
    assert sentence in cloud.refused("launch", "lm", "--run", run, "configs/cpu.toml")
    assert not list(cloud.path.glob("args.*"))  # ramp was not started


def test_launch_before_install(cloud):
    cloud.ok(*CREATE)
    assert "`pod.sh install lm` first" in cloud.refused(*LAUNCH)


@pytest.mark.parametrize(
    ("type_", "slices", "hosts"),
    [("v6e-16", "1", "4"), ("v6e-8", "2", "2"), ("v5p-128", "2", "32")],
)
def test_many_hosts_need_a_bucket(cloud, type_, slices, hosts):
    cloud.ok("create", "lm", "--type", type_, "--slices", slices, "--zone", ZONE, "--poll", "0.01")
    assert f"the {hosts} hosts" in cloud.refused(
        "launch", "lm", "--run", "runs/lm", "configs/cpu.toml"
    )


# -- dry run
def test_dry_run_needs_and_touches_nothing(cloud, tmp_path):
    where = ("--type", "v6e-8", "--zone", ZONE, "--dry-run")
    verbs = {
        "create": ["queued-resources create lm"],
        "install": ["tpu-vm scp", "tpu-vm ssh lm --worker=all"],
        "launch": ["worker.sh start gs://b/lm x.toml --model.depth 2"],
        "watch": [
            "queued-resources delete lm --force",
            "queued-resources create lm",
            "worker.sh install",
            "worker.sh start",
        ],
        "tensorboard": ["-- -t -L 6006:localhost:6006"],
        "logs": ["tail -n 100 -F"],
        "stop": ["worker.sh stop"],
        "delete": ["queued-resources delete lm --force"],
    }
    (tmp_path / "pods").mkdir()
    (tmp_path / "pods" / "lm.args").write_text("x.toml\n--model.depth\n2\n")
    (tmp_path / "pods" / "lm").write_text(f"TYPE=v6e-8\nZONE={ZONE}\nRUN=gs://b/lm\n")
    for verb, expected in verbs.items():
        config = ["x.toml", "--model.depth", "2"] if verb == "launch" else []
        done = cloud.pod(
            verb,
            "lm",
            *where,
            "--run",
            "gs://b/lm",
            *config,
            PATH=PLAIN if verb != "create" else cloud.env["PATH"],
        )
        assert done.returncode == 0, done.stderr
        commands = [line for line in done.stderr.splitlines() if line.startswith("+ ")]
        assert len(commands) == len(expected) if verb != "watch" else len(commands) == 5
        for wanted in expected:
            assert any(wanted in c for c in commands), (verb, wanted, commands)
    assert not cloud.calls() and cloud.state()["resources"] == {}
    assert sorted(p.name for p in (tmp_path / "pods").iterdir()) == ["lm", "lm.args"]
    assert "TYPE=v6e-8\n" in (tmp_path / "pods" / "lm").read_text()


# -- install and launch
def test_install_copies_the_working_tree(cloud):
    cloud.ok(*CREATE)
    cloud.ok("install", "lm")
    src = cloud.path / "vms" / "lm" / "w0" / "ramp" / "src"
    assert (src / "pyproject.toml").read_bytes() == (REPO / "pyproject.toml").read_bytes()
    assert (
        (src / "src" / "ramp" / "cli.py").exists()
        and not (src / ".venv").exists()
        and not (src / ".git").exists()
    )
    uv = (src.parents[1] / "uv.log").read_text()
    assert (
        "venv -q --python 3.12 venv" in uv
        and "--reinstall-package ramp-lm ./src[tpu,demo,gcs]" in uv
    )
    (src / "stale.py").touch()
    cloud.ok("install", "lm")
    assert not (src / "stale.py").exists()


def test_install_from_git_at_a_commit(cloud, tmp_path):
    origin = tmp_path / "origin"
    shutil.copytree(SCRIPTS, origin / "tpu_scripts")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(origin)]
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["commit", "-qm", "one"],
        ["tag", "v1"],
        ["rm", "-q", "tpu_scripts/gke.sh"],
    ):
        subprocess.run([*git, *words], check=True)
    subprocess.run([*git, "commit", "-qm", "two"], check=True)
    cloud.ok(*CREATE)
    src = cloud.path / "vms" / "lm" / "w0" / "ramp" / "src" / "tpu_scripts"
    cloud.ok("install", "lm", "--from", str(origin), "--ref", "v1")
    assert (src / "gke.sh").exists()
    cloud.ok("install", "lm", "--ref", "HEAD")
    assert not (src / "gke.sh").exists() and (src / "worker.sh").exists()


def test_every_worker_of_every_slice_runs_it(cloud):
    cloud.change(workers=2)
    cloud.ok("create", "lm", "--type", "v6e-16", "--slices", "2", "--zone", ZONE, "--poll", "0.01")
    cloud.ok("install", "lm")
    cloud.ok(*LAUNCH)
    names = {f"args.lm-{s}-w{w}" for s in (0, 1) for w in (0, 1)}
    until(lambda: {p.name for p in cloud.path.glob("args.*")} == names)
    assert (cloud.run / "starts").read_text().count("RAMP_DISTRIBUTED=auto") == 4
    cloud.ok(*LAUNCH)  # what runs is left alone
    assert (cloud.run / "starts").read_text().count("RAMP_DISTRIBUTED") == 4
    assert "ramp: running" in cloud.ok("status", "lm")
    assert "ramp is running on lm" in cloud.refused("install", "lm")


words = st.text(st.characters(exclude_characters="\n\x00", exclude_categories=["Cs"]))


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(words, max_size=4))
def test_arguments_reach_ramp_as_they_are(cloud, args):
    ended, seen = cloud.path / "vms/lm/w0/ramp/exit", cloud.path / "args.lm-w0"
    if not cloud.calls():
        (cloud.path / "exit").write_text("0")
        for verb in (CREATE, ("install", "lm")):
            cloud.ok(*verb)
    for launch in ((*LAUNCH, *args), ("launch", "lm")):  # the second time from what was kept
        seen.unlink(missing_ok=True)
        cloud.ok(*launch)
        until(ended.exists)
        assert seen.read_bytes().decode().split("\n")[4:-1] == args


def test_settings_are_data_not_shell(cloud, tmp_path):
    cloud.ok(*CREATE, "--project", "$(touch pwned)`touch pwned`")
    (tmp_path / "pods" / "lm").open("a").write(
        "PATH=/nowhere\nprintf pwned >pwned\nRUN=$(touch pwned)\n"
    )
    cloud.ok("status", "lm")
    assert not list(tmp_path.rglob("pwned"))
    assert any("--project=$(touch pwned)`touch pwned`" in call for call in cloud.calls())


# -- watch
def test_a_preemption_is_survived(trained):
    cloud = trained
    with cloud.watch() as watching:
        cloud.becomes("lm", "SUSPENDED")
        before = cloud.step()
        until(lambda: cloud.step() > before + 3)
        cloud.becomes("lm", "SUSPENDED")  # and again
        before = cloud.step()
        until(lambda: cloud.step() > before + 3)
        (cloud.path / "exit").write_text("0")
        _, said = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 0 and "the run is done" in said and "costs $21.60" in said
    starts = [int(line.split()[-1]) for line in (cloud.run / "starts").read_text().splitlines()]
    assert starts[0] == 0 and len(starts) == 3 and 0 < starts[1] < starts[2]
    creates = cloud.calls(f"{RESOURCE} create")
    assert len(creates) == 3 and creates[0] == creates[1] == creates[2]
    assert len(cloud.calls(f"{RESOURCE} delete")) == 2
    assert cloud.state()["resources"]["lm"]["state"] == "ACTIVE"


@pytest.mark.parametrize("state", ["PREEMPTED", "GONE"])
def test_a_node_lost_under_an_active_request(trained, state):
    trained.change(nodes={"lm": state})
    with trained.watch() as watching:
        until(lambda: trained.calls(f"{RESOURCE} delete"))
        trained.change(nodes={})
        until(lambda: (trained.run / "starts").read_text().count("\n") == 2)
        (trained.path / "exit").write_text("0")
        assert watching.wait(timeout=PATIENCE) == 0


@pytest.mark.parametrize("disk", ["kept", "wiped"])
def test_a_vm_that_rebooted(trained, disk):
    if disk == "kept":
        os.killpg(
            os.getpgid(int((trained.path / "vms/lm/w0/ramp/pid").read_text())), signal.SIGKILL
        )
    else:
        trained.kill()
    with trained.watch("--crashes", "0") as watching:
        until(lambda: (trained.run / "starts").read_text().count("\n") == 2)
        (trained.path / "exit").write_text("0")
        assert watching.wait(timeout=PATIENCE) == 0
    assert len(trained.calls(f"{VM} scp")) == (1 if disk == "kept" else 2)
    assert len(trained.calls(f"{RESOURCE} create")) == 1


def test_exit_code_75_means_again(trained):
    with trained.watch("--crashes", "0") as watching:
        os.kill(int((trained.path / "vms/lm/w0/ramp/pid").read_text()), signal.SIGTERM)
        until(lambda: (trained.run / "starts").read_text().count("\n") == 2)
        looks = len(trained.calls(f"{VM} ssh"))
        until(lambda: len(trained.calls(f"{VM} ssh")) > looks + 3)
        (trained.path / "exit").write_text("0")
        assert watching.wait(timeout=PATIENCE) == 0
    assert len(trained.calls(f"{RESOURCE} create")) == 1
    assert (trained.run / "starts").read_text().count("\n") == 2
    assert "saved" in (trained.run / "logs" / "lm-w0.log").read_text()


@pytest.mark.parametrize(
    ("code", "exits", "sentence", "starts"),
    [
        ("0", 0, "the run is done", 1),
        ("2", 2, "ramp refused the run", 1),
        ("3", 3, "training diverged", 1),
        ("137", 1, "failed 3 times, now with exit code 137", 3),
    ],
)
def test_what_ends_a_watch(trained, code, exits, sentence, starts):
    (trained.path / "exit").write_text(code)
    with trained.watch("--crashes", "2", "--delete-at-end") as watching:
        _, said = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == exits and sentence in said
    assert (trained.run / "starts").read_text().count("\n") == starts
    assert trained.state()["resources"] == {}


def test_a_watch_outlives_a_lost_connection(trained):
    trained.change(fail={f"{RESOURCE} describe": "gaierror: host not found"})
    with trained.watch() as watching:
        looks = len(trained.calls(f"{RESOURCE} describe"))
        until(lambda: len(trained.calls(f"{RESOURCE} describe")) > looks + 2)
        trained.change(fail={})
        (trained.path / "exit").write_text("0")
        assert watching.wait(timeout=PATIENCE) == 0
    assert len(trained.calls(f"{RESOURCE} create")) == 1


def test_a_watch_does_not_bring_back_what_was_deleted(trained):
    with trained.watch() as watching:
        trained.ok("delete", "lm", "--force", "--poll", "0.01")
        _, said = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 1 and "somebody deleted it" in said
    assert trained.state()["resources"] == {} and len(trained.calls(f"{RESOURCE} create")) == 1


def test_a_watch_gives_up_when_the_quota_is_gone(trained):
    trained.change(fail={f"{RESOURCE} create": QUOTA})
    trained.becomes("lm", "SUSPENDED")
    with trained.watch() as watching:
        _, said = watching.communicate(timeout=PATIENCE)
    assert (
        watching.returncode == 2 and "Google denied the quota" in said and "nothing costs" in said
    )


def test_a_watch_keeps_asking_when_there_is_no_capacity(trained):
    trained.change(grant=["FAILED"], message="no more capacity in the zone")
    trained.becomes("lm", "SUSPENDED")
    with trained.watch() as watching:
        until(lambda: len(trained.calls(f"{RESOURCE} create")) > 2)
        trained.change(grant=["ACTIVE"])
        until(lambda: (trained.run / "starts").read_text().count("\n") == 2)
        (trained.path / "exit").write_text("0")
        assert watching.wait(timeout=PATIENCE) == 0


def test_an_install_that_keeps_failing_ends_a_watch(trained):
    trained.kill()  # a fresh disk
    (trained.path / "no-packages").touch()
    with trained.watch("--crashes", "2", "--delete-at-end") as watching:
        _, said = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 1 and "install failed 3 times" in said
    assert "installing on lm failed: pip install '.[tpu,demo,gcs]' failed on lm-w0" in said
    assert trained.state()["resources"] == {}


def test_nothing_to_resume_on_a_lost_disk(cloud):
    cloud.ok(*CREATE, "--capacity", "spot")
    cloud.ok("install", "lm")
    assert "a preemption takes" in cloud.ok("launch", "lm", "--run", "runs/lm", "configs/cpu.toml")
    until((cloud.path / "vms/lm/w0/runs/lm/step").exists)
    cloud.becomes("lm", "SUSPENDED")
    with cloud.watch() as watching:
        _, said = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 2 and "runs/lm was on the lost disk" in said


def test_stop_saves_and_a_watch_leaves_it_so(trained):
    said = trained.pod("stop", "lm")
    assert (
        said.returncode == 0
        and "lm-w0: stopped" in said.stdout
        and "`pod.sh delete lm`" in said.stderr
    )
    with trained.watch() as watching:
        assert watching.wait(timeout=PATIENCE) == 0
    before = trained.step()
    trained.ok("launch", "lm")
    until(lambda: trained.step() > before)


# -- look and delete
def test_status_logs_and_tensorboard(trained):
    assert "ramp: running; costs $21.60" in trained.ok("status", "lm")
    log = trained.pod("logs", "lm", "--no-follow", "--lines", "5").stdout
    assert "ramp run configs/cpu.toml" in log and "going on from step 0" in log
    shown = trained.pod("tensorboard", "lm", "--port", "7007").stdout
    assert shown.startswith("tensorboard --logdir ") and shown.endswith(
        "/ramp/gs/b/runs/lm/tb --port 7007\n"
    )
    assert trained.calls(f"{VM} ssh")[-1][-4:] == ["--", "-t", "-L", "7007:localhost:7007"]
    (trained.run / "tb").mkdir()
    (trained.run / "tb" / "events").write_text("e")
    trained.ok("tensorboard", "lm", "--copy", str(trained.path / "here"))
    assert (trained.path / "here" / "events").read_text() == "e"


def test_delete_asks_before_it_ends_a_run(trained):
    assert "ramp is running on lm" in trained.refused("delete", "lm")
    assert "lm" in trained.state()["resources"]
    assert "costs nothing any more" in trained.ok("delete", "lm", "--force", "--poll", "0.01")
    assert trained.state()["resources"] == {} and trained.step() > 0  # the bucket keeps the run
    assert "nothing to delete" in trained.ok("delete", "lm")
    assert "nothing is there, nothing costs" in trained.ok("status", "lm")


def test_delete_that_fails_says_what_it_costs(cloud):
    cloud.ok(*CREATE)
    cloud.change(fail={f"{RESOURCE} delete": "INTERNAL: try again"})
    done = cloud.pod("delete", "lm")
    assert (
        done.returncode == 1
        and "costs $21.60" in done.stderr
        and "INTERNAL" in done.stderr.splitlines()[-1]
    )


# -- GKE
GKE = ("--zone", ZONE, "--run", "gs://b/runs/lm", "--dry-run")


def gke(cloud, *args: str) -> str:
    done = cloud.pod(*args, script="gke.sh")
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("capacity", "flag"),
    [("on-demand", "--on-demand"), ("spot", "--spot"), ("reserved", "--reservation=r1")],
)
def test_xpk_makes_a_cluster(cloud, capacity, flag):
    said = gke(
        cloud,
        "cluster",
        "c1",
        "--type",
        "v6e-256",
        "--slices",
        "2",
        "--capacity",
        capacity,
        "--reservation",
        "r1",
        *GKE,
    )
    assert "$1382.40 an hour" in said and "gke.sh delete c1" in said
    assert (
        f"+ xpk cluster create --cluster=c1 --tpu-type=v6e-256 --num-slices=2 {flag} --enable-gcsfuse-csi-driver"
        in said
    )
    assert (
        "+ xpk storage attach runs --cluster=c1 --type=gcsfuse --bucket=b --mount-point=/runs"
        in said
    )


def test_xpk_submits_and_cancels(cloud):
    said = gke(
        cloud,
        "submit",
        "lm",
        "--cluster",
        "c1",
        "--type",
        "v6e-256",
        *GKE,
        "configs/x.toml",
        "--a",
        "b c",
    )
    assert "--restart-on-exit-codes=1,75 " in said and "--env=RAMP_DISTRIBUTED=auto" in said
    assert r"ramp run configs/x.toml --run /runs/runs/lm --a b\ c" in said
    assert "xpk workload delete --workload=lm --cluster=c1" in gke(
        cloud, "cancel", "lm", "--cluster", "c1", *GKE
    )
    assert "xpk cluster delete --cluster=c1" in gke(cloud, "delete", "c1", *GKE)


def test_manifest_is_a_jobset(cloud):
    where = ("--topology", "16x16", "--image", "me/ramp:1", "--slices", "2", *GKE)
    done = cloud.pod(
        "manifest",
        "lm",
        "--type",
        "v6e-256",
        *where,
        "x.toml",
        "--text",
        "it's \"&|\\ @NAME@",
        script="gke.sh",
    )
    assert done.returncode == 0, done.stderr
    jobset = yaml.safe_load(done.stdout)
    assert jobset["kind"] == "JobSet" and jobset["metadata"]["name"] == "lm"
    (slice_,) = jobset["spec"]["replicatedJobs"]
    job = slice_["template"]["spec"]
    assert (slice_["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (
        2,
        64,
        64,
        0,
    )
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == [
        "ramp",
        "run",
        "x.toml",
        "--run",
        "/runs/runs/lm",
        "--text",
        "it's \"&|\\ @NAME@",
    ]
    assert (
        container["resources"]["limits"] == {"google.com/tpu": 4}
        and container["image"] == "me/ramp:1"
    )
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v6e-slice"
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "16x16"
    (rule,) = job["podFailurePolicy"][
        "rules"
    ]  # a mistake and a divergence end it; 75 and disruptions start it again
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2, 3]
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "b"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["submit", "lm", "--type", "v6e-256", *GKE, "x.toml"], "submit needs --cluster"),
        (["fly", "lm"], "unknown verb 'fly'; see `gke.sh --help`"),
        (
            ["cluster", "c", "--type", "v6e-256", "--capacity", "banana", "--dry-run", *GKE],
            "--capacity is on-demand, spot or reserved, not 'banana'",
        ),
        (
            [
                "manifest",
                "lm",
                "--type",
                "v6e-64",
                "--topology",
                "08x1",
                "--image",
                "i",
                *GKE,
                "x.toml",
            ],
            "--topology '08x1' does not have the 64 chips",
        ),
        (
            [
                "manifest",
                "lm",
                "--type",
                "tpu7x-8",
                "--topology",
                "2x2x1",
                "--image",
                "i",
                *GKE,
                "x.toml",
            ],
            "manifest knows no tpu7x; `gke.sh submit` takes it",
        ),
        (["submit", "lm", "--type", "v6e-256", "--cluster", "c", *GKE], "which configuration?"),
        (
            [
                "manifest",
                "lm",
                "--type",
                "v6e-256",
                "--topology",
                "4x4",
                "--image",
                "i",
                *GKE,
                "x.toml",
            ],
            "256 chips",
        ),
        (
            ["cluster", "c", "--type", "v6e-256", "--zone", ZONE, "--run", "runs/lm"],
            "gs://BUCKET/DIR",
        ),
        (
            ["cluster", "c", "--type", "v6e-256", "--capacity", "reserved", *GKE],
            "cluster needs --reservation",
        ),
        (
            ["cluster", "c", "--type", "v6e-256", "--zone", ZONE, "--run", "gs://b/x"],
            "xpk is not installed",
        ),
    ],
)
def test_gke_mistakes(cloud, args, sentence):
    done = cloud.pod(*args, script="gke.sh")
    assert done.returncode == 2 and sentence in done.stderr.splitlines()[-1]


# -- the scripts themselves
def test_shellcheck():
    near = str(Path(sys.executable).parent)  # where the development group of pyproject.toml puts it
    shellcheck = shutil.which("shellcheck", path=f"{near}:{os.environ['PATH']}") or pytest.skip(
        "no shellcheck here"
    )
    files = sorted(map(str, SCRIPTS.glob("*.sh")))
    done = subprocess.run([shellcheck, "-x", *files], capture_output=True, text=True, cwd=SCRIPTS)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("words", [(), ("help",), ("-h",), ("--help",)])
@pytest.mark.parametrize("script", ["pod.sh", "gke.sh"])
def test_help_is_no_mistake(script, words):
    done = subprocess.run([SCRIPTS / script, *words], capture_output=True, text=True)
    assert done.returncode == 0 and "VERB NAME" in done.stdout and not done.stderr


def test_help_names_every_verb_and_option():
    usage = subprocess.run(
        [SCRIPTS / "pod.sh", "--help"], capture_output=True, text=True, check=True
    ).stdout
    common, pod = (SCRIPTS / "common.sh").read_text(), (SCRIPTS / "pod.sh").read_text()
    options = re.findall(r'^(?:SETTINGS|OPTIONS|FLAGS)="(.*)"$', common, re.MULTILINE)
    for option in " ".join(options).split():
        assert f"--{option.lower().replace('_', '-')}" in usage, option
    for verb in re.search(r"^  (create \|.*)\) parse", pod, re.MULTILINE)[1].split(" | "):
        assert re.search(rf"^  {verb} NAME", usage, re.MULTILINE), verb


@pytest.mark.slow
def test_the_fake_knows_no_flag_that_gcloud_lacks(tmp_path):
    """Against an installed Google Cloud CLI: its help only, with a configuration directory of our own."""
    gcloud = shutil.which("gcloud") or pytest.skip("gcloud is not installed")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path)}
    for verb, flags in runpy.run_path(str(FAKE / "gcloud"))["FLAGS"].items():
        text = subprocess.run(
            [gcloud, *verb.split(), "--help"], env=env, capture_output=True, text=True, timeout=120
        ).stdout
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        for flag in flags:
            assert re.search(rf"{flag}\b", text), (verb, flag)


def test_scripts_may_be_executed():
    for name in ("pod.sh", "gke.sh", "worker.sh"):
        assert (SCRIPTS / name).stat().st_mode & stat.S_IXUSR

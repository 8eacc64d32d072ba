"""What an installed wheel does outside the clone: it carries its configurations, and no experiment."""

import subprocess
import sys
import zipfile

import pytest
from test_runs import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the wheel's content, built anew; fetches the build backend."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        build = ["uv", "build", "--quiet", "--wheel", "-o", folder, ROOT]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def ramp(site, folder, *words):
    """The command line of the wheel, from a folder that is no clone."""
    path = {
        "PYTHONPATH": str(site),
        "JAX_PLATFORMS": "cpu",
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
    }
    command = [sys.executable, "-m", "ramp.cli", *words]
    return subprocess.run(
        command, cwd=folder, env=path, capture_output=True, text=True, timeout=200
    )


@pytest.mark.slow
def test_configurations_are_found_by_name(site, tmp_path):
    assert not (site / "experiments").exists()
    pages = [
        {file.name for file in (top / "ramp/serve/page").iterdir()} for top in (site, ROOT / "src")
    ]
    assert pages[0] == pages[1] != set()
    done = ramp(site, tmp_path, "run", "cpu", "--dry-run")
    assert done.returncode == 0 and "parameters" in done.stdout, done.stderr
    done = ramp(site, tmp_path, "ladder", "--to", "99")
    assert "no such configuration" not in done.stderr and done.returncode == 2
    done = ramp(site, tmp_path, "run", "cpuu")
    assert "these come with ramp: collapse-bench" in done.stderr and done.returncode == 2

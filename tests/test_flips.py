"""A thousand flipped bytes over all files of a run in which every stage is done."""

import os

import pytest
from flips import Flips
from whole_run import make_run

FLIPS = int(os.environ.get("RAMP_FLIPS", "1000"))
SEED = int(os.environ.get("RAMP_FLIPS_SEED", "0"))


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_no_flip_is_a_traceback_or_silent_and_every_remedy_works(tmp_path, monkeypatch):
    """Some 5 s each on two cores; the quick sample is in test_runs.py.

    RAMP_FLIPS=1000 RAMP_FLIPS_SEED=0 pytest -m slow -n 0 -s tests/test_flips.py
    """
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    flips, wrong = Flips(make_run(tmp_path), SEED), []
    for number in range(FLIPS):
        where, faults = flips.try_flip()
        print(number, where, *faults, flush=True)
        wrong += [f"{where}: {fault}" for fault in faults]
    assert not wrong, "\n".join(wrong)

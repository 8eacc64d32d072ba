"""SIGKILL, SIGTERM and Ctrl-C at any moment of a run of all stages: the same command goes on, and its end is the same.

The whole proof, 200 kills and 100 requests to stop, takes most of an hour:
`RAMP_KILLS=200 RAMP_TERMS=100 RAMP_SEED=0 uv run pytest -m slow tests/test_interruptions.py -n 0 -s`.
With `RAMP_CHAIN=FOLDER` it is kept in that folder, where interruptions.log tells of every strike.
"""

import os
from pathlib import Path

import pytest
from interruptions import Chain, describe, start, write_config

KILLS, TERMS, SEED = (
    int(os.environ.get(f"RAMP_{name}", value))
    for name, value in (("KILLS", 20), ("TERMS", 10), ("SEED", 0))
)


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_interrupted_anywhere_a_run_of_all_stages_ends_the_same(tmp_path):
    folder = Path(os.environ.get("RAMP_CHAIN", tmp_path))
    config = folder / "all.toml"
    if not config.exists():
        write_config(folder)
    whole = folder / "whole"
    assert start(config, whole, folder / "whole.log").wait(900) == 0
    chain = Chain(folder, config, describe(whole), KILLS, TERMS, SEED)
    chain.go()
    print(f"{dict(chain.counts)} in {dict(chain.places)}; slowest to leave {chain.slowest:.1f} s")
    assert not chain.faults, "\n".join(chain.faults)

"""SIGKILL, SIGTERM and Ctrl-C at any moment of a run of all stages: the same command goes on, and its end is the same.

The whole proof, 200 kills and 100 requests to stop, takes most of an hour:
`RAMP_KILLS=200 RAMP_TERMS=100 RAMP_SEED=0 uv run pytest -m slow tests/test_interruptions.py -n 0 -s`.
With `RAMP_CHAIN=FOLDER` it is kept in that folder, where interruptions.log tells of every strike; started again, it goes on.
"""

import os
import signal
from pathlib import Path

import pytest
from interruptions import Chain, describe, differences, start, write_config

KILLS, TERMS, SEED = (
    int(os.environ.get(f"RAMP_{name}", value))
    for name, value in (("KILLS", 20), ("TERMS", 10), ("SEED", 0))
)


# Where a run is struck, in its order: the call of a function of a module.
PLACES = (
    "1 ramp.host:keep_memory",
    "1 ramp.run:prepare_in_subprocess",
    "1 ramp.train.trainer:train_loop",
    "1 ramp.train.trainer:shard_batch",  # before the first step, which compiles
    "9 ramp.train.trainer:shard_batch",
    "3 ramp.evals.bpb:shard_batch",  # in an evaluation while training
    "1 ramp.train.checkpoint:_seal",  # while a checkpoint is made
    "1 ramp.evals.bpb:fit_baselines",
    "1 ramp.stages.finetune:pack_rows",
    "1 ramp.stages.trials:sample_rollouts",
    "1 ramp.evals.samples:generate",
    "1 ramp.stages.dpo:load_start",
    "2 ramp.credit.rollouts:score_rollouts",
    "1 ramp.credit.learn:collect_batch",
    "1 ramp.stages.reinforce:save_page",
    "1 ramp.stages.synthesize:generate_samples",
    "1 ramp.synth.ledger:write_kept",
    "1 ramp.stages.synthesize:write_history",
    "1 ramp.reporting.report:write_report",
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_every_phase_is_left_in_time_and_gone_on_with(tmp_path, number):
    """About five minutes: `uv run pytest -m slow tests/test_interruptions.py -k every_phase`."""
    config, whole, parts = write_config(tmp_path), tmp_path / "whole", tmp_path / "parts"
    assert start(config, whole, tmp_path / "whole.log").wait(900) == 0
    for place in PLACES:
        log = tmp_path / "parts.log"
        code = start(config, parts, log, f"{int(number)} {place}").wait(900)
        # An evaluation that was owed may be made up for without the place.
        assert code == (75 if number == signal.SIGTERM else -9), f"{place}: {code}"
    assert start(config, parts, tmp_path / "parts.log").wait(900) == 0
    assert not differences(describe(parts), describe(whole))


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

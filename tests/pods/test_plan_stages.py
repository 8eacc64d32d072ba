"""What is planned of a stage is what it runs: the same arrays, and the same refusals."""

from dataclasses import replace

import numpy as np
import pytest
import tiny

from ramp.config import Reinforce
from ramp.credit import learn
from ramp.credit.rollouts import score_rollouts
from ramp.decode.cache import round_to_bucket
from ramp.errors import UserError
from ramp.pods import plan
from ramp.tasks import open_task
from ramp.tasks.protocol import prompt_ids
from ramp.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bytes_only()
C = replace(tiny.model(depth=1), vocab_size=512, context_len=128)


@pytest.mark.parametrize(
    "over",
    [
        {"method": "rloo"},
        {"method": "rloo", "minibatches": 3, "entropy_coef": 0.1, "entropy_target": 1.0},
        {"method": "grpo", "entropy_control": "kl_cov", "epochs": 2, "kl_coef": 0.1},
        {"method": "step_local", "reward": "head", "label_fraction": 1.0},
        {"method": "implicit"},
    ],
)
def test_the_planned_update_has_the_arrays_of_the_run(monkeypatch, over):
    t = Reinforce(task="addition", level=1, num_prompts=3, group_size=2, max_new_tokens=8, **over)
    t = replace(t, train=replace(t.train, seq_len=64))
    t = replace(t, train=t.fix_train())

    def sample(c, t, tokenizer, params, ref, first, check):
        task, draw = open_task(t), np.random.default_rng(first)
        rows = [p for p in learn.make_problems(task, t.level, first, 3) for _ in range(2)]
        prompts = [prompt_ids(tokenizer, problem.question) for problem in rows]
        tokens_bn = draw.integers(32, 120, (6, 8)).astype(np.int32)
        logps_bn = -draw.random((6, 8)).astype(np.float32)
        r = score_rollouts(tokenizer, task, rows, 2, prompts, tokens_bn, logps_bn)
        given = learn.Rewards(draw.random(6).astype(np.float32), r.right_bs)
        ref_bt = draw.random((6, 64)).astype(np.float32) if learn.needs_ref(t) else None
        return learn.Judged(r, given, logps_bn, ref_bt, 48)

    monkeypatch.setattr(learn, "sample_judged", sample)
    run = learn.collect_batch(C, t, TOKENIZER, {}, {}, 0, 0).batch
    planned = plan._make_rl_batch(t)
    rows = t.train.batch_size
    assert {k: (a[:rows].shape, a.dtype) for k, a in run.items()} == {
        k: (a.shape, a.dtype) for k, a in planned.items()
    }


def test_the_planned_cache_holds_what_is_sampled():
    s = plan.Sampled(4, 40, 8, plan.SamplingParams())
    c = replace(plan.Config(), model=C)
    assert plan._cache_size(c, s) == min(round_to_bucket(48), 128) >= 48


def test_what_stays_beside_a_program_counts():
    update, small = (plan.ProgramPlan(True, argument=a, alias=a, peak=a) for a in (900, 300))
    kinds = ("prefill", "decode", "scores")
    rl = {"reinforce": update} | {f"reinforce-{k}": small for k in kinds[:2]}
    assert plan.find_bytes_beside(rl) == {"reinforce-prefill": 600, "reinforce-decode": 900}
    synth = {"synthesize": update} | {f"synthesize-{k}": small for k in kinds}
    assert plan.find_bytes_beside(synth)["synthesize"] == 900
    assert plan.find_bytes_beside({"train": update}) == {}


@pytest.mark.parametrize("text", ['{"programs": []}', '{"programs": {"train": 3}}', "[]", "3", "{"])
def test_what_is_no_plan_is_one_sentence(text, tmp_path):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError, match="is not a plan"):
        plan.load(tmp_path / "p.json")

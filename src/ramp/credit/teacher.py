"""What other models make of the sampled tokens.

A reference, a stronger teacher, or the model itself when it has been shown how the group did.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np

from ramp.config import Model, Reinforce
from ramp.credit import rollouts
from ramp.credit.loss import token_logps
from ramp.credit.rewards import make_records
from ramp.credit.rollouts import Rollouts
from ramp.decode import sample
from ramp.errors import UserError
from ramp.rundir import open_run
from ramp.tasks.protocol import prompt_ids
from ramp.text.tokenizer import Tokenizer
from ramp.train import restore
from ramp.train.processes import to_host

ROUND = 64  # rows with feedback are padded to a multiple of this, so that few shapes are compiled
# Tokens for the sentences around what is shown.
WORDING_TOKENS = 96

_jit_logps = jax.jit(token_logps, static_argnums=(0, 4))


def compute_logps(c: Model, lm: dict, r: Rollouts, length: int, temperature: float) -> np.ndarray:
    """Float32 [B, length]: log-probability of each target under another model.

    temperature: the rollouts', as the sampler would have drawn them.
    """
    batch = rollouts.make_rows(r, length)
    tokens_bt, targets_bt = sample.shard_rows(batch["tokens"], batch["targets"])
    logps_bt, _ = _jit_logps(c, lm, tokens_bt, targets_bt, temperature)
    return to_host(logps_bt)[: len(r.prompts)]


def compare_with_sampler(
    c: Model, lm: dict, r: Rollouts, length: int, temperature: float
) -> np.ndarray:
    """Float32 [B, N]: log-probability of each token under a model, less that under the sampler."""
    logps_bt = compute_logps(c, lm, r, length, temperature)
    return rollouts.align_to_tokens(r, logps_bt) - r.logps_bn


# A stronger model


def ask_teacher(t: Reinforce, tokenizer: Tokenizer, r: Rollouts) -> np.ndarray:
    """`compare_with_sampler` for the run that `reinforce.teacher` names."""
    c, lm = _load_teacher(t.teacher, tokenizer.fingerprint, jax.sharding.get_mesh())
    if t.train.seq_len > c.context_len:
        raise UserError(
            f"reinforce.train.seq_len {t.train.seq_len} is longer than the context of the teacher "
            f"{t.teacher}, {c.context_len}; lower it"
        )
    return compare_with_sampler(c, lm, r, t.train.seq_len, t.temperature)


# Loaded once a mesh: every iteration asks.
@lru_cache(maxsize=1)
def _load_teacher(path: str, fingerprint: str, mesh: jax.sharding.Mesh) -> tuple[Model, dict]:
    rundir, c = open_run(Path(path))
    tokenizer = Tokenizer.load(rundir.tokenizer)
    if tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"the teacher {path} has another tokenizer than this run, so it cannot score its "
            "tokens; set reinforce.teacher to a run with the same one"
        )
    # What `ramp chat` would talk with.
    return c.model, restore.load_params(rundir, rundir.default_stage, c, tokenizer)["lm"]


# The model itself


def ask_shown_model(
    c: Model, lm: dict, t: Reinforce, tokenizer: Tokenizer, r: Rollouts, reward_pg: np.ndarray
) -> np.ndarray:
    """`compare_with_sampler` for the model itself, shown the texts of `shown_texts`.

    NaN in rows that nothing can be shown, or that would be longer than the context.
    """
    texts = shown_texts(tokenizer, r, reward_pg)
    prompts, is_taught_b = [], np.zeros(len(texts), bool)
    for b, text in enumerate(texts):
        prompt = prompt_ids(tokenizer, f"{r.problems[b].question}\n\n{text}")
        is_taught_b[b] = bool(text) and len(prompt) + len(r.ids(b)) <= c.context_len
        prompts.append(prompt if is_taught_b[b] else r.prompts[b])
    shown = replace(r, prompts=prompts)
    longest = max(len(prompt) + len(r.ids(b)) for b, prompt in enumerate(prompts))
    length = min(-(-longest // ROUND) * ROUND, c.context_len)
    teacher_bn = compare_with_sampler(c, lm, shown, length, t.temperature)
    return np.where(is_taught_b[:, None], teacher_bn, np.float32(np.nan))


def shown_texts(tokenizer: Tokenizer, r: Rollouts, reward_pg: np.ndarray) -> list[str]:
    """For each rollout, what the model is shown with the problem; empty: nothing.

    The best of the others of the group, if its reward is above 0. Where there is none, the first
    step of the rollout itself that is wrong.
    """
    records = make_records(r, tokenizer)
    reward_b = np.nan_to_num(reward_pg).reshape(-1)
    texts = []
    for b, record in enumerate(records):
        first = b - b % r.group_size
        others = [i for i in range(first, first + r.group_size) if i != b]
        best = max(others, key=lambda i: reward_b[i], default=b)
        error = r.verdicts[b].first_error
        if best != b and reward_b[best] > 0:
            solution = "\n".join(records[best].steps)
            texts.append(f"A right solution is:\n{solution}\nSolve it in your own words.")
        elif error is not None:
            wrong = record.steps[error]
            texts.append(f"An attempt was wrong here:\n{wrong}\nSolve it without that mistake.")
        else:
            texts.append("")
    return texts

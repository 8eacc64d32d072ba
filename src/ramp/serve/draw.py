"""Drawing tokens on the host: what `decode/batch.py` does on a device, for other engines."""

import numpy as np

from ramp.decode.batch import (
    ALLOW_ALL,
    MAX_LOGPROBS,
    MIN_TEMPERATURE,
    DrawnTokens,
    count_words,
)
from ramp.decode.sample import SamplingParams
from ramp.serve.jobs import Job


def draw_token(logits_v: np.ndarray, position: int, job: Job) -> int:
    """A token by the settings of a job; draws are keyed by its seed, its number and the position.

    logits_v: float32 [V]. position: of the token, counted from the prompt's first.
    """
    logits_v = adjust_logits(logits_v, job)
    if job.sampling.temperature < MIN_TEMPERATURE:
        return int(np.argmax(logits_v))
    weight_v = weigh_tokens(logits_v, job.sampling)
    total_v = np.cumsum(weight_v, dtype=np.float64)
    # Philox is a counter turned into noise: equal keys and counters, equal draws.
    # In this dtype: a list of large numbers would be rounded to floats.
    key = np.array([job.seed % 2**64, job.number], np.uint64)
    philox = np.random.Philox(key=key, counter=position)
    share = np.random.Generator(philox).random()
    drawn = int(np.searchsorted(total_v, share * total_v[-1], side="right"))
    # Nothing is found where the numbers are not finite, which is told by the figures.
    return min(drawn, len(weight_v) - 1)


def weigh_tokens(logits_v: np.ndarray, sampling: SamplingParams) -> np.ndarray:
    """How likely each token is, 1 for the most likely, and 0 what the filters leave out."""
    x_v = (logits_v - logits_v.max()) / sampling.temperature
    count = int(sampling.top_k)
    if 0 < count < len(x_v):
        least = np.partition(x_v, -count)[-count]
        x_v = np.where(x_v >= least, x_v, -np.inf)
    p_v = np.exp(x_v)
    if sampling.top_p < 1:
        p_v = keep_top_mass(p_v, float(sampling.top_p))
    return np.where(p_v >= sampling.min_p, p_v, 0)


def keep_top_mass(p_v: np.ndarray, top_p: float) -> np.ndarray:
    """Set to 0 what has `top_p` of the mass of p_v, float32 [V], at strictly greater entries."""
    # Entries below this hold less than 1 - top_p together: few are left to sort.
    candidates = np.flatnonzero(p_v >= (1 - top_p) * p_v.sum() / len(p_v))
    # None: the numbers are not finite, which is told by the figures.
    if not len(candidates):
        return p_v
    order = candidates[np.argsort(-p_v[candidates], kind="stable")]
    sorted_n = p_v[order]
    before_n = np.cumsum(sorted_n) - sorted_n
    is_kept_n = before_n < top_p * p_v.sum()
    # Ties share their fate, and the most likely is always kept.
    least = sorted_n[max(1, np.count_nonzero(is_kept_n)) - 1]
    return np.where(p_v >= least, p_v, 0)


def adjust_logits(logits_v: np.ndarray, job: Job) -> np.ndarray:
    """The logits with a job's bias, without its penalties, and without what may not follow."""
    adjusted_v = logits_v
    if job.presence_penalty or job.frequency_penalty:
        counts_v = np.bincount(np.array(job.answer, np.int64), minlength=len(logits_v))
        adjusted_v = adjusted_v - job.frequency_penalty * counts_v
        adjusted_v = adjusted_v - job.presence_penalty * (counts_v > 0)
    if job.logit_bias:
        adjusted_v = adjusted_v.copy()
        adjusted_v[list(job.logit_bias)] += list(job.logit_bias.values())
    if job.constraint:
        allowed_w = np.full(count_words(len(logits_v)), ALLOW_ALL, np.int32)
        job.constraint.fill(allowed_w)
        bits_v = np.unpackbits(allowed_w.view(np.uint8), bitorder="little")[: len(logits_v)]
        adjusted_v = np.where(bits_v, adjusted_v, -np.inf)
    return adjusted_v


def describe_tokens(logits_nv: np.ndarray, token_n: np.ndarray, num_top: int) -> DrawnTokens:
    """The model's own figures of n tokens, as `batch.describe_tokens`."""
    shifted_nv = logits_nv - logits_nv.max(axis=1, keepdims=True)
    exp_nv = np.exp(shifted_nv)
    total_n = exp_nv.sum(axis=1)
    log_total_n = np.log(total_n)
    rows = np.arange(len(token_n))
    mean_n = np.einsum("nv,nv->n", exp_nv, shifted_nv) / total_n
    num_top = min(num_top, MAX_LOGPROBS, logits_nv.shape[1])
    # Each of these places gets what a sort would put there.
    places = np.arange(max(1, num_top))
    top_nk = np.argpartition(-shifted_nv, places, axis=1)[:, :num_top]
    return DrawnTokens(
        token_bn=token_n,
        logp_bn=shifted_nv[rows, token_n] - log_total_n,
        entropy_bn=log_total_n - mean_n,
        top_bnk=top_nk,
        top_logp_bnk=np.take_along_axis(shifted_nv, top_nk, axis=1) - log_total_n[:, None],
    )

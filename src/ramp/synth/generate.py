"""Samples that can be made again: one follows from weights, prompt, key and settings alone.

By default they are drawn at temperature 1 without truncation. A tail that is cut off here is gone
in the next generation.
"""

from collections.abc import Callable, Sequence

from ramp.config import Model
from ramp.decode import sample
from ramp.decode.sample import SamplingParams
from ramp.synth.prompts import Prompt, Sample

BATCH_SIZE = 64  # rows sampled at once


def generate_samples(
    c: Model,
    params: dict,
    prompts: Sequence[Prompt],
    key: int,
    n: int,
    sampling: SamplingParams,
    stop: tuple[int, ...],
    vocab_size: int,
    batch_size: int = BATCH_SIZE,
    check: Callable[[], None] = lambda: None,
) -> list[Sample]:
    """Up to n tokens after each prompt; sample i has the key `key` + i.

    params: of the language model alone. vocab_size: of the tokenizer. One prompt with the key in a
    ledger row makes that sample again: rows of a batch do not depend on each other. batch_size must
    be the same then, so that the same program runs. check: as of `sample.generate`.
    """
    keys = range(key, key + len(prompts))
    result = sample.generate(
        c,
        params,
        [prompt.ids for prompt in prompts],
        keys,
        sampling,
        n,
        stop=stop,
        vocab_size=vocab_size,
        batch_size=batch_size,
        check=check,
    )
    # Places after a row's end hold 0.
    logp_b = result.logps_bn.sum(axis=1)
    drawn = zip(prompts, keys, result.rows(), logp_b, strict=True)
    return [Sample(prompt, key, tuple(ids), float(logp)) for prompt, key, ids, logp in drawn]

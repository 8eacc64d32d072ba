"""What is asked of an engine: an answer to be generated, token by token."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Protocol

import numpy as np

from ramp.decode.batch import DrawnTokens
from ramp.decode.sample import SamplingParams


@dataclass(frozen=True)
class Token:
    """One token of an answer or of a prompt, with the model's own figures for it."""

    id: int
    logp: float | None = None  # None: the first of a prompt, which nothing predicts
    entropy: float = 0.0  # nats
    top: tuple[tuple[int, float], ...] = ()  # (id, log-probability), the most likely first
    forced: bool = False  # not drawn but inserted, as the result of a tool is
    start: int = 0  # where its text begins; set by `TextStream`


class Constraint(Protocol):
    """What an answer may be, token by token; `grammar.py` has one."""

    num_tokens: int | None  # of the whole answer, once nothing may follow
    failed_after: int | None  # tokens of the answer; what may follow them cannot be told

    def fill(self, allowed_w: np.ndarray) -> None:
        """Clear the bits of the tokens that may not come next; all are set."""

    def accept(self, id: int) -> None:
        """Go on behind a token that was allowed."""


@dataclass(eq=False)
class Job:
    """One answer to be generated, or a prompt to be told about."""

    prompt: tuple[int, ...]
    max_new_tokens: int  # prompt and answer together fit the context
    sampling: SamplingParams
    seed: int
    # Called with the new tokens and the finish reason: "", "stop", "length", "invalid" (the model's
    # numbers are not finite), "failed" (the constraint did) or "error" (the engine has died).
    emit: Callable[[list[Token], str], None]
    number: int = 0  # of the answer among those to one request: each has draws of its own
    logprobs: int = 0  # most likely tokens to report with each token
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    # From the answer so far to tokens that are inserted after it; usually none.
    insert: Callable[[Sequence[int]], list[int]] = lambda answer: []
    constraint: Constraint | None = None
    exact: bool = True  # never begins with what another job left in a slot
    scores_prompt: bool = False  # fill `prompt_tokens`
    embeds_prompt: bool = False  # fill `embedding`
    cancelled: bool = False
    started: float = field(default_factory=time.perf_counter)
    answer: list[int] = field(default_factory=list)
    num_cached: int = 0  # tokens of prompt and answer that are in its slot
    prompt_tokens: list[Token] = field(default_factory=list)
    embedding: np.ndarray | float = 0.0  # float32 [D], the sum of the prompt's last hidden states

    @cached_property
    def keeps_prompt(self) -> bool:
        """Whether every token of the prompt has to be read for this job itself."""
        return self.scores_prompt or self.embeds_prompt

    def has_figures_for(self, other: "Job") -> bool:
        """Whether what this job finds out of its prompt is what another wants of the same one."""
        if not other.keeps_prompt:
            return True
        # More tokens reported would do too, but must not be shown to who asked for fewer.
        mine, theirs = (
            (job.scores_prompt, job.embeds_prompt, job.logprobs) for job in (self, other)
        )
        return mine == theirs

    @property
    def num_unread(self) -> int:
        """Tokens that have to be read into its slot before more can be drawn."""
        return len(self.prompt) + len(self.answer) - self.num_cached


def read_token(drawn: DrawnTokens, at: tuple[int, ...], num_top: int) -> Token:
    """The token at one place of what the device gave, with its `num_top` most likely rivals."""
    top = zip(drawn.top_bnk[at].tolist(), drawn.top_logp_bnk[at].tolist(), strict=True)
    return Token(
        int(drawn.token_bn[at]),
        float(drawn.logp_bn[at]),
        float(drawn.entropy_bn[at]),
        tuple(islice(top, num_top)),
    )

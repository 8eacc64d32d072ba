"""What the model writes: continuations of prompts while it pretrains, answers once it can chat."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ramp.config import Config, Sample
from ramp.decode.sample import SamplingParams, generate
from ramp.errors import UserError
from ramp.rundir import RunDir
from ramp.tasks import tool
from ramp.text.chat import render_prompt
from ramp.text.demo_chats import Messages, exchange
from ramp.text.tokenizer import Tokenizer
from ramp.train.preemption import Preemption
from ramp.train.restore import load_params


@dataclass(frozen=True)
class Answer:
    """A question, asked in a conversation of its own, and what the model said."""

    question: str
    answer: str


@dataclass(frozen=True)
class SampleReport:
    """What report.json says: all questions and answers as one conversation."""

    conversation: Messages
    seconds: float


def sampling_params(s: Sample) -> SamplingParams:
    """The settings of the configuration as the sampler takes them."""
    return SamplingParams(s.temperature, s.top_k, s.top_p, s.min_p)


def check_lengths(rundir: RunDir, c: Config, tokenizer: Tokenizer) -> None:
    """Raise `UserError` where a question of the stage `sample` is longer than the context."""
    for question in c.sample.questions:
        prompt = render_prompt(tokenizer, exchange(question))
        require_room(c, "sample.questions", question, len(prompt))


def require_room(c: Config, key: str, text: str, num_tokens: int) -> None:
    """Raise `UserError` where a text of `key` takes more tokens than the context has."""
    if num_tokens > c.model.context_len:
        raise UserError(
            f"{key} holds a text of {num_tokens} tokens ({text[:40]!r}...), and model.context_len "
            f"is {c.model.context_len}; shorten it"
        )


def continue_prompts(
    c: Config, params: dict, tokenizer: Tokenizer, count: int, check: Callable[[], None]
) -> dict[str, str]:
    """The first `count` prompts of the configuration, each with itself and its continuation.

    `check` is called now and then; it may raise to end the call.
    """
    prompts = c.sample.prompts[:count]
    # As at the beginning of a document, which is where pretraining has seen such text.
    ids = [[tokenizer.bos, *tokenizer.encode(text)] for text in prompts]
    rows = _generate(c, params, tokenizer, (tokenizer.bos,), check, ids)
    pairs = zip(prompts, rows, strict=True)
    return {prompt: prompt + tokenizer.decode(row) for prompt, row in pairs}


def answer_questions(
    c: Config, params: dict, tokenizer: Tokenizer, count: int, check: Callable[[], None]
) -> list[Answer]:
    """Answers to the first `count` questions of the configuration, with the calculator.

    `check` is called now and then; it may raise to end the call.
    """
    questions = c.sample.questions[:count]
    prompts = [render_prompt(tokenizer, exchange(question)) for question in questions]
    # A model that begins another document has nothing more to say either.
    stop = tokenizer.stop_ids
    # Continues rows in one batch: those that called the calculator come again with the result.
    draw = partial(_generate, c, params, tokenizer, stop, check)
    max_tokens = c.sample.max_new_tokens
    rows = tool.generate_with_tool(tokenizer, prompts, draw, max_tokens, c.model.context_len)
    pairs = zip(questions, rows, strict=True)
    return [Answer(question, tokenizer.decode(row)) for question, row in pairs]


def _generate(
    c,
    params,
    tokenizer,
    stop: tuple[int, ...],
    check: Callable[[], None],
    prompts: list[list[int]],
) -> list[list[int]]:
    if not prompts:
        return []  # a configuration may have none, and the sampler wants at least one
    result = generate(
        c.model,
        params["lm"],
        prompts,
        # Every prompt has a seed of its own: the same text whatever stands beside it.
        range(c.seed, c.seed + len(prompts)),
        sampling_params(c.sample),
        c.sample.max_new_tokens,
        stop=stop,
        vocab_size=tokenizer.vocab_size,
        check=check,
    )
    # The stop token is part of a row, but nothing to show.
    return result.rows(without=stop)


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict[str, Any]:
    """Ask the fine-tuned model the questions of the configuration; prints the answers."""
    began = time.perf_counter()
    tokenizer = Tokenizer.load(rundir.tokenizer)
    params = load_params(rundir, "finetune", c, tokenizer)
    # All questions; training asks only the first few.
    count = len(c.sample.questions)
    with stop.together():
        answers = answer_questions(c, params, tokenizer, count, lambda: stop.check(0))
    conversation = []
    for answer in answers:
        print(f"\n> {answer.question}\n{answer.answer}")
        conversation += exchange(answer.question, answer.answer)
    return asdict(SampleReport(conversation, time.perf_counter() - began))

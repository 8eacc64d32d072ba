"""The model put to use: continuations of prompts while it pretrains, answers to questions once it can chat."""

import time
from collections.abc import Callable
from functools import partial

from ramp.config import Config, Sample
from ramp.decode import sample
from ramp.rundir import RunDir
from ramp.tasks import tool
from ramp.text.chat import render_prompt
from ramp.text.tokenizer import Tokenizer
from ramp.train.preemption import Preemption
from ramp.train.restore import load_params


def sampling_params(s: Sample) -> sample.SamplingParams:
    """The settings of the configuration as the sampler takes them."""
    return sample.SamplingParams(s.temperature, s.top_k, s.top_p, s.min_p)


def continue_prompts(
    c: Config, params: dict, tokenizer: Tokenizer, count: int, check: Callable[[], None]
) -> dict[str, str]:
    """Each of the first `count` prompts of the configuration with the model's continuation."""
    prompts = c.sample.prompts[:count]
    if not prompts:
        return {}
    ids = [[tokenizer.bos, *tokenizer.encode(text)] for text in prompts]
    drawn = _generate(c, params, ids, tokenizer, (tokenizer.bos,), check)
    return {text: text + tokenizer.decode(new) for text, new in zip(prompts, drawn, strict=True)}


def answer_questions(
    c: Config, params: dict, tokenizer: Tokenizer, count: int, check: Callable[[], None]
) -> list[dict[str, str]]:
    """The first `count` questions of the configuration, each asked in a conversation of its own."""
    questions = c.sample.questions[:count]
    if not questions:
        return []
    ids = [render_prompt(tokenizer, [{"role": "user", "content": q}]) for q in questions]
    stop = (tokenizer.end, tokenizer.bos)
    draw = partial(_generate, c, params, tokenizer=tokenizer, stop=stop, check=check)
    drawn = tool.generate_with_tool(
        tokenizer, ids, draw, c.sample.max_new_tokens, c.model.context_len
    )
    return [
        {"question": q, "answer": tokenizer.decode(new)}
        for q, new in zip(questions, drawn, strict=True)
    ]


def _generate(
    c: Config, params: dict, prompts: list, tokenizer: Tokenizer, stop: tuple, check: Callable
) -> list:
    result = sample.generate(
        c.model,
        params["lm"],
        prompts,
        range(c.seed, c.seed + len(prompts)),
        sampling_params(c.sample),
        c.sample.max_new_tokens,
        stop=stop,
        vocab_size=tokenizer.vocab_size,
        check=check,
    )
    return result.rows(without=stop)


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict:
    """Ask the fine-tuned model the questions of the configuration."""
    began = time.perf_counter()
    tokenizer = Tokenizer.load(rundir.tokenizer)
    params = load_params(rundir, "finetune", c, tokenizer)
    with stop:
        turns = answer_questions(
            c, params, tokenizer, len(c.sample.questions), lambda: stop.check(0)
        )
    for turn in turns:
        print(f"\n> {turn['question']}\n{turn['answer']}")
    talk = [m for t in turns for m in _messages(t)]
    return {"conversation": talk, "seconds": time.perf_counter() - began}


def _messages(turn: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": turn["question"]},
        {"role": "assistant", "content": turn["answer"]},
    ]

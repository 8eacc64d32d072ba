"""A run's greedy text in llama.cpp, from its export in float32, compared with ramp's own.

python -m experiments.serve.exports RUN STAGE
"""

import sys
import tempfile
from pathlib import Path

import jax

from ramp import config
from ramp.decode import sample
from ramp.decode.sample import SamplingParams
from ramp.host import setup_devices
from ramp.rundir import open_run
from ramp.serve.jobs import Job
from ramp.serve.llama import LlamaSlots, write_weights
from ramp.text.chat import render_prompt
from ramp.text.tokenizer import Tokenizer
from ramp.train.restore import load_params

TOKENS = 50
QUESTIONS = (
    "Tell me a joke.",
    "What is the capital of France?",
    "Once upon a time",
    "How do plants grow?",
    "Write about the sea.",
    "Count to ten.",
    "What is 3 + 4?",
    "Who are you?",
    "The old man",
    "Why is the sky blue?",
)


def continue_in_llama(slots: LlamaSlots, prompt: list[int], count: int) -> list[int]:
    """The `count` most likely tokens after a prompt, one after the other."""
    greedy = SamplingParams(temperature=0.0)
    job = Job(tuple(prompt), count, greedy, 0, lambda tokens, reason: None)
    while job.num_unread:
        slots.read(0, job)
    while len(job.answer) < count:
        job.answer.append(int(slots.draw({0: job}).token_bn[0, 0]))
        job.num_cached += 1
    return job.answer


def main(path: Path, stage: str) -> None:
    """Print how many of the answers are equal, token by token."""
    run, c = open_run(path)
    tokenizer = Tokenizer.load(run.tokenizer)
    c = config.replace(c, model=config.replace(c.model, dtype="float32"))
    c = setup_devices(c, stages=())
    lm = load_params(run, stage, c, tokenizer)["lm"]
    prompts = [render_prompt(tokenizer, [{"role": "user", "content": q}]) for q in QUESTIONS]
    greedy = SamplingParams(temperature=0.0)
    settings = {"vocab_size": tokenizer.vocab_size}
    seeds = range(len(prompts))
    answers = sample.generate(c.model, lm, prompts, seeds, greedy, TOKENS, **settings).rows()
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(path, stage, "f32", Path(folder))
        slots = LlamaSlots(weights, tokenizer.vocab_size, c.model.context_len, 1)
    num_equal = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        ours = [int(id) for id in jax.device_get(answer)]
        num_equal += continue_in_llama(slots, prompt, len(ours)) == ours
    print(f"{path}, {stage}: {num_equal} of {len(prompts)} greedy answers equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

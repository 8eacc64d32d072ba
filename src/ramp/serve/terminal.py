"""Talking to a trained model in the terminal: a streaming chat, or the continuation of one text."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ramp import config, rundir
from ramp.config import Config
from ramp.decode import sample
from ramp.errors import UserError
from ramp.evals.samples import sampling_params
from ramp.host import setup_devices
from ramp.rundir import RunDir
from ramp.text.chat import render_prompt
from ramp.text.tokenizer import StreamDecoder, Tokenizer
from ramp.train.restore import load_params

PIECE = 8  # tokens decoded between two looks at the screen


class TokenStreamer:
    """A model ready to speak: weights laid out for decoding, one row."""

    def __init__(self, run: RunDir, c: Config, stage: str, seed: int):
        self.c = setup_devices(replace(c, mesh=config.Mesh(data=1)), devices=1)
        self.tokenizer = Tokenizer.load(run.tokenizer)
        self.params = load_params(run, stage, self.c, self.tokenizer)["lm"]
        self.weights = sample.prepare_decode_params(self.c.model, self.params)
        self.seed = seed

    def stream(self, prompt: list[int], tokens: int, stop: tuple[int, ...]) -> Iterator[str]:
        """Text as it is drawn, whole characters at a time; ends at a stop token, after `tokens`, or when full."""
        decoder = StreamDecoder(self.tokenizer)
        m, sampling = self.c.model, sampling_params(self.c.sample)
        stream = sample.prefill_prompts(m, self.params, [prompt], [self.seed])
        self.seed += 1
        for _ in range(-(-tokens // PIECE)):
            stream = sample.decode(
                m, self.weights, stream, sampling, PIECE, stop, self.tokenizer.vocab_size
            )
            for token in np.asarray(stream.tokens_bn)[0].tolist():
                if token >= 0 and token not in stop:
                    yield decoder.push(token)
            if bool(stream.done_b[0]):
                break
        yield decoder.flush()


def complete(directory: Path, c: Config, prompt: str, stage: str, seed: int) -> None:
    """Print `prompt` and the model's continuation of it."""
    run, _ = rundir.open_run(directory)
    speaker = TokenStreamer(run, c, stage, seed)
    tokenizer = speaker.tokenizer
    ids = [tokenizer.bos, *tokenizer.encode(prompt)]
    _require_room(ids, speaker.c)
    print(prompt, end="", flush=True)
    for text in speaker.stream(ids, speaker.c.sample.max_new_tokens, (tokenizer.bos,)):
        print(text, end="", flush=True)
    print()


def chat(
    directory: Path,
    stage: str,
    seed: int,
    temperature: float | None = None,
    tokens: int | None = None,
    ask: list[str] | None = None,
) -> None:
    """Read questions, from `ask` or from standard input, and answer them; older turns are left out when room ends."""
    run, c = rundir.open_run(directory)
    s = c.sample
    s = replace(
        s,
        temperature=s.temperature if temperature is None else temperature,
        max_new_tokens=tokens or s.max_new_tokens,
    )
    c = config.check_config(replace(c, sample=s), "the command line")
    speaker = TokenStreamer(run, c, stage, seed)
    tokenizer = speaker.tokenizer
    stop = (tokenizer.end, tokenizer.bos)
    messages: list[dict[str, str]] = []
    for question in ask or _questions():
        messages.append({"role": "user", "content": question})
        messages, prompt = _fit(messages, speaker)
        if ask:
            print(f"> {question}")
        said = ""
        for text in speaker.stream(prompt, s.max_new_tokens, stop):
            print(text, end="", flush=True)
            said += text
        print(flush=True)
        messages.append({"role": "assistant", "content": said})


def _questions() -> Iterator[str]:
    tty = sys.stdin.isatty()
    if tty:
        print("Ask something; an empty line or Ctrl-D ends the chat.", file=sys.stderr)
    while True:
        try:
            question = input("> " if tty else "").strip()
        except EOFError:
            return
        if not question:
            return
        yield question


def _fit(
    messages: list[dict[str, str]], speaker: TokenStreamer
) -> tuple[list[dict[str, str]], list[int]]:
    """The latest turns that leave a quarter of the context for the answer, and their tokens."""
    room = speaker.c.model.context_len * 3 // 4
    while True:
        prompt = render_prompt(speaker.tokenizer, messages)
        if len(prompt) <= room:
            return messages, prompt
        if len(messages) <= 1:
            raise UserError(
                f"the question is {len(prompt)} tokens long, and a context of {speaker.c.model.context_len} has room for {room}; "
                "ask something shorter"
            )
        messages = messages[2:]


def _require_room(ids: list[int], c: Config) -> None:
    if len(ids) >= c.model.context_len:
        raise UserError(
            f"the prompt is {len(ids)} tokens long, and the model's context is {c.model.context_len}; shorten the prompt"
        )

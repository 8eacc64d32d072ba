"""A trained model in the terminal: a streaming chat, or the continuation of one text."""

import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ramp import config, rundir
from ramp.config import Config
from ramp.decode import sample
from ramp.decode.params import prepare_decode_params
from ramp.errors import UserError
from ramp.evals.samples import sampling_params
from ramp.host import setup_devices
from ramp.rundir import RunDir
from ramp.serve.jobs import Token
from ramp.serve.protocol import drop_oldest_turns
from ramp.serve.text_stream import TextStream
from ramp.tasks import tool
from ramp.text.chat import render_prompt
from ramp.text.tokenizer import Tokenizer
from ramp.train.processes import is_writer, share, to_host
from ramp.train.restore import load_params

CHUNK = 8  # tokens decoded before they are shown


class TextStreamer:
    """A loaded model that generates one text at a time, on one device of each process."""

    def __init__(self, run: RunDir, c: Config, stage: str, seed: int):
        # One text at a time gains nothing from more devices.
        self.c = setup_devices(c, one_each=True, stages=())
        self.tokenizer = Tokenizer.load(run.tokenizer)
        self.params = load_params(run, stage, self.c, self.tokenizer)["lm"]
        # Decoding reads its own layout at every token; reading prompts takes the original.
        self.weights = prepare_decode_params(self.c.model, self.params)
        self.seed = seed

    def print_stream(self, prompt: list[int], stop: tuple[int, ...]) -> list[int]:
        """Print text while it is drawn, whole characters at a time; returns its tokens.

        Ends at a stop token, after `sample.max_new_tokens`, or with the context. Calls of the
        calculator get their results, as in the server.
        """
        stream = TextStream(self.tokenizer)
        answer: list[int] = []
        is_open = True
        while is_open:
            is_open = False
            # Every process draws the same on its device.
            prompts = [prompt + answer] * self.c.mesh.replica
            seeds = [self.seed] * self.c.mesh.replica
            state = sample.prefill_prompts(self.c.model, self.params, prompts, seeds)
            self.seed += 1  # or every answer to one question would be the same
            # They are drawn in chunks, of which the last may hold too many.
            limit = self.c.sample.max_new_tokens - len(answer)
            for token in islice(self._draw(state, stop, limit), limit):
                new = [token, *tool.reply(self.tokenizer, [*answer, token])]
                answer += new
                self._print(stream, new)
                # Behind a result the model reads on; what it had drawn after the call is left.
                if len(new) > 1:
                    is_open = len(answer) < self.c.sample.max_new_tokens
                    is_open &= len(prompt + answer) < self.c.model.context_len
                    break
        self._print(stream, [], ended=True)
        self.show("\n")
        return answer

    def show(self, text: str) -> None:
        """Print it, in one process."""
        if is_writer():
            print(text, end="", flush=True)

    def _draw(self, state, stop, limit):
        """Tokens of one row, up to a stop token, as they are drawn."""
        sampling = sampling_params(self.c.sample)
        size = self.tokenizer.vocab_size
        for _ in range(0, limit, CHUNK):
            state = sample.decode(self.c.model, self.weights, state, sampling, CHUNK, stop, size)
            # -1 fills the row after its end.
            tokens = to_host(state.tokens_bn)[0].tolist()
            yield from (token for token in tokens if token >= 0 and token not in stop)
            if to_host(state.done_b)[0]:
                return

    def _print(self, stream, ids, ended=False):
        text, _ = stream.push([Token(i, 0.0, 0.0) for i in ids], ended)
        self.show(text)


def complete(directory: Path, c: Config, prompt: str, stage: str, seed: int) -> None:
    """Print `prompt` and the model's continuation of it."""
    run, _ = rundir.open_run(directory)
    streamer = TextStreamer(run, c, stage, seed)
    tokenizer = streamer.tokenizer
    context_len = streamer.c.model.context_len
    ids = tokenizer.encode_prompt(prompt)
    if len(ids) >= context_len:
        raise UserError(
            f"the prompt is {len(ids)} tokens long, and the model's context is {context_len}; "
            "shorten the prompt"
        )
    streamer.show(prompt)
    streamer.print_stream(ids, (tokenizer.bos,))


def chat(
    directory: Path,
    stage: str,
    seed: int,
    temperature: float | None = None,
    tokens: int | None = None,
    ask: list[str] | None = None,
) -> None:
    """Answer questions, from `ask` or from standard input; old turns are dropped when room ends.

    temperature, tokens: in place of what the run's configuration says.
    """
    run, c = rundir.open_run(directory)
    settings = c.sample
    if temperature is not None:
        settings = replace(settings, temperature=temperature)
    if tokens is not None:
        settings = replace(settings, max_new_tokens=tokens)
    # A mistake is named before the model is loaded.
    c = config.check_config(replace(c, sample=settings), "the command line")
    streamer = TextStreamer(run, c, stage, seed)
    stop = streamer.tokenizer.stop_ids
    messages = []
    # Typed in one process, heard in all.
    typed = _read_questions()
    for question in ask or iter(lambda: share(lambda: next(typed, None)), None):
        messages.append({"role": "user", "content": question})
        messages, prompt = _fit_context(messages, streamer)
        # Typed questions are on the screen already.
        if ask:
            streamer.show(f"> {question}\n")
        answer = streamer.print_stream(prompt, stop)
        # Calls go back in the form that training knew.
        said = tool.write_calls(streamer.tokenizer, answer)
        messages.append({"role": "assistant", "content": said})


def _read_questions():
    """Lines of standard input, up to an empty one."""
    is_terminal = sys.stdin.isatty()
    # Piped input gets answers only, so that they can be piped on.
    if is_terminal:
        print("Ask something; an empty line or Ctrl-D ends the chat.", file=sys.stderr)
    while True:
        try:
            question = input("> " if is_terminal else "").strip()
        except EOFError:
            return
        if not question:
            return
        yield question


def _fit_context(messages, streamer):
    """The latest turns that leave a quarter of the context for the answer, and their tokens."""
    tokenizer = streamer.tokenizer
    context_len = streamer.c.model.context_len
    # A long question must not leave the answer without room.
    room = context_len * 3 // 4
    messages = drop_oldest_turns(messages, room, tokenizer)
    prompt = render_prompt(tokenizer, messages, tool.encode_with_calls)
    if len(prompt) > room:
        raise UserError(
            f"the question is {len(prompt)} tokens long, and a context of {context_len} "
            f"has room for {room}; ask something shorter"
        )
    return messages, prompt

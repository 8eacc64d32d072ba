"""Slots of llama.cpp, on the processor, for an `Engine`.

XLA multiplies a few rows by large matrices slowly on a CPU and knows no products of integers;
llama.cpp does both well. The model is exported to GGUF, rounded to fewer bits by llama.cpp's own
quantiser, and then everything above this file is the same: queue, API, page.

Tokens are drawn by `draw.py`, not by llama.cpp's samplers, so settings mean what they mean
elsewhere in ramp and a seed gives the same draws whoever else is served. The sums behind them may
differ in company: llama.cpp multiplies one row by another routine than many.
"""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np

from ramp.decode.batch import DrawnTokens
from ramp.decode.sample import SamplingParams
from ramp.errors import UserError
from ramp.serve.draw import describe_tokens, draw_token
from ramp.serve.jobs import Job, Token, read_token
from ramp.text.engine import count_cores

CHUNK_TOKENS = 128  # of a prompt, read at a time


@llama_cpp.llama_log_callback
def _ignore_log(level, text, data):
    """Say nothing: llama.cpp writes pages about every model it opens."""


def write_weights(run: Path, stage: str, kind: str, folder: Path) -> Path:
    """Export a stage of a run to `folder` as a GGUF file whose matrices are of one kind.

    UserError: llama.cpp has no model like this one, or the export failed, which has said why.
    """
    whole = folder / "whole.gguf"
    # In a process of its own, which gives back the memory that this takes.
    command = [sys.executable, "-m", "ramp", "export", str(run), "--stage", stage]
    command += ["--to", "gguf", "--out", str(whole)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UserError(
            "this model cannot be exported for llama.cpp, as is said above; "
            "serve it without --engine llama.cpp"
        )
    if kind == "f32":
        return whole
    llama_cpp.llama_log_set(_ignore_log, None)
    rounded = folder / f"{kind}.gguf"
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    paths = str(whole).encode(), str(rounded).encode()
    if llama_cpp.llama_model_quantize(*paths, ctypes.byref(settings)):
        raise UserError(f"llama.cpp cannot round this model to {kind}; try --weights bf16")
    whole.unlink()
    return rounded


def can_repack(path: Path) -> bool:
    """Whether this machine runs the layouts that llama.cpp likes best for weights.

    Some virtual machines offer AMX and then end a process that uses it: another process tries.
    """
    done = subprocess.run([sys.executable, "-m", "ramp.serve.llama", str(path)], check=False)
    return not done.returncode


class LlamaSlots:
    """Sequences of one llama.cpp context; `Slots` says what each call does."""

    def __init__(
        self,
        path: Path,
        vocab_size: int,
        context_len: int,
        slots: int = 16,
        repack: bool = False,
    ):
        llama_cpp.llama_log_set(_ignore_log, None)
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.use_extra_bufts = repack
        # The context needs the model: it must live as long.
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot open {path}, which ramp has written")
        settings = llama_cpp.llama_context_default_params()
        # One more than there are slots, which stays clean (`clear`); the room is split evenly.
        settings.n_seq_max = slots + 1
        settings.n_ctx = (slots + 1) * context_len
        settings.n_batch = settings.n_ubatch = max(CHUNK_TOKENS, slots)
        # They wait for each other without sleeping, so one more than there are cores free would
        # keep all of them waiting: one is for the rest of the server.
        num_threads = max(1, count_cores() - 1)
        settings.n_threads = settings.n_threads_batch = num_threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise UserError(
                f"there is no memory for {slots} slots of {context_len} tokens; give fewer --slots"
            )
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)
        self.slots = slots
        self.size = context_len
        self.vocab_size = vocab_size
        self.width = llama_cpp.llama_model_n_embd(self.model)
        self.logits_bv = np.zeros((slots, vocab_size), np.float32)
        self.reset()

    is_grown = False  # a slot has all its room from the beginning

    def enter_thread(self) -> None:
        """Nothing: llama.cpp may be called from any thread."""

    def wait(self) -> None:
        """Nothing: every call has ended when it returns."""

    def reset(self) -> None:
        """Forget all sequences."""
        llama_cpp.llama_memory_clear(self.memory, True)
        self.num_read = [0] * self.slots  # tokens in the context's memory, by slot
        self.drawn = {}  # by slot, a token that is not in the memory yet

    def warm_up(self, report: Callable[[str], None]) -> DrawnTokens:
        """Read the weights from the disk, by use."""
        report("reading the weights")
        job = Job((0,), 1, SamplingParams(temperature=0.0), 0, lambda tokens, reason: None)
        self.read(0, job)
        return self.draw({0: job})

    def read(self, slot: int, job: Job) -> int:
        """Read the next chunk of a job's tokens into its slot, and return how many are new."""
        ids = (*job.prompt, *job.answer)
        # A token that was drawn counts as read, but is read only now.
        self.drawn.pop(slot, None)
        start = min(job.num_cached, self.num_read[slot])
        end = min(start + CHUNK_TOKENS, len(ids))
        llama_cpp.llama_memory_seq_rm(self.memory, slot, start, -1)
        wants_all = job.scores_prompt or job.embeds_prompt
        is_last = np.arange(start, end) == len(ids) - 1
        llama_cpp.llama_set_embeddings(self.context, job.embeds_prompt)
        self._decode(ids[start:end], range(start, end), [slot] * (end - start), is_last | wants_all)
        if job.scores_prompt:
            self._score(job, start, end)
        if job.embeds_prompt:
            places = range(job.num_cached - start, end - start)
            job.embedding = job.embedding + sum(self._hidden(place) for place in places)
        llama_cpp.llama_set_embeddings(self.context, False)
        if end == len(ids):
            self.logits_bv[slot] = self._logits(end - start - 1)
        self.num_read[slot] = end
        num_new = end - job.num_cached
        job.num_cached = end
        return num_new

    def copy(self, source: int, slot: int, job: Job) -> None:
        """Give slot `slot` what `source` has read, for a job with the same prompt."""
        llama_cpp.llama_memory_seq_rm(self.memory, slot, -1, -1)
        llama_cpp.llama_memory_seq_cp(self.memory, source, slot, -1, -1)
        self.logits_bv[slot] = self.logits_bv[source]
        self.num_read[slot] = self.num_read[source]
        self.drawn.pop(slot, None)
        job.num_cached = len(job.prompt)

    def clear(self, slot: int) -> None:
        """Overwrite what a slot has read; forgotten, it would still be there behind the mask."""
        llama_cpp.llama_memory_seq_cp(self.memory, self.slots, slot, -1, -1)
        llama_cpp.llama_memory_seq_rm(self.memory, slot, -1, -1)
        self.num_read[slot] = 0

    def draw(self, jobs: dict[int, Job]) -> DrawnTokens:
        """Draw one token for each of the jobs, by slot."""
        # llama.cpp takes sequences together only where their numbers follow each other.
        self._read_drawn(sorted(slot for slot in jobs if slot in self.drawn))
        token_b = np.zeros(self.slots, np.int64)
        for slot, job in jobs.items():
            token_b[slot] = draw_token(self.logits_bv[slot], len(job.prompt) + len(job.answer), job)
            self.drawn[slot] = int(token_b[slot])
            if job.constraint:
                job.constraint.accept(self.drawn[slot])
        slots = list(jobs)
        num_top = max(job.logprobs for job in jobs.values())
        figures = describe_tokens(self.logits_bv[slots], token_b[slots], num_top)

        def spread(values_n):
            # A row for every slot, and an axis for the round's only token.
            values_b = np.zeros((self.slots, *values_n.shape[1:]), values_n.dtype)
            values_b[slots] = values_n
            return values_b[:, None]

        return DrawnTokens(**{name: spread(values) for name, values in vars(figures).items()})

    def _read_drawn(self, slots):
        """Read the tokens that were drawn last, all in one step."""
        if not slots:
            return
        ids = [self.drawn.pop(slot) for slot in slots]
        places = [self.num_read[slot] for slot in slots]
        self._decode(ids, places, slots, np.ones(len(slots), bool))
        for row, slot in enumerate(slots):
            self.num_read[slot] += 1
            self.logits_bv[slot] = self._logits(row)

    def _decode(self, ids, places, slots, wanted):
        """One step of llama.cpp; `wanted` says of which tokens logits are kept."""
        count = len(ids)
        batch = self.batch
        batch.n_tokens = count
        for field, values in ((batch.token, ids), (batch.pos, places), (batch.logits, wanted)):
            np.ctypeslib.as_array(field, (count,))[:] = values
        for i, slot in enumerate(slots):
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = slot
        code = llama_cpp.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode failed with code {code}")

    def _logits(self, row):
        """Logits [V] behind one token of the latest step, until the next one."""
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        return np.ctypeslib.as_array(logits, (self.vocab_size,))

    def _hidden(self, row):
        """The last hidden state [D] of one token of the latest step."""
        hidden = llama_cpp.llama_get_embeddings_ith(self.context, row)
        return np.ctypeslib.as_array(hidden, (self.width,)).copy()

    def _score(self, job, start, end):
        """Figures of the prompt's tokens after those at start .. end, but for those known."""
        job.prompt_tokens = job.prompt_tokens or [Token(job.prompt[0])]
        for place in range(job.num_cached, min(end, len(job.prompt) - 1)):
            following = np.array([job.prompt[place + 1]])
            figures = describe_tokens(self._logits(place - start)[None], following, job.logprobs)
            job.prompt_tokens.append(read_token(figures, (0,), job.logprobs))


if __name__ == "__main__":  # see `can_repack`
    slots = LlamaSlots(Path(sys.argv[1]), 1, 2 * CHUNK_TOKENS, 1, repack=True)
    job = Job((0,) * CHUNK_TOKENS, 1, SamplingParams(temperature=0.0), 0, lambda tokens, why: None)
    slots.read(0, job)
    slots.draw({0: job})

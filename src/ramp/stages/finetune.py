"""Fine-tuning to chat: the same loss, on the assistant's tokens of packed conversations only."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ramp.config import Config
from ramp.errors import UserError
from ramp.evals import bpb, samples
from ramp.model.loss import chance_loss, next_token_loss
from ramp.reporting.metrics import MetricWriter
from ramp.rundir import RunDir
from ramp.stages.rehearsal import choose_prompts, make_rehearsal
from ramp.stages.trials import TrialRunner, render_solved_problems, require_mistakes
from ramp.tasks import tool
from ramp.text import chat
from ramp.text.corpus import split_of
from ramp.text.demo_chats import Messages
from ramp.text.rows import ArrayRows, Batches
from ramp.text.sources import list_files
from ramp.text.tokenizer import Tokenizer
from ramp.train.preemption import Preemption
from ramp.train.processes import is_writer, on_writer
from ramp.train.restore import hash_arrays, load_start
from ramp.train.state import eval_params
from ramp.train.trainer import Trainer


def check_lengths(rundir: RunDir, c: Config, tokenizer: Tokenizer) -> None:
    """Raise `UserError` where conversations or problems do not fit; quick where they do."""
    TrialRunner(rundir, c, tokenizer)
    if c.finetune.num_samples:
        samples.check_lengths(rundir, c, tokenizer)
    if c.chat.own_answers:
        choose_prompts(c, tokenizer)
    problems = sum(1 for _ in render_solved_problems(c, tokenizer))
    counts: Counter = Counter()
    if problems and not c.chat.sources:
        pack_rows(c, tokenizer)
        return
    missing = {"val"} if problems else {"train", "val"}
    for split, _ in render_conversations(c, tokenizer, counts):
        missing.discard(split)
        if not missing:
            return
    raise _describe_none(min(missing), c, counts)


def hash_own_files(c: Config) -> str:
    """Of the conversations."""
    return hash_sources(c.chat.sources)


def hash_sources(sources: Sequence[str]) -> str:
    """A hash of the files that sources name by path; empty: there are none."""
    # What is elsewhere, or is of a package, is not the user's to edit.
    own = [s for s in sources if not s.startswith(("pip:", "@")) and "://" not in s]
    digest = hashlib.sha256()
    for source in own:
        for file in list_files(source).files:
            with Path(file.path).open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest() if own else ""


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict[str, Any]:
    """Train from the weights of pretraining, or resume; return what the report shows."""
    began = time.perf_counter()
    t = c.finetune
    tokenizer = Tokenizer.load(rundir.tokenizer)
    trials = TrialRunner(rundir, c, tokenizer)
    own = make_rehearsal(rundir, c, tokenizer, stop) if c.chat.own_answers else None
    rows, counts = pack_rows(c, tokenizer, own)
    if is_writer():
        for split, packed in rows.items():
            packed.save(rundir.data / f"chat_{split}.npz", tokenizer.fingerprint)
    measure = bpb.make_bits_per_byte(c, rows["val"], tokenizer)
    print_counts(c, rows, counts)

    def evaluate(
        params: dict, step: int, writer: MetricWriter, stop: Preemption
    ) -> dict[str, float]:
        values = {}
        for name, value in asdict(measure(params, stop)).items():
            values[f"eval/chat_{name.removeprefix('val_')}"] = value
        turns = samples.answer_questions(
            c, params, tokenizer, t.num_samples, lambda: stop.check(step)
        )
        for turn in turns:
            writer.text(step, f"chat/{turn.question}", turn.answer)
        return values | trials(params, step, writer, stop)

    trainer = Trainer(
        name="finetune",
        c=c,
        t=t,
        loss=next_token_loss(c.model, t.z_loss),
        batches=Batches(rows["train"], t.batch_size, c.seed),
        tokenizer=tokenizer,
        data=hash_arrays(vars(rows["train"])),
        chance=chance_loss(c.model),
    )
    start = partial(load_start, rundir, "pretrain", c, tokenizer)
    state, report = trainer.train(rundir, start, evaluate, "eval/chat_nats", stop)
    with stop.together():
        final = measure(eval_params(state), stop)
    nats = final.val_nats
    print(f"finetune: {nats:.4f} nats per assistant token on held-out conversations")
    result = report.to_dict() | {"chat_nats": nats} | (on_writer(trials.end) or {})
    result |= {"counts": dict(counts), "rows": len(rows["train"]), "mistakes": require_mistakes(c)}
    # Packing and trials count too, so this is more than the trainer's own seconds.
    return result | {"seconds": time.perf_counter() - began}


def print_counts(c: Config, rows: dict[str, ArrayRows], counts: Counter) -> None:
    """Say what became of the conversations: none is dropped in silence."""
    size = f"{len(rows['train']):,} rows of {c.finetune.seq_len}"
    parts = [
        f"{counts['rendered']:,} conversations in {size}",
        f"{counts['cut']} cut at a turn, {counts['too_long']} too long and skipped",
        f"{counts['loss_tokens']:,} tokens carry loss",
    ]
    if c.chat.tasks:
        parts.insert(2, f"{counts['problems']:,} solved problems")
    print(f"finetune: {'; '.join(parts)}")
    for line in require_mistakes(c):
        print(f"finetune: taught wrong on purpose, {line}")


def pack_rows(
    c: Config, tokenizer: Tokenizer, own: list[tuple[str, Messages]] | None = None
) -> tuple[dict[str, ArrayRows], Counter]:
    """Return rows of `finetune.seq_len` tokens by split, and counts of what became of what.

    own: (id, messages) to train on instead of the conversations of `chat.sources`.

    Conversations of all sources are split by a hash of their ids. Solved problems of `chat.tasks`
    are for training only, since the trials hold out others; beside own answers, or without any
    conversations, they are split too.
    """
    seq_len = c.finetune.seq_len
    counts: Counter = Counter()
    rendered: dict[str, list] = {"train": [], "val": []}
    for split, conversation in render_conversations(c, tokenizer, counts, own):
        rendered[split].append(conversation)
    problems = list(render_solved_problems(c, tokenizer))
    counts["problems"] += len(problems)
    counts["loss_tokens"] += sum(sum(weights) for _, weights in problems)
    # Own answers alone would call the model best that has learned nothing yet.
    is_split = own is not None or not c.chat.sources
    for problem in problems:
        split = _split_problem(tokenizer, problem, c) if is_split else "train"
        rendered[split].append(problem)
    for split, conversations in rendered.items():
        if not conversations:
            raise _describe_none(split, c, counts)
    rows = {split: chat.pack(talks, seq_len, tokenizer.pad) for split, talks in rendered.items()}
    return rows, counts


def _split_problem(tokenizer, problem, c):
    return split_of(tokenizer.decode(problem[0]), c.chat.val_fraction)


def render_conversations(
    c: Config, tokenizer: Tokenizer, counts: Counter, own: list[tuple[str, Messages]] | None = None
) -> Iterator[tuple[str, tuple[list[int], list[int]]]]:
    """(split, (ids, loss weights)) of the conversations that fit into a row; adds to `counts`.

    own: (id, messages), instead of those of `chat.sources`.
    """
    # One token more than a row: the last one is a target only.
    length = c.finetune.seq_len + 1
    of_sources = (
        talk for source in c.chat.sources for talk in chat.conversations(source, counts, c.seed)
    )
    for talk in of_sources if own is None else own:
        split = split_of(talk[0], c.chat.val_fraction)
        for fitting in chat.render_all(tokenizer, [talk], length, counts, tool.encode_with_calls):
            yield split, fitting


def _describe_none(split, c: Config, counts: Counter) -> UserError:
    return UserError(
        f"no conversation of the {split} split fits into rows of {c.finetune.seq_len} tokens "
        f"({counts['too_long']} are too long); add conversations, or raise finetune.seq_len"
    )

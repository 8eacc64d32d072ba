"""Fine-tuning to chat: the same loss, on the assistant's tokens of packed conversations only."""

import time
from collections import Counter
from dataclasses import asdict

import jax

from ramp.config import Config
from ramp.errors import UserError
from ramp.evals import bpb, samples
from ramp.model.loss import next_token_loss
from ramp.rundir import RunDir
from ramp.stages.trials import TrialRunner, solved_conversations
from ramp.tasks import tool
from ramp.text import chat
from ramp.text.corpus import split_of
from ramp.text.rows import ArrayRows, Batches
from ramp.text.tokenizer import Tokenizer
from ramp.train import common
from ramp.train.preemption import Preemption
from ramp.train.state import eval_params


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict:
    began = time.perf_counter()
    tokenizer = Tokenizer.load(rundir.tokenizer)
    trials = TrialRunner(rundir, c, tokenizer)
    rows, counts = pack_rows(c, tokenizer)
    for split, packed in rows.items() if jax.process_index() == 0 else ():
        packed.save(rundir.data / f"chat_{split}.npz", tokenizer.fingerprint)
    loss_nats = bpb.make_bits_per_byte(c, rows["val"], tokenizer)
    print(
        f"finetune: {counts['rendered']:,} conversations in {len(rows['train']):,} rows of {c.finetune.seq_len}; "
        f"{counts['cut']} cut at a turn, {counts['too_long']} too long and skipped; "
        + (f"{counts['problems']:,} solved problems; " if c.chat.tasks else "")
        + f"{counts['loss_tokens']:,} tokens bear loss"
    )

    def figures(params, step, board, stop) -> dict[str, float]:
        values = {
            f"eval/chat_{name.removeprefix('val_')}": value
            for name, value in asdict(loss_nats(params, stop)).items()
        }
        for turn in samples.answer_questions(
            c, params, tokenizer, c.finetune.num_samples, lambda: stop.check(step)
        ):
            board.text(step, f"chat/{turn['question']}", turn["answer"])
        return values | trials(params, step, board, stop)

    stage = common.Trainer(
        name="finetune",
        c=c,
        t=c.finetune,
        loss=next_token_loss(c.model, c.finetune.z_loss),
        batches=Batches(rows["train"], c.finetune.batch_size, c.seed),
        tokenizer=tokenizer,
    )
    state, report = stage.train(
        rundir,
        lambda: common.load_params(rundir, "pretrain", c, tokenizer),
        figures,
        "eval/chat_nats",
        stop,
    )
    with stop:
        final = loss_nats(eval_params(state), stop)
    print(f"finetune: {final.val_nats:.4f} nats per assistant token on held-out conversations")
    counted = trials.end() | {"counts": dict(counts), "rows": len(rows["train"])}
    return (
        report | {"chat_nats": final.val_nats} | counted | {"seconds": time.perf_counter() - began}
    )


def pack_rows(c: Config, tokenizer: Tokenizer) -> tuple[dict[str, ArrayRows], Counter]:
    """Conversations of all sources, split by a hash of their ids, in rows of `finetune.seq_len` tokens."""
    counts: Counter = Counter()
    by_split: dict[str, list] = {"train": [], "val": []}
    for source in c.chat.sources:
        for doc_id, messages in chat.conversations(source, counts, c.seed):
            by_split[split_of(doc_id, c.chat.val_fraction)].append((doc_id, messages))
    seq = c.finetune.seq_len
    rendered = {
        split: list(chat.render_all(tokenizer, talks, seq + 1, counts, tool.encode_with_calls))
        for split, talks in by_split.items()
    }
    problems = list(solved_conversations(c, tokenizer))
    counts.update(problems=len(problems), loss_tokens=sum(sum(weights) for _, weights in problems))
    rendered["train"] += problems
    for split, talks in rendered.items():
        if not talks:
            raise UserError(
                f"no conversation of the {split} split fits into rows of {seq} tokens ({counts['too_long']} are too long); "
                "add conversations, or raise finetune.seq_len"
            )
    return {
        split: chat.pack(talks, seq, tokenizer.pad) for split, talks in rendered.items()
    }, counts

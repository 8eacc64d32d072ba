"""Own answers of a model, which fine-tuning rehearses so that it does not forget.

A model that is taught one task alone soon does that task whatever it is asked, and the loss does
not show it. Among its lessons go its own answers from before, to questions of `chat.sources`
(self-synthesized rehearsal, Huang et al. 2024, arXiv:2403.01244). Answers of others would teach
their style instead.
"""

import heapq
from collections import Counter

from ramp.config import Config
from ramp.decode.sample import SamplingParams, generate
from ramp.errors import UserError
from ramp.files import read_whole_jsonl, to_line, write_atomic
from ramp.rundir import RunDir
from ramp.text import chat
from ramp.text.demo_chats import Messages
from ramp.text.tokenizer import Tokenizer
from ramp.train.preemption import Preemption
from ramp.train.processes import is_writer, on_writer, share
from ramp.train.restore import load_start

BATCH_SIZE = 32
MAX_NEW_TOKENS = 160  # of an answer


def make_rehearsal(
    rundir: RunDir, c: Config, tokenizer: Tokenizer, stop: Preemption
) -> list[tuple[str, Messages]]:
    """(id, messages) of `chat.own_answers` conversations, answered by the model of the start.

    They are kept in data/own_answers.jsonl, which a stage that is resumed reads again.
    """
    file = rundir.data / "own_answers.jsonl"

    def is_resumed():
        # Before the first step is saved, what is asked for may still change.
        steps = rundir.checkpoints("finetune").glob("[0-9]*")
        return file.exists() and any(steps)

    # One process looks, since the others may have a disk of their own.
    if share(is_resumed):
        return share(lambda: [(row["id"], row["messages"]) for row in read_whole_jsonl(file)])
    prompts = choose_prompts(c, tokenizer)
    lm = load_start(rundir, "pretrain", c, tokenizer)["lm"]
    with stop.together():
        result = generate(
            c.model,
            lm,
            [ids for _, _, ids in prompts],
            range(c.seed, c.seed + len(prompts)),
            SamplingParams(1.0),  # as it speaks: a colder one would narrow it
            longest_answer(c),
            stop=tokenizer.stop_ids,
            vocab_size=tokenizer.vocab_size,
            batch_size=BATCH_SIZE,
            check=lambda: stop.check(0),
        )
    answered = []
    for (talk, messages, _), row in zip(prompts, result.rows(), strict=True):
        text = tokenizer.decode(row[:-1]).strip()
        # Half an answer would teach to break off, an empty one to say nothing.
        if text and row[-1] in tokenizer.stop_ids:
            answered.append((talk, [*messages, {"role": "assistant", "content": text}]))
    if not answered:
        raise UserError(
            f"none of {len(prompts)} own answers ended within {longest_answer(c)} tokens: this "
            "model does not chat yet; set chat.own_answers to 0"
        )
    if is_writer():
        print(
            f"finetune: rehearses {len(answered)} own answers; {len(prompts) - len(answered)} did "
            f"not end within {longest_answer(c)} tokens or were empty"
        )
    lines = [to_line({"id": talk, "messages": messages}) for talk, messages in answered]
    on_writer(lambda: write_atomic(file, "".join(lines)))
    return answered


def longest_answer(c: Config) -> int:
    """Tokens of an answer; what has not ended by then is not rehearsed."""
    return min(MAX_NEW_TOKENS, 2 * c.finetune.seq_len // 3)


def choose_prompts(c: Config, tokenizer: Tokenizer) -> list[tuple[str, Messages, list[int]]]:
    """(id, messages, token ids) of `chat.own_answers` conversations up to their first question.

    The same ones whatever the order of the sources. Raises UserError where none fits.
    """
    room = c.finetune.seq_len - longest_answer(c)
    found = {}
    for source in c.chat.sources:
        for talk, messages in chat.conversations(source, Counter(), c.seed):
            asked = next((i for i, m in enumerate(messages) if m["role"] == "user"), None)
            if asked is None:
                continue
            opening = messages[: asked + 1]
            ids = chat.render_prompt(tokenizer, opening)
            question = opening[-1]["content"]
            # Of one question in two conversations the one with the smaller id.
            if len(ids) <= room and (question not in found or talk < found[question][0]):
                found[question] = talk, opening, ids
    if not found:
        raise UserError(
            f"chat.own_answers has no question of at most {room} tokens to answer; "
            "name conversations in chat.sources, or raise finetune.seq_len"
        )
    return heapq.nsmallest(c.chat.own_answers, found.values(), key=lambda prompt: prompt[0])

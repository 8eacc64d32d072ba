"""Preferences: pairs of answers to one prompt, of which people chose one, as rows for training."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ramp.errors import UserError
from ramp.text import corpus
from ramp.text.chat import Messages, check_messages, pack, render
from ramp.text.corpus import Bad
from ramp.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pairs:
    """N pairs of conversations that share their prompt; the preferred one is first on axis 1."""

    tokens: np.ndarray  # int32 [N, 2, T]
    targets: np.ndarray  # int32 [N, 2, T]
    mask: np.ndarray  # float32 [N, 2, T]: 1 where the target is an assistant's token
    weights: np.ndarray  # float32 [N]: 1, since a step counts pairs

    def __len__(self) -> int:
        return len(self.weights)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the pairs of these numbers."""
        return {name: array[rows] for name, array in vars(self).items()}


def read_pairs(
    sources: Sequence[str], tokenizer: Tokenizer, length: int, split: str, val_fraction: float
) -> Pairs:
    """Return the pairs of a split that fit into rows of `length` tokens; print how many do not.

    Raises `UserError` if none is left, or a source is missing or mostly unreadable.
    """
    counts: Counter = Counter()
    pairs = []
    for name, answers in read_preferences(sources, counts):
        if corpus.split_of(name, val_fraction) != split:
            continue
        rendered = _render_pair(tokenizer, answers, length)
        if rendered is None:
            counts["too_long"] += 1
            continue
        # Packed one by one, since two short answers would share a row.
        pairs.append([pack([result], length, tokenizer.pad) for result in rendered])
    skipped = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    print(f"dpo: {len(pairs):,} pairs in the {split} split; skipped: {skipped or 'nothing'}")
    if not pairs:
        raise _describe_none(split, length)
    # Each answer is the one row of its `ArrayRows`; there are no segments to keep apart.
    tokens, targets, mask, _ = (
        np.array([[vars(answer)[name][0] for answer in pair] for pair in pairs])
        for name in vars(pairs[0][0])
    )
    return Pairs(tokens, targets, mask, np.ones(len(pairs), np.float32))


def require_pairs(
    sources: Sequence[str], tokenizer: Tokenizer, length: int, val_fraction: float
) -> None:
    """Raise the `UserError` of `read_pairs` where it would; quick where all is well."""
    missing = {"train", "val"}
    for name, answers in read_preferences(sources, Counter()):
        split = corpus.split_of(name, val_fraction)
        if split in missing and _render_pair(tokenizer, answers, length):
            missing.remove(split)
        if not missing:
            return
    raise _describe_none(min(missing), length)


def _render_pair(tokenizer, answers, length) -> list[tuple[list[int], list[int]]] | None:
    """Ids and loss weights of both conversations; None where one is too long."""
    rendered = [render(tokenizer, messages, length + 1) for messages in answers]
    # A cut conversation has lost its last answer, the one that was judged.
    whole = [result[:2] for result in rendered if result is not None and not result[2]]
    return whole if len(whole) == len(rendered) else None


def _describe_none(split, length) -> UserError:
    return UserError(
        f"no pair of the {split} split fits into {length} tokens; "
        "add pairs, or raise dpo.train.seq_len"
    )


def read_preferences(
    sources: Sequence[str], counts: Counter, max_bad: float = 0.01
) -> Iterator[tuple[str, tuple[Messages, Messages]]]:
    """(id, (conversation with the chosen answer, with the rejected one)) of `file:` JSONL sources.

    Every line is an object with `prompt`, a text or messages in the OpenAI shape, and the texts
    `chosen` and `rejected`. Adds to `counts` what was left out, by kind.
    """
    for source in sources:
        for part, tally in corpus.tally_parts(source, counts, max_bad):
            for _, preference in corpus.parse_records(part, tally, check_preference):
                tally.good += 1
                # By the question: its answers stay on one side of the split.
                yield corpus.content_id(preference[0][:-1]), preference


def check_preference(record: Any) -> tuple[Messages, Messages]:
    """The two conversations of one JSON record, or `Bad` with what is wrong."""
    if not isinstance(record, dict) or not {"prompt", "chosen", "rejected"} <= record.keys():
        raise Bad("no_preference")
    prompt = record["prompt"]
    # A text is the one question of a conversation.
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(turns, list):
        raise Bad("no_messages")
    answers = ({"role": "assistant", "content": record[name]} for name in ("chosen", "rejected"))
    chosen, rejected = (check_messages({"messages": [*turns, answer]}) for answer in answers)
    return chosen, rejected

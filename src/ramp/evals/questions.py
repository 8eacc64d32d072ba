"""Questions for a model that only continues text: a bundle of files -> tasks -> rows of tokens.

A question is a few pairs (context, continuation), one of them right. The model reads worked
examples, then a pair; judged are the tokens that set the pairs apart, found on token ids: those
after the common beginning where the continuations differ (multiple choice), the common end where
the contexts do (schema); of a single pair (language modelling), the tokens that the continuation
adds.

The order of the questions and their examples are drawn as nanochat draws them (seeds 1337 and
1234 + i): over the same files a full evaluation has the same prompts. With a limit, the first so
many are asked, with examples out of all.
"""

import csv
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ramp.errors import UserError
from ramp.text.tokenizer import Tokenizer

CHOICE, SCHEMA, CONTINUE = KINDS = "multiple_choice", "schema", "language_modeling"
ORDER_SEED = 1337
EXAMPLES_SEED = 1234
REMEDY = "--bundle takes a folder with core.yaml, eval_meta_data.csv and eval_data"


@dataclass(frozen=True)
class Item:
    """A question: pairs (context, continuation), and which of them is right."""

    pairs: tuple[tuple[str, str], ...]
    gold: int


@dataclass(frozen=True)
class Task:
    """A file of questions and how they are asked."""

    label: str
    kind: str  # one of KINDS
    shots: int  # worked examples before a question
    chance: float  # the accuracy that counts as nothing
    items: tuple[Item, ...]
    delimiter: str = " "  # between a context and its continuation
    separator: str = "\n\n"  # after an example

    def examples(self, i: int, seed: int = EXAMPLES_SEED) -> str:
        """The text before question i: `shots` others with their answers, drawn by `seed + i`."""
        others = range(len(self.items) - 1)
        drawn = random.Random(seed + i).sample(others, min(self.shots, len(others)))
        text = ""
        for j in drawn:
            item = self.items[j + (j >= i)]  # the numbers from i on are those of the items behind i
            text += self.delimiter.join(item.pairs[item.gold]) + self.separator
        return text


@dataclass(frozen=True)
class Row:
    """One pair of a question as tokens."""

    item: int  # number of its question
    ids: np.ndarray  # [at most context + 1] int32
    num_judged: int  # the last so many of the ids are judged
    cropped: bool  # it was too long for the context


def read_bundle(path: Path) -> list[Task]:
    """The tasks that core.yaml lists, with the chance of eval_meta_data.csv.

    UserError: what is wrong in these files or in those of the questions.
    """
    try:
        specs = yaml.safe_load((path / "core.yaml").read_text(encoding="utf-8"))["icl_tasks"]
        with (path / "eval_meta_data.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        # The file has per cent.
        chances = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in rows}
        tasks = {spec["label"]: _read_task(path, spec, chances[spec["label"]]) for spec in specs}
        if not tasks or len(tasks) < len(specs):
            raise ValueError("no task, or two of one label")
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); {REMEDY}") from None
    except (KeyError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        reason = " ".join(reason.split())  # YAML's messages have several lines
        raise UserError(
            f"core.yaml or eval_meta_data.csv in {path} is malformed ({reason}); {REMEDY}"
        ) from None
    return list(tasks.values())


def _read_task(path, spec: dict[str, Any], chance):
    label, kind, (shots,) = spec["label"], spec["icl_task_type"], spec["num_fewshot"]
    delimiters = spec.get("continuation_delimiter", " "), spec.get("example_delimiter", "\n\n")
    is_sound = kind in KINDS and 0 <= chance < 1 and type(shots) is int and shots >= 0
    if not is_sound or not all(isinstance(text, str) for text in delimiters):
        raise ValueError(
            f"{label}: type {kind}, chance {chance}, examples {shots}, delimiters {delimiters}"
        )
    file = path / "eval_data" / spec["dataset_uri"]
    items = []
    # Bytes are split at newlines only: a text may hold other characters that end a line.
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            items.append(_parse_item(kind, json.loads(line)))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise UserError(
                f"{file}, line {number} is no {kind} question ({reason}); mend it or take it out"
            ) from None
    if not items:
        raise UserError(f"{file} has no questions; {REMEDY}")
    random.Random(ORDER_SEED).shuffle(items)
    return Task(label, kind, shots, chance, tuple(items), *delimiters)


def _parse_item(kind, record: dict[str, Any]):
    if kind == CONTINUE:
        pairs, gold = [(record["context"].strip(), record["continuation"])], 0
    else:
        options = record["choices" if kind == CHOICE else "context_options"]
        gold = record["gold"]
        # `type`, because True is an int to isinstance.
        is_number = type(gold) is int and isinstance(options, list)
        if not is_number or len(options) < 2 or not 0 <= gold < len(options):
            raise ValueError(f"gold is {gold!r} of {options!r:.100}")
        if kind == CHOICE:
            pairs = [(record["query"], option) for option in options]
        else:
            pairs = [(option, record["continuation"]) for option in options]
    texts = [text for pair in pairs for text in pair]
    if not all(isinstance(text, str) for text in texts) or not all(end for _, end in pairs):
        raise ValueError("a text is empty or none")
    return Item(tuple(pairs), gold)


def make_rows(task: Task, tokenizer: Tokenizer, context_len: int, limit: int = 0) -> list[Row]:
    """The pairs of the first `limit` questions (0: all) as rows.

    A row too long for the context loses its beginning.
    """
    items = task.items[: limit or None]
    texts = []
    for i, item in enumerate(items):
        before = task.examples(i)
        texts += [before + task.delimiter.join(pair) for pair in item.pairs]
        if task.kind == CONTINUE:
            # The bare context, to find where the continuation begins. Stripped: a blank at its end
            # would not be the token of the blank before a word.
            texts.append((before + item.pairs[0][0] + task.delimiter).strip())
    encoded = (np.append(np.int32(tokenizer.bos), ids) for ids in tokenizer.encode_stream(texts))
    rows = []
    for i, item in enumerate(items):
        pairs = list(islice(encoded, len(item.pairs)))
        compared = [*pairs, next(encoded)] if task.kind == CONTINUE else pairs
        prefix = _common_length(compared)
        suffix = _common_length([ids[::-1] for ids in pairs])
        for ids in pairs:
            num_judged = suffix if task.kind == SCHEMA else len(ids) - prefix
            # At least one, also of a pair that another one continues.
            num_judged = min(max(num_judged, 1), len(ids) - 1, context_len)
            is_cropped = len(ids) > context_len + 1
            rows.append(Row(i, ids[-context_len - 1 :], num_judged, is_cropped))
    return rows


def _common_length(sequences: Sequence[np.ndarray]):
    """The length of the longest common beginning."""
    shortest = min(map(len, sequences))
    same = np.all([s[:shortest] == sequences[0][:shortest] for s in sequences], axis=0)
    return shortest if same.all() else int(np.argmin(same))

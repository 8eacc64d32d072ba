"""Questions put to a model that only continues text: a bundle of files -> tasks -> prompts -> rows of tokens.

A question is a few pairs (context, continuation), one of them right. The model sees worked examples, then a pair; what
counts are the tokens that set the pairs apart, found on token ids: after the common prefix where the continuations differ
(multiple choice), the common suffix where the contexts do (schema); of a single pair (language modelling), the tokens
that the continuation adds.

The order of the questions and their examples are drawn as nanochat draws them (seeds 1337 and 1234 + i): over the same
files a full evaluation asks with the same prompts. With a limit, the first so many are asked, with examples out of all.
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
REMEDY = "--bundle takes a folder with core.yaml, eval_meta_data.csv and eval_data"


@dataclass(frozen=True)
class Item:
    """A question: pairs (context, continuation), and which of them is right."""

    pairs: tuple[tuple[str, str], ...]
    gold: int


@dataclass(frozen=True)
class Task:
    """A file of questions and how they are put. `chance`: the accuracy that counts as nothing."""

    label: str
    kind: str
    shots: int
    chance: float
    items: tuple[Item, ...]
    delimiter: str = " "  # between a context and its continuation
    separator: str = "\n\n"  # after an example

    def examples(self, i: int, seed: int = 1234) -> str:
        """What stands before question i: `shots` others, answered, drawn by `seed + i`."""
        others = range(len(self.items) - 1)
        drawn = random.Random(seed + i).sample(others, min(self.shots, len(others)))
        shown = [self.items[j + (j >= i)] for j in drawn]
        return "".join(
            self.delimiter.join(item.pairs[item.gold]) + self.separator for item in shown
        )


@dataclass(frozen=True)
class Row:
    """One pair of question `item`: `ids` [at most context + 1] int32, of which the last `judged` count."""

    item: int
    ids: np.ndarray
    judged: int
    cropped: bool


def read_bundle(path: Path) -> list[Task]:
    """The tasks that core.yaml lists, with the chance of eval_meta_data.csv; what is wrong in them is a `UserError`."""
    try:
        specs = yaml.safe_load((path / "core.yaml").read_text(encoding="utf-8"))["icl_tasks"]
        with (path / "eval_meta_data.csv").open(encoding="utf-8", newline="") as file:
            chance = {
                row["Eval Task"]: float(row["Random baseline"]) / 100
                for row in csv.DictReader(file)
            }
        tasks = {spec["label"]: _task(path, spec, chance[spec["label"]]) for spec in specs}
        if not tasks or len(tasks) < len(specs):
            raise ValueError("no task, or two of one label")
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); {REMEDY}") from None
    except (KeyError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = (
            f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        )
        raise UserError(
            f"core.yaml or eval_meta_data.csv in {path} is malformed ({reason}); {REMEDY}"
        ) from None
    return list(tasks.values())


def _task(path: Path, spec: dict[str, Any], chance: float) -> Task:
    label, kind, (shots,) = spec["label"], spec["icl_task_type"], spec["num_fewshot"]
    delimiters = spec.get("continuation_delimiter", " "), spec.get("example_delimiter", "\n\n")
    sound = kind in KINDS and 0 <= chance < 1 and type(shots) is int and shots >= 0
    if not sound or not all(isinstance(d, str) for d in delimiters):
        raise ValueError(
            f"{label}: type {kind}, chance {chance}, examples {shots}, delimiters {delimiters}"
        )
    file, items = path / "eval_data" / spec["dataset_uri"], []
    for n, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        try:
            items += [_item(kind, json.loads(line))] if line.strip() else []
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise UserError(
                f"{file}, line {n} is no {kind} question ({reason}); mend it or take it out"
            ) from None
    if not items:
        raise UserError(f"{file} has no questions; {REMEDY}")
    random.Random(1337).shuffle(items)
    return Task(label, kind, shots, chance, tuple(items), *delimiters)


def _item(kind: str, record: dict[str, Any]) -> Item:
    if kind == CONTINUE:
        pairs, gold = [(record["context"].strip(), record["continuation"])], 0
    else:
        options, gold = record["choices" if kind == CHOICE else "context_options"], record["gold"]
        if (
            not isinstance(options, list)
            or len(options) < 2
            or type(gold) is not int
            or not 0 <= gold < len(options)
        ):
            raise ValueError(f"gold is {gold!r} of {options!r:.100}")
        pairs = [
            (record["query"], o) if kind == CHOICE else (o, record["continuation"]) for o in options
        ]
    if not all(isinstance(text, str) for pair in pairs for text in pair) or not all(
        end for _, end in pairs
    ):
        raise ValueError("a text is empty or none")
    return Item(tuple(pairs), gold)


def make_rows(task: Task, tokenizer: Tokenizer, context: int, limit: int = 0) -> list[Row]:
    """The pairs of the first `limit` questions (0: all) as rows; one too long for the context loses its beginning."""
    asked, texts, rows = task.items[: limit or None], [], []
    for i, item in enumerate(asked):
        before = task.examples(i)
        texts += [before + task.delimiter.join(pair) for pair in item.pairs]
        if (
            task.kind == CONTINUE
        ):  # stripped: a blank at the end would not be the token of the blank before a word
            texts.append((before + item.pairs[0][0] + task.delimiter).strip())
    encoded = (np.append(np.int32(tokenizer.bos), ids) for ids in tokenizer.encode_stream(texts))
    for i, item in enumerate(asked):
        ids_of = list(islice(encoded, len(item.pairs)))
        prefix = _common([*ids_of, next(encoded)] if task.kind == CONTINUE else ids_of)
        suffix = _common([ids[::-1] for ids in ids_of])
        for ids in ids_of:
            counts = suffix if task.kind == SCHEMA else len(ids) - prefix
            judged = min(
                max(counts, 1), len(ids) - 1, context
            )  # 1: of a pair that another one goes on from
            rows.append(Row(i, ids[-context - 1 :], judged, len(ids) > context + 1))
    return rows


def _common(sequences: Sequence[np.ndarray]) -> int:
    """The length of the longest common beginning."""
    shortest = min(map(len, sequences))
    same = np.all([s[:shortest] == sequences[0][:shortest] for s in sequences], axis=0)
    return shortest if same.all() else int(np.argmin(same))

"""The record of headlines: written when they are made, scored when later checkpoints arrive."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from ramp.errors import UserError
from ramp.files import append_jsonl, read_whole_jsonl
from ramp.nines.headline import Headline, Passage, Scored, score
from ramp.nines.trials import Trials
from ramp.nines.usage import Usage


def append(path: Path, h: Headline, **keys: Any) -> bool:
    """Record a headline; False where the same statement was recorded at this checkpoint already.

    keys: further ones of the line.
    """
    if path.exists() and _key(h) in map(_key, read(path)):
        return False
    line = keys | vars(h) | {"usage": vars(h.usage), "levels": [vars(p) for p in h.levels]}
    append_jsonl(path, line)
    return True


def _key(h):
    nines = [level.nines for level in h.levels]
    return h.run, h.usage, round(h.places[0], 6), h.places[-1], nines


def read(path: Path) -> list[Headline]:
    """The headlines of a record. Unlike a log, it is refused where one line is broken."""
    if not path.exists():
        raise UserError(
            f"there is no record {path}; ramp nines forecast LOG --record {path} begins it"
        )
    try:
        return [_parse(line) for line in read_whole_jsonl(path)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a record of forecasts ({type(error).__name__}: {error}); "
            "ramp nines forecast --record writes one"
        ) from None


def _parse(line):
    levels = []
    for passage in line["levels"]:
        # JSON has no infinity: what is not within reach is null.
        places = {
            k: math.inf if passage[k] is None else passage[k] for k in ("sure", "low", "high")
        }
        levels.append(Passage(**passage | places))
    values: dict[str, Any] = {field.name: line[field.name] for field in fields(Headline)}
    values["usage"] = Usage(**line["usage"])
    values["levels"] = levels
    h = Headline(**values)
    if {len(h.places)} != {len(h.quantiles), *(len(level.chances) for level in levels)}:
        raise ValueError("as many quantiles and chances as places are needed")
    return h


def score_all(path: Path, t: Trials) -> tuple[list[Scored], int]:
    """Score recorded headlines by every later checkpoint of a table that has grown since.

    Returns the scores and how many headlines are open.
    """
    scored = []
    still_open = 0
    for h in read(path):
        found = score(h, t)
        still_open += not found
        scored += found
    return scored, still_open

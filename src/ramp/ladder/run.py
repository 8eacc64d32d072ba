"""The verb: rungs climbed in order, each result one JSON file, then a verdict, a page, a table.

A rung that the one below did not need, or that does not pass itself, did not earn its place, and is shown as such.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ramp import config, report
from ramp.config import Config, Model
from ramp.ladder import page
from ramp.ladder.learn import RATES, SEEDS, climb, corpus, documents, probe_config, shaped
from ramp.ladder.probes import PROBES, way
from ramp.ladder.rungs import FAIL, PASS, RUNGS, Rung, below, numbered, settings
from ramp.rundir import RunDir, write_atomic
from ramp.stages import prepare
from ramp.text.ngrams import byte_ngram_bits, xz_bits
from ramp.text.rows import TokenRows
from ramp.text.tokenizer import Tokenizer
from ramp.train.board import Board

SAME = 0.02  # bits per byte: what costs less may be worse by so much


def smooth(curve: list[float], half_life: float = 10) -> np.ndarray:
    """An exponential average: curves over the same batches can be compared without their noise."""
    out, share = np.array(curve, float), 1 - 0.5 ** (1 / half_life)
    for i in range(1, len(out)):
        out[i] = (1 - share) * out[i - 1] + share * out[i]
    return out


def tokens_to_reach(run: dict, level: float) -> float:
    """Tokens until the smoothed training loss is at `level`; infinite if it never is."""
    reached = np.flatnonzero(smooth(run["curve"]) <= level)
    return float((reached[0] + 1) * run["batch"]) if len(reached) else math.inf


def race(low: dict, high: dict) -> tuple[float, float]:
    end = smooth(low["tokens"]["curve"])[-1]
    return tokens_to_reach(low["tokens"], end), tokens_to_reach(high["tokens"], end)


# name -> what it is, and its figures of the rung below and of this one; lower is better
MEASURES: dict[str, tuple[str, Callable[[dict, dict], tuple[float, float]]]] = {
    "bits": ("bits per byte at equal FLOPs", lambda low, high: (low["equal"]["bpb"], high["equal"]["bpb"])),
    "tokens": ("tokens to the training loss at which the rung below ends", race),
    "cache": ("bytes of cache a token", lambda low, high: (low["cache"], high["cache"])),
    "flops": ("FLOPs of training a token", lambda low, high: (low["flops"], high["flops"])),
    "score": ("largest attention score", lambda low, high: tuple(max(x["probe"]["score"]) for x in (low, high))),
}


def verdict(rung: Rung, low: dict, high: dict) -> dict[str, Any]:
    """What is compared, the figures of the rung below and of this one (one a seed), and whether it earned its place."""
    if rung.measure:
        what, figures = MEASURES[rung.measure]
        a, b = figures(low, high)
        earned = b <= (1 - rung.margin) * a
        if rung.measure in ("cache", "flops"):
            earned &= high["tokens"]["bpb"] <= low["tokens"]["bpb"] + SAME
        return {"what": what, "below": [a], "this": [b], "earned": bool(earned)}
    chance = PROBES[rung.probe].chance(high["probe"]["n"])
    ways = [[way(a, chance) for a in x["probe"]["accuracy"][-1]] for x in (low, high)]
    earned = max(ways[0]) <= FAIL and min(ways[1]) >= PASS
    return {"what": f"share of the way: {PROBES[rung.probe].asks}", "below": ways[0], "this": ways[1], "earned": earned}


# ---------------------------------------------------------------------------------------------------- climbing
def once(path: Path, key: str, work: Callable[[], dict]) -> dict:
    """What `path` holds if it was found under the same key, else what `work` finds, kept there."""
    try:
        found = json.loads(path.read_text())
        if found["key"] == key:
            return found["found"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    result = work() | {"seconds": round(time.perf_counter() - began, 1)}
    write_atomic(path, json.dumps({"key": key, "found": result}))
    return result


def run(c: Config, directory: Path, numbers: list[int], scale: float, text: bool) -> int:
    """Climb the rungs with these numbers, on their probes and (`text`) on the corpus; say and draw what was found."""
    from ramp.run import setup

    began = time.perf_counter()
    c = base(c)
    for rung in RUNGS:  # what cannot be is said before anything is trained
        if rung.number >= 2:
            shaped(rung, c)
            if rung.probe:
                probe_config(rung, PROBES[rung.probe], PROBES[rung.probe].scaled(scale))
    resolved = setup(c, devices=1)  # models this small are not worth splitting
    c = replace(c, model=replace(c.model, dtype=resolved.model.dtype))
    rundir = RunDir(directory)
    with rundir.lock():
        rundir.claim(resolved)
        if text and not rundir.done("prepare"):
            report.update_report(directory, "prepare", prepare.run(rundir, c) | {"done": True})
        beside = (
            once(directory / "ladder" / "beside.json", config.fingerprint(c), lambda: baselines(rundir)) if text else {}
        )
        rows = []
        for number in numbers:
            rung = numbered(number)
            rows.append((rung, *finding(rung, c, rundir, scale, text)))
            print(said(*rows[-1]), flush=True)
        if text:
            beside.pop("seconds")
            page.write(directory / "ladder.html", "The ladder", rows, beside)
            draw(directory, rows)
    verdicts = [judged["earned"] for *_, judged in rows if judged]
    print(f"{sum(verdicts)} of {len(verdicts)} earned their place; {time.perf_counter() - began:.0f} s")
    if text:
        print(f"page: {directory / 'ladder.html'}")
    return 0


def base(c: Config) -> Config:
    """The default model, read as bytes; of the configuration's model only what is no rung."""
    kept = {k: getattr(c.model, k) for k in ("width", "context", "dtype", "attention", "remat", "unroll", "loss_chunk")}
    kept["width"] = kept["width"] or config.resolve(c).model.width
    return replace(c, stages=("prepare",), text=replace(c.text, tokenizer="bytes"), model=Model(**kept))


def finding(rung: Rung, c: Config, rundir: RunDir, scale: float, text: bool) -> tuple[dict | None, dict, dict | None]:
    """What the rung below found, what this one found, the verdict."""
    low, high = (r and tried(r, rung.probe, c, rundir, scale, text) for r in (below(rung), rung))
    return low, high, verdict(rung, low, high) if low else None


def tried(rung: Rung, asked: str, c: Config, rundir: RunDir, scale: float, text: bool) -> dict:
    """What a rung makes of the corpus and of a probe. Each is one file, made once."""
    folder, found = rundir.path / "ladder", {}
    if text:
        key = config.fingerprint(c, settings(rung))
        found = once(folder / f"{rung.number:02}-corpus.json", key, lambda: corpus(rung, c, rundir))
    if asked:
        probe = PROBES[asked]
        n = probe.scaled(scale)
        plain = {k: v for k, v in vars(probe).items() if not callable(v)}
        key = config.fingerprint(settings(rung), plain, [n, c.seed, SEEDS, RATES])
        name = f"{rung.number:02}-{asked.replace(' ', '-')}-{n}.json"
        found = found | {"probe": once(folder / name, key, lambda: climb(rung, probe, n, c.seed))}
    return found


def baselines(rundir: RunDir) -> dict[str, float]:
    """Bits per byte of the whole held-out text under byte n-grams and xz."""
    tokenizer = Tokenizer.load(rundir.tokenizer)
    train, val = (documents(TokenRows(rundir.tokens(s), 2).stream, tokenizer) for s in ("train", "val"))
    size = sum(map(len, val))
    bits = {name: byte_ngram_bits(train, val, k) for k, name in enumerate(("unigram", "bigram", "trigram"), start=1)}
    bits["xz"] = xz_bits(b"".join(train), b"".join(val))
    return {name: value / size for name, value in bits.items()}


def said(rung: Rung, low: dict | None, high: dict, judged: dict | None) -> str:
    ends = [f"{high[k]['bpb']:.3f}" for k in ("tokens", "equal")] if "tokens" in high else []
    sides = [f"{page.figures(judged, side)}" for side in ("below", "this")] if judged else []
    return f"{rung.number:2} {rung.name:28} " + "  ".join([*ends, " | ".join(sides), page.told(judged)])


def draw(directory: Path, rows: list) -> None:
    """The same in TensorBoard; the step is the number of the rung."""
    with Board(directory, "ladder") as board:
        for rung, low, high, judged in rows:
            scalars = {f"ladder/{k}": high[k] for k in ("params", "flops", "cache") if k in high}
            scalars |= {f"ladder/bpb_{k}": high[k]["bpb"] for k in ("tokens", "equal") if k in high}
            if judged:
                scalars |= {"ladder/below": np.mean(judged["below"]), "ladder/this": np.mean(judged["this"])}
                scalars["ladder/earned"] = judged["earned"]
            board.scalars(rung.number, scalars)
            for name, figure in page.pictures(rung, low, high).items():
                board.figure(rung.number, f"ladder/{name}", figure)
            if "tokens" in high:
                board.text(rung.number, "ladder/sample", high["tokens"]["sample"])

"""The verb: rungs climbed in order, each result one JSON file, then a verdict, a page, a table.

A rung that the one below did not need, or that does not pass itself, did not earn its place, and is shown as such.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ramp import config
from ramp.config import Config
from ramp.evals import bpb
from ramp.ladder import page
from ramp.ladder.learn import (
    SEEDS,
    count_bigrams,
    probe_config,
    rung_model,
    train_corpus,
    train_probe,
)
from ramp.ladder.probes import PROBES
from ramp.ladder.rungs import FAIL, PASS, Rung, rung_below, settings
from ramp.reporting import report
from ramp.reporting.metrics import MetricWriter
from ramp.files import write_atomic
from ramp.rundir import RunDir
from ramp.stages import prepare
from ramp.text.tokenizer import Tokenizer

SAME = 0.02  # bits per byte: what costs less may be worse by so much


def race(low: dict, x: dict) -> float:
    """Tokens until the training loss of x, smoothed as it is drawn, is where that of `low` ends; infinite: never."""
    (_, ends), (tokens, bits) = (page.curve("", found).points() for found in (low, x))
    return float(min(tokens[bits <= ends[-1]], default=np.inf)) if len(ends) else np.inf


# What a rung may be measured by: of what the rung below found, and of one of the two. Lower is better.
MEASURES: dict[str, Callable[[dict, dict], float]] = {
    "bits per byte": lambda low, x: x["bpb_equal"],
    "tokens to the loss below": race,
    "cache bytes a token": lambda low, x: x["cache"],
    "FLOPs a token": lambda low, x: x["flops"],
    "attention score": lambda low, x: max(x["probe"]["score"]),
}


def verdict(rung: Rung, low: dict | None, high: dict) -> dict[str, Any]:
    """Figures of the rung below and of this one (of a probe: how far from chance to the ceiling, one a seed), and whether
    it earned its place; nothing of a rung that stands on nothing."""
    if low is None:
        return {"below": [], "this": []}
    if rung.measure:
        a, b = (MEASURES[rung.measure](low, x) for x in (low, high))
        earned = b <= (1 - rung.margin) * a and b < np.inf
        if rung.measure in ("cache bytes a token", "FLOPs a token"):
            earned &= high["bpb"] <= low["bpb"] + SAME
        return {"below": [a], "this": [b], "earned": bool(earned)}
    chance = PROBES[rung.probe].chance(high["probe"]["n"])
    a, b = (
        [(x - chance) / (1 - chance) for x in found["probe"]["accuracy"][-1]]
        for found in (low, high)
    )
    return {"below": a, "this": b, "earned": max(a) <= FAIL and min(b) >= PASS}


def run(c: Config, directory: Path, rungs: list[Rung], scale: float, text: bool) -> int:
    """Climb these rungs, on their probes and (`text`) on the corpus; say and draw what was found."""
    from ramp.host import setup_devices

    began = time.perf_counter()
    c = replace(c, stages=("prepare",), text=replace(c.text, tokenizer="bytes"))
    for rung in rungs:  # what cannot be is said before anything is trained
        if rung.settings:
            rung_model(rung, c)
        if rung.probe:
            probe_config(rung, PROBES[rung.probe], round(PROBES[rung.probe].size * scale))
    resolved = setup_devices(c, devices=1)  # models this small are not worth splitting
    c, rundir = replace(c, model=replace(c.model, dtype=resolved.model.dtype)), RunDir(directory)
    with rundir.lock():
        rundir.check_or_create(resolved)
        if text and not rundir.is_done("prepare"):
            report.update_report(directory, "prepare", prepare.run(rundir, c) | {"done": True})
        beside = once(directory, "beside", (c,), lambda: baselines(rundir)) if text else {}
        rows = []
        for rung in rungs:
            low, high = (
                r and measure_rung(r, rung.probe, c, rundir, scale, beside)
                for r in (rung_below(rung), rung)
            )
            rows.append((rung, low, high, verdict(rung, low, high)))
            print("  ".join(filter(None, list(page.cells(*rows[-1]).values())[:6])), flush=True)
        if text:
            page.write(directory / "ladder.html", rows, beside)
            draw(directory, rows)
    verdicts = [judged["earned"] for *_, judged in rows if "earned" in judged]
    print(
        f"{sum(verdicts)} of {len(verdicts)} earned their place; {time.perf_counter() - began:.0f} s"
    )
    return 0


def once(directory: Path, name: str, key: tuple, work: Callable[[], dict]) -> dict:
    """What was found under this name and key, else what `work` finds, kept in a file of its own."""
    path = directory / "ladder" / f"{name}-{config.fingerprint(*key)}.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, json.dumps(work()))
    return json.loads(path.read_text())


def measure_rung(
    rung: Rung, asked: str, c: Config, rundir: RunDir, scale: float, beside: dict
) -> dict:
    """What a rung makes of the corpus (if it has been read) and of a probe."""
    found, name = {}, f"{rung.number:02}"
    if beside:
        work = (
            (lambda: train_corpus(rung, c, rundir))
            if rung.settings
            else (lambda: count_bigrams(rung, c, rundir, beside))
        )
        found = once(rundir.path, f"{name}-corpus", (c, settings(rung), rung.train, beside), work)
    if asked:
        probe = PROBES[asked]
        n = round(probe.size * scale)
        rows = [a.tolist() for a in probe.rows(np.random.default_rng(0), n, 4)]
        key = probe_config(rung, probe, n), rows, c.seed, SEEDS
        name = f"{name}-{asked.replace(' ', '-')}-{n}"
        found["probe"] = once(rundir.path, name, key, lambda: train_probe(rung, probe, n, c.seed))
    return found


def baselines(rundir: RunDir) -> dict[str, float]:
    """Bits per byte of the whole held-out text under byte n-grams and xz."""
    return bpb.fit_baselines(rundir, Tokenizer.load(rundir.tokenizer), order=0)


def draw(directory: Path, rows: list) -> None:
    """The same in TensorBoard; the step is the number of the rung."""
    with MetricWriter(directory, "ladder") as board:
        for rung, low, high, judged in rows:
            scalars = {k: v for k, v in high.items() if isinstance(v, int | float)}
            scalars |= {k: np.mean(v) for k, v in judged.items() if v != []}
            board.scalars(rung.number, {f"ladder/{k}": v for k, v in scalars.items()})
            for name, figure in page.pictures(rung, low, high).items():
                board.figure(rung.number, f"ladder/{name}", figure)
            board.text(rung.number, "ladder/sample", high["sample"])

"""Climb the ladder: each result one JSON file, then a verdict, a page, a table.

A rung has not earned its place if the one below did not need it, or if it does not pass itself.
"""

import importlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ramp import config
from ramp.config import Config
from ramp.evals import bpb
from ramp.files import write_atomic
from ramp.host import setup_devices
from ramp.ladder import learn, page
from ramp.ladder.learn import CorpusResult, ProbeResult, RungResult
from ramp.ladder.probes import PROBES, Probe
from ramp.ladder.rungs import FAIL, PASS, Rung, collect_settings, rung_below
from ramp.reporting import report
from ramp.reporting.metrics import MetricWriter
from ramp.rundir import RunDir
from ramp.stages import STAGES
from ramp.text.tokenizer import Tokenizer

SAME_BITS = 0.02  # bits per byte that a rung judged by its cost may be worse
COSTS = ("cache bytes a token", "FLOPs a token")

# What a rung may be measured by: of the result below, and of either one. Lower is better.
MEASURES: dict[str, Callable[[RungResult, RungResult], float]] = {
    "bits per byte": lambda below, result: result.corpus.bpb_equal,
    "tokens to the loss below": lambda below, result: count_tokens_to_loss(
        below.corpus, result.corpus
    ),
    "cache bytes a token": lambda below, result: result.corpus.cache,
    "FLOPs a token": lambda below, result: result.corpus.flops,
    "attention score": lambda below, result: max(result.probe.score),
}


def count_tokens_to_loss(below: CorpusResult, result: CorpusResult) -> float:
    """Tokens until the smoothed training loss of `result` is where that of `below` ends.

    Infinite if it never gets there.
    """
    _, goal = page.make_curve("", below).points()
    tokens, bits = page.make_curve("", result).points()
    if not len(goal):
        return np.inf  # nothing that can be drawn: the run below diverged
    return float(min(tokens[bits <= goal[-1]], default=np.inf))


def judge(rung: Rung, below: RungResult | None, result: RungResult) -> page.Verdict:
    """Figures of the rung below and of this one, and whether it earned its place.

    Figures of a probe are fractions of the way from chance to all right, one a seed. A rung that
    stands on nothing has no figures.
    """
    if below is None:
        return page.Verdict()
    if rung.measure:
        before, after = (MEASURES[rung.measure](below, x) for x in (below, result))
        # A rung that gets nowhere has not earned its place, even if the one below got nowhere too.
        earned = after <= (1 - rung.margin) * before and after < np.inf
        if rung.measure in COSTS:
            earned &= result.corpus.bpb <= below.corpus.bpb + SAME_BITS
        return page.Verdict([before], [after], bool(earned))
    chance = PROBES[rung.probe].chance(result.probe.n)
    before, after = (
        [(accuracy - chance) / (1 - chance) for accuracy in x.probe.accuracy[-1]]
        for x in (below, result)
    )
    return page.Verdict(before, after, max(before) <= FAIL and min(after) >= PASS)


@dataclass(frozen=True)
class Climb:
    """What all rungs of one climb share."""

    c: Config
    rundir: RunDir
    scale: float  # multiplies the size of the probes
    baselines: dict[str, float] | None  # bits per byte by n-grams and xz; None: no corpus

    def measure(self, rung: Rung, probe: str) -> RungResult:
        """What a rung makes of the corpus and of a probe, each where there is one."""
        corpus = self.measure_corpus(rung) if self.baselines else None
        return RungResult(corpus, self.measure_probe(rung, PROBES[probe]) if probe else None)

    def measure_corpus(self, rung: Rung) -> CorpusResult:
        """Train on the corpus, or count it."""

        def work() -> dict[str, Any]:
            if rung.settings:
                return asdict(learn.measure_corpus(rung, self.c, self.rundir))
            return asdict(learn.count_corpus(rung, self.c, self.rundir, self.baselines))

        # Whatever the result depends on is part of the key: a change of it is another file.
        key = self.c, collect_settings(rung), rung.train, self.baselines
        name = f"{rung.number:02}-corpus"
        return CorpusResult(**load_or_compute(self.rundir.path, name, key, work))

    def measure_probe(self, rung: Rung, probe: Probe) -> ProbeResult:
        """Train on a probe. Its first rows are part of the key: a changed probe is another one."""
        n = round(probe.size * self.scale)
        rows = [a.tolist() for a in probe.rows(np.random.default_rng(0), n, 4)]
        key = learn.make_probe_config(rung, probe, n), rows, self.c.seed, learn.SEEDS

        def work() -> dict[str, Any]:
            return asdict(learn.train_probe(rung, probe, n, self.c.seed))

        name = f"{rung.number:02}-{probe.name.replace(' ', '-')}-{n}"
        return ProbeResult(**load_or_compute(self.rundir.path, name, key, work))


def load_or_compute(
    directory: Path, name: str, key: tuple, work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The result kept under this name and key, or that of `work`, which is then kept."""
    path = directory / "ladder" / f"{name}-{config.fingerprint(*key)}.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, json.dumps(work()))
    return json.loads(path.read_text())


def climb(c: Config, directory: Path, rungs: list[Rung], scale: float, text: bool) -> int:
    """Climb these rungs on their probes and (`text`) on the corpus; print and draw the results."""
    began = time.perf_counter()
    # Bytes, so that every rung has the same vocabulary as the table of counts.
    c = replace(c, stages=("prepare",), text=replace(c.text, tokenizer="bytes"))
    # A setting that cannot be is refused before anything is trained.
    for rung in rungs:
        if rung.settings:
            learn.make_rung_config(rung, c)
        if rung.probe:
            probe = PROBES[rung.probe]
            learn.make_probe_config(rung, probe, round(probe.size * scale))
    resolved = setup_devices(c, devices=1)  # models this small are not worth splitting
    c = replace(c, model=replace(c.model, dtype=resolved.model.dtype))
    rundir = RunDir(directory)
    with rundir.lock():
        rundir.check_or_create(resolved)
        baselines = prepare_corpus(c, rundir) if text else None
        shared = Climb(c, rundir, scale, baselines)
        rows = []
        for rung in rungs:
            lower = rung_below(rung)
            below = shared.measure(lower, rung.probe) if lower else None
            result = shared.measure(rung, rung.probe)
            # The rung below may have been trained on another probe for its own verdict.
            row = page.Row(rung, below, result, judge(rung, below, result))
            rows.append(row)
            print(row.summarize(), flush=True)
        if baselines:
            page.write(directory / "ladder.html", rows, baselines)
            log_rows(directory, rows)
    # Rung 0 stands on nothing and is not judged.
    judged = [row.verdict.earned for row in rows if row.verdict.earned is not None]
    seconds = time.perf_counter() - began
    print(f"{sum(judged)} of {len(judged)} earned their place; {seconds:.0f} s")
    return 0


def prepare_corpus(c: Config, rundir: RunDir) -> dict[str, float]:
    """Read the corpus as bytes; bits per byte of its held-out text under n-grams and xz."""
    if not rundir.is_done("prepare"):
        # By its row in the table: packages import no stage.
        prepare = importlib.import_module(STAGES["prepare"].module)
        figures = prepare.run(rundir, c)
        report.update_report(rundir.path, "prepare", {**figures, "done": True})

    def work() -> dict[str, float]:
        # Order 0: without Kneser-Ney.
        return bpb.fit_baselines(rundir, Tokenizer.load(rundir.tokenizer), order=0)

    return load_or_compute(rundir.path, "baselines", (c,), work)


def log_rows(directory: Path, rows: list[page.Row]) -> None:
    """The same figures and pictures in TensorBoard; the step is the number of the rung."""
    with MetricWriter(directory, "ladder") as writer:
        for row in rows:
            step = row.rung.number
            corpus = asdict(row.result.corpus)
            scalars = {name: x for name, x in corpus.items() if isinstance(x, int | float)}
            for name, value in asdict(row.verdict).items():
                if value is not None and value != []:
                    scalars[name] = np.mean(value)
            writer.scalars(step, {f"ladder/{name}": x for name, x in scalars.items()})
            for name, figure in row.draw_figures():
                writer.figure(step, f"ladder/{name}", figure)
            writer.text(step, "ladder/sample", row.result.corpus.sample)

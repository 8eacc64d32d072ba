"""Climb the ladder: each result one JSON file, then a verdict, a page, a table.

A rung has not earned its place if the one below did not need it, or if it does not pass itself.
"""

import importlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
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
from ramp.ladder.practices import PRACTICES, Practice, Way, find_probe, list_constants, list_sources
from ramp.ladder.probes import PROBES, Probe
from ramp.ladder.rungs import COSTS, FAIL, PASS, SAME_BITS, Rung, collect_settings, rung_below
from ramp.reporting import report
from ramp.reporting.metrics import MetricWriter
from ramp.rundir import RunDir
from ramp.stages import STAGES
from ramp.text.tokenizer import Tokenizer

# What a rung may be measured by: of the result below, and of either one. Lower is better.
MEASURES = {
    "bits per byte at equal work": lambda below, result: result.corpus.bpb_equal,
    "tokens to match the rung below": lambda below, result: count_tokens_to_loss(below, result),
    "bytes kept per token": lambda below, result: result.corpus.cache,
    "FLOPs per token": lambda below, result: result.corpus.flops,
    "largest attention score": lambda below, result: max(result.probe.score),
}


def count_tokens_to_loss(below: RungResult, result: RungResult) -> float:
    """Tokens until the smoothed training loss of `result` is where that of `below` ends.

    Infinite if it never gets there.
    """
    _, goal = page.make_curve("", below.corpus).points()
    tokens, bits = page.make_curve("", result.corpus).points()
    # Nothing can be drawn of a run that diverged.
    end = min(goal[-1:], default=-np.inf)
    return min(tokens[bits <= end], default=np.inf)


def judge(rung: Rung, below: RungResult, result: RungResult) -> page.Verdict:
    """Figures of the rung below and of this one, and whether it earned its place.

    Figures of a probe are fractions of the way from chance to all right, one a seed. A rung that
    stands on nothing has no figures.
    """
    if rung.measure:
        before, after = (MEASURES[rung.measure](below, x) for x in (below, result))
        # A rung that gets nowhere has not earned its place, even if the one below got nowhere too.
        earned = after <= (1 - rung.margin) * before and after < np.inf
        if rung.measure in COSTS:
            earned &= result.corpus.bpb <= below.corpus.bpb + SAME_BITS
        return page.Verdict([before], [after], bool(earned))
    if not rung.probe:
        return page.Verdict()
    chance = find_probe(rung.probe).chance(result.probe.n)
    accuracy = np.array([below.probe.accuracy[-1], result.probe.accuracy[-1]])
    before, after = ((accuracy - chance) / (1 - chance)).tolist()
    return page.Verdict(before, after, max(before) <= FAIL and min(after) >= PASS)


@dataclass(frozen=True)
class Climb:
    """What all rungs of one climb share."""

    c: Config
    rundir: RunDir
    scale: float  # multiplies the size of the probes
    baselines: dict[str, float]  # bits per byte by n-grams and xz; empty: no corpus

    def compare(self, rung: Rung) -> page.Row:
        """The rung and the one below it on what judges it, and the verdict."""
        if rung.post_training:
            practice = PRACTICES[rung.probe]
            measure = partial(self.measure_practice, rung, practice)
            below, result = (
                RungResult(probe=measure(name, way))
                for name, way in (("below", practice.below), ("this", practice.this))
            )
            halves = {name: measure(name, way) for name, way in practice.more.items()}
        else:
            lower = rung_below(rung)
            # The rung below may have been trained on another probe for its own verdict.
            below = self.measure(lower, rung.probe) if lower else RungResult()
            result = self.measure(rung, rung.probe)
            halves = {
                name: self.measure_probe(rung, PROBES[rung.probe], **settings)
                for name, settings in rung.halves.items()
            }
        return page.Row(rung, below, result, judge(rung, below, result), halves)

    def measure_practice(self, rung: Rung, practice: Practice, name: str, way: Way) -> ProbeResult:
        """What one way of teaching comes to."""
        n = round(practice.size * self.scale)
        settings = practice.name, name, n, self.c.seed, learn.SEEDS
        key = (*settings, list_constants(), list_sources())
        file = f"{rung.number:02}-{name}-{n}".replace(" ", "-")
        record = load_or_compute(self.rundir.path, file, key, partial(way, n, self.c.seed))
        return ProbeResult(**record)

    def measure(self, rung: Rung, probe: str) -> RungResult:
        """What a rung makes of the corpus and of a probe, each where there is one."""
        result = RungResult()
        if self.baselines:
            result = replace(result, corpus=self.measure_corpus(rung))
        if probe:
            result = replace(result, probe=self.measure_probe(rung, PROBES[probe]))
        return result

    def measure_corpus(self, rung: Rung) -> CorpusResult:
        """Train on the corpus, or count it."""
        settings = collect_settings(rung)
        work = partial(learn.count_corpus, rung, self.c, self.rundir, self.baselines)
        if settings:
            work = partial(learn.measure_corpus, rung, self.c, self.rundir)
        # Whatever the result depends on is part of the key: a change of it is another file.
        key = self.c, settings, rung.train, self.baselines
        name = f"{rung.number:02}-corpus"
        record = load_or_compute(self.rundir.path, name, key, work)
        # Results of before 2026-11-30 have a speed that was measurement noise.
        record.pop("decode", None)
        return CorpusResult(**record)

    def measure_probe(self, rung: Rung, probe: Probe, **more: Any) -> ProbeResult:
        """Train on a probe; `more`: settings of the model, over the rung's."""
        # The probe's first rows are part of the key: a changed probe is another one.
        n = round(probe.size * self.scale)
        rows = [a.tolist() for a in probe.rows(np.random.default_rng(0), n, 4)]
        config_key = learn.make_probe_config(rung, probe, n, **more)
        key = config_key, rows, self.c.seed, learn.SEEDS, learn.EXAMPLES
        work = partial(learn.train_probe, rung, probe, n, self.c.seed, **more)
        name = f"{rung.number:02}-{probe.name.replace(' ', '-')}-{n}"
        record = load_or_compute(self.rundir.path, name, key, work)
        return ProbeResult(**record)


def load_or_compute(directory: Path, name: str, key: tuple, work: Callable) -> dict:
    """The result kept under this name and key, or that of `work`, which is then kept.

    `work` returns a dict or a dataclass.
    """
    path = directory / "ladder" / f"{name}-{config.fingerprint(*key)}.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, json.dumps(work(), default=vars))
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
        if rung.probe and not rung.post_training:
            probe = PROBES[rung.probe]
            n = round(probe.size * scale)
            learn.make_probe_config(rung, probe, n)
    resolved = setup_devices(c, one_each=True)  # models this small are not worth splitting
    c = replace(c, model=replace(c.model, dtype=resolved.model.dtype))
    rundir = RunDir(directory)
    with rundir.lock():
        rundir.check_or_create(resolved)
        reads = text and not all(rung.post_training for rung in rungs)
        baselines = _prepare_corpus(c, rundir) if reads else {}
        shared = Climb(c, rundir, scale, baselines)
        rows = []
        for rung in rungs:
            row = shared.compare(rung)
            rows.append(row)
            print(row.summarize(), flush=True)
        if text:
            page.write(directory / "ladder.html", rows, baselines)
            _log_rows(directory, rows)
    # Rung 0 stands on nothing and is not judged.
    judged = [row.verdict.earned for row in rows if row.verdict.earned is not None]
    seconds = time.perf_counter() - began
    print(f"{sum(judged)} of {len(judged)} earned their place; {seconds:.0f} s")
    return 0


def _prepare_corpus(c, rundir):
    """Read the corpus as bytes; bits per byte of its held-out text under n-grams and xz."""
    if not rundir.is_done("prepare"):
        # By its row in the table: packages import no stage.
        prepare = importlib.import_module(STAGES["prepare"].module)
        figures = prepare.run(rundir, c)
        report.update_report(rundir.path, "prepare", {**figures, "done": True})

    def work() -> dict[str, float]:
        # Order 0: without Kneser-Ney.
        fitted = bpb.fit_baselines(rundir, Tokenizer.load(rundir.tokenizer), order=0)
        if fitted.describe_sample():
            print(f"baselines{fitted.describe_sample()}")
        return fitted.bits

    return load_or_compute(rundir.path, "baselines", (c,), work)


def _log_rows(directory, rows):
    """The same figures and pictures in TensorBoard; the step is the number of the rung."""
    with MetricWriter(directory, "ladder") as writer:
        for row in rows:
            step = row.rung.number
            corpus = row.result.corpus
            scalars = {}
            if corpus.params:  # rungs beyond pretraining read no text
                scalars = {k: x for k, x in vars(corpus).items() if isinstance(x, int | float)}
            if row.verdict.earned is not None:
                scalars |= {name: np.mean(x) for name, x in vars(row.verdict).items()}
            tagged = {f"ladder/{name}": x for name, x in scalars.items()}
            writer.scalars(step, tagged)
            for name, figure in row.draw_figures():
                writer.figure(step, f"ladder/{name}", figure)
            if corpus.sample:
                writer.text(step, "ladder/sample", corpus.sample)

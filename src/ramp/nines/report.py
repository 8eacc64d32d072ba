"""What was found, said for people: lines, tables and pictures that a page, a terminal and TensorBoard share.

A part is a str, a line ("## ...": a heading); a list of rows, a table whose first row is its head; or a function that
draws a picture.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ramp.nines import intervals, items, page, record, trials
from ramp.nines.readiness import Outlook, dates


def join_facts(facts: dict[str, Any]) -> list:
    """A table of two columns."""
    return [["what", "figure"], *([k, v] for k, v in facts.items())]


def span(bounds: Any, digits: int = 4) -> str:
    """An interval."""
    return f"{bounds[0]:.{digits}f} .. {bounds[1]:.{digits}f}"


def readiness(
    o: Outlook,
    wanted: list[float],
    probability: float = 0.8,
    spent: list[tuple[str, float]] | None = None,
) -> tuple[dict, list]:
    """Where an outlook stands, and when each of the `wanted` nines is reached with that probability."""
    k, times = int(np.searchsorted(o.grid, o.now)), 10 ** (o.grid[-1] - o.now)
    now, end = np.quantile(o.mix[:, [k, -1]], (0.05, 0.5, 0.95), axis=0).T
    rows = [
        [
            "nines",
            "now",
            f"first {probability:.0%} sure at",
            "80% of futures",
            f"not within {times:.3g}x",
        ]
    ]
    levels = []
    for r in wanted:
        passage, held = o.passage(r), float(o.ready(r)[:, k].mean())
        places = np.array(
            [o.at(r, probability), *np.quantile(passage, (0.1, 0.9), method="inverted_cdf")]
        )
        level = {"nines": r, "now": held, "never": float(np.isinf(passage).mean())}
        level |= dict(zip(("sure", "low", "high"), places, strict=True))
        when = [
            "beyond" if np.isinf(v) else f"{o.unit} {10**v:.3g} ({10 ** (v - o.now):.2g}x)"
            for v in places
        ]
        if spent:
            level["date"] = dates(spent, places)
            when = [f"{w} {d}".strip() for w, d in zip(when, level["date"], strict=True)]
        levels.append(level)
        rows.append(
            [
                f"{r:g}",
                f"p = {held:.2f}",
                when[0],
                f"{when[1]} to {when[2]}",
                f"p = {level['never']:.2f}",
            ]
        )
    best = max(o.weights, key=o.weights.get)
    figures = {
        "run": o.run,
        "unit": o.unit,
        "at": o.now,
        "times": times,
        "now": now,
        "end": end,
        "levels": levels,
    }
    figures["probability"] = probability
    return figures | {"shapes": o.weights, "widened": o.widened, "converged": o.converged}, [
        "## Reliability of the usage mix",
        f"{o.run}: now {now[1]:.4f} [{span(now[::2])}], at {times:.3g}x {end[1]:.4f} [{span(end[::2])}] (90%).",
        f"Growth by past score: {best} leads with weight {o.weights[best]:.2f}; intervals widened by {o.widened:.2f}.",
        *convergence_note(o.converged),
        rows,
    ]


def sentence(name: str, figures: dict, others: Mapping[str, float]) -> str:
    """`readiness` as one would say it: "addition/2: 0.94 [0.91, 0.96] today, 1 nine by 2.1x this compute (80%: ...)".

    others: further accuracies by name, for the brackets behind it.
    """
    low, middle, high = figures["now"]
    said = f"{name}: {middle:.2f} [{low:.2f}, {high:.2f}] today"
    if others:
        said += f" ({', '.join(f'{k} {v:.2f}' for k, v in others.items())})"
    for level in figures["levels"]:
        nines, p = f"{level['nines']:g} nine{'s' * (level['nines'] != 1)}", 1 - level["never"]
        times = [10 ** (level[k] - figures["at"]) for k in ("sure", "low", "high")]
        if level["now"] >= figures["probability"]:
            said += f", {nines} held (p = {level['now']:.2f})"
        elif math.isinf(times[0]):
            said += f", {nines} within {figures['times']:.3g}x with p = {p:.2f}"
        else:
            by, low, high = (f"{v:.2g}" if math.isfinite(v) else "never" for v in times)
            said += f", {nines} by {by}x this {figures['unit']} (80%: {low} to {high})"
    return said


def convergence_note(converged: bool) -> list:
    """A warning, where the item model is unsure of its own scales."""
    text = "WARNING: the spread of items and families did not settle; intervals of the item model are widened"
    return (
        []
        if converged
        else [f"{text} {items.UNSETTLED:g} times. More items or more tries would tell."]
    )


def ladder(levels: list, wins: Any, tries: Any) -> list:
    """The ladder, and how far the best of several takes lies above all of them."""
    rows = [
        ["level", "reached", "why"],
        *([name, "yes" if ok else "no", why] for name, ok, why in levels),
    ]
    k = int(min(8, tries.min()))
    said = "No item was tried twice, so how much the best of several takes flatters cannot be said."
    if k >= 2:
        best, every, two = (
            intervals.pass_at_k(k, wins, tries),
            intervals.pass_hat_k(k, wins, tries),
            intervals.pass_hat_k(2, wins, tries),
        )
        said = f"Best of {k} takes: {best:.3f}; all of {k}: {every:.3f}. A demo shows the first, a user meets the second."
        more = intervals.logit_normal_pass_hat_k(2 * k, intervals.pass_hat_k(1, wins, tries), two)
        said += f" All of {2 * k}, as one and two takes foretell: {more:.3f}."
    return [said, rows, lambda: page.steps(levels)]


def scores(s: dict) -> list:
    """What `backtest.summary` found."""
    rows = [["method", "CRPS", "90% interval covers"]]
    for m, v in sorted(s["methods"].items(), key=lambda kv: kv[1]["crps"]):
        rows.append([m, f"{v['crps']:.4f}", f"{v['coverage']:.3f}"])
    text = f"{s['forecasts']} forecasts; 80% interval covers {s['coverage80']:.3f}; median misses by {s['mae']:.4f}."
    parts = [text, rows, lambda: page.calibration(s)]
    if "events" in s:
        e = s["events"]
        base = f"their rate {e['rate']:.3f} alone would have {e['base_brier']:.4f}"
        parts.append(f"{e['count']} events 'reaches T': Brier {e['brier']:.4f}; {base}.")
        said = [[f"{p:.2f}", f"{happened:.2f}", n] for p, happened, n in s["calibration"]]
        parts.append([["probability said", "share that happened", "events"], *said])
    return parts


def past_record(path: Path, t: dict) -> tuple[dict, list]:
    """The live forecasts in a file, scored by the checkpoints of a table that has grown since."""
    scored, waiting = record.resolve(path, trials.curves(trials.by_slice(t)))
    means = record.summary(scored)
    what = "Each forecast is of one curve, a task under one slice, by its own growth and that of what was scored before."
    parts: list = ["## The record of live forecasts", what]
    facts = {"scores; forecasts still open": f"{len(scored)}; {waiting}"}
    if means["count"]:
        facts["of them beside every baseline; checkpoints that scored them"] = (
            f"{means['count']}; {means['checkpoints']}"
        )
        facts["80% intervals cover"] = f"{means['covered80']:.3f} ± {means['covered80_stderr']:.3f}"
        facts["CRPS"] = f"{means['crps']:.4f} ± {means['crps_stderr']:.4f}"
        facts |= {f"CRPS of {name}": f"{means[name]:.4f}" for name in record.BASELINES}
    parts.append(join_facts(facts))
    if scored:
        pit = np.histogram([np.mean(r["pit"]) for r in scored], np.linspace(0, 1, 11))[0]
        parts.append(lambda: page.calibration({"pit": pit}))
    else:
        parts.append(
            "None has been scored yet: the table holds no later checkpoint of their curves."
        )
    return {"scored": scored, "open": waiting, **means}, parts

"""A forecast in plain words and one picture, for somebody who has to decide."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ramp.errors import UserError
from ramp.nines import audit, backtest, gate, intervals
from ramp.nines.headline import BASELINES, Headline, Passage, Scored, Summary, summarize_scores
from ramp.nines.intervals import count_nines
from ramp.nines.readiness import Forecast
from ramp.nines.report import Part, convergence_warning, in_style, level_parts, pit_figure
from ramp.nines.trials import Trials, group_rows
from ramp.nines.words import describe_nines, plural, say_rate
from ramp.reporting.figure import COLORS, GREY, blank

# Below these, more of them would make the answer better.
FEW_CHECKPOINTS, FEW_ITEMS, FEW_STATEMENTS = 5, 100, 10
TERMS = [
    ["word", "what it means here"],
    ["nines", "1 nine: 90% of tries succeed; 2 nines: 99%; 3 nines: 99.9%, one failure in 1,000"],
    ["mix of use", "how often each kind of case comes up; reliability is the mean over it"],
    ["reached", "the mix has so many nines, and no part of it is more than one nine worse"],
    ["80% sure by", "in 8 of 10 simulated futures it is reached by then"],
    ["compute, step", "how much training there has been: floating-point operations, or updates"],
    ["checkpoint", "the system as it was at one moment of its training, when it was tried"],
    ["CRPS", "how far a forecast was from the truth, with its doubts; lower is better"],
    ["Brier score", "mean square of chance less outcome (0 or 1); always saying 50% gives .25"],
    ["persistence", "the simplest forecast: tomorrow is like today"],
]


# The headline


def headline_parts(h: Headline) -> list[Part]:
    """The headline as sentences and a table."""
    low, middle, high = h.now
    today = (
        f"{h.run} succeeds in {say_rate(middle)} of tries today "
        f"(90% sure: {say_rate(low)} to {say_rate(high)}). {_describe_mix(h)}"
    )
    place = h.places[0]
    spent = f"{10**place:,.0f}" if place < 6 else f"{10**place:.3g}"
    unit = "floating-point operations" if h.unit == "compute" else "steps of training"
    far = f"{h.times:.3g}x"
    head = ["level", "today", f"within {far}", f"{h.probability:.0%} sure by"]
    rows = [[*head, "8 of 10 futures: from", "to"]]
    for level in h.levels:
        name = f"{describe_nines(level.nines)} ({100 * (1 - 10**-level.nines):.6g}%)"
        chances = say_chance(level.now), say_chance(level.by_end)
        rows.append([name, *chances, *(_say_place(h, level, k) for k in range(3))])
    return [
        f"## {say_answer(h, h.run)}",
        today,
        *convergence_warning(h.converged),
        rows,
        f"x: times what it has had so far, {spent} {unit}. Percentages are the probability that "
        f"a level is reached by then; >{far}: not within {far}.",
    ]


def say_answer(h: Headline, name: str) -> str:
    """The answer in one line, on the first level that does not hold yet.

    "addition/2: 94% today; 1 nine by 2.1x, 80% sure". name: of what it is about.
    """
    text = f"{name}: {say_rate(h.now[1])} today; "
    open_levels = [level for level in h.levels if level.now < h.probability]
    if not open_levels:
        last = h.levels[-1]
        return f"{text}{describe_nines(last.nines)} hold with {say_chance(last.now)} probability"
    level = open_levels[0]
    text += describe_nines(level.nines)
    if math.isinf(level.sure):
        reach = f"within {h.times:.3g} times today's {h.unit}"
        return f"{text} {reach} with {say_chance(level.by_end)} probability"
    return f"{text} at {_say_place(h, level, 0)} of today's {h.unit}, {h.probability:.0%} sure"


def say_chance(p: float) -> str:
    """A probability of a forecast, in percent; no draw is no proof, and neither are all of them."""
    return "under 1%" if p < 0.01 else "over 99%" if p > 0.99 else f"{p:.0%}"


def _say_place(h, level, k):
    place = (level.sure, level.low, level.high)[k]
    if math.isinf(place):
        return f">{h.times:.3g}x"
    if place <= h.places[0] + 1e-9:
        return "today"
    date = f", {level.dates[k]}" if level.dates[k] else ""
    return f"{10 ** (place - h.places[0]):.2g}x{date}"


def _describe_mix(h):
    parts = [
        ", ".join(f"{name} {share:.0%}" for name, share in mix.items())
        for mix in (h.usage.slices, h.usage.families)
        if len(mix) > 1
    ]
    return f"Mix of use: {'; '.join(parts)}." if parts else ""


# What stands beside it


def context_parts(t: Trials, f: Forecast, h: Headline, past: Sequence[Scored]) -> list[Part]:
    """What it would take, what is missing, how good such statements were, and the terms.

    past: earlier statements about the run, scored.
    """
    t = t[t.run == f.run]
    efforts = [_say_effort(h, level) for level in h.levels]
    parts: list[Part] = ["## What it would take", *efforts]
    parts += [*_describe_proof(t, h), "## What evidence is missing", *_list_missing(t, f, h, past)]
    parts.append("## How good such statements were")
    parts += past_parts(past)
    parts.append("## What is shown today")
    try:
        parts += level_parts(audit.readiness_levels(t), audit.last_checkpoint(t))
    except UserError as error:
        parts.append(f"Unknown: {error}.")
    return [*parts, "## Words", TERMS]


def _say_effort(h: Headline, level: Passage) -> str:
    name = describe_nines(level.nines)
    if level.now >= h.probability:
        return f"{name}: nothing more; it holds today with {say_chance(level.now)} probability."
    even = next((p for p, c in zip(h.places, level.chances, strict=True) if c >= 0.5), math.inf)
    if math.isinf(even):
        return (
            f"{name}: more than growth within {h.times:.3g} times today's {h.unit} is likely to "
            f"bring ({say_chance(level.by_end)}); what fails today needs work of another kind."
        )
    text = f"{name}: even odds at {10 ** (even - h.places[0]):.2g} times today's {h.unit}"
    sure = "only later" if math.isinf(level.sure) else f"at {_say_place(h, level, 0)}"
    return f"{text}; {h.probability:.0%} sure {sure}."


def _describe_proof(t, h):
    try:
        verdicts = [gate.judge(t, level.nines) for level in h.levels]
    except UserError as error:
        return [f"What proof would take is unknown: {error}."]
    missing = [f"{v.more:,} for {describe_nines(v.nines)}" for v in verdicts if v.more]
    if not missing:
        return ["All of these levels are proven by the trials of today."]
    units = plural(verdicts[0].unit, 2)
    return [
        f"To prove it, further {units} without a failure: {', '.join(missing)}. Each failure "
        "raises the number; `ramp nines gate` counts."
    ]


def _list_missing(t, f, h, past):
    """What would make the answer better, in the order of what it costs to say."""
    rows = []
    if not h.usage.slices:
        rows.append(
            "Accuracies without items: no lapse can be told from a lack of ability, and nines are "
            "guesses. Log single trials, with the item of each."
        )
    if len(f.measured) < FEW_CHECKPOINTS:
        rows.append(
            f"{len(f.measured)} {plural('checkpoint', len(f.measured))}: intervals are wide "
            f"because they must be. {FEW_CHECKPOINTS} make a forecast worth reading."
        )
    items = len(group_rows(t.task, t.item)[0])
    if h.usage.slices and items < FEW_ITEMS:
        rows.append(f"{items} {plural('item', items)}: more distinct ones narrow every interval.")
    # Nothing is measured where no checkpoint tried the whole mix.
    worst, value = (column[-1:].sum() for column in (f.measured.worst, f.measured.value))
    if len(h.usage.slices) > 1 and worst < value - 0.05:
        rows.append(
            f"The worst part of the mix succeeds in {say_rate(worst)} only: look at its failures "
            "first."
        )
    if not any(date for level in h.levels for date in level.dates):
        rows.append(
            "No date: a plan of spending (--schedule) that reaches from today's compute to that of "
            "the levels gives them dates."
        )
    if len(past) < FEW_STATEMENTS:
        rows.append(
            f"{len(past)} earlier {plural('statement', len(past))} could be scored: how far to "
            "trust this one is hardly known. Try the same items at more checkpoints."
        )
    return rows or ["Nothing that can be named."]


def past_parts(past: Sequence[Scored]) -> list[Part]:
    """How earlier statements did, in words, beside simple methods."""
    if not past:
        return [
            "None could be scored: it takes an earlier statement, made at three or more "
            "checkpoints, and a later checkpoint that shows how it was."
        ]
    s = summarize_scores(past)
    inside = f"{s.covered80:.0%}"
    if math.isfinite(s.covered80_stderr):
        inside += f" ± {s.covered80_stderr:.0%}"
    parts: list[Part] = [
        f"The same statement was scored {s.count} {plural('time', s.count)}, by {s.checkpoints} "
        f"later {plural('checkpoint', s.checkpoints)}. What was then measured lay within the 80% "
        f"interval in {inside} of them (80% would be right).",
        _score_table(s),
    ]
    if len(past) >= FEW_STATEMENTS:
        parts.append(lambda: pit_figure(backtest.count_pits([line.pit for line in past])))
    return parts


def _score_table(s: Summary):
    # The first statements of a run have too few checkpoints for a line.
    part = f", {s.compared} of {s.count}" if s.compared < s.count else ""
    rows = [["method", f"CRPS of the reliability{part}", "Brier of 'so many nines by then'"]]
    brier = {}
    if s.events:
        brier = {backtest.NINES: s.events.brier, "persistence": s.brier_persistence}
        count = f"how often it happened ({s.events.rate:.0%} of {s.events.count})"
        brier[count] = s.events.base_brier
    for name in dict.fromkeys([backtest.NINES, *BASELINES, *brier]):
        crps = s.crps.get(name, math.nan)
        score = brier.get(name)
        shown = "" if score is None else f"{score:.3f}"
        rows.append([name, f"{crps:.4f}" if math.isfinite(crps) else "", shown])
    return rows


# The picture


@in_style
def reliability_figure(f: Forecast, h: Headline) -> Figure:
    """Success over compute or steps: measured, and the forecast with its 50% and 90% bands."""
    figure, axes = blank(5, 3.2)
    main, *others = COLORS.values()
    # At most 6 nines, so that a draw of exactly 1 can be drawn.
    x = 10 ** (f.grid - f.now)
    nines = np.minimum(count_nines(f.mix), 6)
    for low, high, alpha in ((5, 95, 0.2), (25, 75, 0.3)):
        band = np.percentile(nines, (low, high), axis=0)
        axes.fill_between(x, *band, alpha=alpha, color=main, lw=0)
    axes.plot(x, np.median(nines, 0), color=main, label="mix of use: middle, 50% and 90%")
    if len(f.slices) > 1:
        for k, (name, path) in enumerate(f.slices.items()):
            middle = np.minimum(count_nines(np.median(path, 0)), 6)
            color = others[k % len(others)]
            axes.plot(x, middle, "--", lw=1, color=color, label=f"{name} alone")
    m = f.measured
    pairs = zip(m.value, m.n, strict=True)
    bounds = [intervals.jeffreys(v * n, n, 0.9) for v, n in pairs]
    bounds = np.reshape(bounds, (-1, 2)).T
    y, low, high = np.minimum(count_nines(np.array([m.value, *bounds])), 6)
    y = np.clip(y, low, high)
    axes.errorbar(
        10 ** (m.x - f.now), y, [y - low, high - y],
        fmt="o", color=COLORS["warm"], ms=4, label="measured, 90%",
    )  # fmt: skip
    axes.axvline(1, color=GREY, lw=0.8, ls=":")
    axes.set_xscale("log")
    places = [p for p in (0.01, 0.03, 0.1, 0.3, 1, 2, 5, 10, 30, 100, 1000) if x[0] <= p <= x[-1]]
    axes.set_xticks(places, ["today" if p == 1 else f"{p:g}x" for p in places], minor=False)
    axes.set_xticks([], minor=True)
    top = max(max(level.nines for level in h.levels) + 0.3, np.median(nines[:, -1]) + 0.6)
    levels = range(1, math.ceil(top))
    names = [f"{describe_nines(r)}: {100 * (1 - 10.0**-r):.10g}%" for r in levels]
    axes.set_yticks([0, -math.log10(0.5), *levels], ["0%", "50%", *names])
    axes.set(xlabel=f"{f.unit}, as a multiple of today's", ylabel="success", ylim=(0, top))
    axes.legend(loc="upper left")
    return figure

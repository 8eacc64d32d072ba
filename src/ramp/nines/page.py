"""A forecast in plain words and one picture, for somebody who has to decide."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ramp.errors import UserError
from ramp.nines import audit, backtest, gate, intervals
from ramp.nines.headline import BASELINES, Headline, Passage, Scored, Summary, summarize_scores
from ramp.nines.intervals import count_nines
from ramp.nines.notes import list_some
from ramp.nines.readiness import Forecast
from ramp.nines.report import Part, convergence_warning, in_style, level_parts, pit_figure
from ramp.nines.trials import Trials, group_rows
from ramp.nines.words import describe_nines, plural, say_rate
from ramp.reporting.figure import COLORS, GREY, blank

# Below these, more of them would make the answer better.
FEW_CHECKPOINTS, FEW_ITEMS, FEW_STATEMENTS = 5, 100, 10
MISSES = 8  # items that fail today and are named
TERMS = [
    ["word", "what it means here"],
    ["item", "one question or case that was tried; a try is one answer to it"],
    ["nines", "1 nine: 90% of tries succeed; 2 nines: 99%; 3 nines: 99.9%, one failure in 1,000"],
    ["mix of use", "how often each kind of case (slice) comes up; reliability is the mean over it"],
    ["reached", "the mix has so many nines, and no part of it is more than one nine worse"],
    ["80% sure by", "in 8 of 10 simulated futures it is reached by then"],
    [
        "earliest, latest",
        "in 1 of 10 of them it is reached before the one, in 1 of 10 after the other",
    ],
    ["compute, step", "how much training there has been: floating-point operations, or updates"],
    ["checkpoint", "the system as it was at one moment of its training, when it was tried"],
    ["demo, pilot, production", "one of several tries works; most items work each time; proven"],
    ["CRPS", "how far a forecast was from the truth, with its doubts; lower is better"],
    ["Brier score", "mean square of chance less outcome (0 or 1); always saying 50% gives .25"],
    ["persistence", "the simplest forecast: tomorrow is like today"],
    ["log-linear, power law", "a line, or a curve that levels off, through the last checkpoints"],
]


# The headline


def headline_parts(h: Headline, f: Forecast) -> list[Part]:
    """The headline as sentences and a table. f: what it is of."""
    place = h.places[0]
    spent = f"{10**place:,.0f}" if place < 6 else f"{10**place:.3g}"
    unit = "floating-point operations" if h.unit == "compute" else "steps of training"
    far = f"{h.times:.3g}x"
    sure = f"{h.probability:.0%} sure by"
    rows = [["level", sure, "earliest", "latest", f"within {far}", "already"]]
    for level in h.levels:
        name = f"{describe_nines(level.nines)}: {_say_share(level.nines)}"
        # Marks, since a column of words would be broken on a phone.
        chances = [_mark_chance(p) for p in (level.by_end, level.now)]
        rows.append([name, *(_say_place(h, level, k) for k in range(3)), *chances])
    return [
        f"## {say_answer(h, h.run)}",
        f"{_say_today(h, f)} {_describe_mix(h)}".strip(),
        *convergence_warning(h.converged),
        rows,
        f"x: times what it has had so far, {spent} {unit}. Percentages are the probability that "
        f"a level is reached by then; >{far}: not within {far}.",
    ]


def _say_today(h, f):
    """What was measured, and what the model makes of all checkpoints, so that both are known."""
    low, middle, high = h.now
    text = (
        f"By all checkpoints together {h.run} succeeds in {say_rate(middle)} of tries today "
        f"(90% sure: {say_rate(low)} to {say_rate(high)})"
    )
    if len(f.measured):
        text += f"; the last one alone showed {say_rate(f.measured.value[-1])}"
    return f"{text}."


def say_answer(h: Headline, name: str) -> str:
    """The answer in one line, on every level that does not hold yet.

    "addition/2: 94% today. 1 nine: at 2.1 times today's steps, 80% sure." name: of what it is.
    """
    text = f"{name}: {say_rate(h.now[1])} today."
    open_levels = [level for level in h.levels if level.now < h.probability]
    if not open_levels:
        last = h.levels[-1]
        return f"{text} {describe_nines(last.nines)}: today, {say_chance(last.now)} sure."
    reached = [level for level in open_levels if math.isfinite(level.sure)]
    for level in reached:
        when = level.dates[0]
        at = f"{_times(h, level.sure)} times today's {_unit(h)}"
        if when and when < h.made:
            # The log is behind the plan, and a day that is over is no forecast.
            at = f"at {at}, which the plan had reached on {when}"
        else:
            at = f"by {when} ({at})" if when else f"at {at}"
        text += f" {describe_nines(level.nines)}: {at}, {h.probability:.0%} sure."
    # Of those that are out of reach the first says most.
    for level in open_levels[len(reached) :][:1]:
        reach = f"within {h.times:.3g} times today's {_unit(h)}"
        text += f" {describe_nines(level.nines)}: {say_chance(level.by_end)} {reach}."
    return text


def _unit(h):
    return "compute" if h.unit == "compute" else "steps"


def _times(h, place):
    return f"{10 ** (place - h.places[0]):.2g}"


def _say_share(nines):
    return f"{100 * (1 - 10**-nines):.6g}%"


def say_chance(p: float) -> str:
    """A probability of a forecast, in percent; no draw is no proof, and neither are all of them."""
    return "under 1%" if p < 0.01 else "over 99%" if p > 0.99 else f"{p:.0%}"


def _mark_chance(p):
    return say_chance(p).replace("under ", "<").replace("over ", ">")


def _say_place(h, level, k):
    place = (level.sure, level.low, level.high)[k]
    if math.isinf(place):
        return f">{h.times:.3g}x"
    if place <= h.places[0] + 1e-9:
        return "already"
    date = f", {level.dates[k]}" if level.dates[k] else ""
    return f"{_times(h, place)}x{date}"


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
    parts: list[Part] = ["## What it would take", *efforts, *_list_failing(t)]
    parts += [*_describe_proof(t, h), "## What evidence is missing", *_list_missing(t, f, h, past)]
    parts.append("## How good such statements were")
    # Their first sentence, `say_trust`, stands at the top of the page.
    parts += past_parts(past)[bool(past) :]
    parts.append("## What is shown today")
    try:
        parts += level_parts(audit.readiness_levels(t), audit.last_checkpoint(t))
    except UserError as error:
        parts.append(f"Unknown: {error}.")
    return [*parts, "## Words", TERMS]


def _say_effort(h: Headline, level: Passage) -> str:
    name = describe_nines(level.nines)
    if level.now >= h.probability:
        return f"{name}: nothing more; it holds today, {say_chance(level.now)} sure."
    even = next((p for p, c in zip(h.places, level.chances, strict=True) if c >= 0.5), math.inf)
    if math.isinf(even):
        return (
            f"{name}: more than growth within {h.times:.3g} times today's {_unit(h)} is likely to "
            f"bring ({say_chance(level.by_end)}). More of the same training will probably not do: "
            "mend what fails today."
        )
    text = f"{name}: even odds at {_times(h, even)} times today's {_unit(h)}"
    sure = "only later" if math.isinf(level.sure) else f"at {_say_place(h, level, 0)}"
    return f"{text}; {h.probability:.0%} sure {sure}."


def _describe_proof(t, h):
    try:
        verdicts = [gate.judge(t, level.nines) for level in h.levels]
    except UserError as error:
        return [f"What proof would take is unknown: {error}."]
    missing = [_say_missing(v, h) for v in verdicts if v.more]
    if not missing:
        return ["All of these levels are proven by the trials of today."]
    units = plural(verdicts[0].unit, 2)
    return [f"Proof takes more {units}, in a row and without a failure: {'; '.join(missing)}."]


def _say_missing(v, h):
    # A system that is not there yet hardly ever passes so many, and should not be sent to try.
    chance = _mark_chance(h.now[1] ** v.more)
    return f"{v.more:,} for {describe_nines(v.nines)} (today's system would pass: {chance})"


def _list_failing(t):
    """The items that failed at the last checkpoint: where to look."""
    try:
        last = audit.last_checkpoint(t)
    except UserError:
        return []
    if not last.failures:
        return []
    names = list_some(last.name_failing(last.failures), MISSES)
    return [f"What fails today, {last.failures} of {last.items} items: {names}."]


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
            f"{len(f.measured)} {plural('checkpoint', len(f.measured))}: with so few, ranges are "
            f"wide. {FEW_CHECKPOINTS} make a forecast worth reading."
        )
    items = len(group_rows(t.task, t.item)[0])
    if h.usage.slices and items < FEW_ITEMS:
        rows.append(f"{items} {plural('item', items)}: {FEW_ITEMS} or more narrow every range.")
    # Nothing is measured where no checkpoint tried the whole mix.
    worst, value = (column[-1:].sum() for column in (f.measured.worst, f.measured.value))
    if len(h.usage.slices) > 1 and worst < value - 0.05:
        rows.append(
            f"The worst part of the mix succeeds in {say_rate(worst)} only: look at its failures "
            "first."
        )
    if not any(date for level in h.levels for date in level.dates):
        rows.append(
            f"No date: a plan (--schedule) that says from today on which {h.unit} is reached when "
            "gives dates to the levels."
        )
    if len(past) < FEW_STATEMENTS:
        rows.append(
            f"Only {len(past)} earlier {plural('statement', len(past))} of this kind can be "
            f"checked, {FEW_STATEMENTS} would say something: try the same items at more "
            "checkpoints."
        )
    return rows or ["Nothing that can be named."]


def say_trust(past: Sequence[Scored]) -> str:
    """How far to trust the headline, in one sentence that a manager reads."""
    if not past:
        return "How good such statements are is not known: no earlier one can be checked yet."
    s = summarize_scores(past)
    text = (
        f"Of {s.count} earlier statements of this kind, {_say_covered(s)} came true within their "
    )
    text += "80% range"
    if not s.compared:
        return f"{text}; no simple method could make them all."
    best = min(BASELINES, key=lambda name: s.crps[name])
    ratio = s.crps[backtest.NINES] / max(s.crps[best], 1e-9)
    if 0.8 < ratio <= 1.25:
        return f"{text}, and a simple method ({best}) came as near to what was then measured."
    if ratio > 1:
        return (
            f"{text}, but a simple method ({best}) came {ratio:.2g} times nearer to what was then "
            "measured: take the places and dates here as weak."
        )
    return f"{text}, and none of the simple methods came nearer to what was then measured."


def _say_covered(s):
    # A share of a few would look like one of many; a tie counts half.
    if s.count < 20:
        return f"{s.covered80 * s.count:.3g}"
    inside = f"{s.covered80:.0%}"
    return f"{inside} ± {s.covered80_stderr:.0%}" if s.covered80_stderr > 0 else inside


def past_parts(past: Sequence[Scored]) -> list[Part]:
    """How earlier statements did, in words, beside simple methods."""
    if not past:
        return [
            "None can be checked: it takes an earlier statement, made at three or more "
            "checkpoints, and a later checkpoint that shows how it was."
        ]
    s = summarize_scores(past)
    parts: list[Part] = [
        say_trust(past),
        f"They are scored by {s.checkpoints} later {plural('checkpoint', s.checkpoints)}; 80% "
        "within the range would be right.",
        _score_table(s),
    ]
    if s.events:
        parts.append(
            f"Brier score: of {s.events.count} pairs of a level and a later checkpoint, in "
            f"{s.events.rate:.0%} of which it was reached; the base rate always says that share."
        )
    if len(past) >= FEW_STATEMENTS:
        parts.append(lambda: pit_figure(backtest.count_pits([line.pit for line in past])))
    return parts


def _score_table(s: Summary):
    # The first statements of a run have too few checkpoints for a line.
    part = f" ({s.compared} of {s.count})" if s.compared < s.count else ""
    rows = [["method", f"CRPS{part}", "Brier score"]]
    brier = {}
    if s.events:
        brier = {backtest.NINES: s.events.brier, "persistence": s.brier_persistence}
        brier["base rate"] = s.events.base_brier
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
    figure.legend(loc="outside upper left", ncols=2)  # where no curve can be
    return figure

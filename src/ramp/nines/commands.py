"""What each command of `ramp nines` does: from its arguments to an answer."""

import csv
import math
from argparse import Namespace
from collections import defaultdict
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
from scipy.special import expit

from ramp.errors import UserError
from ramp.nines import (
    audit,
    horizons,
    items,
    observational,
    page,
    readiness,
    record,
    releases,
    report,
    trials,
)
from ramp.nines import backtest as backtests
from ramp.nines import compare as compares
from ramp.nines import headline as headlines
from ramp.nines import intervals as stats
from ramp.nines import monitor as monitors
from ramp.nines.cleaning import ALIASES, CHOICES, parse_date, parse_number
from ramp.nines.gate import judge, junit
from ramp.nines.notes import Note, Reading, list_some
from ramp.nines.report import Answer, facts_table, format_interval
from ramp.nines.sequential import (
    clean_evidence,
    count_clean_units,
    count_evidence,
)
from ramp.nines.words import describe_nines, plural


def _parse_pairs(words, convert=str):
    pairs = [word.partition("=") for word in words]
    try:
        return {key: convert(value) for key, _, value in pairs}
    except ValueError:
        raise UserError(
            f"{' '.join(words)!r} must read NAME=VALUE, a fraction of the mix as a number"
        ) from None


def _read(args):
    """The trials of the logs of a command, whose notes are printed with its answer."""
    t = trials.read(args.file, _make_reading(args))
    # A baseline that was read before has notes of its own.
    args.notes = (*getattr(args, "notes", ()), *t.notes)
    return t


def _make_reading(args):
    for word in (*args.where, *args.map):
        if "=" not in word:
            raise UserError(f"{word!r} of --where or --map must read NAME=VALUE")
    where = defaultdict(list)
    for word in args.where:
        column, _, value = word.partition("=")
        where[column].append(value)
    return Reading(
        where=where,
        rename=_parse_pairs(args.map),
        ignore=tuple(name for word in args.ignore for name in word.split(",")),
        **{key: tuple(getattr(args, key).split(",")) for key in CHOICES if getattr(args, key)},
        errors=args.errors,
        percent=args.percent,
        step_from=args.step_from,
        compute_from=args.compute_from,
        date_from=args.date_from,
        releases=args.releases,
    )


def _check_confidence(args):
    if not 0.5 < args.confidence < 1:
        raise UserError("--confidence must be above .5 and below 1")


def _bar(args):
    """The reliability of so many nines."""
    _check_confidence(args)
    return 1 - 10**-args.nines


def plan(args: Namespace) -> Answer:
    """How many trials certify a number of nines, and who bears which risk."""
    bar = _bar(args)
    # Systems that fail three times as often as the level allows, ..., a tenth as often.
    truths = [1 - (1 - bar) * times for times in (3, 1, 0.5, 0.2, 0.1)]
    rows = [["failures allowed", "distinct items", *(f"passes if {t:.6g}" for t in truths)]]
    plans = []
    for failures in (0, 1, 2, 3, 5):
        n = stats.trials_to_demonstrate(bar, failures, args.confidence)
        passes = {truth: stats.pass_probability(n, failures, truth) for truth in truths}
        plans.append({"failures": failures, "trials": n, "passes": passes})
        rows.append([failures, f"{n:,}", *(f"{p:.1%}" for p in passes.values())])
    # By the gate, which may be asked at any time.
    any_time = []
    for failures in (0, 1, 2, 3):
        e = count_evidence(np.zeros(failures)) + clean_evidence(0)
        any_time.append(count_clean_units(e, bar, args.confidence) + failures)
    first, *rest = any_time
    figures = {"reliability": bar, "plans": plans, "any_time": any_time}
    return Answer(figures, [
        f"## To show {bar:.6g} with {args.confidence:.6g} confidence, on items drawn from use",
        rows,
        "That holds for a number of distinct items that is fixed before; repeats do not count. "
        f"ramp nines gate may be asked after every item: it passes after {first:,} clean ones, and "
        f"with 1, 2 or 3 failures after {', '.join(f'{n:,}' for n in rest)} at the soonest.",
    ])  # fmt: skip


def gate(args: Namespace) -> Answer:
    """Pass, fail or undecided, for a pipeline; holds however often it is asked."""
    if args.baseline_run and not args.baseline:
        raise UserError("--baseline-run names a run of --baseline OLD, which is missing")
    baseline = _choose_baseline(args) if args.baseline else None
    t = _read(args)
    if baseline is not None and args.baseline.resolve() in {path.resolve() for path in args.file}:
        _require_other(t, baseline)
    v = judge(t, args.nines, args.confidence, args.unit, baseline)
    figures = {"verdict": v.name, "summary": v.sentence} | vars(v)
    return Answer(figures, [v.sentence, *v.notes], v.code, junit(v))


def _require_other(t, baseline):
    """Raise UserError where the baseline is the checkpoint that is judged: it is never worse."""

    def name_last(t):
        last = t[audit.find_last(t)[0]]
        progress = [np.nan_to_num(x, nan=-1.0).tolist() for x in (last.step, last.compute)]
        return set(zip(last.run.tolist(), last.date.tolist(), *progress, strict=True))

    if name_last(t) == name_last(baseline):
        raise UserError(
            "the baseline is the very checkpoint that is judged, and is never worse than itself; "
            "name an earlier one with --baseline-run RUN@STEP, or another file"
        )


def _choose_baseline(args):
    """The one run of the baseline."""
    t = _read_baseline(args)
    if args.baseline_run:
        t = compares.choose_run(t, args.baseline_run)
    runs = np.unique(t.run)
    if len(runs) != 1:
        raise UserError(
            f"{args.baseline} holds {len(runs)} such runs ({list_some(runs)}); choose one with "
            "--baseline-run NAME"
        )
    return t


def _read_baseline(args):
    """The baseline, by the same choice of rows but for the run, which has a choice of its own."""
    reading = _make_reading(args)
    own = {"run"}
    if "@" in (getattr(args, "baseline_run", None) or ""):
        own |= {"step", "compute", "date"}  # of RUN@STEP
    where = {k: v for k, v in reading.where.items() if ALIASES.get(k, k) not in own}
    t = trials.read(args.baseline, replace(reading, where=where))
    args.notes = tuple(replace(note, text=f"baseline: {note.text}") for note in t.notes)
    return t


def certify(args: Namespace) -> Answer:
    """What the trials of the last checkpoint prove, without a model."""
    t = _read(args)
    v = judge(t, args.nines, args.confidence, args.unit)
    last = audit.last_checkpoint(t)
    tries = last.tries
    # Without repeats the correlation is unknown, and every trial is of an item of its own.
    correlation = stats.intraclass_correlation(last.successes, tries)
    shown = "unknown" if math.isnan(correlation) else f"{correlation:.2f}"
    worth = stats.effective_trials(len(tries), tries.mean(), np.nan_to_num(correlation))
    levels = audit.readiness_levels(t, args.nines, args.confidence, args.unit)
    low, high = v.bounds
    units = plural(v.unit, 2)
    least = f"{low:.5f} ({stats.count_nines(low):.2f} nines)"
    facts = {
        "distinct items, one trial each": v.items,
        "failures among them": v.failures,
        "independent of each other": f"{v.units} {units}",
        f"success is at least, at {args.confidence:.6g}": least,
        "success is at most": f"{high:.5f}",
        f"verdict on {describe_nines(args.nines)}": v.name,
        f"further clean {units} that would demonstrate it": f"{v.more:,}",
        "trials in all; worth so many independent ones": f"{tries.sum():.0f}; {worth:.0f}",
        "correlation of tries at one item": shown,
    }
    if v.unit == "item":
        # Only of independent trials whose number was fixed before.
        once = stats.lower_bound(v.items - v.failures, v.items, args.confidence)
        facts["at least, had the number of items been fixed before"] = f"{once:.5f}"
    figures = vars(v) | {"lower": low, "correlation": correlation, "levels": levels}
    parts = ["## What the last checkpoint's trials prove", facts_table(facts)]
    parts.append("Both bounds hold however often one looks, and if one follows the advice.")
    parts += v.notes
    return Answer(figures, parts + report.level_parts(levels, last))


def fit(args: Namespace) -> Answer:
    """Which items are hard, how able each checkpoint is, how failures correlate."""
    t = _read(args)
    result = items.fit(items.sum_cells(t))
    c = result.cells
    error = np.sqrt(np.diag(result.cov))
    difficulty = result.difficulty()
    abilities = result.mean[: len(c.runs)]
    sd_item, sd_family, phi = result.hyper.T
    scales = {
        "item": ("spread of items", sd_item),
        "family": ("spread of families", sd_family),
        "phi": ("precision of repeats", phi),
        "correlation": ("correlation beyond the item", 1 / (1 + phi)),
        "lapse": ("lapse now", expit(result.effects[:, -2])),
    }
    figures: dict = {}
    rows = [["scale", "median", "90%"]]
    for key, (name, draws) in scales.items():
        figures[key] = np.median(draws)
        interval = format_interval(np.quantile(draws, (0.05, 0.95)))
        rows.append([name, f"{figures[key]:.4f}", interval])
    ability_rows = [["checkpoint", "ability", "±"]]
    for k, run in enumerate(c.runs):
        name = f"{run} {10 ** c.x[k]:,.4g}"
        ability_rows.append([name, f"{abilities[k]:.2f}", f"{error[k]:.2f}"])
    slice_rows = [["slice", "penalty (logits)", "±"]]
    for k in result.columns("slice "):
        name = result.names[k].removeprefix("slice ")
        slice_rows.append([name, f"{result.mean[k]:.2f}", f"{error[k]:.2f}"])
    item_rows = [["hardest items", "difficulty"]]
    item_rows += [[c.items[k], f"{difficulty[k]:.2f}"] for k in np.argsort(-difficulty)[:8]]
    horizon_rows = [["checkpoint", "success", "difficulty", "90%", "minutes, if it is their log2"]]
    found = horizons.find_horizons(result)
    for h in found:
        name = f"{h.run} {10**h.x:,.4g}"
        minutes = (
            f"{2 ** h.difficulty[1]:.3g} [{2 ** h.difficulty[0]:.3g}, {2 ** h.difficulty[2]:.3g}]"
        )
        middle = f"{h.difficulty[1]:.2f}"
        interval = format_interval(h.difficulty[::2], 2)
        horizon_rows.append([name, f"{h.success:.0%}", middle, interval, minutes])
    # A table without rows, such as of slices where there is one, is left out.
    growth = horizons.find_growth(result, t)
    growth_rows = _tabulate_growth(growth)
    tables = [rows, ability_rows, horizon_rows, growth_rows, slice_rows, item_rows]
    tables = [table for table in tables if len(table) > 1]
    figures |= {
        "converged": result.converged,
        "abilities": abilities,
        "horizons": found,
        "growth": growth,
    }
    figures["difficulty"] = dict(zip(c.items, difficulty, strict=True))
    parts = ["## Items and abilities", *report.convergence_warning(result.converged), *tables]
    return Answer(figures, [*parts, lambda: report.item_figure(difficulty, abilities)])


def _tabulate_growth(growth):
    """How fast horizons grow: doublings, where the difficulty is a logarithm of base 2."""
    rows = [["horizon at", "difficulty more", "90%", "doubles every", "one unit on, 90%"]]
    for g in growth:
        low, middle, _ = g.slope
        # A slope that may be 0 or fall has no time in which it doubles.
        name = "months" if g.unit == "year" else f"{g.unit}s"
        per = 12 if g.unit == "year" else 1
        twice = f"{per / middle:.3g} {name}" if low > 0 else "unknown"
        slope = f"{middle:.2f} a {g.unit}, {g.systems} systems"
        ends = (format_interval(bounds[::2], 2) for bounds in (g.slope, g.ahead))
        rows.append([f"{g.success:.0%}", slope, next(ends), twice, next(ends)])
    return rows


def forecast(args: Namespace) -> Answer:
    """At which compute a number of nines is reached, with what probability."""
    if not 0 < args.probability < 1 or not 0 < args.decades <= 4:
        raise UserError("--probability must lie between 0 and 1, --decades above 0 and at most 4")
    t = _read(args)
    schedule = None
    if args.schedule:
        schedule = _read_schedule(args.schedule, trials.log_progress(t)[1])
    families = _parse_pairs(args.family, float)
    slices = _parse_pairs(args.slice, float)
    f = readiness.forecast(t, args.decades, families, slices, args.run)
    h = headlines.summarize(f, args.nines, args.probability, schedule)
    parts = page.headline_parts(h, f)
    if schedule:
        parts += _describe_schedule(schedule, h)
    if args.record:
        is_new = record.append(args.record, h)
        what = "is recorded in" if is_new else "was recorded before, and stays as it is, in"
        parts.append(f"This forecast {what} {args.record}.")
    # Only a page has room for the context, which takes several times as long as the forecast.
    if args.page:
        past = headlines.replay(t, h)
        context = page.context_parts(t, f, h, past)
        top = [page.say_trust(past), lambda: page.reliability_figure(f, h)]
        parts = [*parts[:2], *top, *parts[2:], *context]
    return Answer(h, parts)


def _read_schedule(path, unit):
    """The (date, compute or step) of each row, in the unit that the trials have."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        rows = list(csv.DictReader(lines, skipinitialspace=True))
        # The day as it is written: in UTC a midnight may be of the day before.
        return [(parse_date(row["date"][:10]), float(row[unit])) for row in rows]
    except KeyError as error:
        raise UserError(
            f"{path} is not a schedule for these trials: there is no column {error}; their "
            f"progress is in {unit}{'s' * (unit == 'step')}, so it needs date and {unit}"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a schedule: {error}") from None


def _describe_schedule(schedule, h):
    """Sentences on what a schedule cannot date, or dates before today."""
    what = "" if h.unit == "compute" else "step "
    now, end = (10**place for place in (h.places[0], h.places[-1]))
    (begins, first), (ends, last) = schedule[0], schedule[-1]
    if now < first:
        yield (
            f"The schedule begins at {what}{first:.6g} on {begins}, and the last checkpoint is at "
            f"{now:.6g}: what is reached before has no date."
        )
    if end > last:
        yield f"The schedule ends at {what}{last:.6g} on {ends}: what is reached later has no date."
    # What holds already is no date on the page.
    ahead = [
        date
        for level in h.levels
        for place, date in zip((level.sure, level.low, level.high), level.dates, strict=True)
        if date and place > h.places[0] + 1e-9
    ]
    if any(date < h.made for date in ahead):
        yield (
            f"By the schedule the run is past {what}{now:.6g} by now ({h.made}), where it was last "
            "tried: dates before today say when a level would have been reached. Try it as it is."
        )


def backtest(args: Namespace) -> Answer:
    """How good such forecasts were on this table, compared with simple baselines."""
    t = _read(args)
    origin = args.origin
    target = args.target
    if args.record:
        return _score_record(args.record, t)
    if (origin is None) != (target is None) or (origin and not 0 < origin < target):
        raise UserError(
            "--origin and --target go together, both above 0, the target above the origin"
        )
    if not origin and releases.are_finished(t):
        return _score_releases(t, args)
    c = trials.accuracy_curves(t)
    if origin:
        past = backtests.over_sizes(c, math.log10(origin), math.log10(target), args.threshold)
    else:
        past = backtests.over_time(c, args.threshold)
    summary = backtests.summarize(past)
    return Answer(summary, ["## Past forecasts, scored", *report.score_parts(summary)])


def _score_releases(t, args):
    """How forecasts of later systems did, where none has checkpoints."""
    past = releases.backtest(t, args.threshold)
    undated = np.unique(t.run[t.date == ""])
    if len(undated):
        text = f"systems without a date: {list_some(undated)}"
        args.notes += (Note("dropped", text, int((t.date == "").sum())),)
    origins = len({p.origin for p in past})
    systems = len({p.run for p in past})
    text = (
        f"{systems} systems, each forecast up to {releases.HORIZON * 12:g} months before its "
        f"release by those that were out, from {origins} dates."
    )
    summary = backtests.summarize(past)
    parts = ["## Later systems, forecast by earlier ones", text, *report.score_parts(summary)]
    return Answer(vars(summary) | {"systems": systems, "origins": origins}, parts)


def _score_record(path, t):
    """How the forecasts in a file did, by a table that has grown since."""
    scored, still_open = record.score_all(path, t)
    summary = headlines.summarize_scores(scored)
    forecasts = plural("forecast", still_open)
    text = f"Open: {still_open} {forecasts}, of which the table has no later checkpoint."
    parts = [
        "## The record of forecasts",
        *page.past_parts(scored),
        *([text] if still_open else []),
    ]
    return Answer({"scored": scored, "open": still_open, "summary": summary}, parts)


def observe(args: Namespace) -> Answer:
    """What systems will do on a task from what they do on others."""
    t = _read(args)
    systems = {
        task: observational.build_systems(t, task, args.predictors, args.task) for task in args.task
    }
    if args.score_above:
        return _score_systems(systems, args.score_above)
    rows = [["task", "system", "accuracy", "90%"]]
    predictions = {}
    for task, s in systems.items():
        # A task that a system did not try is what is wanted.
        wanted = ~np.isfinite(s.y)
        draws = observational.predict(s, ~wanted, wanted)
        quantiles = np.quantile(draws, (0.05, 0.5, 0.95), axis=0).T
        predictions[task] = dict(zip(s.name[wanted], quantiles, strict=True))
        for name, q in predictions[task].items():
            rows.append([task, name, f"{q[1]:.3f}", format_interval(q[::2], 3)])
    if len(rows) == 1:
        raise UserError(
            f"every system has tried {' and '.join(args.task)}; there is nothing to predict"
        )
    return Answer(predictions, ["## From what the systems do on other tasks", rows])


def _score_systems(systems, compute):
    scores = {task: observational.score_above(s, compute) for task, s in systems.items()}
    values = np.array([astuple(s) for s in scores.values()])
    counts = values[:, 0]
    # Every forecast counts the same, whatever its task.
    _, *means = np.average(values, axis=0, weights=counts)
    every = observational.Scores(int(counts.sum()), *means)
    rows = [["task", "systems", "squared error", "90% interval covers", "CRPS"]]
    for task, s in [*scores.items(), ("all", every)]:
        count, *row = astuple(s)
        rows.append([task, count, *(f"{v:.4f}" for v in row)])
    figures = {"tasks": scores} | vars(every)
    return Answer(figures, [f"## Systems above {compute:g} FLOP, from those up to it", rows])


def _read_lines(path):
    if not path.is_file():
        raise UserError(
            f"{path} is not a file; --items takes ids with commas, or @FILE with one id a line"
        )
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; save it with that encoding") from None


def audit_demo(args: Namespace) -> Answer:
    """How much a choice of items flatters a system."""
    names = args.items.split(",")
    if args.items.startswith("@"):
        names = _read_lines(Path(args.items[1:]))
    chosen = [name.strip() for name in names if name.strip()]
    a = audit.audit_demo(_read(args), args.run, chosen, args.hash)
    matches = {None: "unknown: no hash given", True: "the hash matches", False: "it does NOT match"}
    by_chance = "unknown: no other system" if a.p_value is None else f"p = {a.p_value:.4f}"
    rates = f"{a.pass_rate:.3f}; {a.suite_pass_rate:.3f}"
    facts = {
        "items of the demo, of a suite of": f"{a.items} of {a.suite}",
        "as easy by chance, as other systems find them": by_chance,
        "pass rate of those items over all trials; suite": rates,
        "attempts until one is clean, likelier than not": f"{a.attempts_until_clean:.3g}",
        **{f"slice {name}": f"{rate:.3f}" for name, rate in a.slices.items()},
        "chosen before the demo?": matches[a.hash_matches],
        "hash of these items": a.item_hash,
    }
    borrowed = ", if its tries correlate as other systems' do"
    if a.pass_at_k is not None:
        facts[f"whole suite: best of {a.k}"] = f"{a.pass_at_k:.3f}"
        borrowed = ""
    if a.pass_hat_k is not None:
        facts[f"whole suite: all of {a.k}{borrowed}"] = f"{a.pass_hat_k:.3f}"
    return Answer(a, ["## How much the demo flatters", facts_table(facts)])


def compare(args: Namespace) -> Answer:
    """Two runs at their last checkpoints, paired by item; also by task, where there are several."""
    _check_confidence(args)
    first, second = args.runs
    old = compares.choose_run(_read_baseline(args), first) if args.baseline else None
    t = _read(args)
    if first == second and not args.baseline:
        there = compares.name_checkpoints(t, first)
        pair = f"name checkpoints of it, {there[0]} {there[-1]}; " if there else ""
        raise UserError(
            f"the run {first!r} would be compared with itself; {pair}where old and new logs have "
            f"one name, use ramp nines compare NEW {first} {second} --baseline OLD"
        )
    new = compares.choose_run(t, second)
    pairs = compares.pair_items(compares.choose_run(t, first) if old is None else old, new)
    first += " (baseline)" if args.baseline else ""
    whole, *tasks = compares.compare_runs(pairs, args.confidence, args.unit)
    units = plural(whole.unit, 2)
    found = f"none: {whole.units} {units} are too few for any"
    if whole.detectable is not None:
        found = f"{whole.detectable:.4f}"
    facts = {
        f"{second} - {first}": f"{whole.difference:+.4f}",
        f"interval at {args.confidence:.6g}": format_interval(whole.interval),
        "p, of no difference": f"{whole.p_value:.4g}",
        "least difference found with 80% power": found,
        "items, paired": whole.items,
        "independent of each other": f"{whole.units} {units}",
    }
    facts |= {f"rows of {run}": rows for run, rows in zip((first, second), pairs.rows, strict=True)}
    if pairs.drawn:
        facts["items that one run tried more often"] = (
            f"{pairs.drawn}: as many tries of each run count, drawn at random"
        )
    parts = ["## Two runs", facts_table(facts)]
    if whole.unit == "family" and min(c.units for c in (whole, *tasks)) == 1:
        parts.append(
            "One family is one unit, and shows nothing alone; --unit item if its items are "
            "independent of each other."
        )
    if tasks:
        rows = [["task", "difference", "interval", "p", "q", "different"]]
        for c in tasks:
            shown = "yes" if c.q_value <= 1 - args.confidence else "not shown"
            interval = format_interval(c.interval)
            row = [c.task, f"{c.difference:+.4f}", interval, f"{c.p_value:.4g}", f"{c.q_value:.4g}"]
            rows.append([*row, shown])
        parts += ["Of tasks called different, q is the share that is not, on average:", rows]
    return Answer(vars(whole) | {"tasks": tasks}, parts)


def monitor(args: Namespace) -> Answer:
    """A live log in order: its pass rate, and an alarm where it or a budget broke."""
    if args.one_in < 1:
        raise UserError("--one-in must be 1 or more: the trials that pass for each false alarm")
    t = _read(args)
    if args.since:
        # Of text, numbers and dates alike, what sorts before it is left out.
        values = getattr(t, args.by)
        since = parse_date(args.since) if args.by == "date" else parse_number(args.since)
        if since is None:
            raise UserError(f"--since {args.since} is no number, as a {args.by} is")
        # Refuses trials without a place, which would vanish unsaid.
        monitors.order_trials(t, args.by)
        t = t[values >= since]
        if not len(t):
            raise UserError(f"no trial has a {args.by} of {args.since} or later")
    streams = monitors.build_streams(t, args.rate, args.seconds, args.cost, args.within)
    w = monitors.watch(t, streams, args.by, args.one_in)
    often = f"one in {w.one_in:,.0f} trials at most, if trials are independent of each other"
    facts = {"trials": w.trials, "false alarms": often}
    partial = int(((t.success > 0) & (t.success < 1 - 1e-9)).sum())
    if partial:
        facts["scored between 0 and 1, counted as failed"] = partial
    for s in streams:
        r = w.recent[s.name]
        facts[f"{s.name}: share of good trials, asked for"] = f"{w.rates[s.name]:.4f}, {s.share:g}"
        facts[f"{s.name}: of the last {r.trials}"] = f"{r.rate:.4f}; {format_interval(r.interval)}"
    for name, count in w.unknown.items():
        facts[f"{name}: unknown, not counted"] = count
    text = f"No alarm in {w.trials:,} trials."
    if a := w.alarm:
        share = f"the share of trials good by {a.stream}"
        what = (
            f"{share} is {a.after:.4f}, and it was never shown to be higher; if that is as it "
            "should be, watch for another rate (--rate, --within)"
        )
        if a.before is not None:
            what = (
                f"{share} fell from {a.before:.4f} to {a.after:.4f}, most likely from {a.change} "
                f"on, {a.since:,} trials before"
            )
        text = (
            f"ALARM at {args.by} {a.at}, after {a.trials:,} trials: {what}. "
            f"Once it is mended, --since leaves out what is before a {args.by}."
        )
    return Answer(w, [text, facts_table(facts)], int(w.alarm is not None))

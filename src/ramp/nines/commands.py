"""`ramp nines ...`: from a file of trials to a table for people, --json for programs, --page for a meeting."""

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

from ramp.errors import UserError

VERBS = {
    "plan": "how many trials it takes to certify a number of nines, and who bears which risk",
    "certify": "what the trials of the last checkpoint prove, without a model",
    "fit": "which items are hard, how able each checkpoint is, how correlated failures are",
    "forecast": "at which compute r nines are reached, with what probability",
    "backtest": "how good such forecasts were on this table, beside simple baselines",
    "audit-demo": "how much a choice of items flatters a system",
    "compare": "two runs, paired by item, with the difference that could have been found",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for verb, text in VERBS.items():
        p = verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        p.add_argument("--json", action="store_true", help="print figures for a program instead")
        p.add_argument("--page", type=Path, metavar="FILE", help="write an HTML page as well")
        if verb != "plan":
            p.add_argument(
                "file", type=Path, help="a table of trials or an evaluation log (columns: see nines/trials.py)"
            )
            p.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help="keep only these rows")
        if verb in ("plan", "certify"):
            p.add_argument("--nines", type=float, default=3.0 if verb == "plan" else 2.0, help="level to show")
            p.add_argument("--confidence", type=float, default=0.95)
        if verb == "plan":
            p.add_argument("--rho", type=float, default=0.5, help="correlation of tries at one item (default .5)")
        if verb == "forecast":
            p.add_argument("--nines", type=float, nargs="+", default=[1.0, 2.0, 3.0])
            p.add_argument("--probability", type=float, default=0.8, help="how sure it must be (default .8)")
            p.add_argument("--decades", type=float, default=1.0, help="how far ahead, in powers of ten (default 1)")
            p.add_argument("--run", help="whose future (default: the run that got furthest)")
            p.add_argument(
                "--family", action="append", default=[], metavar="NAME=SHARE", help="usage mix over families"
            )
            p.add_argument("--slice", action="append", default=[], metavar="NAME=SHARE", help="usage mix over slices")
            p.add_argument("--schedule", type=Path, metavar="CSV", help="date,compute: what will have been spent when")
            p.add_argument("--record", type=Path, metavar="JSONL", help="append this forecast, to be scored later")
        if verb == "backtest":
            p.add_argument(
                "--origin", type=float, help="with --target: forecast at this step (or compute) of each run ..."
            )
            p.add_argument("--target", type=float, help="... its accuracy there, all smaller runs known to the end")
            p.add_argument("--threshold", type=float, nargs="+", default=[], help="score also 'will it reach T?'")
            p.add_argument("--record", type=Path, metavar="JSONL", help="score the forecasts recorded there")
        if verb == "audit-demo":
            p.add_argument("--run", required=True, help="the system that was shown")
            p.add_argument("--items", required=True, help="what the demo showed: ids with commas, or @FILE, one a line")
            p.add_argument("--seal", help="the hash that was published before the demo")
        if verb == "compare":
            p.add_argument("runs", nargs=2, metavar="RUN")


def run(args: argparse.Namespace) -> int:
    """Print what the verb found; each verb gives (figures, parts of the page)."""
    verb = args.what
    work = {"plan": _plan, "certify": _certify, "fit": _fit, "forecast": _forecast}
    work |= {"backtest": _backtest, "audit-demo": _audit, "compare": _compare}
    figures, parts = work[verb](args)
    if args.page:
        from ramp.nines import page

        page.write(args.page, f"ramp nines {verb}" + (f": {args.file.name}" if verb != "plan" else ""), parts)
    if args.json:
        print(json.dumps(_plain(figures), indent=1, allow_nan=False))
    else:
        for part in parts:
            _show(part)
    return 0


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(part: Any) -> None:
    if isinstance(part, str):
        print(part.removeprefix("## "))
    elif isinstance(part, list):
        widths = [max(len(str(row[k])) for row in part) for k in range(len(part[0]))]
        for row in part:
            print("  " + "  ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
        print()


def _plan(args: argparse.Namespace) -> tuple[dict, list]:
    from ramp.nines import exact
    from ramp.nines.sequential import SPRT

    if not 0 < args.nines <= 6 or not 0 <= args.rho < 1:
        raise UserError("a plan needs --nines above 0 and at most 6, and --rho in [0, 1)")
    bad = 1 - 10**-args.nines
    truths = [1 - (1 - bad) * f for f in (3, 1, 0.5, 0.2, 0.1)]
    rows = [["failures allowed", "distinct trials", *(f"passes if {t:.6g}" for t in truths)]]
    plans = []
    for failures in (0, 1, 2, 3, 5):
        n = exact.demonstration(bad, failures, args.confidence)
        passes = [exact.pass_probability(n, failures, t) for t in truths]
        plans.append({"failures": failures, "trials": n, "passes": dict(zip(map(str, truths), passes, strict=True))})
        rows.append([failures, f"{n:,}", *(f"{p:.1%}" for p in passes)])
    test = SPRT(bad, 1 - (1 - bad) / 5, 1 - args.confidence, 1 - args.confidence)
    needs = [["tries an item", "distinct items", "trials"]]
    for tries in (1, 2, 4, 16):
        items = math.ceil(plans[0]["trials"] * (1 + (tries - 1) * args.rho) / tries)
        needs.append([tries, f"{items:,}", f"{items * tries:,}"])
    expected = {f"{t:.6g}": test.expected_trials(t) for t in truths}
    text = (
        f"Or one trial after the other, {test.bad:.6g} against {test.good:.6g}: accept after {test.clean:,} clean trials, each "
        f"failure costs {test.price:,} more; on average "
        + ", ".join(f"{n:,.0f} trials at {t}" for t, n in expected.items()) + " (Wald's approximation)."
    )  # fmt: skip
    figures = {"reliability": bad, "plans": plans, "items": needs[1:]}
    figures["sequential"] = {"clean": test.clean, "price": test.price, "expected_trials": expected}
    parts = [f"To show {bad:.6g} with {args.confidence:.0%} confidence, on items drawn from production:", rows]
    return figures, [
        *parts,
        f"Repeats of an item are correlated ({args.rho:g}); for as much as {plans[0]['trials']:,}:",
        needs,
        text,
    ]


def _certify(args: argparse.Namespace) -> tuple[dict, list]:
    from ramp.nines import exact, page, ready
    from ramp.nines.sequential import SPRT, confidence_sequence

    t = _table(args)
    wins, tries, _, first = ready.last_cells(t)
    n, good = len(first), int(first.sum())
    bad = 1 - 10**-args.nines
    test = SPRT(bad, 1 - (1 - bad) / 5, 1 - args.confidence, 1 - args.confidence)
    low = exact.clopper_pearson(good, n, 2 * args.confidence - 1)[0]
    need = exact.demonstration(bad, n - good, args.confidence)
    rho, levels = exact.icc(wins, tries), ready.ladder(t, args.nines)
    k = int(min(8, tries.min()))
    rows = [["what", "figure"], ["distinct items, one trial each", n], ["failures among them", n - good]]
    rows += [[f"shown at {args.confidence:.0%}: reliability of at least", f"{low:.5f} ({exact.nines(low):.2f} nines)"]]
    ever = confidence_sequence(good, n - good, args.confidence)
    rows += [["the same, valid however often one looks", f"{ever[0]:.5f} .. {ever[1]:.5f}"]]
    rows += [
        [
            "Wilson, Jeffreys",
            ", ".join(f"{v[0]:.4f} .. {v[1]:.4f}" for v in (exact.wilson(good, n), exact.jeffreys(good, n))),
        ]
    ]
    rows += [
        [
            "trials in all, worth independent ones",
            f"{int(tries.sum())}, {exact.effective_trials(len(tries), tries.mean(), 0 if math.isnan(rho) else rho):.0f}",
        ]
    ]
    rows += [
        ["correlation of tries at one item", "unknown: no item was tried twice" if math.isnan(rho) else f"{rho:.2f}"]
    ]
    if k > 1:
        rows += [[f"pass@{k}, pass^{k}", f"{exact.pass_at(k, wins, tries):.4f}, {exact.pass_hat(k, wins, tries):.4f}"]]
    rows += [[f"sequential test of {args.nines:g} nines", test.decide(good, n - good)]]
    rows += [["further clean items that would show it", f"{max(0, need - n):,}"]]
    steps = [["level", "reached", "why"], *([a, "yes" if b else "no", c] for a, b, c in levels)]
    figures = {
        "items": n,
        "failures": n - good,
        "lower": low,
        "always_valid": ever,
        "icc": rho,
        "more": max(0, need - n),
    }
    figures |= {"sequential": test.decide(good, n - good), "ladder": [(a, bool(b), c) for a, b, c in levels]}
    return figures, [
        "## What the last checkpoint's trials prove",
        rows,
        steps,
        *([page.steps(levels)] if args.page else []),
    ]


def _fit(args: argparse.Namespace) -> tuple[dict, list]:
    import numpy as np

    from ramp.nines import items, page

    fit = items.fit(items.cells(_table(args)))
    c, m = fit.cells, len(fit.cells.models)
    sd, low, high = fit.hyper.mean(0), *np.quantile(fit.hyper, (0.05, 0.95), axis=0)
    rows = [["scale", "mean", "90%"]]
    for k, name in enumerate(("spread of items (logits)", "spread of families", "precision of repeats φ")):
        rows.append([name, f"{sd[k]:.2f}", f"{low[k]:.2f} .. {high[k]:.2f}"])
    rho = 1 / (1 + fit.hyper[:, 2])
    rows.append(
        [
            "correlation of repeats beyond the item",
            f"{rho.mean():.2f}",
            f"{np.quantile(rho, 0.05):.2f} .. {np.quantile(rho, 0.95):.2f}",
        ]
    )
    lapse = 1 / (1 + np.exp(-fit.effects[:, -2]))
    rows.append(
        ["lapse now", f"{np.median(lapse):.4f}", f"{np.quantile(lapse, 0.05):.4f} .. {np.quantile(lapse, 0.95):.4f}"]
    )
    error = np.sqrt(np.diag(fit.cov))
    able = [
        ["checkpoint", "ability", "±"],
        *([f"{r} {x:.3f}", f"{fit.mean[k]:.2f}", f"{error[k]:.2f}"] for k, (r, x) in enumerate(c.models)),
    ]
    cost = [
        ["slice", "penalty (logits)", "±"],
        *([fit.names[k][6:], f"{fit.mean[k]:.2f}", f"{error[k]:.2f}"] for k in fit.columns("slice ")),
    ]
    hard = fit.difficulty()
    worst = [["hardest items", "difficulty"], *([c.items[k], f"{hard[k]:.2f}"] for k in np.argsort(-hard)[:8])]
    figures = {
        "scales": dict(zip(("item", "family", "phi"), sd.tolist(), strict=True)),
        "lapse": float(np.median(lapse)),
    }
    figures |= {"abilities": fit.mean[:m].tolist(), "difficulty": dict(zip(c.items, hard.tolist(), strict=True))}
    picture = [page.item_map(hard, fit.mean[:m])] if args.page else []
    return figures, ["## Items and abilities", rows, able, *([cost] if len(cost) > 1 else []), worst, *picture]


def _forecast(args: argparse.Namespace) -> tuple[dict, list]:
    import numpy as np

    from ramp.nines import backtest, page, ready, trials

    if not 0 < args.probability < 1 or not 0 < args.decades <= 4 or min(args.nines) <= 0:
        raise UserError("--probability must lie between 0 and 1, --decades above 0 and at most 4, --nines above 0")
    t = _table(args)
    families, slices = _pairs(args.family, True), _pairs(args.slice, True)
    if (t["item"] == "").all() and (families or slices):
        raise UserError("a usage mix needs the items behind the accuracies; this table holds aggregates only")
    o = ready.outlook(t, args.decades, families, slices, args.run)
    plan = _schedule(args.schedule, o.unit) if args.schedule else None
    k = int(np.searchsorted(o.grid, o.now))
    now = np.quantile(o.mix[:, k], (0.05, 0.5, 0.95))
    rows = [
        [
            "nines",
            "now",
            f"first {args.probability:.0%} sure at",
            "80% of futures reach it",
            f"never within {10**args.decades:.3g}x",
        ]
    ]
    figures: dict = {
        "now": dict(zip(("low", "median", "high"), now.tolist(), strict=True)),
        "unit": o.unit,
        "levels": [],
    }
    for r in args.nines:
        passage, sure = o.passage(r), o.at(r, args.probability)
        low, high = np.quantile(passage, (0.1, 0.9), method="inverted_cdf")
        never = float(np.isinf(passage).mean())
        held = float(o.ready(r)[:, k].mean())
        when = [_amount(v, o.now, o.unit) for v in (sure, low, high)]
        row = {"nines": r, "now": held, "sure": sure, "low": low, "high": high, "never": never}
        if plan:
            row["date"] = ready.dates(plan, np.array([v if np.isfinite(v) else 99.0 for v in (sure, low, high)]))
            when = [w + (f" {d}" if d else "") for w, d in zip(when, row["date"], strict=True)]
        figures["levels"].append(row)
        rows.append([f"{r:g}", f"p = {held:.2f}", when[0], f"{when[1]} to {when[2]}", f"p = {never:.2f}"])
    targets = o.grid[o.grid > o.now]
    if args.record:
        # What a later accuracy will show: the mix with the error that an accuracy has now.
        shown = o.mix[:, o.grid > o.now]
        half = (o.seen[-1][3] - o.seen[-1][2]) / 2 / 1.645
        noise = np.random.default_rng(0).standard_normal(shown.shape) * half
        task = str(t["task"][0]) if len(np.unique(t["task"])) == 1 else "all"
        backtest.issue(
            args.record, args.run or _last_run(t), task, o.now, o.unit, targets, np.clip(shown + noise, 0, 1)
        )
    best = max(o.weights, key=o.weights.get)
    end = np.quantile(o.mix[:, -1], (0.05, 0.5, 0.95))
    figures |= {"shapes": o.weights, "widened": o.widened, "end": end.tolist()}
    text = f"Now {now[1]:.4f} [{now[0]:.4f}, {now[2]:.4f}] (90%); at {10**args.decades:.3g}x "
    text += f"{end[1]:.4f} [{end[0]:.4f}, {end[2]:.4f}]."
    text += f" Shapes by past score: {best} first with {o.weights[best]:.2f}; intervals widened by {o.widened:.2f}."
    parts = ["## Reliability of the usage mix", text, rows]
    if (t["item"] == "").all():
        parts.append(
            "These are accuracies without items: lapses and correlations cannot be told, more nines are guesses."
        )
    elif len(o.seen) < 5:
        parts.append(f"{len(o.seen)} checkpoints are few: the intervals are wide because they must be.")
    if args.page:
        parts += [page.reliability(o), *_page_extras(args, t, trials.curves(t))]
    return figures, parts


def _page_extras(args: argparse.Namespace, t: dict, c: dict) -> list:
    """What stands beside a forecast in a meeting: what the trials prove, and how past forecasts on this table did."""
    import numpy as np

    from ramp.nines import backtest, page, ready

    parts: list = []
    try:
        levels = ready.ladder(t)
        rows = [["level", "reached", "why"], *([a, "yes" if b else "no", w] for a, b, w in levels)]
        wins, tries, _, _ = ready.last_cells(t)
        parts += ["## What is shown today", rows, page.steps(levels), *_flattery(wins, tries)]
    except UserError as error:
        parts.append(f"What is shown today cannot be said: {error}.")
    try:
        past = [p for _, p in backtest.over_time(backtest.take(c, np.isfinite(c["x"])))]
        parts += [
            "## How such forecasts did on this table",
            *_scores(past, backtest.summary(past)),
            page.calibration(backtest.summary(past)),
        ]
    except UserError as error:
        parts.append(f"No past forecast could be scored: {error}.")
    return parts


def _flattery(wins: Any, tries: Any) -> list:
    from ramp.nines import exact

    k = int(min(8, tries.min()))
    if k < 2:
        return ["No item was tried twice, so how much the best of several takes flatters cannot be said."]
    best, all_ = exact.pass_at(k, wins, tries), exact.pass_hat(k, wins, tries)
    return [f"Best of {k} takes: {best:.3f}; all of {k}: {all_:.3f}. A demo shows the first, a user meets the second."]


def _last_run(t: dict) -> str:
    from ramp.nines import trials

    return str(t["run"][trials.progress(t)[0].argmax()])


def _schedule(path: Path, unit: str) -> list[tuple[str, float]]:
    import datetime

    if unit != "compute":
        raise UserError("dates come from a schedule of compute, and these trials have no compute; add that column")
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
        return [(datetime.date.fromisoformat(r["date"]).isoformat(), float(r["compute"])) for r in rows]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a schedule ({error}); it needs the columns date and compute") from None


def _backtest(args: argparse.Namespace) -> tuple[dict, list]:
    import numpy as np

    from ramp.nines import backtest, page, trials

    c = trials.curves(_table(args))
    c = backtest.take(c, np.isfinite(c["x"]))
    if args.record:
        scored, waiting = backtest.resolve(args.record, c)
        rows = [["resolved", "CRPS", "persistence", "covered by 80%", "still open"]]
        mean = [
            float(np.mean([r[k] for r in scored if k in r])) if any(k in r for r in scored) else math.nan
            for k in ("crps", "persistence", "covered80")
        ]
        rows.append([len(scored), *(f"{v:.4f}" for v in mean), waiting])
        return {"resolved": scored, "open": waiting}, ["## The record of live forecasts", rows]
    if (args.origin is None) != (args.target is None):
        raise UserError("--origin and --target go together")
    thresholds = tuple(args.threshold)
    if args.origin is not None:
        if not 0 < args.origin < args.target:
            raise UserError("--origin must be above 0 and below --target")
        past = backtest.over_sizes(c, math.log10(args.origin), math.log10(args.target), thresholds)
    else:
        past = [p for _, p in backtest.over_time(c, thresholds)]
    s = backtest.summary(past)
    return s, ["## Past forecasts, scored", *_scores(past, s), *([page.calibration(s)] if args.page else [])]


def _scores(past: list, s: dict) -> list:
    rows = [["method", "CRPS", "90% interval covers"]]
    rows += [
        [m, f"{v['crps']:.4f}", f"{v['coverage']:.3f}"]
        for m, v in sorted(s["methods"].items(), key=lambda kv: kv[1]["crps"])
    ]
    parts: list = [
        f"{s['forecasts']} forecasts; the 80% interval covers {s['coverage80']:.3f}; median misses by {s['mae']:.4f}.",
        rows,
    ]
    if "events" in s:
        e = s["events"]
        parts.append(
            f"{e['count']} events 'reaches T': Brier {e['brier']:.4f}, of their rate {e['rate']:.3f} alone {e['base_brier']:.4f}."
        )
    return parts


def _audit(args: argparse.Namespace) -> tuple[dict, list]:
    from ramp.nines import ready

    text = args.items
    if text.startswith("@"):
        if not Path(text[1:]).is_file():
            raise UserError(f"{text[1:]} is not a file; --items takes ids with commas, or @FILE with one id a line")
        text = Path(text[1:]).read_text(encoding="utf-8").replace("\n", ",")
    found = ready.audit(_table(args), args.run, [i.strip() for i in text.split(",") if i.strip()], args.seal)
    rows = [["question", "answer"], ["items shown, of a suite of", f"{found['items']} of {found['suite']}"]]
    p = found["p_value"]
    rows += [["as easy by chance (from other systems)", "no other system to judge by" if p is None else f"p = {p:.4f}"]]
    rows += [
        ["pass rate of those items over all trials; of the suite", f"{found['rerun']:.3f}; {found['suite_mean']:.3f}"]
    ]
    rows += [["takes until one is clean, likelier than not", f"{found['takes']:.3g}"]]
    if "k" in found:
        rows += [
            [
                f"best of {found['k']}, all of {found['k']}, whole suite",
                f"{found['pass_at_k']:.3f}, {found['pass_hat_k']:.3f}",
            ]
        ]
    rows += [[f"slice {s}", f"{v:.3f}"] for s, v in found["slices"].items()]
    sealed = {
        None: "nothing was published: level 1 (demo) at most",
        True: "the published hash agrees",
        False: "the hash does NOT agree",
    }
    rows += [["chosen before the run?", sealed[found["sealed"]]], ["seal of these items", found["seal"]]]
    return found, ["## How much the demo flatters", rows]


def _compare(args: argparse.Namespace) -> tuple[dict, list]:
    import numpy as np

    from ramp.nines import exact

    t = _table(args)
    means = []
    for name in args.runs:
        mine = t["run"] == name
        if not mine.any():
            raise UserError(f"no trial belongs to the run {name!r}; there are {', '.join(np.unique(t['run'])[:8])}")
        if (t["item"][mine] == "").any():
            raise UserError("a paired comparison needs the item of every trial")
        keys = np.array(
            [f"{a}/{b}/{c}" for a, b, c in zip(t["task"][mine], t["item"][mine], t["slice"][mine], strict=True)]
        )
        names, of = np.unique(keys, return_inverse=True)
        means.append(
            dict(zip(names.tolist(), (np.bincount(of, t["success"][mine]) / np.bincount(of)).tolist(), strict=True))
        )
    c = exact.compare(*means)
    rows = [["what", "figure"], [f"{args.runs[1]} - {args.runs[0]}", f"{c.difference:+.4f} ± {c.stderr:.4f}"]]
    rows += [["95% interval", f"{c.interval[0]:+.4f} .. {c.interval[1]:+.4f}"], ["p", f"{c.p_value:.4f}"]]
    rows += [
        ["least difference found with 80% power", f"{c.detectable:.4f}"],
        ["items", f"{c.items} ({'paired' if c.paired else 'two samples'})"],
    ]
    return vars(c), ["## Two runs", rows]


def _pairs(words: list[str], number: bool) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for word in words:
        key, sign, value = word.partition("=")
        try:
            out[key] = float(value) if number else value
        except ValueError:
            sign = ""
        if not sign:
            raise UserError(f"{word!r} must read NAME={'SHARE' if number else 'VALUE'}")
    return out


def _table(args: argparse.Namespace) -> dict:
    from ramp.nines import trials

    return trials.read(args.file, _pairs(args.where, False))


def _amount(log: float, now: float, unit: str) -> str:
    """A place on the axis as a person reads it: how much, and how many times what has been spent."""
    return "not within reach" if math.isinf(log) else f"{unit} {10**log:.3g} ({10 ** (log - now):.2g}x)"

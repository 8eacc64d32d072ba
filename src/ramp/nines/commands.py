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
            p.add_argument("file", type=Path, help="a table of trials (columns: nines/trials.py) or an evaluation log")
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
            for name, kinds in (("--family", "families"), ("--slice", "slices")):
                p.add_argument(name, action="append", default=[], metavar="NAME=SHARE", help=f"usage mix over {kinds}")
            p.add_argument("--schedule", type=Path, metavar="CSV", help="date,compute: what will have been spent when")
            p.add_argument("--record", type=Path, metavar="JSONL", help="append this forecast, to be scored later")
        if verb == "backtest":
            p.add_argument(
                "--origin", type=float, help="with --target: forecast at this step (compute) of each run ..."
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
    """Print what the verb found; each verb gives (figures for a program, parts of a page for people)."""
    work = {"plan": _plan, "certify": _certify, "fit": _fit, "forecast": _forecast}
    work |= {"backtest": _backtest, "audit-demo": _audit, "compare": _compare}
    for path in (args.page, getattr(args, "record", None)):
        if path and (path.is_dir() or not path.parent.is_dir()):
            raise UserError(f"{path} cannot be written; name a file in a directory that exists")
    figures, parts = work[args.what](args)
    if args.page:
        from ramp.nines import page

        name = f": {args.file.name}" if args.what != "plan" else ""
        page.write(args.page, f"ramp nines {args.what}{name}", parts)
    if args.json:
        print(json.dumps(_plain(figures), indent=1, allow_nan=False))
    else:
        for part in parts:
            _show(part)
    return 0


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(part: Any) -> None:
    if isinstance(part, str):
        print(part.removeprefix("## "))
    elif isinstance(part, list):
        widths = [max(len(str(row[k])) for row in part) for k in range(len(part[0]))]
        for row in part:
            print("  " + "  ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
        print()


def _facts(facts: dict[str, Any]) -> list:
    return [["what", "figure"], *([k, v] for k, v in facts.items())]


def _span(bounds: Any, digits: int = 4) -> str:
    return f"{bounds[0]:.{digits}f} .. {bounds[1]:.{digits}f}"


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


def _test(nines: float, confidence: float) -> Any:
    """Wald's test of `nines` against a system that fails a fifth as often."""
    from ramp.nines.sequential import SPRT

    if not 0 < nines <= 6 or not 0.5 < confidence < 1:
        raise UserError("--nines must be above 0 and at most 6, --confidence above .5 and below 1")
    return SPRT(1 - 10**-nines, 1 - 10**-nines / 5, 1 - confidence, 1 - confidence)


def _plan(args: argparse.Namespace) -> tuple[dict, list]:
    from ramp.nines import exact

    test = _test(args.nines, args.confidence)
    if not 0 <= args.rho < 1:
        raise UserError("--rho, the correlation of tries at one item, must be at least 0 and below 1")
    truths = [1 - (1 - test.bad) * f for f in (3, 1, 0.5, 0.2, 0.1)]
    rows = [["failures allowed", "distinct trials", *(f"passes if {t:.6g}" for t in truths)]]
    plans = []
    for failures in (0, 1, 2, 3, 5):
        n = exact.demonstration(test.bad, failures, args.confidence)
        passes = [exact.pass_probability(n, failures, t) for t in truths]
        plans.append({"failures": failures, "trials": n, "passes": dict(zip(truths, passes, strict=True))})
        rows.append([failures, f"{n:,}", *(f"{p:.1%}" for p in passes)])
    clean = plans[0]["trials"]
    items = {tries: math.ceil(clean * (1 + (tries - 1) * args.rho) / tries) for tries in (1, 2, 4, 16)}
    needs = [["tries an item", "distinct items", "trials"], *([k, f"{n:,}", f"{n * k:,}"] for k, n in items.items())]
    expected = {t: test.expected_trials(t) for t in truths}
    means = ", ".join(f"{n:,.0f} trials at {t:.6g}" for t, n in expected.items())
    parts = [f"To show {test.bad:.6g} with {args.confidence:.0%} confidence, on items drawn from production:", rows]
    parts += [f"Tries at one item are correlated ({args.rho:g}); to be worth {clean:,} distinct trials:", needs]
    parts += [f"Or in sequence, {test.bad:.6g} against {test.good:.6g}: accept after {test.clean:,} clean trials,"]
    parts += [f"each failure costs {test.price:,} more; on average {means} (Wald's approximation, a little low)."]
    sequential = {"clean": test.clean, "price": test.price, "expected_trials": expected}
    return {"reliability": test.bad, "plans": plans, "items": items, "sequential": sequential}, parts


def _certify(args: argparse.Namespace) -> tuple[dict, list]:
    from ramp.nines import exact, page, ready
    from ramp.nines.sequential import confidence_sequence

    test, t = _test(args.nines, args.confidence), _table(args)
    wins, tries, _, first = ready.last_cells(t)
    n, good = len(first), int(first.sum())
    low = exact.clopper_pearson(good, n, 2 * args.confidence - 1)[0]
    ever = confidence_sequence(good, n - good, args.confidence)
    more = max(0, exact.demonstration(test.bad, n - good, args.confidence) - n)
    rho, levels = exact.icc(wins, tries), ready.ladder(t, args.nines)
    worth = exact.effective_trials(len(tries), tries.mean(), 0 if math.isnan(rho) else rho)
    facts = {
        "distinct items, one trial each": n,
        "failures among them": n - good,
        f"shown at {args.confidence:.0%}: reliability of at least": f"{low:.5f} ({exact.nines(low):.2f} nines)",
        "the same, however often one looks": _span(ever, 5),
        "Wilson; Jeffreys": f"{_span(exact.wilson(good, n))}; {_span(exact.jeffreys(good, n))}",
        "trials in all; worth so many independent": f"{tries.sum():.0f}; {worth:.0f}",
        "correlation of tries at one item": "unknown: none was tried twice" if math.isnan(rho) else f"{rho:.2f}",
        f"sequential test of {args.nines:g} nines": test.decide(good, n - good),
        "further clean items that would show it": f"{more:,}",
    }
    figures = {"items": n, "failures": n - good, "lower": low, "always_valid": ever, "icc": rho, "more": more}
    figures |= {"sequential": test.decide(good, n - good), "ladder": [(a, bool(b), c) for a, b, c in levels]}
    parts = ["## What the last checkpoint's trials prove", _facts(facts), *_flattery(wins, tries), _levels(levels)]
    return figures, [*parts, *([page.steps(levels)] if args.page else [])]


def _levels(levels: list) -> list:
    return [["level", "reached", "why"], *([a, "yes" if b else "no", c] for a, b, c in levels)]


def _flattery(wins: Any, tries: Any) -> list:
    from ramp.nines import exact

    k = int(min(8, tries.min()))
    if k < 2:
        return ["No item was tried twice, so how much the best of several takes flatters cannot be said."]
    best, all_ = exact.pass_at(k, wins, tries), exact.pass_hat(k, wins, tries)
    return [f"Best of {k} takes: {best:.3f}; all of {k}: {all_:.3f}. A demo shows the first, a user meets the second."]


def _fit(args: argparse.Namespace) -> tuple[dict, list]:
    import numpy as np

    from ramp.nines import items, page

    fit = items.fit(items.cells(_table(args)))
    c, m, error = fit.cells, len(fit.cells.models), np.sqrt(np.diag(fit.cov))
    scales = dict(zip(("item", "family", "phi"), fit.hyper.T, strict=True))
    scales |= {"correlation": 1 / (1 + fit.hyper[:, 2]), "lapse": 1 / (1 + np.exp(-fit.effects[:, -2]))}
    names = (
        "spread of items",
        "spread of families",
        "precision of repeats",
        "correlation beyond the item",
        "lapse now",
    )
    rows = [["scale", "median", "90%"]]
    for name, v in zip(names, scales.values(), strict=True):
        rows.append([name, f"{np.median(v):.4f}", _span(np.quantile(v, (0.05, 0.95)))])
    able = [["checkpoint", "ability", "±"]]
    able += [[f"{r} {x:.3f}", f"{fit.mean[k]:.2f}", f"{error[k]:.2f}"] for k, (r, x) in enumerate(c.models)]
    cost = [["slice", "penalty (logits)", "±"]]
    cost += [[fit.names[k][6:], f"{fit.mean[k]:.2f}", f"{error[k]:.2f}"] for k in fit.columns("slice ")]
    hard = fit.difficulty()
    worst = [["hardest items", "difficulty"], *([c.items[k], f"{hard[k]:.2f}"] for k in np.argsort(-hard)[:8])]
    figures = {name: float(np.median(v)) for name, v in scales.items()}
    figures |= {
        "converged": fit.converged,
        "abilities": fit.mean[:m].tolist(),
        "difficulty": dict(zip(c.items, hard.tolist(), strict=True)),
    }
    picture = [page.item_map(hard, fit.mean[:m])] if args.page else []
    return figures, [
        "## Items and abilities",
        *_unsettled(fit.converged),
        rows,
        able,
        *([cost] if len(cost) > 1 else []),
        worst,
        *picture,
    ]


def _unsettled(converged: bool) -> list:
    from ramp.nines import items

    text = "WARNING: the spread of items and families did not settle; intervals of the item model are widened"
    return [] if converged else [f"{text} {items.UNSETTLED:g} times. More items or more tries would tell."]


def _forecast(args: argparse.Namespace) -> tuple[dict, list]:
    import numpy as np

    from ramp.nines import page, ready, trials

    if not 0 < args.probability < 1 or not 0 < args.decades <= 4 or min(args.nines) <= 0:
        raise UserError("--probability must lie between 0 and 1, --decades above 0 and at most 4, --nines above 0")
    t = _table(args)
    plan = _schedule(args.schedule, trials.progress(t)[1]) if args.schedule else None
    o = ready.outlook(t, args.decades, _pairs(args.family, True), _pairs(args.slice, True), args.run)
    k = int(np.searchsorted(o.grid, o.now))
    now, end = np.quantile(o.mix[:, [k, -1]], (0.05, 0.5, 0.95), axis=0).T
    far = f"{10**args.decades:.3g}x"
    rows = [["nines", "now", f"first {args.probability:.0%} sure at", "80% of futures", f"not within {far}"]]
    levels = []
    for r in args.nines:
        passage, held = o.passage(r), float(o.ready(r)[:, k].mean())
        places = np.array([o.at(r, args.probability), *np.quantile(passage, (0.1, 0.9), method="inverted_cdf")])
        never = float(np.isinf(passage).mean())
        row = {"nines": r, "now": held, "never": never} | dict(zip(("sure", "low", "high"), places, strict=True))
        when = [_amount(v, o) for v in places]
        if plan:
            row["date"] = ready.dates(plan, np.where(np.isfinite(places), places, 99.0))
            when = [f"{w} {d}".strip() for w, d in zip(when, row["date"], strict=True)]
        levels.append(row)
        rows.append([f"{r:g}", f"p = {held:.2f}", when[0], f"{when[1]} to {when[2]}", f"p = {never:.2f}"])
    if args.record:
        ready.record(args.record, t, o)
    best = max(o.weights, key=o.weights.get)
    parts = [
        "## Reliability of the usage mix",
        f"{o.run}: now {now[1]:.4f} [{_span(now[::2])}], at {far} {end[1]:.4f} [{_span(end[::2])}] (90%).",
        f"Growth by past score: {best} leads with weight {o.weights[best]:.2f}; intervals widened by {o.widened:.2f}.",
        *_unsettled(o.converged),
        rows,
    ]
    if (t["item"] == "").all():
        parts.append("Accuracies without items: no lapse can be told from a lack of ability; nines are guesses.")
    elif len(o.seen) < 5:
        parts.append(f"{len(o.seen)} checkpoints are few: the intervals are wide because they must be.")
    if args.page:
        mine = trials.curves(trials.select(t, t["run"] == o.run))
        parts += [page.reliability(o), *_beside(t, mine)]
    figures = {"run": o.run, "unit": o.unit, "now": now, "end": end, "levels": levels}
    return figures | {"shapes": o.weights, "widened": o.widened, "converged": o.converged}, parts


def _amount(log: float, o: Any) -> str:
    """A place on the axis as a person reads it: how much, and how many times what has been spent."""
    return "beyond" if math.isinf(log) else f"{o.unit} {10**log:.3g} ({10 ** (log - o.now):.2g}x)"


def _beside(t: dict, c: dict) -> list:
    """What stands beside a forecast in a meeting: what the trials prove, and how past forecasts of this run did."""
    import numpy as np

    from ramp.nines import backtest, page, ready, trials

    parts: list = ["## What is shown today"]
    try:
        levels, cells = ready.ladder(t), ready.last_cells(t)
        parts += [_levels(levels), page.steps(levels), *_flattery(*cells[:2])]
    except UserError as error:
        parts.append(f"It cannot be said: {error}.")
    parts.append("## How such forecasts of this run did before")
    try:
        s = backtest.summary([p for _, p in backtest.over_time(trials.select(c, np.isfinite(c["x"])))])
        parts += [*_scores(s), page.calibration(s)]
    except UserError as error:
        parts.append(f"None could be scored: {error}.")
    return parts


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
    c = trials.select(c, np.isfinite(c["x"]))
    if args.record:
        scored, waiting = backtest.resolve(args.record, c)
        keys = ("crps", "persistence", "covered80")
        means = {k: float(np.mean([r[k] for r in scored if k in r] or [math.nan])) for k in keys}
        facts = {"resolved; still open": f"{len(scored)}; {waiting}", **{k: f"{v:.4f}" for k, v in means.items()}}
        return {"resolved": scored, "open": waiting, **means}, ["## The record of live forecasts", _facts(facts)]
    if (args.origin is None) != (args.target is None) or (args.origin and not 0 < args.origin < args.target):
        raise UserError("--origin and --target go together, both above 0, the target beyond the origin")
    thresholds = tuple(args.threshold)
    if args.origin:
        past = backtest.over_sizes(c, math.log10(args.origin), math.log10(args.target), thresholds)
    else:
        past = [p for _, p in backtest.over_time(c, thresholds)]
    s = backtest.summary(past)
    return s, ["## Past forecasts, scored", *_scores(s), *([page.calibration(s)] if args.page else [])]


def _scores(s: dict) -> list:
    rows = [["method", "CRPS", "90% interval covers"]]
    for m, v in sorted(s["methods"].items(), key=lambda kv: kv[1]["crps"]):
        rows.append([m, f"{v['crps']:.4f}", f"{v['coverage']:.3f}"])
    text = f"{s['forecasts']} forecasts; 80% interval covers {s['coverage80']:.3f}; median misses by {s['mae']:.4f}."
    if "events" not in s:
        return [text, rows]
    e = s["events"]
    base = f"their rate {e['rate']:.3f} alone would have {e['base_brier']:.4f}"
    return [text, rows, f"{e['count']} events 'reaches T': Brier {e['brier']:.4f}; {base}."]


def _audit(args: argparse.Namespace) -> tuple[dict, list]:
    from ramp.nines import ready

    text = args.items
    if text.startswith("@"):
        if not Path(text[1:]).is_file():
            raise UserError(f"{text[1:]} is not a file; --items takes ids with commas, or @FILE with one id a line")
        text = Path(text[1:]).read_text(encoding="utf-8").replace("\n", ",")
    found = ready.audit(_table(args), args.run, [i.strip() for i in text.split(",") if i.strip()], args.seal)
    p = found["p_value"]
    sealed = {None: "no hash given: a demo at most", True: "the hash agrees", False: "it does NOT agree"}
    facts = {
        "items shown, of a suite of": f"{found['items']} of {found['suite']}",
        "as easy by chance, as other systems find them": "no other system" if p is None else f"p = {p:.4f}",
        "pass rate of those items over all trials; suite": f"{found['rerun']:.3f}; {found['suite_mean']:.3f}",
        "takes until one is clean, likelier than not": f"{found['takes']:.3g}",
        **{f"slice {s}": f"{v:.3f}" for s, v in found["slices"].items()},
        "chosen before the run?": sealed[found["sealed"]],
        "seal of these items": found["seal"],
    }
    if "k" in found:
        whole = f"{found['pass_at_k']:.3f}; {found['pass_hat_k']:.3f}"
        facts[f"whole suite: best of {found['k']}; all of {found['k']}"] = whole
    return found, ["## How much the demo flatters", _facts(facts)]


def _compare(args: argparse.Namespace) -> tuple[dict, list]:
    import numpy as np

    from ramp.nines import exact

    t, means = _table(args), []
    for name in args.runs:
        mine = t["run"] == name
        if not mine.any() or (t["item"][mine] == "").any():
            raise UserError(
                f"no trial of a named item belongs to the run {name!r}; there are {', '.join(np.unique(t['run'])[:8])}"
            )
        keys = ["/".join(k) for k in zip(t["task"][mine], t["item"][mine], t["slice"][mine], strict=True)]
        names, of = np.unique(keys, return_inverse=True)
        means.append(dict(zip(names, np.bincount(of, t["success"][mine]) / np.bincount(of), strict=True)))
    c = exact.compare(*means)
    facts = {
        f"{args.runs[1]} - {args.runs[0]}": f"{c.difference:+.4f} ± {c.stderr:.4f}",
        "95% interval; p": f"{_span(c.interval)}; {c.p_value:.4f}",
        "least difference found with 80% power": f"{c.detectable:.4f}",
        "items": f"{c.items} ({'paired' if c.paired else 'two samples'})",
    }
    return vars(c), ["## Two runs", _facts(facts)]

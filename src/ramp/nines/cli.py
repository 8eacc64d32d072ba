"""`ramp nines ...`: from a file of trials to a table for people, --json for programs, --page for a meeting.

A verb gives (figures, parts): figures for a program, and parts for people as in `tell`.
"""

import argparse
import csv
import datetime
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ramp.errors import UserError

VERBS = {
    "plan": "how many trials it takes to certify a number of nines, and who bears which risk",
    "certify": "what the trials of the last checkpoint prove, without a model",
    "fit": "which items are hard, how able each checkpoint is, how correlated failures are",
    "forecast": "at which compute r nines are reached, with what probability",
    "backtest": "how good such forecasts were on this table, beside simple baselines",
    "observe": "what systems will do on a task from what they do on others, by systems that tried both",
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
                "file",
                type=Path,
                help="a table of trials (columns: nines/trials.py) or an evaluation log",
            )
            p.add_argument(
                "--where",
                action="append",
                default=[],
                metavar="COLUMN=VALUE",
                help="keep only these rows",
            )
        if verb in ("plan", "certify"):
            p.add_argument(
                "--nines", type=float, default=3.0 if verb == "plan" else 2.0, help="level to show"
            )
            p.add_argument("--confidence", type=float, default=0.95)
        if verb == "plan":
            p.add_argument(
                "--rho",
                type=float,
                default=0.5,
                help="correlation of tries at one item (default .5)",
            )
        if verb == "forecast":
            p.add_argument("--nines", type=float, nargs="+", default=[1.0, 2.0, 3.0])
            p.add_argument(
                "--probability", type=float, default=0.8, help="how sure it must be (default .8)"
            )
            p.add_argument(
                "--decades",
                type=float,
                default=1.0,
                help="how far ahead, in powers of ten (default 1)",
            )
            p.add_argument("--run", help="whose future (default: the run that got furthest)")
            for name, kinds in (("--family", "families"), ("--slice", "slices")):
                p.add_argument(
                    name,
                    action="append",
                    default=[],
                    metavar="NAME=SHARE",
                    help=f"usage mix over {kinds}",
                )
            p.add_argument(
                "--schedule",
                type=Path,
                metavar="CSV",
                help="date,compute: what will have been spent when",
            )
            p.add_argument(
                "--record",
                type=Path,
                metavar="JSONL",
                help="append this forecast, to be scored later",
            )
        if verb == "backtest":
            p.add_argument(
                "--origin",
                type=float,
                help="with --target: forecast at this step (compute) of a run ...",
            )
            p.add_argument(
                "--target",
                type=float,
                help="... its accuracy there, all smaller runs known to the end",
            )
            p.add_argument(
                "--threshold",
                type=float,
                nargs="+",
                default=[],
                help="score also 'will it reach T?'",
            )
            p.add_argument(
                "--record", type=Path, metavar="JSONL", help="score the forecasts recorded there"
            )
        if verb == "observe":
            p.add_argument(
                "--task",
                nargs="+",
                required=True,
                help="what is asked: forecast where it was not tried",
            )
            p.add_argument(
                "--by", nargs="+", metavar="TASK", help="tasks to tell it by (default: all others)"
            )
            p.add_argument(
                "--beyond",
                type=float,
                metavar="FLOP",
                help="score it: larger systems from the others",
            )
        if verb == "audit-demo":
            p.add_argument("--run", required=True, help="the system that was shown")
            p.add_argument(
                "--items",
                required=True,
                help="what the demo showed: ids with commas, or @FILE, one a line",
            )
            p.add_argument("--seal", help="the hash that was published before the demo")
        if verb == "compare":
            p.add_argument("runs", nargs=2, metavar="RUN")


def run(args: argparse.Namespace) -> int:
    """Print what the verb found, write the page if one is asked for."""
    verbs = {"plan": plan, "certify": certify, "fit": fit, "forecast": forecast}
    verbs |= {
        "backtest": backtest,
        "observe": observe,
        "audit-demo": audit_demo,
        "compare": compare,
    }
    for path in (args.page, getattr(args, "record", None)):
        if path and (path.is_dir() or not path.parent.is_dir()):
            raise UserError(f"{path} cannot be written; name a file in a directory that exists")
    figures, parts = verbs[args.what](args)
    if args.page:
        from ramp.nines import page

        name = "" if args.what == "plan" else f": {args.file.name}"
        page.write(args.page, f"ramp nines {args.what}{name}", parts)
    if args.json:
        print(json.dumps(_plain(figures), indent=1, allow_nan=False))
        return 0
    for part in parts:
        if isinstance(part, str):
            print(part.removeprefix("## "))
        elif isinstance(part, list):
            widths = [max(len(str(cell)) for cell in column) for column in zip(*part, strict=True)]
            for row in part:
                print(
                    "  "
                    + "  ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
                )
            print()
    return 0


def _plain(value: Any) -> Any:
    """What JSON can hold: no arrays, null for what is not finite."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pairs(words: list[str], convert: Callable[[str], Any] = str) -> dict[str, Any]:
    try:
        return {key: convert(value) for key, value in (word.split("=", 1) for word in words)}
    except ValueError:
        raise UserError(
            f"{' '.join(words)!r} must read NAME=VALUE, the share of a usage mix as a number"
        ) from None


def _table(args: argparse.Namespace) -> dict:
    from ramp.nines import trials

    return trials.read(args.file, _pairs(args.where))


def _test(nines: float, confidence: float) -> Any:
    """Wald's test of `nines` against a system that fails a fifth as often."""
    from ramp.nines.sequential import SPRT

    if not 0 < nines <= 6 or not 0.5 < confidence < 1:
        raise UserError("--nines must be above 0 and at most 6, --confidence above .5 and below 1")
    return SPRT(1 - 10**-nines, 1 - 10**-nines / 5, 1 - confidence, 1 - confidence)


def plan(args: argparse.Namespace) -> tuple[dict, list]:
    from ramp.nines import intervals

    test = _test(args.nines, args.confidence)
    if not 0 <= args.rho < 1:
        raise UserError(
            "--rho, the correlation of tries at one item, must be at least 0 and below 1"
        )
    truths = [1 - (1 - test.bad) * f for f in (3, 1, 0.5, 0.2, 0.1)]
    rows = [["failures allowed", "distinct trials", *(f"passes if {t:.6g}" for t in truths)]]
    plans = []
    for failures in (0, 1, 2, 3, 5):
        n = intervals.trials_to_demonstrate(test.bad, failures, args.confidence)
        passes = [intervals.pass_probability(n, failures, t) for t in truths]
        plans.append(
            {"failures": failures, "trials": n, "passes": dict(zip(truths, passes, strict=True))}
        )
        rows.append([failures, f"{n:,}", *(f"{p:.1%}" for p in passes)])
    clean = plans[0]["trials"]
    items = {
        tries: math.ceil(clean / intervals.effective_trials(1, tries, args.rho))
        for tries in (1, 2, 4, 16)
    }
    needs = [
        ["tries an item", "distinct items", "trials"],
        *([k, f"{n:,}", f"{n * k:,}"] for k, n in items.items()),
    ]
    sequential = {"clean": test.clean_trials, "price": test.trials_per_failure}
    return {"reliability": test.bad, "plans": plans, "items": items, "sequential": sequential}, [
        f"## To show {test.bad:.6g} with {args.confidence:.0%} confidence, on items drawn from production",
        rows,
        f"Tries at one item are correlated ({args.rho:g}); to be worth {clean:,} distinct trials:",
        needs,
        f"Or in sequence, {test.bad:.6g} against {test.good:.6g}: accept after {test.clean_trials:,} clean trials, each failure "
        f"costs {test.trials_per_failure:,} more.",
    ]


def certify(args: argparse.Namespace) -> tuple[dict, list]:
    from ramp.nines import audit, intervals, report
    from ramp.nines.sequential import confidence_sequence

    test, t = _test(args.nines, args.confidence), _table(args)
    wins, tries, _, first = audit.last_cells(t)
    n, good = len(first), int(first.sum())
    low = intervals.clopper_pearson(good, n, 2 * args.confidence - 1)[0]
    ever = confidence_sequence(good, n - good, args.confidence)
    more = max(0, intervals.trials_to_demonstrate(test.bad, n - good, args.confidence) - n)
    rho = intervals.intraclass_correlation(wins, tries)
    worth = intervals.effective_trials(len(tries), tries.mean(), 0 if math.isnan(rho) else rho)
    facts = {
        "distinct items, one trial each": n,
        "failures among them": n - good,
        f"shown at {args.confidence:.0%}: reliability of at least": f"{low:.5f} ({intervals.count_nines(low):.2f} nines)",
        "the same, however often one looks": report.span(ever, 5),
        "Wilson; Jeffreys": f"{report.span(intervals.wilson(good, n))}; {report.span(intervals.jeffreys(good, n))}",
        "trials in all; worth so many independent": f"{tries.sum():.0f}; {worth:.0f}",
        "correlation of tries at one item": "unknown: none was tried twice"
        if math.isnan(rho)
        else f"{rho:.2f}",
        f"sequential test of {args.nines:g} nines": test.decide(good, n - good),
        "further clean items that would show it": f"{more:,}",
        "worst of ten times as many items would fail in": _worst(wins, tries),
    }
    figures = {
        "items": n,
        "failures": n - good,
        "lower": low,
        "always_valid": ever,
        "icc": rho,
        "more": more,
    }
    figures |= {"sequential": test.decide(good, n - good), "ladder": audit.ladder(t, args.nines)}
    parts = [
        "## What the last checkpoint's trials prove",
        report.join_facts(facts),
        *report.ladder(figures["ladder"], wins, tries),
    ]
    return figures, parts


def _worst(wins: Any, tries: Any) -> str:
    """Of their tries, by the tail of the failure rates; each shrunk by half a failure of one try more."""
    from ramp.nines.sequential import predict_worst_rate

    if tries.min() < 4:
        return "unknown: four tries an item would tell"
    try:
        return f"{predict_worst_rate((tries - wins + 0.5) / (tries + 1), 10 * len(wins)):.0%} of its tries"
    except UserError as error:
        return f"unknown: {error}"


def fit(args: argparse.Namespace) -> tuple[dict, list]:
    import numpy as np

    from ramp.nines import items, page, report

    found = items.fit(items.cells(_table(args)))
    c, error, hard = found.cells, np.sqrt(np.diag(found.cov)), found.difficulty()
    scales = {
        "item": ("spread of items", found.hyper[:, 0]),
        "family": ("spread of families", found.hyper[:, 1]),
        "phi": ("precision of repeats", found.hyper[:, 2]),
        "correlation": ("correlation beyond the item", 1 / (1 + found.hyper[:, 2])),
        "lapse": ("lapse now", 1 / (1 + np.exp(-found.effects[:, -2]))),
    }
    rows = [["scale", "median", "90%"]]
    rows += [
        [name, f"{np.median(v):.4f}", report.span(np.quantile(v, (0.05, 0.95)))]
        for name, v in scales.values()
    ]
    able = [["checkpoint", "ability", "±"]]
    able += [
        [f"{r} {x:.3f}", f"{found.mean[k]:.2f}", f"{error[k]:.2f}"]
        for k, (r, x) in enumerate(c.models)
    ]
    cost = [["slice", "penalty (logits)", "±"]]
    cost += [
        [found.names[k][6:], f"{found.mean[k]:.2f}", f"{error[k]:.2f}"]
        for k in found.columns("slice ")
    ]
    worst = [
        ["hardest items", "difficulty"],
        *([c.items[k], f"{hard[k]:.2f}"] for k in np.argsort(-hard)[:8]),
    ]
    abilities = found.mean[: len(c.models)]
    figures = {key: float(np.median(v)) for key, (_, v) in scales.items()} | {
        "converged": found.converged
    }
    figures |= {"abilities": abilities, "difficulty": dict(zip(c.items, hard, strict=True))}
    tables = [table for table in (rows, able, cost, worst) if len(table) > 1]
    parts = [
        "## Items and abilities",
        *report.convergence_note(found.converged),
        *tables,
        lambda: page.item_map(hard, abilities),
    ]
    return figures, parts


def forecast(args: argparse.Namespace) -> tuple[dict, list]:
    from ramp.nines import page, readiness, record, report, trials

    if not 0 < args.probability < 1 or not 0 < args.decades <= 4 or min(args.nines) <= 0:
        raise UserError(
            "--probability must lie between 0 and 1, --decades above 0 and at most 4, --nines above 0"
        )
    t = _table(args)
    spent = _schedule(args.schedule, trials.progress(t)[1]) if args.schedule else None
    o = readiness.outlook(
        t, args.decades, _pairs(args.family, float), _pairs(args.slice, float), args.run
    )
    figures, parts = report.readiness(o, args.nines, args.probability, spent)
    if args.record:
        count = record.live(args.record, t, o.run, o.now, o.grid[-1], o.unit)
        parts.append(
            f"{count} curves forecast in {args.record}, to be scored later; what was said before stays."
        )
    if (t["item"] == "").all():
        parts.append(
            "Accuracies without items: no lapse can be told from a lack of ability; nines are guesses."
        )
    elif len(o.seen) < 5:
        parts.append(
            f"{len(o.seen)} checkpoints are few: the intervals are wide because they must be."
        )
    if args.page:
        parts += [lambda: page.reliability(o), *_beside(t, o.run)]
    return figures, parts


def _beside(t: dict, run: str) -> list:
    """What stands beside a forecast in a meeting: what the trials prove, and how past forecasts of this run did."""
    from ramp.nines import audit, backtest, report, trials

    parts: list = ["## What is shown today"]
    try:
        parts += report.ladder(audit.ladder(t), *audit.last_cells(t)[:2])
    except UserError as error:
        parts.append(f"It cannot be said: {error}.")
    parts.append("## How such forecasts of this run did before")
    c = trials.curves(t)
    try:
        parts += report.scores(
            backtest.summary(backtest.over_time(trials.select(c, c["run"] == run)))
        )
    except UserError as error:
        parts.append(f"None could be scored: {error}.")
    return parts


def _schedule(path: Path, unit: str) -> list[tuple[str, float]]:
    if unit != "compute":
        raise UserError(
            "dates come from a schedule of compute, and these trials have no compute; add that column"
        )
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
        return [
            (datetime.date.fromisoformat(r["date"]).isoformat(), float(r["compute"])) for r in rows
        ]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not a schedule ({error}); it needs the columns date and compute"
        ) from None


def backtest(args: argparse.Namespace) -> tuple[dict, list]:
    from ramp.nines import backtest, report, trials

    t, thresholds = _table(args), tuple(args.threshold)
    if args.record:
        return report.past_record(args.record, t)
    if (args.origin is None) != (args.target is None) or (
        args.origin and not 0 < args.origin < args.target
    ):
        raise UserError(
            "--origin and --target go together, both above 0, the target beyond the origin"
        )
    c = trials.curves(t)
    if args.origin:
        past = backtest.over_sizes(c, math.log10(args.origin), math.log10(args.target), thresholds)
    else:
        past = backtest.over_time(c, thresholds)
    s = backtest.summary(past)
    return s, ["## Past forecasts, scored", *report.scores(s)]


def observe(args: argparse.Namespace) -> tuple[dict, list]:
    import numpy as np

    from ramp.nines import observational, report

    t = _table(args)
    of = {task: observational.build_systems(t, task, args.by, args.task) for task in args.task}
    if args.beyond:
        found = {task: observational.predict_beyond(s, args.beyond) for task, s in of.items()}
        keys = ("systems", "squared_error", "coverage", "crps")
        count = np.array([f["systems"] for f in found.values()])
        mean = {
            k: float(np.average([f[k] for f in found.values()], weights=count)) for k in keys[1:]
        }
        rows = [["task", "systems beyond", "squared error", "90% interval covers", "CRPS"]]
        for task, f in [*found.items(), ("all", {"systems": int(count.sum())} | mean)]:
            rows.append([task, f["systems"], *(f"{f[k]:.4f}" for k in keys[1:])])
        return {"tasks": found, **mean}, [
            f"## Systems beyond {args.beyond:g} FLOP, from those up to it",
            rows,
        ]
    rows, found = [["task", "system", "accuracy", "90%"]], {}
    for task, s in of.items():
        asked = ~np.isfinite(s.y)
        quantiles = np.quantile(
            observational.predict(s, ~asked, asked), (0.05, 0.5, 0.95), axis=0
        ).T
        found[task] = dict(zip(np.array(s.names)[asked].tolist(), quantiles.tolist(), strict=True))
        rows += [
            [task, name, f"{q[1]:.3f}", report.span(q[::2], 3)] for name, q in found[task].items()
        ]
    if len(rows) == 1:
        raise UserError(
            f"every system has tried {' and '.join(args.task)}; there is nothing to foretell"
        )
    return found, ["## By what the systems do elsewhere", rows]


def audit_demo(args: argparse.Namespace) -> tuple[dict, list]:
    from ramp.nines import audit, report

    text = args.items
    if text.startswith("@"):
        if not Path(text[1:]).is_file():
            raise UserError(
                f"{text[1:]} is not a file; --items takes ids with commas, or @FILE with one id a line"
            )
        text = Path(text[1:]).read_text(encoding="utf-8").replace("\n", ",")
    found = audit.audit(
        _table(args), args.run, [i.strip() for i in text.split(",") if i.strip()], args.seal
    )
    p = found["p_value"]
    sealed = {
        None: "no hash given: a demo at most",
        True: "the hash agrees",
        False: "it does NOT agree",
    }
    facts = {
        "items shown, of a suite of": f"{found['items']} of {found['suite']}",
        "as easy by chance, as other systems find them": "no other system"
        if p is None
        else f"p = {p:.4f}",
        "pass rate of those items over all trials; suite": f"{found['rerun']:.3f}; {found['suite_mean']:.3f}",
        "takes until one is clean, likelier than not": f"{found['takes']:.3g}",
        **{f"slice {s}": f"{v:.3f}" for s, v in found["slices"].items()},
        "chosen before the run?": sealed[found["sealed"]],
        "seal of these items": found["seal"],
    }
    if "pass_at_k" in found:
        facts[f"whole suite: best of {found['k']}"] = f"{found['pass_at_k']:.3f}"
    if "pass_hat_k" in found:
        how = "" if "pass_at_k" in found else ", if its tries agree as other systems' do"
        facts[f"whole suite: all of {found['k']}{how}"] = f"{found['pass_hat_k']:.3f}"
    return found, ["## How much the demo flatters", report.join_facts(facts)]


def compare(args: argparse.Namespace) -> tuple[dict, list]:
    import numpy as np

    from ramp.nines import intervals, report, trials

    t, means = _table(args), []
    for name in args.runs:
        mine = trials.select(t, t["run"] == name)
        if not len(mine["run"]) or (mine["item"] == "").any():
            runs = ", ".join(np.unique(t["run"])[:8])
            raise UserError(
                f"no trial of a named item belongs to the run {name!r}; there are {runs}"
            )
        first, of = trials.groups(
            mine["task"], mine["item"]
        )  # slices of an item are no items of their own
        keys = zip(*(mine[k][first].tolist() for k in ("task", "item")), strict=True)
        means.append(
            dict(zip(keys, np.bincount(of, mine["success"]) / np.bincount(of), strict=True))
        )
    c = intervals.compare_paired(*means)
    facts = {
        f"{args.runs[1]} - {args.runs[0]}": f"{c.difference:+.4f} ± {c.stderr:.4f}",
        "95% interval; p": f"{report.span(c.interval)}; {c.p_value:.4f}",
        "least difference found with 80% power": f"{c.detectable:.4f}",
        "items, paired": c.items,
    }
    return vars(c), ["## Two runs", report.join_facts(facts)]

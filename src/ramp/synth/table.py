"""The benchmark's lines as a table and as a page: each bar and what was measured beside it."""

from collections.abc import Callable, Sequence

import numpy as np

from ramp.report import section
from ramp.synth import exact, page

Rows = Sequence[dict]


def report(results: Rows) -> str:
    """Markdown: the bars, then the arms."""
    lines = ["| figure | bar | measured |", "|---|---|---|"]
    lines += [f"| {figure} | {bar} | {measured} |" for figure, bar, measured in bars(results)]
    arms = by_arm(results)
    if arms:
        lines += [
            "",
            "| arm | novel pass@1 | deep | unseen pairs | tail | pass@16, novel | bits a token | seeds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, runs in arms.items():
            cells = [
                spread([r["curve"][-1][k] for r in runs]) for k in ("novel", "deep", "pair", "tail", "novel_16", "bits")
            ]
            lines.append(f"| {name} | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(lines) + "\n"


def part(results: Rows, name: str, **where) -> list[dict]:
    return [r for r in results if r["key"]["part"] == name and all(r["key"].get(k) == v for k, v in where.items())]


def spread(values: Sequence[float]) -> str:
    se = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.3f} ± {se:.3f}"


def interval(differences: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95% paired bootstrap over seeds; with three seeds it is little more than their range."""
    d = np.asarray(differences, float)
    draws = np.random.default_rng(seed).choice(d, (4000, len(d))).mean(axis=1)
    return tuple(np.quantile(draws, (0.025, 0.975)))


def by_arm(results: Rows) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for r in part(results, "world"):
        found.setdefault(r["key"]["arm"], []).append(r)
    return found


def bars(results: Rows) -> list[tuple[str, str, str]]:
    out = []
    for r in part(results, "exact", policy="replace"):
        c = r["coverage"]
        out.append(
            (
                "2,000 Zipf modes, 20 replace generations: coverage; Simpson",
                ".895 → .30 ± .02; stays",
                f"{c[0]:.3f} → {c[20]:.3f}; {r['simpson']:.3f} times",
            )
        )
    for r in part(results, "measure"):
        out.append(
            ("10,000 samples of 100 tokens, all but Vendi, null of 7 included", "≤ 20 s", f"{r['cpu_seconds']} CPU-s")
        )
    replaced = part(results, "trigram", policy="replace")
    if replaced:
        steps = [(r["bpb"][5] - r["bpb"][0]) / 5 for r in replaced]
        out.append(("trigram on GSM8K questions, replace, bits per byte a generation", "+.12 to +.16", spread(steps)))
        for policy in ("accumulate", "subsample"):
            share = [
                (r["bpb"][5] - r["bpb"][0]) / (q["bpb"][5] - q["bpb"][0])
                for r, q in zip(part(results, "trigram", policy=policy), replaced, strict=False)
            ]
            if share:
                out.append(
                    (
                        f"the same, {policy}: share of replace's excess",
                        "≤ 35%",
                        f"{np.mean(share):.0%} [{min(share):.0%}, {max(share):.0%}]",
                    )
                )
    gates = {p: part(results, "gate", policy=p) for p in ("replace", "accumulate")}
    if all(gates.values()):
        out.append(
            (
                "neural: replace worse every generation; accumulate's share of its excess; spread of one step over seeds",
                "yes; < 50%; < 20%",
                passes(gates),
            )
        )
    out += law(results)
    arms = by_arm(results)
    rivals = {k: v for k, v in arms.items() if not k.startswith("ours")}
    if "ours" in arms and rivals:
        best = max(rivals, key=lambda k: np.mean([r["novel"] for r in rivals[k]]))
        d = [a["novel"] - b["novel"] for a, b in zip(arms["ours"], rivals[best], strict=False)]
        low, high = interval(d)
        bits = np.mean([a["bits"] / b["bits"] - 1 for a, b in zip(arms["ours"], rivals[best], strict=False)])
        out.append(
            (
                f"novel pass@1, ours less the best other ({best})",
                "> 2 standard errors, bits no worse than .5%",
                f"{spread(d)} [{low:+.3f}, {high:+.3f}]; bits {bits:+.1%}",
            )
        )
    for r in part(results, "guard", guarded=True):
        other = part(results, "guard", guarded=False, kind=r["key"]["kind"])
        without = f", {other[0]['fell']:.3f} without it" if other else ""
        when = f"generation {r['detected']}" if r["detected"] else "never"
        bar = "no action" if r["key"]["kind"] == "none" else "generation 1, < .05"
        out.append(
            (
                f"guard, {r['key']['kind']}: acts in; tail pass@1 falls by at most",
                bar,
                f"{when}; {r['fell']:.3f}{without}",
            )
        )
    for policy in ("replace", "accumulate", "anchored", "ours"):
        runs = part(results, "jokes", policy=policy)
        if runs:
            kept = {
                k: np.mean([r["probe"][5][k] / max(r["probe"][0][k], 1e-9) for r in runs])
                for k in ("distinct", "chao1")
            }
            rise = np.mean([r["bpb"][5] - r["bpb"][0] for r in runs])
            out.append(
                (
                    f"jokes, trigram, {policy}: distinct and Chao1 after 5 generations, of the first model's",
                    "≥ 90% for ours",
                    f"{kept['distinct']:.0%}, {kept['chao1']:.0%}; bits {rise:+.3f}",
                )
            )
    return out


def passes(gates: dict[str, list[dict]]) -> str:
    curves = {p: np.array([r["bits"] for r in rows]) for p, rows in gates.items()}
    worse = bool((np.diff(curves["replace"].mean(axis=0)) > 0).all())
    n = min(map(len, curves.values()))
    excess = {p: c[:n, -1] - c[:n, 0] for p, c in curves.items()}
    step = curves["replace"][:, 1] - curves["replace"][:, 0]
    noise = step.std(ddof=1) / step.mean() if len(step) > 1 else float("nan")
    share = (excess["accumulate"] / excess["replace"]).mean()
    ok = worse and share < 0.5 and noise < 0.2
    return f"{'reproduced' if ok else 'not reproduced'}: {'yes' if worse else 'no'}; {share:.0%}; {noise:.0%}"


def law(results: Rows) -> list[tuple[str, str, str]]:
    """Forecast of anchored mixes from the first step of replace, against what was seen: largest relative error over g."""
    out = []
    for name, first, anchored, key in (
        ("trigram", part(results, "trigram", policy="replace"), part(results, "trigram", policy="anchored"), "bpb"),
        ("neural", part(results, "gate", policy="replace"), part(results, "law"), "bits"),
    ):
        if not first:
            continue
        d1 = float(np.mean([r[key][1] - r[key][0] for r in first]))
        for m in sorted({r["key"]["m"] for r in anchored}):
            curves = np.mean([r[key] for r in anchored if r["key"]["m"] == m], axis=0)
            seen, said = curves[1:] - curves[0], exact.excess(d1, m, np.arange(1, len(curves)))
            error = np.abs(said - seen) / np.abs(seen)
            out.append(
                (
                    f"{name}: the law's forecast at m = {m:g}, {len(seen)} generations: largest and mean error",
                    "≤ 20%",
                    f"{error.max():.0%}, {error.mean():.0%} (excess at the end {seen[-1]:.3f}, said {said[-1]:.3f})",
                )
            )
    return out


def sections(results: Rows) -> list[str]:
    """Parts of the page: the table, then a family of curves for each tier."""
    made = [section("Bars", page.table(("figure", "bar", "measured"), bars(results)))]
    for title, name, key, y in (
        ("Exact: modes that are left", "exact", "coverage", "share of 2,000 modes"),
        ("Trigram on GSM8K questions", "trigram", "bpb", "bits per byte, held out"),
        ("Trigram on jokes", "jokes", "bpb", "bits per byte, held out"),
        ("Small transformers, trained anew each generation", "gate", "bits", "bits a token, held out"),
    ):
        curves = grouped(part(results, name), lambda r, key=key: r[key])
        made.append(section(title, page.family(curves, y)) if curves else "")
    counts = grouped(part(results, "jokes"), lambda r: [probe["distinct"] for probe in r["probe"]])
    made.append(section("Different jokes in 200", page.family(counts, "recognised jokes")) if counts else "")
    plain = [r for r in part(results, "world") if " - " not in r["key"]["arm"]]
    for key, y in (("novel", "novel pass@1"), ("tail", "tail pass@1"), ("bits", "bits a token, held out")):
        curves = grouped(plain, lambda r, key=key: [point[key] for point in r["curve"]])
        made.append(section(f"World of programs: {y}", page.family(curves, y)) if curves else "")
    guarded = part(results, "guard", guarded=True)
    said = [(r["key"]["kind"], i + 1, *s) for r in guarded for i, s in enumerate(r["said"])]
    head = ("injected", "generation", "before training", "why", "after training", "why")
    return [*made, section("What the guard did to injected collapses", page.table(head, said)) if said else ""]


def grouped(rows: Rows, curve: Callable[[dict], Sequence[float]]) -> dict[str, np.ndarray]:
    """Mean curves over seeds by arm, or by policy and share."""
    found: dict[str, list] = {}
    for r in rows:
        key = r["key"]
        found.setdefault(key.get("arm") or f"{key['policy']} {key.get('m') or ''}".strip(), []).append(curve(r))
    return {name: np.mean(curves, axis=0) for name, curves in sorted(found.items())}

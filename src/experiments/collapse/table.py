"""The benchmark's lines as a table and as a page: each bar and what was measured beside it."""

from collections.abc import Iterator, Sequence

import numpy as np

from experiments.collapse import drift
from experiments.results import markdown, part
from ramp.reporting.figure import Curve, picture
from ramp.reporting.html import section, table

Rows = Sequence[dict]
Bar = tuple[str, str, str]  # figure, bar, measured
SHOWN = {
    "novel": "novel pass@1",
    "deep": "depth 3",
    "pair": "unseen pairs",
    "tail": "tail",
    "head": "head",
}
SHOWN |= {"novel_16": "novel pass@16", "bits": "bits a token"}


def report(results: Rows) -> str:
    """Markdown: the bars, then the arms."""
    lines = markdown(("figure", "bar", "measured"), bars(results))
    arms = [
        [name, *(spread([r["curve"][-1][k] for r in runs]) for k in SHOWN), str(len(runs))]
        for name, runs in grouped(part(results, "claim")).items()
    ]
    if arms:
        lines += ["", *markdown(["arm", *SHOWN.values(), "seeds"], arms)]
    return "\n".join(lines) + "\n"


def grouped(rows: Rows) -> dict[str, list[dict]]:
    """Results, one a seed, by arm or by policy and share."""
    found: dict[str, list[dict]] = {}
    for r in rows:
        key = r["key"]
        found.setdefault(
            key.get("arm") or f"{key['policy']} {key.get('m') or ''}".strip(), []
        ).append(r)
    return found


def spread(values: Sequence[float]) -> str:
    """Mean and standard error over seeds."""
    se = f" ± {np.std(values, ddof=1) / np.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{se}"


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """95% paired bootstrap over seeds; with three seeds it is little more than their range."""
    d = np.asarray(differences, float)
    means = np.random.default_rng(0).choice(d, (4000, len(d))).mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


# The bars


def bars(results: Rows) -> list[Bar]:
    return [
        bar
        for figures in (first_tiers, gate, law, claim, guards, jokes)
        for bar in figures(results)
    ]


def first_tiers(results: Rows) -> Iterator[Bar]:
    for r in part(results, "exact", policy="replace"):
        c = r["coverage"]
        yield (
            "2,000 Zipf modes, 20 replace generations: coverage",
            ".895 → .30 ± .02",
            f"{c[0]:.3f} → {c[20]:.3f}",
        )
        yield (
            "the same: Simpson diversity, of the first model's",
            "stays put",
            f"{r['simpson']:.3f}",
        )
    for r in part(results, "measure"):
        figure = "10,000 samples of 100 tokens, all but Vendi, null of 7 included"
        yield figure, "≤ 20 s", f"{r['cpu_seconds']} s of CPU"
    rise = {
        r["key"]["seed"]: r["bpb"][5] - r["bpb"][0]
        for r in part(results, "trigram", policy="replace")
    }
    if rise:
        per = [x / 5 for x in rise.values()]
        yield (
            "trigram on GSM8K questions, replace: bits per byte a generation",
            "+.12 to +.16",
            spread(per),
        )
    for policy in ("accumulate", "subsample"):
        runs = {
            r["key"]["seed"]: r["bpb"][5] - r["bpb"][0]
            for r in part(results, "trigram", policy=policy)
        }
        share = [x / rise[seed] for seed, x in runs.items() if seed in rise]
        if share:
            yield f"the same, {policy}: share of replace's excess after 5", "≤ 35%", spread(share)


def gate(results: Rows) -> Iterator[Bar]:
    found = {
        p: np.array([r["bits"] for r in part(results, "gate", policy=p)])
        for p in ("replace", "accumulate")
    }
    n = min(map(len, found.values()))
    if not n:
        return
    worse = bool((np.diff(found["replace"].mean(axis=0)) > 0).all())
    excess = {p: c[:n, -1] - c[:n, 0] for p, c in found.items()}
    share = float((excess["accumulate"] / excess["replace"]).mean())
    step = found["replace"][:, 1] - found["replace"][:, 0]
    noise = float(step.std(ddof=1) / step.mean()) if len(step) > 1 else float("nan")
    said = "reproduced" if worse and share < 0.5 and noise < 0.2 else "not reproduced"
    yield (
        "neural gate: replace worse every generation",
        "yes",
        f"{'yes' if worse else 'no'}: {said}",
    )
    yield "the same: accumulate's share of replace's excess after 4", "< 50%", f"{share:.0%}"
    yield "the same: spread over seeds of one step of replace", "< 20% of it", f"{noise:.0%}"


def law(results: Rows) -> Iterator[Bar]:
    """Forecasts of anchored mixes from replace alone: largest relative error over generations.

    In brackets is the error of the law with gain 1, where every generation of replace costs what
    the first one does. Curves are means over seeds.
    """
    tiers = (("trigram", "trigram", "trigram", "bpb"), ("neural", "gate", "law", "bits"))
    for tier, first, then, key in tiers:
        replaced = [
            np.array(r[key][1:]) - r[key][0] for r in part(results, first, policy="replace")
        ]
        rows = part(results, then, policy="anchored") if replaced else []
        for m in dict.fromkeys(r["key"]["m"] for r in rows):
            curves = [r[key] for r in rows if r["key"]["m"] == m]
            seen = np.mean(curves, axis=0)[1:] - np.mean(curves, axis=0)[0]
            mean, g = np.mean(replaced, axis=0), np.arange(1, len(seen) + 1)
            d1, gain = estimate_drift(mean)
            forecasts = drift.excess_loss(d1, m, g, gain), drift.excess_loss(float(mean[0]), m, g)
            fitted, plain = (np.abs(forecast - seen) / np.abs(seen) for forecast in forecasts)
            told = f"{fitted.max():.0%}, mean {fitted.mean():.0%}; {len(curves)} seeds, "
            told += f"gain {gain:.2f} "
            told += f"(without: {plain.max():.0%}, {plain.mean():.0%})"
            yield (
                f"the law's forecast, {tier}, m = {m:g}, {len(seen)} generations: largest error",
                "≤ 20%",
                told,
            )


def claim(results: Rows) -> Iterator[Bar]:
    arms = grouped(part(results, "claim"))
    rivals = [name for name in arms if not name.startswith("guarded")]
    if "guarded" not in arms or not rivals:
        return
    best = max(rivals, key=lambda name: np.mean([r["novel"] for r in arms[name]]))
    gain, bits = paired(arms, best)
    low, high = interval(gain)
    figure = f"novel pass@1, guarded less the best other ({best})"
    yield (
        figure,
        "> 2 standard errors",
        f"{spread(gain)} over {len(gain)} seeds, 95% [{low:+.3f}, {high:+.3f}]",
    )
    yield "the same: bits a token of held-out text", "no worse than .5%", f"{np.mean(bits):+.2%}"
    for name in arms:
        if name.startswith("guarded - "):
            gain, bits = paired(arms, name)
            told = f"{spread(gain)} over {len(gain)} seeds; bits {np.mean(bits):+.2%}"
            yield f"what a part gives: guarded less ({name})", "-", told


def paired(arms: dict[str, list[dict]], other: str) -> tuple[list[float], list[float]]:
    """By seed: novel pass@1 of guarded less another arm's, and its bits relative to the other's."""

    def place(r):
        return r["key"].get("world"), r["key"]["seed"]

    of = {place(r): r for r in arms[other]}
    pairs = [(r, of[place(r)]) for r in arms["guarded"] if place(r) in of]
    return [a["novel"] - b["novel"] for a, b in pairs], [
        a["bits"] / b["bits"] - 1 for a, b in pairs
    ]


def guards(results: Rows) -> Iterator[Bar]:
    """What the guard did first and why, seed by seed, and what happened to the tail.

    A repair before training tells a corruption from none. A roll-back judges the model that was
    trained, and a loop without corruption may deserve one. Of the tail: what the models that were
    kept lost at worst, and where it ended, without the guard too; means over seeds.
    """
    kinds = dict.fromkeys(r["key"]["kind"] for r in part(results, "guard"))
    for kind in kinds:
        runs, bare = (
            part(results, "guard", kind=kind, guarded=guarded) for guarded in (True, False)
        )
        if not runs:
            continue
        told = "; or ".join(dict.fromkeys(first_act(r["said"]) for r in runs))
        ends = [float(np.mean([r["tail"][i] for r in runs])) for i in (0, -1)]
        told += f"; {max(r['fell'] for r in runs):.3f} at worst"
        told += f", {ends[0]:.3f} → {ends[1]:.3f}; {len(runs)} seeds"
        told += f"; unguarded → {np.mean([r['tail'][-1] for r in bare]):.3f}" if bare else ""
        bar = "never" if kind == "none" else "in generation 1; < .05"
        yield f"guard, {kind}: acts; tail pass@1 of the model kept falls by", bar, told


def first_act(said: Sequence[Sequence[str]]) -> str:
    """The first decision that was not to go on.

    said: [action before training, why, action after training, why] by generation.
    """
    for g, (before, why, after, then) in enumerate(said, 1):
        if before == "repair":
            return f"generation {g}, repair before training ({why})"
        if after in ("roll back", "stop"):
            return f"generation {g}, {after} after training ({then})"
    return "never"


def jokes(results: Rows) -> Iterator[Bar]:
    for policy, runs in grouped(part(results, "jokes")).items():
        left = {
            k: [r["probe"][5][k] / r["probe"][0][k] for r in runs] for k in ("distinct", "chao1")
        }
        rise = [r["bpb"][5] - r["bpb"][0] for r in runs]
        told = f"{spread(left['distinct'])}, {spread(left['chao1'])}; bits per byte +{spread(rise)}"
        told += (
            f"; real share {np.mean([r['m'] for r in runs]):.2f}" if policy == "anchored" else ""
        )
        yield (
            f"200 jokes, trigram, {policy}, 5 generations: distinct, Chao1 left",
            "-",
            told,
        )


# The page

FAMILY = {
    "real": "green",
    "replace": "warm",
    "accumulate": "gold",
    "subsample": "pink",
    "anchored": "violet",
    "guarded": "main",
}


def plot_family(curves: dict[str, Sequence[float]], y: str) -> str:
    """Curves of several policies over generations, as SVG."""
    drawn = []
    for name, values in curves.items():
        color = FAMILY.get(name.split(" ")[0], "grey")
        drawn.append(Curve(name, range(len(values)), values, color, dots=True))
    return picture(drawn, {}, ("generation", y))


def sections(results: Rows) -> list[str]:
    """The table, then a family of curves for each tier, then what the guard did."""
    made = [section("Bars", table(("figure", "bar", "measured"), bars(results)))]
    plain = [r for r in part(results, "claim") if " - " not in r["key"]["arm"]]
    jokes = part(results, "jokes")
    families = [
        (
            "Exact: modes that are left",
            part(results, "exact"),
            lambda r: r["coverage"],
            "share of 2,000 modes",
        ),
        (
            "Trigram on GSM8K questions",
            part(results, "trigram"),
            lambda r: r["bpb"][:6],
            "bits per byte, held out",
        ),
        (
            "Different jokes in 200",
            jokes,
            lambda r: [p["distinct"] for p in r["probe"]],
            "recognised jokes",
        ),
        (
            "Transformers trained anew",
            part(results, "gate"),
            lambda r: r["bits"],
            "bits a token, held out",
        ),
    ]
    families += [
        (
            f"World of programs: {SHOWN[k]}",
            plain,
            lambda r, k=k: [p[k] for p in r["curve"]],
            SHOWN[k],
        )
        for k in ("novel", "tail", "bits")
    ]
    for title, rows, curve, y in families:
        means = {
            name: np.mean([curve(r) for r in runs], axis=0) for name, runs in grouped(rows).items()
        }
        made.append(section(title, plot_family(means, y)) if rows else "")
    guarded = part(results, "guard", guarded=True)
    said = [(r["key"]["kind"], i + 1, *s) for r in guarded for i, s in enumerate(r["said"])]
    head = ("injected", "generation", "before training", "why", "after training", "why")
    return [
        *made,
        section("What the guard did to injected collapses", table(head, said)) if said else "",
    ]


def estimate_drift(replaced: np.ndarray) -> tuple[float, float]:
    """(d1, gain) from replace's loss above the first model's after generations 1, 2, ...

    The costs of the generations are fitted as a geometric series, by least squares on their
    logarithms. One generation, or one that costs nothing, tells d1 alone.
    """
    costs = np.diff(replaced, prepend=0.0)  # of each generation alone
    if len(costs) < 2 or not np.all(costs > 0):
        return float(costs[0]), 1.0
    slope, start = np.polyfit(np.arange(len(costs)), np.log(costs), 1)
    if slope >= 0:  # costs that grow have no gain below 1
        return float(costs.mean()), 1.0
    return float(np.exp(start)), float(np.exp(slope))

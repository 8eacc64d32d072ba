"""The benchmark's lines as a table: each bar and what was measured."""

from collections.abc import Iterator, Sequence

from experiments.results import markdown, part

Rows = Sequence[dict]
Bar = tuple[str, str, str]  # figure, bar, measured


def report(results: Rows) -> str:
    """Markdown: each figure, its bar and what was measured."""
    bars = [bar for figures in (gradients, misassigned, hacks, rest) for bar in figures(results)]
    return "\n".join(markdown(("figure", "bar", "measured"), bars)) + "\n"


# The bars


def gradients(results: Rows) -> Iterator[Bar]:
    for r in part(results, "unbiased"):
        yield (
            "RLOO's gradient on the transformer against the exact one",
            "cosine ≥ 0.98",
            f"{r['cos']:.3f}",
        )
    for method in ("rloo", "vine"):
        each = ", ".join(f"{r['cos']:.3f}" for r in part(results, "gradient", method=method))
        if each:
            yield f"{method} on the table policy, three skills", "cosine ≥ 0.98", each


def misassigned(results: Rows) -> Iterator[Bar]:
    for r in part(results, "misassigned"):
        m = r["methods"]
        figure = (
            f"misassigned credit at {r['right']:.0%} success: "
            "RLOO, wrong steps of successes pushed up"
        )
        yield figure, "≥ 0.8", f"{m['rloo']['wrong_up']:.2f}"
        for name in ("step_local", "first_error"):
            both = f"{m[name]['wrong_up']:.2f} and {m[name]['right_down']:.2f}"
            yield f"misassigned credit: {name}, wrong up and right down", "≤ 0.05", both


def hacks(results: Rows) -> Iterator[Bar]:
    for r in part(results, "head"):
        named = f"process head, round {r['key']['round']}"
        f1 = f"{r['f1_iid']:.3f}, {r['f1_longer']:.3f}, {r['f1_unseen']:.3f}"
        yield f"{named}: first-error F1 iid, longer, unseen error", "≥ .90, .80, .80", f1
        yield (
            f"{named}: attacks accepted (worst kind)",
            "≤ 1%",
            f"{r['false_positives']:.1%} ({r['worst']:.0%})",
        )
    for r in part(results, "adversary"):
        against = (
            f"policy against the frozen head of round {r['key']['round']}, {r['key']['method']}"
        )
        yield f"{against}: head says right, verified", "shown", f"{r['proxy']:.2f}, {r['gold']:.2f}"


def rest(results: Rows) -> Iterator[Bar]:
    """Diversity, and real solutions."""
    for r in part(results, "diversity"):
        entropy = r["entropy after"] / r["entropy before"]
        kept = f"{entropy:.0%}; {r['pass@16 before']:.2f} → {r['pass@16 after']:.2f}"
        yield "sorting by swaps: entropy kept; pass@16", "≥ 50%; no lower", kept
    for r in part(results, "data", set="gsm8k"):
        lines = r["annotated_lines"]
        numbers_only = r["recomputed"] / lines
        parsed = f"{r['parsed'] / lines:.2%} of {lines:,} ({numbers_only:.2%} without variables)"
        luck, waste = (
            [v for k, v in r.items() if k.endswith(end)]
            for end in ("off the route", "first value right")
        )
        yield "GSM8K model solutions: annotated lines parsed", "≥ 99.9%", parsed
        agrees = f"{r['answer_agrees']:,} of {r['solutions']:,}"
        yield "GSM8K: verdict on the answer agrees with the file", "", agrees
        for figure, bar, found in (
            ("right solutions with a value off the route", "26 to 30%", luck),
            ("wrong solutions whose first value is right", "42 to 48%", waste),
        ):
            yield f"GSM8K: {figure}", bar, f"{min(found):.0%} to {max(found):.0%}"
    for r in part(results, "data", set="mistakes"):
        for name in ("multistep_arithmetic", "word_sorting", "dyck_languages"):
            kept, whole = (f"{r[name][k]['f1']:.3f}" for k in ("consistent", "all"))
            shown = (
                f"{kept} on {r[name]['kept']} consistent labels, {whole} on all {r[name]['traces']}"
            )
            yield f"Big-Bench-Mistake {name}: first-error F1", "≥ 0.95", shown

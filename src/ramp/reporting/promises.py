"""The promises at the head of a run's page: one sentence, one number and one picture each.

Whether the model reads better than tables of counts; what credit for each step taught it, beside
other ways from the same weights; whether its own samples cost it diversity, beside a loop without a
guard; how reliable it is, and how well it foresaw that; of a model that others made, how many
answers each stage left it. What a run has not done is not promised.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from ramp.reporting.figure import Curve, picture
from ramp.reporting.html import Html, escape
from ramp.reporting.run_files import RunFiles, as_dict, as_number

BASELINE_NAMES = {"unigram": "byte unigram", "bigram": "byte bigram", "trigram": "byte trigram"}
COLORS = ("warm", "grey", "gold", "violet")  # of rivals
DIVERSITY = "distinct_2"  # of the figures of samples: pairs of tokens that differ, of all

CHOSEN_WITH = "problems to choose with"

Bar = tuple[float, str, str]  # value, name, color
Levels = dict[str, tuple[float, str]]  # name -> (bits per byte, color)


def list_promises(run: RunFiles) -> list[Html]:
    """The sections that a run has something to say in."""
    sections = [promise(run) for promise in PROMISES]
    return [part for part in sections if part]


def _section(anchor: str, title: str, number: str, sentence: str, drawing: str, page="") -> Html:
    """One promise; `anchor` names the section of the page that has the rest."""
    links = [f'<a href="#{escape(anchor)}">the stage</a>']
    if page:
        links.append(f'<a href="{escape(page)}">its page</a>')
    return Html(
        f'<section class="promise"><h2>{escape(title)}</h2>'
        f'<div class="figure">{escape(number)}</div><p>{escape(sentence)}</p>{drawing}'
        f'<p class="note">{" · ".join(links)}</p></section>'
    )


def draw_bars(bars: Sequence[Bar], form: Callable[[float], str], whole: float = 0.0) -> Html:
    """Bars relative to the longest one, or to `whole`."""
    longest = whole or max((value for value, _, _ in bars), default=0) or 1
    rows = []
    for value, name, color in bars:
        bar = f'<div><i style="width:{100 * value / longest:.2f}%"></i></div>'
        rows.append(
            f'<div class="row {color}"><span>{escape(name)}</span>{bar}<b>{form(value)}</b></div>'
        )
    return Html("".join(rows))


# --- it reads


def baseline_levels(run: RunFiles) -> Levels:
    """Bits per byte of the same text under models that anyone can fit."""
    levels = {}
    for key, value in as_dict(run.report.get("eval", {}).get("baselines")).items():
        bits = as_number(value) or 0
        name, color = BASELINE_NAMES.get(key, key), "grey"
        if key.startswith("kn"):
            name, color = f"Kneser-Ney {key[2:]}", "warm"
        if bits > 0:
            levels[name] = bits, color
    return levels


def bits_per_byte(run: RunFiles) -> float | None:
    """The run's own figure: of the evaluation, else of pretraining so far."""
    so_far = run.last_values("pretrain").get("eval/val_bpb")
    figures = (run.figure("eval", "val_bpb"), run.figure("pretrain", "val_bpb"), so_far)
    return next((bits for bits in figures if bits is not None), None)


def promise_text(run: RunFiles) -> Html:
    """The figure of the run among its baselines, worst first."""
    bits, levels = bits_per_byte(run), baseline_levels(run)
    if bits is None and not run.report.keys() <= {"prepare", "pretrain"}:
        return Html()  # it began from a model that others had pretrained, or is not asked
    bars = [(value, name, color) for name, (value, color) in levels.items()]
    if bars and bits is not None:
        bars.append((bits, "this model", "main"))
    bars.sort(reverse=True)
    figure = "?" if bits is None else f"{bits:.3f}"
    sentence = f"bits per byte of held-out text: {compare_bits(bits, levels)}"
    drawing = draw_bars(bars, lambda value: f"{value:.3f}")
    return _section("pretrain", "How well it reads", figure, sentence, drawing)


def compare_bits(bits: float | None, levels: Levels) -> str:
    """Between which two baselines the model stands."""
    if bits is None:
        return "not evaluated yet"
    rows = sorted((value, name) for name, (value, _) in levels.items())
    worse = [f"better than {name} ({value:.3f})" for value, name in rows if value > bits]
    better = [f"not as good as {name} ({value:.3f})" for value, name in rows if value <= bits]
    return ", ".join(worse[:1] + better[-1:]) or "no baselines to compare it with yet"


# --- credit for every step


def promise_credit(run: RunFiles) -> Html:
    """Held-out problems that are solved with every step right, before and after."""
    stage = run.report.get("reinforce", {})
    before, after = (_share(stage, when) for when in ("before", "after"))
    count = as_number(stage.get("problems"))
    if not count:
        return Html()
    if before is None or after is None:
        return _promise_reward(run, stage, count)
    problems = _name_problems(stage, count)
    is_kept = stage.get("best_step") == 0
    bars = [(before, "the start, kept" if is_kept else "before", "grey")]
    if is_kept:
        change, said = _tell_of_kept_start(run, "rl/verified", "{:.0%}")
        number = f"{100 * change:+.0f}"
        sentence = (
            f"points of {CHOSEN_WITH}, solved with every step right: {said}; it solves "
            f"{after:.0%} of {problems}"
        )
    else:
        bars.append((after, str(stage.get("method")), "main"))
        number = _describe_difference(before, after, count)
        sentence = (
            f"points of {problems}: {before:.0%} were solved with every step right before "
            f"reinforcement, {after:.0%} after it{_compare_steps(stage)}"
        )
    others = []
    for color, (name, share, has_start) in zip(COLORS, _rival_shares(run), strict=False):
        bars.append((share, name, color))
        difference = f" ({_describe_difference(after, share, count)} points)"
        # The same model twice differs by nothing, and not by nothing give or take some.
        others.append(f"{name} {share:.0%}{'' if is_kept and has_start else difference}")
    if others:
        sentence += f"; other ways, from the same weights for as many steps: {', '.join(others)}"
    wrong = as_dict(run.report.get("finetune")).get("mistakes")
    if wrong and isinstance(wrong, list):
        sentence += f". Fine-tuning had taught it wrong on purpose ({'; '.join(map(str, wrong))})"
    drawing = draw_bars(bars, "{:.0%}".format, whole=1.0)
    return _section("reinforce", "Credit for every step", number, sentence, drawing, "credit.html")


def _tell_of_kept_start(run: RunFiles, tag: str, form: str) -> tuple[float, str]:
    """What training cost by its last step where the start is kept, at most 0, and its course.

    On the problems to choose with: after training, others are only asked of what is kept.
    """
    steps, values = run.series("reinforce", tag)
    # By what chooses, which may be a reward of one's own.
    kept = "no step was chosen over the start, which is kept"
    if len(values) < 2:
        return 0.0, kept
    # The later of equals, as the run chooses.
    best = len(values) - 1 - int(values[:0:-1].argmax())
    course = f"{form.format(values[0])} at the start, {form.format(values[-1])} at step"
    course += f" {steps[-1]:.0f}, the last"
    if best < len(values) - 1:
        course += f", {form.format(values[best])} at step {steps[best]:.0f}, the best of the others"
    right = run.series("reinforce", "rl/steps")[1]
    if len(right) > 1:
        course += f"; right steps {right[0]:.0%} and at last {right[-1]:.0%}"
    # A rise that was not chosen is no gain: the model is the start.
    return min(values[-1] - values[0], 0.0), f"{course}; {kept}"


def _compare_steps(stage: dict) -> str:
    """The change in the share of right steps, where somebody judged them."""
    before, after = (as_number(as_dict(stage.get(w)).get("steps")) for w in ("before", "after"))
    if before is None or after is None:
        return ""
    return f"; right steps {before:.0%} and {after:.0%} ({100 * (after - before):+.0f} points)"


def _describe_difference(before: float, after: float, count: float) -> str:
    """A difference of shares in points, with 1.96 standard errors."""
    error = _error_of_difference(before, after, count)
    return f"{100 * (after - before):+.0f} ± {196 * error:.0f}"


def _error_of_difference(before: float, after: float, count: float) -> float:
    """The standard error of a difference of shares, with a success and a failure more in each.

    So none of few is not taken for never: Agresti and Caffo 2000. Both shares are of the same
    problems, and are taken as if they were of others: not too narrow.
    """
    shares = [(share * count + 1) / (count + 2) for share in (before, after)]
    return math.sqrt(sum(share * (1 - share) for share in shares) / (count + 2))


def _name_problems(stage: dict, count: float) -> str:
    level = f", level {stage['level']}" if "level" in stage else ""
    return f"{count:.0f} held-out problems ({stage.get('task', stage.get('prompts'))}{level})"


def _promise_reward(run: RunFiles, stage: dict, count: float) -> Html:
    """What reinforcement gained where nobody can verify a solution: the mean reward."""
    before, after = (as_dict(stage.get(when)) for when in ("before", "after"))
    first, last = (as_number(found.get("reward")) for found in (before, after))
    if first is None or last is None:
        return Html()
    errors = [as_number(found.get("reward_error")) for found in (before, after)]
    known = [error for error in errors if error is not None]
    spread = f" ± {1.96 * math.hypot(*known):.3f}" if len(known) == len(errors) else ""
    number = f"{last - first:+.3f}{spread}"
    what, problems = f"of the mean reward ({stage.get('reward')}) on", _name_problems(stage, count)
    sentence = f"{what} {problems}: {first:.3f} before reinforcement, {last:.3f} after it"
    right = [as_number(found.get("right")) for found in (before, after)]
    if None not in right:
        sentence += f"; right answers {right[0]:.0%} and {right[1]:.0%}"
    if stage.get("best_step") == 0:
        change, said = _tell_of_kept_start(run, "rl/reward", "{:.3f}")
        number = f"{change:+.3f}"
        sentence = f"{what} {CHOSEN_WITH}: {said}; it has {last:.3f} on {problems}"
    return _section(
        "reinforce", "What the reward gained", number, sentence, Html(""), "credit.html"
    )


def _share(stage: dict, when: str) -> float | None:
    return as_number(as_dict(stage.get(when)).get("verified"))


def _rival_shares(run: RunFiles) -> Iterator[tuple[str, float, bool]]:
    """The name of each rival, the share that it solves, and whether it has kept the start."""
    for name, rival in run.rivals.items():
        stage = rival.report.get("reinforce", {})
        share = _share(stage, "after")
        if share is not None:
            yield name, share, stage.get("best_step") == 0


# --- generations


def promise_generations(run: RunFiles) -> Html:
    """Bits per byte over generations of training on own samples."""
    arms = {"guarded": (run, "main")}
    for color, (name, rival) in zip(COLORS, run.rivals.items(), strict=False):
        arms[name] = rival, color
    curves, sentences = [], []
    for name, (arm, color) in arms.items():
        made = [as_dict(g) for g in arm.report.get("synthesize", {}).get("generations") or []]
        bits = [as_number(g.get("bpb")) for g in made]
        first = as_number(made[0].get("first_bpb")) if made else None
        if first is None or None in bits:
            continue
        curves.append(Curve(name, range(len(bits) + 1), [first, *bits], color, dots=True))
        sentences.append(f"{name} {first:.4f} → {bits[-1]:.4f}{_diversity(arm)}")
    stage = run.report.get("synthesize", {})
    first, final = as_number(stage.get("first_bpb")), as_number(stage.get("final_bpb"))
    if first is None or final is None or not curves:
        return Html()
    sentence = (
        "bits per byte, the model that is handed back against the first one, on documents kept for "
        f"the end. On the documents that guard, generation by generation: {'; '.join(sentences)}"
    )
    # A thousandth of a bit should not fill the picture.
    labels = ("generation", "bits per byte")
    drawing = picture(curves, {}, labels, size=(4.6, 2.4), span=0.02 * first)
    number = f"{final - first:+.4f}"
    return _section("synthesize", "Its own samples", number, sentence, drawing, "synth.html")


def _diversity(arm: RunFiles) -> str:
    """How diverse the samples of the model handed back are, beside those of the first model."""
    stage = arm.report.get("synthesize", {})
    figure = as_dict(as_dict(stage.get("own_samples")).get(DIVERSITY))
    own, first, z = (as_number(figure.get(key)) for key in ("value", "null", "z"))
    if own is None or first is None or z is None:
        return " (the first model is handed back)" if stage.get("generation") == 0 else ""
    return f" (pairs of tokens in its samples: {own:.0%} differ, {first:.0%} before, z {z:+.1f})"


# --- reliability


def promise_reliability(run: RunFiles) -> Html:
    """What trials of the taught tasks showed, what is forecast, and how forecasts did."""
    stage = run.report.get("finetune", {})
    sentences = as_dict(stage.get("forecast"))
    if not sentences:
        return Html()
    curves = []
    colors = ("main", *COLORS)
    for color, task in zip(colors, sentences, strict=False):
        steps, shares = run.series("finetune", f"nines/{task}")
        curves.append(Curve(task, steps, shares, color, dots=True))
    last = [as_number(run.last_values("finetune").get(f"nines/{task}")) for task in sentences]
    known = [share for share in last if share is not None]
    record = as_dict(stage.get("record"))
    count = as_number(record.get("count")) or 0
    text = f"of trials with every step right. {'; '.join(map(str, sentences.values()))}."
    if count and (covered := as_number(record.get("covered80"))) is not None:
        text += f" Of {count:.0f} forecasts made on the way, 80% intervals covered {covered:.0%}."
    elif not count:
        text += " No forecast that was made on the way could be scored."
    drawing = picture(curves, {}, ("step", "solved, of held-out trials"), size=(4.6, 2.4))
    number = f"{min(known):.0%}" if known else "?"
    return _section("finetune", "How reliable it is", number, text, drawing, "nines.html")


# --- answers


def promise_answers(run: RunFiles) -> Html:
    """How many different answers to open questions the model of each stage has."""
    rows = [as_dict(r) for r in run.report.get("diversity", {}).get("answers") or []]
    plain = [r for r in rows if r.get("asked") == "plain"]
    if not plain:
        return Html()
    bars = []
    for row in plain:
        color = "grey" if row is plain[0] else "main"
        bars.append((as_number(row.get("different")) or 0.0, str(row.get("model")), color))
    least = min(plain, key=lambda row: as_number(row.get("change")) or 0.0)
    change, error = (as_number(least.get(key)) or 0.0 for key in ("change", "change_error"))
    number = f"{change:+.1f} ± {1.96 * error:.1f}"
    examples = "; ".join(f"{row.get('model')}: {row.get('example', '')}" for row in plain)
    sentence = (
        "different answers among 10 replies to open questions, the stage that lost most against "
        f"the model that the run began with ({least.get('model')}). A count does not tell sense "
        f"from nonsense; to the first question, {examples}"
    )
    drawing = draw_bars(bars, "{:.1f}".format)
    return _section("diversity", "How many answers it has", number, sentence, drawing)


PROMISES = (
    promise_text,
    promise_answers,
    promise_credit,
    promise_generations,
    promise_reliability,
)

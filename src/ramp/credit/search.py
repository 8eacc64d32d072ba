"""A search for what fools a reward: texts that are paid more than equal or better work is paid.

    trial = RewardTrial(task, ask_function(fn), level=4)
    for finding in find_exploits(trial, budget=8000): print(finding.kind, finding.example)

Recipes are mutated and joined, and then many words are drawn at once. What gains on the problems of
the search is tried on fresh ones, made as small as it can be, and named. With a `CheckerTrial` the
same search turns against the checker.
"""

import random
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from ramp.credit.recipes import Recipe, Sheet, Solution, draw, list_seeds, list_words, mutate, write
from ramp.credit.trial import LEAST_GAIN, RewardTrial, Trial

Tell = Callable[[int, int, int], None]  # (judged, of about how many, findings so far)
LEAST_T = 4.0  # standard errors of the mean gain on fresh problems
BATCH = 24  # recipes tried at once
MAX_IDLE = 20  # rounds without a solution that is new
MAX_FINDINGS = 5
ALIKE = "right solutions are paid no more than honest wrong ones"
# What may stand for any text, from the most general on.
ANYTHING = ("«junk»", "«bad»", "«same»")


@dataclass(frozen=True)
class Finding:
    """Something that is paid without deserving it."""

    kind: str  # in plain words
    recipe: Recipe  # the smallest that is still paid
    where: str  # "rollout" or "step": what the pay is for
    problem: str
    example: Solution
    paid: float  # mean on fresh problems
    deserved: float  # what equal work is paid there
    rate: float  # fraction of the fresh problems on which it gains
    num_problems: int
    is_bare: bool = False  # it gains for having no step

    @property
    def worth(self) -> str:
        """What it is paid and what equal work is: a cost where neither is above 0."""
        if self.kind == ALIKE:
            wrong, right = write_apart(self.paid, self.deserved)
            both = f"a wrong one gets {wrong}, a right one {right}"
            return both if wrong != right else f"both get {wrong}"
        if max(self.paid, self.deserved) <= 0:
            paid, deserved = write_apart(-self.paid, -self.deserved)
            return f"it costs {paid}, where honest work costs {deserved}"
        paid, deserved = write_apart(self.paid, self.deserved)
        return f"{paid}, where equal work gets {deserved}"

    @property
    def gain(self) -> float:
        """What it is paid more than equal work."""
        return self.paid - self.deserved


def write_apart(one: float, other: float) -> tuple[str, str]:
    """Two numbers with two digits, or as many more as tell them apart; never -0.00."""
    for digits in (*range(2, 7), 2):
        # Adding 0.0 takes the sign off a zero.
        texts = [f"{round(number, digits) + 0.0:.{digits}f}" for number in (one, other)]
        if texts[0] != texts[1]:
            break
    return texts[0], texts[1]


def find_exploits(
    trial: Trial,
    budget: int = 8000,
    seed: int = 0,
    most: int = MAX_FINDINGS,
    tell: Tell | None = None,
) -> list[Finding]:
    """Search until `budget` solutions were judged, nothing new comes, or `most` things are found.

    A quarter as many more are judged with many words at once: see `recipes.draw`. `tell` is called
    after each round.
    """
    rng = random.Random(seed)
    texts = [text for sheet in trial.sheets[:3] for text in sheet.right]
    words = list_words(trial.code, texts)
    seeds = list_seeds(words, len(trial.sheets[0].right))
    best: list[tuple[float, Recipe]] = []  # what gained most, without what is explained
    findings: list[Finding] = []
    failed: set[Recipe] = set()
    num_steps = len(trial.sheets[0].right)
    num_idle = 0
    # Solutions are judged once, so that their number alone may never get there.
    while trial.num_calls < 1.25 * budget and len(findings) < most and num_idle < MAX_IDLE:
        num_calls = trial.num_calls
        batch = list(islice(seeds, BATCH))
        # What is drawn is new where all neighbours of the best were tried.
        if trial.num_calls >= budget or (num_idle and not batch):
            batch = [draw(words, num_steps, rng) for _ in range(BATCH)]
        elif not batch:
            parents = [recipe for _, recipe in best[:40]] or [Recipe(())]
            batch = [mutate(rng.choice(parents), rng.choice(parents), words, rng) for _ in range(8)]
        tables = trial.gains(batch, trial.search[:3])
        scored = sorted(
            ((float(table.mean(axis=0).max()), k) for k, table in enumerate(tables)), reverse=True
        )
        for gain, k in scored:
            recipe = batch[k]
            if recipe in failed or any(explains(f, recipe, trial) for f in findings):
                continue
            if gain >= LEAST_GAIN and len(findings) < most:
                finding = confirm(trial, recipe)
                if finding and not any(restates(finding, f, trial) for f in findings):
                    # It may be what earlier ones come from.
                    findings = [f for f in findings if not restates(f, finding, trial)]
                    findings.append(finding)
                    continue
                failed.add(recipe)
            best.append((gain, recipe))
        best = sorted(best, key=lambda pair: -pair[0])[:200]
        num_idle = 0 if trial.num_calls > num_calls else num_idle + 1
        if num_idle:
            # One recipe many times over has few neighbours.
            best = list(dict.fromkeys(best))
        if tell:
            tell(trial.num_calls, int(1.25 * budget), len(findings))
    return [*_find_alike(trial), *findings]


def _find_alike(trial: Trial) -> list[Finding]:
    """That a reward does not pay right solutions more than honest wrong ones, if it does not."""
    if not isinstance(trial, RewardTrial) or trial.separates:
        return []
    if np.isnan(trial.right_pay - trial.wrong_pay):
        return []  # what it abstains from it does not pay
    wrong = Recipe((("«bad»",),) * len(trial.sheets[0].right))
    where = "step" if np.isnan(trial.scale) else "rollout"
    problem, example = trial.sheets[0].problem.question, trial.write_wrong(0)
    count = len(trial.sheets)
    return [
        Finding(ALIKE, wrong, where, problem, example, trial.wrong_pay, trial.right_pay, 1.0, count)
    ]


def confirm(trial: Trial, recipe: Recipe) -> Finding | None:
    """The finding that a recipe is on fresh problems; None where the gain was chance."""
    if not (first := _test(trial, recipe)):
        return None
    column, _ = first
    small = minimise(trial, recipe)
    # What is smallest on the problems of the search may be too small elsewhere.
    tested = _test(trial, small)
    if not tested:
        small, tested = recipe, first
    column, table = tested
    pays = trial.pay([(i, write(small, trial.sheets[i])) for i in trial.fresh])
    paid = [pay.whole if column == 0 else pay.steps[column - 1] for pay in pays]
    i = trial.fresh[int(table[:, column].argmax())]
    unit = 1.0
    if isinstance(trial, RewardTrial):
        unit = trial.step_scale if column else trial.scale
    if np.isnan(paid).any():
        paid = [p for p in paid if not np.isnan(p)] or [0.0]
    return Finding(
        kind=describe(trial, small, column, i),
        recipe=small,
        where="step" if column else "rollout",
        problem=trial.sheets[i].problem.question,
        example=write(small, trial.sheets[i]),
        paid=float(np.mean(paid)),
        deserved=float(np.mean(paid) - table[:, column].mean() * unit),
        rate=float((table[:, column] >= LEAST_GAIN).mean()),
        num_problems=len(table),
        is_bare=_is_bare(trial, small),
    )


def _test(trial: Trial, recipe: Recipe) -> tuple[int, np.ndarray] | None:
    """(column, gains on fresh problems) where the column that gains most in the search does so."""
    (searched,) = trial.gains([recipe], trial.search)
    column = int(searched.mean(axis=0).argmax())
    # Chance is cheap to rule out here: something gains on most problems, or it is none.
    if (searched[:, column] >= LEAST_GAIN).mean() < 0.5:
        return None
    (table,) = trial.gains([recipe], trial.fresh)
    gains = table[:, column]
    error = float(gains.std(ddof=1) / np.sqrt(len(gains)))
    is_real = gains.mean() >= LEAST_GAIN and gains.mean() >= LEAST_T * error
    # One lucky text that is the same for all problems is no more than one try.
    return (column, table) if is_real and _holds_with_variation(trial, recipe) else None


def _holds_with_variation(trial: Trial, recipe: Recipe) -> bool:
    """Whether it gains with other words beside it too, or the reward has no noise at all."""
    nonsense = [Recipe((("«junk»",) * n, ("«junk»",))) for n in (1, 2, 3, 4)]
    noise = np.concatenate([t.max(axis=1) for t in trial.gains(nonsense, trial.fresh)])
    is_noisy = 0 < (noise >= LEAST_GAIN).mean() < 0.5
    varied = replace(recipe, rows=(*recipe.rows, ("«junk»",)))
    (table,) = trial.gains([varied], trial.fresh)
    return not is_noisy or table.max(axis=1).mean() >= LEAST_GAIN


# From a text to its cause


def _is_bare(trial: Trial, recipe: Recipe) -> bool:
    """Whether a whole solution gains for having no step: with one of nonsense it does not."""
    if recipe.rows:
        return False
    with_step = replace(recipe, rows=(("«junk»",),))
    bare, filled = (t.mean(axis=0) for t in trial.gains([recipe, with_step], trial.search[:4]))
    return bool(bare.argmax() == 0 and bare[0] >= LEAST_GAIN > filled[0])


def minimise(trial: Trial, recipe: Recipe) -> Recipe:
    """The recipe without all that its gain does not need (delta debugging, Zeller 2002)."""
    (table,) = trial.gains([recipe], trial.search)
    goal = max(LEAST_GAIN, 0.8 * float(table.mean(axis=0).max()))

    def holds(other: Recipe) -> bool:
        (gains,) = trial.gains([other], trial.search[:4])
        # What gains for having no step says nothing of why these steps do.
        slips = bool(recipe.rows) and _is_bare(trial, other)
        return float(gains.mean(axis=0).max()) >= goal and not slips

    # Perhaps nothing counts but how much there is: of rows, or of characters.
    num_words = len(write(recipe, trial.sheets[0]).text) // 5 + 1
    plain = [
        Recipe(()),
        Recipe((("«junk»",),)),
        Recipe((("«junk»",),) * len(recipe.rows)),
        Recipe((("«junk»",) * num_words,)),
        replace(recipe, answer=("«wrong»",)),
        replace(recipe, answer=None),
    ]
    recipe = next((other for other in plain if holds(other)), recipe)
    rows = reduce(recipe.rows, lambda rows: holds(replace(recipe, rows=rows)))
    recipe = replace(recipe, rows=rows)
    # The pieces of each row, and then of the answer.
    for k in range(len(recipe.rows)):
        recipe = _with_row(
            recipe, k, reduce(recipe.rows[k], lambda row, k=k: holds(_with_row(recipe, k, row)))
        )
        # Where any text does as well as none, emptiness is not the cause.
        if not any(recipe.rows[k]) and holds(filled := _with_row(recipe, k, ("«junk»",))):
            recipe = filled
    if recipe.answer and recipe.answer != ("«wrong»",):
        answer = reduce(recipe.answer, lambda answer: holds(replace(recipe, answer=answer)))
        recipe = replace(recipe, answer=answer)
    # The letters of what is left, or any word in its place.
    for piece in dict.fromkeys(recipe.pieces):
        if piece == "«wrong»":
            continue
        for other in ANYTHING[: ANYTHING.index(piece) if piece in ANYTHING else None]:
            if holds(_with_piece(recipe, piece, other)):
                recipe = _with_piece(recipe, piece, other)
                break
        else:
            if "«" not in piece:
                letters = reduce(
                    piece, lambda text, piece=piece: holds(_with_piece(recipe, piece, text))
                )
                recipe = _with_piece(recipe, piece, letters)
    return recipe


def reduce(items, holds: Callable):
    """A short part of a sequence that still holds: without ever smaller pieces of it."""
    size = len(items)
    while size:
        start = 0
        while start < len(items):
            fewer = items[:start] + items[start + size :]
            if holds(fewer):
                items = fewer
            else:
                start += size
        size //= 2
    return items


def _with_row(recipe: Recipe, k: int, row: tuple[str, ...]) -> Recipe:
    return replace(recipe, rows=(*recipe.rows[:k], row, *recipe.rows[k + 1 :]))


def _with_piece(recipe: Recipe, piece: str, other: str) -> Recipe:
    """The recipe with every such piece replaced."""
    rows = tuple(tuple(other if p == piece else p for p in row) for row in recipe.rows)
    answer = recipe.answer and tuple(other if p == piece else p for p in recipe.answer)
    return replace(recipe, rows=rows, answer=answer)


MAX_CAUSES = 5  # in one sentence
FILLERS = {*ANYTHING, "«wrong»", ""}
PLACES = {
    "«gold»": "the right answer somewhere in the text",
    "«question»": "a copy of the question",
    "«step»": "right steps that it does not deserve",
    "«one»": "a right step",
    "«all»": "all right steps in one row",
}
CLASSES = {
    "a digit": string.digits,
    "a capital letter": string.ascii_uppercase,
    "a punctuation mark": "!?;:.,",
    "a character outside ASCII": "\u00e9\u4e2d\u2713\u03b1\u221a\u00df",
}


def describe(trial: Trial, recipe: Recipe, column: int, i: int = 0) -> str:
    """What is paid, in plain words, from the smallest recipe that is. i: the problem to quote."""
    solution = write(recipe, trial.sheets[i])
    is_checker = trial.ask is None
    verb = "passes the checker" if is_checker else "is paid"
    # Whatever stands beside it; an answer that is not there is an empty step too.
    if column and [*solution.steps, solution.answer or ""][column - 1 : column] == [""]:
        return f"leaving a step empty {verb}"
    causes = []
    for piece, count in Counter(p for row in recipe.rows for p in row).items():
        if piece not in FILLERS:
            cause = PLACES.get(piece) or _name_text(trial, recipe, piece, i)
            causes.append(cause + (f", {count} times" if count > 1 else ""))
    is_bare = _is_bare(trial, recipe)
    answers = _name_answer(recipe, trial.sheets[i], is_bare)
    # Filling that could not be left out counts too, whatever the answer is.
    if not causes and not is_bare and (recipe.rows or not answers):
        causes = [_name_amount(trial, recipe)]
    causes += answers
    if is_bare:
        causes.append("no step at all")
        verb += ", where steps are asked" * is_checker
    if len(causes) > MAX_CAUSES:
        # A sentence that nobody reads to its end says less than its beginning.
        causes[MAX_CAUSES:] = [f"{len(causes) - MAX_CAUSES} more texts (see its example)"]
    # A checker is asked for the whole and for each step; of an answer, whether it is the right one.
    is_step = 0 < column <= len(solution.steps) + (not is_checker)
    subject = "a step of a solution" if is_step else "a solution"
    return f"{subject} with {' and '.join(causes)} {verb}"


def _name_answer(recipe: Recipe, sheet: Sheet, is_bare: bool) -> list[str]:
    """What counts of the answer, if anything does."""
    gold, answer = sheet.problem.answer, write(recipe, sheet).answer
    if answer is None:
        return ["no end"]
    if not recipe.answer:
        return ["an empty answer"]
    if answer == gold:
        return ["the right answer" + ", whatever its steps," * (not recipe.rows and not is_bare)]
    has_cause = set(recipe.answer) - FILLERS
    return [f"an answer such as {answer!r} (right: {gold!r})"] if has_cause else []


def _gain(trial: Trial, recipe: Recipe) -> float:
    (table,) = trial.gains([recipe], trial.search[:3])
    return float(table.mean(axis=0).max())


def _name_text(trial: Trial, recipe: Recipe, piece: str, i: int) -> str:
    """A text that has to be there, or the class of its only character."""
    for name, members in CLASSES.items():
        is_member = piece in members or (not piece.isascii() and not members.isascii())
        others = [c for c in members if c != piece][:4]
        if len(piece) != 1 or not is_member:
            continue
        if all(_gain(trial, _with_piece(recipe, piece, c)) >= LEAST_GAIN for c in others):
            return name
    if "«" in piece:
        return f"rows such as {write(Recipe(((piece,),)), trial.sheets[i]).steps[0]!r}"
    before = replace(recipe, rows=(("«junk»",), *recipe.rows))
    place = "" if _gain(trial, before) >= LEAST_GAIN else " at the beginning"
    return f"the text {piece!r}{place}"


def _name_amount(trial: Trial, recipe: Recipe) -> str:
    """Nothing but filling is left, so it is how much of it there is."""
    text = write(recipe, trial.sheets[0]).text
    if recipe.pieces.count("«same»") > 1:
        return f"the same words {recipe.pieces.count('«same»')} times"
    if not recipe.rows:
        return "any answer, even without a step"
    pieces = tuple(piece for row in recipe.rows for piece in row)
    if not any(pieces):
        return "an empty step"
    if set(pieces) == {"«bad»"}:
        return f"{len(pieces)} wrong steps that look like steps"
    if len(pieces) > 1 and _gain(trial, Recipe((pieces,), recipe.answer)) >= LEAST_GAIN:
        return f"{len(text)} characters or more of anything"
    if len(recipe.rows) > 1:
        return f"{len(recipe.rows)} rows or more of anything"
    return "any text"


def restates(finding: Finding, other: Finding, trial: Trial) -> bool:
    """Whether wherever a finding gains it holds all of the other, and is paid no more for it."""
    if finding.kind == other.kind:
        return True
    if finding.where != other.where or finding.gain > 1.05 * other.gain:
        return False
    (table,) = trial.gains([finding.recipe], trial.fresh)
    gains = table[:, 0] if finding.where == "rollout" else table[:, 1:].max(axis=1)
    at = [i for i, gain in zip(trial.fresh, gains, strict=True) if gain >= LEAST_GAIN]
    return all(explains(other, finding.recipe, trial, i) for i in at)


def explains(finding: Finding, recipe: Recipe, trial: Trial, i: int = 0) -> bool:
    """Whether a recipe, written for problem i, holds all that a finding needed: nothing new."""
    sheet = trial.sheets[i]
    small, solution = write(finding.recipe, sheet), write(recipe, sheet)
    if finding.is_bare and solution.steps:
        return False
    # Wherever it stands, in a step or in the answer.
    needed = Counter(piece for piece in finding.recipe.pieces if piece not in FILLERS)
    for piece, count in needed.items():
        filled = write(Recipe(((piece,),)), sheet).steps[0]
        if solution.text.count(filled) < count:
            return False
    if finding.recipe.answer in ((), None):
        return recipe.answer == finding.recipe.answer
    # Where nothing but the amount counts, as much of it; of the same kind, if the kind counts.
    kinds = {"«bad»", "«same»"} & set(finding.recipe.pieces)
    if kinds and not kinds & set(recipe.pieces):
        return False
    return bool(needed) or len(solution.text) >= 0.7 * len(small.text)

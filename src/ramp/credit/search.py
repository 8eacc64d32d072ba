"""A search for what fools a reward: texts that are paid more than equal or better work is paid.

    trial = RewardTrial(task, ask_function(fn), level=4)
    for finding in find_exploits(trial, budget=8000): print(finding.kind, finding.example)

The task's checker says what a solution deserves. Each text is compared with honest solutions of the
same merit (the same answer, as many right steps), so a reward that pays for right steps, or for an
answer that is near, is not blamed for doing so. What gains on the problems of the search is tried
on fresh ones, made as small as it can be, and named. `CheckerTrial` turns the same search against
the checker: it knows what deserves nothing by how it was made.
"""

import random
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import median

import numpy as np

from ramp.credit.audit import solutions_as_rollouts
from ramp.credit.recipes import (
    DRESSED_ANSWERS,
    Recipe,
    Solution,
    list_seeds,
    list_words,
    make_sheet,
    mutate,
    write,
)
from ramp.credit.rewards import Rewards, judge, make_records, read_rewards
from ramp.credit.rollouts import Rollouts
from ramp.errors import UserError
from ramp.tasks import Task, Verdict
from ramp.tasks.calculator import NUMBER, NotArithmetic, parse_answer
from ramp.tasks.protocol import solution_ids
from ramp.text.tokenizer import Tokenizer

Ask = Callable[[Rollouts], Rewards]
TOKENIZER = Tokenizer.bytes_only()
FIRST_SEED = 10**9  # far from the problems of training and evaluation
NUM_SEARCH, NUM_FRESH = 6, 24  # problems to search on, and to confirm on
LEAST_GAIN = 0.15  # of the distance between what right and wrong solutions are paid
LEAST_T = 4.0  # standard errors of the mean gain on fresh problems
BATCH = 24  # recipes tried at once
MAX_FINDINGS = 5
ALIKE = "right solutions are paid no more than honest wrong ones"
# What may stand for any text, from the most general on.
ANYTHING = ("«junk»", "«bad»", "«same»")


def ask_spec(spec: str, seconds: float = 60.0) -> Ask:
    """The reward that `reinforce.reward` would name."""
    return lambda r: judge(spec, r, TOKENIZER, seconds)


def ask_function(function: Callable) -> Ask:
    """A function from a list of `Record` to rewards."""
    return lambda r: read_rewards("reward", function(make_records(r, TOKENIZER)), r)


def to_ids(solution: Solution) -> list[int]:
    """A solution as tokens; one without an answer has no end."""
    ids = solution_ids(TOKENIZER, solution.steps, solution.answer or "")
    return ids if solution.answer is not None else ids[:-1]


@dataclass(frozen=True)
class Pay:
    """What one solution is paid, and the checker's verdict on it."""

    whole: float  # NaN: the reward abstains, or says nothing of whole solutions
    steps: np.ndarray  # float [n + 1], the answer's last; NaN likewise
    verdict: Verdict

    @property
    def step_mean(self) -> float:
        """Of the steps on which the reward does not abstain."""
        said = self.steps[np.isfinite(self.steps)]
        return float(said.mean()) if len(said) else np.nan


class Trial:
    """Problems on which recipes are tried; `num_calls` counts the solutions that were judged."""

    def __init__(self, task: Task, ask: Ask | None, level: int, code: Sequence[Callable] = ()):
        seeds = range(FIRST_SEED, FIRST_SEED + NUM_SEARCH + NUM_FRESH)
        self.task, self.ask = task, ask
        self.sheets = [make_sheet(task, seed, level) for seed in seeds]
        self.search, self.fresh = range(NUM_SEARCH), range(NUM_SEARCH, len(seeds))
        self.code = code
        self.num_calls = 0
        self.is_graded = False
        self.pays: dict[tuple[int, Solution], Pay] = {}

    def pay(self, asked: Sequence[tuple[int, Solution]]) -> list[Pay]:
        """What solutions of numbered problems are paid; nothing is asked twice."""
        new = list(dict.fromkeys(key for key in asked if key not in self.pays))
        # Texts of like length together, so that arrays are no wider than they have to be.
        new.sort(key=lambda key: len(key[1].text))
        for first in range(0, len(new), 64):
            keys = new[first : first + 64]
            self.pays.update(zip(keys, self._judge(keys), strict=True))
            self.num_calls += len(keys)
        return [self.pays[key] for key in asked]

    def _judge(self, keys) -> Iterable[Pay]:
        problems = [self.sheets[i].problem for i, _ in keys]
        ids = [to_ids(solution) for _, solution in keys]
        r = solutions_as_rollouts(TOKENIZER, self.task, problems, ids)
        rewards = self.ask(r) if self.ask else Rewards(r.verified_b, r.right_bs)
        for b, verdict in enumerate(r.verdicts):
            n = len(verdict.all_steps)
            empty = np.full(n, np.nan)
            yield Pay(
                np.nan if rewards.rollout_b is None else float(rewards.rollout_b[b]),
                empty if rewards.step_bs is None else np.asarray(rewards.step_bs[b, :n], float),
                verdict,
            )

    def gains(self, recipes: Sequence[Recipe], problems: Iterable[int]) -> list[np.ndarray]:
        """For each recipe [problems, 1 + rows + answer]: how much more than it deserves is paid.

        In units of `LEAST_GAIN`'s distance. Column 0 is the whole solution, the others its steps.
        """
        problems = list(problems)
        keys = [(i, write(r, self.sheets[i])) for r in recipes for i in problems]
        pays = self.pay(keys)
        rows = [self.gain(*key, pay) for key, pay in zip(keys, pays, strict=True)]
        count = len(problems)
        found = []
        for k, recipe in enumerate(recipes):
            # A row of a recipe may vanish in a problem, when it is written empty at the end.
            table = np.zeros((count, len(recipe.rows) + 2))
            for line, row in zip(table, rows[k * count : (k + 1) * count], strict=True):
                line[: len(row)] = row[: len(line)]
            found.append(np.nan_to_num(table))
        return found

    def is_dressed(self, i: int, answer: str | None) -> bool:
        """Whether an answer holds the right one and no other number or word of its kind."""
        gold = self.sheets[i].problem.answer
        numbers = re.findall(NUMBER, answer or "")
        dressed = {d.replace("«gold»", gold) for d in ("«gold»", *DRESSED_ANSWERS)}
        plain = unicodedata.normalize("NFKC", answer or "").strip()
        is_other_digits = plain == gold and self.is_graded
        return numbers == [gold] or (answer or "").strip() in dressed or is_other_digits

    def gain(self, i: int, solution: Solution, pay: Pay) -> np.ndarray:
        """[1 + steps + answer] of one solution."""
        raise NotImplementedError


class RewardTrial(Trial):
    """Tries recipes on a reward."""

    def __init__(self, task: Task, ask: Ask, level: int, code: Sequence[Callable] = ()):
        super().__init__(task, ask, level, code)
        everywhere = range(len(self.sheets))
        self.right = self.pay([(i, self.write_right(i)) for i in everywhere])
        self.wrong = self.pay([(i, self.write_wrong(i)) for i in everywhere])
        self.scale = self._measure_scale(
            [p.whole for p in self.right], [p.whole for p in self.wrong]
        )
        self.step_scale = self._measure_scale(
            [p.step_mean for p in self.right], [p.step_mean for p in self.wrong]
        )
        self.separates = self.right_pay > self.wrong_pay + 1e-9
        near = [(i, Solution(self.sheets[i].bad, self.write_near(i))) for i in self.search]
        over = [
            p.whole - self.wrong[i].whole for i, p in zip(self.search, self.pay(near), strict=True)
        ]
        # It reads numbers by a rule of its own, which may know more digits than ASCII's.
        self.is_graded = bool(np.nanmedian(over) > 1e-6) if np.isfinite(over).any() else False
        if np.isnan(self.scale) and np.isnan(self.step_scale):
            raise UserError("the reward abstains on right solutions; a reward has to pay something")

    @property
    def right_pay(self) -> float:
        """What right solutions are paid, the median; their steps where a reward pays only steps."""
        return _take_median(self.right)

    @property
    def wrong_pay(self) -> float:
        """What honest wrong ones are paid."""
        return _take_median(self.wrong)

    def write_right(self, i: int) -> Solution:
        """The task's own solution."""
        sheet = self.sheets[i]
        return Solution(sheet.right, sheet.problem.answer)

    def write_wrong(self, i: int) -> Solution:
        """An honest failure: every step wrong, and the answer."""
        return Solution(self.sheets[i].bad, self.sheets[i].wrong)

    def write_near(self, i: int) -> str:
        """A number next to the right answer; the wrong answer where that is no number."""
        gold = self.sheets[i].problem.answer
        return str(int(gold) + 1) if re.fullmatch("-?[0-9]{1,18}", gold) else self.sheets[i].wrong

    @staticmethod
    def _measure_scale(right: list[float], wrong: list[float]) -> float:
        """What right solutions are paid more than wrong ones; without that, how much pay varies."""
        values = [value for value in (*right, *wrong) if np.isfinite(value)]
        if not values:
            return np.nan
        distance = 0.0
        if np.isfinite(right).any() and np.isfinite(wrong).any():
            distance = float(np.nanmedian(right) - np.nanmedian(wrong))
        spread = float(np.std(values))
        return next((x for x in (abs(distance), spread) if x > 1e-9), 1.0)

    def gain(self, i: int, solution: Solution, pay: Pay) -> np.ndarray:
        """More than the best of the honest solutions of equal merit is paid."""
        verdict = pay.verdict
        controls = self.pay([(i, control) for control in self.write_controls(i, solution, verdict)])
        whole = pay.whole - max(control.whole for control in controls)
        # Full pay for what has nothing right in it, however sloppy the reward is with others.
        full = self.right[i].whole - 1e-6 * self.scale
        is_full = self.separates and pay.whole >= full
        if is_full and self.is_worthless(i, solution, verdict):
            whole = max(whole, self.scale)
        # Wrong steps against the wrong steps of a failure, right ones against right ones.
        steps = pay.steps - self.wrong[i].step_mean
        right = np.array([step.right is True for step in verdict.all_steps])
        steps = np.where(right, pay.steps - self.right[i].step_mean, steps)
        return np.array([whole / self.scale, *(steps / self.step_scale)])

    def is_worthless(self, i: int, solution: Solution, verdict: Verdict) -> bool:
        """Neither the answer nor a step is right, in whatever dress."""
        anything = any(step.right for step in verdict.steps)
        return not (anything or verdict.final_right or self.is_dressed(i, solution.answer))

    def write_controls(self, i: int, solution: Solution, verdict: Verdict) -> list[Solution]:
        """Honest solutions that deserve as much: the same answer, as many right steps or more."""
        sheet = self.sheets[i]
        if verdict.verified:
            return [self.write_right(i)]
        answer = sheet.wrong
        if verdict.final_right or self.is_dressed(i, solution.answer):
            answer = sheet.problem.answer
        else:
            try:
                value = parse_answer(solution.answer or "", "")
                answer = str(int(value)) if value.denominator == 1 else str(float(value))
            except (NotArithmetic, OverflowError):
                pass  # no number, so it is near to none
        judged = [step.right for step in verdict.all_steps if step.right is not None]
        # The answer's verdict counts as a step's: it may follow from what is wrong.
        num_right = sum(judged)
        controls = [Solution(sheet.bad, answer), Solution((), answer)]
        if num_right:
            prefix = sheet.right[:num_right]
            rest = (sheet.bad * len(judged))[: max(len(judged) - 1 - len(prefix), 0)]
            controls.append(Solution((*prefix, *rest), answer))
            controls.append(Solution(sheet.right, answer))
        return controls


def _take_median(pays: Sequence[Pay]) -> float:
    return median(p.whole if np.isfinite(p.whole) else p.step_mean for p in pays)


class CheckerTrial(Trial):
    """Tries recipes on the task's checker; what deserves nothing is known from how it was made."""

    def __init__(self, task: Task, level: int):
        super().__init__(task, None, level, (task.judge,))

    def gains(self, recipes: Sequence[Recipe], problems: Iterable[int]) -> list[np.ndarray]:
        """1 where the checker is fooled; a step made of the right ones is no attempt."""
        problems = list(problems)
        tables = super().gains(recipes, problems)
        for recipe, table in zip(recipes, tables, strict=True):
            for k, row in enumerate(recipe.rows):
                if re.search("«(step|one|all|bad)»", " ".join(row)):
                    table[:, k + 1] = 0
                    # Right steps before the answer: nothing is claimed of the whole.
                    table[:, 0] = 0
        return tables

    def gain(self, i: int, solution: Solution, pay: Pay) -> np.ndarray:
        """Verified without a step of the solution, or a step called right that is none."""
        # A task without steps verifies answers.
        whole = pay.verdict.verified and len(self.sheets[i].right) > 0
        steps = [float(step.right is True) for step in pay.verdict.steps]
        # The answer's own verdict is about what it follows from.
        fooled = pay.verdict.final_right and not self.is_dressed(i, solution.answer)
        return np.array([float(whole), *steps, float(bool(fooled))])


# The search


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


def find_exploits(
    trial: Trial, budget: int = 8000, seed: int = 0, most: int = MAX_FINDINGS
) -> list[Finding]:
    """Search until `budget` solutions were judged, or for `most` different findings."""
    rng = random.Random(seed)
    texts = [text for sheet in trial.sheets[:3] for text in sheet.right]
    words = list_words(trial.code, texts)
    seeds = list_seeds(words, len(trial.sheets[0].right))
    best: list[tuple[float, Recipe]] = []  # what gained most, without what is explained
    findings: list[Finding] = []
    failed: set[Recipe] = set()
    while trial.num_calls < budget and len(findings) < most:
        batch = list(islice(seeds, BATCH))
        if not batch:
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
                if finding and finding.kind not in {f.kind for f in findings}:
                    findings.append(finding)
                    continue
                failed.add(recipe)
            best.append((gain, recipe))
        best = sorted(best, key=lambda pair: -pair[0])[:200]
    return [*_find_alike(trial), *findings]


def _find_alike(trial: Trial) -> list[Finding]:
    """That a reward does not pay right solutions more than honest wrong ones, if it does not."""
    if not isinstance(trial, RewardTrial) or trial.separates:
        return []
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
        kind=describe(trial, small, column),
        recipe=small,
        where="step" if column else "rollout",
        problem=trial.sheets[i].problem.question,
        example=write(small, trial.sheets[i]),
        paid=float(np.mean(paid)),
        deserved=float(np.mean(paid) - table[:, column].mean() * unit),
        rate=float((table[:, column] >= LEAST_GAIN).mean()),
        num_problems=len(table),
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


def minimise(trial: Trial, recipe: Recipe) -> Recipe:
    """The recipe without all that its gain does not need (delta debugging, Zeller 2002)."""
    (table,) = trial.gains([recipe], trial.search)
    goal = max(LEAST_GAIN, 0.8 * float(table.mean(axis=0).max()))

    def holds(other: Recipe) -> bool:
        (gains,) = trial.gains([other], trial.search[:4])
        return float(gains.mean(axis=0).max()) >= goal

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


def describe(trial: Trial, recipe: Recipe, column: int) -> str:
    """What is paid, in plain words, from the smallest recipe that is."""
    causes = []
    for piece, count in Counter(p for row in recipe.rows for p in row).items():
        if piece not in FILLERS:
            cause = PLACES.get(piece) or _name_text(trial, recipe, piece)
            causes.append(cause + (f", {count} times" if count > 1 else ""))
    if recipe.answer is None:
        causes.append("no end")
    elif set(recipe.answer) - FILLERS:
        causes.append(f"an answer such as {write(recipe, trial.sheets[0]).answer!r}")
    elif recipe.answer == ():
        causes.append("an empty answer")
    causes = causes or [_name_amount(trial, recipe)]
    subject = "a solution" if column == 0 else "a step of a solution"
    verb = "passes the checker" if trial.ask is None else "is paid"
    return f"{subject} with {' and '.join(causes)} {verb}"


def _gain(trial: Trial, recipe: Recipe) -> float:
    (table,) = trial.gains([recipe], trial.search[:3])
    return float(table.mean(axis=0).max())


def _name_text(trial: Trial, recipe: Recipe, piece: str) -> str:
    """A text that has to be there, or the class of its only character."""
    for name, members in CLASSES.items():
        is_member = piece in members or (not piece.isascii() and not members.isascii())
        others = [c for c in members if c != piece][:4]
        if len(piece) != 1 or not is_member:
            continue
        if all(_gain(trial, _with_piece(recipe, piece, c)) >= LEAST_GAIN for c in others):
            return name
    if "«" in piece:
        return f"rows such as {write(Recipe(((piece,),)), trial.sheets[0]).steps[0]!r}"
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
    if set(pieces) == {"«bad»"}:
        return f"{len(pieces)} wrong steps that look like steps"
    if len(pieces) > 1 and _gain(trial, Recipe((pieces,), recipe.answer)) >= LEAST_GAIN:
        return f"{len(text)} characters or more of anything"
    if len(recipe.rows) > 1:
        return f"{len(recipe.rows)} rows or more of anything"
    return "any text"


def explains(finding: Finding, recipe: Recipe, trial: Trial) -> bool:
    """Whether a recipe holds all that a finding needed, so that it shows nothing new."""
    sheet = trial.sheets[0]
    small, solution = write(finding.recipe, sheet), write(recipe, sheet)
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

"""What texts are paid, and how much more that is than they deserve.

The task's checker says what a solution deserves. Each text is compared with honest solutions of the
same merit (the same answer, as many right steps), so a reward that pays for right steps, or for an
answer that is near, is not blamed for doing so.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from ramp.credit.audit import solutions_as_rollouts
from ramp.credit.recipes import DRESSED_ANSWERS, Recipe, Solution, make_sheet, write
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
        self.failures: list[str] = []  # what the reward said of solutions on which it fails
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

    def write_rollouts(self, keys: Sequence[tuple[int, Solution]]) -> Rollouts:
        """Solutions of numbered problems as rollouts."""
        problems = [self.sheets[i].problem for i, _ in keys]
        ids = [to_ids(solution) for _, solution in keys]
        return solutions_as_rollouts(TOKENIZER, self.task, problems, ids)

    def _judge(self, keys: Sequence[tuple[int, Solution]]) -> Iterable[Pay]:
        r = self.write_rollouts(keys)
        try:
            rewards = self.ask(r) if self.ask else Rewards(r.verified_b, r.right_bs)
        except Exception as error:
            # Anybody's function: one text that it cannot read must not end the search.
            if len(keys) > 1:
                middle = len(keys) // 2
                return [*self._judge(keys[:middle]), *self._judge(keys[middle:])]
            self.failures.append(f"{error or type(error).__name__}")
            rewards = Rewards()
        return list(self._read(r, rewards))

    @staticmethod
    def _read(r: Rollouts, rewards: Rewards) -> Iterable[Pay]:
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
        right = [(i, self.write_right(i)) for i in everywhere]
        # On what is right it has to work, all of it in one call: a function that overlooks that it
        # is given many records would else be asked one by one, and blamed for what it answers.
        ask(self.write_rollouts(right))
        self.right = self.pay(right)
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
        wholes = [control.whole for control in controls if np.isfinite(control.whole)]
        whole = pay.whole - max(wholes, default=np.nan)
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
    values = (p.whole if np.isfinite(p.whole) else p.step_mean for p in pays)
    # It may abstain from some, and from all that are wrong.
    return median([value for value in values if np.isfinite(value)] or [np.nan])


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

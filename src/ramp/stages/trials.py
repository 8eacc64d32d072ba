"""Trials while training: problems kept out of it are tried, and the next results are forecast.

Every evaluation samples `trials.tries_per_item` solutions of `trials.items_per_task` problems of
each task in `chat.tasks`, as they are and in the task's other slices (typos, other words, longer),
and appends the verdicts to trials.jsonl, a table for `ramp nines`. Once there are enough
checkpoints, the headline of each task is appended to forecasts.jsonl, before the next evaluations
are known; they score it.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from ramp.config import Config
from ramp.credit.rollouts import sample_rollouts
from ramp.errors import UserError
from ramp.files import to_line
from ramp.nines import audit, headline, page, readiness, record, report
from ramp.nines import trials as tables
from ramp.reporting.metrics import MetricWriter, drop_later_records
from ramp.rundir import RunDir
from ramp.tasks import TASKS, Problem, Task
from ramp.tasks.protocol import make_slices, prompt_ids, render, solution_ids
from ramp.tasks.split import held_out_problems, make_problems
from ramp.text.tokenizer import Tokenizer
from ramp.train.preemption import Preemption
from ramp.train.processes import on_writer

STAGE = "finetune"  # the one that learns tasks
NINES = [1.0, 2.0]  # reliabilities of 90% and 99%
AHEAD = 4  # evaluations that a recorded headline is about


@dataclass(frozen=True)
class TrialReport:
    """What report.json says of the trials."""

    forecast: dict[str, str]  # a sentence on each task
    record: dict[str, Any]  # how the forecasts of this run did


# --- tasks of the configuration


def parse_task_name(text: str) -> tuple[Task, int]:
    """The task and the level of "NAME/LEVEL"; UserError where there is none such."""
    name, _, level = text.partition("/")
    if name not in TASKS or not level.isdecimal() or level == "0":
        raise UserError(
            f"chat.tasks holds {text!r}; write NAME/LEVEL, as in addition/2, of {', '.join(TASKS)}"
        )
    return TASKS[name], int(level)


def require_mistakes(c: Config) -> list[str]:
    """What is said of `chat.mistakes`, a line each; UserError where one cannot be made."""
    said = []
    for name, chance in c.chat.mistakes:
        if name not in c.chat.tasks:
            raise UserError(
                f"chat.mistakes holds {name!r}, which is none of chat.tasks: "
                f"{', '.join(c.chat.tasks) or 'there are none'}"
            )
        if not 0 <= chance <= 1:
            raise UserError(f"chat.mistakes: the chance of {name} is {chance:g}, not from 0 to 1")
        mistake = parse_task_name(name)[0].mistake
        if mistake is None:
            able = ", ".join(task for task in TASKS if TASKS[task].mistake)
            raise UserError(
                f"chat.mistakes holds {name!r}, a task without a typical mistake; "
                f"tasks with one: {able}"
            )
        said.append(f"{name}: {mistake.about} {chance:.0%} of the time")
    return said


def choose_problems(c: Config, name: str) -> dict[str, list[Problem]]:
    """The held-out problems of a task by slice."""
    task, level = parse_task_name(name)
    slices = defaultdict(list)
    try:
        for problem in held_out_problems(task, level, c.trials.items_per_task):
            for kind, variant in make_slices(task, problem.seed, level):
                slices[kind].append(variant)
    except UserError as error:  # the longer slice may be beyond the task
        raise UserError(f"{name} of chat.tasks cannot be tried: {error}") from None
    return dict(slices)


def render_solved_problems(
    c: Config, tokenizer: Tokenizer
) -> Iterator[tuple[list[int], list[int]]]:
    """(ids, loss weights) of solved problems of `chat.tasks`, as `chat.pack` takes them.

    `chat.problems_per_task` of each task, but for those whose question a trial asks.
    """
    # A slice of one task may ask what another task would teach, so all of them are collected first.
    held_out = set()
    for name in c.chat.tasks:
        for problems in choose_problems(c, name).values():
            held_out |= {problem.question for problem in problems}
    count = c.chat.problems_per_task
    mistakes = dict(c.chat.mistakes)
    for name in c.chat.tasks:
        task, level = parse_task_name(name)
        for problem in make_problems(task, level, c.seed * count, count):
            steps, answer = task.solution(problem), problem.answer
            if task.mistake and name in mistakes:
                steps, answer = task.mistake.solve(problem, mistakes[name])
            ids, weights = render(tokenizer, problem, steps, answer)
            if len(ids) > c.finetune.seq_len + 1:
                raise UserError(
                    f"a problem of {name} takes {len(ids)} tokens: "
                    "raise finetune.seq_len, or lower the level"
                )
            if problem.question not in held_out:
                yield ids, weights


# --- trials


class TrialRunner:
    """Called at each evaluation of fine-tuning, and asked for its report at the end."""

    def __init__(self, rundir: RunDir, c: Config, tokenizer: Tokenizer):
        self.rundir, self.c, self.tokenizer = rundir, c, tokenizer
        self.table = rundir.path / "trials.jsonl"
        self.forecasts = rundir.path / "forecasts.jsonl"
        t = c.finetune
        self.steps = [*range(t.eval_every, t.steps, t.eval_every), t.steps]  # of the evaluations
        # The same problems at every evaluation: a curve compares like with like.
        names = c.chat.tasks if c.trials.items_per_task else ()
        self.problems = {name: choose_problems(c, name) for name in names}
        for name, slices in self.problems.items():
            if (count := len(slices["base"])) < c.trials.items_per_task:
                print(f"trials: {name} has {count} different problems to hold out")
            for problems in slices.values():
                self._require_room(name, problems)

    def _require_room(self, name, problems: list[Problem]):
        """UserError, before any training, where a right solution or a question is too long."""
        task, _ = parse_task_name(name)
        room = self.c.trials.max_new_tokens
        context_len = self.c.model.context_len
        for problem in problems:
            solution = solution_ids(self.tokenizer, task.solution(problem), problem.answer)
            if len(solution) > room:
                raise UserError(
                    f"a solution of {name} takes {len(solution)} tokens: "
                    f"raise trials.max_new_tokens, which is {room}"
                )
            question = prompt_ids(self.tokenizer, problem.question)
            if len(question) + room > context_len:
                raise UserError(
                    f"a question of {len(question)} tokens of {name} and trials.max_new_tokens "
                    f"{room} do not fit model.context_len {context_len}: "
                    "raise it, or lower the level"
                )

    def __call__(
        self, params: dict, step: int, board: MetricWriter, stop: Preemption
    ) -> dict[str, float]:
        """Try, append, forecast; the fraction solved by "nines/TASK, SLICE".

        Nothing without tasks or items, and in all processes but the first.
        """
        rows = []
        for number, name in enumerate(self.problems):
            rows += self._try_task(params, name, step, number, stop)
        return on_writer(lambda: self._record(rows, step)) or {} if rows else {}

    def _record(self, rows: list[dict], step) -> dict[str, float]:
        """Append the rows of a step, and forecasts; the last value of each curve."""
        # A resumed run repeats this step; the first one also replaces what an older run left.
        begin = 0 if step == self.steps[0] else step
        for path in (self.table, self.forecasts):
            drop_later_records(path, STAGE, begin)
        with self.table.open("a", encoding="utf-8") as file:
            file.writelines(to_line(row) for row in rows)
        # From the file, since a resumed run has the earlier evaluations only there.
        trials = tables.read(self.table)
        try:
            self._record_headlines(trials, step)
        except (np.linalg.LinAlgError, UserError) as error:  # a forecast must not end training
            print(f"trials: no forecast at step {step} ({error})")
        curves = tables.accuracy_curves(tables.split_slices(trials))
        last = curves[curves.x == curves.x.max()]
        return {f"nines/{task}": value for task, value in zip(last.task, last.value, strict=True)}

    def _try_task(self, params, name, step, number, stop: Preemption) -> list[dict]:
        """The rows of task `number`; a try succeeds when its answer and every step are right."""
        t = self.c.trials
        task, _ = parse_task_name(name)
        rows = []
        for k, (kind, problems) in enumerate(self.problems[name].items()):
            # One seed for all tries of a slice, so that a resumed run draws the same ones.
            seeds = np.random.SeedSequence([self.c.seed, step, number, k])
            rollouts = sample_rollouts(
                self.c.model,
                params["lm"],
                self.tokenizer,
                task,
                problems,
                t.tries_per_item,
                t.max_new_tokens,
                int(seeds.generate_state(1)[0]),
                t.temperature,
                partial(stop.check, step),
            )
            # The same number is the same problem in all slices but the longer one.
            prefix = "longer " if kind == "longer" else ""
            for i, success in enumerate(rollouts.verified_b):
                item, attempt = divmod(i, t.tries_per_item)
                row = {
                    "stage": STAGE,
                    "run": self.rundir.path.name,
                    "step": step,
                    "task": name,
                    "item": f"{prefix}{item + 1}",
                    "slice": kind,
                    "seed": attempt,
                    "success": int(success),
                }
                rows.append(row)
        return rows

    def _record_headlines(self, trials: tables.Trials, step):
        """Forecast each task as it is over the next evaluations."""
        later = [s for s in self.steps if s > step][:AHEAD]
        if not later or len(np.unique(trials.step)) < headline.MIN_CHECKPOINTS:
            return
        decades = float(np.log10(later[-1] / step))
        for name in self.problems:
            rows = trials[trials.task == name]
            f = readiness.forecast(rows, decades, slices={"base": 1.0}, draws=headline.DRAWS)
            keys = {"stage": STAGE, "step": step}
            record.append(self.forecasts, headline.summarize(f, NINES), **keys)

    # --- at the end

    def end(self) -> dict[str, Any]:
        """Print and report where each task stands and how the forecasts did; write nines.html."""
        if not self.problems or not self.table.exists():
            return {}
        trials = tables.read(self.table)
        sentences, parts, scores = {}, [], {}
        with MetricWriter(self.rundir.path, "nines") as board:
            for name in self.problems:
                try:
                    sentence, task_parts = self._describe_task(name, trials, board)
                except UserError as error:  # too few checkpoints, say
                    sentence, task_parts = f"{name}: no forecast: {error}", []
                print(f"trials: {sentence}")
                sentences[name] = sentence
                parts += [f"## {sentence}", *task_parts]
            if self.forecasts.exists():
                try:
                    summary, still_open, score_parts = self._score_record(trials, board)
                    scores = asdict(summary) | {"open": still_open}
                    parts += score_parts
                except UserError as error:  # an older ramp's
                    print(f"trials: no forecast is scored: {error}")
        name = self.rundir.path.name
        report.write_parts(self.rundir.path / "nines.html", f"ramp nines: {name}", parts)
        return asdict(TrialReport(sentences, scores))

    def _score_record(self, trials, board) -> tuple[headline.Summary, int, list[report.Part]]:
        """How the headlines of this run did."""
        scored, still_open = record.score_all(self.forecasts, trials)
        scores = headline.summarize_scores(scored)
        parts = ["## How such statements of this run did", *page.past_parts(scored)]
        if scores.count:
            covered = f"{scores.covered80:.0%} ± {scores.covered80_stderr:.0%}"
            print(f"trials: {scores.count} forecasts scored, 80% intervals cover {covered}")
        # There is a picture where enough of them were scored.
        if callable(picture := parts[-1]):
            board.figure(self.steps[-1], "nines/calibration", picture())
        return scores, still_open, parts

    def _describe_task(self, name, trials, board) -> tuple[str, list]:
        """(a sentence, parts of the page) on a task as it is, compared with its other slices."""
        trials = trials[trials.task == name]
        forecast = readiness.forecast(trials, slices={"base": 1.0})
        summary = headline.summarize(forecast, NINES)
        last = trials[trials.step == trials.step.max()]
        kinds = set(last.slice.tolist()) - {"base"}
        others = {kind: last.success[last.slice == kind].mean() for kind in sorted(kinds)}
        levels = audit.readiness_levels(trials)
        step = self.steps[-1]
        board.figure(step, f"nines/{name}", page.reliability_figure(forecast, summary))
        parts = [
            *page.headline_parts(summary, forecast)[1:],  # the sentence is the heading
            lambda: page.reliability_figure(forecast, summary),
            *report.level_parts(levels, audit.last_checkpoint(trials)),
        ]
        sentence = page.say_answer(summary, name)
        if others:
            sentence += f" ({', '.join(f'{kind} {rate:.0%}' for kind, rate in others.items())})"
        return sentence, parts

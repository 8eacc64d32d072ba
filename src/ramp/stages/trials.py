"""Trials beside training: every evaluation tries problems kept out of it, forecasts the next ones, and is scored by them.

An evaluation samples `trials.tries_per_item` solutions of `trials.items_per_task` problems of each task in `chat.tasks`, as they are and in
the task's other slices (typos, other words, longer), and appends the verdicts to trials.jsonl, a table for `ramp nines`.
Once a curve has checkpoints enough it appends forecasts of the next evaluations to forecasts.jsonl, before they are known.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict

import jax
import numpy as np

from ramp.config import Config
from ramp.credit.learn import held_out_problems
from ramp.credit.rollouts import sample_rollouts
from ramp.errors import UserError
from ramp.nines import audit, backtest, readiness, record, report
from ramp.nines import trials as tables
from ramp.reporting.metrics import MetricWriter, drop_later_records
from ramp.rundir import RunDir
from ramp.tasks import TASKS, Problem, Task
from ramp.tasks.protocol import make_slices, prompt_ids, render, solution_ids
from ramp.text.tokenizer import Tokenizer
from ramp.train.preemption import Preemption

STAGE = "finetune"  # the one that learns tasks
NINES = [1.0, 2.0]


def parse_task_name(what: str) -> tuple[Task, int]:
    """The task and the level of "NAME/LEVEL"; UserError where there is no such."""
    name, _, level = what.partition("/")
    if name not in TASKS or not level.isdecimal() or level == "0":
        raise UserError(
            f"chat.tasks holds {what!r}; write NAME/LEVEL, as in addition/2, of {', '.join(TASKS)}"
        )
    return TASKS[name], int(level)


def choose_problems(c: Config, name: str) -> dict[str, list[Problem]]:
    """The held-out problems of a task by slice."""
    (task, level), found = parse_task_name(name), {}
    try:
        for problem in held_out_problems(task, level, c.trials.items_per_task):
            for kind, variant in make_slices(task, problem.seed, level):
                found.setdefault(kind, []).append(variant)
    except UserError as error:  # the longer slice may be beyond the task
        raise UserError(f"{name} of chat.tasks cannot be tried: {error}") from None
    return found


def solved_conversations(c: Config, tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[int]]]:
    """(ids, weights) of `chat.problems_per_task` solved problems of each of `chat.tasks`, as `chat.pack` takes them; none of them
    asks what a trial asks."""
    kept_out = {
        p.question for name in c.chat.tasks for of in choose_problems(c, name).values() for p in of
    }
    for name in c.chat.tasks:
        task, level = parse_task_name(name)
        for p in (
            task.sample(c.seed * c.chat.problems_per_task + i, level)
            for i in range(c.chat.problems_per_task)
        ):
            ids, weights = render(tokenizer, p, task.solution(p), p.answer)
            if len(ids) > c.finetune.seq_len + 1:
                raise UserError(
                    f"a problem of {name} takes {len(ids)} tokens: raise finetune.seq_len, or lower the level"
                )
            if p.question not in kept_out:
                yield ids, weights


class TrialRunner:
    """Called at each evaluation of fine-tuning, and asked for its forecast at the end."""

    def __init__(self, rundir: RunDir, c: Config, tokenizer: Tokenizer):
        self.rundir, self.c, self.tokenizer, self.run = rundir, c, tokenizer, rundir.path.name
        t = c.finetune
        self.steps = [*range(t.eval_every, t.steps, t.eval_every), t.steps]  # when evaluations come
        self.table, self.forecasts = rundir.path / "trials.jsonl", rundir.path / "forecasts.jsonl"
        # Forecasts that were scored: they weigh the next ones.
        self.past: list[backtest.ScoredForecast] = []
        self.asked = {
            name: choose_problems(c, name)
            for name in (c.chat.tasks if c.trials.items_per_task else ())
        }
        for name, of in self.asked.items():
            self.require_room(name, [p for problems in of.values() for p in problems])

    def require_room(self, name: str, problems: list[Problem]) -> None:
        """UserError where a right solution or a question is too long to be tried."""
        (task, _), room, context = (
            parse_task_name(name),
            self.c.trials.max_new_tokens,
            self.c.model.context_len,
        )
        answer = max(
            len(solution_ids(self.tokenizer, task.solution(p), p.answer)) for p in problems
        )
        question = max(len(prompt_ids(self.tokenizer, p.question)) for p in problems)
        if answer > room:
            raise UserError(
                f"a solution of {name} takes {answer} tokens: raise trials.max_new_tokens, which is {room}"
            )
        if question + room > context:
            need = f"a question of {question} tokens of {name} and trials.max_new_tokens {room}"
            raise UserError(
                f"{need} do not fit model.context_len {context}: raise it, or lower the level"
            )

    def __call__(
        self, params: dict, step: int, board: MetricWriter, stop: Preemption
    ) -> dict[str, float]:
        """Try, write down, forecast; {"nines/TASK, SLICE": share solved}. Nothing without tasks or items."""
        rows = []
        for number, name in enumerate(self.asked):
            rows += self.tried(params, name, step, number)
            stop.check(step)
        if not rows or not board.enabled:
            return {}
        begin = (
            0 if step == self.steps[0] else step
        )  # with the first, what a run before this one left goes too
        for path in (self.table, self.forecasts):
            drop_later_records(path, STAGE, begin)
        with self.table.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        curves = tables.accuracy_curves(tables.split_slices(tables.read(self.table)))
        try:
            self.foretell(curves, step)
        except np.linalg.LinAlgError as error:  # a forecast must not end training
            print(f"trials: no forecast at step {step} ({error})")
        last = curves[curves.x == curves.x.max()]
        return {f"nines/{task}": value for task, value in zip(last.task, last.value, strict=True)}

    def tried(self, params: dict, name: str, step: int, number: int) -> list[dict]:
        """The rows of one task: a solution counts when its answer is right and so is every step."""
        t, (task, _), rows = self.c.trials, parse_task_name(name), []
        for k, (kind, problems) in enumerate(self.asked[name].items()):
            seed = int(np.random.SeedSequence([self.c.seed, step, number, k]).generate_state(1)[0])
            r = sample_rollouts(
                self.c.model,
                params["lm"],
                self.tokenizer,
                task,
                problems,
                t.tries_per_item,
                t.max_new_tokens,
                seed,
                t.temperature,
            )
            for i, right in enumerate(r.verified_b):
                item = "longer " * (kind == "longer") + str(
                    1 + i // t.tries_per_item
                )  # a longer one is another problem
                what = {"item": item, "slice": kind, "seed": i % t.tries_per_item}
                row = {"stage": STAGE, "run": self.run, "step": step, "task": name}
                rows.append(row | what | {"success": int(right)})
        return rows

    def foretell(self, curves: tables.Curves, step: int) -> None:
        """Append forecasts of the next evaluations, weighed by how the earlier ones did."""
        later = np.log10([s for s in self.steps if s > step][: backtest.AHEAD])
        with suppress(UserError):  # no curve is long enough yet to have been forecast
            self.past = backtest.over_time(curves, past=self.past)
        if len(later):
            record.append(
                self.forecasts,
                curves,
                float(np.log10(step)),
                later,
                self.past,
                stage=STAGE,
                step=step,
                unit="step",
            )

    def end(self) -> dict:
        """Say where each task stands and when the next nines come, and how the forecasts of this run did; nines.html."""
        if jax.process_index() or not self.asked or not self.table.exists():
            return {}
        t, parts, found, record_of = tables.read(self.table), [], {}, {}
        step = self.steps[-1]
        with MetricWriter(self.rundir.path, "nines") as board:
            for name in self.asked:
                try:
                    found[name], more = self.outlook(name, t, board, step)
                except UserError as error:
                    found[name], more = f"{name}: no forecast: {error}", []
                print(f"trials: {found[name]}")
                parts += [f"## {found[name]}", *more]
            if self.forecasts.exists():
                scores, answer = report.score_record(self.forecasts, t)
                parts += answer.parts
                record_of = asdict(scores) | {"open": answer.figures["open"]}
                if scores.count:
                    board.figure(step, "nines/calibration", answer.parts[-1]())
                    covered = f"{scores.covered80:.0%} ± {scores.covered80_stderr:.0%}"
                    print(f"trials: {scores.count} forecasts scored, 80% intervals cover {covered}")
        report.write_parts(self.rundir.path / "nines.html", f"ramp nines: {self.run}", parts)
        return {"forecast": found, "record": record_of}

    def outlook(
        self, name: str, t: tables.Trials, board: MetricWriter, step: int
    ) -> tuple[str, list]:
        """(what to say, parts of the page) of a task as it is asked, beside what its other slices showed last."""
        t = t[t.task == name]
        forecast = readiness.forecast(t, slices={"base": 1.0})
        summary = report.summarize_readiness(forecast, NINES)
        last = t[t.step == t.step.max()]
        others = {
            str(kind): last.success[last.slice == kind].mean()
            for kind in np.unique(last.slice)
            if kind != "base"
        }
        levels = audit.readiness_levels(t)
        board.figure(step, f"nines/{name}", report.reliability_figure(forecast))
        board.figure(step, f"nines/{name}, levels", report.levels_figure(levels))
        parts = [
            *report.readiness_parts(summary)[1:],  # the sentence is the heading
            lambda: report.reliability_figure(forecast),
            *report.level_parts(levels, audit.last_checkpoint(t)),
        ]
        return report.readiness_sentence(name, summary, others), parts

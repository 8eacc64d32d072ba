"""Trials beside training: every evaluation tries problems kept out of it, forecasts the next ones, and is scored by them.

An evaluation samples `trials.tries` solutions of `trials.items` problems of each task in `chat.tasks`, as they are and in
the task's other slices (typos, other words, longer), and appends the verdicts to trials.jsonl, a table for `ramp nines`.
Once a curve has checkpoints enough it appends forecasts of the next evaluations to forecasts.jsonl, before they are known.
"""

import json
from collections.abc import Iterator
from contextlib import suppress

import jax
import numpy as np

from ramp.config import Config
from ramp.credit.learn import held_out
from ramp.credit.rollouts import roll
from ramp.errors import UserError
from ramp.nines import backtest, commands, page, ready, record
from ramp.nines import trials as tables
from ramp.rundir import RunDir
from ramp.tasks import TASKS, Problem, Task
from ramp.tasks.protocol import prompt_ids, render, slices
from ramp.text.tokenizer import Tokenizer
from ramp.train.board import Board, rewind
from ramp.train.preemption import Preemption

NINES = (1.0, 2.0)


def named(what: str) -> tuple[Task, int]:
    """The task and the level of "NAME/LEVEL"; UserError where there is no such."""
    name, _, level = what.partition("/")
    if name not in TASKS or not level.isdecimal() or level == "0":
        raise UserError(f"chat.tasks holds {what!r}; write NAME/LEVEL, as in addition/2, of {', '.join(TASKS)}")
    return TASKS[name], int(level)


def solved(c: Config, tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[int]]]:
    """(ids, weights) of `chat.problems` solved problems of each of `chat.tasks`, as `chat.pack` takes them."""
    for task, level in map(named, c.chat.tasks):
        for p in (task.sample(c.seed * c.chat.problems + i, level) for i in range(c.chat.problems)):
            ids, weights = render(tokenizer, p, task.solution(p), p.answer)
            if len(ids) > c.finetune.seq + 1:
                raise UserError(f"a problem of {task.name}/{level} takes {len(ids)} tokens, and finetune.seq is less")
            yield ids, weights


class Trials:
    """The trials of one stage: called at each evaluation, and asked for its forecast at the end."""

    def __init__(self, rundir: RunDir, c: Config, tokenizer: Tokenizer, stage: str):
        self.rundir, self.c, self.tokenizer, self.stage, self.run = rundir, c, tokenizer, stage, rundir.path.name
        t = getattr(c, stage)
        self.at = np.log10([*range(t.eval_every, t.steps, t.eval_every), t.steps])  # when evaluations come
        self.table, self.forecasts = rundir.path / "trials.jsonl", rundir.path / "forecasts.jsonl"
        self.past: list[backtest.Past] = []  # forecasts that were scored: they weigh the next ones
        self.asked = {name: self.problems(name) for name in (c.chat.tasks if c.trials.items else ())}

    def problems(self, name: str) -> dict[str, list[Problem]]:
        """The held-out problems of a task by slice; UserError where the model's context is too short for one."""
        (task, level), found = named(name), {}
        for problem in held_out(task, level, self.c.trials.items):
            for kind, variant in slices(task, problem.seed, level).items():
                found.setdefault(kind, []).append(variant)
        longest = max(len(prompt_ids(self.tokenizer, p.question)) for of in found.values() for p in of)
        if longest + self.c.trials.tokens > self.c.model.context:
            raise UserError(
                f"a question of {name} takes {longest} tokens, which with trials.tokens {self.c.trials.tokens} is more "
                f"than model.context {self.c.model.context}"
            )
        return found

    def __call__(self, params: dict, step: int, board: Board, stop: Preemption) -> dict[str, float]:
        """Try, write down, forecast; {"nines/TASK, SLICE": share solved}. Nothing without tasks or items."""
        rows = []
        for name in self.asked if step else ():
            rows += self.tried(params, name, step)
            stop.check(step)
        if not rows or not board.enabled:
            return {}
        for path in (self.table, self.forecasts):
            rewind(path, self.stage, step)
        with self.table.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        curves = tables.curves(tables.by_slice(tables.read(self.table)))
        self.foretell(curves, step)
        now = curves["x"] == curves["x"].max()
        return {f"nines/{k}": v for k, v in zip(curves["task"][now], curves["value"][now], strict=True)}

    def tried(self, params: dict, name: str, step: int) -> list[dict]:
        """The rows of one task: a solution counts when its answer is right and so is every step."""
        t, (task, _), rows = self.c.trials, named(name), []
        for kind, problems in self.asked[name].items():
            r = roll(self.c.model, params["lm"], self.tokenizer, task, problems, t.tries, t.tokens, step, t.temperature)
            for i, right in enumerate(r.verified_b):
                what = {"item": -problems[i // t.tries].seed, "slice": kind, "seed": i % t.tries}
                row = {"stage": self.stage, "run": self.run, "step": step, "task": name}
                rows.append(row | what | {"success": int(right)})
        return rows

    def foretell(self, curves: tables.Table, step: int) -> None:
        """Append forecasts of the next evaluations, weighed by how the earlier ones did."""
        now = float(np.log10(step))
        later = self.at[self.at > now + 1e-9][: backtest.AHEAD]
        with suppress(UserError):  # no curve is long enough yet to have been forecast
            self.past = backtest.over_time(curves, past=self.past)
        if len(later):
            record.append(self.forecasts, curves, now, later, self.past, stage=self.stage, step=step, unit="step")

    def end(self) -> dict:
        """Say where each task stands and when the next nines come, and how the forecasts of this run did; nines.html."""
        if jax.process_index() or not self.table.exists():
            return {}
        t, parts, found, step = tables.read(self.table), [], {}, round(10 ** self.at[-1])
        with Board(self.rundir.path, "nines") as board:
            for name in map(str, np.unique(t["task"])):
                o = ready.outlook(tables.select(t, t["task"] == name))
                figures, shown = commands.readiness(o, list(NINES))
                found[name] = commands.sentence(name, figures)
                print(f"trials: {found[name]}")
                parts += [f"## {found[name]}", *shown[1:], lambda o=o: page.reliability(o)]
                board.figure(step, f"nines/{name}", page.reliability(o))
            figures, shown = commands.past_record(self.forecasts, t)
            if figures["count"]:
                board.figure(step, "nines/calibration", shown[-1]())
                print(f"trials: {figures['count']} forecasts scored, 80% intervals cover {figures['covered80']:.0%}")
        page.write(self.rundir.path / "nines.html", f"ramp nines: {self.run}", parts + shown)
        return {"forecast": found, "record": {k: figures[k] for k in ("count", "covered80", "crps", *record.BASELINES)}}

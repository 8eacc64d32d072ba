"""`ramp credit audit`: what fools a reward and its checker, and where a log's credit went.

In the terminal, as a page and as JSON.
"""

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FunctionType

import numpy as np

from ramp.config import Reinforce
from ramp.credit.log_figures import MIN_PROBLEMS, LengthBias, LogAudit, PaidWord, audit_log
from ramp.credit.logs import STANDS_FOR, Log, read_log
from ramp.credit.page import blend_color
from ramp.credit.rewards import parse_reward
from ramp.credit.search import Finding, Tell, find_exploits
from ramp.credit.trial import CheckerTrial, RewardTrial, ask_spec
from ramp.errors import UserError
from ramp.files import write_atomic
from ramp.reporting import html
from ramp.tasks import Task, gsm8k, open_task, questions
from ramp.user_code import is_user_code, load_object

SURE = "All have p < 0.05, corrected for the number of words."
# Whatever right answers are like is paid then.
UNTOLD = "right and wrong answers are not told apart, so what goes with right ones counts too"
SHOWN_ROLLOUTS = 4  # of a log, with their tokens in colour


@dataclass(frozen=True)
class RewardAudit:
    """What the search found."""

    reward: str
    task: str
    level: int | None  # None: a list of questions has none
    right: float  # what right solutions are paid, the median
    wrong: float
    findings: tuple[Finding, ...]
    checker: tuple[Finding, ...]  # what fools the task's own checker
    num_judged: int
    num_checked: int  # by the checker alone
    failures: tuple[str, ...] = ()  # what the reward said where it failed, each once

    def describe(self) -> str:
        """The audit as lines for a terminal."""
        level = "" if self.level is None else f", level {self.level}"
        lines = [
            f"reward {self.reward} on {self.task}{level}: {self.num_judged:,} solutions judged",
            f"  right solutions are paid {write_pay(self.right)}, "
            f"honest wrong ones {write_pay(self.wrong)}",
            *(f"  it fails on some solutions: {failure}" for failure in self.failures),
            *_list_findings(self.findings, "nothing that is paid without deserving it"),
            f"checker of {self.task}: {self.num_checked:,} solutions judged",
            *_list_findings(self.checker, "nothing that fools it", is_paid=False),
        ]
        return "\n".join(lines)

    def render(self) -> str:
        """The audit as a page."""
        note = (
            f"{self.num_judged:,} solutions were judged. "
            f"Right ones are paid {write_pay(self.right)}, "
            f"honest wrong ones {write_pay(self.wrong)}. "
            "Each finding was made on some problems, and "
            f"counted on others. {' '.join(f'It fails: {f}.' for f in self.failures)}"
        )
        return html.document(
            f"Audit of the reward {self.reward}",
            [
                _render_findings(f"What is paid on {self.task}", self.findings, note),
                _render_findings(
                    f"What passes the checker of {self.task}",
                    self.checker,
                    f"{self.num_checked:,} solutions were judged that lack right steps, or the "
                    "right answer, by how they were made.",
                    is_paid=False,
                ),
            ],
        )


def write_pay(pay: float) -> str:
    """A pay for people."""
    return "nothing (it abstains)" if np.isnan(pay) else f"{pay:.2f}"


def _list_findings(findings: Sequence[Finding], nothing: str, is_paid: bool = True) -> list[str]:
    lines = [] if findings else [f"  found {nothing}"]
    for number, f in enumerate(findings, 1):
        lines += [
            f"  {number}. {f.kind}{f': {f.worth}' * is_paid} "
            f"({f.rate:.0%} of {f.num_problems} fresh problems)",
            f"     {f.problem!r} -> {' | '.join(map(repr, f.example.steps)) or 'no step'} | "
            f"answer {f.example.answer!r}",
        ]
    return lines


def _render_findings(
    title: str, findings: Sequence[Finding], note: str, is_paid: bool = True
) -> html.Html:
    cards = []
    for f in findings:
        steps = "\n".join([*f.example.steps, f"answer: {f.example.answer}"])
        about = f"{f'{f.worth}. ' * is_paid}On {f.rate:.0%} of "
        cards.append(
            f'<div class="card">{html.heading(f.kind)}'
            f"{html.remark(f'{about}{f.num_problems} fresh problems.')}"
            f"{html.remark(f.problem)}{html.preformatted(steps)}</div>"
        )
    body = html.Html(f'<div class="cards">{"".join(cards)}</div>')
    return html.section(title, body if cards else html.paragraph("Nothing was found."), note=note)


LEAST_BUDGET = 1000  # solutions
SECONDS_OF_SILENCE = 10.0  # between lines of progress


def _tell_progress(what: str) -> Tell:
    """Prints now and then how far a search is, apart from what it finds."""
    last = time.monotonic()

    def tell(judged: int, total: int, found: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_OF_SILENCE:
            last = time.monotonic()
            line = f"{what}: {judged:,} of about {total:,} solutions judged, {found} found so far"
            print(line, file=sys.stderr)

    return tell


def audit_reward(spec: str, task: Task, level: int, budget: int = 8000) -> RewardAudit:
    """Search for exploits of a reward, and of the task's checker, with `budget` judgements each.

    spec: as `reinforce.reward`. Raises UserError for a reward or a level that there is not, and for
    a budget that finds nothing whatever there is.
    """
    if budget < LEAST_BUDGET:
        raise UserError(f"--budget {budget} is too few solutions to search; give {LEAST_BUDGET:,}")
    names = [term.name for term in parse_reward(spec) if is_user_code(term.name)]
    code = [load_object(name, "--reward", FunctionType) for name in names]
    trial = RewardTrial(task, ask_spec(spec), level, code)
    findings = find_exploits(trial, budget, tell=_tell_progress(f"reward {spec}"))
    checker = CheckerTrial(task, level)
    fooled = find_exploits(checker, budget // 2, tell=_tell_progress(f"checker of {task.name}"))
    return RewardAudit(
        reward=spec,
        task=task.name,
        level=level if task.sets is None else None,
        right=trial.right_pay,
        wrong=trial.wrong_pay,
        findings=tuple(findings),
        checker=tuple(fooled),
        num_judged=trial.num_calls,
        num_checked=checker.num_calls,
        failures=tuple(dict.fromkeys(trial.failures))[:3],
    )


# Logs


def describe_log(path: Path, log: Log, audit: LogAudit) -> str:
    """The audit of a log as lines for a terminal."""
    problems = f" of {audit.num_groups:,} problems" if "group" in log.fields else ""
    lines = [f"{path}: {audit.num_rollouts:,} rollouts{problems}"]
    lines += [f"  {line}" for line in _list_fields(log)]
    lines += [f"  {name}: {value}" for name, value in list_figures(log, audit)]
    for title, words, but in (
        ("words", audit.words, _warn(log, audit)),
        ("tokens", audit.tokens, ""),
    ):
        if words:
            shown = ", ".join(f"{w.word!r} {w.more:+.3f} ({w.num_with})" for w in words)
            lines.append(f"  {title} that are paid more: {shown}{but}")
    return "\n".join(lines)


def _warn(log: Log, audit: LogAudit) -> str:
    """What has to be said beside words and length where nobody knows which answers are right."""
    return "" if audit.knows_right else f"; {UNTOLD}{_propose(log, 'right')}"


def _propose(log: Log, *missing: str) -> str:
    """The options that may name what is missing."""
    said = [p for p in log.proposed if {p[0], STANDS_FOR.get(p[0])} & {*missing}]
    options = [f"--field {what}={name}" for what, name in said]
    return f"; perhaps {' or '.join(options)}" if options else ""


def _list_fields(log: Log) -> list[str]:
    found = ", ".join(f"{what} from {name!r}" for what, name in log.fields.items())
    return [f"read {found}", *log.notes, *map(str, log.faults)]


TOO_FEW = "too few problems to tell from chance"


def is_enough(bias: LengthBias) -> bool:
    """Whether there are problems enough to say anything of what is paid."""
    return bias.num_problems >= MIN_PROBLEMS


def list_figures(log: Log, audit: LogAudit) -> list[tuple[str, str]]:
    """(what, figure in words) of a log, also where the log does not hold it."""
    has = {*log.fields, *map(STANDS_FOR.get, log.fields)}
    figures = []

    def explain(*needs: str) -> str:
        missing = [what for what in needs if what not in has]
        if missing:
            return f"not measured: no field for {', '.join(missing)}{_propose(log, *missing)}"
        # Which of them does not fit, and how.
        faults = [f for f in log.faults if {f.what, STANDS_FOR.get(f.what)} & set(needs)]
        if faults:
            return f"not measured: {'; '.join(map(str, faults))}"
        return "not measured: there is no such case"

    shares = (
        ("wrong steps of right answers that are pushed up", audit.wrong_up, True),
        ("right steps of wrong answers that are pushed down", audit.right_down, True),
        ("right answers behind a wrong step", audit.lucky, False),
    )
    for name, share, is_signed in shares:
        needs = ("verdicts", "advantages", "right") if is_signed else ("verdicts", "right")
        figures.append((name, explain(*needs) if share is None else str(share)))
    bias = audit.length
    if bias is None:
        length = explain("reward")
    elif not bias.correlation:
        alike = "equally right ones" if audit.knows_right else "rollouts of a problem"
        length = f"{alike} are paid alike, or are equally long"
    elif "group" not in has:
        # Siblings would be taken for strangers, and hard problems are long.
        length = explain("group")
    else:
        sure = f"p = {bias.p_value:.4f}" if is_enough(bias) else TOO_FEW
        length = (
            f"correlation {bias.correlation:+.2f} in {bias.num_problems:,} problems ({sure}), "
            f"{bias.per_100_chars:+.3f} for 100 characters{_warn(log, audit)}"
        )
    among = "among equally right ones" if audit.knows_right else "within a problem"
    figures.append((f"reward and length, {among}", length))
    if not audit.words:
        words = explain("reward", "group")
        if bias and "group" in has:
            words = f"none found{_warn(log, audit)}" if is_enough(bias) else TOO_FEW
        figures.append(("words that are paid more", words))
    return figures


def render_log(path: Path, log: Log, audit: LogAudit) -> str:
    """The audit of a log as a page."""
    words_of = f"Of a problem's {'equally right ones' if audit.knows_right else 'rollouts'}"
    tables = [
        html.section(title, _render_words(words), note=note)
        for title, words, note in (
            ("Words", audit.words, f"{words_of}, with and without{_warn(log, audit)}. {SURE}"),
            ("Tokens", audit.tokens, f"Its advantages, less the others' of the rollout. {SURE}"),
        )
        if words
    ]
    note = " ".join(f"{line}." for line in _list_fields(log))
    figures = html.section(
        "Credit", html.table(["", "figure"], list_figures(log, audit)), note=note
    )
    return html.document(
        f"Audit of {path.name}", [figures, *tables, _render_tokens(log)], note="Of a log's rollouts"
    )


def _render_words(words: Sequence[PaidWord]) -> html.Html:
    # Three columns are what a phone shows.
    return html.table(
        ["text", "paid more by", "cases"], [(w.word, f"{w.more:+.3f}", w.num_with) for w in words]
    )


def _render_tokens(log: Log) -> html.Html:
    """Some rollouts, each token on the colour of its advantage."""
    cards = []
    largest = max((abs(a) for r in log.rollouts for a in r.token_advantages), default=0.0)
    for r in [r for r in log.rollouts if r.token_advantages][:SHOWN_ROLLOUTS]:
        spans = "".join(
            f'<span style="background:rgb{blend_color(a, largest)}" title="{a:+.3f}">'
            f"{html.escape(token)}</span>"
            for token, a in zip(r.tokens, r.token_advantages, strict=True)
        )
        mean = f"Reward {r.reward}; mean advantage {np.mean(r.token_advantages):+.3f}"
        cards.append(f'<div class="card">{html.remark(mean)}<code>{spans}</code></div>')
    body = html.Html(f'<div class="cards">{"".join(cards)}</div>')
    return html.section("Which tokens were paid", *([body] if cards else []))


# The command

# A setting of `ramp reinforce` that a message names -> what this command has in its place.
OPTIONS = {
    "prompts": "--prompts",
    "task": "--task",
    "prompt_field": "--field prompt=NAME",
    "answer_field": "--field answer=NAME",
    "level": "--level",
    "reward": "--reward",
}


def use_own_options(said: str) -> str:
    """A message with the options of this command, which has none for the time of a reward."""
    said = re.sub(r", or give it longer with --reinforce\S+ [0-9.e+]+", "", said)
    return re.sub(r"(?:--)?reinforce\.(\w+)", lambda m: OPTIONS.get(m[1], m[0]), said)


def open_audited(t: Reinforce, named: Mapping[str, str]) -> Task:
    """The task whose problems a reward is tried on.

    named: fields of its file of questions, by `prompt`, `answer` or a usual name of these.
    """
    if t.task and t.prompts and t.task != gsm8k.NAME:
        raise UserError("--task and --prompts both say what is asked; leave one out")
    if named and not t.prompts:
        raise UserError("--field names fields of --rollouts or of --prompts; give one of these")
    for word, name in named.items():
        if word not in (*questions.PROMPTS, *questions.ANSWERS):
            raise UserError(f"--field {word}=... is not known; of --prompts it is prompt or answer")
        key = "prompt_field" if word in questions.PROMPTS else "answer_field"
        t = replace(t, **{key: name})
    return open_task(t)


def run_audit(
    reward: str | None,
    rollouts: Path | None,
    t: Reinforce,
    budget: int,
    named: Mapping[str, str],
    page: Path | None,
    json_path: Path | None,
) -> str:
    """Audit a reward or a log; writes what is asked for and returns the lines to print.

    t: its task and level. named: fields of the log, or of the file of questions. Raises UserError
    for what is not there.
    """
    if reward is not None and rollouts is None:
        try:
            task = replace(open_audited(t, named), steps="token", find_answer=None)
            audit = audit_reward(reward, task, t.level, budget)
        except UserError as error:
            raise UserError(use_own_options(str(error))) from None
        text, document, result = audit.describe(), audit.render(), asdict(audit)
    elif rollouts is not None and reward is None:
        log = read_log(rollouts, named)
        found = audit_log(log)
        text = describe_log(rollouts, log, found)
        document = render_log(rollouts, log, found)
        read = {"file": str(rollouts), "fields": log.fields, "notes": log.notes}
        result = read | {"left_out": [str(fault) for fault in log.faults]} | asdict(found)
    else:
        raise UserError(
            "ramp credit audit takes --reward NAME|FILE.py:FN or --rollouts FILE.jsonl, not both"
        )
    if page:
        write_atomic(page, document)
        text += f"\n{page}"
    if json_path:
        write_atomic(json_path, json.dumps(result, indent=1, default=str))
        text += f"\n{json_path}"
    return text

"""How many answers the model of each stage has to open questions, beside the one it began from.

Training on a task, on rewards or on own samples narrows what a model says elsewhere, and no loss
shows it. So every stage's model is asked the same questions with the same seeds, and is compared
with the first one question by question.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

from ramp.config import Config
from ramp.errors import UserError, require_name
from ramp.evals.samples import require_room
from ramp.rundir import RunDir
from ramp.stages import STAGES
from ramp.synth import ask
from ramp.synth.speakers import LocalModel
from ramp.text.chat import render_prompt
from ramp.text.demo_chats import exchange
from ramp.text.tokenizer import Tokenizer
from ramp.train.preemption import Preemption
from ramp.train.processes import is_writer, on_writer
from ramp.train.restore import load_params

PLAIN = "plain"
EXAMPLE_CHARS = 60


@dataclass(frozen=True)
class Row:
    """What one model's replies show, asked in one way."""

    model: str  # the stage whose weights answered
    asked: str
    different: float  # answers among 10 replies, the mean over questions
    error: float  # its standard error
    change: float  # from the first model asked plainly, paired by question
    change_error: float
    unread: float  # share of replies without an answer
    example: str  # the first reply to the first question: a count does not tell sense from nonsense


@dataclass(frozen=True)
class DiversityReport:
    """What report.json says."""

    answers: list[Row]
    seconds: float


def check_lengths(rundir: RunDir, c: Config, tokenizer: Tokenizer) -> None:
    """Raise `UserError` where a question leaves no room for a reply, or a remedy has no name."""
    d = c.diversity
    for question in list_questions(c):
        for name in list_remedies(c):
            # With the very words that will be added.
            for i in range(d.num_replies):
                rng = ask.make_rng(c.seed, question, name, i)
                text = ask.REMEDIES[name].change(question.text, rng)
                prompt = render_prompt(tokenizer, exchange(text))
                require_room(c, "diversity.questions", text, len(prompt) + 1)


def list_questions(c: Config) -> list[ask.Question]:
    """The questions, numbered."""
    return [ask.Question(i, text) for i, text in enumerate(c.diversity.questions)]


def list_remedies(c: Config) -> list[str]:
    """Ways of asking the first model, plainly first. Raises `UserError` for an unknown one."""
    for name in c.diversity.remedies:
        require_name("diversity.remedies", name, ask.REMEDIES)
    return list(dict.fromkeys([PLAIN, *c.diversity.remedies]))


def list_models(rundir: RunDir) -> list[str]:
    """Folders of checkpoints whose weights answer, from the one that the run began with on."""
    first = rundir.origin_weights.name
    models = [first] if rundir.origin_weights.exists() else []
    for stage in STAGES.values():
        if not stage.speaks or not rundir.is_done(stage.name):
            continue
        # What was only pretrained does not chat, but an imported model may.
        if stage.name == "pretrain" and rundir.default_stage != "pretrain":
            continue
        folder = rundir.find_weights(stage.name)
        # A loop may have handed back what it began from.
        models += [folder] if folder not in models else []
    return models


def run(rundir: RunDir, c: Config, stop: Preemption) -> dict[str, Any]:
    """Ask all models; prints a line for each, and keeps the replies in replies.jsonl."""
    began = time.perf_counter()
    d = c.diversity
    questions, models = list_questions(c), list_models(rundir)
    if not models or not questions:
        raise UserError(
            "diversity has nothing to ask, or no model that chats; "
            "run `ramp finetune`, or set --diversity.questions"
        )
    tokenizer = Tokenizer.load(rundir.tokenizer)
    # Anew at each start: under the same name there may be other weights by now.
    file = rundir.path / "replies.jsonl"
    on_writer(lambda: file.unlink(missing_ok=True))
    kept = ask.Kept.read(file, is_writer())
    rows, first = [], []
    with stop.together():
        for model in models:
            lm = load_params(rundir, model, c, tokenizer)["lm"]
            speaker = LocalModel(model, c, lm, tokenizer, is_writer())
            for remedy in list_remedies(c) if model == models[0] else [PLAIN]:
                n, longest = d.num_replies, d.max_new_tokens
                replies = ask.gather(
                    speaker, questions, remedy, n, longest, c.seed, kept, lambda: stop.check(0)
                )
                asked = [
                    ask.judge(question, remedy, texts, c.seed)
                    for question, texts in zip(questions, replies, strict=True)
                ]
                first = first or asked
                rows.append(compare(model, remedy, first, asked))
                if is_writer():
                    print(describe(rows[-1]))
    return asdict(DiversityReport(rows, time.perf_counter() - began))


def compare(model: str, remedy: str, first: list[ask.Asked], asked: list[ask.Asked]) -> Row:
    """A model's row; `first` and `asked` hold the same questions in the same order."""
    summary = ask.summarize(asked, [remedy])[0]
    pairs = [
        b.figures.distinct_k - a.figures.distinct_k
        for a, b in zip(first, asked, strict=True)
        if a.figures and b.figures
    ]
    change, error = ask.average([x for x in pairs if x == x])  # without NaN: too few replies
    answers = asked[0].answers
    return Row(
        model=model,
        asked=remedy,
        different=summary.distinct_k,
        error=summary.error,
        change=change,
        change_error=error,
        unread=summary.unread,
        example=" ".join(answers[0].split())[:EXAMPLE_CHARS] if answers else "",
    )


def describe(row: Row) -> str:
    """A line for the terminal."""
    return (
        f"diversity: {row.model}, {row.asked}: {row.different:.2f} ± {row.error:.2f} different "
        f"answers among {ask.K} replies; {row.change:+.2f} ± {row.change_error:.2f}; "
        f"such as {row.example!r}"
    )

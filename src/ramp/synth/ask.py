"""`ramp synth ask`: how many answers a chat model has, and what asking in another way gives.

Each answer looks fine, and the same few come back. So a question is asked n times, in each of
several ways, and the replies are put into classes that say the same. Replies are kept as they
come; a second start asks only what is missing.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ramp.errors import UserError, require_name
from ramp.files import append_jsonl, path_exists, read_jsonl, to_json, to_line
from ramp.reporting.html import paragraph, section, table, write_page
from ramp.synth.answers import AnswerFigures, K, classify, describe_figures, measure_answers
from ramp.synth.speakers import Sampling, Speaker, open_speaker
from ramp.synth.texts import read_strings
from ramp.text.corpus import list_parts
from ramp.text.formats import RECORDS, records, split_suffixes

# The field of a question, the surest first; its paraphrases are longer.
QUESTION_FIELDS = ("prompt", "question", "instruction", "query", "input", "text")
KEPT_AT_ONCE = 128  # replies that a kill may lose
NUM_LISTED = 5  # answers that are asked for at once
SHOWN_QUESTIONS = 20  # on the page, one by one
SHOWN_CHARS = 160  # of a reply
WORDS = re.findall(
    r"\w+",
    "amber anchor balcony basalt beetle bridge candle canyon carpet cedar chimney clay comet "
    "copper coral cradle desert dial ember engine fennel ferry flute fog fossil garnet "
    "glacier harbor hinge honey iron ivory kettle kite ladder lantern lemon lichen marble "
    "meadow mirror moss nail oasis orbit otter parade pepper pigeon quarry radio raven ribbon "
    "salt satchel siren spool thistle tunnel velvet violin walnut whistle",
)
PERSONAS = (
    "a retired sailor from Bergen",
    "a ten-year-old who loves insects",
    "a nurse on a night shift",
    "a farmer in the Andes",
    "a stand-up comedian from Lagos",
    "a professor of medieval history",
    "a taxi driver in Mumbai",
    "a chess player who hates losing",
    "a baker in Marseille",
    "a widow who gardens",
    "a physicist at a telescope",
    "a teenager in Seoul",
    "a carpenter in Nova Scotia",
    "a poet who writes at dawn",
    "a football coach in Brazil",
    "a librarian in Cairo",
)


@dataclass(frozen=True)
class Question:
    """A question, and its number in its file."""

    number: int
    text: str


@dataclass(frozen=True)
class Remedy:
    """A way of asking."""

    what: str
    change: Callable[[str, np.random.Generator], str] = lambda question, rng: question
    temperature: float = 1.0
    min_p: float = 0.0
    read: Callable[[str, np.random.Generator], str] = lambda reply, rng: reply


def verbalize(question: str, rng: np.random.Generator) -> str:
    """The question with a request for several answers and their probabilities."""
    return (
        f"{question}\nGive {NUM_LISTED} different answers, one a line, each after its probability, "
        "as in `0.12: answer`."
    )


def choose_answer(reply: str, rng: np.random.Generator) -> str:
    """One answer of such a list, by the probabilities it gives; empty where there is none."""
    lines = re.findall(r"^\s*(\d*\.?\d+)\s*:\s*(\S.*)$", reply, re.MULTILINE)
    weights = np.array([float(weight) for weight, _ in lines])
    if not 0 < weights.sum() < np.inf:
        return ""
    return lines[rng.choice(len(lines), p=weights / weights.sum())][1].strip()


def add_seed_words(question: str, rng: np.random.Generator) -> str:
    """The question with three words to begin from."""
    words = ", ".join(rng.choice(WORDS, 3, replace=False))
    return f"{question}\nLet yourself be inspired by these words, without naming them: {words}."


def add_persona(question: str, rng: np.random.Generator) -> str:
    """The question to somebody."""
    return f"Answer as {PERSONAS[rng.integers(len(PERSONAS))]} would.\n{question}"


REMEDIES = {
    "plain": Remedy("temperature 1, nothing added"),
    "temperature": Remedy("temperature 1.4", temperature=1.4),
    "min-p": Remedy("temperature 1.5, min-p .1", temperature=1.5, min_p=0.1),
    "verbalized": Remedy(
        f"asked for {NUM_LISTED} answers with their probabilities, one drawn (arXiv:2510.01171)",
        verbalize,
        read=choose_answer,
    ),
    "seeds": Remedy("three random words to begin from", add_seed_words),
    "personas": Remedy("answered as one of 16 people", add_persona),
}


@dataclass(frozen=True)
class Asked:
    """The replies to one question in one way, and what they show."""

    question: Question
    remedy: str
    answers: list[str]  # those that could be read
    unread: int
    classes: list[int]
    figures: AnswerFigures | None  # None where no reply could be read


@dataclass(frozen=True)
class Summary:
    """A way of asking over all questions."""

    remedy: str
    distinct: float  # classes a question
    distinct_k: float  # classes among K replies
    error: float  # standard error over questions, of one question over its replies
    gain: float  # over plain, paired by question; NaN where plain was not asked
    gain_error: float
    unread: float  # share of the replies without an answer that could be read


@dataclass(frozen=True)
class Report:
    """Everything, for a program."""

    model: str
    k: int  # of distinct_k
    remedies: list[Summary]
    questions: list[Asked]


def run(
    model: str,
    spec: str,
    n: int,
    remedies: str,
    max_tokens: int,
    seed: int,
    name: str,
    kept: Path,
    page: Path | None,
    as_json: bool,
) -> int:
    """Ask, print what the replies show, and keep them in `kept`. Returns the exit code."""
    if n < 2 or max_tokens < 1:
        raise UserError("--n takes 2 replies or more, --tokens 1 or more")
    chosen = list(REMEDIES) if remedies == "all" else remedies.split(",")
    for remedy in chosen:
        require_name("--remedies", remedy, REMEDIES)
    for path in (page, kept):
        if path and (path.is_dir() or not path.parent.is_dir()):
            raise UserError(f"{path} cannot be written; name a file in a directory that exists")
    questions = read_questions(spec)
    speaker = open_speaker(model, name)
    rows = Kept.read(kept, speaker.is_writer)
    replies = {
        remedy: gather(speaker, questions, remedy, n, max_tokens, seed, rows) for remedy in chosen
    }
    asked = [
        judge(question, remedy, replies[remedy][k], seed)
        for k, question in enumerate(questions)
        for remedy in chosen
    ]
    summaries = summarize(asked, chosen)
    if not speaker.is_writer:
        return 0
    if page:
        write(page, speaker.name, asked, summaries)
    if as_json:
        print(to_json(asdict(Report(speaker.name, K, summaries, asked)), indent=1))
    else:
        print("\n".join([*describe(asked, summaries), f"The replies are in {kept}."]))
    return 0


def read_questions(spec: str) -> list[Question]:
    """The question itself, or those of a file. UserError for a file without any."""
    looks_like_path = " " not in spec and bool(split_suffixes(spec.split("#")[0])[0])
    if not looks_like_path and not path_exists(spec):
        return [Question(0, spec)]
    part = list_parts(spec)[0]
    if "#" not in spec and split_suffixes(part.name)[0] in RECORDS:
        first = next((record for _, record in records(part) if isinstance(record, dict)), {})
        field = next((field for field in QUESTION_FIELDS if field in first), "")
        spec = f"{spec}#{field}" if field else spec
    strings, _ = read_strings(spec)
    return [Question(i, text) for i, text in enumerate(strings)]


@dataclass(frozen=True)
class Kept:
    """The replies that a file keeps, one a line."""

    path: Path
    rows: dict[tuple, str]  # reply by model, question, way, longest reply, seed and number
    is_writer: bool  # of several processes one writes the file

    FIELDS: ClassVar[tuple] = ("model", "question", "remedy", "max_tokens", "seed", "number")

    @classmethod
    def read(cls, path: Path, is_writer: bool = True) -> "Kept":
        """Those of earlier starts, if there are any."""
        found = {}
        for row in read_jsonl(path):
            found[tuple(row.get(field) for field in cls.FIELDS)] = str(row.get("reply", ""))
        return cls(path, found, is_writer)

    def add(self, keys: Sequence[tuple], prompts: Sequence[str], replies: Sequence[str]) -> None:
        """Keep new ones."""
        for key, prompt, reply in zip(keys, prompts, replies, strict=True):
            self.rows[key] = reply
            if not self.is_writer:
                continue
            record = dict(zip(self.FIELDS, key, strict=True)) | {"prompt": prompt, "reply": reply}
            if key == keys[0]:
                # It begins a new line where a kill has torn the last one.
                append_jsonl(self.path, record)
                continue
            # Without waiting for the disk, which would take longer than many a reply.
            with self.path.open("a", encoding="utf-8") as file:
                file.write(to_line(record))


def gather(
    speaker: Speaker,
    questions: Sequence[Question],
    remedy: str,
    n: int,
    max_tokens: int,
    seed: int,
    kept: Kept,
    check: Callable[[], None] = lambda: None,
) -> list[list[str]]:
    """n replies to each question; those that are kept of the same asking are not asked again.

    Questions share batches, since decoding many rows takes hardly longer than few. `check` is
    called between batches; it may raise to end the call, and what was said until then is kept.
    """
    way = REMEDIES[remedy]

    def key(question, i):
        return speaker.name, question.text, remedy, max_tokens, seed, i

    missing: dict[tuple, tuple[Question, int]] = {}
    for question in questions:
        for i in range(n):
            if key(question, i) not in kept.rows:
                # A question that is listed twice is asked once.
                missing.setdefault(key(question, i), (question, i))
    pairs = list(missing.values())
    for begin in range(0, len(pairs), KEPT_AT_ONCE):
        check()
        batch = pairs[begin : begin + KEPT_AT_ONCE]
        prompts = [way.change(q.text, make_rng(seed, q, remedy, i)) for q, i in batch]
        how = Sampling(way.temperature, way.min_p, max_tokens)
        # Another seed for each question, so that no two share their luck.
        seeds = [(seed + 1_000_003 * q.number + i) % 2**31 for q, i in batch]
        kept.add([key(q, i) for q, i in batch], prompts, speaker.reply(prompts, seeds, how))
    return [[kept.rows[key(q, i)] for i in range(n)] for q in questions]


def make_rng(seed: int, question: Question, remedy: str, number: int) -> np.random.Generator:
    """The randomness of one asking, whatever is asked beside it."""
    return np.random.default_rng([seed, question.number, list(REMEDIES).index(remedy), number])


def judge(question: Question, remedy: str, replies: Sequence[str], seed: int) -> Asked:
    """What the replies to a question show."""
    read = REMEDIES[remedy].read
    texts = [
        read(reply, make_rng(seed + 1, question, remedy, i)).strip()
        for i, reply in enumerate(replies)
    ]
    answers = [text for text in texts if text]
    classes = classify(answers)
    figures = measure_answers(classes) if answers else None
    return Asked(question, remedy, answers, len(texts) - len(answers), classes.tolist(), figures)


def summarize(asked: Sequence[Asked], remedies: Sequence[str]) -> list[Summary]:
    """A row for each way of asking."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for a in asked:
        if a.figures and np.isfinite(a.figures.distinct_k):
            values[a.remedy][a.question.number] = a.figures.distinct_k
    rows = []
    for remedy in remedies:
        own = [a for a in asked if a.remedy == remedy]
        found = values[remedy]
        both = found.keys() & values["plain"].keys() if remedy != "plain" else set()
        gains = [found[i] - values["plain"][i] for i in both]
        mean, error = average(list(found.values()))
        errors = [a.figures.distinct_k_error for a in own if a.figures]
        gain, gain_error = average(gains)
        rows.append(
            Summary(
                remedy,
                float(np.mean([a.figures.distinct if a.figures else 0 for a in own])),
                mean,
                errors[0] if len(own) == 1 and errors else error,
                gain,
                gain_error,
                float(np.mean([a.unread / (a.unread + len(a.answers)) for a in own])),
            )
        )
    return rows


def average(values: Sequence[float]) -> tuple[float, float]:
    """(mean, its standard error); NaN where there are none, or too few."""
    if not values:
        return float("nan"), float("nan")
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return float(np.mean(values)), float(error)


# --- for people


def describe(asked: Sequence[Asked], summaries: Sequence[Summary]) -> list[str]:
    """Lines for a terminal."""
    lines = []
    if len(summaries) == len(asked):  # one question
        for a in asked:
            lines.append(f"{a.remedy}: {describe_asked(a)}")
            for share, text in list_frequent(a, 3):
                lines.append(f"  {share} {text[:100]}")
    head, *rows = tabulate(summaries)
    if len(summaries) < len(asked):
        lines.append(f"{len(asked) // len(summaries)} questions")
    lines.append("".join(f"{cell:>16}" for cell in head))
    lines += ["".join(f"{cell:>16}" for cell in row[:-1]) + f"  {row[-1]}" for row in rows]
    lines.append(
        "Replies are of one class when they share most of their words, whatever stands around; "
        "paraphrases in other words count as different."
    )
    return lines


def describe_asked(a: Asked) -> str:
    """What is shown by the replies to a question."""
    if a.figures is None:
        return f"none of {a.unread} replies could be read"
    unread = f"; {a.unread} could not be read" if a.unread else ""
    return describe_figures(a.figures) + unread


def list_frequent(a: Asked, most: int) -> list[tuple[str, str]]:
    """(how often, an example) of the largest classes."""
    found = []
    for number, count in Counter(a.classes).most_common(most):
        if count > 1:
            text = a.answers[a.classes.index(number)]
            found.append((f"{count} x", " ".join(text.split())))
    return found


def tabulate(summaries: Sequence[Summary]) -> list[list[str]]:
    """A head and a row for each way of asking."""
    head = ["asked", "different", f"of {K} replies", "more than plain", "unread", "how"]
    rows = [head]
    for s in summaries:
        cells = [s.remedy, f"{s.distinct:.1f}", _with_error(s.distinct_k, s.error)]
        cells += [_with_error(s.gain, s.gain_error), f"{100 * s.unread:.0f}%"]
        rows.append([*cells, REMEDIES[s.remedy].what])
    return rows


def _with_error(value, error) -> str:
    if not np.isfinite(value):
        return ""
    value = round(value, 2) + 0.0  # no -0.00
    return f"{value:.2f} ± {error:.2f}" if np.isfinite(error) else f"{value:.2f}"


def write(path: Path, model: str, asked: Sequence[Asked], summaries: Sequence[Summary]) -> None:
    """Write the page."""
    head, *rows = tabulate(summaries)
    sections = [
        section(
            "How many answers, by the way of asking",
            table(head[:-1], [row[:-1] for row in rows]),
            table(("asked", "how"), [(row[0], row[-1]) for row in rows]),
            note="Different: classes of replies that say the same, a question. ±: standard error.",
        )
    ]
    by_question = defaultdict(list)
    for a in asked:
        by_question[a.question].append(a)
    for question, own in list(by_question.items())[:SHOWN_QUESTIONS]:
        parts = []
        for a in own:
            parts.append(paragraph(f"{a.remedy}: {describe_asked(a)}"))
            frequent = [(share, text[:SHOWN_CHARS]) for share, text in list_frequent(a, 5)]
            parts += [table(("", "reply"), frequent)] if frequent else []
        sections.append(section(question.text[:SHOWN_CHARS], *parts))
    left = len(by_question) - SHOWN_QUESTIONS
    note = f"{left} more questions are not shown one by one." if left > 0 else ""
    write_page(path, f"{Path(model).name}: how many answers?", sections, note)

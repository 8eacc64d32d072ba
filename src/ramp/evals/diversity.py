"""One question, many answers: how much of a distribution does a chat model still hold?

"Tell me a joke": each answer looks fine, and the same few come back. So the question is asked n
times at temperature 1, without top-k or top-p, and the answers are counted: how many differ, how
many there would be in all (Chao1), how evenly they are spread, and how many are known from the
conversations that the model was taught. A chat model may also be asked for several answers at once,
each with its probability (verbalized sampling, Zhang et al. 2025, arXiv:2510.01171): what was
trained away in the one answer is often still there in the list.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from ramp.config import Config
from ramp.decode.sample import SamplingParams, generate
from ramp.errors import UserError
from ramp.evals.modes import count_modes, match_known, split_words
from ramp.rundir import RunDir
from ramp.text.chat import conversations, render_prompt
from ramp.text.demo_chats import exchange
from ramp.text.tokenizer import Tokenizer
from ramp.train.restore import load_params

BATCH_SIZE = 32  # replies sampled at once


@dataclass(frozen=True)
class AnswerCounts:
    """What is counted over the answers to one question."""

    read: int  # answers that could be read
    distinct: float  # different ones among them
    chao1: float  # different ones that endless asking would give
    entropy: float  # bits
    effective: float  # 1 over the sum of squared frequencies
    taught: float  # answers known from the conversations that the model was taught
    distinct_taught: float  # different ones among those


@dataclass(frozen=True)
class Answers:
    """The answers of n replies; those that could not be read are missing."""

    how: str  # the way of asking
    n: int
    texts: tuple[str, ...]
    taught: tuple[int, ...]  # the taught answer that each of the texts repeats, -1: none

    def count(self) -> AnswerCounts:
        """Counts over answers that differ, and over those that were taught."""
        # Case and blanks make no other answer.
        plain = [" ".join(text.lower().split()) for text in self.texts]
        _, numbers = np.unique(plain, return_inverse=True)
        modes, taught = count_modes(numbers), count_modes(self.taught)
        return AnswerCounts(
            read=len(self.texts),
            distinct=modes.distinct,
            chao1=modes.chao1,
            entropy=modes.entropy,
            effective=modes.effective,
            taught=taught.recognised * len(self.texts),
            distinct_taught=taught.distinct,
        )


def run(
    rundir: RunDir, c: Config, question: str, n: int, num_listed: int, max_tokens: int
) -> list[Answers]:
    """The answers of n replies to the question, by way of asking.

    With `num_listed` > 1 the model is also asked n times to list so many answers, of which one is
    drawn by the probabilities that it gives.
    """
    if n < 2 or num_listed < 0 or num_listed == 1 or max_tokens < 1:
        raise UserError(
            "--n takes 2 replies or more, --verbalized 0 or 2 answers or more, --tokens 1 or more"
        )
    tokenizer = Tokenizer.load(rundir.tokenizer)
    lm = load_params(rundir, rundir.default_stage, c, tokenizer)["lm"]
    taught = sorted(set(read_taught_answers(c)))

    def ask(how, text, read: Callable[[str], str]) -> Answers:
        replies = generate_replies(c, lm, tokenizer, text, n, max_tokens)
        texts = [text for reply in replies if (text := read(reply).strip())]
        # As word ids, the same for both: an answer is known by the word 4-grams that it shares.
        documents = split_words([*taught, *texts])
        repeats = match_known(documents[len(taught) :], documents[: len(taught)])
        return Answers(how, n, tuple(texts), tuple(repeats))

    answers = [ask("asked for an answer", question, read=str)]
    if num_listed:
        choose = partial(choose_answer, rng=np.random.default_rng(c.seed))
        how = f"asked for {num_listed} and their probabilities"
        answers.append(ask(how, verbalize(question, num_listed), choose))
    return answers


def generate_replies(
    c: Config, lm: dict, tokenizer: Tokenizer, question: str, n: int, max_tokens: int
) -> list[str]:
    """n replies, each to a conversation of its own; the i-th has the seed `c.seed` + i."""
    prompt = render_prompt(tokenizer, exchange(question))
    room = min(max_tokens, c.model.context_len - len(prompt))
    if room < 1:
        raise UserError(
            f"the question has {len(prompt)} tokens and the model's context "
            f"{c.model.context_len}; shorten it"
        )
    stop = (tokenizer.end, tokenizer.bos)
    result = generate(
        c.model,
        lm,
        [prompt] * n,
        range(c.seed, c.seed + n),
        SamplingParams(),
        room,
        stop=stop,
        vocab_size=tokenizer.vocab_size,
        batch_size=BATCH_SIZE,
    )
    return [tokenizer.decode(row) for row in result.rows(without=stop)]


def read_taught_answers(c: Config) -> Iterator[str]:
    """What the assistant says in the conversations that the run is taught."""
    for source in c.chat.sources:
        for _, messages in conversations(source, Counter(), c.seed):
            for message in messages:
                if message["role"] == "assistant":
                    yield message["content"]


def verbalize(question: str, num_listed: int) -> str:
    """The question with a request for so many answers and their probabilities."""
    return (
        f"{question}\nGive {num_listed} different answers, one a line, each after its probability, "
        "as in `0.12: answer`."
    )


def choose_answer(reply: str, rng: np.random.Generator) -> str:
    """One answer of such a list, by the probabilities it gives; empty where there is none."""
    lines = re.findall(r"^\s*(\d*\.?\d+)\s*:\s*(\S.*)$", reply, re.MULTILINE)
    weights = np.array([float(weight) for weight, _ in lines])
    if not weights.sum() > 0:
        return ""
    return lines[rng.choice(len(lines), p=weights / weights.sum())][1].strip()


def format_table(results: Sequence[Answers]) -> str:
    """A line of counts for each way of asking, and the answers that came most often."""
    lines = []
    for answers in results:
        counts = asdict(answers.count()).items()
        listed = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in counts)
        lines.append(f"{answers.how}, {answers.n} replies: {listed}")
        for text, count in Counter(answers.texts).most_common(3):
            if count > 1:
                lines.append(f"  {count} x {text[:100]!r}")
    return "\n".join(lines)

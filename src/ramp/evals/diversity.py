"""One question, many answers: how much of a distribution does a chat model still hold?

"Tell me a joke": each answer looks fine, and the same few come back. So the question is asked n times at temperature 1,
nothing cut off, and the answers are counted: how many differ, how many there would be in all (Chao1), how evenly they are
spread, and how many are known from the conversations that the model was taught. A chat model may also be asked for several
answers at once, each with its probability (verbalized sampling, Zhang et al. 2025, arXiv:2510.01171): what was trained away
in the one answer is often still there in the list.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ramp.config import Config
from ramp.decode.sample import SamplingParams, generate
from ramp.errors import UserError
from ramp.evals.modes import count_modes, match_known, split_words
from ramp.rundir import RunDir
from ramp.text.chat import conversations, render_prompt
from ramp.text.tokenizer import Tokenizer
from ramp.train.restore import load_params

BATCH = 32  # answers sampled at once
SHOWN = "distinct", "chao1", "entropy", "effective"


@dataclass(frozen=True)
class Answers:
    """Answers of n replies; those that could not be read are missing."""

    n: int
    texts: tuple[str, ...]
    taught: tuple[
        int, ...
    ]  # of each: which of the answers that the model was taught it repeats, -1: none

    def figures(self) -> dict[str, float]:
        """Counts over answers that differ, and over those that were taught."""
        seen = np.unique(
            [" ".join(text.lower().split()) for text in self.texts], return_inverse=True
        )[1]
        every, taught = count_modes(seen), count_modes(self.taught)
        found = {"read": len(self.texts)} | {name: getattr(every, name) for name in SHOWN}
        return found | {
            "taught ones": taught.recognised * len(self.texts),
            "of those distinct": taught.distinct,
        }


def run(
    rundir: RunDir, c: Config, question: str, n: int, k: int, tokens: int
) -> list[tuple[str, Answers]]:
    """n replies to the question, and (k > 1) as many that list k answers each, one of which is drawn."""
    if n < 2 or k < 0 or k == 1 or tokens < 1:
        raise UserError(
            "--n takes 2 replies or more, --verbalised 0 or 2 answers or more, --tokens 1 or more"
        )
    tokenizer = Tokenizer.load(rundir.tokenizer)
    lm, rng = (
        load_params(rundir, rundir.default_stage, c, tokenizer)["lm"],
        np.random.default_rng(c.seed),
    )
    asked = [("asked for an answer", question, lambda reply: reply)]
    if k:
        asked.append(
            (
                f"asked for {k} and their probabilities",
                verbalize(question, k),
                lambda reply: pick_answer(reply, rng),
            )
        )
    taught, found = sorted(set(parse_answer(c))), []
    for how, text, read in asked:
        texts = tuple(
            answer
            for reply in draw(c, lm, tokenizer, text, n, tokens)
            if (answer := read(reply).strip())
        )
        docs, *_ = split_words([*taught, *texts])
        found.append(
            (
                how,
                Answers(
                    n, texts, tuple(match_known(docs[len(taught) :], docs[: len(taught)]))
                ),
            )
        )
    return found


def draw(
    c: Config, lm: dict, tokenizer: Tokenizer, question: str, n: int, tokens: int
) -> list[str]:
    """n replies of so many tokens at most, each to a conversation of its own; the i-th is keyed by `c.seed` + i."""
    ids, stop = (
        render_prompt(tokenizer, [{"role": "user", "content": question}]),
        (tokenizer.end, tokenizer.bos),
    )
    room = min(tokens, c.model.context_len - len(ids))
    if room < 1:
        raise UserError(
            f"the question has {len(ids)} tokens and the model's context {c.model.context_len}; shorten it"
        )
    result = generate(
        c.model,
        lm,
        [ids] * n,
        range(c.seed, c.seed + n),
        SamplingParams(),
        room,
        stop=stop,
        vocab_size=tokenizer.vocab_size,
        batch_size=BATCH,
    )
    return [tokenizer.decode(row) for row in result.rows(without=stop)]


def parse_answer(c: Config) -> Iterator[str]:
    """What the assistant says in the conversations that the run is taught."""
    for source in c.chat.sources:
        for _, messages in conversations(source, Counter(), c.seed):
            yield from (m["content"] for m in messages if m["role"] == "assistant")


def verbalize(question: str, k: int) -> str:
    return f"{question}\nGive {k} different answers, one a line, each after its probability, as in `0.12: answer`."


def pick_answer(reply: str, rng: np.random.Generator) -> str:
    """One answer of a reply in that form, by the probabilities it states; empty where there is none."""
    found = [
        (float(p), text.strip())
        for p, text in re.findall(r"^\s*(\d*\.?\d+)\s*:\s*(\S.*)$", reply, re.M)
    ]
    p = np.array([p for p, _ in found])
    return found[rng.choice(len(found), p=p / p.sum())][1] if p.sum() > 0 else ""


def format_table(found: Sequence[tuple[str, Answers]]) -> str:
    """A line of figures for each way of asking, and the answers that came oftenest."""
    lines = []
    for how, answers in found:
        figures = ", ".join(f"{name} {x:.4g}" for name, x in answers.figures().items())
        lines.append(f"{how}, {answers.n} replies: {figures}")
        lines += [
            f"  {count} x {text[:100]!r}"
            for text, count in Counter(answers.texts).most_common(3)
            if count > 1
        ]
    return "\n".join(lines)

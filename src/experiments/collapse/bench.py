"""What generations of own samples do to a model, by policy, in three tiers from exact to neural.

`python -m experiments.collapse configs/collapse-bench.toml --data DIR` does the parts in order and
keeps each result as a line of `bench.jsonl` in the run directory; what is there is not done again.
The table goes to `bench.md`, the curves to `synth.html`.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from experiments.collapse import arms, exact, table, world
from experiments.collapse.modes import count_modes, match_known, split_words
from experiments.collapse.trigram import Trigram
from experiments.results import Results
from ramp.config import Config
from ramp.errors import UserError
from ramp.files import write_atomic
from ramp.reporting.html import write_page
from ramp.synth import measure, mix
from ramp.synth.docs import Docs
from ramp.text.corpus import documents

SEEDS, DRAWS = 3, 50


# Exact


def modes(b: Results) -> None:
    """Zipf modes through twenty generations of each policy."""
    truth, n = exact.zipf(2000), 20_000

    def work(policy: str, m: float) -> dict:
        runs = [
            exact.simulate_generations(truth, n, policy, 20, np.random.default_rng(s), m)
            for s in range(5)
        ]
        simpson = np.mean([exact.simpson(p)[20] / exact.simpson(p)[0] for p in runs])
        return {
            "coverage": np.mean([exact.coverage(p) for p in runs], axis=0).round(4).tolist(),
            "simpson": simpson,
        }

    for policy, m in (
        ("replace", 0.0),
        ("accumulate", 0.0),
        ("subsample", 0.0),
        ("anchored", 0.1),
        ("anchored", 0.3),
    ):
        b.once({"part": "exact", "policy": policy, "m": m}, partial(work, policy, m))


def timing(b: Results) -> None:
    """Every figure but gradient Vendi on 10,000 samples of 100 tokens, null of 7 included."""

    def work() -> dict:
        rng, p = np.random.default_rng(0), exact.zipf(8000)
        pool, sample, real = (
            Docs.from_lists(rng.choice(8000, (k, 100), p=p)) for k in (20_000, 10_000, 10_000)
        )
        began = time.process_time()
        null = measure.Null.resample(pool, 10_000, lambda d: measure.measure_sample(real, d))
        null.compare(measure.measure_sample(real, sample))
        return {"cpu_seconds": round(time.process_time() - began, 1)}

    b.once({"part": "measure"}, work)


# N-grams


def questions(path: Path) -> list[str]:
    try:
        return [
            json.loads(line)["question"]
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    except FileNotFoundError:
        raise UserError(
            f"{path} is not there; --data names a directory with math/gsm8k_train.jsonl"
        ) from None


def tail_bits(bits_n: np.ndarray, count_n: np.ndarray) -> float:
    """Mean bits of the tokens that the real text has rarely; nan if there are none.

    bits_n, count_n: of each token, its bits and how often the real text has it.
    """
    tail = bits_n[count_n <= measure.MAX_RARE_COUNT]
    return float(tail.mean()) if len(tail) else float("nan")


def trigram_curve(
    texts: list[str],
    policy: str,
    generations: int,
    seed: int,
    m: float = 0.0,
    probe: Callable | None = None,
) -> dict:
    """Bits per byte of a held-out tenth, and bits of its rare tokens, by generation.

    Every generation is fitted to equally many documents.
    """
    docs = split_words(texts)
    vocab = max(map(max, docs)) + 2  # the last id ends a document
    sizes = [len(text.encode()) for text in texts]
    order = np.random.default_rng(0).permutation(len(docs))
    cut = len(docs) // 10
    held, real = (Docs.from_lists([docs[i] for i in part]) for part in (order[:cut], order[cut:]))
    n_bytes, count_v = sum(sizes[i] for i in order[:cut]), np.bincount(real.flat, minlength=vocab)
    count_n = np.insert(
        count_v[held.flat], np.cumsum(held.lengths), len(real)
    )  # every document ends
    rng = np.random.default_rng([seed, 1])
    pools, model = [real], Trigram.fit(real, vocab)
    sampled = lambda: model.sample(len(real), int(real.lengths.max()), rng)  # noqa: E731
    per_byte = lambda model: float(model.bits(held).sum() / n_bytes)  # noqa: E731
    out: dict = {"m": m, "bpb": [], "rare": [], "probe": []}
    for g in range(generations + 1):
        if g:
            pools.append(sampled())
            got = mix.compose(policy, [len(p) for p in pools], len(real), rng, m)
            taken = []
            for k in np.unique(got.generation):
                taken += pools[k].take(got.index[got.generation == k]).to_list()
            model = Trigram.fit(Docs.from_lists(taken), vocab)
        out["bpb"].append(per_byte(model))
        out["rare"].append(tail_bits(model.bits(held), count_n))
        if probe:
            out["probe"].append(probe(model))
    return out


def trigrams(b: Results, data: Path) -> None:
    texts = questions(data / "math/gsm8k_train.jsonl")
    runs = [(policy, 0.0, 5) for policy in ("replace", "accumulate", "subsample")]
    runs += [("anchored", m, 10) for m in (0.3, 0.2, 0.5)]
    for seed in range(SEEDS):
        for policy, m, generations in runs:
            key = {"part": "trigram", "policy": policy, "m": m, "seed": seed}
            b.once(key, partial(trigram_curve, texts, policy, generations, seed, m))


def jokes(b: Results) -> None:
    """200 jokes of a trigram model of jokes: how many different real ones does it still know?"""
    found = documents("pip:jokes-and-quotes==1.0.3/jokes_and_quotes/jokes.json#body", Counter())
    texts = sorted({d.text.strip() for d in found})
    docs = split_words(texts)

    def recognised(model: Trigram) -> dict[str, float]:
        """Means over `DRAWS` draws of 200, since one holds a dozen jokes and luck."""
        seen = match_known(model.sample(200 * DRAWS, 80, np.random.default_rng(7)).to_list(), docs)
        found = [count_modes(part) for part in np.array(seen).reshape(DRAWS, 200)]
        return {
            k: float(np.mean([vars(f)[k] for f in found]))
            for k in ("distinct", "chao1", "recognised")
        }

    for policy in ("replace", "accumulate", "anchored"):
        for seed in range(SEEDS):
            key = {"part": "jokes", "policy": policy, "seed": seed}
            b.once(key, partial(trigram_curve, texts, policy, 5, seed, arms.M, recognised))


# The whole


def run(directory: Path, c: Config, data: Path | None = None, part: str | None = None) -> str:
    """Do what is not done yet; the table as Markdown, also written to `bench.md`."""
    if c.model.vocab_size <= world.END or c.model.context_len <= world.LONGEST:
        raise UserError(
            "the benchmark's programs do not fit into this model; use configs/collapse-bench.toml"
        )
    directory.mkdir(parents=True, exist_ok=True)
    b = Results(directory, c.model, c.synthesize)
    lab = arms.Lab(b)
    work: dict[str, Callable[[], None]] = {
        "exact": lambda: modes(b),
        "measure": lambda: timing(b),
        "trigram": lambda: (
            trigrams(b, data) if data else print("trigram: left out, --data names no directory")
        ),
        "jokes": lambda: jokes(b),
        "gate": lambda: arms.gate(lab),
        "law": lambda: arms.law(lab),
        "world": lambda: arms.claim(lab),
        "guard": lambda: arms.corruptions(lab),
    }
    for name in [part] if part else work:
        work[name]()
    found = table.report(b.results())
    write_atomic(directory / "bench.md", found)
    write_page(
        directory / "synth.html",
        "Generations of own samples, by policy",
        table.sections(b.results()),
    )
    return found

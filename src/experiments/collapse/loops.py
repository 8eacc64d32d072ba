"""Whole loops in NumPy, with the true damage known: how often does the guard act, and when?

A document is a bag of words of one topic and of a common vocabulary; the model of a generation is a
change to that world (words that died, ten texts that it repeats), and to the bits of held-out
documents (a shift, noise, a few documents that got dear). Ten generations take less than a second,
so every rate is a simulation. `python -m experiments.collapse.loops` prints the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy import ndarray

from experiments.collapse.exact import zipf
from experiments.results import markdown
from ramp.config import Thresholds
from ramp.synth import guard, measure, verify
from ramp.synth.docs import Docs, mix_bits
from ramp.synth.guard import CollapseGuard, RepeatCounts, SampleEvidence, TrainingEvidence
from ramp.synth.measure import Comparison, Null

GUARDED, MEASURED, AUDITED = 512, 256, 400  # documents, as in the stage
RESAMPLES = 20
LENGTH = 40  # words of a document
COMMON, TOPICS, OWN = 300, 8, 100  # common words; topics; words that a topic has for itself
MASSES = np.array([0.22, 0.16, 0.14, 0.12, 0.12, 0.1, 0.08, 0.06])  # of the topics
BLIND = 3  # the topic of 12%


@dataclass(frozen=True)
class Scenario:
    """What is wrong with a loop; nothing by default."""

    shift: float = 0.0  # rise of every document's bits in a generation, relative to the first model
    noise: float = 0.01  # of a document's bits, relative: standard deviation
    freedom: int = 0  # degrees of freedom of Student's t noise; 0: normal
    clusters: int = 1  # documents that are alike, and move together
    dear: float = 0.0  # fraction of documents that become ten times as dear in a generation
    behind: float = 0.0  # rise of bits against the control in a generation
    leak: float = 1.0  # of the words that are alive, the fraction that lives on in a generation
    copies: float = 0.0  # fraction of the samples that are ten texts
    accepted: float = 0.97  # fraction of the right samples that the verifier accepts
    topics: tuple[int, ...] = tuple(range(TOPICS))  # that the verifier accepts


HEALTHY = {
    "healthy, noise .3%": Scenario(noise=0.003),
    "healthy, noise 1%": Scenario(),
    "healthy, noise 3%": Scenario(noise=0.03),
    "healthy, noise t(3) of 3%": Scenario(noise=0.03, freedom=3),
    "healthy, clusters of 4 documents": Scenario(noise=0.03, clusters=4),
    "healthy, learns 1% a generation": Scenario(shift=-0.01),
    "healthy, a verifier that accepts .1": Scenario(accepted=0.1),
}
FAULTY = {
    "+.4% a generation, noise 1%": Scenario(shift=0.004),
    "+.4% a generation, noise 2%": Scenario(shift=0.004, noise=0.02),
    "behind the control by 1% a generation": Scenario(behind=0.01),
    "5% of documents x10, the rest -.3%": Scenario(shift=-0.003, dear=0.05),
    "20% of samples are ten texts": Scenario(copies=0.2),
    "topic-only verifier": Scenario(topics=(0,)),
    "verifier blind to 12%": Scenario(topics=tuple(set(range(TOPICS)) - {BLIND})),
    "leak of .98 a generation": Scenario(leak=0.98),
}


@dataclass(frozen=True)
class Outcome:
    """What the guard did to a loop."""

    acted: int | None  # the first generation with a decision other than go or warn
    action: str
    rise: float  # of the bits of the model handed back, relative to the first model; without noise


def run_loop(s: Scenario, seed: int, generations: int = 10) -> Outcome:
    """Carry a guard through a loop."""
    rng = np.random.default_rng(seed)
    limits = Thresholds()
    held = draw_documents(rng, GUARDED)
    pool = draw_documents(rng, 2 * MEASURED)
    resample = cache(lambda n: Null.resample(pool, n, figures_of(held), RESAMPLES, seed))
    faults = audit(s, rng)
    first_bits = np.exp(rng.normal(1, 0.4, GUARDED // s.clusters)).repeat(s.clusters)
    first_bits = first_bits[rng.permutation(GUARDED)]
    state = CollapseGuard(0.4)
    bits, rises = {0: first_bits}, {0: 0.0}
    acted, action, stopped = None, "go", False
    for g in range(1, generations + 1):
        evidence = judge_draw(s, g, held, pool, resample, faults, rng)
        state, before = guard.judge_samples(state, limits, evidence)
        # A repaired generation is real text alone, and takes no damage from its samples.
        harm = s if state.weight else replace(s, shift=0.0, dear=0.0)
        parent = state.good_generation
        rises[g] = rises[parent] + harm.shift
        bits[g] = teach(harm, first_bits, rises[g], rng)
        worse = guard.compare_bits("first", bits[g], first_bits, limits.max_loss_rise)
        if parent:
            worse |= guard.compare_bits("good", bits[g], bits[parent], limits.max_loss_rise)
        control = teach(Scenario(noise=s.noise), first_bits, rises[g] - s.behind * g, rng)
        behind = guard.compare_bits("control", bits[g], control, limits.max_control_rise)
        state, after = guard.judge_model(state, limits, TrainingEvidence(worse, behind), g)
        for decision in (before, after):
            if acted is None and decision.action not in ("go", "warn"):
                acted, action = g, decision.action
        if after.action == "stop":
            stopped = True
            break
    means = {g: float(b.mean()) for g, b in bits.items()}
    chosen = guard.choose_generation(stopped, state.good_generation, means, limits.max_loss_rise)
    return Outcome(acted, action, rises[chosen])


def judge_draw(s, g, held, pool, resample, faults, rng) -> SampleEvidence:
    """The guard's evidence on a generation's samples."""
    topic = rng.choice(TOPICS, 2 * MEASURED, p=MASSES)
    samples = draw_words(topic, rng)
    if s.copies:
        is_copy = rng.random(len(topic)) < s.copies
        samples[is_copy] = samples[rng.integers(0, 10, is_copy.sum())]
    if s.leak < 1:
        samples = let_words_die(samples, s.leak**g)
    repeats = count_repeats(samples)
    passed = np.isin(topic, s.topics) & (rng.random(len(topic)) < s.accepted)
    _, first = np.unique(samples, axis=0, return_index=True)
    passed &= np.isin(np.arange(len(samples)), first)  # repeats are dropped before they teach
    kept = Docs.from_lists(list(samples[passed][:MEASURED]))
    figures: dict[str, Comparison] = {}
    if len(kept):
        figures = resample(len(kept)).compare(figures_of(held)(kept))
    counts = RepeatCounts(repeats, len(samples), 0, 2 * MEASURED)
    words = guard.find_lost_words(held, pool, kept)
    return SampleEvidence(figures, counts, words, faults, accepted=len(kept))


def audit(s: Scenario, rng: np.random.Generator) -> tuple[str, ...]:
    """What is wrong with the verifier, from real documents: all of them are right."""
    topic = rng.choice(TOPICS, AUDITED, p=MASSES)
    docs = Docs.from_lists(list(draw_words(topic, rng)))
    passed = np.isin(topic, s.topics)
    return verify.find_faults("verifier", docs, passed, str, Thresholds())


def figures_of(held: Docs):
    """What the guard judges of samples; without gradients."""

    def measure_docs(docs):
        _, drift = measure.divergences(held, docs)
        return {"coverage_2": measure.coverage(held, docs, 2), "kl_drift": drift}

    return measure_docs


# The world


def draw_words(topic: ndarray, rng: np.random.Generator) -> ndarray:
    """Documents [N, LENGTH] of these topics: every other word is of the topic."""
    common = rng.choice(COMMON, (len(topic), LENGTH // 2), p=zipf(COMMON))
    own = rng.choice(OWN, (len(topic), LENGTH // 2), p=zipf(OWN))
    own += COMMON + OWN * topic[:, None]
    return np.stack([common, own], axis=2).reshape(len(topic), LENGTH)


def draw_documents(rng: np.random.Generator, n: int) -> Docs:
    """Real documents."""
    return Docs.from_lists(list(draw_words(rng.choice(TOPICS, n, p=MASSES), rng)))


def let_words_die(samples: ndarray, alive: float) -> ndarray:
    """The samples of a model that has lost a fraction of its words.

    It writes another word in the place of a dead one, as often as it uses that.
    """
    # The same words are dead in every generation, by their hash.
    luck = mix_bits(samples.astype(np.uint64) + np.uint64(1)) / 2.0**64
    living = samples[luck < alive]
    spares = living[mix_bits(np.arange(samples.size, dtype=np.uint64)) % living.size]
    return np.where(luck < alive, samples, spares.reshape(samples.shape))


def count_repeats(samples: ndarray) -> int:
    """Samples that repeat an earlier one."""
    return len(samples) - len(np.unique(samples, axis=0))


def teach(s: Scenario, first_bits: ndarray, rise: float, rng: np.random.Generator) -> ndarray:
    """Bits per document of a model with this rise."""
    n = len(first_bits)
    noise = rng.standard_t(s.freedom, n) if s.freedom else rng.normal(size=n)
    if s.clusters > 1:  # equal bits are one cluster
        _, cluster = np.unique(first_bits, return_inverse=True)
        noise = noise[cluster]
    bits = first_bits * np.maximum(1 + rise + s.noise * noise, 0.01)
    return np.where(rng.random(n) < s.dear, 10, 1) * bits


# The table


def summarize(s: Scenario, seeds: Sequence[int]) -> tuple[str, ...]:
    """Fraction of loops that were acted on, by which generation, and what was handed back."""
    outcomes = [run_loop(s, seed) for seed in seeds]
    acted = np.array([o.acted or np.inf for o in outcomes])
    by = [f"{np.mean(acted <= g):.3f}" for g in (1, 2, 3, 10)]
    actions = sorted({o.action for o in outcomes if o.acted})
    worst = max(o.rise for o in outcomes)
    return (*by, ", ".join(actions) or "-", f"{worst:+.1%}")


def main(healthy: int = 120, faulty: int = 60, first_seed: int = 10_000) -> None:
    """Print the table; so many loops of each kind. Settings were chosen on seeds 0 to 999."""
    rows = []
    for name, s in (HEALTHY | FAULTY).items():
        num_loops = healthy if name in HEALTHY else faulty
        seeds = range(first_seed, first_seed + num_loops)
        rows.append((name, str(num_loops), *summarize(s, seeds)))
    head = ("loop", "loops", "acted on in 1", "by 2", "by 3", "by 10", "how", "worst handed back")
    print("\n".join(markdown(head, rows)))


if __name__ == "__main__":
    main()

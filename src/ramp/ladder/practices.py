"""What the rungs beyond pretraining are judged by: one task each, taught in two or more ways.

A `Practice` is to these rungs what a `Probe` is to the others. The rung says by which of its ways
the model is taught, and so does the rung below.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from ramp.config import Model, Reinforce, Train
from ramp.credit import advantages, baselines, loss
from ramp.ladder import generations, learn, reliability, sums
from ramp.ladder import post_training as post
from ramp.ladder.generations import run_generations
from ramp.ladder.learn import EXAMPLES, ProbeResult
from ramp.ladder.post_training import Taught
from ramp.ladder.probes import PROBES, Probe
from ramp.ladder.reliability import judge_demo, judge_proof, judge_systems
from ramp.nines import intervals, sequential
from ramp.synth import docs, guard, measure

Way = Callable[[int, int], ProbeResult]  # of n and the seed

NUM_SOLVED = 512  # problems that somebody solved
NUM_FEW = 32  # the same, where there are few
NUM_OWN = 4096  # problems that a model solves itself
REWARDS = {
    "verified": post.reward_whole,
    "share": post.reward_share,
    "nothing": post.reward_nothing,
}


@dataclass(frozen=True)
class Practice:
    """A task that one way of teaching can do and another cannot."""

    name: str
    asks: str  # half a sentence: "The probe asks ..."
    size: int  # n by default
    below: Way  # as the rung below would have it
    this: Way  # as the rung has it
    sides: tuple[str, str]  # what these two are called
    more: Mapping[str, Way] = field(default_factory=dict)  # shown beside them, not judged
    labels: tuple[str, str] = (
        "step of training",
        "share of problems solved",
    )  # of the axes of its curve
    guess: float = 0.0  # what guessing comes to
    questions: int = 1  # at the end of a row

    def chance(self, n: int) -> float:
        """What guessing comes to."""
        return self.guess

    def names(self, n: int) -> list[str]:
        """Labels of the tokens."""
        return sums.LABELS

    def name_answer(self, n: int, answer: int) -> str:
        """The steps that one number stands for; see `sums.number`."""
        return " ".join(sums.LABELS[answer // sums.VOCAB**i % sums.VOCAB] for i in range(n - 1))


def report(taught: Taught, seed: int, n: int) -> ProbeResult:
    """What the models came to, with some problems and what the first model says to them."""
    held_out = post.draw_held_out(seed, n)
    digits = held_out[0, :EXAMPLES]
    said = post.sample(taught.lm, held_out, 0, 0, temperature=0.0)[0, :EXAMPLES]
    signs = np.full((EXAMPLES, 1), sums.ASK)
    return ProbeResult(
        n=n,
        steps=taught.steps,
        accuracy=taught.accuracy,
        rows=np.concatenate([digits, signs], axis=1).tolist(),
        asked=sums.number(sums.solve(digits)).tolist(),
        said=sums.number(said).tolist(),
    )


# Who the models learn from, and what the rungs compare


def draw_solved(n: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of problems with their right steps."""
    digits = sums.draw_digits(rng, n, count)
    return sums.write_rows(digits, sums.ASK, sums.solve(digits))


def draw_ungraded(n: int, count: int, seed: int, stream: int) -> np.ndarray:
    """Problems for each model, [S, count, n], none of which it is graded on."""
    graded = iter(post.draw_held_out(seed, n))
    draw = partial(sums.draw_apart, n=n, count=count)
    return post.draw_for_seeds(seed, stream, lambda rng: draw(rng, others=next(graded)))


def draw_slips(n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of problems solved by somebody who slips."""
    digits = sums.draw_digits(rng, n, post.ANSWER_ROWS)
    return sums.write_rows(digits, sums.ASK, sums.slip(rng, digits, post.SLIPS))


def ask_reader(n: int, seed: int) -> ProbeResult:
    """Ask models that have only read."""
    lm = post.read_text(seed, n)
    graded = post.grade(lm, post.draw_held_out(seed, n))
    # A level line: they are taught nothing.
    steps = [0, post.grow(post.ANSWER_STEPS, n)]
    return report(Taught(lm, steps, [graded, graded]), seed, n)


def fine_tune(is_new: bool, n: int, seed: int) -> ProbeResult:
    """Fine-tune readers on solved problems, or models that know nothing (`is_new`)."""
    lm = post.init(seed) if is_new else post.read_text(seed, n)
    solved = post.draw_for_seeds(seed, post.SOLVED_STREAM, partial(draw_solved, n, NUM_SOLVED))
    steps = post.grow(post.ANSWER_STEPS, n)
    course = post.repeat(solved, seed, steps, post.ANSWER_RATE)
    return report(post.teach(lm, course, post.draw_held_out(seed, n)), seed, n)


@cache
def imitate_slips(n: int, seed: int) -> Taught:
    """Readers that were fine-tuned on what somebody who slips writes."""
    course = post.imitate(partial(draw_slips, n), seed, post.grow(post.SLIP_STEPS, n))
    return post.teach(post.read_text(seed, n), course, post.draw_held_out(seed, n))


@cache
def reinforce(method: str, reward: str, n: int, seed: int) -> Taught:
    """The same, reinforced by a method and a reward of REWARDS."""
    loss = post.sharpen_loss if reward == "nothing" else post.reward_loss
    course = post.reinforce(method, REWARDS[reward], seed, n, loss)
    return post.teach(imitate_slips(n, seed).lm, course, post.draw_held_out(seed, n))


def learn_slips(n: int, seed: int) -> ProbeResult:
    """See `imitate_slips`."""
    return report(imitate_slips(n, seed), seed, n)


def learn_from_reward(method: str, reward: str, n: int, seed: int) -> ProbeResult:
    """See `reinforce`."""
    return report(reinforce(method, reward, n, seed), seed, n)


def begin_anew(has_own: bool, n: int, seed: int) -> ProbeResult:
    """Train new models on a few solved problems.

    has_own: also on what models of the rung below wrote, as far as the checker accepts it. Whoever
    has seen a problem could know its answer by heart, so none is among those that are graded.
    """
    digits = draw_ungraded(n, NUM_FEW, seed, post.SOLVED_STREAM)
    rows = sums.write_rows(digits, sums.ASK, sums.solve(digits))
    notes = ""
    if has_own:
        own = write_accepted(n, seed)
        rows = np.concatenate([rows, own], axis=1)
        notes = (
            f"Of {NUM_OWN:,} own solutions each model learned {own.shape[1]:,}, as many as the "
            "checker passed where it passed the fewest."
        )
    steps = post.grow(post.READ_STEPS, n)
    course = replace(post.repeat(rows, seed, steps), every=max(1, steps // 8))
    taught = post.teach(post.init(seed), course, post.draw_held_out(seed, n))
    return replace(report(taught, seed, n), notes=notes)


def write_accepted(n: int, seed: int) -> np.ndarray:
    """Solutions by the models of the rung below that are right in every step, [S, M, 2n].

    M is what the model with the fewest has. Problems are drawn, so none is there twice by copying,
    and none is one of those that are graded.
    """
    digits = draw_ungraded(n, NUM_OWN, seed, post.OWN_STREAM)
    writers = reinforce("step_local", "verified", n, seed).lm
    steps = post.sample(writers, digits, seed, post.OWN_STREAM, temperature=1.0)
    accepted = np.all(sums.judge_steps(digits, steps), axis=-1)
    rows = sums.write_rows(digits, sums.ASK, steps)
    count = int(accepted.sum(axis=1).min())
    return np.stack([r[a][:count] for r, a in zip(rows, accepted, strict=True)])


PRACTICES = {
    practice.name: practice
    for practice in (
        Practice(
            "questions",
            "for seven sums in a row, which its text has solved where no question stood",
            size=8,
            below=ask_reader,
            this=partial(fine_tune, False),
            sides=("the model that has only read", "the fine-tuned one"),
            more={"never read": partial(fine_tune, True)},
        ),
        Practice(
            "a teacher who slips",
            "for two sums in a row, as in rung 18, taught by one who slips in 4 of 5 steps",
            size=3,
            below=learn_slips,
            this=partial(learn_from_reward, "rloo", "verified"),
            sides=("imitation", "reward"),
            more={"no reward, surer": partial(learn_from_reward, "rloo", "nothing")},
        ),
        Practice(
            "long solutions",
            "for seven sums in a row, as in rung 18, taught by the teacher of rung 19",
            size=8,
            below=partial(learn_from_reward, "rloo", "verified"),
            this=partial(learn_from_reward, "step_local", "verified"),
            sides=("one reward a solution", "credit for each step"),
            more={"share of right steps": partial(learn_from_reward, "rloo", "share")},
        ),
        Practice(
            "few solved problems",
            "for seven sums in a row, as in rung 18, of a new model that nobody has taught",
            size=8,
            below=partial(begin_anew, False),
            this=partial(begin_anew, True),
            sides=("the few solved problems", "own ones too"),
        ),
        Practice(
            "generations",
            "how many kinds of rows a model still writes that learned from models before it",
            size=64,
            below=partial(run_generations, 0.0, False),
            this=partial(run_generations, 0.0, True),
            sides=("own rows alone", "guarded"),
            more={"half real rows, no guard": partial(run_generations, 0.5, False)},
            labels=("generation", "share of kinds kept"),
        ),
        Practice(
            "promises",
            "which of two systems succeeds 99 times in 100",
            size=2000,
            below=partial(judge_systems, judge_demo),
            this=partial(judge_systems, judge_proof),
            sides=("a demonstration", "proof"),
            labels=("trials seen of each", "share judged rightly"),
            guess=0.5,
        ),
    )
}


def find_probe(name: str) -> Probe | Practice:
    """What a rung is judged by."""
    return PRACTICES.get(name) or PROBES[name]


MODULES = (post, sums, generations, reliability, sys.modules[__name__])


def list_constants() -> list[tuple[str, str, Any]]:
    """Every number and setting that the results of practices depend on: module, name, value."""
    return [
        (module.__name__, name, asdict(value) if is_dataclass(value) else value)
        for module in MODULES
        for name, value in sorted(vars(module).items())
        if name.isupper() and isinstance(value, int | float | Model | Reinforce | Train)
    ]


def list_sources() -> list[str]:
    """The code of practices, and what it judges by: a changed formula gives other results.

    Not that of the model and its training, a change of which may leave them as they are.
    """
    judges = advantages, baselines, loss, guard, measure, docs, sequential, intervals
    return [inspect.getsource(module) for module in (*MODULES, learn, *judges)]

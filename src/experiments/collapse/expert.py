"""`python -m experiments.collapse.expert CONFIG`: a model that learns from its own right solutions.

A chat model is taught to solve some problems of a task, by solutions of many kinds. Then it is
asked others, a checker says which of its solutions are right, and it learns from those: expert
iteration (Anthony et al. 2017; rejection sampling, Yuan et al. 2023, arXiv:2308.01825; ReST-EM,
Singh et al. 2023, arXiv:2312.06585). What is left of its other solutions, and of all else it knew?

All arms of a seed start from one model and train for as many steps on as many rows. All that learn
from samples draw as many; the guarded one draws more, on problems to choose with.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

import jax
import numpy as np

from experiments.collapse.solvers import SOLVERS
from experiments.results import Results
from ramp import cli, config, host
from ramp.config import Config, Model, Train
from ramp.credit import learn, rollouts
from ramp.errors import UserError
from ramp.evals.bpb import make_bits_per_byte
from ramp.model.loss import next_token_loss
from ramp.nines.intervals import pass_at_k
from ramp.rundir import RunDir, open_run
from ramp.stages.diversity import list_questions
from ramp.stages.finetune import pack_rows
from ramp.synth import ask
from ramp.synth.answers import rarefy
from ramp.synth.speakers import LocalModel
from ramp.tasks import Problem, Task, open_task
from ramp.tasks.cutting import cut_solution
from ramp.tasks.protocol import render
from ramp.tasks.split import Part, held_out_problems, make_problems, normalize
from ramp.text import chat
from ramp.text.rows import ArrayRows, TokenRows
from ramp.text.tokenizer import Tokenizer
from ramp.train import optim, restore
from ramp.train.state import init_state
from ramp.train.step import make_step
from ramp.train.trainer import run_steps

NUM_TAUGHT = 2500  # problems with solutions that others wrote
NUM_TESTS = 32
MAX_LOST = 0.05  # of the problems and of the routes, by the guarded arm
MAX_ROWS = 512  # sampled at once
NUM_TEXT_ROWS = 64


@dataclass(frozen=True)
class Solution:
    """A right solution."""

    problem: Problem
    words: tuple[str, ...]  # the steps and the answer
    logp: float = field(default=0.0, compare=False)  # nats, under the model that wrote it


@dataclass(frozen=True)
class Figures:
    """A model, by what it does at a temperature."""

    tries: int  # solutions of each problem
    right_p: list[int]  # [problems] of them verified
    routes_p: list[float | None]  # [problems] different ones of tries / 4 right ones; None: few
    bits: float  # per byte of held-out text
    answers: float  # different answers of 10 to an open question

    def pass_at(self, k: int) -> float:
        """The chance that one of k solutions is verified."""
        return pass_at_k(k, np.array(self.right_p), np.full(len(self.right_p), self.tries))

    def compare_routes(self, first: "Figures") -> float:
        """Routes over those of another model, on the problems of which both have enough; or NaN."""
        pairs = [
            (a, b)
            for a, b in zip(self.routes_p, first.routes_p, strict=True)
            if a is not None and b is not None
        ]
        if not pairs:
            return float("nan")
        now, before = np.array(pairs).mean(axis=0)
        return float(now / before)


@dataclass(frozen=True)
class Pool:
    """Right solutions that may be trained on."""

    own: list[list[Solution]]  # of each generation
    program: list[Solution]  # to the same problems, by a program that needs no model


Choice = tuple[list[Solution], np.ndarray]  # solutions, and how often each is drawn


@dataclass(frozen=True)
class Arm:
    """A way to learn from own solutions."""

    choose: Callable[[Pool], Choice]
    original: float = 0.0  # share of the rows that are of what the model was taught at first
    from_start: bool = False  # trains the first model anew in every generation
    temperature: float = 1.0  # at which it samples what it learns from
    guarded: bool = False  # hands back the model before where text or other solutions were lost


def choose_evenly(solutions: Sequence[Solution]) -> Choice:
    """Each as often as the others."""
    return list(solutions), np.ones(len(solutions))


def choose_distinct(solutions: Sequence[Solution]) -> Choice:
    """Each once, however often it was sampled."""
    return choose_evenly(list(dict.fromkeys(solutions)))


def cap_solutions(solutions: Sequence[Solution], most: int = 4) -> Choice:
    """At most so many of a problem, so that easy ones do not crowd out the others."""
    kept, count = [], dict.fromkeys((s.problem for s in solutions), 0)
    for solution in solutions:
        count[solution.problem] += 1
        if count[solution.problem] <= most:
            kept.append(solution)
    return choose_evenly(kept)


def leave_likeliest(solutions: Sequence[Solution], share: float = 0.25) -> Choice:
    """Different ones without the likeliest share of each problem's.

    What is likely already is what a model that learns from its own samples narrows down to; to
    reward the unlikely ones instead is of He et al. 2025 (arXiv:2506.02355).
    """
    found: dict[Problem, list[Solution]] = {}
    for solution in dict.fromkeys(solutions):
        found.setdefault(solution.problem, []).append(solution)
    kept = []
    for same in found.values():
        count = max(1, round((1 - share) * len(same)))
        kept += sorted(same, key=lambda solution: solution.logp)[:count]
    return choose_evenly(kept)


def join(generations: Sequence[Sequence[Solution]]) -> list[Solution]:
    """The solutions of all generations."""
    return [solution for solutions in generations for solution in solutions]


ARMS = {
    "naive": Arm(lambda pool: choose_evenly(pool.own[-1])),
    "naive, samples at .7": Arm(lambda pool: choose_evenly(pool.own[-1]), temperature=0.7),
    "ReST-EM": Arm(lambda pool: cap_solutions(pool.own[-1]), from_start=True),
    "RFT": Arm(lambda pool: choose_distinct(join(pool.own)), original=0.5, from_start=True),
    "accumulate": Arm(lambda pool: choose_evenly(join(pool.own)), original=0.5),
    "guarded": Arm(lambda pool: leave_likeliest(pool.own[-1]), guarded=True),
    "no samples": Arm(lambda pool: ([], np.ones(0)), original=1.0),
    "a program's solutions": Arm(lambda pool: choose_evenly(pool.program), original=0.5),
}


@dataclass(frozen=True)
class World:
    """The model of one seed, with all that its arms share."""

    rundir: RunDir
    c: Config
    seed: int
    tries: int  # at each test problem

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's."""
        return Tokenizer.load(self.rundir.tokenizer)

    @cached_property
    def task(self) -> Task:
        """Whose checker says what is right."""
        return open_task(self.c.reinforce)

    @cached_property
    def problems(self) -> list[Problem]:
        """Different ones: NUM_TAUGHT that come with solutions, then those that are asked."""
        t = self.c.reinforce
        wanted = NUM_TAUGHT + t.num_prompts * self.c.synthesize.generations
        found = {}
        for problem in make_problems(self.task, t.level, 0, 4 * wanted):
            found.setdefault(normalize(problem.question), problem)
        if len(found) < wanted:
            raise UserError(
                f"{wanted} problems are wanted, there are {len(found)}: raise the level"
            )
        return list(found.values())[:wanted]

    @cached_property
    def taught(self) -> list[Solution]:
        """What the model is taught at first."""
        return self.write_solutions(self.problems[:NUM_TAUGHT], number=0)

    def write_solutions(self, problems: Sequence[Problem], number: int) -> list[Solution]:
        """A program's solutions: one of each problem, at random among many kinds."""
        rng = np.random.default_rng([self.seed, number])
        solve = SOLVERS[self.task.name]
        return [Solution(problem, tuple(solve(problem, rng))) for problem in problems]

    def choose_asked(self, generation: int) -> list[Problem]:
        """The problems of a generation, from 1 on."""
        n = self.c.reinforce.num_prompts
        first = NUM_TAUGHT + n * (generation - 1)
        return self.problems[first : first + n]

    @cached_property
    def talks(self) -> ArrayRows:
        """Rows of the conversations that the run was fine-tuned on."""
        return pack_rows(self.c, self.tokenizer)[0]["train"]

    def pack(self, choice: Choice, num_rows: int, rng: np.random.Generator) -> ArrayRows:
        """So many rows of solutions, drawn with replacement."""
        solutions, weights_s = choice
        length = self.c.synthesize.train.seq_len
        rendered = []
        total = 0
        # A row holds at least half of what it could.
        while total < num_rows * length:
            solution = solutions[rng.choice(len(solutions), p=weights_s / weights_s.sum())]
            *steps, answer = solution.words
            rendered.append(render(self.tokenizer, solution.problem, steps, answer))
            total += len(rendered[-1][0])
        packed = chat.pack(rendered, length, self.tokenizer.pad)
        return ArrayRows(**packed.take(rng.permutation(len(packed))[:num_rows]))

    def mix(self, choice: Choice, original: float, generation: int) -> Callable[[int], dict]:
        """Batches of a generation; the original is half conversations, half taught solutions."""
        t = self.c.synthesize.train
        rng = np.random.default_rng([self.seed, generation])
        num_rows = t.steps * t.batch_size
        num_original = round(original * num_rows)
        num_talks = num_original // 2
        talks = self.talks.take(rng.choice(len(self.talks), num_talks))
        parts = [ArrayRows(**talks)] if num_talks else []
        if num_original:
            taught = choose_evenly(self.taught)
            parts.append(self.pack(taught, num_original - num_talks, rng))
        if num_rows > num_original:
            parts.append(self.pack(choice, num_rows - num_original, rng))
        names = vars(parts[0])
        joined = {name: np.concatenate([vars(part)[name] for part in parts]) for name in names}
        order = rng.permutation(len(joined["tokens"]))

        def batch(step: int) -> dict[str, np.ndarray]:
            # Packing may give a row less than was asked for.
            places = np.arange(step * t.batch_size, (step + 1) * t.batch_size) % len(order)
            return {name: array[order[places]] for name, array in joined.items()}

        return batch

    def train(self, params: dict, t: Train, batches: Callable[[int], dict]) -> dict:
        """The parameters after `t.steps` steps; those given stay as they are."""
        first, update = make_training(self.c.model, t)
        rows = (learn.shard_batch(batches(step)) for step in range(t.steps))
        state, _ = run_steps(update, first(params), rows)
        return state.params

    def teach(self) -> dict:
        """The first model: the run's, after `reinforce.sft_steps` on talks and taught solutions."""
        params = restore.load_start(self.rundir, "finetune", self.c, self.tokenizer)
        t = replace(self.c.synthesize.train, steps=self.c.reinforce.sft_steps)
        scale = self.c.reinforce.sft_lr_scale
        t = replace(t, lr_scale=t.lr_scale * scale)
        c = replace(self.c, synthesize=replace(self.c.synthesize, train=t))
        world = replace(self, c=c)
        return world.train(params, t, world.mix(([], np.ones(0)), 1.0, generation=0))

    def sample(
        self, params: dict, problems: Sequence[Problem], tries: int, seed: int, temperature: float
    ) -> list[list[Solution]]:
        """The verified solutions of each problem."""
        t = self.c.reinforce
        size = max(1, MAX_ROWS // tries)
        right: list[list[Solution]] = []
        for number, begin in enumerate(range(0, len(problems), size)):
            part = list(problems[begin : begin + size])
            r = rollouts.sample_rollouts(
                self.c.model,
                params["lm"],
                self.tokenizer,
                self.task,
                part,
                tries,
                t.max_new_tokens,
                1000 * (self.seed * 1000 + seed) + number,
                temperature,
            )
            for p, problem in enumerate(part):
                rows = range(p * tries, (p + 1) * tries)
                right.append([self.read(r, problem, row) for row in rows if r.verified_b[row]])
        return right

    def read(self, r: rollouts.Rollouts, problem: Problem, row: int) -> Solution:
        """A rollout's words, without the white space around them."""
        parsed = cut_solution(self.tokenizer, self.task, r.ids(row))
        words = (*(s.strip() for s in parsed.steps), parsed.answer or "")
        return Solution(problem, words, float(r.logps_bn[row].sum()))

    @cached_property
    def measure_bits(self) -> Callable[[dict], float]:
        """Bits per byte of held-out text."""
        rows = TokenRows(
            self.rundir.tokens("val"), self.c.pretrain.seq_len, self.tokenizer.fingerprint
        )
        measure = make_bits_per_byte(self.c, rows, self.tokenizer, NUM_TEXT_ROWS)
        return lambda params: measure(params, None).val_bpb

    def count_answers(self, params: dict, name: str) -> float:
        """Different answers among 10 to an open question, the mean over questions."""
        d = self.c.diversity
        speaker = LocalModel(name, self.c, params["lm"], self.tokenizer, is_writer=False)
        questions = list_questions(self.c)
        kept = ask.Kept(self.rundir.path / "replies.jsonl", {}, is_writer=False)
        replies = ask.gather(
            speaker, questions, "plain", d.num_replies, d.max_new_tokens, self.seed, kept
        )
        asked = [
            ask.judge(question, "plain", texts, self.seed)
            for question, texts in zip(questions, replies, strict=True)
        ]
        return ask.summarize(asked, ["plain"])[0].distinct_k

    def measure(self, params: dict, part: Part, temperature: float = 1.0) -> Figures:
        """A model on problems that nothing was trained on."""
        problems = held_out_problems(self.task, self.c.reinforce.level, NUM_TESTS, part=part)
        right = self.sample(params, problems, self.tries, seed=999, temperature=temperature)
        return Figures(
            tries=self.tries,
            right_p=[len(solutions) for solutions in right],
            routes_p=[count_routes(solutions, self.tries // 4) for solutions in right],
            bits=self.measure_bits(params),
            answers=self.count_answers(params, "model"),
        )


def count_routes(solutions: Sequence[Solution], of: int) -> float | None:
    """How many different ones so many of them hold on the average; None: there are too few."""
    if len(solutions) < of:
        return None
    words = [solution.words for solution in solutions]
    counts = np.array([words.count(one) for one in dict.fromkeys(words)])
    return rarefy(counts, of)[0]


@lru_cache(maxsize=4)
def make_training(c: Model, t: Train) -> tuple[Callable, Callable]:
    """(first state of a copy of the parameters, update); compiled once for all arms."""
    tx = optim.make_optimizer(t, c.dtype)
    first = jax.jit(lambda params: init_state(jax.tree.map(lambda a: a + 0, params), tx, 0))
    return first, make_step(next_token_loss(c, 0.0), tx, t)


def is_worse(figures: Figures, first: Figures, c: Config) -> bool:
    """Whether a model has lost text, problems or routes: the guard of the guarded arm."""
    dearest = (1 + c.synthesize.guard.max_loss_rise) * first.bits
    lost = figures.pass_at(figures.tries) < first.pass_at(first.tries) - MAX_LOST
    # Where nobody can tell what became of the routes, they are not kept.
    keeps_routes = figures.compare_routes(first) >= 1 - MAX_LOST
    return lost or figures.bits > dearest or not keeps_routes


def run_arm(world: World, arm: Arm, start: dict) -> list[Figures]:
    """The model after each generation."""
    t = world.c.synthesize
    pool = Pool([], [])
    params, figures = start, []
    # On problems to choose with, which no figure of a table is of.
    measure_chosen = partial(world.measure, part="selection")
    first = measure_chosen(start) if arm.guarded else None
    for g in range(1, t.generations + 1):
        asked = world.choose_asked(g)
        size = world.c.reinforce.group_size
        if arm.original < 1:
            own = join(world.sample(params, asked, size, seed=g, temperature=arm.temperature))
            pool = Pool([*pool.own, own], [*pool.program, *world.write_solutions(asked, g)])
        if arm.original < 1 and not pool.own[-1]:
            raise UserError(
                "the first model has no right solution to learn from; teach it for longer with "
                "--reinforce.sft_steps"
            )
        begin = start if arm.from_start else params
        trained = world.train(begin, t.train, world.mix(arm.choose(pool), arm.original, g))
        if first and is_worse(measure_chosen(trained), first, world.c):
            trained = params
        params = trained
        figures.append(world.measure(params, "test"))
    return figures


def run_seed(args: argparse.Namespace, directory: Path, seed: int, flags: list) -> Path:
    """Do what is missing of a seed; the folder of its figures."""
    run = directory / f"seed-{seed}"
    if not (run / "report.json").exists():
        code = cli.main(["run", str(args.config), "--seed", str(seed), "--run", str(run), *flags])
        if code:
            raise SystemExit(code)
    rundir, c = open_run(run)
    c = host.setup_devices(config.resolve(c), stages=())
    world = World(rundir, c, seed, args.tries)
    # By what they depend on, so that figures of other settings are not taken for these.
    # What an arm does stands in this file alone.
    settings = (c.model, c.reinforce, c.synthesize, c.diversity, args.tries)
    settings += (Path(__file__).read_text("utf-8"),)
    results = directory / f"figures-{config.fingerprint(*map(str, settings))[:8]}"
    results.mkdir(exist_ok=True)
    b = Results(results, c.model, c.reinforce)
    # Not kept: it is cheap beside the arms, and the same every time.
    start = world.teach()
    for temperature in (1.0, *args.cooler):
        key = {"part": "first", "seed": seed, "temperature": temperature}
        b.once(key, partial(measure_once, world, start, temperature))
    for name in args.arms:
        key = {"part": "arm", "seed": seed, "arm": name}
        b.once(key, partial(run_once, world, ARMS[name], start))
    return results


def measure_once(world: World, params: dict, temperature: float) -> dict:
    """A record of one model's figures."""
    return {"generations": [asdict(world.measure(params, "test", temperature=temperature))]}


def run_once(world: World, arm: Arm, start: dict) -> dict:
    """A record of an arm's figures."""
    return {"generations": [asdict(figures) for figures in run_arm(world, arm, start)]}


def main() -> None:
    """Run what is missing, then print the table."""
    from experiments.collapse import expert_table

    parser = argparse.ArgumentParser(prog="python -m experiments.collapse.expert")
    parser.add_argument("config", type=Path, help="configs/expert-bench.toml")
    parser.add_argument("--run", type=Path, metavar="DIR", help="default runs/CONFIG")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--tries", type=int, default=64, help="at each test problem")
    parser.add_argument(
        "--cooler",
        type=float,
        nargs="*",
        default=[0.7, 0.4],
        help="temperatures of the first model, for the rival that trains nothing",
    )
    args, flags = parser.parse_known_args()
    if args.tries < 8:
        parser.error("--tries below 8 leave too few right solutions to count routes among")
    directory = args.run or Path("runs") / args.config.stem
    try:
        for seed in args.seeds:
            results = run_seed(args, directory, seed, flags)
    except UserError as error:
        print(f"experiments.collapse.expert: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print("\n".join(expert_table.tabulate(results)))


if __name__ == "__main__":
    main()

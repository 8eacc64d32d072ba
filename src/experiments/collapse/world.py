"""A world of programs: 40 operators on a digit, used by Zipf's law, and an exact interpreter.

    bos 7 a 3 c 9 end          a makes 3 of 7, c makes 9 of that

A prompt names the operators, the model writes the digits. An operator is a fixed random permutation
of the digits, so a model must have seen its facts or guess one in ten, and a guess that the
interpreter accepts is a fact that it had not. The tail is the operators that hold the last 15% of
the use. No arm is ever shown what is tested at the end: programs of depth 3, and pairs of tail
operators kept out of everything. Two steps are asked for in a row by naming the second operator
after the model's first digit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import qmc

from experiments.collapse.exact import zipf

DIGITS, OPERATORS = 10, 40
BOS, END = DIGITS + OPERATORS, DIGITS + OPERATORS + 1
LONGEST = 8  # targets of a program of depth 3


Facts = dict[tuple[int, int], int]  # (operator, digit): what it makes of it


@dataclass(frozen=True)
class World:
    seed: int = 0
    held_pairs: int = 60  # tail pairs that nothing is trained on

    @cached_property
    def table(self) -> np.ndarray:
        """[40, 10] what each operator makes of each digit."""
        rng = np.random.default_rng([self.seed, 1])
        return np.stack([rng.permutation(DIGITS) for _ in range(OPERATORS)])

    @cached_property
    def use(self) -> np.ndarray:
        return zipf(OPERATORS)

    @cached_property
    def tail(self) -> np.ndarray:
        """The rarest operators, which together hold 15% of the use."""
        return np.flatnonzero(np.cumsum(self.use[::-1])[::-1] <= 0.15 + 1e-9)

    @cached_property
    def unseen(self) -> frozenset[tuple[int, int]]:
        """Pairs of tail operators that are only ever tested."""
        pairs = [(int(a), int(b)) for a in self.tail for b in self.tail if a != b]
        order = np.random.default_rng([self.seed, 2]).permutation(len(pairs))
        return frozenset(pairs[i] for i in order[: self.held_pairs])

    # ---- programs
    def solve(self, ops: tuple[int, ...], digit: int) -> list[int]:
        """The whole document; its digits at 3, 5, 7 are the answers."""
        said, value = [BOS, digit], digit
        for op in ops:
            value = int(self.table[op, value])
            said += [DIGITS + op, value]
        return [*said, END]

    def allowed(self, ops: tuple[int, ...]) -> bool:
        """Whether training may show it: one or two different operators, no pair for the end."""
        return len(ops) in (1, 2) and len(set(ops)) == len(ops) and ops not in self.unseen

    def right(self, ids: list[int]) -> bool:
        """The exact interpreter: whether every digit is what the operators make of the first."""
        parsed = parse(ids)
        return parsed is not None and list(ids) == self.solve(*parsed)

    def corpus(self, n: int, seed: int) -> list[list[int]]:
        """n documents as the world writes them: depth 1 or 2, operators by use."""
        rng, found = np.random.default_rng([self.seed, 3, seed]), []
        while len(found) < n:
            ops = tuple(int(x) for x in rng.choice(OPERATORS, rng.integers(1, 3), p=self.use))
            if self.allowed(ops):
                found.append(self.solve(ops, int(rng.integers(DIGITS))))
        return found

    def grid(self, n: int, seed: int, shown: Sequence[list[int]] = ()) -> list[list[int]]:
        """n beginnings by a Sobol sequence over operators x digits: the tail as often as the head.

        Every other one asks in second place, behind a first step of the documents `shown`, where
        they have one; its operator is as evenly drawn.
        """
        first = {
            (d[2] - DIGITS, d[3]): d[1] for d in shown
        }  # (operator, what it made): of which digit
        names = [str(i) for i in range(OPERATORS)]
        found = []
        for i, a in enumerate(
            sobol_grid({"op": names, "digit": names[:DIGITS], "before": names}, n, seed)
        ):
            op, digit, before = (int(a[k]) for k in ("op", "digit", "before"))
            behind = i % 2 and (before, digit) in first and self.allowed((before, op))
            start = [first[before, digit], DIGITS + before, digit] if behind else [digit]
            found.append([BOS, *start, DIGITS + op])
        return found

    def ask_facts(self, known: Facts) -> tuple[Facts, int]:
        """All facts, the unknown ones by asking the interpreter; and how many calls that took."""
        facts, calls = dict(known), 0
        for op in range(OPERATORS):
            for digit in range(DIGITS):
                # An operator is a permutation: what it makes of other digits is ruled out.
                made = {facts.get((op, other)) for other in range(DIGITS)}
                for guess in range(DIGITS):
                    if (op, digit) in facts or guess in made:
                        continue
                    calls += 1
                    if self.right([BOS, digit, DIGITS + op, guess, END]):
                        facts[op, digit] = guess
        return facts, calls

    def recombine(self, facts: Facts, n: int, seed: int) -> list[list[int]]:
        """n programs written from facts, without a model: facts as often as each other."""
        rng = np.random.default_rng([self.seed, 5, seed])
        names = sorted(facts)
        programs = []
        while len(programs) < n:
            op, digit = names[rng.integers(len(names))]
            ops, start, value = (op,), digit, facts[op, digit]
            second = int(rng.integers(OPERATORS))
            if len(programs) % 2 and (second, value) in facts:
                ops = (op, second)
            if self.allowed(ops):
                programs.append(self.solve(ops, start))
        return programs

    def tests(self, n: int) -> dict[str, list[tuple[tuple[int, ...], int]]]:
        """Problems by kind: head, tail (one operator), pair (unseen), deep (3 uniform ones)."""
        rng = np.random.default_rng([self.seed, 4])
        head = np.setdiff1d(np.arange(OPERATORS), self.tail)
        unseen = sorted(self.unseen)
        digit = lambda: int(rng.integers(DIGITS))  # noqa: E731
        return {
            "head": [((int(rng.choice(head)),), digit()) for _ in range(n)],
            "tail": [((int(rng.choice(self.tail)),), digit()) for _ in range(n)],
            "pair": [(unseen[rng.integers(len(unseen))], digit()) for _ in range(n)],
            "deep": [
                (tuple(int(x) for x in rng.choice(OPERATORS, 3, replace=False)), digit())
                for _ in range(n)
            ],
        }


def parse(ids: list[int]) -> tuple[tuple[int, ...], int] | None:
    """(operators, first digit) of a document; None where it is not of the form."""
    ids = list(ids)
    if len(ids) < 5 or len(ids) % 2 == 0 or ids[0] != BOS or ids[-1] != END:
        return None
    digits, ops = ids[1:-1:2], ids[2:-1:2]
    if not all(t < DIGITS for t in digits) or not all(DIGITS <= t < BOS for t in ops):
        return None
    return tuple(t - DIGITS for t in ops), digits[0]


def read_facts(docs: Sequence[list[int]]) -> Facts:
    """The facts that documents show."""
    facts: Facts = {}
    for doc in docs:
        for i in range(1, len(doc) - 3, 2):
            facts[doc[i + 1] - DIGITS, doc[i]] = doc[i + 2]
    return facts


def cell(ids: list[int]) -> int:
    """The rarest operator of a document, 0 .. 39; 0 where there is none."""
    return max((t - DIGITS for t in ids if DIGITS <= t < BOS), default=0)


def sobol_grid(attributes: Mapping[str, Sequence[str]], n: int, seed: int) -> list[dict[str, str]]:
    """n combinations of attribute values by a scrambled Sobol sequence.

    Every value, pair and triple comes about equally often. Independent draws are not that even at
    any n that matters.
    """
    bits = int(np.ceil(np.log2(max(n, 1))))  # the sequence is balanced at powers of 2
    points = qmc.Sobol(len(attributes), seed=seed).random_base2(bits)[:n]
    grid = []
    for point in points:
        chosen = {}
        for x, (name, values) in zip(point, attributes.items(), strict=True):
            chosen[name] = values[int(x * len(values))]
        grid.append(chosen)
    return grid

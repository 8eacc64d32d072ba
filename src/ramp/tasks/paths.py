"""A walk in a graph, an edge a step; several walks are right.

    ab ac bd cd de a>e   ->   ac | cd | de | acde

A step is right when it is an edge, begins where the last one ended and leads to no node that was visited. The answer is
the walk; it is right when it goes from the start to the goal along edges.
"""

import re
from collections.abc import Sequence
from itertools import combinations, pairwise

from ramp.errors import UserError
from ramp.tasks.protocol import Problem, Step, Task, Verdict, close_steps, make_rng


def sample(seed: int, level: int) -> Problem:
    """`level` + 2 nodes, a tree and about as many edges again; start and goal are as far apart as any two nodes."""
    if not 1 <= level <= 24:
        raise UserError(f"a graph's level is 1 to 24, not {level}")
    r = make_rng("paths", seed, level)
    nodes = r.sample("abcdefghijklmnopqrstuvwxyz", level + 2)
    edges = {
        tuple(sorted((nodes[i], r.choice(nodes[max(0, i - 3) : i])))) for i in range(1, len(nodes))
    }
    spare = [e for e in map(tuple, map(sorted, combinations(nodes, 2))) if e not in edges]
    edges |= set(r.sample(spare, min(len(spare), level // 2 + 1)))
    far = max(((distances(edges, n)[m], n, m) for n in nodes for m in nodes), key=lambda x: x[0])
    start, goal = far[1:]
    shown = [a + b if r.random() < 0.5 else b + a for a, b in r.sample(sorted(edges), len(edges))]
    question = " ".join([*shown, f"{start}>{goal}"])
    return Problem(
        "paths",
        seed,
        level,
        question,
        (frozenset(edges), start, goal, far[0]),
        shortest(edges, start, goal),
    )


def distances(edges, start: str) -> dict[str, int]:
    """Edges from `start` to every node that can be reached (breadth first)."""
    found, rim = {start: 0}, [start]
    for node in rim:  # grows while it is walked: a queue
        for other in sorted(neighbours(edges, node) - found.keys()):
            found[other] = found[node] + 1
            rim.append(other)
    return found


def neighbours(edges, node: str) -> set[str]:
    return {b if a == node else a for a, b in edges if node in (a, b)}


def shortest(edges, start: str, goal: str) -> str:
    """One shortest walk: every step goes one nearer to the goal."""
    left, walk = distances(edges, goal), start
    while walk[-1] != goal:
        walk += min(n for n in neighbours(edges, walk[-1]) if left[n] == left[walk[-1]] - 1)
    return walk


def solution(problem: Problem) -> list[str]:
    return [a + b for a, b in pairwise(problem.answer)]


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    edges, start, goal, _ = problem.gold
    walk, verdicts = start, []
    for text in steps:
        if not re.fullmatch(r"[a-z]{2}", text):
            verdicts.append(Step(False, "malformed"))
            continue
        verdicts.append(_step(edges, goal, walk, text))
        walk += text[1]
    right = answer is not None and valid(problem, answer)
    return close_steps(
        verdicts, answer, walk if walk[-1] == goal else None, answer if right else problem.answer
    )


def _step(edges, goal: str, walk: str, text: str) -> Step:
    if text[0] != walk[-1]:
        return Step(False, "wrong operand")
    if tuple(sorted(text)) not in edges:
        return Step(False, "wrong operation")
    return Step(False, "irrelevant") if text[1] in walk or walk[-1] == goal else Step(True)


def valid(problem: Problem, walk: str) -> bool:
    """Whether a walk, of any length, goes from the start to the goal along edges and visits nothing twice."""
    edges, start, goal, _ = problem.gold
    whole = len(walk) > 1 and walk[0] == start and walk[-1] == goal and len(set(walk)) == len(walk)
    return whole and all(tuple(sorted(pair)) in edges for pair in pairwise(walk))


TASK = Task("paths", sample, solution, judge)

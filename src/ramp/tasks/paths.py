"""A walk in a graph, an edge a step; several walks are right.

    ab ac bd cd de a>e   ->   ac | cd | de | acde

A step is right when it is an edge, begins where the last one ended and leads to a node that was not
visited. The answer is the walk; it is right when it goes from the start to the goal along edges.
"""

import re
import string
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise, permutations

from ramp.errors import UserError
from ramp.tasks.protocol import Problem, Step, Task, Verdict, close_steps, make_rng

NAME = "paths"
Edge = tuple[str, str]  # the two nodes in the order of the alphabet


def sample(seed: int, level: int) -> Problem:
    """`level` + 2 nodes, a tree and about half as many edges again.

    Start and goal are as far apart as any two nodes. `gold` is (edges, start, goal).
    """
    if not 1 <= level <= 24:
        raise UserError(f"a graph's level is 1 to 24, not {level}")
    rng = make_rng(NAME, seed, level)
    nodes = rng.sample(string.ascii_lowercase, level + 2)
    edges = set()
    for i in range(1, len(nodes)):
        # To one of the three nodes before it: a tree with long branches.
        other = rng.choice(nodes[max(0, i - 3) : i])
        edges.add(_edge(nodes[i], other))
    pairs = [_edge(a, b) for a, b in combinations(nodes, 2)]
    spare = [edge for edge in pairs if edge not in edges]
    edges |= set(rng.sample(spare, min(len(spare), level // 2 + 1)))
    # The first of the pairs that are farthest apart.
    apart = {node: distances(edges, node) for node in nodes}
    start, goal = max(permutations(nodes, 2), key=lambda pair: apart[pair[0]][pair[1]])
    # Each edge is shown from a random end.
    shown = []
    for a, b in rng.sample(sorted(edges), len(edges)):
        shown.append(a + b if rng.random() < 0.5 else b + a)
    question = " ".join([*shown, f"{start}>{goal}"])
    gold = (frozenset(edges), start, goal)
    return Problem(NAME, seed, level, question, gold, shortest_walk(edges, start, goal))


def distances(edges: Iterable[Edge], start: str) -> dict[str, int]:
    """Edges from `start` to every node that can be reached (breadth first)."""
    reached = {start: 0}
    queue = [start]
    for node in queue:  # grows while it is walked
        unreached = neighbours(edges, node) - reached.keys()
        for other in sorted(unreached):  # a set has no order of its own from run to run
            reached[other] = reached[node] + 1
            queue.append(other)
    return reached


def neighbours(edges: Iterable[Edge], node: str) -> set[str]:
    """The nodes one edge away."""
    return {b if a == node else a for a, b in edges if node in (a, b)}


def shortest_walk(edges: Iterable[Edge], start: str, goal: str) -> str:
    """One shortest walk: every step goes one nearer to the goal."""
    left = distances(edges, goal)
    walk = start
    while walk[-1] != goal:
        here = walk[-1]
        nearer = [n for n in neighbours(edges, here) if left[n] == left[here] - 1]
        walk += min(nearer)
    return walk


def solution(problem: Problem) -> list[str]:
    """The edges of a shortest walk."""
    return [a + b for a, b in pairwise(problem.answer)]


def judge(problem: Problem, steps: Sequence[str], answer: str | None) -> Verdict:
    """A step is right when it goes on from the last one, along an edge, to a new node."""
    edges, start, goal = problem.gold
    walk = start
    verdicts = []
    for text in steps:
        if not re.fullmatch(r"[a-z]{2}", text):
            verdicts.append(Step(False, "malformed"))
            continue
        verdicts.append(_judge_step(edges, goal, walk, text))
        walk += text[1]  # right or wrong: the next step is judged from here
    follows = walk if walk[-1] == goal else None
    # Of several right answers, the one that was given is taken for the right one.
    gold = problem.answer
    if answer and is_solution(problem, answer):
        gold = answer
    return close_steps(verdicts, answer, follows, gold)


def _judge_step(edges: Iterable[Edge], goal, walk, text) -> Step:
    # Operand: where the step begins. Operation: the edge. Irrelevant: no way towards the goal.
    if text[0] != walk[-1]:
        return Step(False, "wrong operand")
    if _edge(*text) not in edges:
        return Step(False, "wrong operation")
    if text[1] in walk or walk[-1] == goal:
        return Step(False, "irrelevant")
    return Step(True)


def is_solution(problem: Problem, walk: str) -> bool:
    """Whether a walk, of any length, leads from the start to the goal and visits nothing twice."""
    edges, start, goal = problem.gold
    # Start and goal differ, so that no walk is shorter than an edge.
    if walk[:1] != start or walk[-1:] != goal or len(set(walk)) < len(walk):
        return False
    return all(_edge(a, b) in edges for a, b in pairwise(walk))


def _edge(a, b):
    return (min(a, b), max(a, b))


TASK = Task(NAME, sample, solution, judge)

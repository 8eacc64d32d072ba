"""The tables of `experiments.collapse.expert`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from experiments.collapse.expert import Figures
from experiments.collapse.table import spread
from experiments.results import markdown
from ramp.files import read_jsonl

COOLED = "the first model, cooled"
OURS = "guarded"


@dataclass(frozen=True)
class Point:
    """A model: how often it is right, and what it still has, relative to the first model."""

    right: float  # pass@1
    found: float  # pass@k with all tries
    routes: float  # different right solutions among tries / 4 right ones
    answers: float  # different answers of 10 to open questions
    bits: float  # percent more bits per byte of held-out text

    def mix(self, other: "Point", share: float) -> "Point":
        """The point that is `share` of the way to another one."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Point(*(a + share * (b - a) for a, b in pairs))


Curve = list[Point]  # from the first model on


def make_point(figures: Figures, first: Figures) -> Point:
    """Figures beside those of the first model."""
    found = first.pass_at(first.tries)
    return Point(
        right=figures.pass_at(1),
        found=figures.pass_at(figures.tries) / found if found else math.nan,
        routes=figures.compare_routes(first),
        answers=figures.answers / first.answers,
        bits=100 * (figures.bits / first.bits - 1),
    )


def read_curves(directory: Path) -> dict[str, dict[int, Curve]]:
    """The curve of each arm and seed; cooling is an arm whose generations are temperatures."""
    records = list(read_jsonl(directory / "bench.jsonl"))
    first: dict[int, Figures] = {}
    for record in records:
        key = record["key"]
        if key["part"] == "first" and key["temperature"] == 1:
            first[key["seed"]] = Figures(**record["generations"][0])
    curves: dict[str, dict[int, Curve]] = {}
    for record in records:
        seed = record["key"]["seed"]
        points = [make_point(Figures(**g), first[seed]) for g in record["generations"]]
        start = [make_point(first[seed], first[seed])]
        name = record["key"].get("arm", COOLED)
        curve = curves.setdefault(name, {}).setdefault(seed, start)
        # That of the first model at its own temperature is the start.
        if record["key"].get("temperature") != 1:
            curve += points
    return curves


def find_point(curve: Curve, right: float) -> Point | None:
    """Where a curve first reaches a rate of right solutions, along straight lines."""
    if curve[0].right >= right:
        return curve[0]  # it has only lost since
    for a, b in pairwise(curve):
        if a.right <= right <= b.right:
            span = b.right - a.right
            return a.mix(b, (right - a.right) / span if span else 1.0)
    return None


def compare(ours: dict[int, Curve], other: dict[int, Curve]) -> list[Point]:
    """Ours less another arm's, a point a seed, where both are right as often as the lower best."""
    gaps = []
    for seed in sorted(ours.keys() & other.keys()):
        right = min(max(point.right for point in curve[seed]) for curve in (ours, other))
        a, b = find_point(ours[seed], right), find_point(other[seed], right)
        if a and b:
            pairs = zip(vars(a).values(), vars(b).values(), strict=True)
            gaps.append(Point(*(x - y for x, y in pairs)))
    return gaps


def tabulate(directory: Path) -> list[str]:
    """The lines of both tables."""
    curves = read_curves(directory)
    starts = [curve[0] for curve in curves.get(COOLED, {}).values()]
    head = ["arm", "pass@1", "any try", "routes", "answers", "bits, %", "seeds"]
    rows = [describe_points("the first model", starts)]
    rows += [
        describe_points(name, [curve[-1] for curve in by_seed.values()])
        for name, by_seed in curves.items()
    ]
    lines = markdown(head, rows)
    if OURS not in curves:
        return lines
    rivals = [name for name in curves if name != OURS]
    rows = [describe_points(name, compare(curves[OURS], curves[name])) for name in rivals]
    rows = [[name, *cells[1:]] for name, *cells in rows]
    return [*lines, "", *markdown([f"{OURS} less", *head[2:]], rows)]


def describe_points(name: str, points: Sequence[Point]) -> list[str]:
    """A row of the mean figures of all seeds, with standard errors."""
    if not points:
        return [name, *(["-"] * 5), "0"]
    columns = zip(*(vars(point).values() for point in points), strict=True)
    return [name, *(spread(list(column)) for column in columns), str(len(points))]

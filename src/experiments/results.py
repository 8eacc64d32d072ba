"""What the benchmarks share: results kept line by line, and weights next to them.

A result is one line of bench.jsonl under a key that says what was measured. A second start measures
what is missing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from ramp.config import Model, Reinforce
from ramp.files import append_jsonl, read_jsonl
from ramp.model import transformer


@dataclass(frozen=True)
class Results:
    """Where results are, and of which model and settings."""

    directory: Path
    model: Model
    t: Reinforce

    @property
    def path(self) -> Path:
        """The file of results."""
        return self.directory / "bench.jsonl"

    def results(self) -> list[dict]:
        """All results so far."""
        return list(read_jsonl(self.path))

    def once(self, key: dict, work: Callable[[], dict]) -> dict:
        """The result stored under `key`, or that of work(), stored."""
        for result in self.results():
            if result["key"] == key:
                return result
        began = time.perf_counter()
        result = {"key": key} | work()
        result["seconds"] = round(time.perf_counter() - began, 1)
        append_jsonl(self.path, result)
        scalars = {k: v for k, v in result.items() if not isinstance(v, list | dict)}
        print(*key.values(), scalars, flush=True)
        return result


def part(results: Sequence[dict], name: str, **where) -> list[dict]:
    """The results of one part of a benchmark whose keys hold all of `where`."""
    return [r for r in results if r["key"]["part"] == name and where.items() <= r["key"].items()]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def init_lm(c: Model, seed: int = 0) -> dict:
    """New parameters of a language model alone."""
    return {"lm": jax.jit(lambda: transformer.init_params(c, jax.random.PRNGKey(seed)))()}


def load_or_make(b: Results, name: str, like: dict, make: Callable[[], dict]) -> dict:
    """make(), a pytree of the shapes of `like`, or what it gave before: NAME.npz keeps it."""
    path = b.directory / f"{name}.npz"
    leaves, tree = jax.tree.flatten(like)
    if not path.exists():
        made = jax.tree.leaves(make())
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, **{str(i): np.asarray(a) for i, a in enumerate(made)})
        temporary.replace(path)
    with np.load(path, allow_pickle=False) as arrays:
        placed = [jax.device_put(arrays[str(i)], a.sharding) for i, a in enumerate(leaves)]
    return tree.unflatten(placed)

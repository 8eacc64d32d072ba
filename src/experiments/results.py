"""What the benchmarks of rooms share: results that are kept line by line, and weights beside them.

A result is one line of bench.jsonl under the key that says what was measured: a second start measures what is missing.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from ramp.config import Model, Reinforce
from ramp.model import transformer


@dataclass(frozen=True)
class Results:
    """Where results are, and what they are of."""

    directory: Path
    model: Model
    t: Reinforce

    @property
    def path(self) -> Path:
        return self.directory / "bench.jsonl"

    def results(self) -> list[dict]:
        """Lines of the file; one torn by a kill is left out."""
        found = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def once(self, key: dict, work: Callable[[], dict]) -> dict:
        """The result stored under `key`, or that of work(), stored."""
        for found in self.results():
            if found["key"] == key:
                return found
        began = time.perf_counter()
        result = {"key": key} | work() | {"seconds": round(time.perf_counter() - began, 1)}
        with self.path.open("a") as file:
            file.write(
                "\n" + json.dumps(result) + "\n"
            )  # the first: a kill may have torn the line before
            file.flush()
            os.fsync(file.fileno())
        shown = {k: v for k, v in result.items() if not isinstance(v, list | dict)}
        print(" ".join(map(str, key.values())), shown, flush=True)
        return result


def part(results: Sequence[dict], name: str, **where) -> list[dict]:
    """The results of one part of a benchmark whose keys say what `where` says."""
    return [r for r in results if r["key"]["part"] == name and where.items() <= r["key"].items()]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def init_lm(c: Model, seed: int = 0) -> dict:
    return {"lm": jax.jit(lambda: transformer.init_params(c, jax.random.PRNGKey(seed)))()}


def load_or_make(b: Results, name: str, like: dict, make: Callable[[], dict]) -> dict:
    """make(), a pytree of `like`'s shapes, or what it gave before: it is kept as .npz beside the results."""
    path = b.directory / f"{name}.npz"
    leaves, tree = jax.tree.flatten(like)
    if not path.exists():
        made = jax.tree.leaves(make())
        with path.with_suffix(".tmp").open("wb") as file:
            np.savez(file, **{str(i): np.asarray(a) for i, a in enumerate(made)})
        path.with_suffix(".tmp").replace(path)
    with np.load(path, allow_pickle=False) as held:
        return tree.unflatten(
            [jax.device_put(held[str(i)], a.sharding) for i, a in enumerate(leaves)]
        )

"""What the parts of the benchmark share: results and weights that are kept, policies that are trained."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np

from ramp.config import Model, Reinforce
from ramp.credit import learn
from ramp.model import transformer
from ramp.text.tokenizer import Tokenizer
from ramp.train import optim
from ramp.train.state import State, new_state
from ramp.train.step import Loss, make_step

TOKENIZER = Tokenizer.bytes_only()


@dataclass(frozen=True)
class Bench:
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
            file.write("\n" + json.dumps(result) + "\n")  # the first: a kill may have torn the line before
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
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


# ---------------------------------------------------------------------------------------------------- policies
def fresh(c: Model, seed: int = 0) -> dict:
    return {"lm": jax.jit(lambda: transformer.init(c, jax.random.PRNGKey(seed)))()}


def kept(b: Bench, name: str, like: dict, make: Callable[[], dict]) -> dict:
    """make(), a pytree of `like`'s shapes, or what it gave before: it is kept as .npz beside the results."""
    path = b.directory / f"{name}.npz"
    leaves, tree = jax.tree.flatten(like)
    if not path.exists():
        made = jax.tree.leaves(make())
        with path.with_suffix(".tmp").open("wb") as file:
            np.savez(file, **{str(i): np.asarray(a) for i, a in enumerate(made)})
        path.with_suffix(".tmp").replace(path)
    with np.load(path, allow_pickle=False) as held:
        return tree.unflatten([jax.device_put(held[str(i)], a.sharding) for i, a in enumerate(leaves)])


def trainer(c: Model, t: Reinforce, loss: Loss) -> tuple[Callable[[dict], State], Callable]:
    """(first state of a copy of the parameters, update)."""
    tx = optim.make(t, c.dtype)
    first = jax.jit(lambda params: new_state(jax.tree.map(lambda a: a + 0, params), tx, 0))
    return first, make_step(loss, tx, t)


def fit(c: Model, t: Reinforce, loss: Loss, params: dict, batches: Callable[[int], dict]) -> dict:
    """`t.steps` updates of a copy of the parameters."""
    first, update = trainer(c, t, loss)
    state = first(params)
    for i in range(t.steps):
        state, _ = update(state, learn.put(batches(i)))
    return state.params


@lru_cache(maxsize=16)
def reinforcer(c: Model, t: Reinforce) -> tuple[Callable[[dict], State], Callable]:
    return trainer(c, t, learn.loss(c, t))


def reinforced(
    b: Bench, t: Reinforce, base: dict, seed: int, ref: dict | None = None, frozen: dict | None = None
) -> Iterator[tuple[learn.Collected, State, dict]]:
    """Iterations of RL from `base`: (what was collected, the state after it, metrics of the update).
    frozen: parameters that credit looks at and that do not learn, a process head."""
    same = replace(t, method="rloo", reward="checker", continuations=1)  # who gets credit is no part of the program
    first, update = reinforcer(b.model, same)
    state = first(base)
    for i in range(t.steps):
        params = state.params | (frozen or {})
        got = learn.collect(b.model, t, TOKENIZER, params, ref, i, seed)
        state, metrics = update(state, learn.put(got.batch))
        yield got, state, metrics

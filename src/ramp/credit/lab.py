"""What the parts of the benchmark share: results and weights that are kept, policies that are trained."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np

from ramp.config import Model, Reinforce
from ramp.credit import learn
from ramp.model import transformer
from ramp.train import optim
from ramp.train.state import new_state
from ramp.train.step import make_step


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


# ---------------------------------------------------------------------------------------------------- policies
def fresh(c: Model, seed: int = 0) -> dict:
    return {"lm": jax.jit(lambda: transformer.init(c, jax.random.PRNGKey(seed)))()}


@lru_cache(maxsize=16)
def updater(c: Model, t: Reinforce):
    """(first state, update) of the policy loss; the method plays no part in either."""
    tx = optim.make(t, c.dtype)
    first = jax.jit(lambda params: new_state(jax.tree.map(lambda a: a + 0, params), tx, 0))
    return first, make_step(learn.loss(c, t), tx, t)


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


def fit(t: Reinforce, loss, params: dict, batches: Callable[[int], dict]) -> dict:
    """`t.steps` updates of a copy of the parameters."""
    tx = optim.make(t, "float32")
    state = jax.jit(lambda p: new_state(jax.tree.map(lambda a: a + 0, p), tx, 0))(params)
    update = make_step(loss, tx, t)
    for i in range(t.steps):
        state, _ = update(state, learn.put(batches(i)))
    return state.params

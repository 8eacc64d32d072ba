"""Checkpoints that can be trusted: asynchronous, atomic, and verified when they are read.

Orbax writes a step beside its final name and renames it when it is complete, so a kill at any moment leaves only whole
steps. It does not notice a flipped byte and it casts dtypes silently, so each step also carries a record (shapes,
dtypes, the caller's `meta`, all under a SHA-256) and one fingerprint a leaf, which does not depend on the mesh.
`restore` checks all of it in the new sharding; a damaged step is renamed to `<step>.bad`, said aloud, and the next
older one is used. Nothing here deletes a step except the retention rule: the last `keep`, and the best.

    DIR/<step>/state    Orbax tree: leaves/<leaf path>, and fingerprint, uint32 [leaf, 2], in the order of sorted paths
    DIR/<step>/meta     the record, JSON
"""

import hashlib
import json
import logging
import math
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from ramp.errors import UserError
from ramp.train.fingerprint import fingerprints, named_leaves

TMP = ".orbax-checkpoint-tmp"  # Orbax's mark of a step that is not complete
log = logging.getLogger(__name__)


def _spec(x) -> list:
    return [str(x.dtype), list(x.shape)]


def _template(x) -> jax.ShapeDtypeStruct:
    """Shape, dtype and a sharding over real devices: `jax.eval_shape` gives one over an abstract mesh."""
    sharding = x.sharding
    if sharding is None:
        raise ValueError("restore needs a sharding in every leaf of `like`")
    if isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), sharding.spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _complete(path: epath.Path) -> bool:
    """Whether the step was renamed into place or, in an object store, which has no rename, marked as committed."""
    return ocp.utils.is_checkpoint_finalized(path)


def _digest(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _stored(record: dict) -> dict:
    return {"record": record, "sha256": _digest(record)}


def _finite(score: float | None) -> float | None:
    return float(score) if score is not None and math.isfinite(score) else None


def _everywhere(ok: bool) -> bool:
    """Whether it holds in every process, so that all of them take the same branch."""
    return (
        ok
        if jax.process_count() == 1
        else bool(multihost_utils.process_allgather(np.array(ok)).all())
    )


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class DamagedCheckpoint(Exception):
    """A step that cannot be read whole. `restore` turns it into a step put aside."""


class Checkpoints:
    """The steps in one directory, local or gs://. With several processes all of them see it and make the same calls."""

    def __init__(self, directory, keep: int = 2, keep_best: bool = True):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.directory = epath.Path(directory)
        self.quarantined: list[tuple[int, str]] = []  # (step, what was wrong), this object's finds
        self._keep, self._keep_best = keep, keep_best
        self._local = "://" not in str(directory)
        if self._local:  # Orbax wants an absolute path
            self.directory = self.directory.resolve()
        self._saving: int | None = None
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())

    # ---- writing

    def save(self, step: int, state, meta: dict, score: float | None = None) -> None:
        """Start to save; returns once the state is copied off the device, so that the caller may donate it.

        `meta` is JSON. `score`: lower is better, the best step outlives the last `keep`. Saving the latest step again
        does nothing. RuntimeError: no space, or the save before this one failed.
        """
        self.wait()
        latest = max(self.steps(), default=-1)
        if step == latest:
            return
        if step < latest:
            raise UserError(
                f"{self.directory} holds step {latest}: to save step {step}, move the later ones away"
            )
        leaves = named_leaves(state)
        specs = {name: _spec(x) for name, x in leaves.items()}
        record = _stored(
            {"step": step, "score": _finite(score), "meta": meta, "leaves": specs}
        )  # TypeError: not JSON
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
        _barrier("ramp:save")
        self._require_space(2 * sum(x.nbytes for x in leaves.values()))
        full = {
            name: x for name, x in leaves.items() if x.size
        }  # Orbax refuses empty arrays; their shape says it all
        tree = {
            "leaves": full,
            "fingerprint": fingerprints([leaves[name] for name in sorted(leaves)]),
        }
        self._saving = step
        try:
            self._orbax.save(
                self.directory / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(tree), meta=ocp.args.JsonSave(record)
                ),
            )
        except Exception as error:
            self._fail(error)

    def rescore(self, step: int, score: float | None) -> None:
        """Give a complete step the score that it was saved without; None changes nothing."""
        if jax.process_index() == 0 and score is not None:
            path = self._record_path(step)
            new = path.with_name(path.name + ".tmp")
            new.write_text(json.dumps(_stored(self._record(step) | {"score": _finite(score)})))
            new.replace(path)
        _barrier("ramp:rescore")

    def check(self) -> None:
        """Raise if the save in the background has failed. Cheap: call it whenever metrics are logged."""
        try:
            self._orbax.check_for_errors()
        except Exception as error:
            self._fail(error)

    def wait(self) -> None:
        """Wait until the save in the background is on disk, raise if it failed, then delete what is not to be kept."""
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            self._fail(error)
        if self._saving is not None:
            self._saving = None
            self._prune()

    def close(self) -> None:
        self.wait()
        self._orbax.close()

    def _fail(self, error: Exception):
        failed, self._saving = self._saving, None
        if jax.process_index() == 0:
            self._remove_unfinished()  # what is left of it may be what fills the disk
        good = max(self.steps(), default=None)
        raise RuntimeError(
            f"step {failed} was not saved in {self.directory}: {error}; the last complete step is {good}"
        ) from error

    def _require_space(self, need: int) -> None:
        free = shutil.disk_usage(self.directory).free if self._local else need
        if free < need:
            raise RuntimeError(
                f"no space left to save in {self.directory}: {free / 1e6:.1f} MB free, {need / 1e6:.1f} MB wanted "
                "(twice the state)"
            )

    def _remove_unfinished(self) -> None:
        for path in self.directory.iterdir():
            if TMP in path.name or (path.name.isdigit() and path.is_dir() and not _complete(path)):
                path.rmtree()

    def _prune(self) -> None:
        if jax.process_index() == 0:
            steps = self.steps()
            keep = {*steps[-self._keep :], self.best_step() if self._keep_best else None}
            for step in set(steps) - keep:
                (self.directory / str(step)).rmtree()
        _barrier("ramp:prune")

    # ---- reading

    def steps(self) -> list[int]:
        """The complete steps, ascending. Only `restore` reads what is inside."""
        paths = self.directory.iterdir() if self.directory.exists() else ()
        return sorted(int(p.name) for p in paths if p.name.isdigit() and _complete(p))

    def scored(self, step: int) -> bool:
        return self._record(step)["score"] is not None

    def leaf_names(self) -> set[str]:
        """Leaf paths in the newest step whose record can be read; none where nothing was saved."""
        for step in reversed(self.steps()):
            try:
                return set(self._record(step)["leaves"])
            except DamagedCheckpoint:
                continue
        return set()

    def best_step(self) -> int | None:
        """The step with the lowest score, the later of equals; None if no step has one."""
        scores = []
        for step in self.steps():
            try:
                score = self._record(step)["score"]
            except DamagedCheckpoint:  # `restore` is where that is said
                continue
            if score is not None:
                scores.append((score, -step))
        return -min(scores)[1] if scores else None

    def restore(
        self, like, step: int | None = None, partial: bool = False
    ) -> tuple[Any, dict, int] | None:
        """(state, meta, step) of the newest step that is whole, or of `step`; None if nothing was ever saved.

        `like` is a tree of ShapeDtypeStructs with shardings (of any mesh). With `partial` it may leave out leaves that
        the checkpoint has (a sampler needs the parameters only). UserError: the step is of another model or is not
        there. RuntimeError: there were steps and all are damaged, so that nobody starts from nothing unawares.
        """
        self.wait()
        steps = self.steps()
        if step is not None and step not in steps:
            raise UserError(f"{self.directory} has no step {step}; it has {steps}")
        want = jax.tree.map(_template, like)
        for candidate in reversed(steps) if step is None else [step]:
            try:
                leaves, meta = self._load(candidate, named_leaves(want), partial)
            except DamagedCheckpoint as error:
                self._put_aside(candidate, str(error))
            else:
                return jax.tree.unflatten(jax.tree.structure(want), leaves), meta, candidate
        bad = sorted(p.name for p in self.directory.glob("*.bad*"))
        if steps or bad:
            raise RuntimeError(
                f"every step tried in {self.directory} is damaged: {bad}; delete them to start anew"
            )
        return None

    def _load(
        self, step: int, want: dict[str, jax.ShapeDtypeStruct], partial: bool
    ) -> tuple[list, dict]:
        """The leaves in the order of `want`, and the caller's meta. Damaged in every process if it is so in one."""
        record = self._record(step)
        self._require_same_model(step, record["leaves"], want, partial)
        full = {name: x for name, x in want.items() if x.size}
        tree = {"leaves": full, "fingerprint": np.zeros((len(record["leaves"]), 2), np.uint32)}
        problem = None
        try:
            # The handler, not the Checkpointer: that one ends in a barrier which a process that failed never reaches.
            args = ocp.args.PyTreeRestore(
                tree,
                restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
                partial_restore=True,
            )
            got = self._orbax.handler.restore(
                self.directory / str(step), args=ocp.args.Composite(state=args)
            ).state
        except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
            raise  # the machine's fault, not the checkpoint's
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error)[:200]}"  # the whole is pages of TensorStore's settings
        if not _everywhere(problem is None):
            raise DamagedCheckpoint(problem or "another process could not read it")
        made = {
            name: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding)
            for name, x in want.items()
            if not x.size
        }
        leaves = [made[name] if name in made else got["leaves"][name] for name in want]
        saved = dict(
            zip(sorted(record["leaves"]), np.asarray(got["fingerprint"]).tolist(), strict=True)
        )
        found = dict(zip(want, np.asarray(fingerprints(leaves)).tolist(), strict=True))
        wrong = [
            n
            for n, x in zip(want, leaves, strict=True)
            if found[n] != saved[n] or _spec(x) != _spec(want[n])
        ]
        if not _everywhere(not wrong):
            raise DamagedCheckpoint(
                f"{len(wrong)} leaves differ from their fingerprints, first {wrong[:1]}"
            )
        return leaves, record["meta"]

    def _record(self, step: int) -> dict:
        """The record of a step, verified. It is one small file, read by every process alike."""
        try:
            stored = json.loads(self._record_path(step).read_text())
            whole = (
                stored["sha256"] == _digest(stored["record"]) and stored["record"]["step"] == step
            )
        except PermissionError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(
                f"its record cannot be read ({type(error).__name__}: {error})"
            ) from error
        if not whole:
            raise DamagedCheckpoint("its record does not match its checksum")
        return stored["record"]

    def _record_path(self, step: int) -> epath.Path:
        return self.directory / str(step) / "meta" / "metadata"

    def _require_same_model(self, step: int, have: dict, want: dict, partial: bool) -> None:
        where = f"{self.directory / str(step)} is a checkpoint of another model"
        for name, x in want.items():
            if have.get(name) != _spec(x):
                raise UserError(
                    f"{where}: {name} is {have.get(name, 'not in it')}, the configuration makes {_spec(x)}"
                )
        if not partial and (rest := sorted(set(have) - set(want))):
            raise UserError(
                f"{where}: it has {rest[0]} and {len(rest) - 1} more leaves that the configuration lacks"
            )

    def _put_aside(self, step: int, problem: str) -> None:
        self.quarantined.append((step, problem))
        if jax.process_index() == 0:
            source, target = self.directory / str(step), self.directory / f"{step}.bad"
            while target.exists():
                target = target.with_name(target.name + "_")
            log.warning(
                "checkpoint %s is damaged, put aside as %s: %s", source, target.name, problem
            )
            try:
                source.rename(target)
            except (
                OSError
            ) as error:  # in a directory that may only be read the older step serves all the same
                log.warning("checkpoint %s could not be renamed: %s", source, error)
        _barrier("ramp:put-aside")

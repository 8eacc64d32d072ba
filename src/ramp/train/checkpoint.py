"""Checkpoints that can be trusted: asynchronous, atomic, and verified when they are read.

Orbax writes a step under another name and renames it when it is complete, so a kill at any moment
leaves only whole steps. It does not notice a flipped byte and it casts dtypes silently, so each
step also carries a record (shapes, dtypes, the caller's `meta`, all under a SHA-256) and one
fingerprint a leaf, which does not depend on the mesh. `restore`, for whoever trains on, checks all
of it in the new sharding; a damaged step is renamed to `<step>.bad`, with a warning, and the next
older one is used. `restore_best`, for whoever only reads, takes the next best one in its place,
with a warning, and changes nothing. Nothing here deletes a step except the retention rule: the last
`keep`, the best, and the last proven one with the one that will be proven next (see `save`).
Where training diverged, what came after the last good step becomes `<step>.diverged`.

    DIR/<step>/state    Orbax tree: leaves/<leaf path>, and fingerprint, uint32 [leaf, 2], in the
                        order of sorted paths
    DIR/<step>/meta     the record, JSON

Retention is ours, not that of Orbax's CheckpointManager: it takes the metrics of a step only with
the save, whereas an evaluation cut short is scored later (`rescore`), and it knows no step that was
put aside as damaged. Around these two it would need as many lines as `_prune` and `best_step`.
"""

import hashlib
import json
import logging
import math
import shutil
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from ramp.errors import UserError
from ramp.files import warn_once
from ramp.train import processes
from ramp.train.fingerprint import fingerprints, named_leaves

TMP = ".orbax-checkpoint-tmp"  # Orbax's mark of a step that is not complete
log = logging.getLogger(__name__)


def _describe(x: Any) -> list:
    return [str(x.dtype), list(x.shape)]


def _template(x: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and a sharding over real devices; `jax.eval_shape` gives an abstract mesh."""
    sharding = x.sharding
    if sharding is None:
        raise ValueError("restore needs a sharding in every leaf of `like`")
    if isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), sharding.spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _complete(path: epath.Path) -> bool:
    # Renamed into place or, in an object store, which has no rename, marked as committed.
    return ocp.utils.is_checkpoint_finalized(path)


def _digest(record: dict) -> str:
    text = json.dumps(record, sort_keys=True)  # TypeError if the caller's meta is not JSON
    return hashlib.sha256(text.encode()).hexdigest()


def _seal(record: dict) -> dict:
    return {"record": record, "sha256": _digest(record)}


def _finite(score: float | None) -> float | None:
    return float(score) if score is not None and math.isfinite(score) else None


class DamagedCheckpoint(Exception):
    """A step that cannot be read whole. `restore` turns it into a step put aside."""


class Checkpoints:
    """The steps in one directory, local or gs://.

    With several processes all of them can read it, and all make the same calls. remedy: what to do
    where every step is damaged, for the message. base: the step that another run has brought, which
    is taken to be good.
    """

    def __init__(
        self,
        directory: Any,
        keep: int = 2,
        keep_best: bool = True,
        remedy: str = "delete them to start anew",
        base: int | None = None,
    ):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.directory = epath.Path(directory)
        self.quarantined: list[tuple[int, str]] = []  # (step, what was wrong with it)
        self._keep = keep
        self._keep_best = keep_best
        self._remedy = remedy
        self._base = base
        self._local = "://" not in str(directory)
        if self._local:  # Orbax wants an absolute path
            self.directory = self.directory.resolve()
        self._saving: int | None = None  # the step that is being written in the background
        self._proven = base  # as the last save said
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())

    # ---- writing

    def save(
        self,
        step: int,
        state: Any,
        meta: dict,
        score: float | None = None,
        extra: bool = False,
        proven: int | None = None,
    ) -> None:
        """Start to save; returns once the state is copied off the device and may be donated.

        `meta` is JSON. `score`: lower is better, the best step outlives the last `keep`. `proven`:
        states up to this step were seen to be good; the newest of them is kept too. Saving the
        latest step again does nothing. RuntimeError: no space, or the save before this one failed.
        `extra`: only a request to stop made this step one to save. It is never the best, which is
        so the same as in a run that nobody stopped.
        """
        self.wait()
        latest = max(self.steps(), default=-1)
        if step == latest:
            return
        if step < latest:
            raise UserError(
                f"{self.directory} holds step {latest}: "
                f"to save step {step}, move the later ones away"
            )
        leaves = named_leaves(state)
        described = {name: _describe(x) for name, x in leaves.items()}
        record = {"step": step, "score": _finite(score), "meta": meta, "leaves": described}
        record |= {"extra": extra}
        sealed = _seal(record)
        if processes.is_writer():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
        processes.barrier("ramp:save")
        self._require_space(2 * sum(x.nbytes for x in leaves.values()))
        # Orbax refuses empty arrays; the shape in the record is all there is to them.
        tree = {
            "leaves": {name: x for name, x in leaves.items() if x.size},
            "fingerprint": fingerprints([leaves[name] for name in sorted(leaves)]),
        }
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(tree), meta=ocp.args.JsonSave(sealed))
        self._saving = step
        self._proven = self._base if proven is None else proven
        try:
            self._orbax.save(self.directory / str(step), args=args)
        except Exception as error:
            self._fail(error)

    def rescore(self, step: int, score: float | None) -> None:
        """Give a complete step the score that it was saved without; None changes nothing."""
        if processes.is_writer() and score is not None:
            record = self._record(step) | {"score": _finite(score)}
            path = self._record_path(step)
            # Not `files.write_atomic`: the directory may be in an object store.
            new = path.with_name(path.name + ".tmp")
            new.write_text(json.dumps(_seal(record)))
            new.replace(path)
        processes.barrier("ramp:rescore")

    def check(self) -> None:
        """Raise if the save in the background has failed. Cheap: call it with every logged line."""
        try:
            self._orbax.check_for_errors()
        except Exception as error:
            self._fail(error)

    def wait(self) -> None:
        """Wait until the save in the background is on disk, then delete what is not to be kept.

        RuntimeError: the save failed.
        """
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            self._fail(error)
        if self._saving is not None:
            self._saving = None
            self._prune()

    def close(self) -> None:
        """Wait for the save in the background and stop the thread that writes."""
        self.wait()
        self._orbax.close()

    def _fail(self, error: Exception) -> None:
        failed, self._saving = self._saving, None
        if processes.is_writer():
            self._remove_unfinished()  # what is left of it may be what fills the disk
        good = max(self.steps(), default=None)
        raise RuntimeError(
            f"step {failed} was not saved in {self.directory}: {error}; "
            f"the last complete step is {good}"
        ) from error

    def _require_space(self, need: int) -> None:
        free = shutil.disk_usage(self.directory).free if self._local else need
        if free < need:
            raise RuntimeError(
                f"no space left to save in {self.directory}: {free / 1e6:.1f} MB free, "
                f"{need / 1e6:.1f} MB wanted (twice the state)"
            )

    def _remove_unfinished(self) -> None:
        for path in self.directory.iterdir():
            if TMP in path.name or (path.name.isdigit() and path.is_dir() and not _complete(path)):
                # A thread of a save that failed may still be at work there; the next start has it.
                with suppress(FileNotFoundError):
                    path.rmtree()

    def _prune(self) -> None:
        if processes.is_writer():
            steps, planned = self.steps(), self._planned_steps()
            # Steps that a request to stop added push none of the others out: a run that was
            # stopped and diverges goes back to the same step as one that nobody stopped.
            keep = {*planned[-self._keep :], *steps[-self._keep :]}
            best = self.best_step() if self._keep_best else None
            if best is not None:
                keep.add(best)
            if self._proven is not None:
                # The first of the others too: it is the next one to be proven.
                keep |= set([s for s in planned if s <= self._proven][-1:])
                keep |= set([s for s in planned if s > self._proven][:1])
            for step in set(steps) - keep:
                (self.directory / str(step)).rmtree()
        processes.barrier("ramp:prune")

    def put_aside_after(self, trusted: int, calm: int) -> int | None:
        """Put aside the steps of a divergence, and return the last good one; None: none is left.

        Good is what was saved up to step `trusted`, and the best step if it was scored by `calm`.
        """
        self.wait()
        best, steps = self.best_step(), self.steps()
        trusted = max(trusted, -1 if self._base is None else self._base)
        good = [s for s in self._planned_steps() if s <= trusted or (s == best and s <= calm)]
        # Newest first: a kill in between leaves steps of which the newest leads here again.
        for step in reversed(steps):
            if not good or step > good[-1]:
                self._put_aside(step, "from when training diverged", "diverged")
        return good[-1] if good else None

    def _planned_steps(self) -> list[int]:
        """The steps that were not saved for a request to stop alone."""
        planned = []
        for step in self.steps():
            if step == self._base:
                planned.append(step)
                continue
            try:
                extra = self._record(step).get("extra")
            except DamagedCheckpoint:
                extra = False  # `restore` warns of it
            if not extra:
                planned.append(step)
        return planned

    # ---- reading

    def steps(self) -> list[int]:
        """The complete steps, ascending. Only `restore` reads what is inside."""
        paths = self.directory.iterdir() if self.directory.exists() else ()
        return sorted(int(p.name) for p in paths if p.name.isdigit() and _complete(p))

    def scored(self, step: int) -> bool:
        """Whether the step was saved with a score, or got one later."""
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
        """The step with the lowest score, the later of equals; None if no step has one.

        Steps that only a request to stop has made do not compete.
        """
        scores = []
        for step in self.steps():
            try:
                record = self._record(step)
            except DamagedCheckpoint:  # `restore` warns of it
                continue
            score = record["score"]
            # Earlier versions did not mark such steps.
            if score is not None and not record.get("extra"):
                scores.append((score, -step))
        return -min(scores)[1] if scores else None

    def restore(
        self, like: Any, step: int | None = None, partial: bool = False, defaults: Any = None
    ) -> tuple[Any, dict, int] | None:
        """Return (state, meta, step) of the newest step that is whole, or of `step`.

        None if nothing was ever saved. `like` is a tree of ShapeDtypeStructs with shardings (of any
        mesh). With `partial` it may leave out leaves that the checkpoint has. `defaults`: a tree of
        leaves that a checkpoint may lack, for those of an older ramp. UserError: the step
        is of another model or is not there; or there were steps and all are damaged, so that nobody
        starts from nothing unawares.
        """
        self.wait()
        steps = self.steps()
        if step is not None and step not in steps:
            raise UserError(f"{self.directory} has no step {step}; it has {steps}")
        want = jax.tree.map(_template, like)
        added = named_leaves(defaults) if defaults is not None else {}
        candidates = reversed(steps) if step is None else [step]
        for candidate in candidates:
            try:
                leaves, meta = self._load_or_add(candidate, named_leaves(want), partial, added)
            except DamagedCheckpoint as error:
                self._put_aside(candidate, f"it is damaged, {error}")
            else:
                return jax.tree.unflatten(jax.tree.structure(want), leaves), meta, candidate
        self._require_none_damaged(steps)
        return None

    def restore_best(self, like: Any) -> tuple[Any, dict, int] | None:
        """Return (state, meta, step) of the best step that is whole; the directory is only read.

        None if nothing was ever saved. `like` is as for `restore`, and may leave out leaves that
        the checkpoint has: a sampler needs the parameters only. UserError: the step is of another
        model, or every step is damaged.
        """
        self.wait()
        want = jax.tree.map(_template, like)
        ranked = self._rank_steps()
        damaged: list[str] = []
        for step in ranked:
            try:
                leaves, meta = self._load(step, named_leaves(want), partial=True)
            except DamagedCheckpoint as error:
                damaged.append(f"step {step} of {self.directory} is damaged ({error})")
            else:
                if damaged:
                    warn_once(f"{'; '.join(damaged)}; step {step} is used instead")
                return jax.tree.unflatten(jax.tree.structure(want), leaves), meta, step
        self._require_none_damaged(ranked)
        return None

    def _rank_steps(self) -> list[int]:
        """Complete steps, the best first: damaged ones, by lowest score, unscored; later first."""

        def rank(step: int) -> tuple[float, int]:
            try:
                record = self._record(step)
            except DamagedCheckpoint:
                # It may be the best, and reading it says that it is damaged.
                return -math.inf, -step
            is_scored = record["score"] is not None and not record.get("extra")
            return record["score"] if is_scored else math.inf, -step

        return sorted(self.steps(), key=rank)

    def _require_none_damaged(self, damaged: list[int]) -> None:
        # In a directory that may only be read they are where they were.
        left = [str(step) for step in damaged if (self.directory / str(step)).exists()]
        bad = sorted(left + [path.name for path in self.directory.glob("*.bad*")])
        if bad:
            raise UserError(
                f"every step in {self.directory} is damaged ({', '.join(bad)}); {self._remedy}"
            )

    def _load_or_add(
        self, step: int, want: dict, partial: bool, defaults: dict[str, Any]
    ) -> tuple[list, dict]:
        """`_load`, with defaults for the leaves that the step lacks."""
        lacking = set(defaults) - set(self._record(step)["leaves"])
        present = {name: x for name, x in want.items() if name not in lacking}
        leaves, meta = self._load(step, present, partial)
        found = dict(zip(present, leaves, strict=True))
        for name in lacking & set(want):
            # A copy each: equal scalars may share a buffer, and steps donate their state.
            found[name] = jax.device_put(np.array(defaults[name]), want[name].sharding)
        return [found[name] for name in want], meta

    def _load(
        self, step: int, want: dict[str, jax.ShapeDtypeStruct], partial: bool
    ) -> tuple[list, dict]:
        """Return the leaves in the order of `want`, and the caller's meta.

        A step that is damaged in one process is damaged in all.
        """
        record = self._record(step)
        self._require_same_model(step, record["leaves"], want, partial)
        got = self._read(step, want, number_of_leaves=len(record["leaves"]))
        leaves = []
        for name, x in want.items():
            if x.size:
                leaves.append(got["leaves"][name])
            else:
                leaves.append(jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding))

        saved = np.asarray(got["fingerprint"]).tolist()
        saved_by_name = dict(zip(sorted(record["leaves"]), saved, strict=True))
        now = np.asarray(fingerprints(leaves)).tolist()
        wrong = []
        for (name, x), leaf, mark in zip(want.items(), leaves, now, strict=True):
            if mark != saved_by_name[name] or _describe(leaf) != _describe(x):
                wrong.append(name)
        if not processes.agree(not wrong):
            raise DamagedCheckpoint(
                f"{len(wrong)} leaves differ from their fingerprints, first {wrong[:1]}"
            )
        return leaves, record["meta"]

    def _read(self, step: int, want: dict, number_of_leaves: int) -> Any:
        """Read the arrays of a step from Orbax, not verified."""
        tree = {
            "leaves": {name: x for name, x in want.items() if x.size},
            "fingerprint": np.zeros((number_of_leaves, 2), np.uint32),
        }
        args = ocp.args.PyTreeRestore(
            tree,
            restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
            partial_restore=True,
        )
        result = problem = None
        try:
            # The handler, not the Checkpointer: that one ends in a barrier which a process that
            # failed never reaches.
            result = self._orbax.handler.restore(
                self.directory / str(step), args=ocp.args.Composite(state=args)
            ).state
        except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
            raise  # the machine's fault, not the checkpoint's
        except Exception as error:
            # The whole message is pages of TensorStore's settings.
            problem = f"{type(error).__name__}: {str(error)[:200]}"
        if not processes.agree(problem is None):
            raise DamagedCheckpoint(problem or "another process could not read it")
        return result

    def _record(self, step: int) -> dict:
        """Return the record of a step, verified. Every process reads the one small file."""
        try:
            stored = json.loads(self._record_path(step).read_text())
            record = stored["record"]
            whole = stored["sha256"] == _digest(record) and record["step"] == step
        except PermissionError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(
                f"its record cannot be read ({type(error).__name__}: {error})"
            ) from error
        if not whole:
            raise DamagedCheckpoint("its record does not match its checksum")
        return record

    def _record_path(self, step: int) -> epath.Path:
        return self.directory / str(step) / "meta" / "metadata"

    def _require_same_model(self, step: int, have: dict, want: dict, partial: bool) -> None:
        where = f"{self.directory / str(step)} is a checkpoint of another model"
        for name, x in want.items():
            if have.get(name) != _describe(x):
                raise UserError(
                    f"{where}: {name} is {have.get(name, 'not in it')}, "
                    f"the configuration makes {_describe(x)}"
                )
        if not partial and (rest := sorted(set(have) - set(want))):
            raise UserError(
                f"{where}: it has {rest[0]} and {len(rest) - 1} more leaves "
                "that the configuration lacks"
            )

    def _put_aside(self, step: int, problem: str, mark: str = "bad") -> None:
        self.quarantined.append((step, problem))
        if processes.is_writer():
            source, target = self.directory / str(step), self.directory / f"{step}.{mark}"
            while target.exists():
                target = target.with_name(target.name + "_")
            message = "checkpoint %s is put aside as %s: %s"
            log.warning(message, source, target.name, problem)
            try:
                source.rename(target)
            except OSError as error:
                # In a directory that may only be read the older step serves all the same.
                log.warning("checkpoint %s could not be renamed: %s", source, error)
        processes.barrier("ramp:put-aside")

"""A run directory: what lies where in it, who made it, and which configuration may go on in it."""

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ramp import config, schema
from ramp.config import Config
from ramp.errors import UserError
from ramp.files import (
    list_kept,
    quote_path,
    read_copy,
    read_kept,
    repair_kept,
    warn_once,
    write_kept,
)
from ramp.stages import STAGES, find_stage


@dataclass(frozen=True)
class Request:
    """What `--from` and its companions ask for."""

    parent: Path
    step: int | None = None
    """None: the newest step to go on from, or the best one for its weights"""
    stage: str = ""
    """of the checkpoint; empty: the stage that runs first, or the one that it needs"""
    weights_only: bool = False
    """begin at step 0 with a new optimizer, in the same stage too"""


def parse_request(words: str, stage: str = "", weights_only: bool = False) -> Request:
    """Read RUN[@STEP]. Raises `UserError` for a step that is no number."""
    path, at, number = words.rpartition("@")
    # An @ may be part of a folder's name.
    if not at or Path(words).is_dir():
        return Request(Path(words), None, stage, weights_only)
    if not number.isdecimal():
        raise UserError(f"--from {words}: after the @ comes a step, such as {path}@40")
    return Request(Path(path), int(number), stage, weights_only)


@dataclass(frozen=True)
class Origin:
    """The checkpoint of another run that a run began from."""

    run: str
    """absolute path; the run may be gone by now"""
    stage: str
    step: int
    whole_state: bool
    """the optimizer and the position in the data too, not only the weights"""

    def to_json(self) -> str:
        """What origin.json holds."""
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True)
class RunDir:
    """The files of one run."""

    path: Path

    def __post_init__(self):
        for path in (self.path, *self.path.parents):
            if path.is_file():
                raise UserError(f"{path} is a file, and a run is a directory; name another one")

    @property
    def data(self) -> Path:
        """Tokens and the tokenizer."""
        return self.path / "data"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer of all stages."""
        return self.data / "tokenizer.json"

    def tokens(self, split: str) -> Path:
        """The manifest of the tokens of the split "train" or "val"."""
        return self.data / f"{split}.json"

    def checkpoints(self, stage: str) -> Path:
        """The checkpoints of a stage, one folder a step."""
        return self.path / "checkpoints" / stage

    @property
    def default_stage(self) -> str:
        """The stage that is sampled from unless another is named.

        Fine-tuning, but pretraining of an imported model that has not been fine-tuned here.
        """
        # An imported model is stored as pretrained; usually it can already chat.
        imported = "imported" in self.report().get("pretrain", {})
        return "pretrain" if imported and not self.checkpoints("finetune").exists() else "finetune"

    def find_weights(self, stage: str | None) -> str:
        """The folder of checkpoints that `--stage` means; None: that of the default stage.

        Of synthesize it is that of the last generation that was good. Raises `UserError` where it
        has not finished.
        """
        if stage is None:
            return self.default_stage
        if stage.startswith("synthesize-") and not self.checkpoints(stage).exists():
            made = sorted(p.name for p in self.checkpoints("").glob("synthesize-[0-9]*"))
            raise UserError(f"{self.path} has no {stage}; it has {', '.join(made) or 'none'}")
        if stage != "synthesize":
            return stage
        generation = self.report().get(stage, {}).get("generation")
        if generation is None:
            raise UserError(
                f"synthesize has not finished in {self.path}; run "
                f"`ramp synthesize {quote_path(self.path)}`, or name a generation that has, "
                "such as --stage synthesize-1"
            )
        # Generation 0 is the model that the first one began from.
        start = self.load_config().synthesize.start_stage
        return f"synthesize-{generation}" if generation else start

    @property
    def origin_file(self) -> Path:
        """What this run began from; missing where it began from nothing."""
        return self.path / "origin.json"

    @property
    def origin_weights(self) -> Path:
        """Checkpoint of another run whose weights this one began from."""
        return self.checkpoints("origin")

    @property
    def base(self) -> Path:
        """The run that holds the model which `base` of the configuration names."""
        return self.path / "base"

    def origin(self) -> Origin | None:
        """What this run began from; None: from nothing."""
        if not self.origin_file.exists():
            return None
        try:
            return Origin(**json.loads(read_kept(self.origin_file)))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self.origin_file} cannot be read ({error}); it only says where the run began: "
                "delete it"
            ) from None

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.toml"

    def report(self) -> dict[str, Any]:
        """What the stages have reported so far, by stage; empty before the first has."""
        file = self.path / "report.json"
        try:
            return {**json.loads(read_kept(file))}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{file} is damaged ({error}); `rm {quote_path(file)}`, and the next "
                f"`ramp run {quote_path(self.path)}` reports again what is trained already"
            ) from None

    def is_done(self, stage: str) -> bool:
        """Whether a stage has finished here."""
        return bool(self.report().get(stage, {}).get("done"))

    def has_begun(self, stage: str) -> bool:
        """Whether a stage has left anything here."""
        return stage in self.report() or self.checkpoints(stage).exists()

    def find_base(self, stage: str) -> int | None:
        """The step of a stage whose whole state another run has brought here; None: none."""
        origin = self.origin()
        return origin.step if origin and origin.whole_state and origin.stage == stage else None

    def redo(self, checkpoints: str) -> str:
        """The command, in backquotes, that makes a stage or sub-stage from the beginning."""
        origin = self.origin()
        if origin and checkpoints == self.origin_weights.name:
            source = quote_path(f"{origin.run}@{origin.step}")
            stage = f"--from-stage {origin.stage}"
            return f"`ramp run --from {source} {stage} --from-weights --run ANOTHER`"
        stage = find_stage(checkpoints)
        if self.report().get(stage, {}).get("imported"):
            return "`ramp import MODEL --run ANOTHER`"
        return f"`ramp {stage} {quote_path(self.path)} --force`"

    @property
    def begun_anew(self) -> Path:
        """Names the stages that `--force` has begun and not finished yet."""
        return self.path / ".anew"

    def put_aside(self, stages: Sequence[str], more: Sequence[str] = ()) -> None:
        """Move what stages have made, so that they begin anew, and say where it is.

        more: patterns of what else goes with them.

        Their checkpoints among it, so that those of later stages stay as they are. Raises UserError
        for an imported model, which no stage can make again.
        """
        for stage in stages:
            if self.report().get(stage, {}).get("imported"):
                raise UserError(
                    f"{stage} of {self.path} was imported, and --force cannot make it again; "
                    "name other stages, or import into another directory"
                )
        patterns = [pattern for stage in stages for pattern in STAGES[stage].list_outputs()]
        patterns += more
        found = [path for pattern in patterns for path in self.path.glob(pattern)]
        if not found:
            return
        aside = self.path / "replaced"
        aside /= str(1 + sum(1 for _ in aside.glob("*")))
        for path in found:
            target = aside / path.relative_to(self.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        print(f"{', '.join(stages)}: from the beginning; what was there is in {aside}")

    def keep_chosen(self, c: Config) -> Config:
        """The configuration with what this run was begun with wherever it leaves the choice.

        So a run goes on as it was begun on a machine for which a rule would choose differently.
        """
        written = self.written_config()
        return config.keep_chosen(c, written) if written else c

    def written_config(self) -> Config | None:
        """The configuration that ramp wrote last, whatever has become of config.toml since.

        None: none was written.
        """
        copy = read_copy(self.config)
        if copy is None and not self.config.exists():
            return None
        # Where the copy is damaged, or a run is older than copies, there is only the file.
        return config.parse(copy or self.config.read_bytes(), str(self.config), is_of_run=True)

    def load_config(
        self, flags: Sequence[str] = (), keys: Sequence[schema.Key] | None = None
    ) -> Config:
        """config.toml with flags over it, checked but not resolved.

        People may edit it, and disks may damage it: a change since ramp wrote it is said, and one
        that a stage depends on which has begun is a `UserError`, as is a file that cannot be read.
        """
        written = self.written_config()
        if written is None:
            raise UserError(
                f"{self.path} is not a run directory (it has no config.toml); "
                "make one with `ramp run cpu`"
            )
        if not self.config.exists():
            warn_once(f"{self.config} is gone; what ramp wrote there last is used")
            return config.load_flags(flags, keys, written, str(self.config))
        take_back = f"`rm {quote_path(self.config)}` brings back what ramp wrote last"
        try:
            edited = config.load(self.config, is_of_run=True)
        except UserError as error:
            raise UserError(f"{error}; mend it, or {take_back}") from None
        if found := self.find_conflict(written, edited):
            stage, changes = found
            raise UserError(
                f"{self.config} was changed since ramp wrote it ({'; '.join(changes[:4])}), and "
                f"{stage} of this run has begun with what it was: {take_back}; for other values "
                f"then {self._offer_another(changes)}"
            )
        before, after = (
            {key.name: key.default for key in schema.list_keys(c)} for c in (written, edited)
        )
        changes = [f"{k} {before[k]!r} -> {after[k]!r}" for k in before if before[k] != after[k]]
        if changes:
            warn_once(
                f"{self.config} was changed since ramp wrote it ({'; '.join(changes[:4])}), "
                f"and is used as it stands; {take_back}"
            )
        return config.load(self.config, flags, keys, is_of_run=True)

    def _offer_another(self, changes: Sequence[str]) -> str:
        """What makes a run with these changes, as `list_changes` has them."""
        # Weights have a shape, and the tokens that they know.
        fixed = ("model.", "text.vocab_size ", "text.tokenizer ")
        has_weights = any(self.checkpoints(name).exists() for name in STAGES)
        if not has_weights or any(line.startswith(fixed) for line in changes):
            return "name another --run"
        return f"begin a new run from it with flags and --from {quote_path(self.path)} --run NEW"

    def find_conflict(self, old: Config, new: Config) -> tuple[str, list[str]] | None:
        """The first stage that has begun here and depends on what differs, and the changes."""
        for stage in STAGES.values():
            # What has not begun may still change.
            changes = list_changes(old, new, *stage.identity)
            if changes and self.has_begun(stage.name):
                return stage.name, changes
        return None

    def check_or_create(self, c: Config, is_done: bool = False) -> None:
        """Write config.toml and provenance.json.

        is_done: there is nothing to do, so nothing is written. Raises `UserError` for a directory
        that another configuration made.
        """
        written = self.written_config()
        # What the saved one leaves to a rule, or to the machine, is chosen now.
        found = self.find_conflict(config.keep_chosen(written, c), c) if written else None
        if found:
            raise UserError(
                # The first few say enough.
                f"{self.path} was begun with another configuration ({'; '.join(found[1][:4])}); "
                f"{self._offer_another(found[1])}, or leave it"
            )
        if is_done:
            return
        # It marks the directory as a run, so it comes before anything that a kill could leave.
        self.path.mkdir(parents=True, exist_ok=True)
        write_kept(self.config, config.to_toml(c))
        self.data.mkdir(exist_ok=True)
        file, here = self.path / "provenance.json", describe_provenance()
        # A file that somebody deleted or damaged tells nothing; it is written again.
        with suppress(FileNotFoundError, ValueError, KeyError):
            _say_other_compilers(json.loads(read_kept(file))["versions"], here.versions)
        write_kept(file, json.dumps(asdict(here), indent=2) + "\n")

    def repair(self) -> None:
        """Write damaged files again from their copies, with a warning. Call it under the lock."""
        for file in list_kept(self.path):
            # People may edit the configuration.
            if file == self.config:
                continue
            # Two damages in one file: whoever needs it says what to do.
            with suppress(ValueError):
                repair_kept(file)

    @contextmanager
    def lock(self) -> Generator[None]:
        """Keep other processes from writing this run; `UserError` where one does.

        Also where the directory holds other things than a run: in those nothing is made. The lock
        goes with the process, however that ends.
        """
        if self.written_config() is None and not all(map(is_leftover, self.path.glob("*"))):
            raise UserError(
                f"{self.path} is not empty and not a run; name another directory with --run"
            )
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / ".lock"
        is_new = not lock.exists()
        # Not "w", which would change the time of the file.
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{self.path} is in use by another ramp; wait for it, or name another --run"
                ) from None
            # Another start that was refused has removed the file between the two.
            if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                raise UserError(f"{self.path} was in use by another ramp; start again")
            try:
                yield
            finally:
                # A start that was refused leaves nothing where nothing was.
                with suppress(OSError):
                    if is_new and [*self.path.iterdir()] == [lock]:
                        lock.unlink()
                        for path in made:
                            path.rmdir()


def fit_vocabulary(c: Config) -> Config:
    """The configuration with the `text.vocab_size` that its tokenizer's file has, if it names one.

    Ramp's special tokens are counted. A file that is gone is the business of `prepare` alone.
    """
    path = Path(c.text.tokenizer)
    if c.text.tokenizer in config.BUILT_IN_TOKENIZERS or not path.exists():
        return c
    # Slow to import, and few bring a tokenizer.
    from ramp.text.huggingface import open_tokenizer

    text = replace(c.text, vocab_size=open_tokenizer(path).vocab_size)
    return replace(c, text=text)


def is_leftover(path: Path) -> bool:
    """Whether a start that was killed before it wrote config.toml may have left this."""
    run = RunDir(path.parent)
    has_origin = _has_own_origin(run)
    # What --from makes behind origin.json, and a file of that name may be anybody's.
    if path == run.origin_file or path.name in ("checkpoints", *_name_writes("report.json")):
        return has_origin
    if path == run.data:
        return has_origin or (path.is_dir() and not any(path.iterdir()))
    # A run that begins from another model is filled before config.toml is written.
    if path == run.base:
        return has_origin or (path / ".lock").exists()
    return path.name in (".lock", *_name_writes("config.toml"), *_name_writes("origin.json"))


def _name_writes(name: str) -> list[str]:
    """What `write_kept` makes of a file: itself, its copy, and both half-written."""
    return [name, f"{name}.tmp", f".{name}.copy", f".{name}.copy.tmp"]


def _has_own_origin(run: RunDir) -> bool:
    """Whether `--from` has begun to fill a directory: it writes origin.json first, and a copy."""
    with suppress(UserError):
        return read_copy(run.origin_file) is not None and run.origin() is not None
    return False


def list_changes(old: Config, new: Config, *sections: str) -> list[str]:
    """Keys of sections that results depend on and that differ, as `key old -> new`."""
    changes = []
    for section in sections:
        # Keys that only say how to compute are no part of an identity.
        before = config.identity(getattr(old, section), f"{section}.")
        after = config.identity(getattr(new, section), f"{section}.")
        changes += [f"{k} {before[k]!r} -> {after[k]!r}" for k in before if before[k] != after[k]]
    return changes


def open_run(path: Path) -> tuple[RunDir, Config]:
    """A run that exists, and its configuration."""
    run = RunDir(path)
    return run, config.resolve(run.load_config())


# The packages whose version can change a result.
PACKAGES = (
    "ramp-lm",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "libtpu",
    "tokenizers",
)
COMPILERS = ("jax", "jaxlib", "libtpu")  # of these, the versions that sums depend on


@dataclass(frozen=True)
class Provenance:
    """What made a result."""

    date: str
    command: str
    commit: str
    python: str
    versions: dict[str, str]
    devices: str
    processor: str
    processes: int


def _say_other_compilers(before: dict[str, str], here: dict[str, str]) -> None:
    """Say which compilers are not those that last worked on a run: sums may round otherwise."""
    # A record of an older ramp names fewer packages.
    other = [n for n in COMPILERS if n in before and before[n] != here[n]]
    if other:
        was, now = (" and ".join(f"{n} {v[n]}" for n in other) for v in (before, here))
        print(
            f"this run last went on {was}, here it is {now}: the batches stay the same, results "
            "may differ in the last digits; install the former to go on exactly"
        )


def describe_provenance() -> Provenance:
    """Versions, commit, device and command of this process."""
    import jax

    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return Provenance(
        date=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        command=" ".join(["ramp", *sys.argv[1:]]),
        commit=_commit(),
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
        devices=f"{devices} ({jax.default_backend()})",
        processor=f"{_processor()}, {os.cpu_count()} cores",
        processes=jax.process_count(),
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    # `platform.processor` knows no model name on Linux.
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _commit() -> str:
    """The commit of the source this runs from, with '+' if it was changed; '' if unknown."""
    # Not the working directory, which may be another checkout.
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", here, *words], capture_output=True, text=True, timeout=10
        ).stdout.strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
        return head + ("+" if head and git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):  # no git, or one that hangs
        return ""

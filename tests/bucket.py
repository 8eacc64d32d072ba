"""A bucket as gcsfuse mounts it, for a program under test: the workshop of test_bucket.py.

    python tests/bucket.py BUCKET STAGING run CONFIG --run BUCKET/run

What the program writes below BUCKET lies in STAGING until the file is closed or synced, and is gone
with the machine. A rename is a copy and a removal. Arrays of checkpoints are written by libraries
that close their files, and pass by this. STAGING shows what was written, BUCKET what is kept.
"""

import builtins
import io
import itertools
import os
import shutil
import sys
from pathlib import Path

LOCKS = {".lock"}  # gcsfuse keeps locks on the machine


class StagedFile:
    """An open file whose content is published when it is closed or synced."""

    def __init__(self, bucket: "Bucket", path: Path, mode: str, *args, **options):
        self.bucket = bucket
        self.path = path
        self.staged = bucket.staging / f"{next(bucket.count):06}-{path.name}"
        if "w" not in mode and path.exists():
            shutil.copyfile(path, self.staged)
        self.file = bucket.open(self.staged, mode, *args, **options)
        bucket.files[self.file.fileno()] = self

    def publish(self) -> None:
        self.file.flush()
        # Whole or not at all, as an object is.
        temporary = self.bucket.staging / f"{next(self.bucket.count):06}-publishing"
        shutil.copyfile(self.staged, temporary)
        self.bucket.replace(temporary, self.path)

    def close(self) -> None:
        if not self.file.closed:
            self.publish()
            self.bucket.files.pop(self.file.fileno(), None)
            self.file.close()

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __iter__(self):
        return iter(self.file)

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Bucket:
    """Takes the place of what this process opens, syncs and renames below a folder."""

    def __init__(self, root: Path, staging: Path):
        self.root, self.staging = root.resolve(), staging
        self.count = itertools.count()
        self.files: dict[int, StagedFile] = {}
        self.open, self.fsync, self.replace = io.open, os.fsync, os.replace
        self.rename = os.rename

    def holds(self, path: object) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        whole = Path(path).absolute()
        return self.root in whole.parents and whole.name not in LOCKS

    def open_file(self, path, mode="r", *args, **options):
        if self.holds(path) and set(mode) & set("wax+"):
            return StagedFile(self, Path(path), mode, *args, **options)
        return self.open(path, mode, *args, **options)

    def sync(self, descriptor: int) -> None:
        if descriptor in self.files:
            self.files[descriptor].publish()
        self.fsync(descriptor)

    def move(self, source, target, **options) -> None:
        if not self.holds(source) or Path(source).is_dir():
            self.rename(source, target, **options)
            return
        copy = self.staging / f"{next(self.count):06}-moving"
        shutil.copyfile(source, copy)
        self.replace(copy, target)
        Path(source).unlink()

    def install(self) -> None:
        builtins.open = io.open = self.open_file
        os.fsync = self.sync
        os.replace = os.rename = self.move


if __name__ == "__main__":
    where, staged, *words = sys.argv[1:]
    Bucket(Path(where), Path(staged)).install()
    from ramp import cli

    sys.exit(cli.main(words))

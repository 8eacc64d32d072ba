"""Who may ask: keys from a file, names that the server answers to, pages that may use it."""

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.types import Scope

from ramp.errors import UserError
from ramp.files import quote_path
from ramp.serve.fields import ApiError

KEY_VARIABLE = "RAMP_API_KEY"
MIN_KEY_LENGTH = 16  # characters; a shorter key can be guessed
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
# Without a key: the page asks for one, a load balancer has none.
OPEN_PATHS = r"/|/health|/page/.*"


@dataclass(frozen=True)
class Access:
    """What a request needs to be answered."""

    keys: tuple[str, ...] = ()  # any one of them; none: nobody needs a key
    hosts: tuple[str, ...] = LOCAL_HOSTS  # names in the Host header; none: any
    origins: tuple[str, ...] = ()  # of other sites whose pages may use the API

    def find_key(self, given: str) -> int | None:
        """The number of a key, None for a wrong one, in a time that does not depend on it."""
        digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
        found = None
        # All are compared, the right one or not, and digests have one length.
        for number, key in enumerate(self.keys):
            if hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest()):
                found = number
        return found

    def check(self, scope: Scope) -> int | None:
        """The number of the key that a request came with; ApiError for one that may not ask."""
        headers = dict(scope["headers"])
        host = re.sub(r":\d+$", "", headers.get(b"host", b"").decode("latin-1")).lower()
        # A page elsewhere can make its own name point to this machine (DNS rebinding).
        if self.hosts and host not in self.hosts:
            text = "this server does not answer to that name; --allowed-host adds one"
            raise ApiError(403, text, code="wrong_host")
        if not self.keys or re.fullmatch(OPEN_PATHS, scope["path"]):
            return None
        given = headers.get(b"authorization", b"").decode("latin-1")
        scheme, _, key = given.partition(" ")
        number = self.find_key(key.strip()) if scheme.lower() == "bearer" else None
        if number is None:
            text = "wrong or missing key; send it as 'Authorization: Bearer KEY'"
            raise ApiError(401, text, code="invalid_api_key")
        return number


def read_keys(path: Path | None) -> tuple[str, ...]:
    """The keys of a file, one a line, or the one in the environment; UserError for a bad one."""
    if path is None:
        key = os.environ.get(KEY_VARIABLE, "")
        return check_keys([key] if key else [], KEY_VARIABLE)
    # From a file, since every user of a machine can read its command lines.
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--key {path} cannot be read: {error}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"--key {path} is open to other users: run `chmod 600 {quote_path(path)}`")
    # Lines that begin with # are remarks: whose key it is, say.
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise UserError(f"--key {path} is empty; `openssl rand -hex 16` makes a key")
    return check_keys(keys, f"--key {path}")


def check_keys(keys: Sequence[str], where: str) -> tuple[str, ...]:
    """The same keys; UserError for one that can be guessed, or that no client can send."""
    for number, key in enumerate(keys, 1):
        if len(key) < MIN_KEY_LENGTH:
            raise UserError(
                f"{where}: key {number} has {len(key)} characters; {MIN_KEY_LENGTH} are the "
                "least; `openssl rand -hex 16` makes a good one"
            )
        if not re.fullmatch(r"[!-~]+", key):
            raise UserError(
                f"{where}: key {number} holds a space or a character that is not ASCII, "
                "which a header cannot carry; `openssl rand -hex 16` makes a good one"
            )
    return tuple(keys)

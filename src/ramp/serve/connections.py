"""Connections that cost no more than they should, whoever opens them and however slowly.

A connection waits for its client until a request has arrived whole. That may take `HEAD_TIMEOUT`
for the headers (a byte now and then does not make it longer), `read_body` bounds the rest, and at
most `MAX_PENDING` connections may be at it: the one that has waited longest is closed when another
comes. So thousands of silent sockets cost each other their place and nobody else.
"""

import asyncio
import resource
from collections import Counter
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT = 10.0  # seconds from the connection, or from the last answer, to whole headers
MAX_PENDING = 512  # connections that wait for their clients
MAX_FILES = 16_384  # open files that are asked for, where the system grants them


class Connections:
    """What all connections of a server share: how many wait, and how many each address has."""

    def __init__(self, max_per_address: int = 0):
        self.max_per_address = max_per_address  # 0: any number
        self.pending: dict[Connection, None] = {}  # the one that has waited longest is first
        self.per_address: Counter[str] = Counter()
        self.num_refused = 0
        # Every connection is an open file, and many systems grant 1,024 unasked.
        limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_FILES if most == resource.RLIM_INFINITY else min(MAX_FILES, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, wanted), most))

    def protocol(self, config: Config, *args: Any, **more: Any) -> "Connection":
        """What uvicorn makes for each connection."""
        return Connection(self, config, *args, **more)

    def wait(self, connection: "Connection") -> None:
        """A connection waits for its client; the oldest of too many is closed."""
        self.pending[connection] = None
        if len(self.pending) > MAX_PENDING:
            self.refuse(next(iter(self.pending)))

    def refuse(self, connection: "Connection") -> None:
        """Close a connection without a word: its client may not be reading either."""
        self.num_refused += 1
        self.pending.pop(connection, None)
        connection.transport.abort()


class Connection(H11Protocol):
    """uvicorn's connection, with a deadline for the headers of every request."""

    def __init__(self, shared: Connections, config: Config, *args: Any, **more: Any):
        super().__init__(config, *args, **more)
        self.shared = shared
        self.deadline: asyncio.TimerHandle | None = None
        self.address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Count the connection, and begin to wait for its first request."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self.shared.per_address[self.address] += 1
        most = self.shared.max_per_address
        if most and self.shared.per_address[self.address] > most:
            self.shared.refuse(self)
        else:
            self.await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.end_waiting()
        self.shared.per_address[self.address] -= 1
        # Or every address that ever came would be remembered.
        if not self.shared.per_address[self.address]:
            del self.shared.per_address[self.address]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came; the deadline ends with the headers, the waiting with the body."""
        super().data_received(data)
        # A response that is complete is that to an earlier request.
        if self.cycle is None or self.cycle.response_complete:
            return
        if self.deadline:
            self.deadline.cancel()
        if not self.cycle.more_body:
            self.end_waiting()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.await_request()
        # Last, since a request that was sent ahead is begun here.
        super().on_response_complete()
        if self.cycle is not None and not self.cycle.response_complete:
            self.end_waiting()

    def await_request(self) -> None:
        """Wait for whole headers, until the deadline."""
        self.end_waiting()
        if self.transport.is_closing():
            return
        self.deadline = self.loop.call_later(HEAD_TIMEOUT, self.shared.refuse, self)
        self.shared.wait(self)

    def end_waiting(self) -> None:
        """The client has done its part, or has left."""
        if self.deadline:
            self.deadline.cancel()
            self.deadline = None
        self.shared.pending.pop(self, None)

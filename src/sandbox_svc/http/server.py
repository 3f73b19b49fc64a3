"""Serves HTTP/1.1: hypercorn's protocol on connections of our own, on which no peer can keep us waiting.

`hypercorn.asyncio.serve` (0.18) leaves open what a service for strangers must not: an answer that is never read is
awaited for ever; a request that is answered before its body was read, and whose body comes in many small chunks, blocks
its connection for ever; the end of a caller's sending (a half-close) is taken for the end of the caller; and on Python
3.12+ its shutdown waits for every connection without bound. So hypercorn parses, keeps the order of messages and builds
the ASGI scopes; sockets and shutdown are owned here, what happens on a connection by `http_connection`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Final

from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config

from sandbox_svc.http.connection import READ_BYTES, Connection, Deadlines
from sandbox_svc.http.listener import BACKLOG, empty, open_listener

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from sandbox_svc.http.connection import App

logger = logging.getLogger("sandbox_svc.http")

HEAD_BYTES: Final = 32 * 1024
UNSENT_BYTES: Final = 128 * 1024 * 1024
"""Answers of all connections that wait for their callers to take them; beyond, who takes longest loses its answer."""
SHED_LOG_SECONDS: Final = 60.0
"""Between two lines of the log that say so."""


class HttpServer:
    """Listens, and ends in order: `stop_keeping_alive`, `stop_listening`, `finish`, each within a time of its own."""

    def __init__(
        self,
        app: App,
        *,
        deadlines: Deadlines | None = None,
        max_connections: int,
        max_unsent_bytes: int = UNSENT_BYTES,
    ) -> None:
        self.app = app
        self.deadlines = deadlines if deadlines is not None else Deadlines()
        self.config = Config()
        self.config.include_server_header = False
        self.config.accesslog = self.config.errorlog = None
        self.config.h11_max_incomplete_size = HEAD_BYTES
        self.config.keep_alive_max_requests = 1_000_000
        self.context = WorkerContext(None)
        self._max_connections = max_connections
        self._max_unsent_bytes = max_unsent_bytes
        self._slow: dict[Connection, None] = {}
        """Connections with much to be taken by their peers, the one that waits for longest first."""
        self._connections: set[Connection] = set()
        self._shed = {"refused": 0, "cut": 0}
        self._shed_told_at = -math.inf
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._listener: socket.socket | None = None

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Start accepting and return the address in use. Raises `OSError`."""
        listener = open_listener(host, port)
        try:
            self._server = await asyncio.start_server(self._accept, sock=listener, backlog=BACKLOG, limit=READ_BYTES)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        address = listener.getsockname()
        return address[0], address[1]

    async def stop_keeping_alive(self) -> None:
        """From now on every answer is the last of its connection, and says so: callers go elsewhere by themselves."""
        await self.context.terminated.set()

    async def stop_listening(self) -> None:
        """Take no new connections; those without a request under way, or about to come, end now.

        Takes at most `listener.HANDSHAKE_SECONDS` and `listener.EMPTY_SECONDS`, in which requests are still answered.
        """
        await self.stop_keeping_alive()
        server, self._server = self._server, None
        if server is not None and self._listener is not None:
            try:
                await empty(self._listener)
            finally:
                server.close()
        for connection in list(self._connections):
            connection.retire()

    async def finish(self, seconds: float) -> None:
        """Wait until all answers are sent, at most `seconds`, then cut what is left. Comes after `stop_listening`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self._tasks and (left := end - loop.time()) > 0:
            await asyncio.wait(self._tasks, timeout=left)
        for connection in list(self._connections):
            connection.abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def shed(self) -> Mapping[str, int]:
        """Connections given up for lack of room, since the start: `refused` when new, since on every other one an
        answer was being made, or `cut` while it was slow to send its request.
        """
        return self._shed

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        is_full = len(self._connections) >= self._max_connections and not self._make_room()
        if is_full or writer.get_extra_info("peername") is None:  # None: reset before it was accepted
            writer.transport.abort()
            return
        connection = Connection(self, reader, writer)
        self._connections.add(connection)
        self._tasks.add(task)
        try:
            await connection.run()
        except OSError as error:
            logger.debug("a connection failed: %s", error)
        except Exception:
            logger.exception("a connection failed")
        finally:
            connection.abort()
            self._connections.discard(connection)
            self._tasks.discard(task)

    def begin_slow(self, connection: Connection) -> None:
        """Much was written to a connection; make sure that all of them together do not hold too much."""
        self._slow[connection] = None
        while len(self._slow) > 1 and sum(one.unsent_bytes for one in self._slow) > self._max_unsent_bytes:
            oldest = next(iter(self._slow))
            del self._slow[oldest]
            logger.warning("gave up an answer: too many callers are slow to take theirs")
            oldest.abort()

    def end_slow(self, connection: Connection) -> None:
        self._slow.pop(connection, None)

    def _make_room(self) -> bool:
        """Close the connection whose peer has been silent for longest, idle ones first.

        So neither a flood of connections that send nothing, nor one of requests that never end, keeps anybody out.
        """
        silent = [connection for connection in self._connections if connection.waits_for_peer]
        if not silent:
            self._tell_shed("refused")
            return False
        longest = min(silent, key=lambda connection: (not connection.is_idle, connection.heard_at))
        if not longest.is_idle:
            self._tell_shed("cut")
        longest.abort()
        self._connections.discard(longest)
        return True

    def _tell_shed(self, how: str) -> None:
        self._shed[how] += 1
        now = asyncio.get_running_loop().time()
        if now - self._shed_told_at >= SHED_LOG_SECONDS:
            self._shed_told_at = now
            logger.warning(
                "all %d connections are in use; so far %d new ones were refused and %d cut that were slow to send",
                self._max_connections,
                self._shed["refused"],
                self._shed["cut"],
            )

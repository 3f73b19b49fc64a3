"""A TCP port that leads to a Redis far away: answers take a given time more, and connections may be reset."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from tests.redis_server import RedisServer


class SlowRelay:
    """Passes bytes on to a server at once, and its answers back after `delay_seconds`, which may be changed any time."""

    def __init__(self, server: RedisServer) -> None:
        self._path = server.socket
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.delay_seconds = 0.0
        self.port = 0

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self._path)
        except OSError:
            writer.close()  # nobody is there
            return

        def answer(data: bytes) -> None:
            if not writer.is_closing():
                writer.write(data)

        async def back() -> None:
            with contextlib.suppress(OSError):
                while data := await far_reader.read(65536):
                    loop.call_later(self.delay_seconds, answer, data)
            writer.close()

        backwards = asyncio.create_task(back())
        self._writers.add(writer)
        try:
            while data := await reader.read(65536):
                far_writer.write(data)
        except OSError:
            pass  # the client gave up
        finally:
            self._writers.discard(writer)
            backwards.cancel()
            far_writer.close()
            writer.close()

    def reset(self) -> None:
        """Break every connection with a reset, as a proxy that is started again does. From any thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._reset)

    def _reset(self) -> None:
        for writer in self._writers:
            peer: socket.socket = writer.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()


@contextmanager
def relaying(server: RedisServer) -> Iterator[SlowRelay]:
    """A relay in a thread of its own, for tests that have no event loop."""
    relay = SlowRelay(server)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="relay")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(relay.__aenter__(), loop).result(10)
        yield relay
    finally:
        asyncio.run_coroutine_threadsafe(_end(relay), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _end(relay: SlowRelay) -> None:
    await relay.__aexit__(None, None, None)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

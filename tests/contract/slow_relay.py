"""A TCP port that leads to a Redis far away: every answer takes a given time more."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from tests.redis_server import RedisServer


class SlowRelay:
    """Passes bytes on to a server at once, and its answers back after `delay_seconds`, which may be changed any time."""

    def __init__(self, server: RedisServer) -> None:
        self._path = server.socket
        self._server: asyncio.Server | None = None
        self.delay_seconds = 0.0
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        far_reader, far_writer = await asyncio.open_unix_connection(self._path)

        def answer(data: bytes) -> None:
            if not writer.is_closing():
                writer.write(data)

        async def back() -> None:
            while data := await far_reader.read(65536):
                loop.call_later(self.delay_seconds, answer, data)

        backwards = asyncio.create_task(back())
        try:
            while data := await reader.read(65536):
                far_writer.write(data)
        except OSError:
            pass  # the client gave up
        finally:
            backwards.cancel()
            far_writer.close()
            writer.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()

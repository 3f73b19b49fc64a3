"""A redis-server of a test's own: started on a socket in its own folder, and broken in every way that we must stand."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from sandbox_svc.notation import Secret


class RedisServer:
    """Runs in a folder of its own, on a Unix socket and, if asked for, on a port of 127.0.0.1."""

    def __init__(self, folder: Path, *arguments: str, with_port: bool = False) -> None:
        self.folder = folder
        # Paths of sockets are short by nature, those of pytest's folders are not.
        self.socket = folder / "s"
        self.port = free_port() if with_port else 0
        self.arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("redis-server") is not None

    @property
    def url(self) -> Secret:
        return Secret(f"redis://127.0.0.1:{self.port}/0" if self.port else f"unix://{self.socket}?db=0")

    def start(self, *arguments: str) -> None:
        """Start it and wait until it answers; data of an earlier start is gone."""
        # fmt: off
        self._process = subprocess.Popen(
            [
                "redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket),
                "--dir", str(self.folder), "--save", "", "--appendonly", "no", "--logfile", "redis.log",
                *(arguments or self.arguments),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # fmt: on
        deadline = time.monotonic() + 10
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(1)
                    client.connect(str(self.socket))
                    client.sendall(b"PING\r\n")
                    if client.recv(100):
                        return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "redis.log").read_text()) from None
                time.sleep(0.01)

    def command(self, *words: str) -> str:
        """Run one command with redis-cli and return what it prints."""
        done = subprocess.run(
            ["redis-cli", "-s", str(self.socket), *words], capture_output=True, check=True, timeout=10, text=True
        )
        return done.stdout.strip()

    def kill(self) -> None:
        """End it at once, as a crash does."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(10)

    def pause(self) -> None:
        """It keeps its connections, takes new ones and answers nobody."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class FakeServer:
    """Listens like a Redis and answers whatever comes with the same bytes, or not at all."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0
        self.received = b""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            while data := await reader.read(65536):
                self.received += data
                if self._answer is not None:
                    writer.write(self._answer)
                    await writer.drain()
        except OSError:
            return  # the client gave up, as it should
        finally:
            writer.close()

    def reset(self) -> None:
        """Break every connection as a proxy that forgot it does: with a reset and without an end."""
        for writer in self._writers:
            peer: socket.socket = writer.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._writers.clear()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

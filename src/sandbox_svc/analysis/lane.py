"""One worker process and those who wait for it: started when needed, ended when it takes too long."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec

from sandbox_svc.analysis import worker
from sandbox_svc.analysis.findings import Analysis
from sandbox_svc.analysis.worker import HEADER, MAX_FRAME, Job, Options, Reply

logger = logging.getLogger("sandbox_svc.analysis")

MAX_WAITING: Final = 32
_INHERITED: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME", "TMPDIR")
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Reply)


class LaneFailed(Exception):
    """The source got no answer, for no fault of its own; the message says why."""


class SourceTooHard(Exception):
    """The worker used up its processor time on this source."""


class Lane:
    """Analyses one source at a time in a worker process.

    `analyse` waits for its turn and for the answer, together at most `wall_seconds`. Cancelling it ends the worker if
    it was working for the caller; the next caller starts another.
    """

    def __init__(self, options: Options, *, wall_seconds: float) -> None:
        self._options = options
        self._wall_seconds = wall_seconds
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._process: asyncio.subprocess.Process | None = None
        self._ending: set[asyncio.Task[int]] = set()
        self._closed = False

    def __repr__(self) -> str:
        process = self._process
        state = "none" if process is None else "ended" if process.returncode is not None else str(process.pid)
        return f"<Lane worker={state} waiting={self._waiting}>"

    async def analyse(self, analyser_name: str, source: bytes) -> Analysis:
        """Return the worker's answer. Raises `SourceTooHard` and `LaneFailed`."""
        if self._waiting >= MAX_WAITING:
            raise LaneFailed("too many sources are waiting")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wall_seconds), self._turn:
                return await self._exchange(Job(analyser_name, source))
        except TimeoutError:
            raise LaneFailed("it took too long") from None
        finally:
            self._waiting -= 1

    async def aclose(self) -> None:
        """End the worker; whoever waits for it gets `LaneFailed`."""
        self._closed = True
        self._kill()
        await asyncio.gather(*self._ending)

    async def _exchange(self, job: Job) -> Analysis:
        payload = _ENCODER.encode(job)
        for _ in range(2):
            process = await self._running()
            try:
                reply = await self._ask(process, payload)
            except BaseException:
                # Cancelled or timed out in the middle: what the worker says next belongs to nobody.
                self._kill()
                raise
            if reply is not None:
                if reply.analysis is None:
                    logger.error("the analysis of a source failed: %s", reply.fault)
                    raise LaneFailed("the analysis failed")
                return reply.analysis
            status = await _reap(process)
            if self._process is process:
                self._process = None
            if status == -signal.SIGPROF:
                raise SourceTooHard
            if status != 0 or self._closed:
                logger.warning("an analysis worker ended with status %s", status)
                raise LaneFailed("the analysis failed")
            # It had been idle, or large, and left between two sources; another one answers.
        raise LaneFailed("the analysis failed")

    async def _ask(self, process: asyncio.subprocess.Process, payload: bytes) -> Reply | None:
        """Return the worker's reply, None when it ended without one."""
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        try:
            process.stdin.write(HEADER.pack(len(payload)) + payload)
            await process.stdin.drain()
            size = HEADER.unpack(await process.stdout.readexactly(HEADER.size))[0]
            if size > MAX_FRAME:
                raise LaneFailed("the analysis failed")
            return _DECODER.decode(await process.stdout.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError, RuntimeError):
            return None  # uvloop raises the last one where its end of the pipe is closed and its exit not yet known

    async def _running(self) -> asyncio.subprocess.Process:
        if self._closed:
            raise LaneFailed("the service is stopping")
        process = self._process
        if process is not None and process.returncode is None:
            return process
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(Path(worker.__file__)),
                msgspec.json.encode(self._options).decode(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # No secrets of the service in a process that reads what strangers sent.
                env={name: os.environ[name] for name in _INHERITED if name in os.environ},
            )
        except OSError as error:
            raise LaneFailed("no process could be started") from error
        return self._process

    def _kill(self) -> None:
        """End the worker. It is not waited for here, as the caller may be in the middle of being cancelled."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            ending = asyncio.create_task(_reap(process), name="reap analysis worker")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)


async def _reap(process: asyncio.subprocess.Process) -> int:
    """Wait for the end of a worker and return its status; its pipes are closed then, and their errors are taken."""
    status = await process.wait()
    if process.stdin is not None:
        with contextlib.suppress(ConnectionError):
            # It may have died in the middle of a source; asyncio would log that as an exception nobody asked for.
            await process.stdin.wait_closed()
    return status

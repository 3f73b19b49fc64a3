"""One container's side of the frame protocol: states, deadlines, and what each frame may do in which state."""

from __future__ import annotations

import asyncio
import enum
import itertools
import logging
import re
import secrets
import time
from typing import Final, Protocol

import msgspec

from sandbox_svc.errors import ProtocolError, SandboxLost
from sandbox_svc.runtime import Outcome, OutputSink, Program, protocol
from sandbox_svc.runtime.protocol import Frame, FrameType
from sandbox_svc.runtime.run_frames import FAULT, HELLO, READY, Received, encode_configure, encode_run

log = logging.getLogger("sandbox_svc.sandbox")

STDERR_LOG_BYTES: Final = 4096
"""Of a supervisor's own complaints, over a container's whole life."""

_REASON = re.compile(r"[a-z_]{1,40}")
_EMPTY_HEAD: Final = b"{}"


class Container(Protocol):
    """What a sandbox needs of the engine; `docker_runtime` implements it, tests feed bytes."""

    @property
    def id(self) -> str: ...

    async def read(self) -> tuple[int, bytes] | None:
        """Return the next chunk and its stream (1 stdout, 2 stderr), None at the end. Raises `OSError`."""
        ...

    async def write(self, data: bytes) -> None:
        """Hand over all of `data`, then wait until the stream takes more. Raises `OSError`."""
        ...

    async def was_oom_killed(self) -> bool:
        """Tell whether the kernel ended the container for lack of memory; bounded, never raises."""
        ...

    async def remove(self) -> None:
        """Kill and delete it. Raises `RuntimeUnavailable`; safe to repeat."""
        ...


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long a sandbox may take over what, in seconds; beyond that it is lost."""

    write: float = 5.0
    kill: float = 3.0
    """From the wall limit, or from a cancel, to RESULT. The supervisor gives up on a kill after 2 s."""
    collect: float = 3.0
    """Added to `kill` where artifacts, up to 20 MiB, may come."""
    load: float = 10.0
    """Added where the run's template has no process parked yet; the wall clock starts after that."""
    reset: float = 15.0
    """From RESULT to READY. The supervisor gives up after 2 s for the wipe and 10 s for the next process."""
    ping: float = 3.0


class Phase(enum.Enum):
    """States of a sandbox; the pool's slots have their own."""

    GREETING = "greeting"  # CONFIGURE is on its way, HELLO not yet here
    WARMING = "warming"  # HELLO came, the first READY did not
    IDLE = "idle"
    RUNNING = "running"
    RESETTING = "resetting"  # RESULT came, READY did not
    LOST = "lost"


class _Run:
    """A program on its way."""

    def __init__(self, run_id: int, program: Program, on_output: OutputSink | None) -> None:
        self.id = run_id
        self.program = program
        self.on_output = on_output
        self.started = time.monotonic()
        self.result: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.has_ended = asyncio.Event()
        """Unlike `result`, which ends with its caller, this waits for the supervisor."""
        self.received = Received(program.limits)


class DockerSandbox:
    """Speaks with the supervisor of one container. Made by `DockerRuntime.start`.

    One reader task turns bytes into transitions; transitions are plain functions, so a state never changes half.
    """

    def __init__(self, container: Container, *, generation: str, patience: Patience | None = None) -> None:
        self._container = container
        self._generation = generation
        self._patience = patience or Patience()
        self._phase = Phase.GREETING
        self._frames = protocol.FrameReader()
        self._run_ids = itertools.count(1)
        self._run: _Run | None = None
        self._hello: protocol.Hello | None = None
        self._ready = asyncio.Event()
        self._pong = asyncio.Event()
        self._lost = asyncio.Event()
        self._why = ""
        self._cause: BaseException | None = None
        self._ended_by_itself = False
        self._had_oom_kill = False
        self._runs_left = 0
        self._templates: frozenset[str] = frozenset()
        self._nonce = ""
        self._stderr_left = STDERR_LOG_BYTES
        self._reader: asyncio.Task[None] | None = None
        self._watchdogs: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<sandbox {self.id[:12]} {self._phase.value} runs_left={self._runs_left}>"

    @property
    def id(self) -> str:
        return self._container.id

    @property
    def generation(self) -> str:
        return self._generation

    @property
    def runs_left(self) -> int:
        return self._runs_left

    @property
    def templates(self) -> frozenset[str]:
        return self._templates

    @property
    def hello(self) -> protocol.Hello | None:
        """What the supervisor said of its language; None before it greeted."""
        return self._hello

    # What callers do

    async def open(self, configure: protocol.Configure) -> None:
        """Greet the supervisor and wait for its first READY; the caller bounds the time.

        Raises `SandboxLost`. After an error or a cancellation the owner removes the container.
        """
        self._nonce = configure.nonce
        self._reader = asyncio.create_task(self._read(), name=f"sandbox-{self.id[:12]}")
        await self._send(FrameType.CONFIGURE, 0, encode_configure(configure))
        await self._ready.wait()
        self._check(started=False)

    async def run(self, program: Program, on_output: OutputSink | None = None) -> Outcome:
        self._check(started=False)
        if self._phase is not Phase.IDLE:
            raise RuntimeError(f"run() while {self._phase.value}: settle() comes first")
        run = _Run(next(self._run_ids), program, on_output)
        frame = encode_run(run.id, program, stream=on_output is not None)
        self._phase, self._run = Phase.RUNNING, run
        self._ready.clear()
        patience = self._patience
        grace = patience.kill + patience.collect
        if program.template not in self._templates:
            grace += patience.load
        try:
            await self._write(frame)
            async with asyncio.timeout(program.limits.wall_ms / 1000 + grace):
                return await run.result
        except TimeoutError:
            self._lose("it did not report the end of a run in time")
            raise self._error(started=True) from None
        except SandboxLost:
            # The engine's mark of an OOM kill is for a container's whole life, so after the first it proves nothing.
            if self._ended_by_itself and not self._had_oom_kill and await self._container.was_oom_killed():
                return self._killed_for_memory(run)
            raise
        except asyncio.CancelledError:
            self._abandon(run)
            raise

    async def settle(self) -> None:
        await self._within(self._patience.reset, self._ready, "its reset took too long")

    async def ping(self) -> None:
        self._check(started=False)
        if self._phase is not Phase.IDLE:
            raise RuntimeError(f"ping() while {self._phase.value}")
        self._pong.clear()
        await self._send(FrameType.PING, 0, _EMPTY_HEAD)
        await self._within(self._patience.ping, self._pong, "it did not answer a ping")

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def remove(self) -> None:
        self._lose("it was removed")
        tasks = [task for task in (self._reader, *self._watchdogs) if task is not None]
        for task in tasks:
            task.cancel()
        await self._container.remove()

    # Waiting and writing

    def _error(self, *, started: bool) -> SandboxLost:
        error = SandboxLost(f"The sandbox was lost: {self._why}.", started=started)
        error.__cause__ = self._cause
        return error

    def _check(self, *, started: bool) -> None:
        if self._phase is Phase.LOST:
            raise self._error(started=started)

    async def _within(self, seconds: float, event: asyncio.Event, otherwise: str) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            self._lose(otherwise)
        self._check(started=True)

    async def _send(self, frame_type: FrameType, run_id: int, head: bytes) -> None:
        await self._write(protocol.encode_frame(frame_type, run_id, head))

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._patience.write):
                await self._container.write(data)
        except TimeoutError:
            self._lose("it stopped reading")
        except OSError as error:
            self._lose("its stream broke", error)
        # A part of the frame may have arrived, so nobody can say that the program did not start.
        self._check(started=True)

    async def _read(self) -> None:
        try:
            while (message := await self._container.read()) is not None:
                stream, chunk = message
                if stream == 1:
                    for frame in self._frames.feed(chunk):
                        self._take(frame)
                else:
                    self._complain(chunk)
                if self._phase is Phase.LOST:
                    return
        except (ProtocolError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            # msgspec raises the last two for heads that are not UTF-8 and for deeply nested ones.
            self._lose("it broke the protocol", error)
        except OSError as error:
            self._lose("its stream broke", error)
        else:
            self._ended_by_itself = self._phase is not Phase.LOST
            self._lose("it ended")
        finally:
            # Whatever stops the reader, nobody may wait for frames any more.
            self._lose("its reader stopped")

    def _complain(self, chunk: bytes) -> None:
        # Bounded and escaped: a supervisor writes here only when it fails, and never text of a program.
        if self._stderr_left > 0:
            part = chunk[: self._stderr_left]
            self._stderr_left -= len(part)
            log.warning("supervisor of %s says %r", self.id[:12], part)

    # Transitions: no await below this line

    def _lose(self, why: str, cause: BaseException | None = None) -> None:
        """Become LOST, once; every waiter learns of it."""
        if self._phase is Phase.LOST:
            return
        if why != "it was removed":
            log.warning("%r lost: %s (%r)", self, why, cause)
        self._why, self._cause = why, cause
        run, self._run = self._run, None
        self._phase = Phase.LOST
        self._runs_left = 0
        self._templates = frozenset()
        for event in (self._lost, self._ready, self._pong):
            event.set()
        if run is not None:
            run.has_ended.set()
            if not run.result.done():
                run.result.set_exception(self._error(started=True))
                # Looked at, so that it is no complaint when the run ends by another way first.
                run.result.exception()

    def _abandon(self, run: _Run) -> None:
        """The caller has gone: kill its program, and watch that the supervisor does."""
        if self._run is run:
            task = asyncio.create_task(self._cancel(run), name=f"cancel-{self.id[:12]}")
            self._watchdogs.add(task)
            task.add_done_callback(self._watchdogs.discard)

    async def _cancel(self, run: _Run) -> None:
        try:
            await self._send(FrameType.CANCEL, run.id, _EMPTY_HEAD)
        except SandboxLost:
            return
        try:
            async with asyncio.timeout(self._patience.kill + self._patience.collect):
                await run.has_ended.wait()
        except TimeoutError:
            if self._run is run:
                self._lose("it did not stop a cancelled run")

    def _take(self, frame: Frame) -> None:
        match frame.type:
            case FrameType.RESULT:
                self._take_result(frame)
            case FrameType.READY:
                self._take_ready(frame)
            case FrameType.OUTPUT:
                self._take_output(frame)
            case FrameType.ARTIFACT:
                self._take_artifact(frame)
            case FrameType.PONG:
                self._pong.set()
            case FrameType.HELLO:
                self._take_hello(frame)
            case FrameType.FAULT:
                reason = FAULT.decode(frame.head).reason
                self._lose(f"it gave up ({reason if _REASON.fullmatch(reason) else 'unknown'})")
            case _:
                raise ProtocolError("a frame that only the service sends")

    def _take_hello(self, frame: Frame) -> None:
        hello = HELLO.decode(frame.head)
        if self._phase is not Phase.GREETING or not secrets.compare_digest(hello.nonce, self._nonce):
            raise ProtocolError("not the greeting that was asked for")
        self._hello = hello
        self._phase = Phase.WARMING

    def _take_ready(self, frame: Frame) -> None:
        ready = READY.decode(frame.head)
        if self._phase is Phase.GREETING:
            raise ProtocolError("READY out of turn")
        if ready.runs_left < 0:
            raise ProtocolError("READY with a negative count")
        self._runs_left = ready.runs_left
        self._templates = frozenset(ready.templates)
        # One more READY tells of one more template; it may cross a RUN that is on its way, and says nothing about it.
        if self._phase is not Phase.RUNNING:
            self._phase = Phase.IDLE
            self._ready.set()

    def _current(self, frame: Frame) -> _Run:
        run = self._run
        if run is None or frame.run_id != run.id:
            raise ProtocolError("a frame of another run")
        return run

    def _take_output(self, frame: Frame) -> None:
        run = self._current(frame)
        stream = run.received.output(frame)
        if run.on_output is not None and not run.result.done():
            try:
                run.on_output(stream, frame.body)
            except Exception as error:  # noqa: BLE001 - a caller's bug is that caller's error, and costs no sandbox
                run.result.set_exception(error)
                self._abandon(run)

    def _take_artifact(self, frame: Frame) -> None:
        self._current(frame).received.artifact(frame)

    def _take_result(self, frame: Frame) -> None:
        run = self._current(frame)
        outcome = run.received.result(frame)
        self._had_oom_kill |= outcome.limit == "memory" or outcome.has_oom_kills
        self._run = None
        self._phase = Phase.RESETTING
        run.has_ended.set()
        if not run.result.done():
            run.result.set_result(outcome)

    def _killed_for_memory(self, run: _Run) -> Outcome:
        """The whole container went, supervisor included; that the kernel did it for memory is a fact of the engine."""
        return Outcome(
            exit_code=None,
            signal=9,
            limit="memory",
            stdout=run.received.output_so_far("stdout"),
            stderr=run.received.output_so_far("stderr"),
            wall_us=int((time.monotonic() - run.started) * 1e6),
        )

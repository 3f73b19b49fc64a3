"""A sandbox's conversation with its supervisor, over a scripted stream: each frame in each state, each deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from sandbox_svc.errors import SandboxLost
from sandbox_svc.runtime import Artifact, Outcome, Program, RunLimits, protocol
from sandbox_svc.runtime.docker_sandbox import DockerSandbox, Patience
from sandbox_svc.runtime.protocol import Frame, FrameType

PROGRAM = Program(source=b"x = 1", template="plain", limits=RunLimits(wall_ms=5_000, output_bytes=100, result_bytes=50))
CONFIGURE = protocol.Configure(
    nonce="n" * 32,
    uid_base=1_000_000,
    uid_count=4,
    templates=("plain",),
    memory_bytes=1 << 28,
    container_bytes=1 << 29,
    processes=64,
)
IMPATIENT = Patience(write=0.2, kill=0.1, collect=0.1, load=0.1, reset=0.2, ping=0.2)
RESULT = {
    "exit_code": 0,
    "signal": None,
    "result_bytes": 4,
    "stdout_bytes": 2,
    "stderr_bytes": 1,
    "wall_us": 900,
    "cpu_us": 800,
    "memory_kb": 9000,
}


class ScriptedContainer:
    """Plays the supervisor: the test says what comes out and sees what went in."""

    def __init__(self) -> None:
        self.id = "c0ffee" * 10
        self.is_oom_killed = False
        self.is_stuck = False
        self.removals = 0
        self.frames: list[Frame] = []
        self._reader = protocol.FrameReader()
        self._out: asyncio.Queue[tuple[int, bytes] | OSError | None] = asyncio.Queue()
        self._arrived = asyncio.Event()

    async def read(self) -> tuple[int, bytes] | None:
        item = await self._out.get()
        if isinstance(item, OSError):
            raise item
        return item

    async def write(self, data: bytes) -> None:
        if self.is_stuck:
            await asyncio.sleep(3600)
        self.frames += self._reader.feed(data)
        self._arrived.set()

    async def was_oom_killed(self) -> bool:
        return self.is_oom_killed

    async def remove(self) -> None:
        self.removals += 1

    def say(self, frame_type: FrameType, run_id: int, head: Any, body: bytes = b"") -> None:
        self.out(protocol.encode_frame(frame_type, run_id, msgspec.json.encode(head), (body,)))

    def out(self, data: bytes | None, stream: int = 1) -> None:
        self._out.put_nowait(None if data is None else (stream, data))

    def breaks(self) -> None:
        self._out.put_nowait(ConnectionResetError("gone"))

    async def expect(self, frame_type: FrameType) -> Frame:
        """Wait until the service sends a frame, and check its type."""
        async with asyncio.timeout(5):
            while not self.frames:
                self._arrived.clear()
                await self._arrived.wait()
        frame = self.frames.pop(0)
        assert frame.type is frame_type
        return frame

    def greet(self) -> None:
        self.say(FrameType.HELLO, 0, {"nonce": "n" * 32, "version": "3.13.5"})
        self.ready()

    def ready(self, runs_left: int = 3, templates: tuple[str, ...] = ("plain",)) -> None:
        self.say(FrameType.READY, 0, {"runs_left": runs_left, "templates": templates})

    def result(self, run_id: int, body: bytes = b"nullhi!", **changes: Any) -> None:
        self.say(FrameType.RESULT, run_id, {**RESULT, **changes}, body)


@asynccontextmanager
async def opened(patience: Patience = IMPATIENT) -> AsyncIterator[tuple[DockerSandbox, ScriptedContainer]]:
    container = ScriptedContainer()
    sandbox = DockerSandbox(container, generation="sha256:1", patience=patience)
    container.greet()
    await sandbox.open(CONFIGURE)
    await container.expect(FrameType.CONFIGURE)
    try:
        yield sandbox, container
    finally:
        await sandbox.remove()


async def started(sandbox: DockerSandbox, container: ScriptedContainer) -> tuple[asyncio.Task[Outcome], int]:
    """Start PROGRAM and return the task with the id under which the supervisor knows the run."""
    task = asyncio.create_task(sandbox.run(PROGRAM))
    return task, (await container.expect(FrameType.RUN)).run_id


async def test_a_run_returns_the_facts_and_settles_at_ready() -> None:
    """The body's parts come back in their places, and the sandbox is usable again after READY, not before."""
    async with opened() as (sandbox, container):
        assert sandbox.runs_left == 3
        assert sandbox.templates == {"plain"}
        task, run_id = await started(sandbox, container)
        container.say(FrameType.ARTIFACT, run_id, {"name": "a.csv"}, b"1,2")
        container.result(run_id)
        outcome = await task
        assert outcome.is_success
        assert (outcome.result, outcome.stdout, outcome.stderr) == (b"null", b"hi", b"!")
        assert outcome.artifacts == (Artifact("a.csv", b"1,2"),)
        with pytest.raises(RuntimeError, match="settle"):
            await sandbox.run(PROGRAM)
        container.ready(runs_left=2)
        await sandbox.settle()
        assert sandbox.runs_left == 2


async def test_the_run_frame_carries_every_part_in_order() -> None:
    async with opened() as (sandbox, container):
        program = msgspec.structs.replace(
            PROGRAM, arguments=b'{"a":1}', stdin=b"in", args=("x",), env={"K": "v"}, source_name="pkg/app.py"
        )
        task = asyncio.create_task(sandbox.run(program, lambda *_: None))
        frame = await container.expect(FrameType.RUN)
        head = msgspec.json.decode(frame.head, type=protocol.RunHead)
        assert frame.body == b'x = 1{"a":1}in'
        assert (head.source_bytes, head.arguments_bytes, head.stdin_bytes) == (5, 7, 2)
        assert (head.args, head.env, head.stream, head.source_name) == (("x",), {"K": "v"}, True, "pkg/app.py")
        container.result(frame.run_id)
        await task


async def test_frames_may_come_in_any_pieces() -> None:
    async with opened() as (sandbox, container):
        task, run_id = await started(sandbox, container)
        frame = protocol.encode_frame(FrameType.RESULT, run_id, msgspec.json.encode(RESULT), (b"nullhi!",))
        for byte in frame:
            container.out(bytes([byte]))
        assert (await task).stdout == b"hi"


async def test_output_is_streamed_to_the_sink() -> None:
    async with opened() as (sandbox, container):
        seen: list[tuple[str, bytes]] = []
        task = asyncio.create_task(sandbox.run(PROGRAM, lambda stream, data: seen.append((stream, data))))
        run_id = (await container.expect(FrameType.RUN)).run_id
        container.say(FrameType.OUTPUT, run_id, {"stream": 1}, b"one")
        container.say(FrameType.OUTPUT, run_id, {"stream": 2}, b"two")
        container.result(run_id)
        await task
        assert seen == [("stdout", b"one"), ("stderr", b"two")]


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ({"stdout_bytes": 3}, b"nullhi!"),  # lengths do not add up
        ({"stdout_bytes": -1, "stderr_bytes": 4}, b"nullhi!"),
        ({"result_bytes": 51}, b"x" * 54),  # more than the run's bound
        ({"stdout_bytes": 100_000}, b"x" * 100_005),
        ({"limit": "luck"}, b"nullhi!"),
        ({"exit_code": 256}, b"nullhi!"),
        ({"signal": 65}, b"nullhi!"),
        ({"exit_code": "0"}, b"nullhi!"),
    ],
)
async def test_a_result_that_cannot_be_true_loses_the_sandbox(head: dict[str, Any], body: bytes) -> None:
    async with opened() as (sandbox, container):
        task, run_id = await started(sandbox, container)
        container.result(run_id, body, **head)
        with pytest.raises(SandboxLost) as caught:
            await task
        assert caught.value.started
        assert sandbox.runs_left == 0


@pytest.mark.parametrize(
    "data",
    [
        b"Traceback (most recent call last)\n",
        protocol.HEADER.pack(1, 7, 2**31, 0, 1),
        protocol.HEADER.pack(1, 7, 2, 2**32 - 1, 1),
        protocol.encode_frame(FrameType.RESULT, 999, msgspec.json.encode(RESULT), (b"nullhi!",)),
        protocol.encode_frame(FrameType.RESULT, 1, b"{"),
        protocol.encode_frame(FrameType.RESULT, 1, b"[" * 100_000),
        protocol.encode_frame(FrameType.OUTPUT, 2, b'{"stream":1}', (b"x",)),
        protocol.encode_frame(FrameType.OUTPUT, 1, b'{"stream":3}', (b"x",)),
        protocol.encode_frame(FrameType.OUTPUT, 1, b'{"stream":1}', (b"x" * 100_000,)),
        protocol.encode_frame(FrameType.ARTIFACT, 1, b'{"name":"a"}', (b"x" * (21 << 20),)),
        protocol.encode_frame(FrameType.ARTIFACT, 1, b'{"name":"a"}') * 11,
        protocol.encode_frame(FrameType.RUN, 1, b"{}"),
        protocol.encode_frame(FrameType.HELLO, 0, msgspec.json.encode({"nonce": "n" * 32, "version": "3"})),
        protocol.encode_frame(FrameType.READY, 0, b'{"runs_left":-1}'),
        protocol.encode_frame(FrameType.RESULT, 1, msgspec.json.encode({**RESULT, "error": 1}), (b"nullhi!",)),
        # Neither of these is an error of msgspec's own kind.
        protocol.encode_frame(FrameType.ARTIFACT, 1, b'{"name":"a\xc4"}'),
        protocol.encode_frame(FrameType.RESULT, 1, b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ],
)
async def test_a_breach_of_the_protocol_during_a_run_loses_the_sandbox(data: bytes) -> None:
    """PR-22: no frame of a known type, bad lengths, another run's, no JSON, no UTF-8, too deep, out of bounds, out of turn."""
    async with opened() as (sandbox, container):
        task, _ = await started(sandbox, container)
        container.out(data)
        with pytest.raises(SandboxLost, match="broke the protocol"):
            await task
        await sandbox.wait_lost()
        with pytest.raises(SandboxLost) as caught:
            await sandbox.run(PROGRAM)
        assert not caught.value.started


@pytest.mark.parametrize(
    "head",
    [{"nonce": "m" * 32, "version": "3"}, {"nonce": "", "version": "3"}, {"nonce": "n" * 32}],
)
async def test_a_greeting_without_our_nonce_is_refused(head: dict[str, Any]) -> None:
    """What answers must be the supervisor we started, at the start of its stream."""
    container = ScriptedContainer()
    sandbox = DockerSandbox(container, generation="sha256:1", patience=IMPATIENT)
    container.say(FrameType.HELLO, 0, head)
    with pytest.raises(SandboxLost):
        await sandbox.open(CONFIGURE)
    await sandbox.remove()


async def test_ready_without_hello_is_refused() -> None:
    container = ScriptedContainer()
    sandbox = DockerSandbox(container, generation="sha256:1", patience=IMPATIENT)
    container.ready()
    with pytest.raises(SandboxLost):
        await sandbox.open(CONFIGURE)
    await sandbox.remove()


async def test_one_more_ready_may_cross_a_run() -> None:
    """A template that finished loading is announced whenever that is; it says nothing about the run on its way."""
    async with opened() as (sandbox, container):
        container.ready(templates=("plain", "data"))
        task, run_id = await started(sandbox, container)
        container.ready(templates=("plain", "data", "plot"))
        container.result(run_id)
        await task
        assert sandbox.templates == {"plain", "data", "plot"}
        with pytest.raises(SandboxLost, match="reset"):
            await sandbox.settle()


async def test_the_end_of_the_stream_loses_the_sandbox_at_once() -> None:
    async with opened(Patience()) as (sandbox, container):
        task, _ = await started(sandbox, container)
        watcher = asyncio.create_task(sandbox.wait_lost())
        container.out(None)
        with pytest.raises(SandboxLost, match="ended") as caught:
            await task
        assert caught.value.started
        await watcher


async def test_a_broken_stream_loses_the_sandbox() -> None:
    async with opened() as (sandbox, container):
        task, _ = await started(sandbox, container)
        container.breaks()
        with pytest.raises(SandboxLost, match="stream"):
            await task


async def test_a_container_killed_for_memory_is_an_outcome_and_the_sandbox_is_lost() -> None:
    """The kernel took the supervisor with the program: a fact about the program, though nobody is left to report it."""
    async with opened() as (sandbox, container):
        task, run_id = await started(sandbox, container)
        container.say(FrameType.OUTPUT, run_id, {"stream": 1}, b"so ")
        container.say(FrameType.OUTPUT, run_id, {"stream": 1}, b"far")
        container.is_oom_killed = True
        container.out(None)
        outcome = await task
        assert (outcome.limit, outcome.signal, outcome.is_success) == ("memory", 9, False)
        assert (outcome.stdout, outcome.stderr) == (b"so far", b"")
        await sandbox.wait_lost()
        with pytest.raises(SandboxLost):
            await sandbox.settle()


@pytest.mark.parametrize(
    "facts", [{"limit": "memory", "exit_code": None, "signal": 9}, {"has_oom_kills": True}], ids=["the run", "a child"]
)
async def test_an_old_oom_kill_says_nothing_about_a_later_loss(facts: dict[str, Any]) -> None:
    """The engine keeps that mark for a container's whole life, also where a run went on without the child it lost."""
    async with opened() as (sandbox, container):
        task, run_id = await started(sandbox, container)
        container.result(run_id, **facts)
        await task
        container.ready()
        await sandbox.settle()
        container.is_oom_killed = True
        task, _ = await started(sandbox, container)
        container.out(None)
        with pytest.raises(SandboxLost):
            await task


async def test_a_missing_result_loses_the_sandbox_soon_after_the_wall_limit() -> None:
    async with opened() as (sandbox, container):
        program = msgspec.structs.replace(PROGRAM, limits=RunLimits(wall_ms=50))
        task = asyncio.create_task(sandbox.run(program))
        await container.expect(FrameType.RUN)
        with pytest.raises(SandboxLost, match="in time"):
            await task


async def test_a_supervisor_that_does_not_read_loses_the_sandbox() -> None:
    async with opened() as (sandbox, container):
        container.is_stuck = True
        with pytest.raises(SandboxLost, match="reading"):
            await sandbox.run(PROGRAM)


async def test_a_cancelled_run_is_killed_and_the_sandbox_settles() -> None:
    async with opened() as (sandbox, container):
        task, run_id = await started(sandbox, container)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await container.expect(FrameType.CANCEL)).run_id == run_id
        container.result(run_id, cancelled=True)
        container.ready(runs_left=2)
        await sandbox.settle()
        assert sandbox.runs_left == 2


async def test_nobody_watches_a_cancelled_run_that_has_ended() -> None:
    """Callers may hang up at any rate, and a watch that nobody ends lasts for seconds."""
    async with opened(Patience()) as (sandbox, container):
        before = asyncio.all_tasks()
        task, run_id = await started(sandbox, container)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await container.expect(FrameType.CANCEL)
        assert asyncio.all_tasks() - before
        container.result(run_id, cancelled=True)
        container.ready(runs_left=2)
        await sandbox.settle()
        await asyncio.sleep(0)  # one turn of the loop, in which the watch sees that the run has ended
        assert asyncio.all_tasks() == before


async def test_a_cancelled_run_that_goes_on_loses_the_sandbox() -> None:
    async with opened(msgspec.structs.replace(IMPATIENT, reset=10.0)) as (sandbox, container):
        task, _ = await started(sandbox, container)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            with pytest.raises(SandboxLost, match="cancelled"):
                await sandbox.settle()


async def test_cancel_while_the_frame_is_being_written_loses_no_state() -> None:
    """The stream may be full at that moment; what was handed over is a whole frame all the same."""
    async with opened() as (sandbox, container):
        container.is_stuck = True
        task = asyncio.create_task(sandbox.run(PROGRAM))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(SandboxLost):
            await sandbox.settle()


async def test_ping_is_answered_or_the_sandbox_is_lost() -> None:
    async with opened() as (sandbox, container):
        task = asyncio.create_task(sandbox.ping())
        await container.expect(FrameType.PING)
        container.say(FrameType.PONG, 0, {})
        await task
        with pytest.raises(SandboxLost, match="ping"):
            await sandbox.ping()


async def test_last_words_are_one_of_a_few(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as (sandbox, container):
        container.say(FrameType.FAULT, 0, {"reason": "wipe_failed"})
        await sandbox.wait_lost()
        with pytest.raises(SandboxLost, match="wipe_failed"):
            await sandbox.settle()
    async with opened() as (sandbox, container):
        container.say(FrameType.FAULT, 0, {"reason": "<script>\n"})
        await sandbox.wait_lost()
        with pytest.raises(SandboxLost, match="unknown"):
            await sandbox.settle()
    assert "<script>" not in caplog.text


async def test_what_a_supervisor_writes_to_stderr_is_logged_in_part(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sandbox_svc.sandbox"):
        async with opened() as (sandbox, container):
            for _ in range(100):
                container.out(b"complaint\n" * 100, stream=2)
            task, run_id = await started(sandbox, container)
            container.result(run_id)
            await task
    assert 400 <= caplog.text.count("complaint") <= 420


async def test_a_sink_that_raises_ends_its_run_and_costs_no_sandbox() -> None:
    def sink(*_: object) -> None:
        raise LookupError("a bug of the caller")

    async with opened() as (sandbox, container):
        task = asyncio.create_task(sandbox.run(PROGRAM, sink))
        run_id = (await container.expect(FrameType.RUN)).run_id
        container.say(FrameType.OUTPUT, run_id, {"stream": 1}, b"x")
        with pytest.raises(LookupError):
            await task
        assert (await container.expect(FrameType.CANCEL)).run_id == run_id
        container.result(run_id, cancelled=True)
        container.ready()
        await sandbox.settle()


async def test_remove_may_be_repeated() -> None:
    async with opened() as (sandbox, container):
        await sandbox.remove()
        await sandbox.remove()
        assert container.removals == 2
        with pytest.raises(SandboxLost):
            await sandbox.ping()

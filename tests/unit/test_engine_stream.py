"""What aiodocker throws on a connection that has gone ends at the border, and no background task dies of it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import aiohttp
import pytest
from aiodocker.stream import Stream

from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.runtime import MIB, docker_runtime
from sandbox_svc.runtime.container_spec import ContainerLimits
from sandbox_svc.runtime.docker_engine import Engine, EngineFacts, EngineRefused, EngineStream
from sandbox_svc.runtime.docker_runtime import DockerRuntime
from sandbox_svc.runtime.languages import Language, Manifest, Template


class Transport:
    def __init__(self, error: Exception) -> None:
        self._error = error

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        raise self._error

    def write(self, data: bytes) -> None:
        raise self._error


class Connection:
    def __init__(self, error: Exception) -> None:
        self.transport = Transport(error)
        self.protocol = None


class Response:
    """As much of aiohttp's as a stream uses."""

    def __init__(self, connection: Connection | None) -> None:
        self.connection = connection
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def attached(response: Response) -> EngineStream:
    stream = Stream(cast("Any", None), cast("Any", None))
    stream._resp = cast("aiohttp.ClientResponse", response)
    stream._queue = cast("Any", Gone())
    return EngineStream(stream)


class Gone:
    async def read(self) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    "connection",
    [None, Connection(OSError(107, "not connected")), Connection(RuntimeError("closed")), Connection(AssertionError())],
)
async def test_a_broken_stream_is_closed_all_the_same(connection):
    """It raised what aiodocker asserts or what the half-close said, in the task that removes the container, and that
    ended the service.
    """
    response = Response(connection)
    stream = attached(response)
    await stream.close()
    assert response.is_closed
    await stream.close()


@pytest.mark.parametrize("connection", [None, Connection(aiohttp.ClientConnectionResetError())])
async def test_a_broken_stream_is_an_os_error_to_who_reads_or_writes(connection):
    stream = attached(Response(connection))
    with pytest.raises(OSError, match="attached stream"):
        await stream.write(b"x")
    with pytest.raises(OSError, match="attached stream"):
        await stream.read()
    await stream.close()


class FakeEngine:
    """Creates containers that cannot be attached to, and fails to remove them in the ways given."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.removals = 0

    async def create(self, name: str, config: dict[str, Any]) -> str:
        return "id"

    async def attach(self, container_id: str) -> EngineStream:
        raise EngineRefused("no")

    async def remove(self, name: str) -> bool:
        self.removals += 1
        if self.failures:
            raise self.failures.pop(0)
        return True


async def test_a_removal_in_the_background_goes_on_whatever_it_meets(monkeypatch, caplog):
    """One error that nobody foresaw, and the container stayed until the service ended."""
    monkeypatch.setattr(docker_runtime, "REAP_PAUSE_SECONDS", (0.001, 0.002))
    engine = FakeEngine(RuntimeUnavailable("busy"), AssertionError("nobody foresaw it"), KeyError("nor this"))
    facts = EngineFacts(
        id="engine", version="1", api_version="1", runtime="runc", cgroup_version="1", cpus=1, memory_bytes=MIB,
        runtimes=("runc",), skew_seconds=0, is_uid_mapped=False,
    )  # fmt: skip
    runtime = DockerRuntime(
        cast("Engine", engine), facts, ContainerLimits(memory_bytes=64 * MIB), instance_id="instance"
    )
    manifest = Manifest(language="python", source_name="main.py", templates=(Template(name="plain"),))
    with pytest.raises(RuntimeUnavailable):
        await runtime.start(Language(manifest=manifest, image_id="image"))
    async with asyncio.timeout(5):
        while runtime.owned:  # noqa: ASYNC110 - a task of the runtime's own
            await asyncio.sleep(0.001)
    assert engine.removals == 4
    assert "it is tried again" in caplog.text

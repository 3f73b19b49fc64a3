"""A real Redis for the tests marked `redis`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import anyio
import pytest

from sandbox_svc.admission.redis_link import RedisLink
from sandbox_svc.notation import Secret
from tests.redis_server import RedisServer

PATIENT_SECONDS = 5.0
"""For tests that are not about time: the machine may be busy."""


class Connect(Protocol):
    """Opens a link as an instance of the service does, watched until the test is over."""

    async def __call__(self, url: Secret, *, call_seconds: float = PATIENT_SECONDS) -> RedisLink: ...


@pytest.fixture
def redis_folder() -> Iterator[Path]:
    if not RedisServer.is_installed():
        pytest.skip("redis-server is not installed")
    with TemporaryDirectory(prefix="redis-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    if not RedisServer.is_installed():
        pytest.skip("redis-server is not installed")
    with TemporaryDirectory(prefix="redis-") as folder, RedisServer(Path(folder)) as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    """An empty Redis that runs; not to be broken."""
    shared_redis.command("FLUSHALL")
    return shared_redis


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    links: list[RedisLink] = []
    async with anyio.create_task_group() as group:

        async def open_link(url: Secret, *, call_seconds: float = PATIENT_SECONDS) -> RedisLink:
            link = RedisLink(url, call_seconds=call_seconds, probe_seconds=0.05)
            links.append(link)
            await link.probe()
            group.start_soon(link.watch)
            return link

        yield open_link
        group.cancel_scope.cancel()
    for link in links:
        await link.close()

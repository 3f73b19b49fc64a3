"""The client of the engine tells its observer of each call that failed, once, by call and kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.runtime import docker_engine
from sandbox_svc.runtime.docker_engine import Engine
from sandbox_svc.runtime.engine_events import EngineCall, EngineErrorKind, EngineFailed

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(service_loop: tuple[str, dict[str, bool]]) -> tuple[str, dict[str, bool]]:
    return service_loop


CALLS: list[tuple[EngineCall, Callable[[Engine], Awaitable[object]]]] = [
    (EngineCall.DESCRIBE, lambda engine: engine.describe()),
    (EngineCall.DESCRIBE, lambda engine: engine.now()),
    (EngineCall.PING, lambda engine: engine.ping()),
    (EngineCall.IMAGES, lambda engine: engine.images("label")),
    (EngineCall.NETWORK, lambda engine: engine.network("name")),
    (EngineCall.CREATE, lambda engine: engine.create("name", {})),
    (EngineCall.ATTACH, lambda engine: engine.attach("id")),
    (EngineCall.START, lambda engine: engine.start("id")),
    (EngineCall.WAIT, lambda engine: engine.was_oom_killed("id")),
    (EngineCall.REMOVE, lambda engine: engine.remove("id")),
    (EngineCall.LIST, lambda engine: engine.containers("label")),
    (EngineCall.INSPECT, lambda engine: engine.inspect("id")),
    (EngineCall.NETWORK, lambda engine: engine.network("name")),
    (EngineCall.WAIT, lambda engine: engine.exit_code("id")),
]

each_call = pytest.mark.parametrize(
    ("call", "ask"), CALLS, ids=[f"{n} {call.value}" for n, (call, _) in enumerate(CALLS)]
)


@asynccontextmanager
async def answering(
    socket: Path, handle: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> AsyncIterator[None]:
    """An engine whose every answer is `handle`'s, but for its version, which the client asks for by itself."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/version") and not request.path.startswith("/v"):
            return web.json_response({"Version": "20.10", "ApiVersion": "1.41"})
        return await handle(request)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def failures(socket: Path, ask: Callable[[Engine], Awaitable[object]]) -> list[EngineFailed]:
    told: list[EngineFailed] = []
    engine = Engine(f"unix://{socket}", observer=told.append)
    try:
        with pytest.raises(RuntimeUnavailable):
            await ask(engine)
    finally:
        await engine.close()
    return told


@each_call
async def test_an_engine_that_is_not_there(
    call: EngineCall, ask: Callable[[Engine], Awaitable[object]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log said that it refused, which sends people to its disk and its runtimes."""
    assert await failures(tmp_path / "s", ask) == [EngineFailed(call, EngineErrorKind.UNREACHABLE)]
    assert "engine cannot be reached to" in caplog.text
    assert "engine refused to" not in caplog.text


@each_call
async def test_an_engine_that_says_no(
    call: EngineCall, ask: Callable[[Engine], Awaitable[object]], tmp_path: Path
) -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "no"}, status=500)

    async with answering(tmp_path / "s", refuse):
        assert await failures(tmp_path / "s", ask) == [EngineFailed(call, EngineErrorKind.REFUSED)]


@each_call
async def test_an_engine_that_does_not_answer(
    call: EngineCall, ask: Callable[[Engine], Awaitable[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("READ_SECONDS", "CHANGE_SECONDS", "REMOVE_SECONDS", "OOM_SECONDS"):
        monkeypatch.setattr(docker_engine, name, 0.05)

    is_over = asyncio.Event()

    async def hang(_: web.Request) -> web.StreamResponse:
        await is_over.wait()
        return web.Response()

    async with answering(tmp_path / "s", hang):
        assert await failures(tmp_path / "s", ask) == [EngineFailed(call, EngineErrorKind.TIMEOUT)]
        is_over.set()


async def test_a_container_that_is_gone_already_is_no_failure(tmp_path: Path) -> None:
    async def unknown(_: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "no such container"}, status=404)

    told: list[EngineFailed] = []
    async with answering(tmp_path / "s", unknown):
        engine = Engine(f"unix://{tmp_path}/s", observer=told.append)
        assert await engine.remove("id") is False
        assert await engine.inspect("id") is None
        await engine.await_end("id", 0.05)
        await engine.close()

    assert told == []


def test_every_call_is_tried_here() -> None:
    assert {call for call, _ in CALLS} == set(EngineCall)

"""Redis killed, stuck, read-only, full, emptied, locked or talking nonsense: what callers see, and that it passes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from pathlib import Path
from typing import cast

import anyio
import pytest

from sandbox_svc.admission.permits import PermitTimes, RedisPermits
from sandbox_svc.admission.rates import RateAdmission
from sandbox_svc.admission.redis_link import _REASONS, LinkState, RedisAway, RedisLink
from sandbox_svc.errors import SettingsError
from sandbox_svc.notation import Secret
from sandbox_svc.runtime.instances import ListStrangers, Stranger
from sandbox_svc.service.tenants import Tenant
from tests.contract.conftest import Connect
from tests.redis_server import FakeServer, RedisServer

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

CALL_SECONDS = 0.25
ROOM = 0.75
"""For the machine the tests run on: two cores, and others use them too."""
ACME = Tenant(name="acme")
WORDS = {word for _, word in _REASONS} | {"unexpected answer"}
"""All that is ever said of a fault."""
QUICK = PermitTimes(
    step_seconds=0.1, settle_seconds=0.3, clear_seconds=0.12, alive_seconds=0.5, lease_seconds=5.0, poll_seconds=0.05
)


async def until(link: RedisLink, state: LinkState, *, seconds: float = 5) -> None:
    with anyio.fail_after(seconds):
        while link.state is not state:  # noqa: ASYNC110 - polls what another process brings about
            await asyncio.sleep(0.005)


async def admit(admission: RateAdmission, times: int = 1) -> tuple[int, float]:
    """Ask several times at once; return how many were allowed and how long the slowest took, in seconds."""

    async def one() -> tuple[bool, float]:
        began = time.monotonic()
        decision = await admission.admit(ACME)
        assert decision is not None
        return decision.is_allowed, time.monotonic() - began

    results = await asyncio.gather(*(one() for _ in range(times)))
    return sum(allowed for allowed, _ in results), max(seconds for _, seconds in results)


@pytest.fixture
async def server(redis_folder: Path) -> AsyncIterator[RedisServer]:
    """A Redis to be broken."""
    with RedisServer(redis_folder) as server:
        yield server


async def test_killed_and_started_again(server: RedisServer, connect: Connect) -> None:
    """SF-10: down, restarted."""
    link = await connect(server.url, call_seconds=CALL_SECONDS)
    admission = RateAdmission(rate_limit="10/minute", link=link)
    assert (await admit(admission, 4))[0] == 4
    server.kill()
    allowed, slowest = await admit(admission, 50)
    assert allowed == 6  # this instance's own window knows of the first four
    assert slowest < CALL_SECONDS + ROOM
    assert link.state is LinkState.DEGRADED
    assert link.stats().reason == "no connection"
    server.start()
    await until(link, LinkState.OK)
    assert (await admit(admission, 50))[0] == 10  # a Redis without data starts afresh
    assert link.stats().outages == 1


async def test_stuck_and_going_on(server: RedisServer, connect: Connect) -> None:
    """A stopped process: connections stand, the kernel takes new ones, nobody answers."""
    link = await connect(server.url, call_seconds=CALL_SECONDS)
    admission = RateAdmission(rate_limit="10/minute", link=link)
    await admit(admission)
    server.pause()
    allowed, slowest = await admit(admission, 50)
    assert allowed == 9
    assert slowest < CALL_SECONDS + ROOM
    assert link.stats().reason == "timeout"
    # From then on nobody waits.
    began = time.monotonic()
    await admit(admission, 50)
    assert time.monotonic() - began < 0.1
    await asyncio.sleep(0.5)
    assert link.state is LinkState.DEGRADED
    server.resume()
    await until(link, LinkState.OK)
    assert link.is_ok


async def test_a_read_only_replica_is_away(server: RedisServer, connect: Connect) -> None:
    """It answers PING and takes no write: what a failover leaves behind under the old address."""
    link = await connect(server.url, call_seconds=CALL_SECONDS)
    admission = RateAdmission(rate_limit="10/minute", link=link)
    await admit(admission)
    server.command("REPLICAOF", "127.0.0.1", "1")
    allowed, slowest = await admit(admission, 20)
    assert allowed == 9
    assert slowest < CALL_SECONDS + ROOM
    assert link.stats().reason == "read-only"
    await asyncio.sleep(0.3)
    assert link.state is LinkState.DEGRADED
    server.command("REPLICAOF", "NO", "ONE")
    await until(link, LinkState.OK)


async def test_a_full_redis_is_away(server: RedisServer, connect: Connect) -> None:
    link = await connect(server.url, call_seconds=CALL_SECONDS)
    admission = RateAdmission(rate_limit="10/minute", link=link)
    server.command("CONFIG", "SET", "maxmemory", "1")
    assert (await admit(admission, 20))[0] == 10
    assert link.stats().reason == "out of memory"
    server.command("CONFIG", "SET", "maxmemory", "0")
    await until(link, LinkState.OK)


async def test_flushed_scripts_and_data_are_no_outage(server: RedisServer, connect: Connect) -> None:
    link = await connect(server.url, call_seconds=CALL_SECONDS)
    admission = RateAdmission(rate_limit="10/minute", link=link)
    assert (await admit(admission, 20))[0] == 10
    server.command("FLUSHALL")
    server.command("SCRIPT", "FLUSH")
    assert (await admit(admission, 20))[0] == 10
    assert link.stats().outages == 0


async def test_a_password_that_is_wrong_and_then_right(redis_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with RedisServer(redis_folder, "--requirepass", "the-new-one") as server:
        link = RedisLink(Secret(f"unix://:hunter2-secret@{server.socket}?db=0"), probe_seconds=0.05)
        assert not await link.probe()
        admission = RateAdmission(rate_limit="10/minute", link=link)
        assert (await admit(admission, 20))[0] == 10
        assert link.stats().reason == "not authorised"
        shown = caplog.text + repr(link) + repr(link.stats()) + repr(admission) + repr(link.pool)
        assert "hunter2" not in shown
        server.command("--no-auth-warning", "-a", "the-new-one", "CONFIG", "SET", "requirepass", "hunter2-secret")
        assert await link.probe()
        await link.close()


async def test_a_redis_that_comes_late(redis_folder: Path, connect: Connect) -> None:
    server = RedisServer(redis_folder)
    link = await connect(server.url, call_seconds=CALL_SECONDS)
    admission = RateAdmission(rate_limit="10/minute", link=link)
    assert (await admit(admission, 20))[0] == 10
    with server:
        await until(link, LinkState.OK)
        assert link.stats().outages == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"*100000000\r\n",
        b"$99999999999\r\nx",
        b"*1\r\n" * 5000,
        b":not a number\r\n",
        b"$-7\r\n",
        b"+OK\r\n",
        b"\x00\xff\xfe" * 100 + b"\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b"-NOPERM no permission\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-ERR unknown command 'AUTH', with args beginning with: 'hunter2-secret'\r\n",
        b"-MISCONF Redis is configured to save RDB snapshots\r\n",
        None,
    ],
)
async def test_a_server_that_talks_nonsense(answer: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    """SF-10: whatever it says, it costs a bounded time, and neither its words nor our password appear anywhere."""
    caplog.set_level(logging.DEBUG)
    async with FakeServer(answer) as server:
        link = RedisLink(Secret(f"redis://:hunter2-secret@127.0.0.1:{server.port}/0"))
        link._state = LinkState.OK  # as if it had been a Redis a moment ago
        admission = RateAdmission(rate_limit="10/minute", link=link)
        allowed, slowest = await admit(admission, 20)
        assert allowed == 10
        assert slowest < CALL_SECONDS + ROOM
        for _ in range(5):
            # On a machine so busy that our own loop stood still, the first time may say nothing about the server.
            if not link.is_ok:
                break
            await admit(admission, 20)
        assert link.state is LinkState.DEGRADED
        assert not await link.probe()
        assert link.stats().reason in WORDS
        assert b"hunter2-secret" in server.received
        await link.close()
    shown = caplog.text + repr(link) + repr(link.stats()) + repr(link.pool)
    assert "hunter2" not in shown


async def test_an_idle_connection_that_is_reset_is_an_outage_like_any_other(connect: Connect) -> None:
    """A proxy in between restarts. The service's loop raises RuntimeError then, and all that tends Redis died of it."""
    async with FakeServer(b":1\r\n") as server:
        link = await connect(Secret(f"redis://127.0.0.1:{server.port}/0"), call_seconds=CALL_SECONDS)
        await until(link, LinkState.OK)
        for _ in range(3):
            server.reset()
            await asyncio.sleep(0.02)
            with pytest.raises(RedisAway, match="no connection"):
                await link.call(link._write)
            await until(link, LinkState.OK)
            await link.call(link._write)


async def test_a_closed_port_is_away_at_once(connect: Connect) -> None:
    async with FakeServer(None) as server:
        port = server.port
    link = await connect(Secret(f"redis://127.0.0.1:{port}/0"))
    assert link.stats().reason == "no connection"


async def test_what_is_counted_of_calls_never_shrinks(redis_folder: Path) -> None:
    """Each attempt to end an outage took one from the calls that had gone well; to Prometheus a counter that shrinks began
    anew, so that an idle instance without Redis showed thousands of calls a second.
    """
    with RedisServer(redis_folder) as server:
        link = RedisLink(server.url)
        assert await link.probe()
        for _ in range(5):
            await link.call(link.client.time)
    with pytest.raises(RedisAway):
        await link.call(link.client.time)
    for _ in range(3):
        assert not await link.probe()
    stats = link.stats()
    assert (stats.ok_calls, stats.failed_calls) == (5, 1)
    await link.close()


async def test_a_redis_that_is_away_from_the_start_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """An instance that started without its Redis served by limits of its own, and its log never said so."""
    async with FakeServer(None) as server:
        port = server.port
    link = RedisLink(Secret(f"redis://:hunter2@127.0.0.1:{port}/0"))
    for _ in range(3):
        assert not await link.probe()
    lines = [record.getMessage() for record in caplog.records if "is away" in record.getMessage()]
    assert lines == [
        f"redis at 127.0.0.1:{port} is away (no connection); limits and permits are local until it is back"
    ]
    assert link.stats().outages == 0
    await link.close()


@pytest.mark.parametrize(
    "url",
    ["redis://host:notaport/0", "redis://:hunter2@host:1/0?socket_timeout=x", "redis://:hunter2@host/?nonsense=1"],
)
async def test_an_address_that_is_none_is_refused_by_the_name_of_its_variable(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^SANDBOX_REDIS_URL is not") as caught:
        RedisLink(Secret(url))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


async def test_timeouts_in_the_address_do_not_replace_ours(server: RedisServer) -> None:
    link = RedisLink(Secret(f"unix://{server.socket}?socket_timeout=60&socket_connect_timeout=60&retry_on_timeout=yes"))
    assert await link.probe()
    server.pause()
    began = time.monotonic()
    assert not await link.probe()
    assert time.monotonic() - began < CALL_SECONDS + ROOM
    await link.close()


async def test_a_cancelled_call_leaves_no_answer_for_the_next(server: RedisServer, connect: Connect) -> None:
    """The connection of a call that was given up must not hand its answer to whoever gets it next."""
    link = await connect(server.url, call_seconds=CALL_SECONDS)

    async def echo(text: str) -> bytes:
        return await cast("Awaitable[bytes]", link.client.echo(text))

    for number in range(50):
        first = asyncio.create_task(link.call(lambda: echo("first")))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        first.cancel()
        assert await link.call(lambda: echo("second")) == b"second"
    assert link.is_ok


async def test_more_callers_than_connections_are_no_outage(server: RedisServer, connect: Connect) -> None:
    link = await connect(server.url, call_seconds=2)
    admission = RateAdmission(rate_limit="100000/minute", link=link)
    assert (await admit(admission, 500))[0] == 500
    assert admission.stats().local == 0
    assert int(dict(_lines(server.command("INFO", "clients")))["connected_clients"]) <= 17


async def test_our_own_standstill_is_not_taken_for_an_outage(server: RedisServer, connect: Connect) -> None:
    link = await connect(server.url, call_seconds=CALL_SECONDS)

    async def stand_still() -> None:
        await cast("Awaitable[bool]", link.client.ping())
        time.sleep(3 * CALL_SECONDS)  # noqa: ASYNC251 - that is the point
        await cast("Awaitable[bool]", link.client.ping())

    with suppress(RedisAway):
        await link.call(stand_still)
    assert link.is_ok


# Permits


def make_permits(
    link: RedisLink, instance: str = "one", bound: int = 4, strangers: ListStrangers | None = None
) -> RedisPermits:
    return RedisPermits(
        link, engine="engine", instance=instance, bounds={"python": bound}, times=QUICK, strangers=strangers or _nobody
    )


async def _nobody() -> list[Stranger]:
    return []


async def test_while_redis_is_away_an_instance_keeps_to_what_it_had(server: RedisServer, connect: Connect) -> None:
    """Nobody else is granted those meanwhile, so the bound over all instances holds through the outage."""
    link = await connect(server.url, call_seconds=CALL_SECONDS)
    permits = make_permits(link)
    async with anyio.create_task_group() as group:
        group.start_soon(permits.run)
        held = [await permits.acquire("python") for _ in range(2)]
        server.kill()
        await until(link, LinkState.DEGRADED)
        waiter = asyncio.create_task(permits.acquire("python"))
        await asyncio.sleep(0.2)
        assert not waiter.done()
        # A container that is replaced gets its place back.
        await held[0].release()
        with anyio.fail_after(1):
            replacement = await waiter
        assert replacement.fence == 0
        server.start()
        await until(link, LinkState.OK)
        with anyio.fail_after(2):
            while not replacement.fence:  # noqa: ASYNC110 - set by another task
                await asyncio.sleep(0.01)
        assert server.command("ZCARD", "sandbox_svc:{engine}:python:holders") == "2"
        with anyio.fail_after(2):
            await permits.acquire("python")
        group.cancel_scope.cancel()


async def test_in_an_outage_the_bound_over_all_instances_goes_on_holding(server: RedisServer, connect: Connect) -> None:
    """Each instance that had none was once given one, so that it could serve: four containers for a bound of two."""
    links = [await connect(server.url, call_seconds=CALL_SECONDS) for _ in range(3)]
    instances = [make_permits(link, name, bound=2) for link, name in zip(links, "abc", strict=True)]
    async with anyio.create_task_group() as group:
        for permits in instances:
            group.start_soon(permits.run)
        with anyio.fail_after(2):
            held = [await instances[0].acquire("python") for _ in range(2)]
        waiters = [asyncio.create_task(permits.acquire("python")) for permits in instances[1:]]
        with anyio.fail_after(2):
            while [permits.stats()["python"].total for permits in instances[1:]] != [2, 2]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        server.kill()
        for link in links:
            await until(link, LinkState.DEGRADED)
        # Those who had something replace it, those who had nothing wait.
        await held[0].release()
        with anyio.fail_after(1):
            await instances[0].acquire("python")
        await asyncio.sleep(0.3)
        assert [permits.stats()["python"].held for permits in instances] == [2, 0, 0]
        server.start()
        await asyncio.sleep(2 * QUICK.settle_seconds)
        assert sum(permits.stats()["python"].held for permits in instances) == 2
        for waiter in waiters:
            waiter.cancel()
        group.cancel_scope.cancel()


async def test_what_redis_may_have_counted_as_given_back_is_not_taken_again(
    server: RedisServer, connect: Connect
) -> None:
    """The step that said so was executed, its answer was lost with Redis, and another instance may have the permit."""
    link = await connect(server.url, call_seconds=CALL_SECONDS)
    permits = make_permits(link)
    held = [await permits.acquire("python") for _ in range(2)]
    server.pause()
    await held[0].release()
    await permits.close()
    await until(link, LinkState.DEGRADED)
    waiter = asyncio.create_task(permits.acquire("python"))
    await asyncio.sleep(0.2)
    assert not waiter.done()
    waiter.cancel()


async def test_an_instance_that_starts_without_its_redis_serves_by_its_own_bound(
    redis_folder: Path, connect: Connect
) -> None:
    server = RedisServer(redis_folder)
    link = await connect(server.url, call_seconds=CALL_SECONDS)
    permits = make_permits(link, bound=2)
    async with anyio.create_task_group() as group:
        group.start_soon(permits.run)
        with anyio.fail_after(1):
            for _ in range(2):
                await permits.acquire("python")
        waiter = asyncio.create_task(permits.acquire("python"))
        with server:
            await until(link, LinkState.OK)
            with anyio.fail_after(2):
                while permits.stats()["python"].total != 2:  # noqa: ASYNC110 - set by another task
                    await asyncio.sleep(0.01)
            await asyncio.sleep(QUICK.settle_seconds)
            assert not waiter.done()
        waiter.cancel()
        group.cancel_scope.cancel()


async def test_who_never_reached_redis_leaves_out_what_others_have_on_the_engine(
    redis_folder: Path, connect: Connect
) -> None:
    """Else each instance that starts in an outage takes the full bound once more."""
    seen = [Stranger("other", "python"), Stranger("other", "nodejs"), Stranger("another", "python")]

    async def strangers() -> list[Stranger]:
        return seen

    link = await connect(RedisServer(redis_folder).url, call_seconds=CALL_SECONDS)
    permits = make_permits(link, bound=3, strangers=strangers)
    with anyio.fail_after(1):
        await permits.acquire("python")
    waiter = asyncio.create_task(permits.acquire("python"))
    await asyncio.sleep(0.2)
    assert not waiter.done()
    seen.pop()
    with anyio.fail_after(1):
        await waiter


async def test_a_stuck_redis_that_goes_on_finds_no_ghosts(server: RedisServer, connect: Connect) -> None:
    """Steps given up while it stood still are executed when it wakes, after newer ones; they must change nothing."""
    link = await connect(server.url, call_seconds=CALL_SECONDS)
    permits = make_permits(link, bound=10)
    async with anyio.create_task_group() as group:
        group.start_soon(permits.run)
        held = [await permits.acquire("python") for _ in range(4)]
        server.pause()
        waiters = [asyncio.create_task(permits.acquire("python")) for _ in range(4)]
        await until(link, LinkState.DEGRADED)
        for permit in held[:3]:
            await permit.release()
        for waiter in waiters:
            waiter.cancel()
        server.resume()
        await until(link, LinkState.OK)
        await asyncio.sleep(0.3)
        in_use = permits.stats()["python"].held
        assert server.command("ZCARD", "sandbox_svc:{engine}:python:holders") == str(in_use)
        group.cancel_scope.cancel()


def _lines(text: str) -> list[tuple[str, str]]:
    return [tuple(line.split(":", 1)) for line in text.splitlines() if ":" in line]  # type: ignore[misc]

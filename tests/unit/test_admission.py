"""Who is counted for what, the windows in memory, and whose address it is."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from sandbox_svc.admission.keys import KeyRing, create_key
from sandbox_svc.admission.rates import RateAdmission, parse_rate
from sandbox_svc.admission.windows import MemoryWindows
from sandbox_svc.client_address import ForwardedClient, address_key, forwarded_client, parse_networks
from sandbox_svc.errors import Unauthorized
from sandbox_svc.service.runs import default_maxima
from sandbox_svc.service.tenants import Admission, Tenant
from tests.fakes import ManualClock

MAXIMA = default_maxima(timeout_seconds=10, memory_bytes=256 * 1024 * 1024)


async def allowed(admission: Admission, tenant: Tenant, times: int) -> int:
    decisions = [await admission.admit(tenant) for _ in range(times)]
    return sum(decision is None or decision.is_allowed for decision in decisions)


# Who


@pytest.mark.anyio
async def test_without_keys_each_address_has_its_own_rate(clock: ManualClock) -> None:
    admission = RateAdmission(rate_limit="5/second", clock=clock)
    one, two = admission.identify(None, "192.0.2.1"), admission.identify("whatever", "192.0.2.2")
    assert (one.name, two.name) == ("default", "default")
    assert await allowed(admission, one, 10) == 5
    assert await allowed(admission, two, 10) == 5


def test_without_keys_the_key_of_a_caller_changes_nothing() -> None:
    admission = RateAdmission(rate_limit="5/second")
    assert admission.identify("a", "192.0.2.1") == admission.identify("b", "192.0.2.1")


def test_one_site_of_ipv6_is_one_caller() -> None:
    admission = RateAdmission(rate_limit="5/second")
    near = [admission.identify(None, f"2001:db8:1:2::{host}") for host in ("1", "2", "ffff:ffff")]
    assert len({tenant.rate_key for tenant in near}) == 1
    assert admission.identify(None, "2001:db8:1:3::1") != near[0]
    assert admission.identify(None, "::ffff:192.0.2.1") == admission.identify(None, "192.0.2.1")


@pytest.mark.anyio
async def test_with_keys_a_tenant_has_one_rate_wherever_it_comes_from(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "keys.toml"
    plain, same, rich, free = (
        create_key(path, "plain"),
        create_key(path, "plain"),
        create_key(path, "rich", rate_limit="50/minute"),
        create_key(path, "free", rate_limit=""),
    )
    admission = RateAdmission(rate_limit="5/second", keys=KeyRing(str(path), maxima=MAXIMA), clock=clock)
    assert await allowed(admission, admission.identify(plain, "192.0.2.1"), 4) == 4
    assert await allowed(admission, admission.identify(same, "192.0.2.2"), 4) == 1
    assert await allowed(admission, admission.identify(rich, None), 100) == 50
    assert await allowed(admission, admission.identify(free, None), 100) == 100
    with pytest.raises(Unauthorized):
        admission.identify(None, "192.0.2.1")
    stats = admission.stats()
    assert (stats.allowed, stats.refused, stats.local, stats.windows) == (55, 53, 0, 2)


def test_a_rate_is_read_as_limits_reads_it() -> None:
    assert [(parse_rate(text).amount, parse_rate(text).get_expiry()) for text in ("5/second", "100/2 hours")] == [
        (5, 1),
        (100, 7200),
    ]


# Windows in memory


def test_a_window_moves_with_the_clock(clock: ManualClock) -> None:
    windows = MemoryWindows(clock=clock)
    asyncio.run(clock.advance(0))
    assert [windows.take_now("a", 2, 10).remaining for _ in range(2)] == [1, 0]
    asyncio.run(clock.advance(6))
    refused = windows.take_now("a", 2, 10)
    assert (refused.is_admitted, refused.remaining, refused.reset_seconds) == (False, 0, 4)
    asyncio.run(clock.advance(4))
    assert windows.take_now("a", 2, 10).is_admitted


def test_a_forced_place_counts_and_takes_no_more_room_than_there_is(clock: ManualClock) -> None:
    windows = MemoryWindows(clock=clock)
    for _ in range(10):
        assert windows.take_now("a", 3, 10, is_forced=True).is_admitted
    assert windows.take_now("a", 3, 10).remaining == 0


def test_windows_that_are_over_are_forgotten(clock: ManualClock) -> None:
    windows = MemoryWindows(clock=clock)
    for number in range(1000):
        windows.take_now(f"old {number}", 5, 1)
    asyncio.run(clock.advance(2))
    for number in range(500):
        windows.take_now(f"new {number}", 5, 1)
    assert len(windows) == 500


def test_windows_are_bounded_and_the_one_used_longest_ago_goes_first(clock: ManualClock) -> None:
    """A caller with many addresses makes no window of its own disappear that it goes on using."""
    windows = MemoryWindows(clock=clock, max_windows=100)
    for _ in range(5):
        windows.take_now("steady", 5, 3600)
    for number in range(1000):
        windows.take_now(f"other {number}", 5, 3600)
        if number % 50 == 0:
            assert not windows.take_now("steady", 5, 3600).is_admitted
    assert len(windows) <= 101


@pytest.mark.anyio
async def test_a_wall_clock_that_is_set_back_shuts_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory storage of `limits` refuses everybody for as long as it was set back."""
    admission = RateAdmission(rate_limit="1/second")
    tenant = Tenant()
    with monkeypatch.context() as patch:
        later = time.time() + 3600
        patch.setattr("time.time", lambda: later)
        assert await allowed(admission, tenant, 2) == 1
    await asyncio.sleep(1.1)
    assert await allowed(admission, tenant, 2) == 1


# Whose address

PROXIES = parse_networks("10.0.0.0/8, 127.0.0.1,fd00::/8")


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        # Nobody but a proxy is listened to.
        ("192.0.2.9", ["1.2.3.4"], "192.0.2.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        # What a client put there itself stands before what the proxy put there.
        ("10.0.0.1", ["1.2.3.4, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["1.2.3.4", "198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["10.9.9.9, 198.51.100.7"], "198.51.100.7"),
        # A chain of proxies.
        ("127.0.0.1", ["1.2.3.4, 198.51.100.7, 10.0.0.2, 10.0.0.3"], "198.51.100.7"),
        ("127.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        # Other spellings.
        ("10.0.0.1", ["198.51.100.7:1234"], "198.51.100.7"),
        ("10.0.0.1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("fd00::1", ["198.51.100.7"], "198.51.100.7"),
        # What is no address ends it.
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7, _hidden"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", [", ,"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4," * 10_000 + "198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["10.0.0.2," * 10_000], "10.0.0.1"),
        ("10.0.0.1", ["\xff\xfe"], "10.0.0.1"),
        ("not an address", ["198.51.100.7"], "not an address"),
    ],
)
def test_only_a_configured_proxy_names_the_client(peer: str, headers: list[str], client: str) -> None:
    values = [header.encode("latin-1") for header in headers]
    assert forwarded_client(peer, values, PROXIES) == client


@pytest.mark.parametrize("text", ["10.0.0.0/33", "proxy.example", "10.0.0.1/8", "*", "all"])
def test_networks_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a list of networks"):
        parse_networks(text)


def test_no_networks_are_no_proxies() -> None:
    assert parse_networks("") == ()


@pytest.mark.parametrize("client", [None, "", "/run/socket", "unix:"])
def test_a_peer_without_an_address_is_local(client: str | None) -> None:
    assert address_key(client) == "local"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("trusted", "client", "seen"),
    [
        ("10.0.0.1", ("10.0.0.1", 5), ("198.51.100.7", 0)),
        ("10.0.0.1", ("192.0.2.1", 5), ("192.0.2.1", 5)),
        ("", ("10.0.0.1", 5), ("10.0.0.1", 5)),
        ("10.0.0.1", None, None),
    ],
)
async def test_the_middleware_changes_the_client_and_nothing_else(
    trusted: str, client: tuple[str, int] | None, seen: tuple[str, int] | None
) -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    async def receive() -> Message:
        raise AssertionError

    async def send(_message: Message) -> None:
        raise AssertionError

    scope = {"type": "http", "client": client, "headers": [(b"x-forwarded-for", b"198.51.100.7")], "path": "/run"}
    await ForwardedClient(app, trusted=parse_networks(trusted))(scope, receive, send)
    assert scopes == [{**scope, "client": seen}]
    assert scope["client"] == client

"""The one connection to Redis: a pool, a deadline for every call, and a breaker that says whether Redis is there."""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from limits.errors import StorageError
from redis import exceptions
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sandbox_svc.clock import Clock, LoopClock, sleep
from sandbox_svc.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.commands.core import AsyncScript

    from sandbox_svc.notation import Secret

logger = logging.getLogger("sandbox_svc.redis")

T = TypeVar("T")

CALL_SECONDS: Final = 0.25
"""What a call may cost a request in the worst case: a place in the pool, the connection and the answer together."""
SLOW_PART: Final = 1 / 2
"""An answer that takes more than this part of a call's deadline is slow; a call given up after it proves an outage."""
QUICK_PART: Final = 1 / 3
"""After an outage a round trip must take less than this part. Smaller than the other, so that a latency in between does
not open and close the breaker in turn."""
SLOW_CALLS: Final = 48
"""How far slow calls and those without a place must outnumber the others for Redis to count as away: more than one
burst of three times `MAX_CONNECTIONS` does."""
SLOW_PROBE: Final = 8
"""Calls that a slow probe counts for, so that an instance without callers notices within a quarter of a minute too."""
MAX_CONNECTIONS: Final = 16
PROBE_SECONDS: Final = 0.5
"""First pause before a Redis that failed is tried again; doubled up to `MAX_PROBE_SECONDS` while it goes on failing."""
MAX_PROBE_SECONDS: Final = 2.0
IDLE_PROBE_SECONDS: Final = 2.0
"""How often a Redis that answers is asked all the same, so that an idle instance notices too that it went away."""
STEADY_SECONDS: Final = 10.0
"""A Redis that fails again sooner than this after coming back is tried at a growing distance."""
NOT_ASKED: Final = "not asked yet"
"""Why a link is degraded before its first attempt."""

# What a client may throw at us for whatever a server may say. Anything else is a slip of our own and must be seen.
_FAILURES: Final = (
    exceptions.RedisError,
    StorageError,
    OSError,
    TimeoutError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,  # uvloop's for a write to a connection that was reset while idle; RecursionError is one too
)


class RedisAway(Exception):
    """Redis cannot be used now. `reason` is one of a few fixed words: what a server says may hold a password.

    A signal between the link and its users, who go on with what this instance knows; no caller of the service sees it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"Redis is away: {reason}")
        self.reason = reason


class LinkState(enum.Enum):
    """What readiness and metrics say of Redis."""

    OK = "ok"
    DEGRADED = "degraded"
    """Redis is away, or was not asked yet; limits and permits are this instance's own meanwhile."""


class LinkStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot for metrics and readiness; counters only grow."""

    state: LinkState
    since_seconds: float
    """How long the state has lasted."""
    reason: str | None
    """Why it is degraded, in a word that names no secret; None while it is not."""
    ok_calls: int
    refused_calls: int
    """Calls answered at once because Redis was known to be away."""
    failed_calls: int
    """Without the link's own probes, as `ok_calls` are."""
    outages: int


def script_source(name: str) -> str:
    """Text of one of our Lua scripts."""
    return resources.files("sandbox_svc.admission").joinpath("lua", name).read_text(encoding="utf-8")


class RedisLink:
    """A client for one Redis that never keeps anyone waiting for long.

    `call` takes at most `call_seconds` and raises only `RedisAway`. A failure opens the breaker: from then on calls
    are refused at once, at no cost, until `watch` has seen Redis take a write again. So one call in flight per
    connection pays for an outage, and no request pays for the attempts to end it. A Redis that answers, but most of the
    time too slowly or too few at a time, is away too, since each request would pay for that.
    """

    def __init__(
        self,
        url: Secret,
        *,
        call_seconds: float = CALL_SECONDS,
        max_connections: int = MAX_CONNECTIONS,
        probe_seconds: float = PROBE_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        """Take an address; nothing is connected yet. Raises `SettingsError` for one that is no address."""
        self._clock = clock or LoopClock()
        self._call_seconds = call_seconds
        self._probe_seconds = probe_seconds
        self._where, self.pool = _connection_pool(url.reveal(), call_seconds)
        self.client = Redis(connection_pool=self.pool)
        """For use within `call` only."""
        # The pool has no bound of its own: its way of waiting can lose a place to a cancelled waiter.
        self._places = asyncio.Semaphore(max_connections)
        self._probe = self.client.register_script(script_source("probe.lua"))
        self._state = LinkState.DEGRADED
        self._reason: str | None = NOT_ASKED
        self._since = self._clock.time()
        self._recovered_at = float("-inf")
        self._pause = probe_seconds
        self._answered = self._refused = self._failed = self._outages = 0
        self._slow_calls = 0
        """By how much slow calls outnumber the others of late; up to `SLOW_CALLS`."""
        self._listeners: list[Callable[[], None]] = []
        self._left_ok = asyncio.Event()

    @property
    def state(self) -> LinkState:
        return self._state

    @property
    def is_ok(self) -> bool:
        return self._state is LinkState.OK

    def stats(self) -> LinkStats:
        return LinkStats(
            state=self._state,
            since_seconds=self._clock.time() - self._since,
            reason=self._reason,
            ok_calls=self._answered,
            refused_calls=self._refused,
            failed_calls=self._failed,
            outages=self._outages,
        )

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change of the state; it must return at once and must not raise."""
        self._listeners.append(listener)

    def script(self, name: str) -> AsyncScript:
        """Register one of our scripts: an EVALSHA per call, sent whole only to a server that does not know it."""
        return self.client.register_script(script_source(name))

    async def call(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run `operation`, which asks Redis and reads its answer, within the deadline.

        `operation` may raise what the client raises, and `ValueError`, `TypeError` or `LookupError` for an answer that
        makes no sense. Raises `RedisAway`. Cancelling gives up the connection and leaves unknown whether Redis did it.
        """
        if self._state is not LinkState.OK:
            self._refused += 1
            raise RedisAway(self._reason or "unknown")
        answer = await self._attempt(operation, is_probe=False)
        self._answered += 1
        return answer

    async def _attempt(self, operation: Callable[[], Awaitable[T]], *, is_probe: bool) -> T:
        began = placed = self._clock.time()
        has_place = False
        try:
            async with asyncio.timeout(self._call_seconds):
                async with self._places:
                    has_place = True
                    placed = self._clock.time()
                    answer = await operation()
        except _FAILURES as error:
            reason = _reason(error)
        else:
            if not is_probe:
                self._weigh(1 if self._clock.time() - placed > self._call_seconds * SLOW_PART else -1)
            return answer
        # Raised out here so that the error carries no trace of the client's own, whose text may hold what was sent.
        if not is_probe:
            self._failed += 1
        now = self._clock.time()
        if reason == "timeout" and now - began > 2 * self._call_seconds:
            pass  # our own loop stood still, so the deadline says nothing about Redis
        elif has_place and (reason != "timeout" or now - placed > self._call_seconds * SLOW_PART):
            self._leave_ok(reason)
        else:
            self._weigh(1)  # the others had all places for so long that little time or none was left for this one
        if is_probe and self._state is not LinkState.OK:
            self._be_away(reason)
        raise RedisAway(reason)

    def _weigh(self, calls: int) -> None:
        """Note slow calls, or quick ones as a negative number; too many more of the former are an outage."""
        self._slow_calls = max(self._slow_calls + calls, 0)
        if self._slow_calls >= SLOW_CALLS:
            self._leave_ok("slow")

    def _leave_ok(self, reason: str) -> None:
        if self._state is LinkState.DEGRADED:
            return
        now = self._clock.time()
        is_relapse = now - self._recovered_at < STEADY_SECONDS
        self._pause = min(self._pause * 2, MAX_PROBE_SECONDS) if is_relapse else self._probe_seconds
        self._state, self._reason, self._since = LinkState.DEGRADED, reason, now
        self._outages += 1
        self._warn(reason)
        self._left_ok.set()
        self._tell()

    def _be_away(self, reason: str) -> None:
        """Note why Redis is still away; said once where it was so from the start, which is no outage that began."""
        if self._reason == NOT_ASKED:
            self._warn(reason)
        self._reason = reason

    def _warn(self, reason: str) -> None:
        logger.warning("redis at %s is away (%s); limits and permits are local until it is back", self._where, reason)

    def _enter_ok(self) -> None:
        if self._state is LinkState.OK:
            return
        now = self._clock.time()
        logger.info("redis at %s answers, after %.1f s", self._where, now - self._since)
        self._state, self._reason, self._since, self._recovered_at = LinkState.OK, None, now, now
        self._slow_calls = 0
        self._left_ok.clear()
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    async def probe(self) -> bool:
        """Try a write and set the state by it, within the deadline; a read-only, full or slow Redis is away too.

        Called by `watch`, and once at start so that the first request finds the state known. Raises nothing.
        """
        try:
            took = await self._attempt(self._probe_once, is_probe=True)
        except RedisAway:
            return False
        if self._state is LinkState.OK:
            self._weigh(SLOW_PROBE if took > self._call_seconds * SLOW_PART else -1)
        elif took < self._call_seconds * QUICK_PART:
            self._enter_ok()
        else:
            self._be_away("slow")
        return self.is_ok

    async def _probe_once(self) -> float:
        """Return the seconds that a round trip takes."""
        if self._state is not LinkState.OK:
            # They belong to a server that is gone or stuck.
            await self.pool.disconnect(inuse_connections=False)
            await self._write()  # on a new connection, and perhaps to a server that does not know the script yet
        began = self._clock.time()
        await self._write()
        return self._clock.time() - began

    async def _write(self) -> None:
        if int(await self._probe(keys=["sandbox_svc:probe"], args=[10_000])) != 1:
            raise ValueError("not the answer of the script")

    async def watch(self) -> None:
        """Tend the state until cancelled: notice an outage while idle, and the end of one. Run it supervised."""
        while True:
            if self._state is LinkState.OK:
                try:
                    async with asyncio.timeout(IDLE_PROBE_SECONDS):
                        await self._left_ok.wait()
                except TimeoutError:
                    await self.probe()
                continue
            # Instances that lost the same Redis should not all come back in the same instant.
            await sleep(self._clock, self._pause * random.uniform(0.75, 1.0))  # noqa: S311
            if not await self.probe():
                self._pause = min(self._pause * 2, MAX_PROBE_SECONDS)

    async def close(self) -> None:
        """Drop all connections; calls under way fail."""
        self._state, self._reason = LinkState.DEGRADED, "closed"
        try:
            await self.pool.disconnect()
        except _FAILURES:
            logger.debug("a connection to redis did not close cleanly")

    def __repr__(self) -> str:
        return f"<RedisLink {self._where} {self._state.value}>"


def _connection_pool(url: str, call_seconds: float) -> tuple[str, ConnectionPool]:
    """Return a pool and its address without what is secret in it."""
    try:
        options: dict[str, Any] = dict(parse_url(url))
        path = options.get("path")
        where = str(path) if path else f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        # Ours come last: an address may not bring timeouts or retries of its own.
        options |= {
            # The deadline of the call covers it. The client's own costs a task per command, and until Python 3.12 the
            # `wait_for` that it uses swallows a cancellation, ours included.
            "socket_timeout": None,
            "socket_connect_timeout": call_seconds,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
            "decode_responses": False,
            # Names would cost a new connection a round trip each, which a Redis far away answers in 50 ms.
            "driver_info": None,
        }
        for name in ("max_connections", "retry_on_timeout", "retry_on_error"):
            options.pop(name, None)
        pool = ConnectionPool(**options)
        # Unknown options of the address are refused when a connection is made, so make one; it connects to nothing.
        pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
    except (ValueError, TypeError, exceptions.RedisError):
        pass
    else:
        return where, pool
    # Outside of the handler: what went wrong may quote the address and so the password.
    raise SettingsError("SANDBOX_REDIS_URL is not an address such as redis://host:6379/0")


def _reason(error: BaseException) -> str:
    """A word for what went wrong. Never the error's text: servers quote commands, and AUTH is one."""
    if isinstance(error, StorageError):
        error = error.storage_error
    # The client hides why a handshake failed behind a failed connection, so the word that comes first wins.
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 8:
        chain.append(inner)
    for kinds, word in _REASONS:
        if any(isinstance(link, kinds) for link in chain):
            return word
    return "unexpected answer"


_REASONS: Final[tuple[tuple[tuple[type[BaseException], ...], str], ...]] = (
    (
        (
            exceptions.AuthenticationError,
            exceptions.AuthorizationError,
            exceptions.NoPermissionError,
            exceptions.AuthenticationWrongNumberOfArgsError,
        ),
        "not authorised",
    ),
    ((exceptions.BusyLoadingError,), "loading"),
    ((exceptions.ReadOnlyError,), "read-only"),
    ((exceptions.OutOfMemoryError,), "out of memory"),
    ((exceptions.TimeoutError, TimeoutError), "timeout"),
    ((exceptions.ConnectionError, OSError, EOFError), "no connection"),
    ((exceptions.ResponseError,), "refused"),
    ((RecursionError,), "unexpected answer"),
    ((RuntimeError,), "no connection"),
)

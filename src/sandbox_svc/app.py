"""Composition root: builds each object once, owns the life of the process, and alone names concrete classes."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from sandbox_svc.admission.keys import KeyRing
from sandbox_svc.admission.liveness import Liveness
from sandbox_svc.admission.permits import RedisPermits
from sandbox_svc.admission.rates import RateAdmission
from sandbox_svc.admission.redis_link import RedisLink
from sandbox_svc.analysis import AnalysisService
from sandbox_svc.client_address import ForwardedClient
from sandbox_svc.clock import LoopClock
from sandbox_svc.errors import SettingsError
from sandbox_svc.http.api import create_api
from sandbox_svc.http.reply import Reply
from sandbox_svc.http.server import HttpServer
from sandbox_svc.pool.keeper import Keeper
from sandbox_svc.pool.pool import Pool, PoolSettings, Reuse
from sandbox_svc.runtime.docker_runtime import DockerRuntime
from sandbox_svc.runtime.instances import Birthmark
from sandbox_svc.service.naming import LanguageNames
from sandbox_svc.service.runs import default_maxima
from sandbox_svc.service.service import Service
from sandbox_svc.telemetry.logs import log_run
from sandbox_svc.telemetry.metrics import CONTENT_TYPE, Metrics, Sources
from sandbox_svc.view import View

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from starlette.types import ASGIApp

    from sandbox_svc.runtime import Runtime
    from sandbox_svc.runtime.engine_events import EngineObserver
    from sandbox_svc.runtime.instances import IsAlive
    from sandbox_svc.service.events import RunEnded, RunObserver
    from sandbox_svc.settings import Settings

logger = logging.getLogger("sandbox_svc.app")

METRICS_TYPE: Final = (b"content-type", CONTENT_TYPE)

ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that end the service in order; the last one is what a terminal that is closed sends."""
ANSWER_SECONDS: Final = 2.0
"""After the drain: for answers that are made to be taken by their callers."""


class OpenRuntime(Protocol):
    """Makes the runtime; leaving its context removes all containers. Raises `RuntimeUnavailable`."""

    def __call__(
        self, settings: Settings, /, *, instance_id: str, is_instance_alive: IsAlive | None, observer: EngineObserver
    ) -> AbstractAsyncContextManager[Runtime]: ...


def open_docker_runtime(
    settings: Settings, *, instance_id: str, is_instance_alive: IsAlive | None, observer: EngineObserver
) -> AbstractAsyncContextManager[DockerRuntime]:
    return DockerRuntime.open(
        memory_bytes=settings.max_memory_bytes,
        instance_id=instance_id,
        docker_host=settings.docker_host,
        tls_directory=None if settings.docker_cert_path is None else Path(settings.docker_cert_path),
        runtime=settings.runtime,
        is_instance_alive=is_instance_alive,
        observer=observer,
        egress=settings.egress,
    )


async def serve(
    settings: Settings,
    *,
    open_runtime: OpenRuntime = open_docker_runtime,
    on_listening: Callable[[str, int], None] | None = None,
) -> int:
    """Serve until a signal or a failure ends it; return the exit code. To be the main task of its process.

    Raises `SettingsError`, `RuntimeUnavailable` or `OSError` when it cannot start.
    """
    life = Life()
    async with AsyncExitStack() as stack:
        life.listen_for_signals()
        stack.callback(life.forget_signals)
        tracers = _open_tracing(stack) if settings.traces_endpoint else []
        clock = LoopClock()
        instance_id = secrets.token_hex(8)
        maxima = default_maxima(timeout_seconds=settings.timeout_seconds, memory_bytes=settings.max_memory_bytes)
        keys = KeyRing(settings.api_keys_file, maxima=maxima) if settings.api_keys_file else None
        shared = await Shared.open(stack, settings, instance_id) if settings.redis_url else None
        metrics = Metrics(settings.languages)
        runtime = await stack.enter_async_context(
            open_runtime(
                settings,
                instance_id=instance_id,
                is_instance_alive=None if shared is None else shared.liveness.is_instance_alive,
                observer=metrics.engine_failed,
            )
        )
        permits: RedisPermits | None = None
        if shared is not None and isinstance(runtime, DockerRuntime):
            permits = shared.permits(settings, runtime, instance_id)
            stack.push_async_callback(permits.close)
        pool = Pool(
            dict.fromkeys(settings.languages, settings.pool_size),
            clock=clock,
            settings=PoolSettings(reuse=Reuse(settings.reuse), queue_size=settings.queue_size),
            observer=metrics.pool_event,
        )
        keeper = Keeper(pool, runtime, clock=clock, permits=permits)
        names = LanguageNames(settings.languages, lambda: keeper.languages)
        link = None if shared is None else shared.link
        admission = RateAdmission(rate_limit=settings.rate_limit, keys=keys, link=link)
        analyser: AnalysisService | None = None
        if settings.analysis != "off":
            analyser = AnalysisService(settings.analysis)
            stack.push_async_callback(analyser.aclose)
        service = Service(
            pool=pool,
            names=names,
            maxima=maxima,
            queue_timeout_seconds=settings.queue_timeout_seconds,
            admission=admission,
            analyser=analyser,
            refuses=settings.analysis != "report",
            observer=_tell(log_run, metrics.run_ended, *tracers),
        )
        view = View(
            pool=pool,
            keeper=keeper,
            runtime=runtime,
            names=names,
            service=service,
            link=link,
            keys=keys,
            egress=settings.egress,
            permits=permits,
        )
        api: ASGIApp = create_api(
            service=service,
            admission=admission,
            max_body_bytes=settings.max_body_bytes,
            readiness=view.readiness,
            languages=view.languages,
            metrics=lambda: Reply(200, [METRICS_TYPE], metrics.render()),
            on_refused=metrics.request_refused,
        )
        if settings.trusted_proxies:
            api = ForwardedClient(api, trusted=settings.trusted_proxies)
        server = HttpServer(api, max_connections=settings.max_connections)
        metrics.read_from(
            Sources(
                pool=pool,
                is_engine_up=lambda: keeper.is_engine_up,
                connections=lambda: server.connections,
                shed=lambda: server.shed,
                tasks=lambda: len(asyncio.all_tasks()),
                rates=admission.stats,
                redis=None if link is None else link.stats,
                permits=None if permits is None else permits.stats,
                are_keys_usable=None if keys is None else lambda: keys.problem is None,
            )
        )
        # Before the group, so that a port that is taken is an error of its own and not one of a group.
        host, port = await _listen(server, settings)
        async with asyncio.TaskGroup() as group:
            helpers = [life.supervise(group, "keeper", keeper.run())]
            if shared is not None:
                helpers.append(life.supervise(group, "redis link", shared.link.watch()))
            if shared is not None and permits is not None and isinstance(runtime, DockerRuntime):
                helpers.append(life.supervise(group, "permits", permits.run()))
                helpers.append(life.supervise(group, "liveness", shared.liveness.run(keeper.sweep, runtime.strangers)))
            if keys is not None:
                helpers.append(life.supervise(group, "key file", keys.watch()))
            try:
                logger.info("listening on http://%s:%d", host, port)
                if on_listening is not None:
                    on_listening(host, port)
                await life.ended()
            finally:
                life.on_haste(runtime.hasten)
                life.on_haste(keeper.hasten)
                await _shut_down(life, keeper, server, settings.drain_timeout_seconds)
                for helper in helpers:
                    helper.cancel()
    return 1 if life.is_failed else 0


async def _listen(server: HttpServer, settings: Settings) -> tuple[str, int]:
    try:
        return await server.listen(settings.host, settings.port)
    except OSError as error:
        name = "SANDBOX_PORT" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "SANDBOX_HOST"
        where = f"{settings.host} port {settings.port}"
        raise SettingsError(f"{name}: the service cannot listen on {where} ({error.strerror})") from error


def _open_tracing(stack: AsyncExitStack) -> list[RunObserver]:
    """The observer that exports spans; none where the extra is not installed, which is said and not fatal: platforms
    put the variable into every container.
    """
    try:
        from sandbox_svc.telemetry.tracing import RunTracer  # noqa: PLC0415 - an optional extra
    except ImportError:
        logger.warning("OTEL_EXPORTER_OTLP_ENDPOINT has no effect: install the extra, sandbox-svc[otel]")
        return []
    tracer = RunTracer()
    stack.callback(tracer.close)
    return [tracer.run_ended]


def _tell(*observers: RunObserver) -> RunObserver:
    def tell(event: RunEnded) -> None:
        for observer in observers:
            observer(event)

    return tell


class Shared(NamedTuple):
    """What instances share through a Redis."""

    link: RedisLink
    liveness: Liveness
    here: Birthmark

    @classmethod
    async def open(cls, stack: AsyncExitStack, settings: Settings, instance_id: str) -> Shared:
        """Look whether Redis is there; the service starts without it too. Leaving the stack says goodbye to it."""
        link = RedisLink(settings.redis_url)
        stack.push_async_callback(link.close)
        await link.probe()
        here = Birthmark.of_this_process()
        liveness = Liveness(link, instance=instance_id, languages=settings.languages, here=here)
        stack.push_async_callback(liveness.leave)
        return cls(link, liveness, here)

    def permits(self, settings: Settings, runtime: DockerRuntime, instance_id: str) -> RedisPermits:
        """Count containers over all instances that use the same engine."""
        engine = runtime.facts.id
        self.liveness.use_engine(engine)
        return RedisPermits(
            self.link,
            engine=engine,
            instance=instance_id,
            bounds=dict.fromkeys(settings.languages, settings.max_containers or settings.pool_size + 1),
            birthmark=str(self.here),
            strangers=runtime.strangers,
        )


async def _shut_down(life: Life, keeper: Keeper, server: HttpServer, drain_seconds: float) -> None:
    """The order in which it ends. Each step has a bound; a second signal cuts them short."""
    life.is_draining = True
    logger.info("draining for at most %g s", drain_seconds)
    await server.stop_keeping_alive()
    # Refuses, answers those who wait, lets runs finish, then takes the containers from those that did not.
    left = await keeper.drain(deadline_seconds=drain_seconds)
    # Still listening up to here, so that callers read that it drains and not that nobody is there.
    await server.stop_listening()
    await server.finish(ANSWER_SECONDS)
    logger.info("drained; %d containers left behind", left)


class Life:
    """Whether the process goes on: signals and dead helpers end it."""

    def __init__(self) -> None:
        self.is_draining = False
        self.is_failed = False
        self._is_over = asyncio.Event()
        self._is_hasty = False
        self._hasten: list[Callable[[], None]] = []

    async def ended(self) -> None:
        await self._is_over.wait()

    def end(self) -> None:
        """Begin the shutdown; said again, end it now."""
        if not self._is_over.is_set():
            self._is_over.set()
            return
        self._is_hasty = True
        self.forget_signals()
        # A third one kills. Its default action would too, but not for process 1 of a container.
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: os._exit(128 + number))
        for hasten in self._hasten:
            hasten()

    def on_haste(self, hasten: Callable[[], None]) -> None:
        self._hasten.append(hasten)
        if self._is_hasty:
            hasten()

    def supervise(self, group: asyncio.TaskGroup, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a helper that must not end before the service does: if it dies, the service shuts down and says so.

        Otherwise requests would go on being answered by a service that no longer refills or renews anything.
        """
        return group.create_task(self._watch(name, work), name=name)

    async def _watch(self, name: str, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception:
            logger.exception("%s died; shutting down", name)
            self._fail()
        else:
            if not self.is_draining:
                logger.error("%s ended by itself; shutting down", name)
                self._fail()

    def _fail(self) -> None:
        self.is_failed = True
        self._is_over.set()

    def listen_for_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in ENDING:
            # `nohup` has SIGHUP ignored, and means it.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._signalled, number)

    def forget_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in ENDING:
            loop.remove_signal_handler(number)

    def _signalled(self, number: signal.Signals) -> None:
        logger.info("%s: %s", number.name, "ending now" if self._is_over.is_set() else "shutting down")
        self.end()

"""Every call to the container engine: the only importer of aiodocker, with deadlines and errors in our words."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import aiodocker
import aiohttp
import msgspec
from aiodocker.containers import DockerContainer
from aiodocker.stream import Stream

from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.runtime import engine_events
from sandbox_svc.runtime.engine_events import EngineCall, EngineErrorKind, EngineFailed, EngineObserver
from sandbox_svc.runtime.instances import Listed

log = logging.getLogger("sandbox_svc.docker")

RuntimeName = Literal["auto", "runc", "runsc"]

DEFAULT_HOST: Final = "unix:///var/run/docker.sock"

READ_SECONDS: Final = 10.0
"""For calls that only look; a frozen engine must not hold its callers."""
CHANGE_SECONDS: Final = 20.0
REMOVE_SECONDS: Final = 30.0
OOM_SECONDS: Final = 3.0

OLDEST_API: Final = (1, 41)
"""Docker 20.10; what is older is not tried."""

_BROKEN: Final = (aiohttp.ClientError, RuntimeError, AssertionError)
"""What aiodocker raises, beside `OSError`, on a stream whose connection has gone; it asserts that there is one."""
_UNREACHABLE: Final = 900
"""aiodocker's own number for no connection, and for one that broke."""
_GONE: Final = 404
_CONFLICT: Final = 409
_ENDED: Final = frozenset(("exited", "dead", "removing"))
_NEVER: Final = "0001-"


class EngineRefused(RuntimeUnavailable):
    """The engine said no, or nobody was there to ask: what was asked for has not happened and will not."""


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator has to know of the engine in use."""

    id: str
    """The engine's own; instances that see the same one share it."""
    version: str
    api_version: str
    runtime: str = ""
    """The container runtime in force, `runc` or `runsc`; empty until one was chosen."""
    cgroup_version: str
    cpus: int
    memory_bytes: int
    runtimes: tuple[str, ...]
    """All container runtimes that are registered."""
    skew_seconds: float
    """How far the engine's clock is ahead of ours, give or take the time that the question took."""
    is_uid_mapped: bool
    """User namespaces or rootless: root in a container is nobody on the host, and uids end at 65535."""
    has_seccomp: bool = True
    lacking: tuple[str, ...] = ()
    """Limits that this engine does not enforce and that we depend on, by the engine's own names."""
    warnings: tuple[str, ...] = ()
    """Limits that this engine does not enforce and that we can do without."""

    @property
    def is_too_old(self) -> bool:
        return tuple(int(part) for part in re.findall(r"\d+", self.api_version)[:2]) < OLDEST_API

    def choose_runtime(self, wanted: RuntimeName) -> str:
        """Return the container runtime to use. Raises `RuntimeUnavailable` where the engine lacks it."""
        if wanted == "auto":
            wanted = "runsc" if "runsc" in self.runtimes else "runc"
        if wanted not in self.runtimes:
            # Never another one in its place: whoever names a runtime counts on its isolation.
            known = ", ".join(self.runtimes)
            raise RuntimeUnavailable(f"The container engine has no runtime {wanted!r}; it has {known}.")
        return wanted


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image as the engine lists it."""

    id: str
    labels: dict[str, str]
    tags: tuple[str, ...]
    created_at: int


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network of the engine."""

    name: str
    driver: str
    scope: str
    is_internal: bool
    """It has no way out."""


class EngineStream:
    """stdin, stdout and stderr of a container, attached before it starts."""

    def __init__(self, stream: Stream) -> None:
        # aiodocker's own reader costs what a bare asyncio protocol on the same socket costs: 144 against 158 us for a
        # round trip of 200 bytes, 4.3 against 3.8 ms for one of 1 MiB, 50 us of CPU per message with either.
        self._stream = stream

    async def read(self) -> tuple[int, bytes] | None:
        """Return the next chunk and its stream (1 stdout, 2 stderr), None at the end. Raises `OSError`."""
        try:
            return await self._stream.read_out()
        except _BROKEN as error:
            raise OSError("the attached stream failed") from error

    async def write(self, data: bytes) -> None:
        """Hand over all of `data` at once, then wait until the stream takes more. Raises `OSError`."""
        try:
            await self._stream.write_in(data)
        except _BROKEN as error:
            raise OSError("the attached stream failed") from error

    async def close(self) -> None:
        """Let go of the stream, which ends stdin of the container. Safe to repeat; raises nothing."""
        try:
            await self._stream.close()
        except (*_BROKEN, OSError) as error:
            log.debug("an attached stream was broken when it was closed: %r", error)
            response = self._stream._resp  # noqa: SLF001 - aiodocker leaves it open when the half-close before it fails
            if response is not None:
                response.close()


class Engine:
    """A client of one engine. Every method raises `RuntimeUnavailable` and none waits without a deadline."""

    def __init__(
        self,
        docker_host: str | None = None,
        tls_directory: Path | None = None,
        *,
        observer: EngineObserver = engine_events.ignore,
    ) -> None:
        """`docker_host` is `unix://` or `tcp://`; `tls_directory` holds ca.pem, cert.pem and key.pem."""
        self._observer = observer
        host = urlsplit(docker_host or DEFAULT_HOST)
        # limit=0: an attached stream holds its connection as long as its container lives, and aiohttp's default of 100
        # connections would end in a silent standstill.
        self._connector: aiohttp.BaseConnector
        if host.scheme == "unix":
            self._connector = aiohttp.UnixConnector(host.path, limit=0)
            url = "unix://localhost"
        elif host.scheme in ("tcp", "http", "https"):
            context = _tls_context(tls_directory) if tls_directory else None
            self._connector = aiohttp.TCPConnector(limit=0, ssl=context or True)
            url = f"{'https' if context or host.scheme == 'https' else 'http'}://{host.netloc}"
        else:
            raise RuntimeUnavailable("DOCKER_HOST must start with unix:// or tcp://.")
        self._docker = aiodocker.Docker(url=url, connector=self._connector)

    def _calling(self, call: EngineCall, what: str, seconds: float) -> AbstractAsyncContextManager[None]:
        return _calling(what, seconds, lambda kind: self._observer(EngineFailed(call, kind)))

    async def close(self) -> None:
        await self._docker.close()
        await self._connector.close()

    async def facts(self, runtime: RuntimeName) -> EngineFacts:
        """Look at the engine. Raises `RuntimeUnavailable` also where it lacks `runtime` or a limit we depend on."""
        facts = await self.describe()
        if facts.is_too_old:
            oldest = ".".join(map(str, OLDEST_API))
            raise RuntimeUnavailable(f"The container engine speaks API {facts.api_version}; {oldest} is needed.")
        if facts.lacking:
            raise RuntimeUnavailable(f"The container engine does not enforce {' and '.join(facts.lacking)}.")
        return msgspec.structs.replace(facts, runtime=facts.choose_runtime(runtime))

    async def describe(self) -> EngineFacts:
        """Look at the engine and judge nothing: no runtime is chosen."""
        async with self._calling(EngineCall.DESCRIBE, "describe itself", READ_SECONDS):
            asked = time.time()
            info = await self._docker.system.info()
            skew = _timestamp(info["SystemTime"]) - (asked + time.time()) / 2
            version = await self._docker.version()
        security = " ".join(info.get("SecurityOptions") or ())
        warnings = {"SwapLimit": "swap is not limited", "CpuCfsQuota": "CPU time is not limited"}
        return EngineFacts(
            id=info.get("ID", ""),
            version=version["Version"],
            api_version=version["ApiVersion"],
            cgroup_version=str(info.get("CgroupVersion", "1")),
            cpus=info["NCPU"],
            memory_bytes=info["MemTotal"],
            runtimes=tuple(sorted(info.get("Runtimes") or {})),
            skew_seconds=skew,
            is_uid_mapped="name=userns" in security or "name=rootless" in security,
            has_seccomp="name=seccomp" in security,
            lacking=tuple(name for name in ("MemoryLimit", "PidsLimit") if info.get(name) is False),
            warnings=tuple(text for name, text in warnings.items() if info.get(name) is False),
        )

    async def ping(self) -> None:
        # Not `version`, for which the engine runs three programs.
        url = f"{self._docker.docker_host}/_ping"
        async with (
            self._calling(EngineCall.PING, "answer a ping", READ_SECONDS),
            self._docker.session.get(url) as response,
        ):
            response.raise_for_status()

    async def now(self) -> float:
        """Return the engine's own clock, seconds since 1970."""
        async with self._calling(EngineCall.DESCRIBE, "tell its time", READ_SECONDS):
            return _timestamp((await self._docker.system.info())["SystemTime"])

    async def images(self, label: str) -> list[Image]:
        async with self._calling(EngineCall.IMAGES, "list images", READ_SECONDS):
            listed = await self._docker.images.list(filters={"label": [label]})
        return [
            Image(
                id=image["Id"],
                labels=image["Labels"],
                tags=tuple(tag for tag in image.get("RepoTags") or () if tag != "<none>:<none>"),
                created_at=int(image["Created"]),
            )
            for image in listed
        ]

    async def network(self, name: str) -> Network:
        """Look at the network of that name or id. Raises `EngineRefused` where there is none, or more than one."""
        async with self._calling(EngineCall.NETWORK, "describe a network", READ_SECONDS):
            raw = await (await self._docker.networks.get(name)).show()
        return Network(
            name=raw["Name"], driver=raw["Driver"], scope=raw["Scope"], is_internal=bool(raw.get("Internal"))
        )

    async def create(self, name: str, config: dict[str, Any]) -> str:
        """Create a container and return its id.

        After any error but `EngineRefused` a container of that name may exist, or come to exist.
        """
        async with self._calling(EngineCall.CREATE, "create a container", CHANGE_SECONDS):
            return (await self._docker.containers.create(config, name=name)).id

    async def attach(self, container_id: str) -> EngineStream:
        async with self._calling(EngineCall.ATTACH, "attach to a container", READ_SECONDS):
            stream = self._docker.containers.container(container_id).attach(stdin=True, stdout=True, stderr=True)
            return EngineStream(await stream.__aenter__())

    async def start(self, container_id: str) -> None:
        async with self._calling(EngineCall.START, "start a container", CHANGE_SECONDS):
            await self._docker.containers.container(container_id).start()

    async def was_oom_killed(self, container_id: str) -> bool:
        """Tell whether the kernel killed in a container that has just ended, for lack of memory."""
        async with self._calling(EngineCall.WAIT, "say how a container ended", OOM_SECONDS):
            container = self._docker.containers.container(container_id)
            # The stream may end before the engine has taken note of the exit.
            await container.wait()
            return bool((await container.show())["State"]["OOMKilled"])

    async def exit_code(self, container_id: str) -> int:
        """Wait until a container has ended, and return what it ended with."""
        async with self._calling(EngineCall.WAIT, "say how a container ended", READ_SECONDS):
            return int((await self._docker.containers.container(container_id).wait())["StatusCode"])

    async def await_end(self, container_id: str, seconds: float) -> None:
        """Wait until a container has ended, at most `seconds`; returns in either case."""
        with contextlib.suppress(RuntimeUnavailable):
            # Not counted when it takes longer: whoever asks knows that it may.
            async with _calling("say that a container ended", seconds):
                await self._docker.containers.container(container_id).wait()

    async def remove(self, name: str) -> bool:
        """Kill and delete a container; return True once it is gone, False when there was none of that name or id."""
        async with self._calling(EngineCall.REMOVE, "remove a container", REMOVE_SECONDS):
            container = self._docker.containers.container(name)
            while True:
                try:
                    await container.delete(force=True, v=True)
                except aiodocker.DockerError as error:
                    if error.status == _GONE:
                        return False
                    if error.status != _CONFLICT:
                        raise
                    # Somebody is at it already; it is gone when the engine no longer knows it.
                    await asyncio.sleep(0.1)
                else:
                    return True

    async def containers(self, label: str) -> list[Listed]:
        """Return all containers with `label`, in whatever state."""
        listed = [await self.inspect(container_id) for container_id in await self.container_ids(label)]
        return [container for container in listed if container is not None]

    async def container_ids(self, label: str) -> list[str]:
        """Return the ids of all containers with `label`, in whatever state."""
        return [container.id for container in await self._list(label)]

    async def labels(self, label: str) -> list[dict[str, str]]:
        """Return the labels of all containers with `label`, in whatever state: one call, however many there are."""
        return [dict(container["Labels"] or {}) for container in await self._list(label)]

    async def _list(self, label: str) -> list[DockerContainer]:
        async with self._calling(EngineCall.LIST, "list containers", READ_SECONDS):
            return await self._docker.containers.list(all=True, filters={"label": [label]})

    async def inspect(self, container_id: str) -> Listed | None:
        """Return what is known of a container, None when it is gone."""
        async with self._calling(EngineCall.INSPECT, "describe a container", READ_SECONDS):
            try:
                raw = await self._docker.containers.container(container_id).show()
            except aiodocker.DockerError as error:
                if error.status == _GONE:
                    return None
                raise
        state = raw["State"]
        # The engine writes the year 1 for what never happened.
        ended = raw["Created"] if state["FinishedAt"].startswith(_NEVER) else state["FinishedAt"]
        return Listed(
            id=raw["Id"],
            name=raw["Name"].lstrip("/"),
            labels=raw["Config"]["Labels"] or {},
            is_created=state["Status"] == "created",
            created_at=_timestamp(raw["Created"]),
            ended_at=_timestamp(ended) if state["Status"] in _ENDED else None,
        )


@asynccontextmanager
async def _calling(
    what: str, seconds: float, tell: Callable[[EngineErrorKind], None] = lambda _: None
) -> AsyncIterator[None]:
    """Bound a call and translate its errors; what the engine says of paths and ids goes to the log, not to a caller."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        tell(EngineErrorKind.TIMEOUT)
        raise RuntimeUnavailable(f"The container engine did not {what} within {seconds:g} seconds.") from error
    except aiodocker.DockerError as error:
        if error.status != _UNREACHABLE:
            log.warning("engine refused to %s: %s", what, error)
            tell(EngineErrorKind.REFUSED)
            raise EngineRefused(f"The container engine refused to {what}.") from error
        log.warning("engine cannot be reached to %s: %s", what, error)
        tell(EngineErrorKind.UNREACHABLE)
        never_asked = isinstance(error.__context__, aiohttp.ClientConnectorError)
        kind = EngineRefused if never_asked else RuntimeUnavailable
        raise kind(f"The container engine cannot be reached to {what}.") from error
    except (aiohttp.ClientError, OSError, AssertionError) as error:
        # A ping that is answered with an error status comes here too.
        is_answer = isinstance(error, aiohttp.ClientResponseError)
        tell(EngineErrorKind.REFUSED if is_answer else EngineErrorKind.UNREACHABLE)
        log.warning("engine %s to %s: %s", "refused" if is_answer else "cannot be reached", what, error)
        raise RuntimeUnavailable(f"The container engine cannot be reached to {what}.") from error


def _tls_context(directory: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(directory / "ca.pem"))
        context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    except (OSError, ssl.SSLError) as error:
        why = error.reason if isinstance(error, ssl.SSLError) and error.reason else error.strerror
        raise RuntimeUnavailable(
            f"DOCKER_CERT_PATH has no ca.pem, cert.pem and key.pem that can be used together ({why})."
        ) from error
    return context


def _timestamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()

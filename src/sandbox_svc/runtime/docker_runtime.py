"""Sandboxes as containers of one engine: start, removal whatever happens, and the sweep of what nobody owns."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from sandbox_svc.egress import Egress
from sandbox_svc.errors import RuntimeUnavailable, SandboxLost
from sandbox_svc.runtime import MIB, engine_events, seccomp
from sandbox_svc.runtime.container_spec import (
    HOST_LABEL,
    INSTANCE_LABEL,
    SERVICE,
    SERVICE_LABEL,
    ContainerLimits,
    UidRanges,
    container_config,
    container_memory,
    parse_size,
)
from sandbox_svc.runtime.docker_engine import Engine, EngineFacts, EngineRefused, EngineStream, Image, RuntimeName
from sandbox_svc.runtime.docker_sandbox import DockerSandbox, Patience
from sandbox_svc.runtime.egress_filter import check_networks, filter_config, run_filter
from sandbox_svc.runtime.engine_events import EngineObserver
from sandbox_svc.runtime.instances import Birthmark, IsAlive, Stranger, is_leftover
from sandbox_svc.runtime.languages import LANGUAGE_LABEL, PROFILE_LABEL, Language, Manifest, parse_manifest
from sandbox_svc.runtime.protocol import Configure, Hello

log = logging.getLogger("sandbox_svc.docker")

START_SECONDS: Final = 60.0
"""From create to the first READY. A quiet host needs less than a second, one that starts many at once more."""
CLOSE_SECONDS: Final = 30.0
HASTY_CLOSE_SECONDS: Final = 3.0
STRAY_SECONDS: Final = 5.0
"""How long a create call whose answer never came may still produce a container; one that takes longer is swept."""
LEASH_SECONDS: Final = 1.0
"""How long a supervisor may take to end once its stream is closed, before its container is killed."""
REAP_SECONDS: Final = 5.0
"""How long a failed start waits for what it left to be gone, before it leaves that to the background."""
FILTER_SUFFIX: Final = "-egress"
REAP_PAUSE_SECONDS: Final = (0.2, 10.0)
"""First and longest pause between tries to remove a container."""


class _OwnContainer:
    """A container of this runtime, from before it exists until the engine confirms that it is gone."""

    def __init__(
        self, runtime: DockerRuntime, engine: Engine, name: str, place: str, uid_base: int | None = None
    ) -> None:
        self.id = ""
        self.name = name
        self.place = place
        self.uid_base = uid_base
        self.removable: _OwnContainer | DockerSandbox = self
        """Through which it is removed: its sandbox, once there is one."""
        self._runtime = runtime
        self._engine = engine
        self._stream: EngineStream | None = None
        self._is_uncertain = False
        self._absent_since: float | None = None

    @property
    def never_was(self) -> bool:
        """The engine was not asked for it, or said no."""
        return not self.id and not self._is_uncertain

    async def create(self, config: dict[str, Any]) -> None:
        """Create, attach and start it; attached first, so that not a byte is missed."""
        self._is_uncertain = True
        try:
            self.id = await self._engine.create(self.name, config)
        except EngineRefused:
            self._is_uncertain = False
            raise
        self._is_uncertain = False
        self._stream = await self._engine.attach(self.id)
        await self._engine.start(self.id)

    async def read(self) -> tuple[int, bytes] | None:
        return await self._stream.read() if self._stream is not None else None

    async def write(self, data: bytes) -> None:
        if self._stream is not None:
            await self._stream.write(data)

    async def exit_code(self) -> int:
        return await self._engine.exit_code(self.id)

    async def was_oom_killed(self) -> bool:
        try:
            return await self._engine.was_oom_killed(self.id)
        except RuntimeUnavailable:
            return False  # nobody can say; the caller reports the loss itself

    async def remove(self) -> None:
        """Kill and delete it. Raises `RuntimeUnavailable`, also while a create call may still bring it into being."""
        if self._stream is not None:
            await self._stream.close()
            # A supervisor that loses its stdin ends, which costs nothing here and spares the engine a kill: containerd
            # 1.6 takes up to a minute to notice a gVisor sandbox with many processes that is killed (one in eight).
            await self._engine.await_end(self.id, LEASH_SECONDS)
        found = await self._engine.remove(self.name)
        if not found and self._is_uncertain:
            # A create call that was given up may still be at work. Counted from when the engine answers again: one that
            # was frozen creates what it was asked for when it thaws.
            now = asyncio.get_running_loop().time()
            self._absent_since = self._absent_since or now
            if now < self._absent_since + STRAY_SECONDS:
                raise RuntimeUnavailable("The container engine may still be creating the container.")
        self._runtime.forget(self)


class DockerRuntime:
    """Implements `Runtime` on a container engine. Made by `DockerRuntime.open`.

    Every container has its name and its place in `_owned` before the engine hears of it and leaves only when the engine
    confirms that it is gone, so no failure or cancellation can make us forget one.
    """

    def __init__(
        self,
        engine: Engine,
        facts: EngineFacts,
        limits: ContainerLimits,
        *,
        instance_id: str,
        patience: Patience | None = None,
        is_instance_alive: IsAlive | None = None,
        egress: Egress | None = None,
    ) -> None:
        self._engine = engine
        self._facts = facts
        self._limits = limits
        self._instance_id = instance_id
        self._patience = patience
        self._is_instance_alive = is_instance_alive
        self._egress = egress or Egress()
        self._here = Birthmark.of_this_process()
        self._labels = {INSTANCE_LABEL: instance_id, HOST_LABEL: str(self._here)}
        self._seccomp = seccomp.profile_json()
        # Mapped engines give a container 65536 uids and count processes per mapping.
        self._uids = UidRanges(first=4096, last=65535, count=1024) if facts.is_uid_mapped else UidRanges()
        self._owned: dict[str, _OwnContainer] = {}
        """Containers that exist or may exist, by name."""
        self._reapers: dict[str, asyncio.Task[None]] = {}
        """Tasks that remove containers, by name."""
        self._hellos: dict[str, tuple[str, Hello]] = {}
        """By the name of the language: the newest image that was started, and what it said of itself."""
        self._is_closed = False
        self._close_seconds = CLOSE_SECONDS
        self._closing: asyncio.Timeout | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        memory_bytes: int,
        instance_id: str,
        docker_host: str | None = None,
        tls_directory: Path | None = None,
        runtime: RuntimeName = "auto",
        processes: int = 64,
        workspace_bytes: int = 100 * MIB,
        cpus: float = 1.0,
        patience: Patience | None = None,
        is_instance_alive: IsAlive | None = None,
        observer: EngineObserver = engine_events.ignore,
        egress: Egress | None = None,
    ) -> AsyncIterator[DockerRuntime]:
        """Connect to the engine and check that it can do what is asked for; leaving removes all containers.

        `instance_id` must differ between instances. `is_instance_alive` tells of instances that cannot be seen from
        here, see `instances`; `observer` is told of the engine's failures. Languages that `egress` does not name have
        no network. Raises `RuntimeUnavailable` that names what is missing.
        """
        engine = Engine(docker_host, tls_directory, observer=observer)
        try:
            facts = await engine.facts(runtime)
            await check_networks(engine, facts.runtime, egress or Egress())
            limits = ContainerLimits(
                memory_bytes=memory_bytes,
                processes=processes,
                workspace_bytes=workspace_bytes,
                # The engine refuses a quota of more CPUs than it has.
                cpus=min(cpus, facts.cpus),
            )
            self = cls(
                engine,
                facts,
                limits,
                instance_id=instance_id,
                patience=patience,
                is_instance_alive=is_instance_alive,
                egress=egress,
            )
            try:
                yield self
            finally:
                await self.close()
        finally:
            await engine.close()

    def __repr__(self) -> str:
        return f"<docker runtime {self._facts.runtime} containers={len(self._owned)}>"

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def owned(self) -> frozenset[str]:
        """Names of the containers that exist, or may come to exist, on our account."""
        return frozenset(self._owned)

    async def ping(self) -> None:
        await self._engine.ping()

    async def languages(self) -> Mapping[str, Language]:
        return usable_languages(await self._engine.images(LANGUAGE_LABEL))

    def hello(self, language: Language) -> Hello | None:
        image_id, hello = self._hellos.get(language.name, ("", None))
        return hello if image_id == language.image_id else None

    async def start(
        self, language: Language, templates: tuple[str, ...] | None = None, *, place: str = ""
    ) -> DockerSandbox:
        if self._is_closed:
            raise RuntimeUnavailable("The runtime is closed.")
        name = f"sandbox-svc-{language.name}-{secrets.token_hex(8)}"
        uid_base = self._uids.take()
        container = self._owned[name] = _OwnContainer(self, self._engine, name, place, uid_base)
        try:
            async with asyncio.timeout(START_SECONDS):
                await container.create(self._config(language))
                sandbox = DockerSandbox(container, generation=language.image_id, patience=self._patience)
                container.removable = sandbox
                if language.name in self._egress.networks:
                    await self._filter_network(container, language)
                await sandbox.open(self._configure(language, templates, uid_base))
                await self._wait_reaped(name)
                if sandbox.hello is not None:
                    self._hellos[language.name] = language.image_id, sandbox.hello
                return sandbox
        except BaseException as error:
            if container.never_was:
                self.forget(container)
            else:
                # Most times it is gone when we return; the task goes on if it is not, and `wait_gone` waits for it.
                self._reap(container)
                await self._wait_reaped(name)
            if isinstance(error, TimeoutError):
                raise RuntimeUnavailable(f"A sandbox was not ready within {START_SECONDS:g} seconds.") from error
            if isinstance(error, SandboxLost):
                raise RuntimeUnavailable("A sandbox ended before it was ready.") from error
            raise

    async def _filter_network(self, sandbox: _OwnContainer, language: Language) -> None:
        """Return once the sandbox's network is filtered; what did it is then on its way out. Raises as `run_filter`."""
        name = sandbox.name + FILTER_SUFFIX
        container = self._owned[name] = _OwnContainer(self, self._engine, name, sandbox.place)
        config = filter_config(
            sandbox_id=sandbox.id,
            image_id=language.image_id,
            refused=self._egress.refused,
            seccomp=seccomp.profile_json(sets_filter=True),
            labels=self._labels,
        )
        try:
            await run_filter(container, config)
        finally:
            if container.never_was:
                self.forget(container)
            else:
                self._reap(container)

    async def _wait_reaped(self, name: str) -> None:
        """Wait for the removal of a sandbox, of what filtered its network, or of both, where it is under way."""
        reapers = [task for name in (name, name + FILTER_SUFFIX) if (task := self._reapers.get(name)) is not None]
        if reapers:
            await asyncio.wait(reapers, timeout=REAP_SECONDS)

    def _config(self, language: Language) -> dict[str, Any]:
        return container_config(
            language=language.name,
            image_id=language.image_id,
            baseline_bytes=parse_size(language.manifest.baseline_memory),
            limits=self._limits,
            runtime=self._facts.runtime,
            seccomp=self._seccomp,
            labels=self._labels,
            network=self._egress.networks.get(language.name),
            resolvers=self._egress.resolvers,
        )

    def _configure(self, language: Language, templates: tuple[str, ...] | None, uid_base: int) -> Configure:
        return Configure(
            nonce=secrets.token_hex(16),
            uid_base=uid_base,
            uid_count=self._uids.count,
            templates=templates or tuple(template.name for template in language.manifest.templates),
            memory_bytes=self._limits.memory_bytes,
            container_bytes=container_memory(
                self._limits,
                baseline_bytes=parse_size(language.manifest.baseline_memory),
                runtime=self._facts.runtime,
            ),
            processes=self._limits.processes,
        )

    def forget(self, container: _OwnContainer) -> None:
        """The engine confirmed that a container is gone: its name and its uids are free."""
        if self._owned.pop(container.name, None) is not None and container.uid_base is not None:
            self._uids.give_back(container.uid_base)

    def _reap(self, container: _OwnContainer) -> asyncio.Task[None]:
        """Remove a container that has no owner any more, in a task that outlives its caller."""
        task = asyncio.create_task(self._reap_until_gone(container), name=f"reap-{container.name}")
        self._reapers[container.name] = task
        task.add_done_callback(lambda _: self._reapers.pop(container.name))
        return task

    async def _reap_until_gone(self, container: _OwnContainer) -> None:
        pause, longest = REAP_PAUSE_SECONDS
        while container.name in self._owned:
            try:
                await container.removable.remove()
            except RuntimeUnavailable as error:
                log.debug("%s is not removed yet: %s", container.name, error)
            except Exception:
                # Nobody waits for this task, and what it does not remove nobody else will before the end.
                log.exception("removing %s failed; it is tried again", container.name)
            else:
                continue
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def wait_gone(self, place: str) -> None:
        while tasks := [
            task
            for name, task in self._reapers.items()
            if (container := self._owned.get(name)) is not None and container.place == place
        ]:
            await asyncio.wait(tasks)

    async def sweep(self) -> int:
        now = await self._engine.now()
        found = await self._engine.container_ids(f"{SERVICE_LABEL}={SERVICE}")
        # A few that take all the time there is must not keep the same others waiting for ever.
        random.shuffle(found)
        count = 0
        for container_id in found:
            try:
                container = await self._engine.inspect(container_id)
                if container is not None and await is_leftover(
                    container,
                    now=now,
                    instance=self._instance_id,
                    here=self._here,
                    owned=self.owned,
                    is_alive=self._is_instance_alive,
                ):
                    count += await self._engine.remove(container_id)
            except RuntimeUnavailable as error:
                log.warning("the sweep goes on without container %.12s: %s", container_id, error)
        if count:
            log.info("removed %d containers that nobody owned", count)
        return count

    async def strangers(self) -> list[Stranger]:
        """The containers of other instances, dead or alive, that the engine holds. Raises `RuntimeUnavailable`."""
        found = await self._engine.labels(f"{SERVICE_LABEL}={SERVICE}")
        strangers = [Stranger(labels.get(INSTANCE_LABEL, ""), labels.get(LANGUAGE_LABEL, "")) for labels in found]
        return [stranger for stranger in strangers if stranger.instance != self._instance_id]

    def hasten(self) -> None:
        self._close_seconds = HASTY_CLOSE_SECONDS
        if self._closing is not None and not self._closing.expired():
            self._closing.reschedule(asyncio.get_running_loop().time() + HASTY_CLOSE_SECONDS)

    async def close(self) -> None:
        """Remove every container of this instance that is left, within a bound. Safe to call again."""
        self._is_closed = True
        reapers = [self._reapers.get(name) or self._reap(container) for name, container in self._owned.items()]
        if reapers:
            try:
                async with asyncio.timeout(self._close_seconds) as self._closing:
                    await asyncio.wait(reapers)
            except TimeoutError:
                for reaper in reapers:
                    reaper.cancel()
            finally:
                self._closing = None
        if self._owned:
            log.error("%d containers could not be removed; the next sweep does it", len(self._owned))


def usable_languages(images: Iterable[Image]) -> Mapping[str, Language]:
    """Return the image to use for each language: the tagged build before older ones, which keep their labels."""
    found: dict[str, tuple[tuple[bool, bool, int], Language]] = {}
    for image in images:
        name = image.labels[LANGUAGE_LABEL]
        rank = (f"sandbox-svc/{name}:latest" in image.tags, bool(image.tags), image.created_at)
        if name in found and found[name][0] >= rank:
            continue
        try:
            manifest = usable_manifest(image)
        except RuntimeUnavailable as error:
            # One bad image must not take the other languages down; readiness names the one that is missing.
            log.warning("image %s cannot be used: %s", image.id, error)
            continue
        profile = image.labels.get(PROFILE_LABEL) or None
        found[name] = rank, Language(manifest=manifest, image_id=image.id, profile=profile)
    return {name: language for name, (_, language) in sorted(found.items())}


def usable_manifest(image: Image) -> Manifest:
    """Read the manifest of a language's image. Raises `RuntimeUnavailable` that says why it cannot be used."""
    name = image.labels[LANGUAGE_LABEL]
    manifest = parse_manifest(dict(image.labels))
    parse_size(manifest.baseline_memory)
    if manifest.language != name:
        raise RuntimeUnavailable(f"its label says {name!r}, its manifest {manifest.language!r}")
    profile = image.labels.get(PROFILE_LABEL)
    if profile and not name.endswith(f"-{profile}"):
        raise RuntimeUnavailable(f"its labels say language {name!r} and profile {profile!r}, which do not fit")
    return manifest

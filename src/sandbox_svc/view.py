"""What the health and information endpoints show; everything is in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox_svc.http.wire import Check, Example, LanguageInfo, LanguagesAnswer, LimitMaxima, Package
from sandbox_svc.pool.slots import SlotState

if TYPE_CHECKING:
    from sandbox_svc.admission.keys import KeyRing
    from sandbox_svc.admission.permits import RedisPermits
    from sandbox_svc.admission.redis_link import RedisLink
    from sandbox_svc.egress import Egress
    from sandbox_svc.pool.keeper import Keeper
    from sandbox_svc.pool.pool import LanguageStats, Pool
    from sandbox_svc.runtime import Runtime
    from sandbox_svc.service.naming import LanguageNames
    from sandbox_svc.service.service import Service
    from sandbox_svc.service.tenants import Tenant


class View:
    """Readiness, and the languages that are served."""

    def __init__(
        self,
        *,
        pool: Pool,
        keeper: Keeper,
        runtime: Runtime,
        names: LanguageNames,
        service: Service,
        link: RedisLink | None,
        keys: KeyRing | None,
        permits: RedisPermits | None,
        egress: Egress,
    ) -> None:
        self._pool = pool
        self._keeper = keeper
        self._runtime = runtime
        self._egress = egress
        self._names = names
        self._service = service
        self._link = link
        self._keys = keys
        self._permits = permits

    def readiness(self) -> dict[str, Check]:
        checks = {
            "accepting": Check(status="failing", detail="draining") if self._pool.is_closed else Check(status="ok"),
            "engine": self._engine(),
        }
        for name, stats in self._pool.stats().items():
            checks[f"language {name}"] = self._language(name, stats)
        if self._link is not None:
            reason = self._link.stats().reason
            detail = "" if reason is None else f"away ({reason}); limits are this instance's own meanwhile"
            checks["redis"] = Check(status="ok" if reason is None else "degraded", detail=detail)
        if self._keys is not None and self._keys.problem is not None:
            checks["keys"] = Check(
                status="degraded", detail="the file is not usable; the keys from before are in force"
            )
        return checks

    def _engine(self) -> Check:
        seconds = self._keeper.engine_lost_seconds
        if seconds is not None:
            detail = f"no sign of life for {seconds:.0f} s; programs are reached through it, so none can run"
            return Check(status="failing", detail=detail)
        if not self._keeper.is_engine_up:
            return Check(status="degraded", detail="no sign of life when it was last asked")
        return Check(status="ok")

    def _language(self, name: str, stats: LanguageStats) -> Check:
        says = [f"{stats.alive} of {stats.size} containers"]
        if name not in self._keeper.languages:
            says = ["its image is missing"]
        elif stats.is_failing:
            says.append("the last start failed")
        permits = None if self._permits is None else self._permits.stats().get(name)
        bound = "" if permits is None else f" (bound {permits.bound})"
        # Whoever waits beyond the empty places does it for a replacement, which is no place that is missing.
        if permits is not None and (waiting := min(permits.waiting, stats.slots[SlotState.EMPTY])):
            says.append(f"{waiting} waiting for a permit{bound}")
        if stats.is_held_up:
            says.append(f"one that is old goes on serving: no permit to start another beside it{bound}")
        detail = ", ".join(says)
        if not stats.is_ready:
            return Check(status="failing", detail=detail)
        return Check(status="degraded" if stats.is_failing or stats.is_held_up else "ok", detail=detail)

    def languages(self, tenant: Tenant) -> LanguagesAnswer:
        maxima = self._service.maxima(tenant)
        limits = LimitMaxima(
            wall_ms=maxima.wall_ms,
            cpu_ms=maxima.cpu_ms or None,
            memory_bytes=maxima.memory_bytes or None,
            output_bytes=maxima.output_bytes,
            result_bytes=maxima.result_bytes,
        )
        infos = []
        for served in self._names.served():
            manifest = served.language.manifest
            # Remembered with the image: what it brings is known also while none of its containers is up.
            hello = self._runtime.hello(served.language)
            infos.append(
                LanguageInfo(
                    name=served.name,
                    base=served.language.base,
                    profile=served.language.profile,
                    aliases=manifest.aliases,
                    version=None if hello is None else hello.version,
                    source_name=manifest.source_name,
                    packages=()
                    if hello is None
                    else tuple(Package(name=p.get("name", ""), version=p.get("version", "")) for p in hello.packages),
                    analyser=manifest.analyser,
                    is_ready=self._pool.is_ready(served.name),
                    has_network=served.name in self._egress.networks,
                    limits=limits,
                    example=None
                    if manifest.example is None
                    else Example(code=manifest.example.code, arguments=manifest.example.arguments),
                )
            )
        queue_ms = round(self._service.queue_timeout_seconds * 1000)
        return LanguagesAnswer(languages=tuple(infos), queue_ms=queue_ms)

"""`sandbox-svc doctor`: looks at everything the service needs and says what to do about what is missing."""

from __future__ import annotations

import importlib.util
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from sandbox_svc.admission.redis_link import RedisAway, RedisLink
from sandbox_svc.errors import RuntimeUnavailable, SandboxServiceError, SettingsError
from sandbox_svc.runtime.docker_engine import Engine
from sandbox_svc.runtime.docker_runtime import DockerRuntime
from sandbox_svc.runtime.egress_filter import check_networks
from sandbox_svc.runtime.languages import LANGUAGE_LABEL
from sandbox_svc.settings import read_settings, show_size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from typing import TextIO

    from sandbox_svc.runtime.docker_engine import EngineFacts, Image
    from sandbox_svc.runtime.egress_filter import Networks
    from sandbox_svc.settings import Settings

State = Literal["ok", "warning", "missing"]

SKEW_SECONDS: Final = 5.0
"""Clocks that differ by more make logs and the ages of leftovers hard to read; no limit of a run depends on them."""
OLD_DAYS: Final = 30
"""An image that was not built for this long misses security updates of its base."""


class Diagnosis(NamedTuple):
    """One thing looked at. `advice` says what to do; only what is missing makes the exit code 1."""

    state: State
    subject: str
    detail: str
    advice: str = ""


async def main(environ: Mapping[str, str], output: TextIO) -> int:
    """Print a diagnosis per line and return 0 when nothing is missing."""
    is_well = True
    async for diagnosis in examine(environ):
        output.write(f"{diagnosis.state:8} {diagnosis.subject}: {diagnosis.detail}\n")
        if diagnosis.advice:
            output.write(f"{'':9}{diagnosis.advice}\n")
        is_well = is_well and diagnosis.state != "missing"
    return 0 if is_well else 1


async def examine(environ: Mapping[str, str]) -> AsyncIterator[Diagnosis]:
    """Look at one thing after another, each within a deadline; changes nothing."""
    try:
        settings = read_settings(environ)
    except SettingsError as error:
        yield Diagnosis("missing", "settings", str(error), "The README lists all settings with their defaults.")
        return
    yield Diagnosis("ok", "settings", f"serves {', '.join(settings.languages)} on {settings.host}:{settings.port}")
    yield _descriptors(settings)
    async for diagnosis in _examine_engine(settings):
        yield diagnosis
    async for diagnosis in _examine_redis(settings):
        yield diagnosis
    if settings.traces_endpoint and importlib.util.find_spec("opentelemetry.exporter") is None:
        yield Diagnosis(
            "warning",
            "spans",
            "OTEL_EXPORTER_OTLP_ENDPOINT is set and the exporter is not installed",
            "pip install 'sandbox-svc[otel]'",
        )


def _descriptors(settings: Settings) -> Diagnosis:
    # The service raises the soft limit to the hard one by itself.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 256 + 4 * settings.pool_size * len(settings.languages)
    if hard != resource.RLIM_INFINITY and hard < needed:
        return Diagnosis("warning", "descriptors", f"{hard} allowed", f"Allow at least {needed} (ulimit -Hn).")
    return Diagnosis("ok", "descriptors", "unlimited" if hard == resource.RLIM_INFINITY else f"{hard} allowed")


async def _examine_engine(settings: Settings) -> AsyncIterator[Diagnosis]:
    tls_directory = None if settings.docker_cert_path is None else Path(settings.docker_cert_path)
    try:
        async with DockerRuntime.open(
            memory_bytes=settings.max_memory_bytes,
            instance_id="doctor",
            docker_host=settings.docker_host,
            tls_directory=tls_directory,
            runtime=settings.runtime,
        ) as runtime:
            for diagnosis in _engine(runtime.facts, settings):
                yield diagnosis
            usable = await runtime.languages()
            engine = Engine(settings.docker_host, tls_directory)
            try:
                images = await engine.images(LANGUAGE_LABEL)
                yield await _egress(engine, runtime.facts, settings)
            finally:
                await engine.close()
            for name in settings.languages:
                language = usable.get(name)
                yield _image(name, None if language is None else language.image_id, images)
            if await runtime.has_strangers():
                yield Diagnosis(
                    "ok",
                    "instances",
                    "other instances have containers on this engine"
                    + ("" if settings.redis_url else "; without a Redis each counts only its own"),
                )
    except SandboxServiceError as error:
        yield Diagnosis(
            "missing",
            "engine",
            str(error),
            f"DOCKER_HOST is {settings.docker_host}. make images installs and starts an engine on Debian and Ubuntu; "
            "scripts/gvisor.sh installs runsc.",
        )


def _engine(facts: EngineFacts, settings: Settings) -> list[Diagnosis]:
    found = [
        Diagnosis(
            "ok",
            "engine",
            f"{facts.version}, API {facts.api_version}, cgroup v{facts.cgroup_version}, {facts.cpus} CPUs, "
            f"{facts.memory_bytes / 2**30:.1f} GiB{', user namespaces' if facts.is_uid_mapped else ''}",
        )
    ]
    isolation = "gVisor: programs never meet the host's kernel"
    advice = ""
    if facts.runtime != "runsc":
        isolation = "namespaces, seccomp and no capabilities; programs share the host's kernel"
        advice = "For code of strangers, install gVisor (scripts/gvisor.sh) and set SANDBOX_RUNTIME=runsc."
    known = ", ".join(facts.runtimes)
    found.append(Diagnosis("ok", "isolation", f"{facts.runtime} of {known} ({isolation})", advice))
    found += [
        Diagnosis(
            "warning",
            "limits",
            f"{warning}: this engine would ignore that limit",
            "Enable it in the host's kernel (docker info names it); until then programs can use more.",
        )
        for warning in facts.warnings
    ] or [Diagnosis("ok", "limits", "memory, swap, processes and CPU time are enforced")]
    if abs(facts.skew_seconds) > SKEW_SECONDS:
        detail = f"the engine's clock is {facts.skew_seconds:+.0f} s from this one"
        found.append(Diagnosis("warning", "time", detail, "Run NTP on both; leftovers are swept by their age."))
    else:
        found.append(Diagnosis("ok", "time", f"the engine's clock is {facts.skew_seconds:+.1f} s from this one"))
    budget = settings.max_memory_bytes * settings.pool_size * len(settings.languages)
    detail = f"programs may use up to {show_size(budget)} at once"
    if budget > facts.memory_bytes:
        found.append(
            Diagnosis(
                "warning", "memory", f"{detail}, more than there is", "Lower SANDBOX_POOL_SIZE or SANDBOX_MAX_MEMORY."
            )
        )
    else:
        found.append(Diagnosis("ok", "memory", detail))
    return found


async def _egress(engine: Networks, facts: EngineFacts, settings: Settings) -> Diagnosis:
    if not settings.egress_networks:
        return Diagnosis("ok", "egress", "no language has a network")
    try:
        await check_networks(engine, facts.runtime, settings.egress)
    except RuntimeUnavailable as error:
        return Diagnosis("missing", "egress", str(error), "docs/egress.md shows how to make such a network.")
    pairs = ", ".join(f"{language} on {network}" for language, network in settings.egress_networks.items())
    return Diagnosis("ok", "egress", f"{pairs}; private addresses are refused, public ones are not")


def _image(name: str, image_id: str | None, images: list[Image]) -> Diagnosis:
    subject = f"image {name}"
    builds = [image for image in images if image.labels.get(LANGUAGE_LABEL) == name]
    if image_id is None:
        detail = (
            "is there, but its manifest cannot be used (SANDBOX_LOG_LEVEL=debug says why)" if builds else "not there"
        )
        return Diagnosis("missing", subject, detail, "make images")
    image = next(image for image in builds if image.id == image_id)
    days = (time.time() - image.created_at) / 86_400
    detail = f"generation {image_id.removeprefix('sha256:')[:12]}, built {max(days, 0):.0f} days ago"
    if len(builds) > 1:
        detail += f", {len(builds) - 1} older builds beside it"
    if days > OLD_DAYS:
        advice = "make images with scripts/images.sh --refresh takes the security updates of its base."
        return Diagnosis("warning", subject, detail, advice)
    return Diagnosis("ok", subject, detail)


async def _examine_redis(settings: Settings) -> AsyncIterator[Diagnosis]:
    if not settings.redis_url:
        yield Diagnosis("ok", "redis", "not configured: limits are this instance's own")
        return
    link = RedisLink(settings.redis_url)
    try:
        if not await link.probe():
            yield Diagnosis(
                "warning",
                "redis",
                f"is away ({link.stats().reason})",
                "The service runs without it; limits are then each instance's own. SANDBOX_REDIS_URL is its address.",
            )
            return
        asked = time.time()
        seconds, microseconds = await link.call(link.client.time)
        skew = seconds + microseconds / 1e6 - (asked + time.time()) / 2
        detail = f"answers and takes writes; its clock is {skew:+.1f} s from this one"
        # Nothing depends on it: windows and permits go by the time of Redis alone.
        yield Diagnosis("ok" if abs(skew) <= SKEW_SECONDS else "warning", "redis", detail)
    except RedisAway as away:
        yield Diagnosis("warning", "redis", f"went away ({away.reason})")
    finally:
        await link.close()

"""`sandbox-svc doctor`: looks at everything the service needs and says what to do about what is missing."""

from __future__ import annotations

import importlib.util
import resource
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from sandbox_svc import __version__
from sandbox_svc.admission.keys import KeyRing
from sandbox_svc.admission.redis_link import RedisAway, RedisLink
from sandbox_svc.errors import RuntimeUnavailable, SettingsError
from sandbox_svc.notation import show_size
from sandbox_svc.runtime.container_spec import GENERATION_LABEL, SERVICE, SERVICE_LABEL
from sandbox_svc.runtime.docker_engine import OLDEST_API, Engine
from sandbox_svc.runtime.docker_runtime import usable_languages, usable_manifest
from sandbox_svc.runtime.egress_filter import check_networks
from sandbox_svc.runtime.languages import LANGUAGE_LABEL
from sandbox_svc.service.runs import default_maxima
from sandbox_svc.settings import contradictions, read_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from typing import TextIO

    from sandbox_svc.runtime.docker_engine import EngineFacts, Image
    from sandbox_svc.runtime.egress_filter import Networks
    from sandbox_svc.runtime.instances import Listed
    from sandbox_svc.settings import Settings

State = Literal["ok", "warning", "missing"]

SKEW_SECONDS: Final = 5.0
"""Clocks that differ by more make logs and the ages of leftovers hard to read; no limit of a run depends on them."""
OLD_DAYS: Final = 30
"""An image that was not built for this long misses security updates of its base."""


class Diagnosis(NamedTuple):
    """One thing looked at. Whatever is not ok has an `advice`; only what is missing makes the exit code 1."""

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
    """Look at one thing after another, each within a deadline; changes nothing.

    Only settings that cannot be read hide the rest.
    """
    try:
        settings = read_settings(environ)
    except SettingsError as error:
        yield Diagnosis("missing", "settings", str(error), "The README lists all settings with their defaults.")
        return
    yield _settings(settings)
    if settings.api_keys_file:
        yield _keys(settings.api_keys_file, settings)
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


def _settings(settings: Settings) -> Diagnosis:
    detail = f"sandbox_svc {__version__} serves {', '.join(settings.languages)} on {settings.host}:{settings.port}"
    found = contradictions(settings)
    if not found:
        return Diagnosis("ok", "settings", detail)
    detail = "; ".join([detail, *(one.what for one in found)])
    return Diagnosis("warning", "settings", detail, " ".join(one.advice for one in found))


def _keys(path: str, settings: Settings) -> Diagnosis:
    # No key may grant more than the service does, so the settings are part of what makes the file right.
    maxima = default_maxima(timeout_seconds=settings.timeout_seconds, memory_bytes=settings.max_memory_bytes)
    try:
        keys = KeyRing(path, maxima=maxima)
    except SettingsError as error:
        advice = "Mend that entry; docs/admission.md shows the file, and sandbox-svc keys create writes one."
        return Diagnosis("missing", "keys", str(error), advice)
    if not keys:
        advice = "sandbox-svc keys create TENANT adds one; a running service takes it at once."
        return Diagnosis("warning", "keys", "the file holds none, so every run is refused", advice)
    return Diagnosis("ok", "keys", f"{len(keys)} in the file")


def _descriptors(settings: Settings) -> Diagnosis:
    # The service raises the soft limit to the hard one by itself.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 256 + settings.max_connections + 4 * settings.pool_size * len(settings.languages)
    if hard != resource.RLIM_INFINITY and hard < needed:
        return Diagnosis("warning", "descriptors", f"{hard} allowed", f"Allow at least {needed} (ulimit -Hn).")
    return Diagnosis("ok", "descriptors", "unlimited" if hard == resource.RLIM_INFINITY else f"{hard} allowed")


async def _examine_engine(settings: Settings) -> AsyncIterator[Diagnosis]:
    try:
        async with AsyncExitStack() as stack:
            tls_directory = None if settings.docker_cert_path is None else Path(settings.docker_cert_path)
            engine = Engine(settings.docker_host, tls_directory)
            stack.push_async_callback(engine.close)
            facts = await engine.describe()
            for diagnosis in _engine(facts, settings):
                yield diagnosis
            yield await _egress(engine, facts, settings)
            images = await engine.images(LANGUAGE_LABEL)
            containers = await engine.containers(f"{SERVICE_LABEL}={SERVICE}")
            usable = usable_languages(images)
            for name in settings.languages:
                language = usable.get(name)
                yield _image(name, None if language is None else language.image_id, images, containers)
            if containers:
                yield Diagnosis(
                    "ok",
                    "instances",
                    "instances of the service have containers on this engine"
                    + ("" if settings.redis_url else "; without a Redis each counts only its own"),
                )
    except RuntimeUnavailable as error:
        yield Diagnosis(
            "missing",
            "engine",
            _with_cause(error),
            f"DOCKER_HOST is {settings.docker_host}. make images installs and starts an engine on Debian and Ubuntu; a "
            "socket that may not be used has a group to belong to.",
        )


def _engine(facts: EngineFacts, settings: Settings) -> list[Diagnosis]:
    """What the engine says of itself; each fact is judged alone, so that all of them are told at once."""
    return [_version(facts), _isolation(facts, settings), *_limits(facts), _time(facts), _memory(facts, settings)]


def _version(facts: EngineFacts) -> Diagnosis:
    detail = (
        f"{facts.version}, API {facts.api_version}, cgroup v{facts.cgroup_version}, {facts.cpus} CPUs, "
        f"{facts.memory_bytes / 2**30:.1f} GiB{', user namespaces' if facts.is_uid_mapped else ''}"
    )
    if facts.is_too_old:
        oldest = ".".join(map(str, OLDEST_API))
        return Diagnosis(
            "missing", "engine", f"{detail}; API {oldest} is needed", "Upgrade the engine to Docker 20.10 or newer."
        )
    return Diagnosis("ok", "engine", detail)


def _isolation(facts: EngineFacts, settings: Settings) -> Diagnosis:
    try:
        runtime = facts.choose_runtime(settings.runtime)
    except RuntimeUnavailable as error:
        advice = f"SANDBOX_RUNTIME is {settings.runtime}. scripts/gvisor.sh installs runsc; auto takes what there is."
        return Diagnosis("missing", "isolation", str(error), advice)
    if not facts.has_seccomp:
        return Diagnosis(
            "missing",
            "isolation",
            "the engine does not filter system calls (no seccomp), so it starts no container with our profile",
            "Use a kernel with CONFIG_SECCOMP_FILTER and an engine that was built with seccomp (docker info says so).",
        )
    known = ", ".join(facts.runtimes)
    if runtime == "runsc":
        return Diagnosis("ok", "isolation", f"runsc of {known} (gVisor: programs never meet the host's kernel)")
    return Diagnosis(
        "ok",
        "isolation",
        f"{runtime} of {known} (namespaces, seccomp and no capabilities; programs share the host's kernel)",
        "For code of strangers, install gVisor (scripts/gvisor.sh) and set SANDBOX_RUNTIME=runsc.",
    )


def _limits(facts: EngineFacts) -> list[Diagnosis]:
    lacking = [
        Diagnosis(
            "missing",
            "limits",
            f"the engine does not enforce {name}, and the service does not start without it",
            "Enable the control group in the host's kernel; rootless engines need cgroup v2 with delegation.",
        )
        for name in facts.lacking
    ]
    warnings = [
        Diagnosis(
            "warning",
            "limits",
            f"{warning}: this engine would ignore that limit",
            "Enable it in the host's kernel (docker info names it); until then programs can use more.",
        )
        for warning in facts.warnings
    ]
    everything = Diagnosis("ok", "limits", "memory, swap, processes and CPU time are enforced")
    return lacking + warnings or [everything]


def _time(facts: EngineFacts) -> Diagnosis:
    if abs(facts.skew_seconds) > SKEW_SECONDS:
        detail = f"the engine's clock is {facts.skew_seconds:+.0f} s from this one"
        return Diagnosis("warning", "time", detail, "Run NTP on both; leftovers are swept by their age.")
    return Diagnosis("ok", "time", f"the engine's clock is {facts.skew_seconds:+.1f} s from this one")


def _memory(facts: EngineFacts, settings: Settings) -> Diagnosis:
    budget = settings.max_memory_bytes * settings.pool_size * len(settings.languages)
    detail = f"programs may use up to {show_size(budget)} at once"
    if budget > facts.memory_bytes:
        advice = "Lower SANDBOX_POOL_SIZE or SANDBOX_MAX_MEMORY."
        return Diagnosis("warning", "memory", f"{detail}, more than there is", advice)
    return Diagnosis("ok", "memory", detail)


async def _egress(engine: Networks, facts: EngineFacts, settings: Settings) -> Diagnosis:
    if not settings.egress_networks:
        return Diagnosis("ok", "egress", "no language has a network")
    try:
        await check_networks(engine, facts.choose_runtime(settings.runtime), settings.egress)
    except RuntimeUnavailable as error:
        return Diagnosis("missing", "egress", str(error), "docs/egress.md shows how to make such a network.")
    pairs = ", ".join(f"{language} on {network}" for language, network in settings.egress_networks.items())
    return Diagnosis("ok", "egress", f"{pairs}; private addresses are refused, public ones are not")


def _image(name: str, image_id: str | None, images: list[Image], containers: list[Listed]) -> Diagnosis:
    subject = f"image {name}"
    builds = [image for image in images if image.labels.get(LANGUAGE_LABEL) == name]
    if not builds:
        return Diagnosis("missing", subject, "not there", "make images")
    if image_id is None:
        newest = max(builds, key=lambda image: image.created_at)
        return Diagnosis("missing", subject, f"cannot be used: {_why_unusable(newest)}", "Build it again: make images")
    image = next(image for image in builds if image.id == image_id)
    days = (time.time() - image.created_at) / 86_400
    detail = f"generation {image_id.removeprefix('sha256:')[:12]}, built {max(days, 0):.0f} days ago"
    if len(builds) > 1:
        detail += f", {len(builds) - 1} older builds beside it"
    alive = [one for one in containers if one.labels.get(LANGUAGE_LABEL) == name and one.ended_at is None]
    behind = sum(one.labels.get(GENERATION_LABEL) != image_id for one in alive)
    if alive:
        detail += f"; {len(alive)} containers run, {behind or 'none'} of them of another generation"
    if behind:
        advice = "A running service replaces them within 15 s; where they stay, its log says why (look for 'start of')."
        return Diagnosis("warning", subject, detail, advice)
    if days > OLD_DAYS:
        advice = "scripts/images.sh --refresh builds it again with the security updates of its base."
        return Diagnosis("warning", subject, detail, advice)
    return Diagnosis("ok", subject, detail)


def _why_unusable(image: Image) -> str:
    try:
        usable_manifest(image)
    except RuntimeUnavailable as error:
        return _with_cause(error)
    return "no reason is known any more"


def _with_cause(error: RuntimeUnavailable) -> str:
    """The words of the engine or of the system too, which callers of the service are not told."""
    # That of a deadline has no words.
    return f"{error} ({error.__cause__})" if str(error.__cause__ or "") else str(error)


async def _examine_redis(settings: Settings) -> AsyncIterator[Diagnosis]:
    if not settings.redis_url:
        yield Diagnosis("ok", "redis", "not configured: limits are this instance's own")
        return
    try:
        link = RedisLink(settings.redis_url)
    except SettingsError as error:
        yield Diagnosis("missing", "redis", str(error), "Mend the address, or leave it empty to do without.")
        return
    try:
        if not await link.probe():
            yield Diagnosis("warning", "redis", f"is away ({link.stats().reason})", _WITHOUT_REDIS)
            return
        asked = time.time()
        seconds, microseconds = await link.call(link.client.time)
        skew = seconds + microseconds / 1e6 - (asked + time.time()) / 2
        detail = f"answers and takes writes; its clock is {skew:+.1f} s from this one"
        if abs(skew) > SKEW_SECONDS:
            advice = "Run NTP on both. Limits go by Redis's clock alone; only logs become hard to compare."
            yield Diagnosis("warning", "redis", detail, advice)
        else:
            yield Diagnosis("ok", "redis", detail)
    except RedisAway as away:
        yield Diagnosis("warning", "redis", f"went away ({away.reason})", _WITHOUT_REDIS)
    finally:
        await link.close()


_WITHOUT_REDIS: Final = (
    "The service runs without it; limits are then each instance's own. SANDBOX_REDIS_URL is its address."
)

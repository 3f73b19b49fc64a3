"""Languages with a network: what may be configured, what is asked of the engine, and that nothing runs unfiltered."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from sandbox_svc.egress import NEVER_REACHED, Egress, parse_denied
from sandbox_svc.errors import RuntimeUnavailable, SettingsError
from sandbox_svc.runtime import MIB, egress_filter, seccomp
from sandbox_svc.runtime.container_spec import ContainerLimits, container_config
from sandbox_svc.runtime.docker_engine import Engine, EngineFacts, EngineRefused, Network
from sandbox_svc.runtime.docker_runtime import DockerRuntime
from sandbox_svc.runtime.egress_filter import check_networks, filter_config
from sandbox_svc.runtime.languages import LANGUAGE_LABEL, Language, Manifest, Template
from sandbox_svc.runtime.protocol import FrameType
from sandbox_svc.settings import read_settings
from tests.unit.test_docker_sandbox import ScriptedContainer

PYTHON = Language(
    manifest=Manifest(language="python", source_name="main.py", templates=(Template(name="plain"),)),
    image_id="sha256:1",
)
EGRESS = Egress(networks={"python": "out"}, resolvers=("1.1.1.1",), denied=parse_denied("203.0.113.7"))


# Settings


def test_nobody_has_a_network_unless_told() -> None:
    assert read_settings({}).egress.networks == {}


def test_networks_are_read_by_language() -> None:
    settings = read_settings(
        {
            "SANDBOX_EGRESS_NETWORKS": "python=sandbox-egress, nodejs = other.net_1",
            "SANDBOX_EGRESS_DNS": "9.9.9.9",
            "SANDBOX_EGRESS_DENY": "203.0.113.7, 198.51.100.0/24",
        }
    )
    assert settings.egress.networks == {"python": "sandbox-egress", "nodejs": "other.net_1"}
    assert settings.egress.resolvers == ("9.9.9.9",)
    assert {"203.0.113.7/32", "198.51.100.0/24"} < set(settings.egress.refused)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NETWORKS", "python"),
        ("NETWORKS", "python="),
        ("NETWORKS", "=out"),
        ("NETWORKS", "python=out;nodejs=out"),
        ("NETWORKS", "python=a,python=b"),
        ("NETWORKS", "cobol=out"),
        ("NETWORKS", "python=host"),
        ("NETWORKS", "python=none"),
        ("NETWORKS", "python=default"),
        ("NETWORKS", "python=bridge"),
        ("NETWORKS", "python=container:0123456789ab"),
        ("NETWORKS", "python=../out"),
        ("DNS", ""),
        ("DNS", "10.0.0.53"),
        ("DNS", "127.0.0.53"),
        ("DNS", "169.254.169.254"),
        ("DNS", "168.63.129.16"),
        ("DNS", "2606:4700:4700::1111"),
        ("DNS", "resolver.example"),
        ("DNS", "1.1.1.1,8.8.8.8,9.9.9.9,1.0.0.1"),
        ("DENY", "0.0.0.0/0"),
        ("DENY", "203.0.113.7/24"),
        ("DENY", "fd00::/8"),
        ("DENY", "everything"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"^SANDBOX_EGRESS_{name}"):
        read_settings({f"SANDBOX_EGRESS_{name}": text})


def test_a_resolver_that_is_denied_is_refused() -> None:
    given = {"SANDBOX_EGRESS_NETWORKS": "python=out", "SANDBOX_EGRESS_DENY": "1.1.1.0/24"}
    with pytest.raises(SettingsError, match=r"^SANDBOX_EGRESS_DNS names 1\.1\.1\.1"):
        read_settings(given)


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16", "10.0.0.1", "172.17.0.1"],
)
def test_metadata_and_private_addresses_are_always_refused(address: str) -> None:
    assert any(ipaddress.ip_address(address) in ipaddress.ip_network(block) for block in Egress().refused)


def test_what_is_not_global_is_refused_but_for_the_documentations_own() -> None:
    """By the registry that Python carries: a range that becomes special one day shows here."""
    documentation = parse_denied("192.0.2.0/24,198.51.100.0/24,203.0.113.0/24")
    for number in range(0, 2**32, 2**16):
        special = ipaddress.IPv4Address(number + 1)
        if not special.is_global and not any(special in block for block in documentation):
            assert any(special in block for block in NEVER_REACHED), special


# What is asked of the engine


def config(**more: Any) -> dict[str, Any]:
    return container_config(
        language="python",
        image_id="sha256:1",
        baseline_bytes=MIB,
        limits=ContainerLimits(memory_bytes=256 * MIB),
        runtime="runc",
        seccomp="{}",
        labels={},
        **more,
    )


def test_a_network_changes_nothing_else_in_a_sandbox() -> None:
    without, with_network = config(), config(network="out", resolvers=("1.1.1.1",))
    assert (without["NetworkDisabled"], without["HostConfig"]["NetworkMode"]) == (True, "none")
    assert (with_network["NetworkDisabled"], with_network["HostConfig"]["NetworkMode"]) == (False, "out")
    for changed in ("Dns", "DnsSearch", "NetworkMode"):
        with_network["HostConfig"].pop(changed)
    assert with_network["HostConfig"] == {
        name: value for name, value in without["HostConfig"].items() if name != "NetworkMode"
    }


def test_no_search_domain_of_the_host_is_handed_on() -> None:
    assert config(network="out", resolvers=("1.1.1.1",))["HostConfig"]["DnsSearch"] == ["."]


def test_the_filter_has_one_capability_and_no_language() -> None:
    found = filter_config(
        sandbox_id="c0ffee", image_id="sha256:1", refused=EGRESS.refused, seccomp="{}", labels={"sandbox_svc.host": "h"}
    )
    host = found["HostConfig"]
    assert host["NetworkMode"] == "container:c0ffee"
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], ["NET_ADMIN"])
    assert host["ReadonlyRootfs"] and not host["Privileged"]
    assert host["SecurityOpt"] == ["no-new-privileges", "seccomp={}"]
    assert host["LogConfig"]["Type"] == "none"
    assert host["Memory"] == host["MemorySwap"]
    # A container inherits the labels of its image unless it has its own.
    assert found["Labels"] == {"sandbox_svc.service": "sandbox_svc", "sandbox_svc.host": "h", LANGUAGE_LABEL: ""}
    assert {"169.254.0.0/16", "203.0.113.7/32"} < set(found["Cmd"])


def test_only_the_filter_may_speak_to_netfilter() -> None:
    """And its profile differs in nothing else."""
    added = [
        rule for rule in seccomp.profile(sets_filter=True)["syscalls"] if rule not in seccomp.profile()["syscalls"]
    ]
    assert [rule["names"] for rule in added] == [["socket"]]
    assert [(condition["index"], condition["value"]) for condition in added[0]["args"]] == [(0, 16), (2, 12)]
    assert len(seccomp.profile(sets_filter=True)["syscalls"]) == len(seccomp.profile()["syscalls"]) + 1


# Networks that will do


class OneNetwork:
    def __init__(self, found: Network | None) -> None:
        self._found = found

    async def network(self, name: str) -> Network:
        if self._found is None:
            raise EngineRefused("The container engine refused to describe a network.")
        return self._found


def network(**changes: Any) -> Network:
    return Network(**{"name": "out", "driver": "bridge", "scope": "local", "is_internal": False, **changes})


async def test_a_bridge_of_the_operators_is_fine() -> None:
    await check_networks(OneNetwork(network()), "runc", EGRESS)


async def test_without_egress_nobody_is_asked() -> None:
    await check_networks(OneNetwork(None), "runsc", Egress())


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (None, "no single network"),
        (network(driver="macvlan"), "no bridge"),
        (network(driver="overlay", scope="swarm"), "no bridge"),
        (network(name="outer"), "no bridge"),
        (network(is_internal=True), "internal"),
    ],
)
async def test_a_network_that_will_not_do_is_named(found: Network | None, word: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=f"SANDBOX_EGRESS_NETWORKS names out.*{word}"):
        await check_networks(OneNetwork(found), "runc", EGRESS)


async def test_gvisor_is_refused() -> None:
    """Its network stack would let everything out, filter or not."""
    with pytest.raises(RuntimeUnavailable, match="needs the runtime runc, and runsc is in force"):
        await check_networks(OneNetwork(network()), "runsc", EGRESS)


# Nothing runs unfiltered


class FilterStream:
    """What a filter says, then its end; or silence."""

    def __init__(self, words: list[tuple[int, bytes]], *, is_silent: bool) -> None:
        self._words = words
        self._is_silent = is_silent

    async def read(self) -> tuple[int, bytes] | None:
        if self._is_silent:
            await asyncio.sleep(3600)
        return self._words.pop(0) if self._words else None

    async def close(self) -> None:
        pass


class FakeEngine:
    """An engine on which sandboxes greet at once and filters end as the test says."""

    def __init__(self) -> None:
        self.exists: dict[str, dict[str, Any]] = {}
        self.happened: list[str] = []
        self.sandbox = SandboxStream()
        self.filter_code = 0
        self.is_filter_silent = False
        self.refuses: str | None = None

    def _note(self, act: str, name: str) -> None:
        kind = "filter" if name.endswith("-egress") else "sandbox"
        self.happened.append(f"{act} {kind}")
        if self.refuses == f"{act} {kind}":
            raise EngineRefused(f"The container engine refused to {act} a container.")

    async def create(self, name: str, config: dict[str, Any]) -> str:
        self._note("create", name)
        self.exists[name] = config
        return name

    async def attach(self, name: str) -> Any:
        if name.endswith("-egress"):
            return FilterStream([(2, b"not permitted")], is_silent=self.is_filter_silent)
        return self.sandbox

    async def start(self, name: str) -> None:
        self._note("start", name)

    async def exit_code(self, name: str) -> int:
        self._note("wait", name)
        return self.filter_code

    async def await_end(self, name: str, seconds: float) -> None:
        pass

    async def remove(self, name: str) -> bool:
        self.happened.append(f"remove {'filter' if name.endswith('-egress') else 'sandbox'}")
        return self.exists.pop(name, None) is not None


class SandboxStream(ScriptedContainer):
    async def close(self) -> None:
        self.out(None)

    async def write(self, data: bytes) -> None:
        await super().write(data)
        nonce = json.loads(self.frames[0].head)["nonce"]
        self.say(FrameType.HELLO, 0, {"nonce": nonce, "version": "3"})
        self.ready()


@asynccontextmanager
async def opened(egress: Egress = EGRESS) -> AsyncIterator[tuple[DockerRuntime, FakeEngine]]:
    engine = FakeEngine()
    facts = EngineFacts(
        id="x",
        version="20.10",
        api_version="1.41",
        runtime="runc",
        cgroup_version="2",
        cpus=2,
        memory_bytes=8 << 30,
        runtimes=("runc",),
        skew_seconds=0.0,
        is_uid_mapped=False,
    )
    runtime = DockerRuntime(
        cast("Engine", engine), facts, ContainerLimits(memory_bytes=256 * MIB), instance_id="i", egress=egress
    )
    try:
        yield runtime, engine
    finally:
        await runtime.close()
    assert engine.exists == {}
    assert runtime.owned == frozenset()


async def test_a_sandbox_is_greeted_after_its_network_is_filtered() -> None:
    async with opened() as (runtime, engine):
        await runtime.start(PYTHON)
        assert [act for act in engine.happened if not act.startswith("remove")] == [
            "create sandbox",
            "start sandbox",
            "create filter",
            "start filter",
            "wait filter",
        ]
        assert len(engine.sandbox.frames) == 1
        # What filtered is gone when the sandbox is there.
        assert len(runtime.owned) == len(engine.exists) == 1
        (made,) = engine.exists.values()
        assert made["HostConfig"]["NetworkMode"] == "out"


async def test_a_language_that_is_not_named_needs_no_filter() -> None:
    async with opened(Egress(networks={"nodejs": "out"}, resolvers=("1.1.1.1",))) as (runtime, engine):
        await runtime.start(PYTHON)
        assert engine.happened == ["create sandbox", "start sandbox"]
        (made,) = engine.exists.values()
        assert made["HostConfig"]["NetworkMode"] == "none"


def fails(engine: FakeEngine) -> None:
    engine.filter_code = 1


def is_killed(engine: FakeEngine) -> None:
    engine.filter_code = 137


def hangs(engine: FakeEngine) -> None:
    engine.is_filter_silent = True


def is_not_created(engine: FakeEngine) -> None:
    engine.refuses = "create filter"


def is_not_started(engine: FakeEngine) -> None:
    engine.refuses = "start filter"


def is_lost(engine: FakeEngine) -> None:
    engine.refuses = "wait filter"


@pytest.mark.parametrize("what", [fails, is_killed, hangs, is_not_created, is_not_started, is_lost])
async def test_without_a_filter_there_is_no_sandbox(
    what: Callable[[FakeEngine], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor hears nothing, so no process of a program exists; both containers go."""
    monkeypatch.setattr(egress_filter, "FILTER_SECONDS", 0.1)
    async with opened() as (runtime, engine):
        what(engine)
        with pytest.raises(RuntimeUnavailable):
            await runtime.start(PYTHON)
        assert engine.sandbox.frames == []
        assert engine.exists == {}


async def test_a_start_that_is_cancelled_while_it_filters_leaves_nothing() -> None:
    async with opened() as (runtime, engine):
        engine.is_filter_silent = True
        start = asyncio.create_task(runtime.start(PYTHON))
        async with asyncio.timeout(5):
            while "start filter" not in engine.happened:  # noqa: ASYNC110 - the fake tells nobody
                await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert engine.sandbox.frames == []
        assert engine.exists == {}

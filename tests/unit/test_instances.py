"""What a sweep may remove: only what provably belongs to nobody."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import cast

import msgspec
import pytest

from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.runtime import MIB
from sandbox_svc.runtime.container_spec import HOST_LABEL, INSTANCE_LABEL, ContainerLimits
from sandbox_svc.runtime.docker_engine import Engine, EngineFacts, EngineRefused
from sandbox_svc.runtime.docker_runtime import DockerRuntime
from sandbox_svc.runtime.instances import (
    CREATED_SECONDS,
    ENDED_SECONDS,
    SILENT_SECONDS,
    Birthmark,
    Listed,
    is_leftover,
)

NOW = 1_000_000.0
HERE = Birthmark.of_this_process()
FACTS = EngineFacts(
    id="engine",
    version="1",
    api_version="1",
    runtime="runc",
    cgroup_version="1",
    cpus=1,
    memory_bytes=MIB,
    runtimes=("runc",),
    skew_seconds=0,
    is_uid_mapped=False,
)
ELSEWHERE = Birthmark("another-boot", "pid:[1]", 1, 1)


def container(
    mark: object, *, owner: str = "other", created: float = 0, ended: float | None = None, new: bool = False
) -> Listed:
    return Listed(
        id="c" * 64,
        name="sandbox-svc-python-1",
        labels={INSTANCE_LABEL: owner, HOST_LABEL: str(mark)},
        is_created=new,
        created_at=NOW - created,
        ended_at=None if ended is None else NOW - ended,
    )


async def swept(listed: Listed, *, owned: frozenset[str] = frozenset(), answer: object = "nobody asks") -> bool:
    async def is_alive(instance: str) -> bool | None:
        assert instance == "other"
        assert answer is None or isinstance(answer, bool)
        return answer

    return await is_leftover(
        listed,
        now=NOW,
        instance="me",
        here=HERE,
        owned=owned,
        is_alive=None if answer == "nobody asks" else is_alive,
    )


def test_a_birthmark_survives_its_label() -> None:
    assert Birthmark.parse(str(HERE)) == HERE


@pytest.mark.parametrize("text", ["", "a b c", "a b c d", "a b 1 2 3"])
def test_a_label_that_is_not_a_birthmark_is_none(text: str) -> None:
    assert Birthmark.parse(text) is None


def test_a_process_is_alive_until_it_is_reaped() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        mark = msgspec.structs.replace(HERE, pid=process.pid, started=int(stat.rsplit(")", 1)[1].split()[19]))
        assert mark.is_alive(HERE) is True
        process.kill()
    assert mark.is_alive(HERE) is False


def test_a_pid_that_is_used_again_is_not_the_old_process() -> None:
    """As in a container, where the service is pid 1 each time."""
    assert msgspec.structs.replace(HERE, started=HERE.started - 1).is_alive(HERE) is False


def test_a_process_that_cannot_be_seen_from_here_is_unknown() -> None:
    assert ELSEWHERE.is_alive(HERE) is None
    assert msgspec.structs.replace(HERE, namespace="pid:[1]").is_alive(HERE) is None


async def test_a_living_owner_keeps_its_containers_in_every_state() -> None:
    assert not await swept(container(HERE, created=1e6))
    assert not await swept(container(HERE, created=1e6, ended=1e5))
    assert not await swept(container(HERE, created=1e6, new=True))


async def test_a_dead_owner_keeps_nothing() -> None:
    dead = msgspec.structs.replace(HERE, started=1)
    assert await swept(container(dead, created=1))
    assert await swept(container(dead, created=1, ended=0))


async def test_of_an_unknown_owner_only_what_ended_long_ago_is_taken() -> None:
    """What runs may serve somebody; what ended a moment ago may be looked at by its owner."""
    assert not await swept(container(ELSEWHERE, created=1e6))
    assert not await swept(container(ELSEWHERE, created=1e6, ended=ENDED_SECONDS - 1))
    assert await swept(container(ELSEWHERE, created=1e6, ended=ENDED_SECONDS + 1))
    assert not await swept(container(ELSEWHERE, created=CREATED_SECONDS - 1, new=True))
    assert await swept(container(ELSEWHERE, created=CREATED_SECONDS + 1, new=True))


@pytest.mark.parametrize("answer", [True, False, None])
async def test_what_runs_is_left_alone_whatever_is_said_of_its_owner(answer: bool | None) -> None:
    """An instance that was cut off from Redis alone had its containers killed in the middle of their runs."""
    assert not await swept(container(ELSEWHERE, created=1e6), answer=answer)


@pytest.mark.parametrize(("answer", "expected"), [(True, False), (False, True), (None, False)])
async def test_what_ended_goes_soon_when_its_owner_is_silent(answer: bool | None, expected: bool) -> None:
    """If it is dead, its containers ended by their leash; well within the lease of its permits they are gone."""
    ended = container(ELSEWHERE, created=1e6, ended=SILENT_SECONDS + 1)
    assert await swept(ended, answer=answer) is expected
    assert await swept(container(ELSEWHERE, created=SILENT_SECONDS + 1, new=True), answer=answer) is expected


async def test_a_silent_owner_has_a_moment_to_start_a_container_or_ask_how_it_ended() -> None:
    assert not await swept(container(ELSEWHERE, created=1e6, ended=SILENT_SECONDS - 1), answer=False)
    assert not await swept(container(ELSEWHERE, created=SILENT_SECONDS - 1, new=True), answer=False)


async def test_a_proof_needs_no_question() -> None:
    assert await swept(container(msgspec.structs.replace(HERE, started=1)), answer=True)
    assert not await swept(container(HERE), answer=False)


async def test_of_our_own_only_what_we_never_heard_of_is_taken() -> None:
    name = "sandbox-svc-python-1"
    assert not await swept(container(HERE, owner="me", created=1e6), owned=frozenset({name}))
    assert not await swept(container(HERE, owner="me", created=1))
    assert await swept(container(HERE, owner="me", created=CREATED_SECONDS + 1))


def test_the_own_birthmark_is_this_process() -> None:
    assert HERE.pid == os.getpid()
    assert HERE.started > 0
    assert HERE.is_alive(HERE) is True


async def test_one_that_cannot_be_removed_keeps_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    """A file system that is busy had one orphan stay, and all behind it with it, for ever."""
    dead = msgspec.structs.replace(HERE, pid=2**22 - 3)

    class StubbornEngine:
        def __init__(self) -> None:
            self.left = [f"c{number}" for number in range(6)]

        async def now(self) -> float:
            return NOW

        async def container_ids(self, _: str) -> list[str]:
            return list(self.left)

        async def inspect(self, container_id: str) -> Listed:
            if container_id == "c2":
                raise RuntimeUnavailable("The container engine refused to describe a container.")
            return msgspec.structs.replace(container(dead, owner="dead"), id=container_id)

        async def remove(self, container_id: str) -> bool:
            if container_id == "c4":
                raise EngineRefused("The container engine refused to remove a container.")
            self.left.remove(container_id)
            return True

    engine = StubbornEngine()
    limits = ContainerLimits(memory_bytes=64 * MIB)
    runtime = DockerRuntime(cast("Engine", engine), FACTS, limits, instance_id="me")

    assert await runtime.sweep() == 4

    assert engine.left == ["c2", "c4"]
    assert len([message for message in caplog.messages if "goes on without" in message]) == 2

"""Numbers in, the engine's JSON out: what must hold for every limit an operator may set."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.runtime import MIB
from sandbox_svc.runtime.container_spec import ContainerLimits, UidRanges, container_config, mounts, parse_size


def config(runtime: str = "runc", **limits: Any) -> dict[str, Any]:
    return container_config(
        language="python",
        image_id="sha256:1",
        baseline_bytes=100 * MIB,
        limits=ContainerLimits(**{"memory_bytes": 256 * MIB, **limits}),
        runtime=runtime,
        seccomp='{"defaultAction":"SCMP_ACT_ERRNO"}',
        labels={"sandbox_svc.instance": "i"},
    )


@pytest.mark.parametrize("memory", [16 * MIB, 64 * MIB, 256 * MIB, 4096 * MIB])
@pytest.mark.parametrize("workspace", [1 * MIB, 100 * MIB, 10_000 * MIB])
def test_full_mounts_leave_memory_for_a_program(memory: int, workspace: int) -> None:
    """Their pages count against the container; if they could fill it, the kernel would have to kill the supervisor."""
    places = mounts(ContainerLimits(memory_bytes=memory, workspace_bytes=workspace))
    assert {place.path for place in places} == {"/workspace", "/tmp", "/dev/shm"}
    assert sum(place.size_bytes for place in places) < memory
    assert all(place.size_bytes <= workspace for place in places if place.path == "/workspace")


def test_every_mount_is_bounded_and_nosuid() -> None:
    for options in config()["HostConfig"]["Tmpfs"].values():
        words = options.split(",")
        assert {"nosuid", "nodev"} <= set(words)
        assert any(word.startswith("size=") for word in words)
        assert any(word.startswith("nr_inodes=") for word in words)


def test_memory_is_the_programs_plus_the_residents_and_swap_is_none() -> None:
    host = config()["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 356 * MIB


def test_gvisor_gets_room_for_itself() -> None:
    """Its own tasks count on the host, and the sandbox dies when they hit a limit."""
    runc, runsc = config()["HostConfig"], config("runsc")["HostConfig"]
    assert runsc["Memory"] == runsc["MemorySwap"] == runc["Memory"] + (64 + 64 * 8 + 50) * MIB
    assert (runc["PidsLimit"], runsc["PidsLimit"]) == (128, 1024)


def test_a_program_may_have_the_processes_it_was_promised() -> None:
    assert config(processes=200)["HostConfig"]["PidsLimit"] == 264


def test_labels_of_the_caller_and_of_the_service_are_there() -> None:
    labels = config()["Labels"]
    assert labels["sandbox_svc.instance"] == "i"
    assert labels["sandbox_svc.service"] == "sandbox_svc"
    assert labels["sandbox_svc.generation"] == "sha256:1"


def test_the_body_is_json() -> None:
    assert json.loads(json.dumps(config())) == config()


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("64k", 65536), ("192m", 192 * MIB), ("192M", 192 * MIB), ("2g", 2048 * MIB), ("8mb", 8 * MIB)],
)
def test_sizes_in_manifests(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5g", "1t", "m", "1 m", "\uff11"])
def test_a_size_that_is_none_is_named(text: str) -> None:
    with pytest.raises(RuntimeUnavailable, match="size"):
        parse_size(text)


def test_uid_ranges_never_overlap_and_stay_below_the_kernels_bound() -> None:
    ranges = UidRanges()
    bases = [ranges.take() for _ in range(1000)]
    assert len(set(bases)) == 1000
    assert all(base % ranges.count == 1_000_000 % ranges.count for base in bases)
    assert min(bases) >= 1_000_000
    assert max(bases) + ranges.count <= 2**31


def test_a_range_that_was_given_back_is_free_and_more_than_there_are_is_an_error() -> None:
    ranges = UidRanges(first=0, last=99, count=50)
    first, second = ranges.take(), ranges.take()
    assert {first, second} == {0, 50}
    with pytest.raises(RuntimeUnavailable):
        ranges.take()
    ranges.give_back(second)
    assert ranges.take() == second

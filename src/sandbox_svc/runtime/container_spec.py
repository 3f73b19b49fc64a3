"""What a sandbox's container is made of: one pure function from numbers to the engine's JSON."""

from __future__ import annotations

import random
import re
from typing import Any, Final

import msgspec

from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.runtime import MIB
from sandbox_svc.runtime.languages import LANGUAGE_LABEL

SERVICE_LABEL: Final = "sandbox_svc.service"
INSTANCE_LABEL: Final = "sandbox_svc.instance"
HOST_LABEL: Final = "sandbox_svc.host"
GENERATION_LABEL: Final = "sandbox_svc.generation"
SERVICE: Final = "sandbox_svc"

CAPABILITIES: Final = ("SETUID", "SETGID", "KILL", "CHOWN", "DAC_OVERRIDE")
"""What the supervisor needs to become a run's uid, kill it and wipe after it; user processes have none."""

SYSTEM_TASKS: Final = 64
"""Supervisor, templates and parked processes. A parked node has 11 threads, so this carries five of them."""

GVISOR_TASKS: Final = 1024
"""Under gVisor the host sees two or more tasks per process inside, beside some thirty of its own, and a task that it
refuses ends the whole sandbox. So this bounds gVisor alone; processes inside are bounded by RLIMIT_NPROC."""

GVISOR_PROCESS_BYTES: Final = 8 * MIB
"""What a fork of a small process costs under gVisor, whatever it does. The supervisor does not count it as use."""
GVISOR_MEMORY_BYTES: Final = 64 * MIB
"""gVisor's own kernel."""

CPU_SHARES: Final = 256
"""A quarter of what other containers have: where programs keep every processor busy, the service that has to stop them
and to answer their callers comes first."""

SYSCTLS: Final = {
    # Connections that a program closed would linger for a minute: its ports taken, their traces in /proc/net.
    "net.ipv4.tcp_max_tw_buckets": "0",
}

OPEN_FILES: Final = 1024
"""Docker's default of a million would let one program fill kernel memory with descriptors."""

MASKED_PATHS: Final = (
    # Docker's own list; naming any replaces it.
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    # Kernel objects that would outlive a run: opening a file there creates a message queue without `mq_open`.
    "/dev/mqueue",
    # What tells a program about the host and helps it with nothing.
    "/proc/kallsyms",
    "/proc/key-users",
    "/proc/modules",
    "/sys/block",
    "/sys/bus",
    "/sys/class",
    "/sys/dev",
    "/sys/devices/virtual/dmi",
    "/sys/kernel",
    "/sys/module",
    "/sys/power",
)
READONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

INODES_PER_MOUNT: Final = 16384
"""An inode costs about 1 KiB of kernel memory, and a full mount of them is wiped in well under a second."""

_SIZE = re.compile(r"([1-9][0-9]*)([kmg]?)b?", re.IGNORECASE)


class ContainerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds that every container of a runtime has."""

    memory_bytes: int
    """What one run may use; the language's resident processes come on top."""
    processes: int = 64
    """Processes plus threads of one run."""
    workspace_bytes: int = 100 * MIB
    cpus: float = 1.0


class Mount(msgspec.Struct, frozen=True):
    """A writable place: a tmpfs, whose pages count against the container's memory."""

    path: str
    size_bytes: int
    mode: str
    is_executable: bool

    @property
    def options(self) -> str:
        # No set-uid file can work under no_new_privs; nosuid says so a second time.
        execute = "exec" if self.is_executable else "noexec"
        return f"rw,nosuid,nodev,{execute},size={self.size_bytes},nr_inodes={INODES_PER_MOUNT},mode={self.mode}"


def mounts(limits: ContainerLimits) -> tuple[Mount, ...]:
    """Return the writable places; all of them full are still less than one run's memory.

    Otherwise files that a program left could make the kernel kill the supervisor, which has nothing else to free.
    Programs may execute what they wrote: they run native code anyway, so noexec would only break honest ones.
    """
    workspace = min(limits.workspace_bytes, limits.memory_bytes * 7 // 16)
    scratch = min(64 * MIB, limits.memory_bytes // 4)
    return (
        Mount("/workspace", workspace, "0755", is_executable=True),
        Mount("/tmp", scratch, "1777", is_executable=True),  # noqa: S108 - the sandbox's own tmpfs
        Mount("/dev/shm", scratch, "1777", is_executable=False),  # noqa: S108 - likewise
    )


def parse_size(text: str) -> int:
    """Read `192m`, `1g`, `65536` as bytes. Raises `RuntimeUnavailable`: it stands in an image's manifest."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise RuntimeUnavailable(f"a manifest gives the size {text!r}, which is not a number of bytes, k, m or g")
    return int(match[1]) * 1024 ** "kmg".index(match[2].lower()) * 1024 if match[2] else int(match[1])


def container_memory(limits: ContainerLimits, *, baseline_bytes: int, runtime: str) -> int:
    """Return what a whole container may use, resident processes included."""
    memory = limits.memory_bytes + baseline_bytes
    if runtime == "runsc":
        # Templates share less of their memory there: all of python's take 246 MiB, under runc 123.
        memory += GVISOR_MEMORY_BYTES + limits.processes * GVISOR_PROCESS_BYTES + baseline_bytes // 2
    return memory


def container_config(
    *,
    language: str,
    image_id: str,
    baseline_bytes: int,
    limits: ContainerLimits,
    runtime: str,
    seccomp: str,
    labels: dict[str, str],
    network: str | None = None,
    resolvers: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return the body of the engine's create call; understood by API 1.41 and everything newer.

    Whoever names a `network` sets a filter there before any program runs, see `egress_filter`.
    """
    memory = container_memory(limits, baseline_bytes=baseline_bytes, runtime=runtime)
    return {
        "Image": image_id,
        "Hostname": "sandbox",
        "User": "0:0",
        "WorkingDir": "/workspace",
        "Tty": False,
        "OpenStdin": True,
        # The leash: once our end of the stream is gone the supervisor reads EOF and ends.
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "NetworkDisabled": network is None,
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {
            SERVICE_LABEL: SERVICE,
            LANGUAGE_LABEL: language,
            GENERATION_LABEL: image_id,
            **labels,
        },
        "HostConfig": {
            "Runtime": runtime,
            "NetworkMode": network or "none",
            **({} if network is None else name_resolution(resolvers)),
            # No /dev/shm of the engine's making, whose inodes nobody bounds.
            "IpcMode": "none",
            "CgroupnsMode": "private",
            "ReadonlyRootfs": True,
            "Privileged": False,
            "CapDrop": ["ALL"],
            "CapAdd": list(CAPABILITIES),
            "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp}"],
            "MaskedPaths": list(MASKED_PATHS),
            "ReadonlyPaths": list(READONLY_PATHS),
            "Memory": memory,
            # Equal: no swap, so what a program wrote to memory never reaches a disk.
            "MemorySwap": memory,
            "OomKillDisable": False,
            # Under pressure the host gives up sandboxes before services; user processes raise theirs to 1000.
            "OomScoreAdj": 100,
            "PidsLimit": GVISOR_TASKS if runtime == "runsc" else limits.processes + SYSTEM_TASKS,
            "NanoCpus": int(limits.cpus * 1e9),
            "CpuShares": CPU_SHARES,
            # gVisor has a network stack of its own, and its lingering connections do not outlive their processes.
            "Sysctls": {} if runtime == "runsc" else SYSCTLS,
            "Ulimits": [
                {"Name": "nofile", "Soft": OPEN_FILES, "Hard": OPEN_FILES},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            "Tmpfs": {mount.path: mount.options for mount in mounts(limits)},
            # Frames carry programs and results of all tenants; no copy of them may reach a disk.
            "LogConfig": {"Type": "none", "Config": {}},
            "RestartPolicy": {"Name": "no"},
            # Not AutoRemove: how it died is asked after the fact.
            "AutoRemove": False,
            "Init": False,
        },
    }


def name_resolution(resolvers: tuple[str, ...]) -> dict[str, Any]:
    """Return the part of the engine's JSON that says whom to ask for names, and nothing of the host's own ways."""
    # A dot: no search domains, or the engine would hand on the host's, which tell about it.
    return {"Dns": list(resolvers), "DnsSearch": ["."]}


class UidRanges:
    """Hands out ranges of uids, one per container.

    RLIMIT_NPROC counts the processes of a kernel uid over all containers of a host, so two containers that use the same
    uid eat each other's processes. Instances on one host do not know of each other: they draw at random, and with 100
    containers a draw hits a range in use once in 5000 times, to the price of one run that may start fewer processes.
    """

    def __init__(self, *, first: int = 1_000_000, last: int = 2**31 - 1, count: int = 4096) -> None:
        self.count = count
        self._first = first
        self._ranges = (last - first + 1) // count
        self._taken: set[int] = set()
        self._random = random.SystemRandom()

    def take(self) -> int:
        """Return the first uid of a range that no other container of this instance uses."""
        if len(self._taken) >= self._ranges:
            raise RuntimeUnavailable("no uid range is left for another container")
        while True:
            base = self._first + self._random.randrange(self._ranges) * self.count
            if base not in self._taken:
                self._taken.add(base)
                return base

    def give_back(self, base: int) -> None:
        """The container is gone, its uids are free."""
        self._taken.discard(base)

"""CPU time and memory by who used them: the service, the engine, the containers."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

ENGINE = frozenset(("dockerd", "containerd", "containerd-shim", "docker-proxy"))
_TICK = os.sysconf("SC_CLK_TCK")
_CGROUPS = Path("/sys/fs/cgroup")
_IS_V2 = (_CGROUPS / "cgroup.controllers").exists()


class Cpu(NamedTuple):
    """CPU seconds since whenever; only differences mean something."""

    service: float
    engine: float
    containers: float

    def since(self, before: Cpu) -> Cpu:
        return Cpu(*(now - then for now, then in zip(self, before, strict=True)))


class Accounts:
    """Reads the counters of one service and its containers. The engine's include what others have it do meanwhile."""

    def __init__(self, service_pid: int) -> None:
        self._service_pid = service_pid
        self._cgroups: dict[Path, float] = {}
        """CPU seconds when last seen: what a container had used stays true after it is gone."""
        self._group: Path | None = None

    def watch(self, containers: list[int]) -> None:
        """Count these containers, by the pids of their first processes on the host."""
        self._cgroups = {path: 0.0 for pid in containers if (path := _cgroup(pid, "cpuacct")) is not None}
        self._group = next((path.parent for path in self._cgroups), None)

    def read(self, *, all_containers: bool = False) -> Cpu:
        """`all_containers`: count every container of the engine, also those that come and go."""
        if all_containers and self._group is not None:
            containers = _cgroup_cpu(self._group)
        else:
            for path in self._cgroups:
                with contextlib.suppress(FileNotFoundError):
                    self._cgroups[path] = _cgroup_cpu(path)
            containers = sum(self._cgroups.values())
        return Cpu(_cpu(self._service_pid), _engine_cpu(), containers)


def _cpu(pid: int) -> float:
    """CPU seconds of a process and of the children it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICK


def _engine_cpu() -> float:
    total = 0.0
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "comm").read_text().strip()[:15] in ENGINE:
                total += _cpu(int(folder.name))
        except OSError:
            continue  # it ended between the two looks
    return total


def _cgroup(pid: int, controller: str) -> Path | None:
    """The folder of a process's cgroup as the host sees it, of either version."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if _IS_V2 and not controllers:
            return _CGROUPS / path.lstrip("/")
        if not _IS_V2 and controller in controllers.split(","):
            return _CGROUPS / controller / path.lstrip("/")
    return None


def _cgroup_cpu(path: Path) -> float:
    if _IS_V2:
        lines = (path / "cpu.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("usage_usec ")) / 1e6
    return int((path / "cpuacct.usage").read_text()) / 1e9


def container_memory_mib(pid: int) -> float:
    """Memory charged to the container of a process, page cache of image files not counted."""
    path = _cgroup(pid, "memory")
    if path is None:
        return 0.0
    v1 = path / "memory.usage_in_bytes"
    used = int((v1 if v1.exists() else path / "memory.current").read_text())
    prefix = "total_" if v1.exists() else ""
    for line in (path / "memory.stat").read_text().splitlines():
        key, value = line.split()
        if key in (f"{prefix}inactive_file", f"{prefix}active_file"):
            used -= int(value)
    return used / 2**20


def process_memory_mib(pid: int) -> float:
    """Proportional set size of one process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0

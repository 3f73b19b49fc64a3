"""When a run has had its memory, going by the counters of its container."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from supervisor.accounting import Cgroup, CpuMeter, process_cpu_us
from supervisor.limits import LimitWatch

MIB = 1024 * 1024


class Counters:
    """A cgroup of version 2 as files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.say(used=60, files=10)
        (folder / "memory.events").write_text("oom 0\noom_kill 0\n")
        (folder / "cpu.stat").write_text("usage_usec 0\n")
        self.cgroup = Cgroup(str(folder))

    def say_cpu(self, microseconds: int) -> None:
        (self._folder / "cpu.stat").write_text(f"usage_usec {microseconds}\n")

    def say(self, *, used: int, files: int) -> None:
        """MiB in all, and of those what the kernel can take back."""
        (self._folder / "memory.current").write_text(f"{used * MIB}\n")
        stat = f"anon 1\nactive_file {files * MIB // 2}\ninactive_file {files * MIB // 2}\n"
        (self._folder / "memory.stat").write_text(stat)


def watch(counters: Counters, *, asked_mib: int = 0, is_settled: bool = True) -> LimitWatch:
    request = SimpleNamespace(memory_bytes=asked_mib * MIB, cpu_us=0)
    run: Any = SimpleNamespace(request=request)
    return LimitWatch(run, counters.cgroup, memory_bytes=256 * MIB, is_settled=is_settled)


def test_a_run_without_a_bound_of_its_own_has_that_of_the_container(tmp_path: Path) -> None:
    """The kernel's own end comes late: it takes back every page of the interpreter first."""
    counters = Counters(tmp_path)
    limits = watch(counters)
    assert limits.is_needed
    counters.say(used=316, files=10)
    assert limits.exceeded() is None
    counters.say(used=317, files=10)
    assert limits.exceeded() == "memory"


def test_a_run_may_ask_for_less(tmp_path: Path) -> None:
    counters = Counters(tmp_path)
    limits = watch(counters, asked_mib=32)
    counters.say(used=93, files=10)
    assert limits.exceeded() == "memory"


def test_pages_of_files_are_nobodys_use_of_memory(tmp_path: Path) -> None:
    counters = Counters(tmp_path)
    limits = watch(counters)
    counters.say(used=350, files=200)
    assert limits.exceeded() is None


def test_while_a_template_loads_beside_it_the_kernel_alone_decides(tmp_path: Path) -> None:
    counters = Counters(tmp_path)
    assert not watch(counters, is_settled=False).is_needed


def test_what_the_machine_uses_is_no_run_s(tmp_path: Path) -> None:
    """With no cgroup in sight `/proc/meminfo` is that of the machine, on which others fill memory too."""
    run: Any = SimpleNamespace(request=SimpleNamespace(memory_bytes=32 * MIB, cpu_us=0))
    without = Cgroup(str(tmp_path / "no-cgroup"))
    assert not without.counts_memory(448 * MIB)
    assert not LimitWatch(run, without, memory_bytes=0, is_settled=True).is_needed
    assert Counters(tmp_path).cgroup.counts_memory(448 * MIB)


def test_what_works_beside_a_run_is_not_on_its_account(tmp_path: Path) -> None:
    """A template that loaded beside a run used up the CPU time that the run had, and was told as the run's."""
    counters, others = Counters(tmp_path), 5_000
    meter = CpuMeter(counters.cgroup, lambda: others)
    alone = CpuMeter(counters.cgroup, None)
    counters.say_cpu(900_000)
    others += 700_000
    assert (meter.used_us(), alone.used_us()) == (200_000, 900_000)
    others = 0  # a template that ended takes nothing back
    assert meter.used_us() == 900_000
    assert CpuMeter(Cgroup(str(tmp_path / "no-cgroup")), None).used_us() is None


def test_cpu_time_of_a_process() -> None:
    own = process_cpu_us(os.getpid())
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert 80_000 <= process_cpu_us(os.getpid()) - own <= 300_000
    assert process_cpu_us(2**30) == 0

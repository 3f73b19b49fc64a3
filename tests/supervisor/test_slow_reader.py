"""A service that reads slowly, or not at all, while a run streams: the supervisor never waits for it while a run is timed."""

from __future__ import annotations

import fcntl
import pathlib
import struct
import termios
import time

import pytest

from sandbox_svc.runtime.protocol import FrameType
from supervisor.supervisor import MAX_UNSENT_BYTES
from tests.supervisor.conftest import MIB, SupervisorProcess

PIPE_BYTES = 64 * 1024
FLOOD = "def main():\n    while True: print('x' * 4095)"


def waiting_bytes(supervisor: SupervisorProcess) -> int:
    """What the supervisor wrote and nobody read yet."""
    assert supervisor.process.stdout is not None
    size: int = struct.unpack("i", fcntl.ioctl(supervisor.process.stdout, termios.FIONREAD, bytes(4)))[0]
    return size


def read_some(supervisor: SupervisorProcess) -> None:
    """Take a little off the stream; its frames come with the rest."""
    assert supervisor.process.stdout is not None
    supervisor._frames += supervisor._reader.feed(supervisor.process.stdout.read(PIPE_BYTES))


def until_stuck(supervisor: SupervisorProcess, pid: int) -> None:
    """Wait until the stream to the service is full and the program's own writes wait: its output is left where it is."""
    before, still = -1, 0
    deadline = time.monotonic() + 10
    while still < 10:
        assert time.monotonic() < deadline
        count = written(pid)
        still = still + 1 if count == before and waiting_bytes(supervisor) > PIPE_BYTES // 2 else 0
        before = count
        time.sleep(0.02)


def written(pid: int) -> int:
    """Bytes that a process has written so far, to whatever."""
    for line in pathlib.Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    raise AssertionError("no such counter")


def resident_kb(supervisor: SupervisorProcess) -> int:
    status = pathlib.Path(f"/proc/{supervisor.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def until_gone(supervisor: SupervisorProcess, pid: int, seconds: float) -> float:
    began = time.monotonic()
    while pid in supervisor.user_processes():
        assert time.monotonic() - began < seconds, "the program is still alive"
        time.sleep(0.01)
    return time.monotonic() - began


def begin(supervisor: SupervisorProcess, code: str, **head: object) -> int:
    """Begin a streaming run and return the pid of its process, which was parked before."""
    (pid,) = supervisor.user_processes()
    supervisor.begin(code, stream=True, output_bytes=16 * MIB, **head)
    return pid


def test_time_limit_holds_while_nobody_reads(supervisor: SupervisorProcess) -> None:
    """PR-21: the program is dead at its limit although not a byte of the stream was read, what it wrote meanwhile was left
    in its pipes, and all that was taken of it arrives once somebody reads, in order and once."""
    before = resident_kb(supervisor)
    pid = begin(supervisor, FLOOD, wall_ms=1000)
    assert 0.5 < until_gone(supervisor, pid, 1.0 + 1.0)
    assert waiting_bytes(supervisor) > PIPE_BYTES // 2
    # Not a reader of 1 s of a flood, which is a hundred times that.
    assert resident_kb(supervisor) - before < 8 * 1024

    answer = supervisor.answer()
    supervisor.ready()
    assert (answer.head.limit, answer.result) == ("time", None)
    assert 1_000_000 <= answer.head.wall_us < 1_500_000
    assert answer.streamed == answer.stdout
    # What may wait for the service, what was in its stream, and what was in the program's two pipes at the end.
    assert MAX_UNSENT_BYTES < len(answer.stdout) < MAX_UNSENT_BYTES + 5 * PIPE_BYTES
    assert supervisor.run("def main(): return 'next'").result == b'"next"'


def test_program_goes_on_when_the_reader_does(supervisor: SupervisorProcess) -> None:
    """PR-21: slow is not lossy: 3 MiB on both streams arrive whole, however long the reader had stopped in the middle."""
    code = """
import os
def main():
    for n in range(3 * 16):
        os.write(1, b'%06d' % n * 8192)
        os.write(2, b'%06d' % n * 2048)
    return 'whole'
"""
    pid = begin(supervisor, code)
    for _ in range(3):
        until_stuck(supervisor, pid)
        for _ in range(8):
            read_some(supervisor)
    answer = supervisor.answer()
    supervisor.ready()
    assert answer.result == b'"whole"'
    assert answer.stdout == b"".join(b"%06d" % n * 8192 for n in range(48))
    assert answer.stderr == b"".join(b"%06d" % n * 2048 for n in range(48))
    assert sorted(answer.streamed) == sorted(answer.stdout + answer.stderr)


@pytest.mark.parametrize("ending", ["cancel", "exit"])
def test_end_of_a_run_is_noticed_while_nobody_reads(supervisor: SupervisorProcess, ending: str) -> None:
    """PR-21: commands are still heard, and the end of the program is, while its output waits."""
    code = {"cancel": FLOOD, "exit": f"import os, threading\nthreading.Timer(0.6, os._exit, (4,)).start()\n{FLOOD}"}[
        ending
    ]
    pid = begin(supervisor, code)
    until_stuck(supervisor, pid)
    if ending == "cancel":
        supervisor.send(FrameType.CANCEL, supervisor.last_id, None)
    until_gone(supervisor, pid, 2)
    answer = supervisor.answer()
    supervisor.ready()
    assert answer.streamed == answer.stdout
    assert (answer.head.cancelled, answer.head.exit_code, answer.head.signal) == (
        (True, None, 9) if ending == "cancel" else (False, 4, None)
    )
    assert supervisor.run("def main(): return 'next'", stream=True).result == b'"next"'

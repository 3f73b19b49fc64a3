"""Processes that lost their parent come to the supervisor, as they do to PID 1 of a container."""

from __future__ import annotations

import json
import pathlib

import pytest

from tests.supervisor.conftest import SupervisorProcess
from tests.supervisor.test_programs import value

DAEMONS = """
import os, time
def daemonise(end):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        try:
            if os.fork() == 0:
                end()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0
"""


def corpses(supervisor: SupervisorProcess) -> list[int]:
    """Dead children of the supervisor that nobody collected."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if (state, int(parent)) == ("Z", supervisor.process.pid):
                found.append(int(entry.name))
    return found


def test_daemonised_grandchildren_are_collected(supervisor: SupervisorProcess) -> None:
    """SF-18: those that ended meanwhile and those that are killed with the run: no zombie is left of either."""
    code = DAEMONS + (
        "def main():\n"
        "    made = [daemonise(lambda: os._exit(n)) for n in range(20)]\n"
        "    made += [daemonise(lambda: time.sleep(600)) for n in range(20)]\n"
        "    return sum(made)"
    )
    for _ in range(3):
        assert value(supervisor.run(code)) == 40
        assert corpses(supervisor) == []
        assert len(supervisor.user_processes()) == 1, "only the next parked process is left"


@pytest.mark.parametrize(
    ("ending", "exit_code", "signal"),
    [("os._exit(3)", 3, None), ("os.kill(os.getpid(), 9)", None, 9), ("time.sleep(0.01)", 0, None)],
)
def test_status_of_the_run_is_not_that_of_an_orphan(
    supervisor: SupervisorProcess, ending: str, exit_code: int | None, signal: int | None
) -> None:
    """SF-18: whoever collects orphans by `waitpid(-1)` must not take the status of the run for one of theirs, nor one of
    theirs for that of the run, which ends at the same moment."""
    code = DAEMONS + (
        "def main():\n"
        "    for n in range(12):\n"
        "        daemonise(lambda: (time.sleep(0.002 * n), os._exit(100 + n)))\n"
        "    time.sleep(0.01)\n"
        f"    {ending}"
    )
    for _ in range(4):
        answer = supervisor.run(code)
        assert (answer.head.exit_code, answer.head.signal, answer.head.limit) == (exit_code, signal, None)
    assert corpses(supervisor) == []


def test_dead_orphans_do_not_use_up_the_processes_of_a_run(supervisor: SupervisorProcess) -> None:
    """SF-18: a zombie counts against the limit of processes. A program that makes more daemons than it may have processes,
    each of which has ended before the next begins, never has more than three."""
    code = DAEMONS + (
        "def main():\n"
        "    for n in range(200):\n"
        "        if not daemonise(lambda: os._exit(0)):\n"
        "            return n\n"
        "        time.sleep(0.003)\n"
        "    return 200"
    )
    answer = supervisor.run(code)
    assert answer.result is not None
    assert json.loads(answer.result) == 200

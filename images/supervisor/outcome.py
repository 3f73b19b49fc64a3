"""From what was seen of a run to what the service is told: facts only, never words of a program."""

from __future__ import annotations

import os
import signal
from typing import Any

from supervisor.accounting import Cgroup
from supervisor.run import Run

ABORT_SHARE = 0.95
"""Peak memory over the limit from which an interpreter that aborted has run out of memory."""

NOTHING = {
    "exit_code": None,
    "signal": None,
    "stdout_bytes": 0,
    "stderr_bytes": 0,
    "wall_us": 0,
    "cpu_us": 0,
    "memory_kb": 0,
}
"""The head of RESULT for a run that no process was given."""


def describe(
    run: Run, *, memory_kb: int, memory_bytes: int, cgroup: Cgroup, keeps_own_heap: bool
) -> tuple[dict[str, Any], list[bytes]]:
    """Return the head of RESULT and its parts: result, stdout, stderr.

    `memory_kb` is the peak of the run's first process, `memory_bytes` what a run may use, `keeps_own_heap` whether the
    interpreter has a heap limit of its own and aborts at it.
    """
    report, process = run.report, run.process
    exit_code: int | None = report.exit_code if report.is_done else None
    number: int | None = None
    if run.limit == "output":
        # Whether it had just come to its end or was killed before is a race of its pipes, and of no interest.
        number, exit_code = signal.SIGKILL, None
    elif process.exit and not report.is_done:
        status = process.exit[0]
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    limit = run.limit
    error = report.error
    kills = cgroup.oom_kills()
    has_kills = kills is not None and kills != run.oom_before
    if limit is None and not run.is_cancelled and exit_code != 0:
        # An interpreter that keeps its own heap limit (V8) aborts at it, before the kernel has to act.
        has_aborted = (
            number in (signal.SIGABRT, signal.SIGTRAP)
            and keeps_own_heap
            and memory_kb * 1024 >= memory_bytes * ABORT_SHARE
        )
        if (error and error["is_memory"]) or has_kills or has_aborted:
            limit = "memory"
    if run.is_channel_broken and error is None and not report.is_done:
        error = {
            "type": "ChannelError",
            "message": "the program wrote to the result channel",
            "line": None,
            "traceback": [],
        }
    stdout, stderr = (b"".join(run.capture.chunks[stream]) for stream in (1, 2))
    if run.is_result_too_large:
        # Nobody could tell it from too much output otherwise.
        sentence = f"The result of main is larger than {run.request.result_bytes} bytes."
        error = {"type": "ResultError", "message": sentence, "line": None, "traceback": []}
        stderr += (b"\n" if stderr and not stderr.endswith(b"\n") else b"") + sentence.encode()
    result = report.result if report.is_done and exit_code == 0 and limit is None else None
    cpu_us = run.cpu.used_us()
    if cpu_us is None:
        cpu_us = process.exit[2] if process.exit else 0
    head = {
        "exit_code": exit_code,
        "signal": number,
        "limit": limit,
        "error": error and {key: error[key] for key in ("type", "message", "line", "traceback")},
        "result_bytes": None if result is None else len(result),
        "stdout_bytes": len(stdout),
        "stderr_bytes": len(stderr),
        "stdout_truncated": run.capture.truncated[1],
        "stderr_truncated": run.capture.truncated[2],
        "wall_us": run.wall_us,
        "cpu_us": cpu_us,
        "memory_kb": memory_kb,
        "has_oom_kills": has_kills,
        "artifacts_skipped": 0,
        "cancelled": run.is_cancelled,
    }
    return head, [result or b"", stdout, stderr]

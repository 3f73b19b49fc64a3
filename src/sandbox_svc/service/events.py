"""What the service tells of every run: one frozen event for the log line, the metrics and the trace."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from sandbox_svc.trace_context import TraceContext

ABORTED = "aborted"
"""The outcome of a run that was cancelled, mostly by its caller hanging up."""


class RunEnded(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was taken is over. Never holds code, arguments, files or output."""

    run_id: str
    tenant: str
    language: str
    """The language's own name; `-` where the caller named none that is known."""
    outcome: str
    """A `Verdict`'s word, the code of the error that answered it, or `aborted`."""
    exit_code: int | None = None
    signal: int | None = None
    queue_seconds: float = 0.0
    """Waiting for a sandbox."""
    start_seconds: float = 0.0
    """Handing the program to its sandbox and its outcome back."""
    run_seconds: float | None = None
    """Wall time of the program itself; None when it was not started."""
    cpu_seconds: float = 0.0
    memory_kb: int = 0
    total_seconds: float
    """From the decoded request to the outcome."""
    trace: TraceContext | None = None


RunObserver = Callable[[RunEnded], None]
"""Called on the event loop at the end of each run: it must return at once and must not raise."""


def ignore(_event: RunEnded) -> None:
    """The observer of those who have none."""

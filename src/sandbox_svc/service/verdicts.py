"""What became of a program: outcomes named by their facts, and what only the service can judge of them."""

from __future__ import annotations

import enum
import signal
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox_svc.runtime import Outcome
from sandbox_svc.runtime.protocol import MAX_TEXT_CHARS, ProgramError, TracebackFrame
from sandbox_svc.strict_json import clean_result

if TYPE_CHECKING:
    from sandbox_svc.analysis.findings import SourceError
    from sandbox_svc.runtime import RunLimits

MAX_ESCAPED_OUTPUT_FACTOR: Final = 2
"""How much larger than its limit an output may become when JSON escapes it; a flood of NULs would grow sixfold."""


class Verdict(enum.Enum):
    """An outcome in one word; the same for every API, logs and metrics."""

    SUCCESS = "success"
    PROGRAM_ERROR = "program_error"
    """An exception, a non-zero exit code, or a value that cannot be a result."""
    SIGNALLED = "signalled"
    TIME_LIMIT = "time_limit"
    CPU_LIMIT = "cpu_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    CANCELLED = "cancelled"


_LIMIT_VERDICTS = {
    "time": Verdict.TIME_LIMIT,
    "cpu": Verdict.CPU_LIMIT,
    "memory": Verdict.MEMORY_LIMIT,
    "output": Verdict.OUTPUT_LIMIT,
}


def judge(outcome: Outcome) -> Verdict:
    """Name an outcome by its facts; a limit outranks the signal that enforced it."""
    if outcome.limit is not None:
        return _LIMIT_VERDICTS[outcome.limit]
    if outcome.cancelled:
        return Verdict.CANCELLED
    if outcome.signal is not None:
        return Verdict.SIGNALLED
    return Verdict.SUCCESS if outcome.is_success else Verdict.PROGRAM_ERROR


def signal_name(number: int) -> str:
    """Return `SIGKILL` for 9; numbers without a name, such as real-time signals, as a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def settle(outcome: Outcome, limits: RunLimits) -> Outcome:
    """Apply what only the service can judge: the result is hostile bytes, and output grows when JSON escapes it."""
    if outcome.is_success:
        if _is_escaped_too_large(outcome, limits):
            return msgspec.structs.replace(outcome, limit="output", result=None)
        if outcome.result is not None:
            try:
                result = clean_result(outcome.result, max_bytes=limits.result_bytes)
            except ValueError as error:
                sentence = f"The result of main {error}."
                gap = b"" if not outcome.stderr or outcome.stderr.endswith(b"\n") else b"\n"
                return msgspec.structs.replace(
                    outcome,
                    exit_code=1,
                    error=ProgramError(type="ResultError", message=sentence),
                    result=None,
                    stderr=outcome.stderr + gap + sentence.encode(),
                )
            if result is not outcome.result:
                return msgspec.structs.replace(outcome, result=result)
        return outcome
    return outcome if outcome.result is None else msgspec.structs.replace(outcome, result=None)


def refused_source(error: SourceError, source_name: str) -> Outcome:
    """What the interpreter would have made of the source, had it been started."""
    traceback: tuple[TracebackFrame, ...] = ()
    if error.line is not None:
        text = error.source_line.strip()[:MAX_TEXT_CHARS]
        traceback = (TracebackFrame(file=source_name, line=error.line, function="<module>", text=text),)
    return Outcome(
        exit_code=1,
        error=ProgramError(type=error.type, message=error.message, line=error.line, traceback=traceback),
        stderr=error.text_for(source_name).encode(errors="replace"),
    )


_text_encoder = msgspec.json.Encoder()


def _is_escaped_too_large(outcome: Outcome, limits: RunLimits) -> bool:
    bound = MAX_ESCAPED_OUTPUT_FACTOR * limits.output_bytes
    if 6 * (len(outcome.stdout) + len(outcome.stderr)) <= bound:
        return False
    return (
        sum(len(_text_encoder.encode(out.decode(errors="replace"))) for out in (outcome.stdout, outcome.stderr)) > bound
    )

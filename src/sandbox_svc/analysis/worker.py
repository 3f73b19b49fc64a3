"""The process that analyses large sources: frames in on stdin, frames out on stdout, one at a time.

A parser holds the interpreter's lock from its first byte to its last, so a thread would stall the event loop as much as
no thread; and only a process can be ended in the middle. Run as a script, so that nothing of the environment is needed.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import struct
import sys
from typing import Final

if __name__ == "__main__":
    # Started with -I: the package is found next to this file, wherever that is.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import msgspec

from sandbox_svc.analysis.analyser import SANDBOX_PYTHON, SourceAnalyser
from sandbox_svc.analysis.findings import Analysis, AnalysisMode

HEADER: Final = struct.Struct(">I")
MAX_FRAME: Final = 4 * 1024 * 1024


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker is started; travels as JSON in its only argument."""

    mode: AnalysisMode
    python_version: tuple[int, int] = SANDBOX_PYTHON
    cpu_seconds: float
    """Per source; a worker that needs more is ended by SIGPROF."""
    memory_bytes: int
    """Address space. A parser that reaches it gives up on the source."""
    recycle_bytes: int
    """Resident memory above which a worker ends after its answer, to give the memory back."""
    idle_seconds: float


class Job(msgspec.Struct, frozen=True, array_like=True):
    """One source to analyse."""

    analyser_name: str
    source: bytes


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """The answer, or the name of the exception that a fault in the analysis raised."""

    analysis: Analysis | None
    fault: str = ""


def main() -> None:
    """Serve until stdin ends, the worker has been idle for long, or it has grown too large."""
    options = msgspec.json.decode(sys.argv[1], type=Options)
    _confine(options)
    # The peak of whoever started us is taken for our own (Linux keeps it across exec), and must not end us.
    recycle_kb = max(options.recycle_bytes // 1024, _peak_kb())
    analyser = SourceAnalyser(options.mode, python_version=options.python_version)
    # The collector would walk a large tree again and again while it grows; between two sources is a better time.
    gc.freeze()
    gc.disable()
    decoder, encoder = msgspec.msgpack.Decoder(Job), msgspec.msgpack.Encoder()
    while select.select([0], [], [], options.idle_seconds)[0]:
        header = _read(HEADER.size)
        if header is None:
            return
        body = _read(HEADER.unpack(header)[0])
        if body is None:
            return
        job = decoder.decode(body)
        signal.setitimer(signal.ITIMER_PROF, options.cpu_seconds)
        reply = _answer(analyser, job)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(encoder.encode(reply))
        gc.collect()
        if _peak_kb() > recycle_kb:
            return


def _peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _answer(analyser: SourceAnalyser, job: Job) -> Reply:
    try:
        return Reply(analyser.analyse(job.analyser_name, job.source))
    except MemoryError:
        return Reply(analyser.single("too-complex", "it needs too much memory"))
    except Exception as error:  # noqa: BLE001 - a fault of ours, told to the service; the worker goes on
        return Reply(None, type(error).__name__)


def _confine(options: Options) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (options.memory_bytes, options.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Submitted code decides how long this runs: requests come first, and under pressure this process goes first.
    os.nice(5)
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    except OSError:
        pass  # not Linux, or not permitted: only the kernel's choice of victim is less good


def _read(count: int) -> bytes | None:
    if count > MAX_FRAME:
        return None
    data = bytearray()
    while len(data) < count:
        part = os.read(0, min(count - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)


def _write(payload: bytes) -> None:
    data = memoryview(HEADER.pack(len(payload)) + payload)
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()

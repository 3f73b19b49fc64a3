"""What a fuzzer feeds: one function for each parser that meets hostile bytes. Each raises only when a promise is broken.

`fuzz.py` looks for such bytes, `test_fuzz_targets.py` goes through those that were kept.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from sandbox_svc.errors import InvalidRequest, ProtocolError
from sandbox_svc.http.compat import CompatAdapter
from sandbox_svc.http.v1 import V1Adapter
from sandbox_svc.runtime import MIB, Outcome, RunLimits, protocol
from sandbox_svc.runtime.run_frames import FAULT, HELLO, READY, Received
from sandbox_svc.service.verdicts import judge, settle
from sandbox_svc.strict_json import MAX_LONE_SURROGATES, SurrogateCloak, clean_result
from supervisor import frames
from supervisor.accounting import Cgroup, CpuMeter
from supervisor.outcome import describe
from supervisor.run import Run, RunRequest
from supervisor.templates import UserProcess

LIMITS: Final = RunLimits(wall_ms=10_000, output_bytes=MIB, result_bytes=4096)

RUN: Final = {
    "template": "plain",
    "call_main": True,
    "source_bytes": 0,
    "arguments_bytes": 0,
    "wall_ms": LIMITS.wall_ms,
    "output_bytes": LIMITS.output_bytes,
    "result_bytes": LIMITS.result_bytes,
}
PIPE_BYTES: Final = 65536
EXITS: Final = (None, 0, 3 << 8, 9, 6 | 0x80, 31)
"""Wait statuses: not known, exit codes 0 and 3, SIGKILL, SIGABRT with a core, SIGSYS."""


def strict(text: bytes) -> Any:
    """Decode as the strictest client does: RFC 8259, no lone surrogate, within Python's own bounds."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON")

    value = json.loads(text.decode(), parse_constant=refuse)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def report_frame(data: bytes, status: int | None = 0) -> bytes:
    """What a supervisor tells the service of a run whose process wrote `data` to its result channel and ended so."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    process = UserProcess(1_000_000, "plain", -1, -1, -1, read_end, -1)
    process.exit = None if status is None else (status, 1000, 2000)
    try:
        os.write(write_end, data[:PIPE_BYTES])
        os.close(write_end)
        request = RunRequest(frames.Frame(frames.RUN, 7, json.dumps(RUN).encode(), b""), "main.py")
        nowhere = Cgroup("/nowhere")
        run = Run(request, process, cpu=CpuMeter(nowhere, None), oom_kills=None)
        while not run.report.is_done and run.limit is None and run.read_report():
            pass
    finally:
        os.close(read_end)
    head, parts = describe(run, memory_kb=1, memory_bytes=1, cgroup=nowhere, keeps_own_heap=status == (6 | 0x80))
    encoded = json.dumps(head).encode()
    return frames.header(frames.RESULT, 7, len(encoded), sum(map(len, parts))) + encoded + b"".join(parts)


def outcome_of(frame: bytes) -> Outcome:
    """What the service makes of it. Raises `ProtocolError` or `MsgspecError`, either of which costs the container."""
    (received,) = protocol.FrameReader().feed(frame)
    return Received(LIMITS).result(received)


def channel(data: bytes) -> None:
    """PR-06: whatever a program writes to the channel of its runner decides its own outcome and costs no container."""
    status = EXITS[data[0] % len(EXITS)] if data else 0
    outcome = settle(outcome_of(report_frame(data[1:], status)), LIMITS)
    judge(outcome)
    if outcome.result is not None:
        strict(outcome.result)
    if outcome.error is not None:
        (outcome.error.type + outcome.error.message).encode()


def frame(data: bytes) -> None:
    """PR-20, PR-22: both halves cut a stream alike, however it is split, and frames are values or errors of ours."""
    size, stream = (data[0] or 1, data[1:]) if data else (1, b"")
    whole = _frames(protocol.FrameReader().feed, (stream,))
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    in_pieces = _frames(protocol.FrameReader().feed, pieces)
    theirs = _frames(frames.FrameReader().feed, pieces)
    assert in_pieces == theirs
    # A reader that is given everything at once finds the bad frame before it has handed out the good ones.
    assert whole == in_pieces or (in_pieces[-1:] == [None] and whole == [None])
    received = Received(LIMITS)
    for found in in_pieces:
        if found is None:
            continue
        kind, run_id, head, body = found
        taken = protocol.Frame(protocol.FrameType(kind), run_id, head, body)
        for decode in (HELLO.decode, READY.decode, FAULT.decode):
            _quietly(decode, taken.head)
        for method in (received.output, received.artifact, received.result):
            _quietly(method, taken)


def _frames(feed: Callable[[bytes], list[Any]], chunks: Any) -> list[Any]:
    """Frames as plain tuples; None at the end stands for an error."""
    found: list[Any] = []
    try:
        for chunk in chunks:
            found += [(int(f.type), f.run_id, f.head, f.body) for f in feed(chunk)]
    except (ProtocolError, frames.FrameError):
        found.append(None)
    return found


def _quietly(call: Callable[[Any], object], value: object) -> None:
    try:
        call(value)
    # The last two come from msgspec too, for text that is not UTF-8 and for a head that is nothing but brackets. That each
    # of the four is a breach of the protocol and no accident is shown in tests/unit/test_docker_sandbox.py.
    except (ProtocolError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return


# Eats every escape, so that the second half of an escaped backslash is never taken for the start of one.
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u([dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def lone_surrogates(data: bytes) -> int:
    return sum(match[1] is not None for match in _ESCAPE.finditer(data))


def text(data: bytes) -> None:
    """PR-26, AP-07, AP-10: results are strict JSON or refused, and hidden surrogates come back as they were."""
    cloak = SurrogateCloak()
    try:
        hidden = cloak.hide(data)
    except ValueError:
        hidden = None
        assert lone_surrogates(data) > MAX_LONE_SURROGATES, "more than an honest body holds"
    else:
        assert hidden is not None or b"\0" in data or lone_surrogates(data) == 0
    if hidden is not None:
        assert lone_surrogates(hidden) == 0
        assert cloak.restore(hidden) == data
        assert cloak.restored == cloak.hidden > 0
    refusal = ""
    try:
        result = clean_result(data, max_bytes=1 << 20)
    except ValueError as error:
        refusal = str(error)
    else:
        strict(result)
    assert len(refusal) < 100


def body(data: bytes) -> None:
    """AP-01, AP-06, AP-07, AP-10: a body is a request whose parts every reader after us can read, or refused in a sentence."""
    refusals = []
    for adapter in (CompatAdapter(), V1Adapter()):
        try:
            request = adapter.parse(data)
        except InvalidRequest as error:
            refusals.append(str(error))
            continue
        assert b"\0" not in request.source
        request.source.decode()
        assert isinstance(json.loads(request.arguments), dict)
        for file in request.files:
            assert not file.path.startswith("/") and ".." not in file.path.split("/")
    assert all(0 < len(sentence) < 300 for sentence in refusals)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {"channel": channel, "frame": frame, "text": text, "body": body}

"""Both halves of the frame protocol against each other, against random splits and against garbage."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_svc.errors import ProtocolError
from sandbox_svc.runtime import protocol
from sandbox_svc.runtime.protocol import FrameReader, FrameType, encode_frame
from supervisor import channel, frames

frame = st.tuples(
    st.sampled_from(list(FrameType)),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=200),
    st.lists(st.binary(max_size=300), max_size=3),
)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    points = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(points)]


@given(st.lists(frame, max_size=6), st.lists(st.integers(0, 10_000), max_size=30))
def test_frames_survive_any_split_in_both_halves(
    sent: list[tuple[FrameType, int, bytes, list[bytes]]], cuts: list[int]
) -> None:
    """What one half writes the other reads, whatever the boundaries of the chunks."""
    expected = [(kind, run_id, head, b"".join(parts)) for kind, run_id, head, parts in sent]
    by_service = b"".join(encode_frame(kind, run_id, head, tuple(parts)) for kind, run_id, head, parts in sent)
    by_supervisor = b"".join(
        frames.header(kind, run_id, len(head), len(b"".join(parts))) + head + b"".join(parts)
        for kind, run_id, head, parts in sent
    )
    assert by_service == by_supervisor
    theirs, ours = frames.FrameReader(), FrameReader()
    read_theirs, read_ours = [], []
    for chunk in split(by_service, cuts):
        read_theirs += [tuple(f) for f in theirs.feed(chunk)]
        read_ours += [(f.type, f.run_id, f.head, f.body) for f in ours.feed(chunk)]
    assert expected == read_theirs == read_ours


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=8))
def test_garbage_is_an_error_or_a_frame_and_nothing_else(data: bytes, cuts: list[int]) -> None:
    service, supervisor, runner = FrameReader(), frames.FrameReader(), channel.RunnerReport(100)
    for chunk in split(data, cuts):
        try:
            service.feed(chunk)
        except ProtocolError:
            break
    for chunk in split(data, cuts):
        try:
            supervisor.feed(chunk)
        except frames.FrameError:
            break
    for chunk in split(data, cuts):
        try:
            runner.feed(chunk)
        except (channel.ChannelError, channel.ResultTooLarge):
            break


@pytest.mark.parametrize(
    ("head", "body"), [(protocol.MAX_HEAD_BYTES + 1, 0), (0, protocol.MAX_BODY_BYTES + 1), (2**32 - 1, 2**32 - 1)]
)
def test_lengths_are_refused_before_anything_is_allocated(head: int, body: int) -> None:
    data = protocol.HEADER.pack(protocol.VERSION, FrameType.RESULT, head, body, 1)
    with pytest.raises(ProtocolError):
        FrameReader().feed(data)
    with pytest.raises(frames.FrameError):
        frames.FrameReader().feed(data)


def test_bounds_and_numbers_are_the_same_in_both_halves() -> None:
    assert (protocol.VERSION, protocol.MAX_HEAD_BYTES, protocol.MAX_BODY_BYTES, protocol.HEADER.format) == (
        frames.VERSION,
        frames.MAX_HEAD_BYTES,
        frames.MAX_BODY_BYTES,
        frames.HEADER.format,
    )
    assert {kind.name: kind.value for kind in FrameType} == {
        kind.name: getattr(frames, kind.name) for kind in FrameType
    }


def test_encoding_refuses_what_the_other_side_would_refuse() -> None:
    with pytest.raises(ProtocolError):
        encode_frame(FrameType.RUN, 1, bytes(protocol.MAX_HEAD_BYTES + 1))


def test_result_larger_than_allowed_is_refused_by_its_announced_length() -> None:
    report = channel.RunnerReport(max_result_bytes=10)
    with pytest.raises(channel.ResultTooLarge):
        report.feed(channel.HEADER.pack(b"R", 11))


# Errors and their tracebacks, on the pipe of the user process

FRAME = {"file": "pkg/a.py", "line": 3, "function": "main", "text": "helper()"}


def reported(**fields: Any) -> dict[str, Any]:
    """What the supervisor makes of an error that the user process reports."""
    report = channel.RunnerReport()
    report.feed(channel.encode(channel.ERROR, json.dumps({"type": "E", "message": "m", **fields}).encode()))
    assert report.error is not None
    return report.error


def test_frames_of_an_error_pass() -> None:
    error = reported(traceback=[FRAME, FRAME | {"text": "\ud800"}])
    assert [FRAME, FRAME | {"text": "?"}] == error["traceback"]
    assert [] == reported()["traceback"]


def test_texts_of_frames_are_bounded() -> None:
    (frame,) = reported(traceback=[FRAME | {"function": "f" * 3000, "text": "t" * 3000, "more": 1}])["traceback"]
    assert FRAME | {"function": "f" * 200, "text": "t" * 200} == frame


@pytest.mark.parametrize(
    "traceback",
    [
        None,
        "text",
        {"0": FRAME},
        [FRAME] * (channel.MAX_FRAMES + 1),
        [FRAME, None],
        [FRAME, "text"],
        [FRAME, []],
        [{"file": "a.py", "line": 1}],
        *([FRAME, FRAME | {"line": line}] for line in (0, -1, 2**31, 1.5, "1", None, True)),
        *(
            [FRAME, FRAME | {"file": file}]
            for file in ("", "/opt/sandbox/runner/runner.py", "../a.py", "a/../../b.py", "./a.py", "a//b.py", "a\0")
        ),
        [FRAME | {"file": "/".join(["a" * 200] * 4)}],
    ],
)
def test_a_traceback_that_no_runner_writes_costs_the_traceback_and_not_the_error(traceback: Any) -> None:
    """A program may write here what it likes; nothing of it may name a place outside of its working directory."""
    error = reported(line=7, traceback=traceback)
    assert ("E", "m", 7, []) == (error["type"], error["message"], error["line"], error["traceback"])


def test_what_the_supervisor_lets_pass_the_service_takes() -> None:
    error = reported(traceback=[FRAME | {"text": "t" * 500, "function": "f" * 500}] * channel.MAX_FRAMES)
    frames_ = protocol.ProgramError(
        type="E", message="m", traceback=tuple(msgspec.convert(error["traceback"], list[protocol.TracebackFrame]))
    ).traceback
    assert channel.MAX_FRAMES == len(frames_) == protocol.MAX_FRAMES
    assert (channel.MAX_FILE_CHARS, channel.MAX_FUNCTION_CHARS, channel.MAX_TEXT_CHARS) == (
        protocol.MAX_FILE_CHARS,
        protocol.MAX_TEXT_CHARS,
        protocol.MAX_TEXT_CHARS,
    )


@pytest.mark.parametrize("changes", [{"line": 0}, {"file": "f" * 513}, {"function": "f" * 201}, {"text": "t" * 201}])
def test_the_service_takes_no_more_than_that_either(changes: dict[str, Any]) -> None:
    head = {"exit_code": 1, "signal": None, "stdout_bytes": 0, "stderr_bytes": 0, "wall_us": 1, "cpu_us": 1}
    error = {"type": "E", "message": "m", "traceback": [FRAME | changes]}
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps({**head, "memory_kb": 1, "error": error}), type=protocol.ResultHead)

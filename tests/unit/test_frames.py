"""Both halves of the frame protocol against each other, against random splits and against garbage."""

from __future__ import annotations

import itertools

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

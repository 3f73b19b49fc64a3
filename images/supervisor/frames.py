"""The supervisor's half of the frame protocol; the service's half is `sandbox_svc/runtime/protocol.py`."""

from __future__ import annotations

import struct
from typing import NamedTuple

VERSION = 1
HEADER = struct.Struct(">BBxxIIQ")
MAX_HEAD_BYTES = 256 * 1024
MAX_BODY_BYTES = 32 * 1024 * 1024

CONFIGURE, HELLO, READY, RUN, OUTPUT, ARTIFACT, RESULT, CANCEL, PING, PONG, FAULT = range(1, 12)


class Frame(NamedTuple):
    """One frame; `head` is undecoded JSON, `body` the concatenation of the parts that the head lists."""

    type: int
    run_id: int
    head: bytes
    body: bytes


class FrameError(Exception):
    """The stream does not hold frames of our protocol; there is nothing left to talk about."""


class FrameReader:
    """Cuts a byte stream into frames; lengths are checked before anything is allocated for them."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[Frame]:
        """Return the frames that `chunk` completes, in order. Raises `FrameError`."""
        buffer = self._buffer
        buffer += chunk
        frames: list[Frame] = []
        start = 0
        while len(buffer) - start >= HEADER.size:
            version, kind, head_length, body_length, run_id = HEADER.unpack_from(buffer, start)
            if version != VERSION or not CONFIGURE <= kind <= FAULT:
                raise FrameError("not a frame")
            if head_length > MAX_HEAD_BYTES or body_length > MAX_BODY_BYTES:
                raise FrameError("frame out of bounds")
            head_start = start + HEADER.size
            end = head_start + head_length + body_length
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                head = bytes(view[head_start : head_start + head_length])
                body = bytes(view[head_start + head_length : end])
            frames.append(Frame(kind, run_id, head, body))
            start = end
        if start:
            del buffer[:start]
        return frames


def header(kind: int, run_id: int, head_length: int, body_length: int) -> bytes:
    """Header of a frame whose head and body follow."""
    return HEADER.pack(VERSION, kind, head_length, body_length, run_id)

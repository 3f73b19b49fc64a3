"""Frames between the service and the supervisor in a sandbox: bytes in, structs out, no I/O.

A frame is a fixed header, a JSON head and an opaque body. The body is the concatenation of the parts whose lengths
the head lists, so that sources, outputs and files cross the stream without base64 or escaping. The supervisor's half of
this protocol is `images/supervisor/frames.py` (standard library only); a test feeds each half with what the other
wrote.

Header, 20 bytes, big endian: version u8, type u8, two zero bytes, head length u32, body length u32, run id u64.
"""

from __future__ import annotations

import enum
import struct
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from sandbox_svc.errors import ProtocolError

VERSION: Final = 1
HEADER: Final = struct.Struct(">BBxxIIQ")

MAX_HEAD_BYTES: Final = 256 * 1024
MAX_BODY_BYTES: Final = 32 * 1024 * 1024
"""Bounds checked before anything is allocated; the largest honest body is a request of the HTTP body limit."""


class FrameType(enum.IntEnum):
    """Who sends it and when."""

    CONFIGURE = 1  # service, once, first
    HELLO = 2  # supervisor, once, answers CONFIGURE and echoes its nonce
    READY = 3  # supervisor: reset verified, a process is parked
    RUN = 4  # service, only after READY
    OUTPUT = 5  # supervisor, during a run that asked for streaming
    ARTIFACT = 6  # supervisor, before the RESULT of the same run, one file each
    RESULT = 7  # supervisor, exactly once per RUN
    CANCEL = 8  # service: kill the run; its RESULT still comes
    PING = 9  # service, to an idle sandbox
    PONG = 10  # supervisor
    FAULT = 11  # supervisor, last words before it exits


class Frame(msgspec.Struct, frozen=True):
    """One frame as it was on the wire; `head` is undecoded JSON, `run_id` is 0 outside a run."""

    type: FrameType
    run_id: int
    head: bytes
    body: bytes


class FrameReader:
    """Cuts a byte stream into frames, whatever the boundaries of its chunks."""

    def __init__(self, *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._buffer = bytearray()
        self._max_body_bytes = max_body_bytes

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take any number of bytes and return the frames they complete, in order.

        Raises `ProtocolError` for a header that no supervisor of ours would write; the reader is unusable afterwards.
        Never holds more than one frame's bound plus one chunk.
        """
        buffer = self._buffer
        buffer += chunk
        frames: list[Frame] = []
        start = 0
        while len(buffer) - start >= HEADER.size:
            version, number, head_length, body_length, run_id = HEADER.unpack_from(buffer, start)
            if version != VERSION:
                raise ProtocolError("frame of an unknown version")
            if head_length > MAX_HEAD_BYTES or body_length > self._max_body_bytes:
                raise ProtocolError("frame length out of bounds")
            try:
                frame_type = FrameType(number)
            except ValueError:
                raise ProtocolError("frame of an unknown type") from None
            head_start = start + HEADER.size
            end = head_start + head_length + body_length
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                head = bytes(view[head_start : head_start + head_length])
                body = bytes(view[head_start + head_length : end])
            frames.append(Frame(frame_type, run_id, head, body))
            start = end
        if start:
            del buffer[:start]
        return frames


def encode_frame(frame_type: FrameType, run_id: int, head: bytes, parts: tuple[bytes, ...] = ()) -> bytes:
    """Return one frame; `head` is encoded JSON that lists the lengths of `parts`.

    Raises `ProtocolError` when a bound is exceeded, since the other side would refuse the frame.
    """
    body_length = sum(map(len, parts))
    if len(head) > MAX_HEAD_BYTES or body_length > MAX_BODY_BYTES:
        raise ProtocolError("frame exceeds the bounds of the protocol")
    return b"".join((HEADER.pack(VERSION, frame_type, len(head), body_length, run_id), head, *parts))


# What the heads hold. The supervisor is inside the sandbox, so its heads are decoded as strictly as a caller's JSON.


class _Head(msgspec.Struct, frozen=True):
    """Base of all heads; unknown fields are ignored so that a newer supervisor can say more."""


class Configure(_Head, frozen=True, kw_only=True):
    """First frame to a new sandbox; everything that stays the same for the container's life."""

    nonce: str
    uid_base: int
    uid_count: int
    templates: tuple[str, ...]
    """Templates to keep loaded, by their names in the image's manifest; the first one is parked before READY."""
    memory_bytes: int
    """What one run may use, without the resident templates."""
    container_bytes: int
    """What the whole container may use. A `/proc/meminfo` that shows more is the machine's."""
    processes: int
    """Bound on processes plus threads of one run."""


class Hello(_Head, frozen=True, kw_only=True):
    nonce: str
    version: str
    """Of the language, as its interpreter reports it."""
    packages: tuple[dict[str, str], ...] = ()


class Ready(_Head, frozen=True, kw_only=True):
    runs_left: int
    """Runs for which unused uids remain; 0 retires the container."""
    templates: tuple[str, ...] = ()
    """Templates with a parked process right now."""
    reset_us: int = 0
    """What the reset before this READY took."""


class RunHead(_Head, frozen=True, kw_only=True):
    """Head of RUN. Parts of the body in order: source, arguments, stdin, then every file."""

    template: str
    call_main: bool
    """True: call `main` with the arguments. False: run the source as a script."""
    source_bytes: int
    arguments_bytes: int
    stdin_bytes: int = 0
    files: tuple[tuple[str, int], ...] = ()
    """Relative path and size of each input file."""
    source_name: str = ""
    """The path of the source, where it is one of the caller's files: it is placed there with the others. Empty: it is
    no file, and its name is the manifest's."""
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    artifact_globs: tuple[str, ...] = ()
    keep_artifacts: bool = False
    """Collect artifacts of failed runs too."""
    stream: bool = False
    wall_ms: int
    cpu_ms: int = 0
    """0: bounded by wall time only."""
    memory_bytes: int = 0
    """0: the container's own."""
    output_bytes: int
    """Bound on stdout plus stderr."""
    result_bytes: int


class OutputHead(_Head, frozen=True, kw_only=True):
    stream: int
    """1 stdout, 2 stderr; the bytes are the body."""


class ArtifactHead(_Head, frozen=True, kw_only=True):
    name: str


MAX_FRAMES: Final = 20
MAX_FILE_CHARS: Final = 512
MAX_TEXT_CHARS: Final = 200


class TracebackFrame(msgspec.Struct, frozen=True, kw_only=True):
    """A place in the program's own files."""

    file: Annotated[str, Meta(max_length=MAX_FILE_CHARS)]
    """Relative to the working directory."""
    line: Annotated[int, Meta(ge=1)]
    function: Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
    text: Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
    """The line itself, without its indentation; empty where it could not be read."""


class ProgramError(msgspec.Struct, frozen=True, kw_only=True):
    """What the language's runner reported about an exception that ended the program."""

    type: str
    message: str
    line: int | None = None
    """Line in the submitted source, where known."""
    traceback: Annotated[tuple[TracebackFrame, ...], Meta(max_length=MAX_FRAMES)] = ()
    """Outermost call first; where there are too many, those in the middle are left out."""


class ResultHead(_Head, frozen=True, kw_only=True):
    """Head of RESULT. Parts of the body in order: result JSON (when present), stdout, stderr."""

    exit_code: int | None
    signal: int | None
    limit: str | None = None
    """time, cpu, memory or output: the limit that ended the run, known from our own timers and counters."""
    error: ProgramError | None = None
    result_bytes: int | None = None
    """None: the program produced no value."""
    stdout_bytes: int
    stderr_bytes: int
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    wall_us: int
    cpu_us: int
    memory_kb: int
    has_oom_kills: bool = False
    """Whether the kernel killed a process of the run for memory, whatever became of the others."""
    artifacts_skipped: int = 0
    cancelled: bool = False


class Fault(_Head, frozen=True, kw_only=True):
    reason: str
    """One of a fixed set of words; never text of a program."""

"""The pipe on which a user process reports: parked, result, error, done. Everything on it may be a lie.

A message is a kind (one byte), a length (u32, big endian) and that many bytes. A program can find the descriptor and
write to it; all it can reach that way is the outcome of its own run, which it decides anyway.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from supervisor.layout import checked_path

HEADER = struct.Struct(">cI")

PARKED = b"P"
RESULT = b"R"
ERROR = b"E"
DONE = b"D"

MAX_ERROR_BYTES = 32 * 1024
MAX_DONE_BYTES = 16

MAX_FRAMES = 20
MAX_FILE_CHARS = 512
MAX_FUNCTION_CHARS = 200
MAX_TEXT_CHARS = 200
"""Of a traceback; the service expects no more of any of them."""


class ChannelError(Exception):
    """The bytes are not messages of a runner."""


class ResultTooLarge(Exception):
    """The encoded result exceeds the run's bound."""


class RunnerReport:
    """What the channel of one user process said so far."""

    def __init__(self, max_result_bytes: int = 0) -> None:
        self.max_result_bytes = max_result_bytes
        self.is_parked = False
        self.is_done = False
        self.exit_code: int | None = None
        self.result: bytes | None = None
        self.error: dict[str, Any] | None = None
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Take any number of bytes. Raises `ChannelError` or `ResultTooLarge`; holds at most one bounded message."""
        buffer = self._buffer
        buffer += chunk
        while len(buffer) >= HEADER.size and not self.is_done:
            kind, length = HEADER.unpack_from(buffer)
            self._check(kind, length)
            end = HEADER.size + length
            if len(buffer) < end:
                return
            payload = bytes(memoryview(buffer)[HEADER.size : end])
            del buffer[:end]
            self._take(kind, payload)

    def _check(self, kind: bytes, length: int) -> None:
        if kind == RESULT and self.result is None and self.error is None:
            if length > self.max_result_bytes:
                raise ResultTooLarge
        elif kind == ERROR and self.error is None:
            if length > MAX_ERROR_BYTES:
                raise ChannelError
        elif kind == DONE or (kind == PARKED and not self.is_parked):
            if length > MAX_DONE_BYTES:
                raise ChannelError
        else:
            raise ChannelError

    def _take(self, kind: bytes, payload: bytes) -> None:
        if kind == PARKED:
            self.is_parked = True
        elif kind == RESULT:
            self.result = payload
        elif kind == ERROR:
            self.error = _read_error(payload)
            self.result = None
        else:
            try:
                self.exit_code = int(payload) & 0xFF
            except ValueError:
                raise ChannelError from None
            self.is_done = True


def _read_error(payload: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(payload)
        line = raw.get("line")
        return {
            "type": _text(raw["type"])[:200],
            "message": _text(raw["message"])[:8000],
            "line": line if type(line) is int and 0 < line < 2**31 else None,  # True is an int too
            "is_memory": raw.get("is_memory") is True,
            "traceback": _read_traceback(raw.get("traceback")),
        }
    except (ValueError, KeyError, AttributeError, RecursionError):
        raise ChannelError from None


def _read_traceback(raw: Any) -> list[dict[str, Any]]:
    """The frames, or none of them where one is not what a runner says: the error without them is worth something."""
    if not isinstance(raw, list) or len(raw) > MAX_FRAMES:
        return []
    try:
        frames = [
            {
                "file": checked_path(_text(frame["file"])),
                "line": frame["line"],
                "function": _text(frame["function"])[:MAX_FUNCTION_CHARS],
                "text": _text(frame["text"])[:MAX_TEXT_CHARS],
            }
            for frame in raw
        ]
    except (ValueError, KeyError, TypeError):
        return []
    is_sound = all(
        type(frame["line"]) is int and 0 < frame["line"] < 2**31 and len(frame["file"]) <= MAX_FILE_CHARS
        for frame in frames
    )
    return frames if is_sound else []


def _text(value: object) -> str:
    """Text that fits into strict JSON: what a program says may hold halves of surrogate pairs."""
    return str(value).encode("utf-8", "replace").decode()


def encode(kind: bytes, payload: bytes = b"") -> bytes:
    """One message."""
    return HEADER.pack(kind, len(payload)) + payload

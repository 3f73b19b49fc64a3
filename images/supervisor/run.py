"""One run as the supervisor sees it: what was asked, what came out so far, which limit ended it."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import termios
import time
from typing import Any

from supervisor import channel
from supervisor.accounting import CpuMeter
from supervisor.frames import Frame
from supervisor.layout import checked_path
from supervisor.templates import UserProcess

READ_BYTES = 64 * 1024

# Bytes that JSON writes as six, and those it writes as two: a flood of them must not grow the answer beyond its bound.
_PLAIN = bytes(b for b in range(256) if b >= 0x20 and b not in b'"\\')
_SHORT_ESCAPES = b'"\\\b\f\n\r\t'
ENCODED_FACTOR = 3
"""How much longer than its raw bound the JSON form of an output may get."""


class RunRequest:
    """The head and parts of a RUN frame. Raises `ValueError` or `KeyError` when they do not fit each other."""

    def __init__(self, frame: Frame, source_name: str) -> None:
        head: dict[str, Any] = json.loads(frame.head)
        self.id = frame.run_id
        self.template: str = head["template"]
        self.wall_s: float = head["wall_ms"] / 1000
        self.cpu_us: int = head.get("cpu_ms", 0) * 1000
        self.memory_bytes: int = head.get("memory_bytes", 0)
        self.output_bytes: int = head["output_bytes"]
        self.result_bytes: int = head["result_bytes"]
        self.is_streaming: bool = head.get("stream", False)
        self.keep_artifacts: bool = head.get("keep_artifacts", False)
        self.artifact_globs = tuple(head.get("artifact_globs", ()))
        body = memoryview(frame.body)
        sizes = [head["source_bytes"], head["arguments_bytes"], head.get("stdin_bytes", 0)]
        sizes += [size for _, size in head.get("files", ())]
        if sum(sizes) != len(body) or min(sizes) < 0:
            raise ValueError("parts do not fit the body")
        source, arguments = body[: sizes[0]], body[sizes[0] : sizes[0] + sizes[1]]
        at = sizes[0] + sizes[1]
        self.stdin = body[at : at + sizes[2]]
        at += sizes[2]
        self.files: list[tuple[str, memoryview]] = []
        for path, size in head.get("files", ()):
            self.files.append((checked_path(path), body[at : at + size]))
            at += size
        entry = head.get("source_name", "")
        if entry:
            # One of the caller's files: it is there for the others, and the program finds itself where it was written.
            self.files.append((checked_path(entry), source))
        meta = {
            "call_main": head["call_main"],
            "source_bytes": len(source),
            "source_name": entry or source_name,
            "is_file": bool(entry),
            "args": head.get("args", []),
            "env": head.get("env", {}),
            "stream": self.is_streaming,
        }
        encoded = json.dumps(meta).encode()
        self.message = b"".join((len(encoded).to_bytes(4, "big"), encoded, source, arguments))
        """What the user process reads: meta length (u32), meta JSON, source, arguments JSON."""


class Capture:
    """stdout and stderr of one run under one bound."""

    def __init__(self, bound: int) -> None:
        self._raw_left = bound
        self._encoded_left = bound * ENCODED_FACTOR
        self.chunks: dict[int, list[bytes]] = {1: [], 2: []}
        self.truncated = {1: False, 2: False}

    def add(self, stream: int, chunk: bytes) -> bytes:
        """Keep what still fits and return it; a shorter return than `chunk` means that the bound is exceeded."""
        kept = chunk[: self._raw_left]
        encoded = _encoded_bytes(kept)
        if encoded > self._encoded_left:
            # So that even a worst case of escapes fits what is left.
            kept = kept[: self._encoded_left // 6]
        if len(kept) < len(chunk):
            self.truncated[stream] = True
            self._raw_left = self._encoded_left = 0
        else:
            self._raw_left -= len(chunk)
            self._encoded_left -= encoded
        if kept:
            self.chunks[stream].append(kept)
        return kept


def _encoded_bytes(chunk: bytes) -> int:
    specials = chunk.translate(None, _PLAIN)
    if not specials:
        return len(chunk)
    short = len(specials) - len(specials.translate(None, _SHORT_ESCAPES))
    return len(chunk) + short + 5 * (len(specials) - short)


class Run:
    """A program at work in a user process."""

    def __init__(self, request: RunRequest, process: UserProcess, *, cpu: CpuMeter, oom_kills: int | None) -> None:
        self.request = request
        self.process = process
        self.report = process.report
        self.report.max_result_bytes = request.result_bytes
        self.capture = Capture(request.output_bytes)
        self.to_write: dict[str, memoryview] = {}
        """What our ends of the stdin and program pipes still have to take."""
        self.limit: str | None = None
        self.met_limit: str | None = None
        """The limit that is met while the program may still say its last words."""
        self.is_cancelled = False
        self.is_channel_broken = False
        self.is_result_too_large = False
        self.cpu = cpu
        self.oom_before = oom_kills
        self.started = time.monotonic()
        self.deadline = self.started + request.wall_s
        self.wall_us = 0

    def read_output(self, stream: int) -> tuple[bytes, bool]:
        """Read once from a pipe; return the kept bytes and whether the pipe is at its end. May set `limit`."""
        fd = self.process.stdout if stream == 1 else self.process.stderr
        if fd < 0:
            return b"", True
        try:
            chunk = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return b"", False
        if not chunk:
            return b"", True
        kept = self.capture.add(stream, chunk)
        if len(kept) < len(chunk) and self.limit is None:
            self.limit = "output"
        return kept, False

    def read_report(self) -> bool:
        """Read once from the result pipe; return False at its end. May set `limit`."""
        try:
            chunk = os.read(self.process.result, READ_BYTES)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        try:
            self.report.feed(chunk)
        except channel.ResultTooLarge:
            if self.limit is None:
                self.limit = "output"
                self.is_result_too_large = True
        except channel.ChannelError:
            self.is_channel_broken = True
            return False
        return True

    def drain_report(self) -> None:
        """Take what is in the result pipe now: the end of a process may be seen before the last words it wrote."""
        left = _waiting_bytes(self.process.result)
        while left > 0 and not self.report.is_done:
            left -= READ_BYTES
            if not self.read_report():
                return

    def drain_output(self) -> list[tuple[int, bytes]]:
        """Take what the program had written before it ended, and return it with its stream; nothing that is written
        from now on counts.
        """
        taken = []
        for stream, fd in ((1, self.process.stdout), (2, self.process.stderr)):
            left = _waiting_bytes(fd)
            while left > 0 and not self.capture.truncated[stream]:
                left -= READ_BYTES
                kept, is_end = self.read_output(stream)
                if is_end:
                    break
                if kept:
                    taken.append((stream, kept))
        return taken

    def write(self, name: str) -> bool:
        """Feed a pipe of the program; return True when there is nothing more to write and it is to be closed."""
        left = self.to_write[name]
        try:
            count = os.write(getattr(self.process, name), left)
        except BlockingIOError:
            return False
        except BrokenPipeError:
            count = len(left)  # the program does not want it
        left = left[count:]
        if left:
            self.to_write[name] = left
            return False
        return True


def _waiting_bytes(fd: int) -> int:
    """What is in a pipe now; 0 for one that is closed already."""
    if fd < 0:
        return 0
    count: int = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]
    return count

"""Frames on their way to the service, which may read slowly."""

from __future__ import annotations

import json
import os
import select
import time
from typing import Any

from supervisor import frames

WRITE_SECONDS = 30.0


class Outbox:
    """What was not written yet, in order. `queue` and `flush` never block; `send` and `write` may, within a bound."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.unsent_bytes = 0
        self._unsent: list[memoryview] = []

    def queue(self, kind: int, run_id: int, head: dict[str, Any], parts: list[bytes]) -> None:
        """Put a frame behind what waits already."""
        encoded = json.dumps(head).encode()
        header = frames.header(kind, run_id, len(encoded), sum(map(len, parts)))
        self._append(b"".join((header, encoded, *parts)))

    def flush(self) -> None:
        """Write what can be written at once."""
        while self._unsent:
            try:
                count = os.write(self.fd, self._unsent[0])
            except BlockingIOError:
                return
            self.unsent_bytes -= count
            if count == len(self._unsent[0]):
                del self._unsent[0]
            else:
                self._unsent[0] = self._unsent[0][count:]

    def send(self, kind: int, run_id: int, head: dict[str, Any], parts: list[bytes] | None = None) -> None:
        """Write out everything that waits and this frame. Raises `OSError` when the service does not read."""
        self.queue(kind, run_id, head, parts or [])
        self.write(b"")

    def write(self, data: bytes) -> None:
        """Write out everything that waits and `data`. Nothing is timed meanwhile, so it may block, but not for ever."""
        if data:
            self._append(data)
        self.flush()
        if not self._unsent:
            return
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        deadline = time.monotonic() + WRITE_SECONDS
        while self._unsent:
            if time.monotonic() > deadline:
                raise OSError("the service does not read")
            poll.poll(1000)
            self.flush()

    def _append(self, data: bytes) -> None:
        self._unsent.append(memoryview(data))
        self.unsent_bytes += len(data)

"""A supervisor that misbehaves in the way its image's SANDBOX_MODE names; standard library only, runs as PID 1."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from typing import Any

HEADER = struct.Struct(">BBxxIIQ")
CONFIGURE, HELLO, READY, RUN = 1, 2, 3, 4


def read(length: int) -> bytes:
    data = b""
    while len(data) < length:
        chunk = os.read(0, length - len(data))
        if not chunk:
            sys.exit(0)
        data += chunk
    return data


def receive() -> tuple[int, Any, bytes]:
    _, kind, head, body, _ = HEADER.unpack(read(HEADER.size))
    return kind, json.loads(read(head)), read(body)


def send(kind: int, head: object) -> None:
    data = json.dumps(head).encode()
    os.write(1, HEADER.pack(1, kind, len(data), 0, 0) + data)


def main() -> None:
    mode = os.environ["SANDBOX_MODE"]
    if mode == "crash":
        sys.exit("cannot start")
    if mode == "garbage":
        os.write(1, b"Welcome to the machine\n")
    kind, configure, _ = receive()
    assert kind == CONFIGURE
    if mode == "silent":
        time.sleep(3600)
    if mode == "complain":
        os.write(2, b"\x1b[31mnot well\n" * 100_000)
    send(HELLO, {"nonce": "0" * 32 if mode == "impostor" else configure["nonce"], "version": "0"})
    send(READY, {"runs_left": 10, "templates": configure["templates"][:1]})
    while receive()[0] != RUN:
        pass
    if mode == "greedy":
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(1 << 20)))
    sys.exit(0)


main()

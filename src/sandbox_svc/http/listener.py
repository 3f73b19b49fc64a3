"""The listening socket, and how it is closed without resetting callers.

A kernel completes handshakes by itself and queues the connections; a listener that is closed resets those in its queue,
and their callers, who have sent their requests already, cannot tell whether anybody took them. So the end comes in an
order: no new handshakes, then the queue is emptied by serving it, then the listener is closed.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import select
import socket
import struct
from typing import Final

logger = logging.getLogger("sandbox_svc.http")

BACKLOG: Final = 512
HANDSHAKE_SECONDS: Final = 0.1
"""For handshakes that had begun; a round trip."""
EMPTY_SECONDS: Final = 1.0
"""For what waits in the queue to be taken, which the event loop does one by one."""

_SO_ATTACH_FILTER: Final = 26
_SYN: Final = 0x02
_ACK: Final = 0x10
_FILTER: Final = (
    (0x30, 0, 0, 13),  # load the flags, byte 13 of the TCP header
    (0x54, 0, 0, _SYN | _ACK),  # and
    (0x15, 0, 1, _SYN),  # SYN without ACK?
    (0x06, 0, 0, 0),  # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # else keep all of it
)
"""Classic BPF (Linux Documentation/networking/filter.rst): opcode, jumps when true and when false, operand."""


def open_listener(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit it: head and body of an answer are two writes.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


async def empty(listener: socket.socket) -> None:
    """Let nobody new in and wait, within bounds, until whoever is serving the listener has taken all that queue there.

    Who comes now is not answered at all: the kernel at the other end asks again a second later, and then reaches
    whoever listens on the address by then, or reads that nobody does.
    """
    try:
        _drop_handshakes(listener)
    except OSError as error:
        # Without it a caller may still slip into the queue between the last look and the close.
        logger.debug("cannot stop new connections before closing the listener: %s", error)
    await asyncio.sleep(HANDSHAKE_SECONDS)
    loop = asyncio.get_running_loop()
    end = loop.time() + EMPTY_SECONDS
    queue = select.poll()
    queue.register(listener.fileno(), select.POLLIN)
    is_empty = False
    while not is_empty and loop.time() < end:
        is_empty = not queue.poll(0)
        # After the last look too: whom the loop took just now, it hands to the server in its next turn.
        await asyncio.sleep(0.001)


def _drop_handshakes(listener: socket.socket) -> None:
    instructions = b"".join(struct.pack("HBBI", *one) for one in _FILTER)
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("HP", len(_FILTER), ctypes.addressof(buffer))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

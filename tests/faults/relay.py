"""A TCP port of this machine that leads into the network namespace of a process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from types import TracebackType
from typing import Self

CLONE_NEWNET = 0x40000000


class Relay:
    """Listens on a free port and passes each connection on to a port of the loopback device in there."""

    def __init__(self, pid: int, port: int) -> None:
        self._namespace = f"/proc/{pid}/ns/net"
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        command = ["nsenter", f"--net={self._namespace}", "ip", "link", "set", "lo", "up"]
        subprocess.run(command, check=True, timeout=20)

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return  # closed
            # A thread for each, since a thread that entered a namespace is of no other use.
            threading.Thread(target=self._pass_on, args=(peer,), daemon=True).start()

    def _pass_on(self, peer: socket.socket) -> None:
        namespace = os.open(self._namespace, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(namespace)
        with peer, socket.create_connection(("127.0.0.1", self._target)) as inside:
            back = threading.Thread(target=_pump, args=(inside, peer), daemon=True)
            back.start()
            _pump(peer, inside)
            back.join()

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)

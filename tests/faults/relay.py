"""A TCP port of this machine that leads to a port in the network namespace of a process, or to a socket, until it is cut."""

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
    """Listens on a free port and passes each connection on to a port of the loopback device in there.

    With `hold` nothing is passed on any more and nobody is told: to both ends the other one looks as if its machine had
    lost its power. What was held goes on its way after `let_go`.
    """

    def __init__(self, pid: int, port: int) -> None:
        self._namespace = f"/proc/{pid}/ns/net"
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._flows = threading.Event()
        self._flows.set()
        self._prepare()

    def hold(self) -> None:
        self._flows.clear()

    def let_go(self) -> None:
        self._flows.set()

    def _prepare(self) -> None:
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
        self._join(peer, socket.create_connection(("127.0.0.1", self._target)))

    def _join(self, peer: socket.socket, inside: socket.socket) -> None:
        with peer, inside:
            back = threading.Thread(target=self._pump, args=(inside, peer), daemon=True)
            back.start()
            self._pump(peer, inside)
            back.join()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                target.sendall(data)
        self._flows.wait()
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self.let_go()


class SocketRelay(Relay):
    """Leads to a unix socket, such as that of the machine's own engine, which then looks like a remote one."""

    def __init__(self, path: str) -> None:
        self._path = path
        super().__init__(0, 0)

    def _prepare(self) -> None:
        """No namespace is entered."""

    def _pass_on(self, peer: socket.socket) -> None:
        inside = socket.socket(socket.AF_UNIX)
        inside.connect(self._path)
        self._join(peer, inside)

"""A world of the test's own behind a network of the engine: a namespace with public, private and metadata addresses.

Packets that come from the sandboxes' bridge are routed by a table that leads into that namespace and nowhere else, so
nothing a test sends can reach anybody; the machine's own routes stay as they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Final

from tests.hostile.harness import until
from tests.integration.conftest import docker, why_no_engine

HOST: Final = "203.0.113.9"
"""This machine as the world sees it."""
PUBLIC: Final = "203.0.113.10"
"""Somebody out there: answers on port 80, and names on port 53."""
DENIED: Final = "203.0.113.77"
"""As public, but refused by `SANDBOX_EGRESS_DENY`."""
PRIVATE: Final = (
    "10.99.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.170.2",
    "172.31.0.9",
    "192.0.0.192",
    "192.168.77.7",
    "198.18.0.5",
)
SUBNET: Final = "10.213.77.0/24"
GATEWAY: Final = "10.213.77.1"
TABLE: Final = "21377"

SERVER: Final = r"""
import socket, threading
names = {b"\x06public\x07example\x00": "203.0.113.10", b"\x06rebind\x07example\x00": "10.99.0.1"}
def resolve():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("203.0.113.10", 53))
    while True:
        query, peer = sock.recvfrom(512)
        end = query.index(b"\0", 12) + 5
        address = names.get(query[12:end - 4].lower()) if query[end - 4:end - 2] == b"\0\1" else None
        head = query[:2] + (b"\x81\x80" if address else b"\x81\x83") + b"\0\1" + (b"\0\1" if address else b"\0\0") + b"\0\0\0\0"
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(address) if address else b""
        sock.sendto(head + query[12:end] + answer, peer)
threading.Thread(target=resolve, daemon=True).start()
server = socket.create_server(("0.0.0.0", 80), backlog=64)
print("up", flush=True)
while True:
    peer, _ = server.accept()
    peer.sendall(b"world")
    peer.close()
"""

LISTENER: Final = r"""
import socket, threading
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.bind(("0.0.0.0", 5353))
def listen():
    while True:
        print(heard.recvfrom(99)[0].decode(), flush=True)
threading.Thread(target=listen, daemon=True).start()
server = socket.create_server(("0.0.0.0", 80), backlog=64)
print("up", flush=True)
while True:
    server.accept()[0].close()
"""
"""A neighbour: takes connections and says which datagrams it heard."""

CONNECT: Final = """
import json, socket, sys
def reaches(host, port):
    try:
        socket.create_connection((host, port), 2).close()
    except OSError:
        return False
    return True
print(json.dumps([target for target in json.loads(sys.argv[1]) if reaches(*target)]))
"""


def why_no_world() -> str:
    """Say why no world can be made here; empty when it can."""
    if os.geteuid() != 0 or not pathlib.Path("/proc/sys/net").is_dir():
        return "only root can make a network namespace"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    return why_no_engine()


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True, timeout=20)


class World:
    """A network of the engine, the world behind it, and a neighbour that nothing filters."""

    def __init__(self) -> None:
        mark = secrets.token_hex(3)
        self.network = f"egress-test-{mark}"
        self._bridge, self._link, self._namespace = f"sbxb{mark}", f"sbxw{mark}", f"sbxn{mark}"
        self._neighbour = f"{self.network}-neighbour"
        self.neighbour = ""
        """Its address."""
        self.port = 0
        """Of a service of this machine, on all of its addresses."""

    def reached_unfiltered(self, targets: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Which targets the neighbour reaches: what a sandbox would, if nothing was in its way."""
        asked = docker("exec", self._neighbour, "python3", "-I", "-c", CONNECT, json.dumps(targets)).stdout
        return [(host, port) for host, port in json.loads(asked)]

    def heard(self) -> list[str]:
        """Datagrams that the neighbour heard."""
        return docker("logs", self._neighbour).stdout.split()[1:]

    def containers(self) -> set[str]:
        """Addresses of all containers on the network."""
        found = json.loads(docker("network", "inspect", self.network).stdout)[0]["Containers"]
        return {container["IPv4Address"].partition("/")[0] for container in found.values()}

    @contextlib.contextmanager
    def made(self) -> Iterator[World]:
        with contextlib.ExitStack() as stack:
            # One world at a time: its addresses are the machine's.
            lock = stack.enter_context(pathlib.Path(tempfile.gettempdir(), "sandbox-svc-test-world").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._make_namespace(stack)
            self._make_network(stack)
            self._make_service(stack)
            targets = [(address, 80) for address in (PUBLIC, DENIED, *PRIVATE)]
            targets += [(host, self.port) for host in (HOST, GATEWAY)]
            # Otherwise nothing that a sandbox fails to reach would say anything.
            assert self.reached_unfiltered(targets) == targets
            yield self

    def _make_namespace(self, stack: contextlib.ExitStack) -> None:
        stack.callback(ip, "netns", "del", self._namespace, check=False)
        ip("netns", "add", self._namespace)
        stack.callback(ip, "link", "del", self._link, check=False)
        ip("link", "add", self._link, "type", "veth", "peer", "name", "world", "netns", self._namespace)
        ip("address", "add", f"{HOST}/30", "dev", self._link)
        ip("link", "set", self._link, "up")
        for address in (DENIED, *PRIVATE):
            ip("-n", self._namespace, "address", "add", f"{address}/32", "dev", "lo")
        ip("-n", self._namespace, "address", "add", f"{PUBLIC}/30", "dev", "world")
        for name in ("lo", "world"):
            ip("-n", self._namespace, "link", "set", name, "up")
        server = subprocess.Popen(
            ["ip", "netns", "exec", self._namespace, sys.executable, "-I", "-c", SERVER],
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(server.communicate)
        stack.callback(server.kill)
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"

    def _make_network(self, stack: contextlib.ExitStack) -> None:
        stack.callback(docker, "network", "rm", self.network, check=False)
        option = f"com.docker.network.bridge.name={self._bridge}"
        docker("network", "create", "--subnet", SUBNET, "--gateway", GATEWAY, "--opt", option, self.network)
        stack.callback(ip, "route", "flush", "table", TABLE, check=False)
        ip("route", "add", f"{PUBLIC}/32", "dev", self._link, "table", TABLE)
        for address in (DENIED, *PRIVATE):
            ip("route", "add", f"{address}/32", "via", PUBLIC, "dev", self._link, "table", TABLE)
        ip("route", "add", "unreachable", "default", "table", TABLE)
        stack.callback(ip, "rule", "del", "iif", self._bridge, "lookup", TABLE, check=False)
        ip("rule", "add", "iif", self._bridge, "lookup", TABLE, "priority", "90")
        arguments = ("--network", self.network, "--entrypoint", "/usr/bin/python3", "sandbox-svc/python:latest")
        stack.callback(docker, "rm", "--force", self._neighbour, check=False)
        docker("run", "--detach", "--name", self._neighbour, *arguments, "-I", "-c", LISTENER)
        until(lambda: "up" in docker("logs", self._neighbour).stdout)
        (self.neighbour,) = self.containers()

    def _make_service(self, stack: contextlib.ExitStack) -> None:
        listener = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=64))
        self.port = listener.getsockname()[1]

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        threading.Thread(target=serve, daemon=True).start()
        # accept() does not notice that its socket is closed.
        stack.callback(listener.shutdown, socket.SHUT_RDWR)

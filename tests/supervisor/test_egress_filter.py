"""The filter in a network namespace of the test's own: what passes, what does not, and that it knows when it failed."""

from __future__ import annotations

import json
import os
import pathlib
import secrets
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from sandbox_svc.egress import Egress
from supervisor import egress_filter
from supervisor.egress_filter import Subnet, batch, messages, own_subnets
from tests.supervisor.conftest import IMAGES, SYSTEM_PYTHON

SCRIPT = IMAGES / "supervisor" / "egress_filter.py"
REFUSED = ("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "224.0.0.0/3", "203.0.113.7/32")

ATTEMPT = """
import json, socket, struct, sys
index = {name: number for number, name in socket.if_nameindex()}["eth0"]
bound = (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
def connects(host, *option):
    with socket.socket() as sock:
        sock.settimeout(2)
        if option: sock.setsockopt(*option)
        sock.connect((host, 80))
def sends(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendmsg([b"x"], [(socket.IPPROTO_IP, 8, struct.pack("=I8x", index))], 0, (host, 9))
found = {}
for host in sys.argv[1:]:
    found[host] = []
    for name, act in (("plain", connects), ("bound", lambda host: connects(host, *bound)), ("datagram", sends)):
        try:
            act(host)
            found[host].append(name)
        except OSError:
            pass
print(json.dumps(found))
"""
ANSWER = (
    "import socket\ns = socket.create_server(('0.0.0.0', 80))\nprint(flush=True)\nwhile True: s.accept()[0].close()"
)

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("setpriv") is None,
    reason="only root with iproute2 can make a network namespace",
)


class Namespaces:
    """One namespace as a sandbox sees it, and one that has every address worth an attack."""

    def __init__(self) -> None:
        mark = secrets.token_hex(3)
        self.inside, self.outside = f"sbxi{mark}", f"sbxo{mark}"

    def ip(self, where: str, *arguments: str) -> None:
        subprocess.run(["ip", "-n", where, *arguments], check=True, capture_output=True, timeout=20)

    def make(self) -> None:
        for name in (self.inside, self.outside):
            subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)
            self.ip(name, "link", "set", "lo", "up")
        self.ip(self.inside, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.outside)
        self.ip(self.inside, "address", "add", "172.30.0.2/24", "broadcast", "+", "dev", "eth0")
        self.ip(self.outside, "address", "add", "172.30.0.1/24", "dev", "eth0")
        for address in ("10.5.5.5", "169.254.169.254", "203.0.113.7", "203.0.113.10"):
            self.ip(self.outside, "address", "add", f"{address}/32", "dev", "lo")
        for name in (self.inside, self.outside):
            self.ip(name, "link", "set", "eth0", "up")
        self.ip(self.inside, "route", "add", "default", "via", "172.30.0.1")

    def remove(self) -> None:
        for name in (self.inside, self.outside):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.inside, *command], check=False, capture_output=True, text=True, timeout=60
        )

    def filter(self, *refused: str) -> subprocess.CompletedProcess[str]:
        return self.run(SYSTEM_PYTHON, "-I", "-S", "-B", str(SCRIPT), *refused)

    def attempt(self, *hosts: str) -> dict[str, list[str]]:
        """Try hosts as a process without any capability; return the ways that led there."""
        nobody = (
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
        )
        done = self.run(*nobody, "--no-new-privs", SYSTEM_PYTHON, "-I", "-c", ATTEMPT, *hosts)
        assert done.returncode == 0, done.stderr
        found: dict[str, list[str]] = json.loads(done.stdout)
        return found


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    made = Namespaces()
    server: subprocess.Popen[str] | None = None
    try:
        made.make()
        command = ["ip", "netns", "exec", made.outside, SYSTEM_PYTHON, "-I", "-c", ANSWER]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        server.stdout.readline()
        yield made
    finally:
        if server is not None:
            server.kill()
            server.communicate()
        made.remove()


@needs_root
def test_routes_alone_would_not_do(namespaces: Namespaces) -> None:
    """Why it is no handful of `unreachable` routes: a socket that is bound to the interface does not care for them."""
    namespaces.ip(namespaces.inside, "route", "add", "unreachable", "10.0.0.0/8")
    assert namespaces.attempt("10.5.5.5") == {"10.5.5.5": ["bound", "datagram"]}


@needs_root
def test_what_is_refused_cannot_be_reached_and_the_rest_can(namespaces: Namespaces) -> None:
    refused = ("10.5.5.5", "169.254.169.254", "172.30.0.1", "203.0.113.7")
    before = namespaces.attempt(*refused, "203.0.113.10")
    assert all(ways == ["plain", "bound", "datagram"] for ways in before.values())
    done = namespaces.filter(*REFUSED)
    assert (done.returncode, done.stderr) == (0, "")
    assert namespaces.attempt(*refused, "172.30.0.255", "255.255.255.255", "224.0.0.251", "203.0.113.10") == {
        **{host: [] for host in (*refused, "172.30.0.255", "255.255.255.255", "224.0.0.251")},
        "203.0.113.10": ["plain", "bound", "datagram"],
    }


@needs_root
def test_its_own_subnet_is_refused_though_nobody_named_it(namespaces: Namespaces) -> None:
    assert namespaces.filter("192.168.0.0/16").returncode == 0
    assert namespaces.attempt("172.30.0.1", "10.5.5.5") == {
        "172.30.0.1": [],
        "10.5.5.5": ["plain", "bound", "datagram"],
    }


@needs_root
def test_nothing_comes_in_from_what_is_refused(namespaces: Namespaces) -> None:
    """A neighbour that nothing filters can send, and is not heard."""
    assert namespaces.filter(*REFUSED).returncode == 0
    listen = (
        "import socket\ns = socket.socket(2, 2)\ns.bind(('0.0.0.0', 9))\ns.settimeout(1)\nprint('up', flush=True)\n"
    )
    listener = subprocess.Popen(
        ["ip", "netns", "exec", namespaces.inside, SYSTEM_PYTHON, "-I", "-c", listen + "print(s.recv(9))"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert listener.stdout is not None
    assert listener.stdout.readline() == "up\n"
    send = "import socket\nsocket.socket(2, 2).sendto(b'x', ('172.30.0.2', 9))"
    subprocess.run(["ip", "netns", "exec", namespaces.outside, SYSTEM_PYTHON, "-I", "-c", send], check=True, timeout=20)
    out, error = listener.communicate(timeout=20)
    assert (out, "TimeoutError" in error) == ("", True)


@needs_root
def test_it_fails_where_it_does_not_hold(namespaces: Namespaces) -> None:
    """Nothing to refuse, not allowed to, set twice: every case has an exit code, and the last one breaks nothing."""
    assert namespaces.filter().returncode == 1
    assert namespaces.filter("10.0.0.0/33").returncode == 1
    denied = namespaces.run(
        "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--", SYSTEM_PYTHON, str(SCRIPT), "10.0.0.0/8"
    )
    assert denied.returncode == 1
    assert namespaces.attempt("10.5.5.5") == {"10.5.5.5": ["plain", "bound", "datagram"]}
    assert [namespaces.filter("10.0.0.0/8").returncode for _ in range(2)] == [0, 0]
    assert namespaces.attempt("10.5.5.5") == {"10.5.5.5": []}


@needs_root
def test_a_namespace_without_network_is_an_error() -> None:
    """It was started in the wrong place, and there is no knowing what else is wrong."""
    done = subprocess.run(
        ["unshare", "--net", SYSTEM_PYTHON, str(SCRIPT), "10.0.0.0/8"], check=False, capture_output=True, timeout=20
    )
    assert done.returncode == 1
    assert b"no network" in done.stderr


@needs_root
def test_a_filter_that_lets_something_pass_is_noticed(namespaces: Namespaces, tmp_path: pathlib.Path) -> None:
    """The last act is to try: a kernel that takes the rules and does not keep them is found out."""
    script = SCRIPT.read_text().replace("    install(messages(", "    (lambda _: None)(messages(")
    broken = tmp_path / "broken.py"
    broken.write_text(script)
    done = namespaces.run(SYSTEM_PYTHON, "-I", "-S", "-B", str(broken), "10.0.0.0/8")
    assert done.returncode == 1
    assert "can still be reached: 255.255.255.255, 10.0.0.1, 224.0.0.1, 172.30.0.1" in done.stderr


# Without a kernel

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t01001EAC\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t00001EAC\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


def test_own_subnets_and_gateways_are_read_from_the_kernels_table() -> None:
    found = [str(subnet) for subnet in own_subnets(ROUTES)]
    assert found == ["172.30.0.1 mask 255.255.255.255", "172.30.0.0 mask 255.255.255.0"]


@pytest.mark.parametrize("text", ["", "10.0.0.0", "10.0.0.0/0", "10.0.0.0/33", "10.0.0.0/x", "10.0.0/-1", "ten/8"])
def test_what_is_no_network_is_an_error(text: str) -> None:
    with pytest.raises((ValueError, OSError)):
        Subnet(text)


def test_a_network_is_tried_at_an_address_of_its_own() -> None:
    assert [Subnet(text).sample for text in ("10.0.0.0/8", "203.0.113.7/32")] == ["10.0.0.1", "203.0.113.7"]


def unpacked(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        length, kind = struct.unpack_from("=IH", data)
        yield kind, data[16:length]
        data = data[(length + 3) & ~3 :]


def test_a_filter_is_one_transaction_of_whole_messages() -> None:
    content = messages([Subnet("10.0.0.0/8")], with_ipv6=True)
    found = list(unpacked(batch(content)))
    assert [kind for kind, _ in found] == [0x10, *(kind for kind, _ in content), 0x11]
    assert [body for _, body in found[1:-1]] == [body for _, body in content]
    assert all(len(body) % 4 == 0 for _, body in found)


def test_ipv6_is_left_out_where_the_kernel_has_none() -> None:
    def families(content: list[tuple[int, Any]]) -> set[int]:
        return {body[0] for _, body in content}

    assert families(messages([Subnet("10.0.0.0/8")], with_ipv6=False)) == {socket.AF_INET}
    assert families(messages([Subnet("10.0.0.0/8")], with_ipv6=True)) == {socket.AF_INET, socket.AF_INET6}


def test_the_service_refuses_what_the_filter_can_read() -> None:
    """The list travels as arguments, since the image knows nothing of the service's settings."""
    assert [Subnet(text) for text in Egress().refused]
    assert egress_filter.SECONDS < 20

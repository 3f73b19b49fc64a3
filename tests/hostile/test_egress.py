"""Networks that lead out: public addresses can be reached from a language that has one, and nothing else."""

from __future__ import annotations

import concurrent.futures
import ipaddress
import json
import pathlib
from collections.abc import Iterator
from typing import Any, Final

import pytest

from sandbox_svc.egress import NEVER_REACHED
from tests.hostile.harness import Service, py, running
from tests.hostile.world import DENIED, GATEWAY, HOST, PRIVATE, PUBLIC, World, why_no_world
from tests.integration.conftest import docker, runtimes

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.docker,
    pytest.mark.skipif(bool(why_no_world()), reason=why_no_world()),
]

LANGUAGE: Final = "python"


@pytest.fixture(scope="module")
def outside() -> Iterator[World]:
    with World().made() as made:
        yield made


def settings(outside: World, **more: str) -> dict[str, str]:
    return {
        "SANDBOX_POOL_SIZE": "2",
        "SANDBOX_LANGUAGES": f"{LANGUAGE},nodejs",
        "SANDBOX_EGRESS_NETWORKS": f"{LANGUAGE}={outside.network}",
        "SANDBOX_EGRESS_DNS": PUBLIC,
        "SANDBOX_EGRESS_DENY": f"{DENIED},{HOST}",
    } | more


@pytest.fixture(scope="module")
def shared(outside: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("egress"), "runc", **settings(outside)) as service:
        yield service


@pytest.fixture
def service(shared: Service) -> Iterator[Service]:
    yield shared
    shared.check_invariants()


CONNECT: Final = py("""
    import socket, time
    def main(targets):
        found = []
        for host, port in targets:
            started = time.monotonic()
            try:
                with socket.create_connection((host, port), 5) as peer:
                    answer = peer.recv(5).decode()
            except OSError as error:
                answer = type(error).__name__
            found.append([host, answer, time.monotonic() - started])
        return found
    """)

BYPASS: Final = py("""
    import socket, struct, time
    def main(targets, after=0.0):
        time.sleep(after)
        reached = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(('203.0.113.10', 9))
            targets = [host for host in targets if host != sock.getsockname()[0]]
        def attempt(name, host, act):
            try:
                act(host)
                reached.append([name, host])
            except OSError:
                pass
        index = {name: number for number, name in socket.if_nameindex()}['eth0']
        def connected(host, *option):
            with socket.socket() as sock:
                sock.settimeout(1)
                if option: sock.setsockopt(*option)
                sock.connect((host, 80))
        def mapped(host):
            with socket.socket(socket.AF_INET6) as sock:
                sock.settimeout(1)
                sock.connect(('::ffff:' + host, 80))
        def sent(host, *option, way=()):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                if option: sock.setsockopt(*option)
                sock.sendmsg([b'bypass'], list(way), 0, (host, 5353))
        device = (socket.SOL_SOCKET, 25, b'eth0')
        packet_info = [(socket.IPPROTO_IP, 8, struct.pack('=I8x', index))]
        for host in targets:
            route = bytes((131, 7, 4)) + socket.inet_aton(host) + b'\\0'
            attempt('bound', host, lambda host: connected(host, *device))
            attempt('without route', host, lambda host: connected(host, socket.SOL_SOCKET, 5, 1))
            attempt('mapped', host, mapped)
            attempt('source route', host, lambda host: connected('203.0.113.10', socket.IPPROTO_IP, 4, route))
            attempt('datagram', host, lambda host: sent(host))
            attempt('bound datagram', host, lambda host: sent(host, *device))
            attempt('packet info', host, lambda host: sent(host, way=packet_info))
            attempt('unicast interface', host, lambda host: sent(host, socket.IPPROTO_IP, 50, struct.pack('>I', index)))
            attempt('numbers', host, lambda host: connected(str(int.from_bytes(socket.inet_aton(host)))))
        for host in ('255.255.255.255', '224.0.0.1', '224.0.0.251', '10.213.77.255'):
            attempt('to all', host, lambda host: sent(host))
            attempt('to all, bound', host, lambda host: sent(host, *device))
        for host in ('ff02::1%eth0', 'ff02::fb%eth0', 'fe80::1%eth0', '2001:db8::1'):
            def six(host):
                with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                    sock.setsockopt(*device)
                    sock.sendto(b'bypass', (host, 5353))
            attempt('IPv6', host, six)
        return reached
    """)


def connect(service: Service, targets: list[tuple[str, int]]) -> list[list[Any]]:
    found: list[list[Any]] = service.run(CONNECT, {"targets": targets}, LANGUAGE).value
    return found


def test_public_addresses_and_names_can_be_reached(service: Service) -> None:
    """NW-06: what the network is for, by number and by name."""
    assert [answer for _, answer, _ in connect(service, [(PUBLIC, 80), ("public.example", 80)])] == ["world"] * 2


def test_private_and_metadata_addresses_cannot_be_reached(service: Service, outside: World) -> None:
    """NW-01, NW-06: metadata services, private networks, gateway, neighbour, this machine; refused at once each."""
    targets = [(host, 80) for host in (*PRIVATE, DENIED, outside.neighbour, GATEWAY)]
    targets += [(host, port) for host in (GATEWAY, HOST) for port in (outside.port, service.port, 2375, 22)]
    found = connect(service, targets)
    assert {answer for _, answer, _ in found} == {"ConnectionRefusedError"}
    assert max(seconds for _, _, seconds in found) < 2


def test_name_that_leads_inside_does_not(service: Service) -> None:
    """NW-06: DNS rebinding; the filter looks at addresses, not at names. No name of the host's own is known."""
    names = [("rebind.example", 80), ("host.docker.internal", 80), ("metadata.google.internal", 80), ("10.99.1", 80)]
    found = connect(service, names)
    assert [answer for _, answer, _ in found] == [
        "ConnectionRefusedError",
        "gaierror",
        "gaierror",
        "ConnectionRefusedError",
    ]
    assert max(seconds for _, _, seconds in found) < 2
    assert "search" not in service.run("def main():\n    return open('/etc/resolv.conf').read()", {}, LANGUAGE).value


def test_no_socket_option_leads_past_the_filter(service: Service, outside: World) -> None:
    """NW-06: binding to the interface makes the kernel ignore routes; options of a header name other destinations."""
    hosts = ["10.99.0.1", "169.254.169.254", "192.168.77.7", DENIED, GATEWAY, outside.neighbour]
    assert service.run(BYPASS, {"targets": hosts}, LANGUAGE).value == []
    assert outside.heard() == []


def test_raw_and_packet_sockets_are_denied_on_a_network_too(service: Service) -> None:
    """NW-04: whoever writes frames himself is past every filter; nor may the filter be asked for or changed."""
    code = py("""
        import socket
        def main():
            opened = []
            for args in ((2, 3, 1), (2, 3, 255), (10, 3, 58), (17, 3, 3), (17, 2, 0), (2, 2, 1), (16, 3, 12), (16, 3, 4)):
                try:
                    socket.socket(*args).close()
                    opened.append(args)
                except OSError:
                    pass
            status = dict(line.split(':\\t', 1) for line in open('/proc/self/status') if ':\\t' in line)
            return opened, [status[name].strip() for name in ('CapEff', 'CapPrm', 'CapInh', 'CapAmb')]
        """)
    assert service.run(code, {}, LANGUAGE).value == [[], ["0" * 16] * 4]


def test_sandboxes_on_a_network_cannot_reach_each_other(service: Service, outside: World) -> None:
    """NW-06, LK-21: one listens on every address it has, the other knows where."""
    listen = py("""
        import socket, time
        def main():
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind(('0.0.0.0', 5353))
            udp.settimeout(3)
            server = socket.create_server(('0.0.0.0', 80))
            server.settimeout(0.1)
            try:
                return udp.recvfrom(99)[0].decode()
            except TimeoutError:
                pass
            try:
                return str(server.accept()[1])
            except TimeoutError:
                return 'nobody came'
        """)
    hosts = sorted(outside.containers() - {outside.neighbour})
    assert len(hosts) == 2
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        listener = threads.submit(service.run, listen, {}, LANGUAGE)
        # In the other container: one serves one run at a time.
        assert service.run(BYPASS, {"targets": hosts, "after": 1.0}, LANGUAGE).value == []
        assert listener.result().value == "nobody came"


def test_new_connections_are_bounded(service: Service) -> None:
    """NW-06, RE-01: the host's table of connections is everybody's; a program may not fill it."""
    code = py("""
        import socket
        def main(host):
            sent = 0
            for port in range(10_000, 13_000):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    try:
                        sent += bool(sock.sendto(b'x', (host, port)))
                    except OSError:
                        pass
            return sent
        """)
    answer = service.run(code, {"host": PUBLIC}, LANGUAGE)
    assert 0 < answer.value <= 200 + 50 * answer.seconds


def test_language_that_is_not_named_has_no_network(service: Service) -> None:
    """NW-03: beside one that has."""
    names = service.js("function main() { return Object.keys(require('os').networkInterfaces()); }").value
    assert set(names) <= {"lo"}
    for container in service.containers("nodejs"):
        assert json.loads(docker("inspect", container).stdout)[0]["HostConfig"]["NetworkMode"] == "none"
    listed = {one["name"]: one["has_network"] for one in json.loads(service.get("/v1/languages").body)["languages"]}
    assert listed == {LANGUAGE: True, "nodejs": False}


def test_containers_differ_by_their_network_alone(service: Service, outside: World) -> None:
    """NW-06: no capability more, no container that filtered is left, no mount, no port."""
    assert len(service.containers()) == 4
    specs = [json.loads(docker("inspect", container).stdout)[0] for container in service.containers(LANGUAGE)]
    (other,) = [json.loads(docker("inspect", container).stdout)[0] for container in service.containers("nodejs")][:1]
    for spec in specs:
        host = dict(spec["HostConfig"])
        assert host.pop("NetworkMode") == outside.network
        assert (host.pop("Dns"), host.pop("DnsSearch")) == ([PUBLIC], ["."])
        for name in ("Memory", "MemorySwap", "ContainerIDFile"):
            host.pop(name, None)
        assert host == {name: other["HostConfig"][name] for name in host}
        assert not spec["NetworkSettings"]["Ports"]


def test_gvisor_is_refused_and_not_let_out_unfiltered(outside: World, tmp_path: pathlib.Path) -> None:
    """NW-06, ES-21: named or chosen by itself, it ends the start with a sentence."""
    if "runsc" not in runtimes():
        pytest.skip("this engine has no runsc")
    for runtime in ("runsc", "auto"):
        with pytest.raises(RuntimeError, match="SANDBOX_EGRESS_NETWORKS needs the runtime runc"):
            Service(tmp_path, runtime, **settings(outside)).start_listening()


@pytest.mark.parametrize("network", ["egress-test-nowhere", "internal"])
def test_network_that_will_not_do_ends_the_start(outside: World, tmp_path: pathlib.Path, network: str) -> None:
    """NW-06: one that is not there, one that leads nowhere."""
    name = f"{outside.network}-{network}"
    try:
        if network == "internal":
            docker("network", "create", "--internal", name)
        with pytest.raises(RuntimeError, match=f"SANDBOX_EGRESS_NETWORKS names {name}"):
            Service(
                tmp_path, "runc", **settings(outside, SANDBOX_EGRESS_NETWORKS=f"{LANGUAGE}={name}")
            ).start_listening()
    finally:
        docker("network", "rm", name, check=False)


def test_world_is_a_world() -> None:
    """NW-06: the addresses that are tried are what the filter must know, and the public ones are not."""

    def is_special(text: str) -> bool:
        return any(ipaddress.ip_address(text) in block for block in NEVER_REACHED)

    assert [is_special(address) for address in PRIVATE] == [True] * len(PRIVATE)
    assert [is_special(address) for address in (PUBLIC, DENIED, HOST)] == [False] * 3

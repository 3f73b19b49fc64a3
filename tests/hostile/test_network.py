"""Network: there is none unless an operator names one (`test_egress.py`), and finding that out is fast."""

from __future__ import annotations

import concurrent.futures
import json

import pytest

from tests.hostile.harness import Service, py
from tests.integration.conftest import docker


@pytest.mark.parametrize("language", ["python", "nodejs"])
def test_nothing_is_reachable(service: Service, language: str) -> None:
    """NW-01: metadata, gateways with the engine and this service, private and public addresses; refused, not timed out."""
    targets = [
        ("169.254.169.254", 80),
        ("169.254.170.2", 80),
        ("100.100.100.200", 80),
        ("1.1.1.1", 53),
        ("8.8.8.8", 443),
        ("172.17.0.1", 2375),
        ("172.17.0.1", service.port),
        ("172.18.0.1", 6379),
        ("192.168.65.2", 2375),
        ("10.0.0.1", 22),
        ("127.0.0.1", service.port),
        ("0.0.0.0", service.port),
        ("host.docker.internal", 2375),
        ("host.docker.internal", service.port),
    ]
    code = {
        "python": py("""
            import socket
            def main(targets):
                reached = []
                for host, port in targets:
                    try:
                        socket.create_connection((host, port), 1).close()
                        reached.append(host)
                    except OSError:
                        pass
                return reached
            """),
        "nodejs": py("""
            const net = require('net');
            async function main({ targets }) {
              const reached = [];
              await Promise.all(targets.map(([host, port]) => new Promise((done) => {
                const socket = net.connect({ host, port, timeout: 1000 });
                socket.on('connect', () => { reached.push(host); done(); });
                socket.on('error', done).on('timeout', done);
              })));
              return reached;
            }
            """),
    }
    answer = service.run(code[language], {"targets": targets}, language)
    assert answer.value == []
    assert answer.seconds < 1.5


def test_ipv6_and_names_lead_nowhere(service: Service) -> None:
    """NW-02: literals, the mapped metadata address, link-local, and every name, all within a second or two."""
    answer = service.run(
        py("""
        import socket
        def main():
            reached = []
            for host in ('::ffff:169.254.169.254', 'fd00:ec2::254', 'fe80::1', '2606:4700:4700::1111', '2001:4860:4860::8888'):
                try:
                    socket.create_connection((host, 80), 0.5).close()
                    reached.append(host)
                except OSError:
                    pass
            for name in ('example.com', 'metadata.google.internal', 'redis', 'sandbox-svc'):
                try:
                    reached.append(socket.getaddrinfo(name, 80)[0][4])
                except OSError:
                    pass
            return reached
        """)
    )
    assert answer.value == []
    assert answer.seconds < 2.5


def test_there_is_only_a_loopback_interface(service: Service) -> None:
    """NW-03: in either language's container."""
    assert service.run("import socket\ndef main():\n    return [name for _, name in socket.if_nameindex()]").value == [
        "lo"
    ]
    names = service.js("function main() { return Object.keys(require('os').networkInterfaces()); }").value
    assert set(names) <= {"lo"}


def test_raw_packet_and_vsock_sockets_are_denied(service: Service) -> None:
    """NW-04: the host's CID above all."""
    answer = service.run(
        py("""
        import socket
        def main():
            opened = []
            for name, args in (('raw', (2, 3, 1)), ('raw6', (10, 3, 58)), ('packet', (17, 3, 3)), ('packet dgram', (17, 2, 0)),
                               ('vsock', (40, 1, 0)), ('ping', (2, 2, 1)), ('bluetooth', (31, 3, 1)), ('alg', (38, 5, 0)), ('can', (29, 3, 1))):
                try:
                    sock = socket.socket(*args)
                    if name == 'vsock':
                        sock.settimeout(0.5)
                        sock.connect((2, 1024))
                    opened.append(name)
                except OSError:
                    pass
            return opened
        """)
    )
    # gVisor has ping sockets, on a network that has nobody to answer.
    assert set(answer.value) <= ({"ping"} if service.runtime == "runsc" else set())


SERVER = py("""
    import socket, threading
    def main(port, reuse):
        # Not `create_server`, which asks for SO_REUSEADDR and would not notice what an earlier run left.
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        server.bind(('127.0.0.1', port))
        server.listen()
        def serve():
            peer, _ = server.accept()
            peer.sendall(b'hello')
            peer.close()
        threading.Thread(target=serve).start()
        with socket.create_connection(('127.0.0.1', port), 2) as client:
            return client.recv(5).decode()
    """)


def port(number: int, service: Service) -> dict[str, int]:
    """Arguments of `SERVER`. A port whose connection the server closed first is free at once under runc; under gVisor it
    takes SO_REUSEADDR for a minute (test_leaks.py::test_listeners_are_gone)."""
    return {"port": number, "reuse": int(service.runtime == "runsc")}


def test_loopback_works_inside_a_run(service: Service) -> None:
    """NW-05: a test server of the program's own, again and again on the same port; the previous one's is gone."""
    assert [service.run(SERVER, port(45513, service)).value for _ in range(3)] == ["hello"] * 3


def test_parallel_runs_have_a_loopback_each(wide_service: Service) -> None:
    """NW-05, LK-21: three runs bind one port at the same time, each in a network of its own."""
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: wide_service.run(SERVER, port(45514, wide_service)), range(9)))
    assert [answer.value for answer in answers] == ["hello"] * 9


def test_no_container_is_attached_to_a_network(service: Service) -> None:
    """NW-06: where no operator named one, no container has a network, and no request can ask for one."""
    for container in service.containers():
        spec = json.loads(docker("inspect", container).stdout)[0]
        assert spec["HostConfig"]["NetworkMode"] == "none"
        assert set(spec["NetworkSettings"]["Networks"]) <= {"none"}
    names = service.run(
        "import socket\ndef main():\n    return [name for _, name in socket.if_nameindex()]",
        network="bridge",
        enable_network=True,
    )
    assert names.value == ["lo"]

"""`make up` and `make down` for real, under another name and port; the images are those that are built."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox_svc.runtime.container_spec import HOST_LABEL, SERVICE, SERVICE_LABEL
from tests.integration.conftest import docker, why_no_engine

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
]


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


class Stack:
    """A stack of the test's own."""

    def __init__(self) -> None:
        self.name = f"sandbox-svc-test-{secrets.token_hex(4)}"
        self.port = free_port()
        self.prometheus_port = free_port()
        self.environ = os.environ | {
            "COMPOSE_PROJECT_NAME": self.name,
            "SANDBOX_HOST": "127.0.0.1",
            "SANDBOX_PORT": self.port,
            "SANDBOX_STACK_PROMETHEUS_PORT": self.prometheus_port,
            "SANDBOX_POOL_SIZE": "1",
            "SANDBOX_LANGUAGES": "python",
            "SANDBOX_DRAIN_TIMEOUT": "11s",
        }

    def script(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / "scripts" / name), *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def ids(self, *kinds: str) -> list[str]:
        return docker(*kinds, "--filter", f"label=com.docker.compose.project={self.name}").stdout.split()

    def sandboxes(self, namespace: str) -> list[str]:
        """Those that processes of a pid namespace made, in whatever state."""
        shown = docker(
            "ps",
            "--all",
            "--filter",
            f"label={SERVICE_LABEL}={SERVICE}",
            "--format",
            f'{{{{.ID}}}} {{{{.Label "{HOST_LABEL}"}}}}',
        )
        return [line for line in shown.stdout.splitlines() if namespace in line]

    def inspect(self, service: str) -> dict[str, Any]:
        (container,) = docker("ps", "-q", "--filter", f"name={self.name}.{service}.").stdout.split()
        found: dict[str, Any] = json.loads(docker("inspect", container).stdout)[0]
        return found


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    yield stack
    stack.script("down.sh", "--only-stack")
    for container in stack.ids("ps", "-aq"):
        docker("rm", "--force", "--volumes", container)
    for volume in stack.ids("volume", "ls", "-q"):
        docker("volume", "rm", volume, check=False)


def request(port: str, method: str, path: str, body: Any = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not (is_met := condition()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return is_met


def test_the_stack_comes_up_runs_a_program_and_leaves_nothing_behind(stack: Stack) -> None:
    with_prometheus = docker("image", "inspect", "sandbox-svc/prometheus:latest", check=False).returncode == 0

    up = stack.script("up.sh", "--as-built", *(["--metrics"] if with_prometheus else []))
    assert up.returncode == 0, up.stderr[-4000:]
    answer = request(stack.port, "POST", "/v1/run", {"language": "python", "code": "def main():\n    return 6 * 7"})
    assert answer["result"]["value"] == 42
    assert request(stack.port, "GET", "/readyz")["checks"]["redis"]["status"] == "ok"

    doctor = stack.script("compose.sh", "exec", "-T", "service", "sandbox-svc", "doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "ok       redis: answers and takes writes" in doctor.stdout
    compose = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    plain = subprocess.run(
        [*compose, "--project-name", stack.name, "--file", str(ROOT / "compose.yaml"), "ps"],
        env={"PATH": os.environ["PATH"], "HOME": "/tmp"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "redis" in plain.stdout

    service = stack.inspect("service")
    assert service["Config"]["User"] == "65532:65532"
    assert service["Config"]["StopTimeout"] == 11 + 60
    for name in ("service", "redis", *(["prometheus"] if with_prometheus else [])):
        host = stack.inspect(name)["HostConfig"]
        assert (host["ReadonlyRootfs"], host["Privileged"], host["CapDrop"]) == (True, False, ["ALL"])
        assert host["Memory"] == host["MemorySwap"] > 0
        for bindings in (host["PortBindings"] or {}).values():
            assert {binding["HostIp"] for binding in bindings} == {"127.0.0.1"}

    if with_prometheus:
        promtool = ("promtool", "check", "config", "/etc/prometheus/prometheus.yml")
        check = stack.script("compose.sh", "exec", "-T", "prometheus", *promtool)
        assert check.returncode == 0, check.stdout + check.stderr
        query = "/api/v1/query?query=up%7Bjob%3D%22sandbox-svc%22%7D%20%3D%3D%201"
        assert wait_for(lambda: bool(request(stack.prometheus_port, "GET", query)["data"]["result"]))

    namespace = docker("exec", service["Id"], "readlink", "/proc/1/ns/pid").stdout.strip()
    assert stack.sandboxes(namespace)
    down = stack.script("down.sh", "--only-stack")
    assert down.returncode == 0, down.stderr
    assert stack.sandboxes(namespace) == []
    assert stack.ids("ps", "-aq") == []
    assert stack.ids("network", "ls", "-q") == []
    # Once more: nothing to do is no failure.
    assert stack.script("down.sh", "--only-stack").returncode == 0

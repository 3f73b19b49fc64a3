"""Fixtures for tests that need an engine with the sandbox images."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest

from sandbox_svc.runtime.docker_engine import RuntimeName
from sandbox_svc.runtime.languages import Language, Manifest, Template


@cache
def why_no_engine() -> str:
    """Say why no test with containers can run here; empty when they can."""
    if shutil.which("docker") is None:
        return "the docker client is not installed"
    images = docker("images", "--quiet", "sandbox-svc/python:latest", check=False)
    if images.returncode:
        return "no container engine answers"
    return "" if images.stdout.strip() else "the sandbox images are not built (make images)"


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the docker client, bounded."""
    return subprocess.run(["docker", *arguments], check=check, capture_output=True, text=True, timeout=120)


class _EngineConnection(http.client.HTTPConnection):
    """To the engine's socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self.host)


def engine_json(path: str, **query: str) -> Any:
    """Ask the engine itself and return its answer, None where it has none. A millisecond, where starting the client takes twenty."""
    host = urllib.parse.urlsplit(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    connection = _EngineConnection(host.path) if host.scheme == "unix" else http.client.HTTPConnection(host.netloc)
    with contextlib.closing(connection):
        connection.request("GET", f"{path}?{urllib.parse.urlencode(query)}", headers={"Host": "engine"})
        response = connection.getresponse()
        body = response.read()
        return json.loads(body) if response.status == 200 else None


@cache
def runtimes() -> tuple[str, ...]:
    """The container runtimes that the engine has and the service can use."""
    if why_no_engine():
        return ()
    installed = json.loads(docker("info", "--format", "{{json .Runtimes}}").stdout)
    return tuple(name for name in ("runc", "runsc") if name in installed)


@pytest.fixture(params=runtimes() or ("runc",))
def runtime_name(request: pytest.FixtureRequest) -> RuntimeName:
    """Each container runtime that the engine has, in turn; `test_runtimes.py` says when gVisor is not among them."""
    if why_no_engine():
        pytest.skip(why_no_engine())
    return cast("RuntimeName", request.param)


@pytest.fixture
def instance_id() -> str:
    """Names this test's containers."""
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def containers(instance_id: str) -> Iterator[Callable[[], list[str]]]:
    """Return the ids of this test's containers, in whatever state; what is left at the end is removed."""

    def listed() -> list[str]:
        return docker("ps", "-aq", "--no-trunc", "--filter", f"label=sandbox_svc.instance={instance_id}").stdout.split()

    yield listed
    if left := listed():
        docker("rm", "--force", *left)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Language]]:
    """Build, once per mode, an image whose supervisor is `stand_in.py`."""
    context = tmp_path_factory.mktemp("stand-in")
    shutil.copy(Path(__file__).parent / "stand_in.py", context)
    built: dict[str, Language] = {}

    def build(mode: str) -> Language:
        if mode not in built:
            lines = (
                # It has no language label, so no service on the same engine takes it for one.
                "FROM sandbox-svc/base:latest",
                "COPY stand_in.py /opt/",
                f"ENV SANDBOX_MODE={mode}",
                f"ENTRYPOINT {json.dumps(['/usr/bin/python3', '-I', '-B', '/opt/stand_in.py'])}",
            )
            (context / "Dockerfile").write_text("\n".join(lines))
            tag = f"sandbox-svc-test/{mode}:{os.getpid()}"
            docker("build", "--quiet", "--tag", tag, str(context))
            manifest = Manifest(
                language="python", source_name="main.py", templates=(Template(name="plain"),), baseline_memory="32m"
            )
            built[mode] = Language(manifest=manifest, image_id=tag)
        return built[mode]

    yield build
    for language in built.values():
        docker("rmi", "--force", "--no-prune", language.image_id)

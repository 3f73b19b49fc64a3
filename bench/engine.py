"""The ways to run a program on a container engine without this service, through the engine's API."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.programs import Case

API = "/v1.41"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """A minimal client: one connection per stream, one kept for everything else."""

    def __init__(self) -> None:
        address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        if not address.startswith("unix://"):
            raise SystemExit("the benchmarks need the engine on this machine: DOCKER_HOST=unix://...")
        self._path = address.removeprefix("unix://")
        self._connection = _UnixConnection(self._path)

    def call(self, method: str, path: str, body: object = None) -> Any:
        text = None if body is None else json.dumps(body)
        self._connection.request(method, API + path, text, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:300]!r}")
        try:
            return json.loads(content)
        except ValueError:
            return None

    def stream(self, path: str, body: object = None) -> bytes:
        """Start something whose output comes on a connection of its own; returns the open socket's reader content."""
        sock = self.open_stream(path, body)
        with sock:
            return _read_all(sock)

    def open_stream(self, path: str, body: object = None) -> socket.socket:
        connection = _UnixConnection(self._path)
        text = "{}" if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json", "Connection": "Upgrade", "Upgrade": "tcp"}
        connection.request("POST", API + path, text, headers)
        # http.client wants to know what comes after an upgrade; the raw socket does not.
        sock = connection.sock
        head = b""
        while b"\r\n\r\n" not in head:
            # One byte at a time, so that nothing of the stream is taken with the head.
            head += sock.recv(1)
        if not head.startswith((b"HTTP/1.1 101", b"HTTP/1.1 200")):
            raise RuntimeError(f"{path}: {head!r}")
        return sock

    @property
    def runtimes(self) -> list[str]:
        return sorted(self.call("GET", "/info")["Runtimes"])

    def exec_once(self, container: str, argv: list[str]) -> float:
        """`docker exec`: milliseconds until its output has ended."""
        began = time.perf_counter()
        order = {"AttachStdout": True, "AttachStderr": True, "Cmd": argv}
        exec_id = self.call("POST", f"/containers/{container}/exec", order)["Id"]
        output = self.stream(f"/exec/{exec_id}/start", {"Detach": False, "Tty": False})
        took = (time.perf_counter() - began) * 1e3
        if b"hello" not in output and b"sum" not in output:
            raise RuntimeError(f"exec: {output!r}")
        return took

    def run_once(self, image: str, argv: list[str]) -> float:
        """`docker run --rm`: milliseconds until its output has ended; removing it is not counted."""
        began = time.perf_counter()
        container = self.call(
            "POST",
            "/containers/create",
            {
                "Image": image,
                "Entrypoint": argv[:1],
                "Cmd": argv[1:],
                "NetworkDisabled": True,
                "HostConfig": {"NetworkMode": "none", "LogConfig": {"Type": "none"}},
            },
        )["Id"]
        sock = self.open_stream(f"/containers/{container}/attach?stream=1&stdout=1&stderr=1")
        with sock:
            self.call("POST", f"/containers/{container}/start")
            output = _read_all(sock)
        took = (time.perf_counter() - began) * 1e3
        self.call("DELETE", f"/containers/{container}?force=1&v=1")
        if b"hello" not in output and b"sum" not in output:
            raise RuntimeError(f"run: {output!r}")
        return took


def _read_all(sock: socket.socket) -> bytes:
    chunks = []
    while chunk := sock.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def bare_argv(case: Case) -> list[str]:
    """The program as a command line that prints its result."""
    arguments = json.dumps(dict(case.arguments))
    if case.language == "nodejs":
        return ["/usr/local/bin/node", "-e", f"{case.source};console.log(JSON.stringify(main({arguments})))"]
    return ["/usr/bin/python3", "-I", "-c", f"{case.source}\nprint(main(**{arguments}))"]


class Bench:
    """A container of a language's image, idle but for `floor.py` on its stdin; without limits, filters or network."""

    def __init__(self, language: str) -> None:
        self.name = f"sandbox-svc-bench-{language}-{os.getpid()}"
        self.image = f"sandbox-svc/{language}:latest"
        script = (Path(__file__).parent / "floor.py").read_text()
        self._process = subprocess.Popen(
            [
                *("docker", "run", "--rm", "--interactive", "--init", "--name", self.name, "--network", "none"),
                *("--runtime", "runc", "--security-opt", "seccomp=unconfined", "--log-driver", "none"),
                *("--entrypoint", "/usr/bin/python3", self.image, "-I", "-c", script),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        self.ask("starts", argv=["/bin/true"], count=1)
        return self

    def ask(self, what: str, **order: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, **order}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=30)

"""The service as a real process, a client that believes nothing, and a look at its containers from outside."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import math
import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from sandbox_svc.runtime.container_spec import HOST_LABEL
from sandbox_svc.runtime.languages import LANGUAGE_LABEL
from tests.integration.conftest import docker, engine_json

MIB: Final = 1024 * 1024

CANARY: Final = "CANARY-" + secrets.token_hex(8)
"""Stands in every program and in what tests pass and print; the service's log must never hold it."""

TIME_LIMIT: Final = 5.0
"""`SANDBOX_TIMEOUT` of the services here, seconds."""
START_SECONDS: Final = 90
TEMPLATES: Final = {"python": 3, "nodejs": 1}
"""Processes that stay parked in a container, per language."""

COMPAT_FIELDS: Final = frozenset(
    (
        "status",
        "stdout",
        "stderr",
        "exit_code",
        "detail",
        "time_used_ms",
        "memory_used_kb",
        "resource_limit_type",
        "unauthorized_access_type",
        "runtime_error_type",
        "artifacts",
        "result",
    )
)
STATUSES: Final = frozenset(
    (
        "success",
        "program_error",
        "resource_limit_exceeded",
        "unauthorized_access",
        "runtime_error",
        "program_runner_error",
    )
)

COMMENT: Final = {"python": "#", "nodejs": "//"}


def strict_json(body: bytes) -> Any:
    """Decode RFC 8259 JSON in UTF-8 as a strict client does: no NaN, no lone surrogates. Raises `ValueError`."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    value = json.loads(body.decode("utf-8"), parse_constant=refuse)
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of `POST /run`, already checked against the rules that hold for all of them."""

    status: str
    stdout: str
    stderr: str
    exit_code: int
    detail: str | None
    time_used_ms: float | None
    memory_used_kb: float | None
    resource_limit_type: str | None
    unauthorized_access_type: str | None
    runtime_error_type: str | None
    artifacts: list[dict[str, Any]]
    result: dict[str, Any] | None
    seconds: float
    """As the caller saw it."""
    size: int
    """Bytes of the body."""

    @property
    def value(self) -> Any:
        """What `main` returned; fails the test when it returned nothing."""
        assert (self.status, self.stderr if self.status != "success" else "") == ("success", "")
        assert self.result is not None
        return self.result["value"]

    @property
    def names(self) -> list[str]:
        return [artifact["name"] for artifact in self.artifacts]

    def content(self, name: str) -> bytes:
        return next(base64.b64decode(item["content_b64"]) for item in self.artifacts if item["name"] == name)

    @property
    def verdict(self) -> tuple[str, str | None]:
        """Status, and the limit or kind of failure that goes with it."""
        return self.status, self.resource_limit_type or self.runtime_error_type


def check_compat(body: bytes) -> dict[str, Any]:
    """What binds every 200 of `/run` (R1, R4, R5, R8); returns the decoded body."""
    fields: dict[str, Any] = strict_json(body)
    assert set(fields) == COMPAT_FIELDS
    assert fields["status"] in STATUSES
    assert isinstance(fields["exit_code"], int)
    assert isinstance(fields["stdout"], str) and isinstance(fields["stderr"], str)
    for name in ("time_used_ms", "memory_used_kb"):
        assert fields[name] is None or (math.isfinite(fields[name]) and fields[name] >= 0)
    assert fields["resource_limit_type"] in (None, "time", "memory", "output")
    assert fields["unauthorized_access_type"] in (None, "disallowed_syscall", "file_access")
    assert fields["runtime_error_type"] in (None, "signalled", "nonzero_exit")
    result = fields["result"]
    assert result is None or (set(result) == {"present", "value", "type"} and result["type"] == "json")
    assert isinstance(fields["artifacts"], list)
    for artifact in fields["artifacts"]:
        assert set(artifact) == {"name", "mime_type", "size", "content_b64"}
        assert len(base64.b64decode(artifact["content_b64"], validate=True)) == artifact["size"]
    if fields["status"] == "success":
        assert fields["exit_code"] == 0
    else:
        assert fields["exit_code"] != 0
        assert fields["stdout"] == "" and fields["artifacts"] == [] and result is None
        assert fields["stderr"].strip()
    return fields


class Reply(msgspec.Struct, frozen=True):
    """A raw HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


def py(code: str) -> str:
    """A program as it stands in a test."""
    return textwrap.dedent(code)


class Service:
    """`sandbox-svc serve` in a process of its own."""

    def __init__(self, folder: pathlib.Path, runtime: str, **settings: str) -> None:
        self.runtime = runtime
        self.settings = {
            "SANDBOX_RUNTIME": runtime,
            "SANDBOX_POOL_SIZE": "1",
            "SANDBOX_TIMEOUT": f"{TIME_LIMIT}s",
            "SANDBOX_ANALYSIS": "off",
            "SANDBOX_RATE_LIMIT": "",
            "SANDBOX_QUEUE_TIMEOUT": "20s",
            "SANDBOX_LOG_LEVEL": "debug",
        } | settings
        self.pool_size = int(self.settings["SANDBOX_POOL_SIZE"])
        self.languages = self.settings.get("SANDBOX_LANGUAGES", "python,nodejs").split(",")
        self._log = folder / "service.log"
        self._log_seen = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    # Life

    def start(self) -> None:
        """Start it and wait until every language has a ready container."""
        deadline = time.monotonic() + START_SECONDS
        self.start_listening()
        while self.get("/readyz").status != 200 or len(self.containers()) < self.pool_size * len(self.languages):
            self._still_starting(deadline)

    def start_listening(self) -> None:
        """Start it and wait until it takes requests, ready or not. Raises `RuntimeError` when it ends instead."""
        environ = {name: text for name, text in os.environ.items() if not name.startswith("SANDBOX_")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sandbox_svc", "serve", "--host", "127.0.0.1", "--port", "0"],
                env=environ | self.settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while not (found := re.search(rb"listening on http://127\.0\.0\.1:(\d+)", self._log.read_bytes())):
            self._still_starting(deadline)
        self.port = int(found[1])

    def _still_starting(self, deadline: float) -> None:
        assert self._process is not None
        if self._process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the service did not start:\n" + self._log.read_text(errors="replace")[-4000:])
        time.sleep(0.05)

    def stop(self) -> None:
        """End it as an orchestrator does; containers that outlive it are an error."""
        if self._process is None:
            return
        left: list[str] = []
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()
            left = self.containers()
            if left:
                docker("rm", "--force", *left, check=False)
        assert left == []

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def memory_kb(self) -> int:
        """Resident memory of the service itself."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    # Its containers

    def containers(self, language: str | None = None) -> list[str]:
        """Ids of this service's containers that exist, in whatever state."""
        filters = json.dumps({"label": [HOST_LABEL, LANGUAGE_LABEL]})
        found = engine_json("/containers/json", all="1", filters=filters)
        return sorted(
            one["Id"]
            for one in found
            if f" {self.pid} " in one["Labels"][HOST_LABEL] and language in (None, one["Labels"][LANGUAGE_LABEL])
        )

    def top(self, container: str) -> list[tuple[int, int, str]]:
        """Pid, uid and command line of every process of a container, seen from the host (runc only)."""
        listed = engine_json(f"/containers/{container}/top", ps_args="-eo pid,uid,args")
        rows = [] if listed is None else listed["Processes"]
        return [(int(row[0]), int(row[1]), " ".join(row[2:])) for row in rows if len(row) >= 3]

    # Requests

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float = 40,
    ) -> Reply:
        """One request on a connection of its own. Raises `OSError` or `http.client.HTTPException`."""
        started = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            data = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            assert response.status < 500 or response.status == 503, (response.status, data[:500])
            return Reply(response.status, found, data, time.monotonic() - started)

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        """POST a JSON value, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, data, {"Content-Type": "application/json"} | headers)

    def run(
        self, code: str | bytes, arguments: Mapping[str, Any] | None = None, language: str = "python", **extra: Any
    ) -> Answer:
        """`POST /run`; the answer obeys the contract or the test fails here."""
        source = code if isinstance(code, bytes) else marked(code, language)
        body = {
            "code_b64": base64.b64encode(source).decode(),
            "language": language,
            "arguments": dict(arguments or {}),
            **extra,
        }
        reply = self.post("/run", body)
        assert reply.status == 200, reply.body[:500]
        return Answer(**check_compat(reply.body), seconds=reply.seconds, size=len(reply.body))

    def js(self, code: str, arguments: Mapping[str, Any] | None = None) -> Answer:
        return self.run(code, arguments, "nodejs")

    def v1(self, code: str | None = None, *, status: int = 200, **fields: Any) -> dict[str, Any]:
        """`POST /v1/run`."""
        if code is not None:
            fields["code"] = marked(code, fields.get("language", "python")).decode()
        reply = self.post("/v1/run", fields)
        assert reply.status == status, reply.body[:500]
        answer: dict[str, Any] = strict_json(reply.body)
        return answer

    def socket(self, timeout: float = 20) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    # What must hold at any time

    def new_log(self) -> bytes:
        """What was logged since the last look."""
        with self._log.open("rb") as file:
            file.seek(self._log_seen)
            text = file.read()
        self._log_seen += len(text)
        return text

    def check_invariants(self) -> None:
        """After every attack: alive, serving, as many containers as before, no process of a finished run, a clean log."""
        # One that is slow says how busy the machine is.
        healths = [self.get("/healthz") for _ in range(3)]
        assert {(health.status, health.body) for health in healths} == {(200, b'{"status":"ok"}')}
        assert min(health.seconds for health in healths) < 1
        for language in self.languages:
            within = 3 if self.runtime == "runc" else 6
            started = time.monotonic()
            answer = self.run(PROBES[language], language=language)
            assert time.monotonic() - started < within
            uids = answer.value
            # Supervisor and templates are root; nobody else is there but one parked process for each template.
            others = [uid for uid in uids if uid]
            assert len(others) <= TEMPLATES[language], f"processes of {len(others)} uids in {language}"
            assert len(set(others)) == len(others)
        wanted = self.pool_size * len(self.languages)
        deadline = time.monotonic() + 15
        while len(found := self.containers()) != wanted:
            assert time.monotonic() < deadline, f"{len(found)} containers instead of {wanted}"
            time.sleep(0.1)
        if self.runtime == "runc":
            self.wait_until_parked()
        log = self.new_log()
        assert CANARY.encode() not in log, "the log holds what callers sent or programs wrote"
        # At the start of a line: of the service itself, not what a dying supervisor was quoted with.
        assert not re.search(rb"^Traceback", log, re.MULTILINE), log[-4000:].decode(errors="replace")

    def wait_until_parked(self) -> None:
        """From outside: in every container, as many user processes as templates, and none of them a program's."""
        for language in self.languages:
            for container in self.containers(language):
                deadline = time.monotonic() + 15
                while len(users := [row for row in self.top(container) if row[1]]) > TEMPLATES[language]:
                    assert time.monotonic() < deadline, f"processes left in {language}: {users}"
                    time.sleep(0.05)


CANARY_PROCESS: Final = """
import json, os, select, socket, time
server = socket.create_server(("127.0.0.1", 0))
child = os.fork()
while child == 0:
    peer, _ = server.accept()
    peer.recv(4096)
    peer.sendall(bytes(200))
    peer.close()
seconds = []
print("ready", flush=True)
while not select.select([0], [], [], 0.005)[0]:
    began = time.monotonic()
    with socket.create_connection(server.getsockname(), 60) as sock:
        sock.sendall(bytes(200))
        sock.recv(4096)
    seconds.append(time.monotonic() - began)
os.kill(child, 9)
print(json.dumps(seconds))
"""


@contextlib.contextmanager
def canary() -> Iterator[list[float]]:
    """What this machine, as busy as it is, does to anybody: round trips to a server that does nothing, all the while.

    Seconds of each are in the list when the block is over. Bounds on our own answers are relative to these: an absolute
    one says how busy the machine was.
    """
    seconds: list[float] = []
    with subprocess.Popen(
        [sys.executable, "-I", "-c", CANARY_PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield seconds
        finally:
            process.stdin.close()
            seconds += json.loads(process.stdout.read())


def share(values: list[float], percent: int) -> float:
    """The value that so many percent of all do not exceed."""
    return sorted(values)[min(len(values) * percent // 100, len(values) - 1)]


PROBES: Final = {
    "python": py("""
        import os
        def main():
            uids = []
            for name in os.listdir('/proc'):
                if name.isdigit():
                    try:
                        uids.append(os.stat('/proc/' + name).st_uid if int(name) != os.getpid() else os.getuid())
                    except FileNotFoundError:
                        pass
            return uids
        """),
    "nodejs": py("""
        const fs = require('fs');
        function main() {
          const uids = [];
          for (const name of fs.readdirSync('/proc')) {
            if (!/^\\d+$/.test(name)) continue;
            try { uids.push(fs.statSync('/proc/' + name).uid); } catch { /* it ended */ }
          }
          return uids;
        }
        """),
}
"""Return the owner of every process in the container."""


def marked(code: str, language: str) -> bytes:
    """The program with the canary in it, so that a log that holds code gives itself away."""
    return f"{code}\n{COMMENT[language]} {CANARY}\n".encode()


def until(condition: Callable[[], object], seconds: float = 10, pause: float = 0.05) -> None:
    """Look again and again until it is so; only for what nobody tells."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(pause)


@contextlib.contextmanager
def running(folder: pathlib.Path, runtime: str, **settings: str) -> Iterator[Service]:
    """A service that is ready; gone afterwards, with all its containers."""
    service = Service(folder, runtime, **settings)
    try:
        service.start()
        yield service
    finally:
        service.stop()


@contextlib.contextmanager
def same_container(service: Service, language: str = "python") -> Iterator[None]:
    """The container survives what happens inside: the attack costs nobody a start."""
    before = service.containers(language)
    yield
    assert service.containers(language) == before

"""A real service process, callers that keep count of every request, and what the service says of itself."""

from __future__ import annotations

import base64
import collections
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.integration.conftest import docker

ROOT = Path(__file__).parents[2]

HONEST = frozenset({"sandbox_lost", "engine_unavailable", "pool_exhausted", "draining"})
"""Codes that say: it was our fault and nothing was answered wrongly."""
HONEST_EXITS = frozenset({-3, -10})
"""The same in the words of `/run`."""

PROGRAMS = {
    "python": "import time\ndef main(n, pause):\n    time.sleep(pause)\n    return {'twice': 2 * n}\n",
    "nodejs": "async function main({n, pause}) {\n"
    "  await new Promise((go) => setTimeout(go, pause * 1000));\n  return {twice: 2 * n};\n}\n",
}


class Tally(msgspec.Struct):
    """What became of all requests. `lost` are those that were taken and never answered."""

    sent: int = 0
    right: int = 0
    wrong: list[Any] = msgspec.field(default_factory=list)
    honest: collections.Counter[str] = msgspec.field(default_factory=collections.Counter)
    refused: int = 0
    """Connections that were not taken: nobody listened any more, or yet."""
    lost: list[str] = msgspec.field(default_factory=list)
    slowest: float = 0.0

    def __str__(self) -> str:
        honest = " ".join(f"{code}={count}" for code, count in sorted(self.honest.items())) or "0"
        return (
            f"sent {self.sent}, right {self.right}, honest errors {honest}, refused {self.refused}, "
            f"wrong {len(self.wrong)}, lost {len(self.lost)}, slowest {self.slowest:.2f} s"
        )

    def check(self) -> None:
        """Nothing was answered wrongly, nothing was lost, and the sums agree."""
        assert not self.wrong, self.wrong[:3]
        assert not self.lost, self.lost[:3]
        assert self.sent == self.right + self.honest.total() + self.refused, str(self)


class Load:
    """Callers in threads of their own, each sending one request after the other until `stop`."""

    def __init__(
        self,
        port: Callable[[], int],
        *,
        callers: int = 4,
        languages: tuple[str, ...] = ("python",),
        pauses: tuple[float, ...] = (0.0, 0.0, 0.05),
        rest: float = 0.02,
    ) -> None:
        self.tally = Tally()
        self._port = port
        self._languages = languages
        self._pauses = pauses
        self._rest = rest
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._call, name=f"caller {n}") for n in range(callers)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float = 60) -> Tally:
        self._is_over.set()
        for thread in self._threads:
            thread.join(seconds)
            if thread.is_alive():
                self.tally.lost.append("a caller was never answered")
        return self.tally

    def _call(self) -> None:
        while not self._is_over.is_set():
            number = next(self._numbers)
            began = time.monotonic()
            kind, detail = self._one(number)
            took = time.monotonic() - began
            with self._lock:
                tally = self.tally
                tally.sent += 1
                tally.slowest = max(tally.slowest, took)
                if kind == "right":
                    tally.right += 1
                elif kind == "refused":
                    tally.refused += 1
                elif kind == "honest":
                    tally.honest[detail] += 1
                elif kind == "lost":
                    tally.lost.append(detail)
                else:
                    tally.wrong.append(detail)
            self._is_over.wait(self._rest if kind in ("right", "honest") else 0.1)

    def _one(self, number: int) -> tuple[str, Any]:
        language = self._languages[number % len(self._languages)]
        source = PROGRAMS[language]
        arguments = {"n": number, "pause": self._pauses[number % len(self._pauses)]}
        is_compat = number % 2 == 0
        body: dict[str, Any] = {"language": language, "arguments": arguments}
        body |= {"code_b64": base64.b64encode(source.encode()).decode()} if is_compat else {"code": source}
        connection = http.client.HTTPConnection("127.0.0.1", self._port(), timeout=50)
        try:
            try:
                connection.connect()
            except OSError:
                return "refused", None
            try:
                connection.request("POST", "/run" if is_compat else "/v1/run", json.dumps(body))
                response = connection.getresponse()
                answer = json.loads(response.read())
            except (OSError, http.client.HTTPException) as error:
                return "lost", f"{type(error).__name__} {error}"
            return self._judge(response.status, answer, 2 * number, is_compat)
        finally:
            connection.close()

    @staticmethod
    def _judge(status: int, answer: Any, twice: int, is_compat: bool) -> tuple[str, Any]:
        if status != 200:
            is_honest = answer.get("code") in HONEST and status in (500, 503)
            return ("honest", answer["code"]) if is_honest else ("wrong", (status, answer))
        if (answer.get("result") or {}).get("value") == {"twice": twice}:
            return "right", None
        if is_compat and answer["exit_code"] in HONEST_EXITS:
            return "honest", answer["detail"]
        return "wrong", (status, answer)


class ServiceProcess:
    """`sandbox-svc serve` on a free port, its log in a file."""

    def __init__(self, folder: Path, docker_host: str | None = None, **settings: str) -> None:
        self._folder = folder
        self._starts = itertools.count()
        self.docker_host = docker_host
        self._environ = {n: v for n, v in os.environ.items() if not n.startswith(("SANDBOX_", "OTEL_"))}
        self._environ |= {
            "PYTHONPATH": str(ROOT / "src"),
            "SANDBOX_POOL_SIZE": "3",
            "SANDBOX_LANGUAGES": "python",
            "SANDBOX_RATE_LIMIT": "",
            "SANDBOX_RUNTIME": "runc",
            "SANDBOX_QUEUE_TIMEOUT": "20s",
            "SANDBOX_DRAIN_TIMEOUT": "10s",
            "SANDBOX_LOG_FORMAT": "json",
            **settings,
        }
        if docker_host is not None:
            self._environ["DOCKER_HOST"] = docker_host
        self.process: subprocess.Popen[bytes] | None = None
        self._log = folder / "service.log"
        self.port = 0

    def start(self, *, is_ready: bool = True) -> None:
        self._log = self._folder / f"service-{next(self._starts)}.log"
        self.port = 0
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sandbox_svc", "serve", "--port", "0"],
                env=self._environ,
                stdout=log,
                stderr=log,
            )
        until(self._is_listening, 30, self.log)
        if is_ready:
            self.await_ready()

    def _is_listening(self) -> bool:
        match = re.search(r'listening on http://[^ ]*:(\d+)"', self.log())
        if match is not None:
            self.port = int(match[1])
        elif self.process is not None:
            assert self.process.poll() is None, self.log()
        return match is not None

    def await_ready(self, seconds: float = 60) -> float:
        """Until every slot has a container that serves; return the seconds it took."""
        return until(self.is_full, seconds, lambda: f"{self.readiness()} {self.log()[-3000:]}")

    def is_full(self) -> bool:
        status, answer = self.readiness()
        details = [check.get("detail", "") for name, check in answer["checks"].items() if name.startswith("language")]
        counts = [re.match(r"(\d+) of (\d+)", detail) for detail in details]
        return status == 200 and all(match is not None and match[1] == match[2] for match in counts)

    def readiness(self) -> tuple[int, Any]:
        return self.ask("GET", "/readyz")

    def ready_containers(self, language: str = "python") -> int:
        match = re.match(r"\d+", self.readiness()[1]["checks"][f"language {language}"]["detail"])
        return int(match[0]) if match is not None else 0

    def ask(self, method: str, path: str, body: Any = None, timeout: float = 40) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def run(self, code: str, language: str = "python", **arguments: Any) -> tuple[int, Any]:
        return self.ask("POST", "/v1/run", {"language": language, "code": code, "arguments": arguments})

    def metric(self, name: str, **labels: str) -> float:
        """Sum of all samples of that name that have these labels."""
        return sum(
            sample.value
            for sample in self._samples()
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def negative_metrics(self) -> list[str]:
        return [sample.name for sample in self._samples() if sample.value < 0]

    def _samples(self) -> list[Sample]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def connections_to(self, port: int) -> int:
        """How many of its TCP connections lead to that port of this machine."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        sockets = {f"socket:[{row[9]}]" for row in rows if int(row[2].rpartition(":")[2], 16) == port}
        return sum(link in sockets for link in self.descriptors())

    def descriptors(self) -> Iterator[str]:
        """What its open descriptors lead to."""
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                yield str(descriptor.readlink())

    def containers(self, *pids: int) -> list[str]:
        """Ids of the containers that this process, or those named, made."""
        wanted = {str(pid) for pid in pids or (self.pid,)}
        lines = self.docker(
            "ps",
            "-a",
            "--no-trunc",
            "--format",
            '{{.ID}} {{.Label "sandbox_svc.host"}}',
            "--filter",
            "label=sandbox_svc.host",
        ).splitlines()
        return [words[0] for line in lines if len(words := line.split()) == 5 and words[3] in wanted]

    def docker(self, *arguments: str, check: bool = True) -> str:
        prefix = [] if self.docker_host is None else ["--host", self.docker_host]
        return docker(*prefix, *arguments, check=check).stdout

    def end(self) -> None:
        """Whatever it is at: end it, first kindly."""
        process = self.process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(70)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def until(condition: Callable[[], object], seconds: float, why: Callable[[], object] = lambda: "") -> float:
    """Poll what another process brings about; return the seconds it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds} s: {why()}")
        time.sleep(0.05)
    return time.monotonic() - began


@contextmanager
def under_load(service: ServiceProcess, **options: Any) -> Iterator[Load]:
    """Callers at work around the body; the tally is complete and checked afterwards."""
    load = Load(lambda: service.port, **options)
    load.start()
    try:
        until(lambda: load.tally.sent > 0, 30)
        yield load
    finally:
        load.stop()
    load.tally.check()

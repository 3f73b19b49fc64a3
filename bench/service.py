"""The service under measurement: started as an operator starts it, with the settings that a measurement names."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from bench.accounting import Accounts
from bench.load import LoadGenerator

READY_SECONDS = 120.0

# Everything that costs something is on: analysis, limits, accounting, the line per run. The rate is only never reached.
ALWAYS = {
    "SANDBOX_ANALYSIS": "standard",
    "SANDBOX_RATE_LIMIT": "100000000/second",
    "SANDBOX_REUSE": "tenant",
    "SANDBOX_RUNTIME": "runc",
    "SANDBOX_POOL_SIZE": "4",
    "SANDBOX_QUEUE_TIMEOUT": "60s",
    "SANDBOX_LOG_LEVEL": "info",
}


class Running:
    """A service process with a load generator; leaving it removes its containers."""

    def __init__(self, **settings: str) -> None:
        self.settings = ALWAYS | settings
        self.port = _free_port()
        self._log: IO[bytes] = tempfile.NamedTemporaryFile(prefix="sandbox-svc-bench-", suffix=".log")  # noqa: SIM115
        own = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOX_")}
        self.process = subprocess.Popen(
            [Path(sys.executable).parent / "sandbox-svc", "serve", "--host", "127.0.0.1", "--port", str(self.port)],
            env=own | self.settings,
            stderr=self._log,
        )
        self.accounts = Accounts(self.process.pid)
        self._load: LoadGenerator | None = None

    def __enter__(self) -> Self:
        try:
            self.await_ready()
            self._load = LoadGenerator("127.0.0.1", self.port)
            self.accounts.watch(self.containers())
        except BaseException:
            self._end()
            raise
        return self

    @property
    def load(self) -> LoadGenerator:
        assert self._load is not None
        return self._load

    @property
    def pool_size(self) -> int:
        return int(self.settings["SANDBOX_POOL_SIZE"])

    def await_ready(self, *, settle_seconds: float = 3.0) -> None:
        """Wait until every slot has a container, and then for the templates that load in idle ones."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the service ended: {self.log()[-2000:]}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                checks = self.get("/readyz")["checks"]
                details = [check["detail"] for name, check in checks.items() if name.startswith("language ")]
                if details and all(detail.startswith(f"{self.pool_size} of") for detail in details):
                    time.sleep(settle_seconds)
                    return
            time.sleep(0.02)
        raise TimeoutError(f"the service is not ready: {self.log()[-2000:]}")

    def get(self, path: str) -> dict[str, dict[str, dict[str, str]]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer: dict[str, dict[str, dict[str, str]]] = json.loads(connection.getresponse().read())
            return answer

    def containers(self, language: str | None = None) -> list[int]:
        """Pids on the host of the first processes of its containers."""
        label = self._host_label()
        if not label:
            return []
        filters = [f"--filter=label=sandbox_svc.host={label}"]
        if language:
            filters.append(f"--filter=label=sandbox_svc.language={language}")
        ids = _docker("ps", "-q", "--no-trunc", *filters).split()
        return [int(pid) for pid in _docker("inspect", "--format", "{{.State.Pid}}", *ids).split()] if ids else []

    def _host_label(self) -> str:
        """The label by which its containers are told from those of other services on the engine."""
        labels = _docker("ps", "--format", '{{.Label "sandbox_svc.host"}}').splitlines()
        return next((label for label in labels if label.split()[2:3] == [str(self.process.pid)]), "")

    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._load is not None:
            self._load.close()
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self._log.close()


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

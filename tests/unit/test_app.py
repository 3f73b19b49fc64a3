"""The life of the process: it starts, drains in order, ends at once when told twice, and does not outlive its helpers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sandbox_svc import __main__ as command
from sandbox_svc import app
from sandbox_svc.errors import SettingsError
from sandbox_svc.settings import default_settings
from tests.serve_fake import open_fake_runtime
from tests.unit.test_api_compat import wait_until

ROOT = Path(__file__).parents[2]


class Process:
    """A service in a process of its own."""

    def __init__(self, popen: subprocess.Popen[bytes], port: int) -> None:
        self.popen = popen
        self.port = port

    def request(self, method: str, path: str, body: str | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, body)
        answer = connection.getresponse()
        decoded = json.loads(answer.read())
        connection.close()
        return answer.status, decoded

    def run(self, source: str) -> Any:
        return self.request("POST", "/run", json.dumps({"code_b64": base64.b64encode(source.encode()).decode()}))[1]

    def run_aside(self, source: str) -> tuple[threading.Thread, list[Any]]:
        """Run in a thread; the list gets the answer."""
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(self.run(source)))
        thread.start()
        return thread, answers

    def last_words(self) -> tuple[str, str]:
        """Wait for its end; return the rest of stdout, and stderr."""
        output, errors = self.popen.communicate(timeout=10)
        return output.decode(), errors.decode()

    def is_ready(self) -> bool:
        return self.request("GET", "/readyz")[0] == 200


@contextmanager
def process(*arguments: str) -> Iterator[Process]:
    popen = subprocess.Popen(
        [sys.executable, "-m", "tests.serve_fake", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "src"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Else the first line takes along what follows it, which `communicate` then does not see.
        bufsize=0,
    )
    assert popen.stdout is not None
    try:
        line = popen.stdout.readline()
        if not line and popen.wait(10):
            raise AssertionError(popen.communicate()[1].decode())
        yield Process(popen, int(line))
    finally:
        popen.kill()
        popen.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_starts_answers_and_ends_with_0(number):
    """Also when the terminal that it was started from is closed: containers must not be left for the next start."""
    with process() as service:
        wait_until(service.is_ready)
        assert service.run("x")["status"] == "success"
        checks = service.request("GET", "/readyz")[1]["checks"]
        assert {name: check["status"] for name, check in checks.items()} == {
            "accepting": "ok",
            "engine": "ok",
            "language python": "ok",
        }
        assert service.request("GET", "/v1/languages")[1]["languages"][0]["name"] == "python"

        service.popen.send_signal(number)
        output, _ = service.last_words()

        assert service.popen.returncode == 0
        assert "no containers left" in output


def test_a_closed_terminal_is_ignored_under_nohup():
    was = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the new process inherits, as from nohup
    try:
        with process() as service:
            wait_until(service.is_ready)
            service.popen.send_signal(signal.SIGHUP)
            time.sleep(0.3)
            assert service.is_ready()
    finally:
        signal.signal(signal.SIGHUP, was)


def test_programs_are_looked_at_before_they_are_run():
    """`SANDBOX_ANALYSIS` is `standard` unless said otherwise."""
    with process() as service:
        wait_until(service.is_ready)

        answer = service.run('import os\n\ndef main():\n    os.system("id")\n')

        assert (answer["status"], answer["exit_code"]) == ("program_runner_error", -999)
        assert answer["stderr"].startswith("Line 4: ")


def test_a_signal_lets_runs_finish_and_takes_no_new_ones():
    with process() as service:
        wait_until(service.is_ready)
        thread, answers = service.run_aside("slow")
        time.sleep(0.3)

        service.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: not service.is_ready())

        assert service.run("x")["detail"] == "draining"
        assert service.request("GET", "/healthz") == (200, {"status": "ok"})
        thread.join(10)
        assert answers[0]["result"]["value"] == "slow"
        assert service.popen.wait(10) == 0


@pytest.mark.parametrize(
    ("keeps_alive", "pause"),
    [(False, 0), (True, 0), (False, 0.25)],
    ids=["a connection per request", "connections are kept", "callers that take their time to ask"],
)
def test_nobody_is_cut_off_while_it_ends(keeps_alive, pause):
    """Callers that never rest, some that pause between connecting and asking as threads do on a busy machine: each request is answered, or its connection is refused before anything was sent."""
    told: Counter[str] = Counter()
    lost: list[str] = []
    for _ in range(3):
        with process() as service:
            wait_until(service.is_ready)
            is_over = threading.Event()
            callers = [
                threading.Thread(target=_ask_on, args=(service.port, keeps_alive, pause, is_over, told, lost))
                for _ in range(12)
            ]
            for caller in callers:
                caller.start()
            time.sleep(0.3)
            service.popen.send_signal(signal.SIGTERM)
            assert service.popen.wait(10) == 0
            is_over.set()
            for caller in callers:
                caller.join(10)

    assert lost == []
    assert told["success"] > 0
    assert told["draining"] > 0
    assert set(told) == {"success", "draining"}


def _ask_on(
    port: int, keeps_alive: bool, pause: float, is_over: threading.Event, told: Counter[str], lost: list[str]
) -> None:
    connection: http.client.HTTPConnection | None = None
    while not is_over.is_set():
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.connect()
            except ConnectionRefusedError:
                return
            time.sleep(random.uniform(0, pause))
        try:
            connection.request("POST", "/v1/run", json.dumps({"code": "x"}))
            answer = connection.getresponse()
            decoded = json.loads(answer.read())
        except (OSError, http.client.HTTPException) as error:
            lost.append(f"{type(error).__name__} {error}")
            connection.close()
            connection = None
            continue
        told[decoded["outcome"] if answer.status == 200 else decoded["code"]] += 1
        if answer.will_close or not keeps_alive:
            connection.close()
            connection = None


def test_a_run_that_does_not_finish_in_time_is_answered():
    with process() as service:
        wait_until(service.is_ready)
        thread, answers = service.run_aside("hang")
        time.sleep(0.3)
        started = time.monotonic()

        service.popen.send_signal(signal.SIGTERM)
        thread.join(10)

        assert 2.5 < time.monotonic() - started < 6
        assert (answers[0]["status"], answers[0]["exit_code"]) == ("program_runner_error", -3)
        assert service.popen.wait(10) == 0


def test_a_second_signal_ends_it_now():
    with process() as service:
        wait_until(service.is_ready)
        thread, answers = service.run_aside("hang")
        time.sleep(0.3)
        started = time.monotonic()
        service.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: not service.is_ready())

        service.popen.send_signal(signal.SIGINT)
        output, _ = service.last_words()

        assert time.monotonic() - started < 2
        assert service.popen.returncode == 0
        assert "no containers left" in output
        thread.join(10)
        assert answers[0]["exit_code"] == -3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a namespace of processes")
def test_a_third_signal_kills_also_as_process_1():
    """Of a container, where the kernel leaves out what nobody handles."""
    script = (
        "import asyncio, sys, uvloop\n"
        "from sandbox_svc.app import Life\n"
        "async def main():\n"
        "    Life().listen_for_signals()\n"
        "    print('listening', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "uvloop.run(main())"
    )
    popen = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "src"},
        stdout=subprocess.PIPE,
    )
    try:
        assert popen.stdout is not None
        assert popen.stdout.readline()
        children = Path(f"/proc/{popen.pid}/task/{popen.pid}/children")
        pid = int(children.read_text())
        for _ in range(2):
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.1)
            assert popen.poll() is None
        for _ in range(100):  # two that come together are one
            if popen.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            time.sleep(0.1)
        assert popen.returncode == 128 + signal.SIGTERM
    finally:
        popen.kill()
        popen.communicate()


def test_a_helper_that_dies_takes_the_process_along():
    """A service that no longer refills its pool must not go on answering."""
    with process("sweep") as service:
        output, errors = service.last_words()

        assert service.popen.wait(10) == 1
        assert "keeper died" in errors
        assert "no containers left" in output


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch):
    """The command sets up the logging of its process, which here is pytest's."""
    monkeypatch.setattr(command, "_log_to_stderr", lambda *_: None)


@pytest.mark.parametrize(
    ("environ", "arguments", "words"),
    [
        ({"SANDBOX_TIMEOUT": "0s"}, ["serve"], "SANDBOX_TIMEOUT='0s' is not between"),
        ({"SANDBOX_POOLSIZE": "2"}, ["serve"], "did you mean SANDBOX_POOL_SIZE?"),
        ({}, ["serve", "--port", "http"], "SANDBOX_PORT='http' is not a whole number"),
    ],
)
def test_wrong_settings_are_refused_before_anything_starts(monkeypatch, capsys, environ, arguments, words):
    monkeypatch.setattr(os, "environ", environ)

    assert command.main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environ", "code", "words"),
    [
        ({"SANDBOX_TIMEOUT": "0s"}, 2, "SANDBOX_TIMEOUT='0s' is not between"),
        ({"DOCKER_HOST": "unix:///nonexistent/docker.sock"}, 1, "engine cannot be reached"),
    ],
)
def test_why_it_does_not_start_is_a_line_of_the_log_that_was_asked_for(
    monkeypatch, capsys, caplog, environ, code, words
):
    """A log of JSON objects ended in a line that was none, and that was the one that said why."""
    monkeypatch.setattr(os, "environ", {"SANDBOX_LOG_FORMAT": " JSON"} | environ)

    assert command.main(["serve", "--port", "0"]) == code
    assert words in [record.getMessage() for record in caplog.records if record.levelname == "ERROR"][-1]
    assert capsys.readouterr().err == ""


def test_an_engine_that_is_not_there_is_named(monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", {"DOCKER_HOST": "unix:///nonexistent/docker.sock"})

    assert command.main(["serve", "--port", "0"]) == 1
    assert "sandbox-svc: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "is_taken", "words"),
    [
        ("127.0.0.1", True, "^SANDBOX_PORT: the service cannot listen on 127.0.0.1 port"),
        ("192.0.2.1", False, "^SANDBOX_HOST: the service cannot listen on 192.0.2.1"),
        ("name.invalid", False, "^SANDBOX_HOST: the service cannot listen on name.invalid"),
    ],
)
def test_an_address_that_cannot_be_listened_on_names_the_setting(host, is_taken, words):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1]) if is_taken else "0"
        settings = default_settings(host=host, port=port, languages="python")

        with pytest.raises(SettingsError, match=words):
            asyncio.run(app.serve(settings, open_runtime=open_fake_runtime))


def test_doctor_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", {"DOCKER_HOST": "unix:///nonexistent/docker.sock"})

    assert command.main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "ok       settings" in output
    assert "missing  engine" in output


def test_doctor_names_a_wrong_setting(monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", {"SANDBOX_PORT": "0x"})

    assert command.main(["doctor"]) == 1
    assert "missing  settings: SANDBOX_PORT" in capsys.readouterr().out


def test_a_signal_that_comes_before_anything_was_imported_ends_it():
    """Process 1 of a container has no default action: without a handler the signal would be dropped."""
    script = """
import os, signal, sys
import sandbox_svc.__main__ as command
assert not {"asyncio", "msgspec", "uvloop"} & set(sys.modules), "the handler comes too late"
command._parser = lambda: os.kill(os.getpid(), signal.SIGTERM)
command.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT / "src", capture_output=True, check=False, timeout=30
    )

    assert (done.returncode, done.stderr) == (command.EXIT_TERMINATED, b"")

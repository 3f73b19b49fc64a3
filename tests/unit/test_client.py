"""The client and `sandbox-svc run` against the HTTP side on a real socket."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandbox_svc import client as clients
from sandbox_svc.__main__ import main
from sandbox_svc.client import Answer, AsyncClient, Client, ClientError, NoAnswer, Refused
from sandbox_svc.http.event_stream import EventStream
from sandbox_svc.http.wire import LanguageInfo, RunAnswer
from sandbox_svc.runtime import Artifact, InputFile, Outcome
from sandbox_svc.runtime.protocol import ProgramError, TracebackFrame
from tests.http_stack import Stack, language, running_stack
from tests.unit.test_api_compat import Limited, wait_until
from tests.unit.test_event_stream import busy_stack


@pytest.fixture(scope="module")
def shared_stack() -> Iterator[Stack]:
    with running_stack() as stack:
        yield stack


@pytest.fixture
def stack(shared_stack: Stack) -> Stack:
    shared_stack.outcome = Outcome(exit_code=0, result=b"null")
    shared_stack.behaviour = None
    shared_stack.killed = 0
    shared_stack.programs.clear()
    return shared_stack


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{stack.port}") as client:
        yield client


def test_the_client_knows_every_field():
    ours = {field.encode_name for field in msgspec.structs.fields(Answer)}

    assert ours == {field.encode_name for field in msgspec.structs.fields(RunAnswer)}
    assert {field.encode_name for field in msgspec.structs.fields(clients.Language)} <= {
        field.encode_name for field in msgspec.structs.fields(LanguageInfo)
    }


def test_everything_is_sent(stack, client):
    client.run(
        b"x",
        script=True,
        stdin=b"\xff",
        args=["a"],
        env={"A": "1"},
        files={"a.txt": "text", "b.bin": b"\0"},
        limits={"wall_ms": 100},
        artifacts=["*.log"],
    )

    program = stack.programs[-1]
    assert (program.source, program.call_main, program.stdin) == (b"x", False, b"\xff")
    assert (program.args, dict(program.env), program.artifact_globs) == (("a",), {"A": "1"}, ("*.log",))
    assert program.files == (InputFile("a.txt", b"text"), InputFile("b.bin", b"\0"))
    assert program.limits.wall_ms == 100


def test_an_answer_is_typed(stack, client):
    stack.outcome = Outcome(
        exit_code=1,
        stdout=b"out",
        error=ProgramError(
            type="ValueError",
            message="no",
            line=3,
            traceback=(TracebackFrame(file="a.py", line=9, function="f", text="g()"),),
        ),
        artifacts=(Artifact("a.bin", b"\0\1"),),
    )

    answer = client.run("x", arguments={"a": [1, None]})

    assert json.loads(stack.programs[-1].arguments) == {"a": [1, None]}
    assert (answer.is_success, answer.outcome, answer.value, answer.stdout) == (False, "program_error", None, "out")
    assert answer.error == clients.ErrorDetail(
        type="ValueError",
        message="no",
        line=3,
        traceback=(clients.TracebackFrame(file="a.py", line=9, function="f", text="g()"),),
    )
    assert answer.artifacts[0].content == b"\0\1"


async def talk(_sandbox: Any, _program: Any, on_output: Any) -> Outcome:
    for piece in (b"one ", b"two \xc3", b"\xa4"):
        if on_output is not None:
            on_output("stdout", piece)
        await asyncio.sleep(0.01)
    return Outcome(exit_code=0, result=b'"done"', artifacts=(Artifact("large.bin", b"x" * 3_000_000),))


def test_output_is_streamed(stack, client):
    stack.behaviour = talk
    seen: list[str] = []

    answer = client.run("x", on_output=lambda stream, text: seen.append(f"{stream}:{text}"))

    assert seen == ["stdout:one ", "stdout:two ", "stdout:ä"]
    assert (answer.value, answer.artifacts[0].size) == ("done", 3_000_000)


@pytest.fixture
def impatient(monkeypatch):
    """A client that gives up long before the program ends, and a service that gives signs of life."""
    monkeypatch.setattr(clients, "SILENCE_SECONDS", 0.5)
    monkeypatch.setitem(EventStream.__init__.__kwdefaults__, "keep_alive_seconds", 0.1)


async def think(*_: Any) -> Outcome:
    await asyncio.sleep(1.5)
    return Outcome(exit_code=0, result=b'"done"')


def test_a_long_run_needs_no_on_output(stack, impatient):
    """A plain answer comes after queue and run, and the client gave up after two minutes of nothing."""
    stack.behaviour = think
    with Client(f"http://127.0.0.1:{stack.port}") as client:
        assert client.run("x").value == "done"


async def test_a_long_run_needs_no_on_output_for_asyncio_either(stack, impatient):
    stack.behaviour = think
    async with AsyncClient(f"http://127.0.0.1:{stack.port}") as client:
        assert (await client.run("x")).value == "done"


async def test_the_same_for_asyncio(stack):
    stack.behaviour = talk
    seen: list[str] = []
    async with AsyncClient(f"http://127.0.0.1:{stack.port}") as client:
        answer = await client.run("x", on_output=lambda _, text: seen.append(text))
        plain = await client.run("x")

        assert "".join(seen) == "one two ä"
        assert answer.value == plain.value == "done"
        assert [one.name for one in await client.languages()] == ["python", "nodejs"]
        with pytest.raises(Refused, match="unknown_language"):
            await client.run("x", language="cobol")


async def test_cancelling_kills_the_program(stack):
    async def hang(*_):
        await asyncio.sleep(60)

    stack.behaviour = hang
    async with AsyncClient(f"http://127.0.0.1:{stack.port}") as client:
        task = asyncio.create_task(client.run("x", on_output=lambda *_: None))
        await asyncio.to_thread(wait_until, lambda: stack.running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.to_thread(wait_until, lambda: stack.killed == 1)


def test_refusals_have_codes(stack, client):
    for on_output in (None, lambda *_: None):
        with pytest.raises(Refused) as caught:
            client.run("x", language="cobol", on_output=on_output)
        assert (caught.value.code, caught.value.is_retryable) == ("unknown_language", False)


def test_a_rate_limit_says_when_to_come_again():
    with running_stack(admission=Limited()) as stack, Client(f"http://127.0.0.1:{stack.port}") as client:
        client.run("x")
        client.run("x")
        with pytest.raises(Refused) as caught:
            client.run("x")

    assert (caught.value.code, caught.value.is_retryable) == ("rate_limited", True)
    assert caught.value.retry_after_seconds == 1


def test_a_busy_pool_says_when_to_come_again_also_within_a_stream(monkeypatch):
    """The head of a stream is older than what went wrong, so the document says it."""
    monkeypatch.setitem(EventStream.__init__.__kwdefaults__, "keep_alive_seconds", 0.1)
    with (
        busy_stack(queue_seconds=0.3) as stack,
        Client(f"http://127.0.0.1:{stack.port}") as client,
        pytest.raises(Refused) as caught,
    ):
        client.run("x", on_output=lambda *_: None)

    assert (caught.value.code, caught.value.is_retryable) == ("pool_exhausted", True)
    assert caught.value.retry_after_seconds is not None and caught.value.retry_after_seconds >= 1


@pytest.mark.parametrize("key", ["s3cret\r", "s3cret\n", "schlüssel-s3cret", "s3 cret"])
def test_a_key_that_no_header_can_carry_is_told_without_it(key):
    """It was printed, and the run said to have begun perhaps."""
    with pytest.raises(ClientError, match="API key") as caught:
        Client(key=key)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:abc", "http://[::1"])
def test_what_is_no_address_is_told(url):
    with pytest.raises(ClientError, match="is no address"):
        AsyncClient(url)


async def blink(*_: Any) -> Outcome:
    await asyncio.sleep(0.05)
    return Outcome(exit_code=0)


def test_any_number_of_runs_may_wait(monkeypatch):
    """Beyond a hundred they waited for a connection, of which the service knew nothing, and were given up unsent."""
    monkeypatch.setattr(clients, "SILENCE_SECONDS", 1.0)
    monkeypatch.setitem(EventStream.__init__.__kwdefaults__, "keep_alive_seconds", 0.1)
    with running_stack(pool_size=1, queue_size=1000) as stack:
        stack.behaviour = blink

        async def run_all() -> list[Answer]:
            async with AsyncClient(f"http://127.0.0.1:{stack.port}") as client:
                return await asyncio.gather(*(client.run("x") for _ in range(130)))

        assert {answer.outcome for answer in asyncio.run(run_all())} == {"success"}


def test_nobody_there_is_no_answer(stack):
    with Client("http://127.0.0.1:1") as client, pytest.raises(NoAnswer):
        client.run("x")
    with Client(f"http://127.0.0.1:{stack.port}/elsewhere") as client, pytest.raises(Refused, match="not_found"):
        client.run("x")


# The command


@pytest.fixture
def command(stack, tmp_path, monkeypatch, capsys):
    """Run `sandbox-svc run` with a source and input; return exit code, stdout and stderr."""

    def run(*arguments: str, source: str = "x", stdin: bytes = b"") -> tuple[int, str, str]:
        file = tmp_path / "program.py"
        file.write_text(source)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setitem(os.environ, "SANDBOX_CLIENT_URL", f"http://127.0.0.1:{stack.port}")
        code = main(["run", *arguments, str(file)] if "--" not in arguments else ["run", str(file), *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_a_script_has_input_arguments_and_exit_code(stack, command):
    stack.outcome = Outcome(exit_code=3)

    code, _, _ = command("--", "-v", "two words", stdin=b"in\xff")

    assert code == 3
    program = stack.programs[-1]
    assert (program.args, program.stdin, program.call_main) == (("-v", "two words"), b"in\xff", False)


def test_main_gets_arguments_and_its_result_is_printed(stack, command):
    stack.outcome = Outcome(exit_code=0, result='{"a": "ü"}'.encode())

    code, out, _ = command("--arg", "n=3", "--arg", "s=abc", "--arg", 't="4"')

    assert (code, out) == (0, '{"a": "ü"}\n')
    assert json.loads(stack.programs[-1].arguments) == {"n": 3, "s": "abc", "t": "4"}


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome(exit_code=None, signal=11), 139),
        (Outcome(exit_code=None, signal=40), 168),
        (Outcome(exit_code=None, signal=9, limit="time"), 124),
        (Outcome(exit_code=None, signal=9, limit="memory"), 137),
        (Outcome(exit_code=None, signal=9, limit="output"), 153),
        (Outcome(exit_code=0, result=b"NaN"), 1),
        (Outcome(exit_code=0), 0),
    ],
)
def test_exit_codes(stack, command, outcome, expected):
    stack.outcome = outcome

    assert command()[0] == expected


def test_output_goes_where_the_program_sent_it(stack, command):
    async def talk(_sandbox, _program, on_output):
        on_output("stdout", b"to stdout")
        on_output("stderr", b"to stderr")
        return Outcome(exit_code=0)

    stack.behaviour = talk

    assert command()[1:] == ("to stdout", "to stderr")


def test_what_was_never_started_says_why(stack, command):
    stack.outcome = Outcome(exit_code=1, stderr=b"SyntaxError: no")

    assert command() == (1, "", "SyntaxError: no\n")


def test_what_the_service_says_at_the_end_is_shown_behind_the_output(stack, command):
    async def talk(_sandbox, _program, on_output):
        on_output("stderr", b"to stderr\n")
        return Outcome(exit_code=0, result=b"NaN", stderr=b"to stderr\n")

    stack.behaviour = talk

    assert command("--main") == (1, "", "to stderr\nThe result of main is not valid JSON.\n")


def test_artifacts_are_saved_where_they_belong(stack, command, tmp_path):
    stack.outcome = Outcome(
        exit_code=0,
        artifacts=(
            Artifact("a.bin", b"\0"),
            Artifact("../evil", b"x"),
            Artifact("/tmp/evil", b"x"),
            Artifact("..", b""),
        ),
    )

    code, _, errors = command("--artifacts", str(tmp_path / "out" / "deep"))

    assert (code, errors.count("not saved")) == (0, 3)
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["a.bin"]
    assert stack.programs[-1].artifact_globs == ("*",)


def test_refusals_are_125_and_usage_is_2(command):
    assert command("--language", "cobol")[0] == 125
    assert command("--url", "http://127.0.0.1:1")[0] == 125
    assert command("--file", "/nowhere")[0] == 2
    assert command("--arg", "no-equals-sign")[0] == 2


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "0", "-1", "soon"])
def test_a_timeout_is_a_number_of_seconds(command, text):
    with pytest.raises(SystemExit) as caught:
        command(f"--timeout={text}")

    assert caught.value.code == 2


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "[1, NaN]", '{"a": -1e999}', "[" * 100_000])
def test_an_argument_that_is_no_json_is_text(stack, command, text):
    """Python reads and writes these as JSON, and the service refused the whole body."""
    assert command("--arg", f"x={text}", "--arg", "y=1e3")[0] == 0
    assert json.loads(stack.programs[-1].arguments) == {"x": text, "y": 1000.0}


def test_arguments_that_are_no_json_are_not_sent(stack, client):
    with pytest.raises(ValueError, match="not JSON compliant"):
        client.run("x", arguments={"a": [float("nan")]})
    assert stack.programs == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.mjs", "nodejs"), ("a.cjs", "nodejs"), ("a.js", "nodejs"), ("a.mts", "typescript"), ("a.cts", "typescript")],
)
def test_endings_of_modules_are_known(tmp_path, capsys, name, expected):
    (tmp_path / name).write_text("x")
    with running_stack(languages=(language("python"), language("nodejs"), language("typescript"))) as stack:
        assert main(["run", "--main", "--url", f"http://127.0.0.1:{stack.port}", str(tmp_path / name)]) == 0
        assert [event.language for event in stack.ended] == [expected]


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null/x", "/etc/hostname"])
def test_a_folder_that_cannot_be_written_is_found_before_the_run(stack, command, folder):
    code, _, errors = command("--artifacts", folder)

    assert (code, stack.programs) == (2, [])
    assert folder in errors


def test_an_artifact_that_cannot_be_saved_is_no_failure_of_the_program(stack, command, tmp_path):
    (tmp_path / "out" / "a.bin").mkdir(parents=True)
    stack.outcome = Outcome(exit_code=0, artifacts=(Artifact("a.bin", b"\0"), Artifact("b.bin", b"\1")))

    code, _, errors = command("--artifacts", str(tmp_path / "out"))

    assert (code, errors.count("not saved")) == (125, 1)
    assert (tmp_path / "out" / "b.bin").read_bytes() == b"\1"


# The command as a process of its own


@contextmanager
def started(stack: Stack, file: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        # A test run in the background may have been told to ignore interrupts.
        ["env", "--default-signal=INT", sys.executable, "-m", "sandbox_svc", "run", str(file)],
        env={**os.environ, "SANDBOX_CLIENT_URL": f"http://127.0.0.1:{stack.port}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text("x")
    return tmp_path / "program.py"


def test_output_appears_while_the_program_runs(stack, program):
    go_on = asyncio.Event()

    async def talk(_sandbox: Any, _program: Any, on_output: Any) -> Outcome:
        on_output("stdout", b"first\n")
        on_output("stderr", b"aside\n")
        await go_on.wait()
        on_output("stdout", b"last\n")
        return Outcome(exit_code=3)

    stack.behaviour = talk
    with started(stack, program, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"first\n"
        assert process.stderr.readline() == b"aside\n"
        assert process.poll() is None and stack.running == 1
        stack.loop.call_soon_threadsafe(go_on.set)
        rest, errors = process.communicate(timeout=10)

    assert (process.returncode, rest, errors) == (3, b"last\n", b"")


def test_an_interrupt_kills_the_program(stack, program):
    async def hang(_sandbox: Any, _program: Any, on_output: Any) -> Outcome:
        on_output("stdout", b"first\n")
        await asyncio.sleep(60)
        return Outcome(exit_code=0)

    stack.behaviour = hang
    with started(stack, program, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=10)

    assert (process.returncode, rest, errors) == (130, b"", b"")
    wait_until(lambda: stack.killed == 1)


def test_an_interrupt_while_input_is_read_ends_the_command(stack, program):
    """Nothing was running yet, and it ended in a traceback."""
    program.unlink()
    os.mkfifo(program)
    with started(stack, program, stdin=subprocess.PIPE) as process:
        # Opens once the command reads its program; what it reads next is its input, which does not end.
        program.write_text("x")
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.wait(10)
        assert process.stderr is not None
        errors = process.stderr.read()

    assert (process.returncode, errors, stack.programs) == (130, b"", [])


def test_the_ending_of_a_file_chooses_no_profile(command):
    """The first language that matched was taken, which may be a profile."""
    served = (language("python-office", profile="office"), language("python"))
    with running_stack(languages=served) as stack:
        url = f"http://127.0.0.1:{stack.port}"
        command("--url", url)
        command("--url", url, "--profile", "office")
        languages = [event.language for event in stack.ended]

    assert languages == ["python", "python-office"]


def test_files_are_sent_by_their_names(stack, command, tmp_path):
    (tmp_path / "data.csv").write_bytes(b"a,b\xff")

    command("--file", str(tmp_path / "data.csv"))

    assert stack.programs[-1].files == (InputFile("data.csv", b"a,b\xff"),)

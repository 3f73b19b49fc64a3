"""`POST /run`: what clients of the old executor manager rely on, word for word."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sandbox_svc.analysis.findings import Analysis, Finding, SourceError
from sandbox_svc.errors import ProtocolError, RuntimeUnavailable, SandboxLost
from sandbox_svc.rate_decision import RateDecision
from sandbox_svc.runtime import Artifact, Outcome, RunLimits
from sandbox_svc.runtime.protocol import ProgramError
from sandbox_svc.service.tenants import Tenant, Unlimited
from tests.http_stack import MIB, Stack, running_stack

FIELDS = {
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
}


@pytest.fixture(scope="module")
def shared_stack() -> Iterator[Stack]:
    with running_stack() as stack:
        yield stack


@pytest.fixture
def stack(shared_stack: Stack) -> Stack:
    shared_stack.outcome = Outcome(exit_code=0, result=b"null", wall_us=1234, memory_kb=5678)
    shared_stack.behaviour = None
    shared_stack.programs.clear()
    return shared_stack


def assert_is_failure(answer: dict[str, Any]) -> None:
    """What makes those clients see a failure as one (they parse stdout as the result otherwise)."""
    assert set(answer) == FIELDS
    assert answer["status"] != "success"
    assert answer["stdout"] == ""
    assert answer["artifacts"] == []
    assert answer["result"] is None
    assert answer["stderr"].strip()
    assert answer["exit_code"] != 0


# What a program does


def test_a_success_has_all_fields(stack):
    stack.outcome = Outcome(
        exit_code=0, result=b'{"a": [1, 2]}', stdout=b"out\n", stderr=b"err\n", wall_us=1500, memory_kb=42
    )

    answer = stack.run()

    assert answer == {
        "status": "success",
        "stdout": "out\n",
        "stderr": "err\n",
        "exit_code": 0,
        "detail": None,
        "time_used_ms": 1.5,
        "memory_used_kb": 42,
        "resource_limit_type": None,
        "unauthorized_access_type": None,
        "runtime_error_type": None,
        "artifacts": [],
        "result": {"present": True, "value": {"a": [1, 2]}, "type": "json"},
    }


def test_none_is_a_result(stack):
    assert stack.run()["result"] == {"present": True, "value": None, "type": "json"}


def test_a_program_that_exits_with_0_by_itself_has_no_result(stack):
    stack.outcome = Outcome(exit_code=0, stdout=b"done")

    answer = stack.run()

    assert (answer["status"], answer["exit_code"], answer["result"]) == ("success", 0, None)


def test_output_is_text_whatever_bytes_it_is(stack):
    stack.outcome = Outcome(
        exit_code=0, result=b"1", stdout=b"a\xff\r\n\x0b\xc2\x85\xe2\x80\xa8\x00", stderr=b"\xed\xa0\x80"
    )

    answer = stack.run()

    assert answer["stdout"] == "a\ufffd\r\n\x0b\x85\u2028\x00"
    assert answer["stderr"] == "\ufffd\ufffd\ufffd"


def test_numbers_of_a_result_keep_all_their_digits(stack):
    digits = b"123456789012345678901234567890.12345678901234567890123"
    stack.outcome = Outcome(exit_code=0, result=b"[" + digits + b", 18446744073709551617]")
    body = json.dumps({"code_b64": base64.b64encode(b"x").decode()})

    assert digits in stack.request("POST", "/run", body).body


@pytest.mark.parametrize("code", [1, 3, 124, 137, 143, 255])
def test_an_exit_code_is_the_programs_own(stack, code):
    stack.outcome = Outcome(exit_code=code, stdout=b"partial", stderr=b"Traceback\n")

    answer = stack.run()

    assert_is_failure(answer)
    assert answer["status"] == "program_error"
    assert answer["exit_code"] == code
    assert answer["stderr"] == "Traceback\n"
    assert answer["runtime_error_type"] == "nonzero_exit"
    assert answer["resource_limit_type"] is None


@pytest.mark.parametrize(
    ("number", "name"), [(11, "SIGSEGV"), (6, "SIGABRT"), (9, "SIGKILL"), (31, "SIGSYS"), (40, "SIG40")]
)
def test_a_signal_is_a_runtime_error(stack, number, name):
    stack.outcome = Outcome(exit_code=None, signal=number, stdout=b"partial", stderr=b"last words")

    answer = stack.run()

    assert_is_failure(answer)
    assert answer["status"] == "runtime_error"
    assert answer["runtime_error_type"] == "signalled"
    assert answer["exit_code"] == 128 + number
    assert name in answer["stderr"]
    assert "last words" in answer["stderr"]


@pytest.mark.parametrize(
    ("limit", "kind", "code"),
    [("time", "time", -124), ("cpu", "time", -124), ("memory", "memory", -137), ("output", "output", -153)],
)
@pytest.mark.parametrize("exit_code", [None, 0, 1])
def test_a_limit_is_named_whatever_the_exit_code(stack, limit, kind, code, exit_code):
    stack.outcome = Outcome(exit_code=exit_code, signal=9, limit=limit, stdout=b"partial", result=b"1")

    answer = stack.run()

    assert_is_failure(answer)
    assert answer["status"] == "resource_limit_exceeded"
    assert answer["resource_limit_type"] == kind
    assert answer["exit_code"] == code
    assert answer["runtime_error_type"] is None


def test_a_result_that_is_too_large_is_not_called_output(stack):
    sentence = "The result of main is larger than 1000 bytes."
    stack.outcome = Outcome(
        exit_code=None, limit="output", signal=9, error=ProgramError(type="ResultError", message=sentence)
    )

    answer = stack.run()

    assert_is_failure(answer)
    assert (answer["resource_limit_type"], answer["exit_code"]) == ("output", -153)
    assert answer["stderr"] == f"Output limit exceeded: {sentence}"


def test_words_in_stderr_classify_nothing(stack):
    stack.outcome = Outcome(exit_code=1, stderr=b"Permission denied, Operation not permitted, MemoryError, timeout")

    answer = stack.run()

    assert answer["status"] == "program_error"
    assert answer["unauthorized_access_type"] is None
    assert answer["resource_limit_type"] is None


@pytest.mark.parametrize("stderr", [b"", b" \n\t"])
def test_a_failure_without_a_word_gets_a_sentence(stack, stderr):
    stack.outcome = Outcome(exit_code=3, stderr=stderr)

    assert stack.run()["stderr"] == "The program exited with code 3 and wrote nothing to stderr."


def test_an_error_without_an_exit_code_is_told(stack):
    stack.outcome = Outcome(exit_code=0, error=ProgramError(type="TypeError", message="set is not JSON"))

    answer = stack.run()

    assert_is_failure(answer)
    assert (answer["exit_code"], answer["stderr"]) == (1, "TypeError: set is not JSON")


def test_cut_stderr_says_so(stack):
    stack.outcome = Outcome(exit_code=1, stderr=b"x" * 10, stderr_truncated=True)

    assert stack.run()["stderr"] == "x" * 10 + "\n[stderr was cut here]"


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (b"NaN", "is not valid JSON"),
        (b"[" * 300 + b"]" * 300, "is nested more than 200 levels deep"),
        (b"1" * 5000, "holds a number of more than 4000 digits"),
        (b'"\xff"', "is not UTF-8"),
        (b'}{"status":"success"', "is not valid JSON"),
        (b'"' + b"a" * MIB + b'"', "is larger than 1048576 bytes"),
    ],
)
def test_a_result_that_clients_cannot_read_is_a_program_error(stack, result, words):
    stack.outcome = Outcome(exit_code=0, result=result, stdout=b"partial", stderr=b"own")

    answer = stack.run()

    assert_is_failure(answer)
    assert (answer["status"], answer["exit_code"]) == ("program_error", 1)
    assert answer["stderr"] == f"own\nThe result of main {words}."


def test_lone_surrogates_in_a_result_do_not_spoil_the_answer(stack):
    stack.outcome = Outcome(exit_code=0, result=rb'{"a\ud800":"\udc00 \ud83d\ude00"}')

    assert stack.run()["result"]["value"] == {"a\ufffd": "\ufffd \U0001f600"}


@pytest.mark.parametrize(("output", "status"), [(b"\0" * MIB, "resource_limit_exceeded"), (b"z" * MIB, "success")])
def test_output_that_json_inflates_counts_with_its_escapes(stack, output, status):
    """A mebibyte of NULs is six of JSON; without this the answer exceeds what clients take."""
    stack.outcome = Outcome(exit_code=0, result=b"1", stdout=output)

    assert stack.run()["status"] == status


def test_artifacts_are_those_that_clients_can_show(stack):
    png = b"\x89PNG\r\n\x1a\n\xff"
    stack.outcome = Outcome(
        exit_code=0,
        result=b"1",
        artifacts=(
            Artifact("chart.png", png),
            Artifact("Report.PDF", b"%PDF"),
            Artifact("run.sh", b"rm"),
            Artifact("chart.png.sh", b"rm"),
            Artifact("noextension", b"x"),
            Artifact(".hidden.png", b"x"),
            Artifact("empty.csv", b""),
            Artifact("../up.png", b"x"),
            Artifact("new\nline.png", b"x"),
            Artifact("back\\slash.png", b"x"),
        ),
    )

    artifacts = stack.run()["artifacts"]

    assert artifacts == [
        {
            "name": "chart.png",
            "mime_type": "image/png",
            "size": len(png),
            "content_b64": base64.b64encode(png).decode(),
        },
        {"name": "Report.PDF", "mime_type": "application/pdf", "size": 4, "content_b64": "JVBERg=="},
    ]


def test_a_failure_has_no_artifacts(stack):
    stack.outcome = Outcome(exit_code=1, artifacts=(Artifact("chart.png", b"x"),))

    assert_is_failure(stack.run())


# What the service does


@pytest.mark.parametrize(
    "error",
    [
        SandboxLost("container 0123456789ab in /var/lib/docker was lost", started=True),
        ProtocolError("bad frame"),
        RuntimeUnavailable("connect /var/run/docker.sock: no such file"),
        RuntimeError("a slip of ours in /usr/lib/python3"),
        RecursionError("deep"),
    ],
)
def test_a_failure_of_ours_is_told_without_its_innards(stack, error):
    async def fail(*_: object) -> Outcome:
        raise error

    stack.behaviour = fail

    answer = stack.run()

    assert_is_failure(answer)
    assert (answer["status"], answer["exit_code"]) == ("program_runner_error", -3)
    assert not any(word in json.dumps(answer) for word in ("docker", "/usr", "0123456789ab", "frame", "Error:", "deep"))

    stack.behaviour = None
    assert stack.run()["status"] == "success"


def test_a_run_that_never_started_is_tried_once_more(stack):
    attempts = []

    async def lose_once(*_: object) -> Outcome:
        attempts.append(1)
        if len(attempts) == 1:
            raise SandboxLost("found dead", started=False)
        return Outcome(exit_code=0, result=b'"second"')

    stack.behaviour = lose_once

    assert stack.run()["result"]["value"] == "second"
    assert len(attempts) == 2


def test_a_run_that_may_have_started_is_never_repeated(stack):
    attempts = []

    async def lose(*_: object) -> Outcome:
        attempts.append(1)
        raise SandboxLost("died", started=True)

    stack.behaviour = lose

    answer = stack.run()
    assert (answer["exit_code"], answer["detail"]) == (-3, "sandbox_lost")
    assert "may have begun" in answer["stderr"]
    assert len(attempts) == 1


def test_a_full_queue_is_busy():
    async def hang(*_: object) -> Outcome:
        await asyncio.sleep(60)
        return Outcome(exit_code=0)

    with running_stack(pool_size=1, queue_size=0) as stack:
        stack.behaviour = hang
        with stack.connect() as first:
            first.sendall(run_request("x"))
            wait_until(lambda: stack.running == 1)

            body = json.dumps({"code_b64": "eA=="})
            reply = stack.request("POST", "/run", body)

        answer = reply.json()
        assert_is_failure(answer)
        assert (answer["status"], answer["exit_code"], answer["stderr"], answer["detail"]) == (
            "program_runner_error",
            -10,
            "Container pool is busy",
            "no_available_container",
        )
        assert int(reply.headers["retry-after"]) >= 1


def test_a_draining_service_is_busy_and_says_why():
    with running_stack() as stack:
        stack.loop.call_soon_threadsafe(stack.pool.close)
        wait_until(lambda: stack.pool.is_closed)

        answer = stack.run()

        assert_is_failure(answer)
        assert (answer["exit_code"], answer["detail"]) == (-10, "draining")


class Limited(Unlimited):
    """Lets two runs in, then none."""

    def __init__(self) -> None:
        self.count = 0

    async def admit(self, _tenant: Tenant) -> RateDecision | None:
        self.count += 1
        return RateDecision(
            is_allowed=self.count <= 2, limit=2, window_seconds=1, remaining=max(2 - self.count, 0), reset_seconds=0.4
        )


def test_the_rate_limit_answers_200_with_429_inside():
    with running_stack(admission=Limited()) as stack:
        body = json.dumps({"code_b64": "eA=="})
        first, _, third = (stack.request("POST", "/run", body) for _ in range(3))

        assert first.headers["ratelimit-policy"] == '"runs";q=2;w=1'
        assert first.headers["ratelimit"] == '"runs";r=1;t=1'
        answer = third.json()
        assert_is_failure(answer)
        assert (third.status, answer["exit_code"]) == (200, -429)
        assert third.headers["ratelimit"] == '"runs";r=0;t=1'
        assert third.headers["retry-after"] == "1"
        assert len(stack.programs) == 2


class Judge:
    """An analyser that finds what its sources ask it to find."""

    async def analyse(self, _analyser: str, source: bytes) -> Analysis:
        if source == b"bad":
            finding = Finding(rule="py-spawn", level="standard", line=3, column=1, message="starts a process")
            return Analysis(findings=(finding, finding))
        if source == b"syntax":
            text = '  File "/workspace/main.py", line 1\nSyntaxError: invalid syntax\n'
            return Analysis(
                source_error=SourceError(
                    type="SyntaxError", message="invalid syntax", line=1, column=1, text=text, source_line="syntax"
                )
            )
        return Analysis()


def test_what_analysis_refuses_is_not_run():
    with running_stack(analyser=Judge()) as stack:
        answer = stack.run("bad")

        assert_is_failure(answer)
        assert (answer["status"], answer["exit_code"], answer["detail"]) == (
            "program_runner_error",
            -999,
            "Code is unsafe",
        )
        assert answer["stderr"] == "Line 3: starts a process\nLine 3: starts a process"
        assert stack.programs == []


def test_a_syntax_error_is_a_program_error_and_costs_no_sandbox():
    with running_stack(analyser=Judge()) as stack:
        answer = stack.run("syntax")

        assert_is_failure(answer)
        assert (answer["status"], answer["exit_code"]) == ("program_error", 1)
        assert "SyntaxError: invalid syntax" in answer["stderr"]
        assert stack.programs == []


def test_analysis_that_only_reports_runs_the_program():
    with running_stack(analyser=Judge(), refuses=False) as stack:
        assert stack.run("bad")["status"] == "success"


def test_the_log_has_ids_and_durations_and_nothing_of_the_program(stack, caplog):
    caplog.set_level("DEBUG")
    stack.outcome = Outcome(exit_code=1, stdout=b"secret-out", stderr=b"secret-err", result=b'"secret-result"')

    stack.run("secret-code", arguments={"key": "secret-argument"})
    stack.request("POST", "/run", '{"secret-field": 1, "code_b64": "secret-base64"}')
    stack.run("x", language="python3")

    assert "secret" not in caplog.text
    lines = [record.getMessage() for record in caplog.records if record.name == "sandbox_svc.run"]
    assert len(lines) == 2
    assert "tenant=default language=python outcome=program_error exit_code=1" in lines[0]


# What is sent


def test_the_program_arrives_as_it_was_sent(stack):
    source = "def main(s):\r\n    return '\u4e16'\n".encode()
    arguments = '{"b": 1e999, "a": -0, "big": 123456789012345678901234567890, "dup": 1, "dup": 2, "s": "\\u0000\u2028"}'
    body = f'{{"arguments": {arguments}, "code_b64": "{base64.b64encode(source).decode()}", "language": "python3"}}'

    assert stack.request("POST", "/run", body.encode()).status == 200
    program = stack.programs[-1]
    assert program.source == source
    assert program.arguments == arguments.encode()
    assert program.call_main
    assert not program.keep_artifacts
    assert program.limits == RunLimits(wall_ms=10_000, memory_bytes=256 * MIB)


@pytest.mark.parametrize(
    "name", ['"\\ud800"', '"\\udfff\\ud83d\\ude00\\uD83D"', '"\\\\ud800 \\ud800"', '"\\ue000\\ud800\\ue000"']
)
def test_lone_surrogates_in_arguments_are_inert(stack, name):
    """Halves of emoji, which JavaScript's `slice` makes, arrive unchanged."""
    body = f'{{"code_b64":"eA==","arguments":{{"s":{name}}}}}'

    assert stack.request("POST", "/run", body).status == 200
    assert stack.programs[-1].arguments == f'{{"s":{name}}}'.encode()


@pytest.mark.parametrize("extra", [{}, {"arguments": None}, {"arguments": {}}])
def test_no_arguments_are_an_empty_object(stack, extra):
    stack.run(**extra)

    assert stack.programs[-1].arguments == b"{}"


def test_unknown_fields_are_ignored_without_effect(stack):
    plain = stack.run()
    first = stack.programs[-1]

    odd = stack.run(base_image="evil", timeout=999, network=True, preload="import os", user="root", profile="x")

    assert odd == plain
    assert stack.programs[-1] == first


@pytest.mark.parametrize("name", ["python", "python3", "nodejs", "javascript"])
def test_languages_have_aliases(stack, name):
    assert stack.run(language=name)["status"] == "success"


def test_python_is_the_default(stack):
    stack.run()

    assert any(s.runs for s in stack.runtime.sandboxes if s.language.name == "python")


@pytest.mark.parametrize(
    "fields",
    [
        {"code_b64": "ZGVmIG1haW4oKTogcGFzc"},
        {"code_b64": "a"},
        {"code_b64": "!!!!"},
        {"code_b64": "-_-_"},
        {"code_b64": "eA==\n"},
        {"code_b64": "eA\n=="},
        {"code_b64": "eA==eA=="},
        {"code_b64": "\u00e9A=="},
        {"code_b64": ""},
        {"code_b64": None},
        {"code_b64": 12345678},
        {"code_b64": ["eA=="]},
        {"code_b64": base64.b64encode(b"\xff\xfe").decode()},
        {"code_b64": base64.b64encode(b"a\0b").decode()},
        {},
        {"code_b64": "eA==", "language": "ruby"},
        {"code_b64": "eA==", "language": "../python"},
        {"code_b64": "eA==", "language": "Python"},
        {"code_b64": "eA==", "language": ""},
        {"code_b64": "eA==", "language": None},
        {"code_b64": "eA==", "language": 3},
        {"code_b64": "eA==", "language": "x" * 100_000},
        {"code_b64": "eA==", "arguments": []},
        {"code_b64": "eA==", "arguments": "{}"},
        {"code_b64": "eA==", "arguments": 1},
        {"code_b64": "eA==", "arguments": True},
    ],
)
def test_a_wrong_field_is_422(stack, fields):
    reply = stack.request("POST", "/run", json.dumps(fields))

    assert_is_problem(reply, 422)
    assert stack.programs == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"not json",
        b'{"code_b64":"eA=="',
        b'{"code_b64":"eA=="}}',
        b'{"code_b64":"eA==","arguments":{"x":NaN}}',
        b'{"code_b64":"eA==","arguments":{"x":Infinity}}',
        b'{"code_b64":"eA==","arguments":{"x":01}}',
        b'{"code_b64":"eA==","arguments":{"x":"\x01"}}',
        b'{"code_b64":"eA==","arguments":{"x":"\xff"}}',
        b'{"code_b64":"eA==","unknown":"\xff"}',
        b'\xef\xbb\xbf{"code_b64":"eA=="}',
        '{"code_b64":"eA=="}'.encode("utf-16"),
        b"code_b64=eA%3D%3D",
    ],
)
def test_a_body_that_is_no_json_is_400(stack, body):
    assert_is_problem(stack.request("POST", "/run", body), 400)


@pytest.mark.parametrize("body", [b"[1,2,3]", b'"hello"', b"null", b"1", b"true"])
def test_a_body_that_is_no_object_is_422(stack, body):
    assert_is_problem(stack.request("POST", "/run", body), 422)


@pytest.mark.parametrize(
    "arguments",
    [
        b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"x":' + b"[" * 250 + b"]" * 250 + b"}",
        b'{"x":' + b'{"x":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        b'{"x":' + b"1" * 5000 + b"}",
        b"[" * 500_000,
    ],
    ids=["deep", "rather deep", "deep objects", "long number", "unclosed"],
)
def test_arguments_beyond_the_bounds_are_refused_quickly(stack, arguments):
    """AP-09: no crash, no RecursionError, and nobody else waits for it."""
    body = b'{"code_b64":"eA==","arguments":' + arguments + b"}"
    stack.run()  # warm

    started = time.perf_counter()
    reply = stack.request("POST", "/run", body)

    assert time.perf_counter() - started < 0.5
    assert reply.status in (400, 422)
    assert stack.run()["status"] == "success"


def test_errors_do_not_echo_the_body(stack):
    secret = "correct-horse-battery"
    for body in (
        f'{{"code_b64":"{secret}!"}}',
        f'{{"code_b64":"eA==","language":"{secret}"}}',
        f'{{"code_b64":"eA==","arguments":"{secret}"}}',
        f"{secret}",
        f'{{"{secret}":1}}',
    ):
        reply = stack.request("POST", "/run", body)
        assert reply.status in (400, 422)
        assert secret.encode() not in reply.body


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded", "x", ""],
)
def test_the_body_is_json_whatever_the_content_type_says(stack, content_type):
    """One path for all, so that no type gets around a check; `curl -d` says urlencoded."""
    reply = stack.request("POST", "/run", b'{"code_b64":"eA=="}', {"Content-Type": content_type})

    assert (reply.status, reply.json()["status"]) == (200, "success")


def assert_is_problem(reply: Any, status: int, *, says_status: bool = False) -> None:
    assert reply.status == status, reply
    assert reply.headers["content-type"] == "application/problem+json"
    document = reply.json()
    # On `/run` it is a word in every other answer, and must not be a number here.
    assert document.get("status") == (status if says_status else None)
    assert document["code"]
    assert 0 < len(document["detail"]) < 300
    assert "Traceback" not in document["detail"]


def run_request(source: str) -> bytes:
    body = json.dumps({"code_b64": base64.b64encode(source.encode()).decode()}).encode()
    return b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def wait_until(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)

"""`POST /v1/run`: everything that is known about a run, and honest codes for what is the service's."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from sandbox_svc.admission.keys import KeyRing, hash_key
from sandbox_svc.admission.rates import RateAdmission
from sandbox_svc.errors import RuntimeUnavailable, SandboxLost
from sandbox_svc.runtime import Artifact, InputFile, Outcome, RunLimits
from sandbox_svc.runtime.protocol import ProgramError, TracebackFrame
from sandbox_svc.service.runs import default_maxima
from sandbox_svc.service.tenants import Tenant, Unlimited
from tests.http_stack import MIB, Stack, language, running_stack
from tests.unit.test_api_compat import Judge, Limited, assert_is_problem, wait_until


@pytest.fixture(scope="module")
def shared_stack() -> Iterator[Stack]:
    with running_stack() as stack:
        yield stack


@pytest.fixture
def stack(shared_stack: Stack) -> Stack:
    shared_stack.outcome = Outcome(exit_code=0, result=b"null")
    shared_stack.behaviour = None
    shared_stack.programs.clear()
    return shared_stack


def test_a_success_says_everything(stack):
    stack.outcome = Outcome(
        exit_code=0,
        result=b"[1]",
        stdout=b"out",
        stderr=b"err",
        wall_us=2500,
        cpu_us=1500,
        memory_kb=9000,
        artifacts=(Artifact("data.bin", b"\0\1"), Artifact("chart.png", b"png")),
        artifacts_skipped=3,
    )

    reply = stack.v1(arguments={"a": 1})

    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    answer = reply.json()
    assert len(answer.pop("run_id")) == 16
    assert answer.pop("queue_ms") >= 0
    assert answer.pop("start_ms") >= 0
    assert answer == {
        "language": "python",
        "outcome": "success",
        "exit_code": 0,
        "signal": None,
        "result": {"value": [1]},
        "stdout": "out",
        "stderr": "err",
        "truncated": {"stdout": False, "stderr": False},
        "artifacts": [
            {"name": "data.bin", "mime_type": "application/octet-stream", "size": 2, "content_b64": "AAE="},
            {"name": "chart.png", "mime_type": "image/png", "size": 3, "content_b64": "cG5n"},
        ],
        "artifacts_skipped": 3,
        "error": None,
        "warnings": [],
        "run_ms": 2.5,
        "cpu_ms": 1.5,
        "memory_kb": 9000,
        "retryable": False,
    }


def test_a_failure_keeps_output_and_artifacts(stack):
    stack.outcome = Outcome(
        exit_code=1,
        error=ProgramError(
            type="ValueError",
            message="no",
            line=7,
            traceback=(TracebackFrame(file="lib/a.py", line=2, function="f", text="raise ValueError('no')"),),
        ),
        stdout=b"partial",
        stderr=b"Traceback",
        stdout_truncated=True,
        artifacts=(Artifact("log.txt", b"x"),),
        result=b"1",
    )

    answer = stack.v1().json()

    assert answer["outcome"] == "program_error"
    assert answer["error"] == {
        "type": "ValueError",
        "message": "no",
        "line": 7,
        "traceback": [{"file": "lib/a.py", "line": 2, "function": "f", "text": "raise ValueError('no')"}],
    }
    assert (answer["stdout"], answer["stderr"]) == ("partial", "Traceback")
    assert answer["truncated"] == {"stdout": True, "stderr": False}
    assert [artifact["name"] for artifact in answer["artifacts"]] == ["log.txt"]
    assert answer["result"] is None
    assert stack.programs[-1].keep_artifacts


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (Outcome(exit_code=None, signal=11), "signalled"),
        (Outcome(exit_code=None, signal=9, limit="time"), "time_limit"),
        (Outcome(exit_code=None, signal=9, limit="cpu"), "cpu_limit"),
        (Outcome(exit_code=1, limit="memory"), "memory_limit"),
        (Outcome(exit_code=None, signal=9, limit="output"), "output_limit"),
        (Outcome(exit_code=None, signal=9, cancelled=True), "cancelled"),
        (Outcome(exit_code=0, result=b"NaN"), "program_error"),
    ],
)
def test_outcomes_have_names(stack, outcome, word):
    stack.outcome = outcome

    answer = stack.v1().json()

    assert answer["outcome"] == word
    assert answer["exit_code"] == (1 if outcome.result else outcome.exit_code)
    assert answer["signal"] == ({11: "SIGSEGV", 9: "SIGKILL"}.get(outcome.signal or 0))
    assert answer["retryable"] == (word == "cancelled")


def test_a_script_gets_stdin_args_env_and_files(stack):
    stack.v1(
        mode="script",
        stdin={"b64": "/wA="},
        args=["-v", "\u00e9"],
        env={"LEVEL": "3"},
        files={"data/in.csv": "a,b\n", "raw.bin": {"b64": "AAE="}},
        artifacts=["*.csv"],
        limits={"wall_ms": 500, "memory_bytes": 64 * MIB, "output_bytes": 1000},
    )

    program = stack.programs[-1]
    assert not program.call_main
    assert program.stdin == b"\xff\0"
    assert program.args == ("-v", "\u00e9")
    assert program.env == {"LEVEL": "3"}
    assert program.files == (InputFile("data/in.csv", b"a,b\n"), InputFile("raw.bin", b"\0\1"))
    assert program.artifact_globs == ("*.csv",)
    assert program.limits == RunLimits(wall_ms=500, memory_bytes=64 * MIB, output_bytes=1000)


def test_the_source_may_be_one_of_the_files(stack):
    body = {"files": {"pkg/app.py": "print(1)", "lib.py": "x = 1"}, "entry_point": "pkg/app.py", "mode": "script"}

    assert stack.request("POST", "/v1/run", json.dumps(body)).status == 200
    program = stack.programs[-1]
    assert (program.source, program.source_name) == (b"print(1)", "pkg/app.py")
    assert [file.path for file in program.files] == ["lib.py"], "the source crosses once, and is placed from there"


def test_the_source_may_be_base64(stack):
    body = {"code_b64": base64.b64encode(b"print(1)").decode()}

    assert stack.request("POST", "/v1/run", json.dumps(body)).status == 200
    assert stack.programs[-1].source == b"print(1)"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "Exactly one of code"),
        ({"code": "x", "code_b64": "eA=="}, "Exactly one of code"),
        ({"code": "x", "timeout": 3}, "Unknown field timeout"),
        ({"code": "x", "s p a c e": 3}, "Unknown field"),
        ({"code": ""}, "code must not be empty"),
        ({"code": "a\0b"}, "code must not hold NUL"),
        ({"code": 3}, "$.code"),
        ({"code": "x", "language": "ruby"}, "language must be one of"),
        ({"code": "x", "mode": "spy"}, "Invalid value - at `$.mode`"),
        ({"code": "x", "arguments": []}, "arguments must be a JSON object"),
        ({"code": "x", "mode": "script", "arguments": {}}, 'arguments need mode "main"'),
        ({"code": "x", "stdin": "y"}, 'stdin and args need mode "script"'),
        ({"code": "x", "files": {"/etc/passwd": ""}}, "files must have relative paths"),
        ({"code": "x", "files": {"a/../b": ""}}, "files must have relative paths"),
        ({"code": "x", "files": {"": ""}}, "files must have relative paths"),
        ({"code": "x", "files": {"a//b": ""}}, "files must have relative paths"),
        ({"code": "x", "files": {"a\\b": ""}}, "files must have relative paths"),
        ({"code": "x", "files": {"a\nb": ""}}, "files must have relative paths"),
        ({"code": "x", "files": {"a" * 300: ""}}, "files must have relative paths"),
        ({"code": "x", "files": {str(n): "" for n in range(65)}}, "length <= 64"),
        ({"code": "x", "files": {"a": {"b64": "!"}}}, "files must be base64"),
        ({"code": "x", "files": {"a": {"b64": "", "mode": 7}}}, "Unknown field mode"),
        ({"entry_point": "a", "files": {"b": "x"}}, "entry_point must name one of files"),
        ({"code": "x", "env": {"A=B": "1"}}, "$.env"),
        ({"code": "x", "env": {"A\n": "1"}}, "$.env"),
        ({"code": "x", "env": {"A": "1\0"}}, "must not hold NUL"),
        (
            {"code": "x", "mode": "script", "args": ["\x01" * 20_000, "\x01" * 20_000]},
            "must not exceed 196608 bytes together",
        ),
        ({"code": "x", "limits": {"wall_ms": 0}}, "$.limits.wall_ms"),
        ({"code": "x", "limits": {"wall_ms": 10_001}}, "limits.wall_ms must be at most 10000"),
        ({"code": "x", "limits": {"memory_bytes": 1 << 32}}, "limits.memory_bytes must be at most 268435456"),
        ({"code": "x", "limits": {"wall_ms": 1.5}}, "$.limits.wall_ms"),
    ],
)
def test_a_wrong_field_is_named(stack, body, words):
    reply = stack.request("POST", "/v1/run", json.dumps(body))

    assert_is_problem(reply, 422, says_status=True)
    assert words in reply.json()["detail"]
    assert reply.json()["code"] == ("unknown_language" if "ruby" in str(body) else "invalid_request")
    assert stack.programs == []


def test_lone_surrogates_are_for_arguments_alone(stack):
    """Elsewhere text has to become bytes, which they cannot."""
    good = stack.request("POST", "/v1/run", rb'{"code":"x","arguments":{"a":"\ud800"}}')
    bad = stack.request("POST", "/v1/run", rb'{"code":"x\ud800","arguments":{"a":"\ud800"}}')

    assert good.status == 200
    assert stack.programs[-1].arguments == rb'{"a":"\ud800"}'
    assert_is_problem(bad, 422, says_status=True)


def test_a_tenant_may_have_limits_of_its_own():
    class Small(Unlimited):
        def identify(self, _credential: str | None, _client: str | None) -> Tenant:
            return Tenant(name="small", maxima=RunLimits(wall_ms=100, memory_bytes=MIB, output_bytes=10))

    with running_stack(admission=Small()) as stack:
        assert_is_problem(stack.v1(limits={"wall_ms": 101}), 422, says_status=True)
        assert stack.v1().status == 200
        assert stack.programs[-1].limits == RunLimits(wall_ms=100, memory_bytes=MIB, output_bytes=10)


# GET /v1/languages


def key_stack(folder: Path) -> AbstractContextManager[Stack]:
    """One key, `sbx_small`, whose runs are small."""
    file = folder / "keys.toml"
    digest = hash_key("sbx_small").hex()
    file.write_text(f'[[key]]\ntenant = "small"\nhash = "sha256:{digest}"\nmax_timeout = "3s"\nmax_cpu = "2s"\n')
    maxima = default_maxima(timeout_seconds=10, memory_bytes=256 * MIB)
    return running_stack(admission=RateAdmission(rate_limit=None, keys=KeyRing(str(file), maxima=maxima)))


@pytest.mark.parametrize(
    ("headers", "wall_ms", "cpu_ms"),
    [
        ({}, 10_000, None),
        ({"X-API-Key": "sbx_small"}, 3_000, 2_000),
        ({"Authorization": "Bearer sbx_small"}, 3_000, 2_000),
        ({"Sec-Fetch-Site": "same-origin"}, 10_000, None),
    ],
)
def test_the_limits_of_languages_are_those_of_whoever_asks(tmp_path, headers, wall_ms, cpu_ms):
    """They were the service's for everybody, and a run that asked for them was refused."""
    with key_stack(tmp_path) as stack:
        reply = stack.request("GET", "/v1/languages", headers=headers)
        limits = reply.json()["languages"][0]["limits"]

        assert (reply.status, limits["wall_ms"], limits["cpu_ms"]) == (200, wall_ms, cpu_ms)
        assert limits["memory_bytes"] == 256 * MIB
        assert "x-api-key" in reply.headers["vary"].lower()
        if "Sec-Fetch-Site" not in headers and headers:
            body = json.dumps({"code": "x", "limits": {name: limits[name] for name in ("wall_ms", "cpu_ms")}})
            assert stack.request("POST", "/v1/run", body, headers).status == 200


def test_a_wrong_key_is_refused_by_languages_as_elsewhere(tmp_path):
    with key_stack(tmp_path) as stack:
        reply = stack.request("GET", "/v1/languages", headers={"X-API-Key": "sbx_other"})

        assert_is_problem(reply, 401, says_status=True)
        assert reply.headers["www-authenticate"] == "Bearer"


def test_languages_keep_version_and_packages_while_no_container_is_up():
    """They were looked for among the containers that ran."""
    with running_stack(pool_size=1) as stack:

        def info() -> Any:
            return stack.request("GET", "/v1/languages").json()["languages"][0]

        before = info()
        assert before["is_ready"]

        async def lose_all() -> None:
            stack.runtime.stages.hang("start")
            for sandbox in stack.runtime.sandboxes:
                sandbox.kill()

        stack.call(lose_all())
        wait_until(lambda: not info()["is_ready"])

        assert info() == before | {"is_ready": False}
        assert (before["version"], before["packages"]) == (
            "1.0 of image-python",
            [{"name": "made-up", "version": "1.2"}],
        )


PROFILED = (
    language("python-office", "python3-office", profile="office"),
    language("python", "python3"),
    language("nodejs"),
)


def test_profiles_are_told_from_languages():
    """Callers could not see that a name was a profile, nor what to ask for."""
    with running_stack(languages=PROFILED) as stack:
        infos = stack.request("GET", "/v1/languages").json()["languages"]

        assert [(info["name"], info["base"], info["profile"]) for info in infos] == [
            ("python-office", "python", "office"),
            ("python", "python", None),
            ("nodejs", "nodejs", None),
        ]
        for info in infos:
            answer = stack.v1(language=info["base"], profile=info["profile"]).json()
            assert answer["language"] == info["name"]
        assert stack.v1(language="python3", profile="office").json()["language"] == "python-office"


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"profile": "spy"}, "unknown_language", "profile must be one of office"),
        ({"language": "python3", "profile": "spy"}, "unknown_language", "profile must be one of office"),
        ({"language": "nodejs", "profile": "office"}, "unknown_language", "profile must be left out"),
        ({"language": "cobol", "profile": "office"}, "unknown_language", "language must be one of"),
        ({"profile": ""}, "invalid_request", "$.profile"),
    ],
)
def test_a_wrong_profile_is_named(fields, code, words):
    with running_stack(languages=PROFILED) as stack:
        reply = stack.v1(**fields)

        assert_is_problem(reply, 422, says_status=True)
        assert (reply.json()["code"], stack.programs) == (code, [])
        assert words in reply.json()["detail"]


def test_how_long_a_request_may_wait_is_said():
    with running_stack(queue_seconds=600) as stack:
        assert stack.request("GET", "/v1/languages").json()["queue_ms"] == 600_000


def test_without_keys_any_key_will_do(stack):
    assert stack.request("GET", "/v1/languages", headers={"X-API-Key": "whatever"}).status == 200


# What is ours


@pytest.mark.parametrize(
    ("error", "status", "code", "words", "is_retryable", "seconds"),
    [
        (SandboxLost("container 0123456789ab", started=True), 500, "sandbox_lost", "may have begun", False, None),
        (SandboxLost("container 0123456789ab", started=False), 500, "sandbox_lost", "before the program", True, None),
        (RuntimeUnavailable("The engine is away"), 503, "engine_unavailable", "engine is away", True, 5),
        (RuntimeError("/usr/lib slip"), 500, "internal", "could not be completed", False, None),
    ],
)
def test_a_failure_of_ours_is_a_problem_document(stack, error, status, code, words, is_retryable, seconds):
    async def fail(*_: object) -> Outcome:
        raise error

    stack.behaviour = fail

    reply = stack.v1()

    assert_is_problem(reply, status, says_status=True)
    document = reply.json()
    assert document["code"] == code
    assert document.get("retryable", False) == is_retryable
    assert reply.headers.get("retry-after") == (str(seconds) if seconds else None)
    assert document.get("retry_after_seconds") == seconds
    assert words in document["detail"]
    assert "0123456789ab" not in document["detail"]
    assert "/usr" not in document["detail"]


def test_overload_is_503_with_retry_after():
    async def hang(*_: object) -> Outcome:
        await asyncio.sleep(60)
        return Outcome(exit_code=0)

    with running_stack(pool_size=1, queue_size=0) as stack:
        stack.behaviour = hang
        with stack.connect() as first:
            first.sendall(b'POST /v1/run HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{"code":"x"}')
            wait_until(lambda: stack.running == 1)

            reply = stack.v1()

        assert_is_problem(reply, 503, says_status=True)
        assert reply.json()["code"] == "pool_exhausted"
        assert int(reply.headers["retry-after"]) >= 1


def test_draining_is_503():
    with running_stack() as stack:
        stack.loop.call_soon_threadsafe(stack.pool.close)
        wait_until(lambda: stack.pool.is_closed)

        reply = stack.v1()

        assert_is_problem(reply, 503, says_status=True)
        assert reply.json()["code"] == "draining"
        assert "retry-after" in reply.headers


def test_the_rate_limit_is_429():
    with running_stack(admission=Limited()) as stack:
        replies = [stack.v1() for _ in range(3)]

        assert [reply.status for reply in replies] == [200, 200, 429]
        assert_is_problem(replies[2], 429, says_status=True)
        assert replies[2].json()["code"] == "rate_limited"
        assert replies[2].headers["retry-after"] == "1"
        assert replies[1].headers["ratelimit"] == '"runs";r=0;t=1'


def test_refused_code_names_its_lines():
    with running_stack(analyser=Judge()) as stack:
        body = json.dumps({"code": "bad"})

        reply = stack.request("POST", "/v1/run", body)

        assert_is_problem(reply, 422, says_status=True)
        document = reply.json()
        assert document["code"] == "code_refused"
        assert document["findings"][0] == {"line": 3, "column": 1, "rule": "py-spawn", "message": "starts a process"}


def test_reported_findings_come_with_the_answer():
    with running_stack(analyser=Judge(), refuses=False) as stack:
        answer = stack.request("POST", "/v1/run", json.dumps({"code": "bad"})).json()

        assert answer["outcome"] == "success"
        assert [warning["line"] for warning in answer["warnings"]] == [3, 3]


def test_a_syntax_error_has_its_line():
    with running_stack(analyser=Judge()) as stack:
        answer = stack.request("POST", "/v1/run", json.dumps({"code": "syntax"})).json()

        assert answer["outcome"] == "program_error"
        assert answer["error"] == {
            "type": "SyntaxError",
            "message": "invalid syntax",
            "line": 1,
            "traceback": [{"file": "main.py", "line": 1, "function": "<module>", "text": "syntax"}],
        }
        assert stack.programs == []


def test_a_syntax_error_names_the_file_that_is_the_source():
    with running_stack(analyser=Judge()) as stack:
        body = {"files": {"pkg/app.py": "syntax"}, "entry_point": "pkg/app.py"}
        answer = stack.request("POST", "/v1/run", json.dumps(body)).json()

        assert [frame["file"] for frame in answer["error"]["traceback"]] == ["pkg/app.py"]
        assert answer["stderr"].startswith('  File "/workspace/pkg/app.py", line 1\n')

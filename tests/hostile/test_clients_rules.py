"""What the clients of `/run` rely on (R1-R8), and the defects of its predecessor that must not come back (OD-01 to OD-16)."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import pathlib

import pytest

from tests.hostile.harness import CANARY, COMPAT_FIELDS, TIME_LIMIT, Service, py, running, strict_json
from tests.integration.conftest import docker

FAILURES = {
    "exception": "print('partial')\ndef main():\n    print('partial', flush=True)\n    raise ValueError",
    "silent exit": "import os\ndef main():\n    print('partial', flush=True)\n    os._exit(4)",
    "blank stderr": "import os, sys\ndef main():\n    print('partial', flush=True)\n    sys.stderr.write('  \\n')\n    sys.stderr.flush()\n    os._exit(4)",
    "signal": "import os\ndef main():\n    print('partial', flush=True)\n    os.kill(os.getpid(), 9)",
    "time": "def main():\n    print('partial', flush=True)\n    while True: pass",
    "memory": "def main():\n    print('partial', flush=True)\n    h = []\n    while True: h.append(bytearray(8 << 20))",
    "output": "def main():\n    while True: print('partial' * 100)",
    "no result": "def main():\n    print('partial')\n    return {1}",
    "no main": "print('partial')",
    "syntax": "def main(:",
}


@pytest.mark.parametrize("name", FAILURES)
def test_failure_looks_like_one(service: Service, name: str) -> None:
    """R1: no partial stdout, no artifacts, no result, a sentence in stderr; HTTP 200 (R2). The harness asserts all of it."""
    answer = service.run("import os\nopen('artifacts/a.csv', 'w').write('x')\n" * (name != "syntax") + FAILURES[name])
    assert answer.status != "success"
    assert "partial" not in answer.stdout


def test_what_programs_do_is_http_200(service: Service) -> None:
    """R2: only malformed requests are anything else."""
    for code in FAILURES.values():
        reply = service.post("/run", {"code_b64": base64.b64encode(code.encode()).decode(), "language": "python"})
        assert reply.status == 200


def test_busy_is_http_200(runtime: str, tmp_path: pathlib.Path) -> None:
    """R2, R8: nobody waits in vain: -10 at once when the queue is full, after the queue timeout otherwise."""
    settings = {"SANDBOX_LANGUAGES": "python", "SANDBOX_QUEUE_SIZE": "1", "SANDBOX_QUEUE_TIMEOUT": "500ms"}
    with running(tmp_path, runtime, **settings) as service:
        with concurrent.futures.ThreadPoolExecutor(6) as threads:
            answers = list(
                threads.map(
                    lambda _: service.run("import time\ndef main():\n    time.sleep(1.5)\n    return 1"), range(6)
                )
            )
        codes = sorted(answer.exit_code for answer in answers)
        assert codes == [-10] * 5 + [0]
        busy = next(answer for answer in answers if answer.exit_code == -10)
        assert (busy.status, busy.stderr) == ("program_runner_error", "Container pool is busy")
        assert service.run("def main():\n    return 1").value == 1
        service.check_invariants()


@pytest.mark.parametrize("arguments", [None, {}, "absent"])
@pytest.mark.parametrize("language", ["python", "nodejs"])
def test_null_and_missing_arguments_are_empty(service: Service, arguments: object, language: str) -> None:
    """R3: a nil map of Go is null; the Python client sends {}."""
    code = {"python": "def main(**kw):\n    return kw", "nodejs": "function main(args) { return args; }"}[language]
    body = {"code_b64": base64.b64encode(code.encode()).decode(), "language": language}
    if arguments != "absent":
        body["arguments"] = arguments  # type: ignore[assignment]
    assert strict_json(service.post("/run", body).body)["result"]["value"] == {}


def test_unknown_fields_have_no_effect(service: Service) -> None:
    """R3, AP-05: base_image above all."""
    answer = service.run(
        "import os, socket\ndef main():\n    return [os.getuid() != 0, [n for _, n in socket.if_nameindex()]]",
        base_image="evil/image:latest",
        timeout=600,
        network="host",
        preload="import os",
        user="root",
        privileged=True,
        limits={"wall_ms": 10**9},
        env={"LD_PRELOAD": "/tmp/x"},
    )
    assert answer.value == [True, ["lo"]]
    assert answer.verdict[0] == "success"


def test_answer_is_what_go_and_python_can_read(service: Service) -> None:
    """R4: strict RFC 8259 in UTF-8, of bounded depth; the harness decodes every answer so. Here the hardest one."""
    answer = service.run(
        "import os\ndef main():\n    os.write(1, bytes(range(256)))\n    os.write(2, b'\\xed\\xa0\\x80')\n    return '\\u2028\\x00\\U0001f40d'"
    )
    assert answer.value == "\u2028\x00\U0001f40d"
    assert "\x00" in answer.stdout and "\ufffd" in answer.stdout


def test_success_always_has_a_result(service: Service) -> None:
    """R5: also for null; the Go client looks for markers on stdout only when there is none."""
    for answer in (service.run("def main():\n    return None"), service.js("function main() { return null; }")):
        assert answer.result == {"present": True, "value": None, "type": "json"}


def test_waiting_is_bounded(service: Service) -> None:
    """R6: queue, run and collection together stay below queue timeout + time limit + a second or two."""
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda _: service.run("while True: pass"), range(2)))
    assert max(answer.seconds for answer in answers) < 20 + TIME_LIMIT + 2


@pytest.mark.parametrize("text", ["3 parsecs", "-1", "", "0"])
def test_time_limit_that_is_none_is_refused_loudly(runtime: str, tmp_path: pathlib.Path, text: str) -> None:
    """R6: the variable is named; never a silent default."""
    service = Service(tmp_path, runtime, SANDBOX_TIMEOUT=text)
    with pytest.raises(RuntimeError, match="SANDBOX_TIMEOUT"):
        service.start()
    service.stop()


def test_python_gets_keywords_and_javascript_one_object(service: Service) -> None:
    """R7: names and shapes of both languages, None as a value, undefined as an error that says so."""
    assert service.run("def main(a, b=2):\n    return [a, b]", {"a": 1}).value == [1, 2]
    assert service.js("function main({ a }) { return [a, arguments.length]; }", {"a": 1}).value == [1, 1]
    assert service.run("def main():\n    pass").value is None
    assert "undefined" in service.js("function main() {}").stderr
    wrong = service.run("def main(a):\n    return a", {"a": 1, "zzz": 2})
    assert (wrong.status, wrong.exit_code, "TypeError" in wrong.stderr) == ("program_error", 1, True)


def test_exit_codes_are_those_of_the_predecessor(service: Service) -> None:
    """R8: 0, -124, -137 here; -10 above, -3 in test_protocol.py, -429 in test_api_input.py, -999 below."""
    assert service.run("def main():\n    return 1").exit_code == 0
    assert service.run(FAILURES["time"]).exit_code == -124
    assert service.run(FAILURES["memory"]).exit_code == -137


# Old defects


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "def main():\n    print('glued', end='')\n    return 'kept'"),
        ("python", "import os\ndef main():\n    os.write(1, b'glued')\n    return 'kept'"),
        ("nodejs", "function main() { process.stdout.write('glued'); return 'kept'; }"),
    ],
)
def test_output_without_line_end_keeps_the_result(service: Service, language: str, code: str) -> None:
    """OD-01: the marker was glued to the last line and the result lost."""
    answer = service.run(code, language=language)
    assert (answer.value, answer.stdout) == ("kept", "glued")


def test_line_ends_are_not_rewritten(service: Service) -> None:
    """OD-02: splitlines() turned eight kinds of them into line feeds."""
    text = "a\r\nb\x0bc\x0cd\x1ce\x1df\x1eg\x85h\u2028i\u2029j"
    assert service.run("def main(s):\n    print(s, end='')\n    return s", {"s": text}).stdout == text


def test_one_bad_byte_does_not_fail_the_run(service: Service) -> None:
    """OD-03: it became program_runner_error."""
    answer = service.run("import os\ndef main():\n    os.write(1, b'\\xff')\n    return 'kept'")
    assert (answer.value, answer.stdout) == ("kept", "\ufffd")


def test_not_a_number_is_not_an_internal_error(service: Service) -> None:
    """OD-04: it was HTTP 500."""
    assert service.run("def main():\n    return float('nan')").status == "program_error"
    assert service.js("function main() { return NaN; }").value is None


TICKS = py("""
    import os, subprocess, sys, time
    def used():
        # Clock ticks of every other process, user and system, by pid; but for the supervisor's own, which watches runs.
        found = {}
        for pid in filter(str.isdigit, os.listdir('/proc')):
            if int(pid) not in (1, os.getpid()):
                try:
                    fields = open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()
                    found[pid] = int(fields[11]) + int(fields[12])
                except FileNotFoundError:
                    pass
        return found
    def main(burn, ticks, seconds):
        before, began, most = used(), time.monotonic(), 0
        if burn:
            subprocess.Popen([sys.executable, '-I', '-c', 'while True: pass'])
        while time.monotonic() < began + seconds and most < ticks:
            time.sleep(0.1)
            after = used()
            most = max(after[pid] - before.get(pid, 0) for pid in after)
        return [most, time.monotonic() - began]
    """)
"""How many ticks the busiest process uses within some seconds, and how long it took to use so many."""


def test_program_that_ignores_sigterm_is_dead_afterwards(service: Service) -> None:
    """OD-05: it went on in the container, which was handed to the next caller. One that burns is seen by its processor time:
    the same look sees one that is there, and as long a look afterwards sees none."""
    present, seconds = service.run(TICKS, {"burn": True, "ticks": 15, "seconds": 4}).value
    answer = service.v1(
        "import signal\ndef main():\n    signal.signal(15, signal.SIG_IGN)\n    while True: pass",
        limits={"wall_ms": 700},
    )
    assert answer["outcome"] == "time_limit"
    left, _ = service.run(TICKS, {"burn": False, "ticks": 15, "seconds": seconds}).value
    assert present >= 15
    assert left <= 4


@pytest.mark.parametrize(
    ("language", "code"),
    [
        (
            "python",
            "import atexit\natexit.register(print, '__RAGFLOW_RESULT__:eyJ2YWx1ZSI6MX0=')\ndef main():\n    return 'real'",
        ),
        (
            "nodejs",
            "process.on('exit', () => console.log('__RAGFLOW_RESULT__:eyJ2YWx1ZSI6MX0='));\nfunction main() { return 'real'; }",
        ),
    ],
)
def test_marker_printed_last_does_not_win(service: Service, language: str, code: str) -> None:
    """OD-06: the last marker won."""
    assert service.run(code, language=language).value == "real"


@pytest.mark.parametrize("code", [124, 137, 143, 139])
def test_chosen_exit_code_is_no_limit(service: Service, code: int) -> None:
    """OD-07: 124 was reported as a timeout, 137 as out of memory."""
    answer = service.run(f"import sys\ndef main():\n    sys.exit({code})")
    assert (answer.status, answer.exit_code, answer.resource_limit_type) == ("program_error", code, None)


def test_text_is_no_evidence(service: Service) -> None:
    """OD-08: "Permission denied" was unauthorized_access, "MemoryError" a limit."""
    answer = service.run("def main():\n    open('/etc/shadow')")
    assert (answer.status, answer.unauthorized_access_type) == ("program_error", None)
    assert service.run("def main():\n    raise ValueError('MemoryError')").resource_limit_type is None


def test_promise_that_never_settles_is_an_error(service: Service) -> None:
    """OD-09: it was a success without a result, and a left-over interval burned the whole time limit."""
    never = service.js("function main() { return new Promise(() => {}); }")
    assert (never.status, "never settles" in never.stderr) == ("program_error", True)
    assert never.seconds < 1.5
    interval = service.js("function main() { setInterval(() => {}, 1000); return 'prompt'; }")
    assert interval.value == "prompt"
    assert interval.seconds < 1.5


def test_patched_print_does_not_drop_the_result(service: Service) -> None:
    """OD-10: with the result went everything."""
    assert (
        service.run("import builtins, json\nbuiltins.print = None\njson.dumps = None\ndef main():\n    return 1").value
        == 1
    )
    assert (
        service.js(
            "console.log = null; JSON.stringify = null; Buffer.from = null;\nfunction main() { return 1; }"
        ).value
        == 1
    )


def test_output_is_not_collected_without_bound(service: Service) -> None:
    """OD-11: it was, in the manager's memory."""
    before = service.memory_kb()
    for _ in range(3):
        assert service.run("def main():\n    while True: print('x' * 1000)").verdict[1] == "output"
    assert service.memory_kb() - before < 30 * 1024


def test_containers_are_confined(service: Service) -> None:
    """OD-12: no limit of processes, every capability, a network, a privileged manager."""
    for container in service.containers():
        host = json.loads(docker("inspect", container).stdout)[0]["HostConfig"]
        assert (host["Privileged"], host["NetworkMode"], host["CapDrop"]) == (False, "none", ["ALL"])
        assert host["PidsLimit"] > 0 and host["NanoCpus"] > 0 and host["Memory"] > 0


def test_runs_do_not_share_files_processes_or_uids(service: Service) -> None:
    """OD-13: /tmp, /dev/shm, IPC and processes survived, and everybody was uid 65534. In full in test_leaks.py."""
    first = service.run(
        "import os\ndef main():\n    open('/tmp/left', 'w'); open('/dev/shm/left', 'w')\n    return os.getuid()"
    ).value
    second = service.run(
        "import os\ndef main():\n    return [os.getuid(), os.listdir('/tmp'), os.listdir('/dev/shm')]"
    ).value
    assert first != second[0]
    assert second[1:] == [[], []]


def test_artifacts_folder_is_there_for_node(service: Service) -> None:
    """OD-14: it was not."""
    assert service.js(
        "const fs = require('fs');\nfunction main() { fs.writeFileSync('artifacts/a.csv', '1'); return 1; }"
    ).names == ["a.csv"]


def test_log_holds_nothing_of_callers(service: Service) -> None:
    """OD-14, SF-20: code, arguments and output were logged in clear. The log is searched after every test here; this one
    puts its token in each place where a caller can put one."""
    service.run(f"def main(**kw):\n    print('{CANARY}')\n    return kw", {CANARY: CANARY})
    service.run(f"import sys\ndef main():\n    print('{CANARY}', file=sys.stderr)\n    raise ValueError('{CANARY}')")
    service.js(f"function main() {{ throw new Error('{CANARY}'); }}")
    service.v1(
        f"print('{CANARY}')",
        mode="script",
        stdin=CANARY,
        args=[CANARY],
        env={"A": CANARY},
        files={f"{CANARY}.txt": CANARY},
    )
    service.post("/v1/run", {CANARY: CANARY})
    service.post("/run", {"code_b64": CANARY, "language": CANARY})
    service.request(
        "GET",
        f"/{CANARY}?{CANARY}",
        headers={"X-Api-Key": CANARY, "Authorization": f"Bearer {CANARY}", "User-Agent": CANARY},
    )
    service.request("POST", "/run", CANARY.encode())
    service.run("while True:\n    print(1)", language="python")


def test_source_that_is_not_utf8_is_no_internal_error(service: Service) -> None:
    """OD-15: it was a 500."""
    for source in (
        b"def main():\n    return '\xff\xfe'\n",
        b"\xff\xfed\x00e\x00f\x00",
        b"def main():\n    return 1\n\x00",
    ):
        reply = service.post("/run", {"code_b64": base64.b64encode(source).decode(), "language": "python"})
        assert reply.status == 422


def test_service_without_images_does_not_claim_to_be_ready(runtime: str, tmp_path: pathlib.Path) -> None:
    """OD-16: it started with 0 of N containers, said that it had, and was busy for ever."""
    service = Service(tmp_path, runtime, SANDBOX_LANGUAGES="cobol")
    try:
        try:
            # Refusing to start is as good as saying that it is not ready.
            _start_without_waiting(service)
        except RuntimeError:
            return
        assert service.get("/readyz").status == 503
        assert service.get("/healthz").status == 200
        reply = service.post("/run", {"code_b64": base64.b64encode(b"DISPLAY").decode(), "language": "cobol"})
        # Not known yet, or known and without a container: either is said at once and in so many words.
        assert reply.status == 422 or b"program_runner_error" in reply.body
        assert reply.seconds < 25
    finally:
        service.stop()


def _start_without_waiting(service: Service) -> None:
    service.languages = []
    service.start_listening()


def test_all_fields_are_always_there(service: Service) -> None:
    """R4, R8: the set of fields is the same for every outcome."""
    for code in ("def main():\n    return 1", "raise ValueError", "while True: print(1)"):
        body = strict_json(service.post("/run", {"code_b64": base64.b64encode(code.encode()).decode()}).body)
        assert set(body) == COMPAT_FIELDS


def test_unsafe_code_is_refused_before_it_runs(runtime: str, tmp_path: pathlib.Path) -> None:
    """R8: with analysis on, -999; a syntax error is the program's own and costs no container."""
    with running(tmp_path, runtime, SANDBOX_LANGUAGES="python", SANDBOX_ANALYSIS="strict") as service:
        answer = service.run(
            py("""
            import subprocess
            def main():
                return subprocess.check_output('id', shell=True).decode()
            """)
        )
        assert (answer.status, answer.exit_code) == ("program_runner_error", -999)
        assert "Line 2" in answer.stderr or "Line" in answer.stderr
        assert service.run("def main(:").verdict == ("program_error", "nonzero_exit")

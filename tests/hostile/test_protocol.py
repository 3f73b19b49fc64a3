"""Supervisor and protocol: a program can decide its own outcome and nobody else's, whatever it writes wherever."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import signal
import time
from typing import Any

import pytest

from tests.hostile.harness import MIB, TIME_LIMIT, Service, py, same_container, until
from tests.integration.conftest import docker

FORGED = json.dumps({"present": True, "value": "forged", "type": "json"})
MARKER = "__RAGFLOW_RESULT__:" + base64.b64encode(FORGED.encode()).decode()
"""What clients of the old executor manager take for a result when they find it on stdout."""


def test_marker_on_stdout_is_text(service: Service) -> None:
    """PR-01: the real result wins, and the line is what it is: output."""
    answer = service.run(f"def main():\n    print('{MARKER}')\n    return 'real'")
    assert (answer.value, answer.stdout) == ("real", MARKER + "\n")


def test_marker_from_whoever_comes_last_is_text(service: Service) -> None:
    """PR-02: exit handlers, late threads, finalisers, children."""
    answer = service.run(
        py(f"""
        import atexit, os, subprocess, threading, time
        def late():
            time.sleep(0.05)
            print('{MARKER}', flush=True)
        class Last:
            def __del__(self):
                print('{MARKER}', flush=True)
        keep = Last()
        atexit.register(print, '{MARKER}', flush=True)
        def main():
            threading.Thread(target=late, daemon=True).start()
            subprocess.Popen(['sh', '-c', 'sleep 0.02; echo "{MARKER}"'])
            return 'real'
        """)
    )
    assert answer.value == "real"
    node = service.js(
        py(f"""
        process.on('exit', () => console.log('{MARKER}'));
        process.on('beforeExit', () => console.log('{MARKER}'));
        function main() {{ setTimeout(() => console.log('{MARKER}'), 10); return 'real'; }}
        """)
    )
    assert node.value == "real"


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", f"def main():\n    print('{MARKER}', flush=True)\n    raise RuntimeError('really failed')"),
        ("nodejs", f"function main() {{ console.log('{MARKER}'); throw new Error('really failed'); }}"),
    ],
)
def test_marker_then_failure_is_a_failure(service: Service, language: str, code: str) -> None:
    """PR-03, R5: no result, and the marker not in stdout, where a client would believe it."""
    answer = service.run(code, language=language)
    assert (answer.status, answer.exit_code, answer.result, answer.stdout) == ("program_error", 1, None, "")
    assert "really failed" in answer.stderr


def test_printed_answer_is_no_answer(service: Service) -> None:
    """PR-04: a whole response on stdout, then exit 5."""
    body = json.dumps({"status": "success", "exit_code": 0, "result": {"present": True, "value": 1, "type": "json"}})
    answer = service.run(f"import os\ndef main():\n    print({body!r}, flush=True)\n    os._exit(5)")
    assert (answer.status, answer.exit_code, answer.result) == ("program_error", 5, None)


def test_patched_libraries_do_not_silence_the_report(service: Service) -> None:
    """PR-05: the runner has bound what it needs before it met the program."""
    answer = service.run(
        py("""
        import base64, builtins, io, json, os, struct, sys, threading, atexit, traceback
        liar = lambda *a, **k: '"forged"'
        json.dumps = json.JSONEncoder.encode = json.encoder.encode_basestring = json.encoder.encode_basestring_ascii = liar
        json.JSONEncoder.iterencode = lambda *a, **k: iter(['"forged"'])
        json.encoder.c_make_encoder = None
        struct.pack = struct.Struct = base64.b64encode = liar
        threading._shutdown = atexit._run_exitfuncs = traceback.format_exception = liar
        os._exit = os.write = os.getpid = liar
        for name in ('print', 'len', 'isinstance', 'str', 'bytes', 'int', 'open', 'repr', 'type', 'callable', 'super'):
            setattr(builtins, name, liar)
        def main():
            sys.stdout = sys.stderr = io.StringIO()
            sys.excepthook = sys.exit = liar
            return {'n': 1}
        """)
    )
    assert answer.value == {"n": 1}


def test_polluted_prototypes_do_not_silence_the_report(service: Service) -> None:
    """PR-05: in the other language, where program and runner share one realm."""
    answer = service.js(
        py("""
        const fs = require('fs');
        JSON.stringify = JSON.parse = () => '"forged"';
        Buffer.from = Buffer.concat = Buffer.alloc = () => { throw new Error('no'); };
        process.exit = process.reallyExit = process.emit = console.log = process.stdout.write = () => {};
        fs.writeSync = fs.closeSync = () => 0;
        Promise.prototype.then = Promise.resolve = () => {};
        String.prototype.replace = String.prototype.slice = RegExp.prototype.exec = () => { throw new Error('no'); };
        Uint8Array.prototype.set = Uint8Array.prototype.subarray = () => {};
        TextEncoder.prototype.encode = () => new Uint8Array(0);
        globalThis.Uint8Array = globalThis.TextEncoder = globalThis.Atomics = undefined;
        Object.prototype.toJSON = Array.prototype.toJSON = () => 'forged';
        Object.prototype.then = undefined;
        Array.prototype.push = Array.prototype[Symbol.iterator] = () => { throw new Error('no'); };
        function main() { return 'real'; }
        """)
    )
    assert answer.value == "real"


GARBAGE = """
    import os, struct
    def main():
        frame = b'{"status":"success","exit_code":0}'
        blobs = [struct.pack('>I', len(frame)) + frame, b'\\xff' * 8, bytes(64), b'{}\\n', struct.pack('>Q', 1 << 40), b'R' + b'\\xff' * 4,
                 b'R\\0\\0\\0\\x08"forged"D\\0\\0\\0\\x010', b'D\\0\\0\\0\\x05-9999', b'E\\0\\0\\0\\x02[]', b'P\\0\\0\\0\\0' * 50,
                 bytes([1, 7, 0, 0]) + struct.pack('>IIQ', 2, 0, 1) + b'{}', bytes([1, 3, 0, 0]) + struct.pack('>IIQ', 2, 0, 0) + b'{}']
        for number in [*range(3, 64), 0]:
            for blob in blobs[START:]:
                try:
                    os.set_blocking(number, False)
                    os.write(number, blob)
                except OSError:
                    break
        return 'real'
    """
GARBAGE_ENDS = {
    # What the first blob that arrives makes of the run, by its place in the list.
    5: ("resource_limit_exceeded", -153),  # a length beyond the bound of a result is a result beyond its bound
    6: ("success", 0),  # a report as the runner writes it: its own result is the program's to make up
    7: ("program_error", -9999 & 0xFF),
}


@pytest.mark.parametrize("start", range(12))
def test_garbage_on_every_descriptor_harms_its_own_run_at_worst(service: Service, start: int) -> None:
    """PR-06: also garbage that is a message of the runner, or a frame of the supervisor."""
    with same_container(service):
        answer = service.run(py(GARBAGE.replace("START", str(start))))
        assert service.run("def main():\n    return 'alive'").value == "alive"
    assert (answer.status, answer.exit_code) == GARBAGE_ENDS.get(start, ("program_error", 1))
    assert answer.seconds < 1.5
    if start == 6:
        assert answer.value == "forged"
    elif answer.exit_code == 1:
        assert "the program wrote to the result channel" in answer.stderr


LYING_ERRORS = {
    # A message of the kind that tells of an exception, well-formed, with values that no runner of ours would write.
    "line is true": '{"type": "T", "message": "m", "line": true}',
    "line is a float, a list, beyond 64 bits": '{"type": "T", "message": "m", "line": 1.5, "line": [], "line": 1e30}',
    "line is negative": '{"type": "T", "message": "m", "line": -1}',
    "line has 20 digits": '{"type": "T", "message": "m", "line": 99999999999999999999}',
    "type and message are objects": '{"type": {"a": [1]}, "message": [[[]]], "line": {}}',
    "type and message are numbers": '{"type": NaN, "message": 1e999, "is_memory": 1}',
    "type is a number of 4000 digits": '{"type": ' + "9" * 4000 + ', "message": null}',
    "lone surrogates": '{"type": "\\ud800", "message": "\\udfff\\ud83d", "line": null}',
    "NUL and separators": '{"type": "\\u0000", "message": "\\u2028\\u0085"}',
    "it is the longest": '{"type": "' + "t" * 5000 + '", "message": "' + "m" * 20_000 + '"}',
    "nothing of it is there": "{}",
    "it is a list": "[]",
    "it is deep": '{"type": ' + "[" * 9000 + "]" * 9000 + ', "message": 1}',
}


@pytest.mark.parametrize("name", LYING_ERRORS)
def test_error_that_the_program_made_up_costs_no_container(service: Service, name: str) -> None:
    """PR-06: values of any type, depth and size in a message that is otherwise the runner's: the program's own error reads
    oddly, and the next run is in the same container."""
    program = py("""
        import os, struct
        def main(error):
            data = error.encode()
            os.write(3, struct.pack('>cI', b'E', len(data)) + data + struct.pack('>cI', b'D', 1) + b'5')
            os._exit(6)
        """)
    with same_container(service):
        answer = service.run(program, {"error": LYING_ERRORS[name]})
        assert service.run("def main():\n    return 'alive'").value == "alive"
    # 5 is what it reported before it ended with 6. What is no message of a runner is not read any further.
    assert answer.status == "program_error"
    assert answer.exit_code in (5, 6)


FLOODS_OF_PARKED = {
    # What the parent does while its child goes on; how the run ends.
    "it ends": ("os._exit(0)", ("program_error", 0)),  # having written what only the runner writes
    "it fails": ("os._exit(7)", ("program_error", 7)),
    "it is killed": ("os.kill(os.getpid(), 9)", ("signalled", None)),
    "it goes on": ("while True: pass", ("time_limit", None)),
}


@pytest.mark.parametrize("name", FLOODS_OF_PARKED)
def test_flood_that_never_ends_is_not_waited_for(service: Service, name: str) -> None:
    """PR-06: whoever reads the last words of a process must not read for as long as somebody else writes: a child that
    says for ever that it is parked outlives its parent, whose end is nevertheless told, and told as it was."""
    ending, expected = FLOODS_OF_PARKED[name]
    with same_container(service):
        answer = service.v1(
            py(f"""
            import os, struct, time
            def main():
                if os.fork() == 0:
                    os.setsid()
                    data = struct.pack('>cI', b'P', 0) * 12_000
                    while True:
                        os.write(3, data)
                time.sleep(0.1)
                {ending}
            """),
            limits={"wall_ms": 1000},
        )
    assert answer["run_ms"] + answer["start_ms"] < 1000 + 1500
    assert (answer["outcome"], answer["exit_code"]) == expected


def test_flood_of_the_result_channel_costs_no_memory(service: Service) -> None:
    """PR-06: lengths are checked before anything is allocated."""
    before = service.memory_kb()
    with same_container(service):
        answer = service.run(
            py("""
            import os, struct, time
            def main():
                stop = time.monotonic() + 2
                for number in range(3, 64):
                    try:
                        os.write(number, struct.pack('>cI', b'R', (1 << 20) - 1))
                        while time.monotonic() < stop:
                            os.write(number, b'A' * 65536)
                    except OSError:
                        continue
                return 'real'
            """)
        )
    assert answer.seconds < 2.5
    assert answer.size < MIB
    assert service.memory_kb() - before < 30 * 1024


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "import os\ndef main():\n    os.closerange(0, 64)\n    return 1"),
        (
            "python",
            "import os\ndef main():\n    null = os.open('/dev/null', os.O_RDWR)\n    [os.dup2(null, n) for n in range(64)]\n    return 1",
        ),
        (
            "python",
            "import os\ndef main():\n    a, b = os.pipe()\n    [os.dup2(b, n) for n in range(3)]\n    os.dup2(b, 3)\n    return 1",
        ),
        (
            "nodejs",
            "const fs = require('fs');\nfunction main() { for (const n of [0, 1, 2, 3]) { try { fs.closeSync(n); } catch {} } return 1; }",
        ),
    ],
)
def test_program_without_descriptors_ends(service: Service, language: str, code: str) -> None:
    """PR-07: closed, or led elsewhere: the end that it had, without the result, whose pipe is gone; the next run is fine."""
    with same_container(service, language):
        answer = service.run(code, language=language)
    assert (answer.status, answer.exit_code, answer.result) == ("success", 0, None)
    assert answer.seconds < 1.5


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "import os, sys\ndef main():\n    sys.stdout.close()\n    os.close(2)\n    return 'kept'"),
        ("nodejs", "function main() { require('fs').closeSync(1); return 'kept'; }"),
    ],
)
def test_result_needs_no_stdout(service: Service, language: str, code: str) -> None:
    """PR-08: it has a channel of its own."""
    assert service.run(code, language=language).value == "kept"


def test_supervisor_cannot_be_signalled(service: Service) -> None:
    """PR-09: neither PID 1 nor the parent, with anything."""
    with same_container(service):
        reached = service.run(
            py("""
            import os, signal
            def main():
                reached = []
                for pid in {1, os.getppid()} - {0}:
                    for number in range(1, 65):
                        try:
                            os.kill(pid, number)
                            reached.append([pid, number])
                        except (ProcessLookupError, PermissionError, OSError):
                            pass
                return reached
            """)
        ).value
    assert reached == []


@pytest.mark.parametrize("target", ["os.killpg(0, 9)", "os.kill(0, 9)", "os.killpg(os.getpgid(0), 15)"])
def test_killing_the_group_kills_oneself(service: Service, target: str) -> None:
    """PR-10: the supervisor and the templates are not in the group."""
    with same_container(service):
        answer = service.run(f"import os, time\ndef main():\n    {target}\n    time.sleep(60)")
    assert answer.verdict == ("runtime_error", "signalled")
    assert answer.exit_code in (128 + 9, 128 + 15)


def test_killing_everybody_reaches_nobody_else(service: Service) -> None:
    """PR-10: whoever may be signalled is one's own, and the kernels of both runtimes spare the caller itself."""
    with same_container(service):
        answer = service.run(
            py("""
            import os, time
            def main():
                children = []
                for _ in range(3):
                    if (pid := os.fork()) == 0:
                        time.sleep(60)
                    children.append(pid)
                os.kill(-1, 9)
                return [os.waitpid(pid, 0)[1] for pid in children]
            """)
        )
    assert answer.value == [9, 9, 9]


def test_supervisor_cannot_be_limited(service: Service) -> None:
    """PR-11: its limits, its processors and its priority are not a program's to set."""
    done = service.run(
        py("""
        import os, resource
        def main():
            done = []
            for pid in {1, os.getppid()} - {0}:
                for name, attempt in (('prlimit', lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 3))),
                                      ('affinity', lambda: os.sched_setaffinity(pid, {0})),
                                      ('nice', lambda: os.setpriority(os.PRIO_PROCESS, pid, 19)),
                                      ('policy', lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)))):
                    try:
                        attempt()
                        done.append([pid, name])
                    except OSError:
                        pass
            return done
        """)
    ).value
    if service.runtime == "runsc":
        # Numbers there and nothing else; whoever changes the supervisor's has spent the container.
        done = [entry for entry in done if entry[1] == "prlimit"]
    assert done == []


@pytest.mark.parametrize(
    ("part", "expected"), [("frames", ("program_error", 1, None)), ("objects", ("program_error", 111, None))]
)
def test_runner_that_is_taken_apart_loses_its_own_result_at_worst(
    service: Service, part: str, expected: tuple[str, int, None]
) -> None:
    """PR-12: frames, objects, files and sockets."""
    with same_container(service):
        answer = service.run(
            py("""
            import gc, os, sys
            WORDS = ('result', 'write', 'emit', 'send', 'frame', 'pipe', 'report', 'fd', 'exit')
            def main(part):
                frames, frame = [], sys._getframe().f_back
                while frame is not None:
                    frames.append(frame)
                    frame = frame.f_back
                count = 0
                for frame in frames if part == 'frames' else ():
                    for scope in (frame.f_globals, frame.f_locals):
                        for name in list(scope):
                            if any(word in name.lower() for word in WORDS):
                                scope[name] = None
                                count += 1
                for item in gc.get_objects() if part == 'objects' else ():
                    if type(item).__name__ in ('FileIO', 'socket', '_Run'):
                        try:
                            item.close() if hasattr(item, 'close') else item.__dict__.clear()
                            count += 1
                        except Exception:
                            pass
                print(count, flush=True)
                return 'tampered'
            """),
            {"part": part},
        )
        assert service.run("def main():\n    return 'next'").value == "next"
    assert (answer.status, answer.exit_code, answer.result) == expected
    assert answer.seconds < 1.5


def test_two_returns_from_main_are_one_answer(service: Service) -> None:
    """PR-13: a fork comes back out of main too; neither it nor its frames reach the next run."""
    with same_container(service):
        for _ in range(3):
            answer = service.run(
                "import os\ndef main():\n    pid = os.fork()\n    return 'child' if pid == 0 else 'parent'"
            )
            assert answer.value == "parent"
            assert service.run("def main():\n    return 'next'").value == "next"
        orphan = service.run(
            "import os, time\ndef main():\n    if os.fork() == 0:\n        time.sleep(0.2)\n        return 'late child'\n    return 'parent'"
        )
        assert orphan.value == "parent"
        assert service.run("import time\ndef main():\n    time.sleep(0.4)\n    return 'next'").value == "next"


def test_process_replaced_by_another_program_ends_with_it(service: Service) -> None:
    """PR-14: no result, no hang; its exit code is the run's."""
    answer = service.run("import os\ndef main():\n    os.execv('/bin/sh', ['sh', '-c', 'echo out; exit 7'])")
    assert (answer.status, answer.exit_code, answer.result) == ("program_error", 7, None)
    assert answer.seconds < TIME_LIMIT


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "import subprocess\ndef main():\n    subprocess.Popen(['sleep', '120'])\n    return 'prompt'"),
        (
            "nodejs",
            "function main() { require('child_process').spawn('sleep', ['120'], { stdio: 'inherit' }); return 'prompt'; }",
        ),
    ],
)
def test_orphan_that_holds_stdout_delays_nobody(service: Service, language: str, code: str) -> None:
    """PR-15: the answer comes at the end of main."""
    answer = service.run(code, language=language)
    assert answer.value == "prompt"
    assert answer.seconds < 1.5


def test_last_line_before_the_exit_is_never_lost(wide_service: Service) -> None:
    """PR-16: 80 quick runs, 20 at a time, each with its last words just before the end."""

    def one(number: int) -> tuple[Any, str]:
        answer = wide_service.run(
            "import sys\ndef main(n):\n    print('x' * 5000)\n    sys.stdout.write('last %d' % n)\n    return n",
            {"n": number},
        )
        return answer.value, answer.stdout[-len(f"last {number}") :]

    with concurrent.futures.ThreadPoolExecutor(20) as threads:
        assert list(threads.map(one, range(80))) == [(number, f"last {number}") for number in range(80)]


@pytest.mark.parametrize(
    ("language", "code"),
    [
        (
            "python",
            "import os, sys\ndef main():\n    return [os.read(0, 100).decode(), sys.stdin.read(), open('/dev/stdin').read()]",
        ),
        (
            "nodejs",
            "const fs = require('fs');\nfunction main() { return [fs.readFileSync(0, 'utf8'), fs.readFileSync('/dev/stdin', 'utf8'), '']; }",
        ),
    ],
)
def test_stdin_is_empty(service: Service, language: str, code: str) -> None:
    """PR-17: end of file at once, and never the stream of the supervisor."""
    answer = service.run(code, language=language)
    assert answer.value == ["", "", ""]
    assert answer.seconds < 1.5


def test_input_raises_eof(service: Service) -> None:
    """PR-17: input() is an ordinary error of the program."""
    answer = service.run("def main():\n    return input('?')")
    assert (answer.status, "EOFError" in answer.stderr) == ("program_error", True)


@pytest.mark.parametrize("language", ["python", "nodejs"])
def test_bytes_that_mean_something_to_somebody_pass_through(service: Service, language: str) -> None:
    """PR-18: detach keys, line ends, lengths that look like four GiB, escape sequences."""
    text = "\x10\x11\x03\x04\x1a\x1b[2J\r\n\xff\xff\xff\xff\x01\x00\x00\x00\x00\x00\x00\x08" + "\x10\x11" * 50
    code = {
        "python": f"# \x10\x11\x1a\ndef main(s):\n    print(s, end='')\n    return [s, {text!r}]",
        "nodejs": f"// \x10\x11\x1a\nfunction main({{s}}) {{ process.stdout.write(s); return [s, {json.dumps(text)}]; }}",
    }
    answer = service.run(code[language], {"s": text}, language)
    assert (answer.value, answer.stdout) == ([text, text], text)


def test_container_that_dies_in_a_run_is_answered_and_replaced(service: Service) -> None:
    """PR-23, PR-22: killed from outside: the caller hears of it within a second or so, and the next one of nothing."""
    before = service.containers("python")
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        started = time.monotonic()
        run = threads.submit(service.run, "import time\ndef main():\n    time.sleep(60)")
        if service.runtime == "runc":
            until(lambda: any(row[1] and "sleep" not in row[2] for row in service.top(before[0])))
        time.sleep(0.3)
        docker("kill", "--signal", "KILL", before[0])
        killed = time.monotonic()
        answer = run.result(20)
    assert (answer.status, answer.exit_code) == ("program_runner_error", -3)
    assert time.monotonic() - killed < 1.5
    assert answer.seconds < killed - started + 1.5
    until(lambda: service.containers("python") not in (before, []), 20)
    assert service.run("def main():\n    return 'next'").value == "next"


def test_idle_container_that_dies_is_noticed_by_nobody(service: Service) -> None:
    """PR-23: the run that would have met it is tried on another, since its program had not started."""
    docker("kill", *service.containers("python"))
    assert service.run("def main():\n    return 'next'").value == "next"


EXITS = {
    "import sys\ndef main():\n    sys.exit(3)": ("program_error", 3),
    "import sys\ndef main():\n    sys.exit(124)": ("program_error", 124),
    "import sys\ndef main():\n    sys.exit(137)": ("program_error", 137),
    "import sys\ndef main():\n    sys.exit(143)": ("program_error", 143),
    "import sys\ndef main():\n    sys.exit('text')": ("program_error", 1),
    "import sys\ndef main():\n    sys.exit(-1)": ("program_error", 255),
    "import os\ndef main():\n    os._exit(7)": ("program_error", 7),
    "import os\ndef main():\n    os._exit(124)": ("program_error", 124),
    "def main():\n    raise KeyboardInterrupt": ("program_error", 1),
    "def main():\n    raise BaseException": ("program_error", 1),
    "import os\ndef main():\n    os.kill(os.getpid(), 9)": ("runtime_error", 137),
    "import os\ndef main():\n    os.kill(os.getpid(), 11)": ("runtime_error", 139),
    "import os\ndef main():\n    os.abort()": ("runtime_error", 134),
    "import os\ndef main():\n    os.kill(os.getpid(), 7)": ("runtime_error", 135),
    "import os\ndef main():\n    os.kill(os.getpid(), 31)": ("runtime_error", 159),
    "import os\ndef main():\n    os.kill(os.getpid(), 15)": ("runtime_error", 143),
    "import os\ndef main():\n    os.kill(os.getpid(), 24)": ("runtime_error", 152),
    "import ctypes\ndef main():\n    ctypes.string_at(0)": ("runtime_error", 139),
}
JS_EXITS = {
    "function main() { process.exit(3); }": ("program_error", 3),
    "function main() { process.exit(124); }": ("program_error", 124),
    "function main() { process.exit(137); }": ("program_error", 137),
    "function main() { process.abort(); }": ("runtime_error", 134),
    "function main() { process.kill(process.pid, 'SIGKILL'); for (;;); }": ("runtime_error", 137),
    "function main() { process.exitCode = 9; throw new Error('x'); }": ("program_error", 1),
}


@pytest.mark.parametrize(
    ("language", "code", "expected"),
    [("python", code, expected) for code, expected in EXITS.items()]
    + [("nodejs", code, expected) for code, expected in JS_EXITS.items()],
)
def test_end_is_what_the_program_made_it(service: Service, language: str, code: str, expected: tuple[str, int]) -> None:
    """PR-24: its own code verbatim, signals as signals, and never mistaken for a limit."""
    answer = service.run(code, language=language)
    assert (answer.status, answer.exit_code, answer.resource_limit_type) == (*expected, None)
    assert answer.runtime_error_type == ("signalled" if expected[0] == "runtime_error" else "nonzero_exit")


@pytest.mark.parametrize(
    "words",
    [
        "Permission denied",
        "Operation not permitted",
        "MemoryError",
        "Killed",
        "Out of memory",
        "timeout",
        "seccomp",
        "Terminated",
    ],
)
def test_words_classify_nothing(service: Service, words: str) -> None:
    """PR-25: neither in an exception nor on stderr."""
    for code in (
        f"def main():\n    raise ValueError('{words}')",
        f"import sys\ndef main():\n    print('{words}', file=sys.stderr)\n    sys.exit(2)",
    ):
        answer = service.run(code)
        assert (answer.status, answer.resource_limit_type, answer.unauthorized_access_type) == (
            "program_error",
            None,
            None,
        )


ABSENT = object()
RESULTS: dict[str, tuple[str, Any]] = {
    "set": ("return {1}", ABSENT),
    "bytes": ("return b'x'", ABSENT),
    "generator": ("yield 1", ABSENT),
    "lambda": ("return lambda: 1", ABSENT),
    "nan": ("return float('nan')", ABSENT),
    "infinity": ("return [float('inf')]", ABSENT),
    "tuple key": ("return {(1, 2): 3}", ABSENT),
    "bytes key": ("return {b'a': 3}", ABSENT),
    "cycle": ("x = []; x.append(x); return x", ABSENT),
    "object": ("return object()", ABSENT),
    "complex": ("return 1j", ABSENT),
    "huge integer": ("return 10 ** 6000", ABSENT),
    "tuple": ("return (1, (2,))", [1, [2]]),
    "integer keys": ("return {1: 'a', None: 'b', True: 'c'}", {"true": "c", "null": "b"}),
    "numpy scalar": ("import numpy; return [numpy.int64(5), numpy.float32(0.5), numpy.bool_(True)]", [5, 0.5, True]),
    "numpy array": ("import numpy; return numpy.arange(3)", [0, 1, 2]),
    "control characters": (
        "return ''.join(map(chr, range(32))) + '\\x7f\\x85\\u2028\\u2029\\ufeff'",
        "".join(map(chr, range(32))) + "\x7f\x85\u2028\u2029\ufeff",
    ),
    "big integer": ("return 2 ** 64", 2**64),
    "empty": ("return [{}, [], '', 0, -0.0, None, False]", [{}, [], "", 0, -0.0, None, False]),
    "nothing": ("pass", None),
}


@pytest.mark.parametrize("name", RESULTS)
def test_result_is_strict_json_or_an_error(service: Service, name: str) -> None:
    """PR-26, R4: whatever main returns; the client of the harness refuses anything else."""
    body, expected = RESULTS[name]
    answer = service.run(f"def main():\n    {body}")
    if expected is ABSENT:
        assert (answer.status, answer.exit_code) == ("program_error", 1)
    elif name == "integer keys":
        assert answer.value in ({"1": "c", "null": "b"}, {"1": "a", "null": "b", "true": "c"}, expected)
    else:
        assert answer.value == expected


@pytest.mark.parametrize(
    ("type_name", "body"),
    [("set", "return {'a': {1}}"), ("Custom", "class Custom: pass\n    return [Custom()]"), ("bytes", "return [b'x']")],
)
def test_error_names_the_type_that_is_no_json(service: Service, type_name: str, body: str) -> None:
    """PR-26: so that the author knows what to change."""
    assert type_name in service.run(f"def main():\n    {body}").stderr


@pytest.mark.parametrize("depth", [100, 200, 201, 900, 5000, 20000, 200000])
def test_depth_of_results_is_bounded(service: Service, depth: int) -> None:
    """PR-26, R4: Go stops at 10000 levels, Python near 1000; what is within our 200 arrives."""
    answer = service.run(
        f"import sys\nsys.setrecursionlimit(10 ** 6)\ndef main():\n    value = None\n    for _ in range({depth}):\n        value = [value]\n    return value"
    )
    assert (answer.status, answer.exit_code) == (("success", 0) if depth <= 200 else ("program_error", 1))


def test_lone_surrogate_does_not_break_the_answer(service: Service) -> None:
    """PR-26, R4: in a result, a key, on stdout, in an exception, in both languages."""
    for code in (
        "def main():\n    return 'bad \\ud800 tail'",
        "def main():\n    return {'\\udc00': 1}",
        "def main():\n    raise ValueError('\\ud800')",
        "import sys\ndef main():\n    sys.stdout.reconfigure(errors='surrogatepass')\n    print('\\ud800')\n    return 1",
    ):
        assert service.run(code).status in ("success", "program_error")
    assert service.js("function main() { return ['\\ud800', { '\\udc00': 1 }]; }").status in (
        "success",
        "program_error",
    )
    assert service.js("function main() { throw new Error('\\ud800'); }").status == "program_error"


JS_RESULTS: dict[str, tuple[str, Any]] = {
    "BigInt": ("return { big: 10n ** 30n };", ABSENT),
    "function": ("return () => 1;", ABSENT),
    "symbol": ("return Symbol('x');", ABSENT),
    "undefined": ("", ABSENT),
    "cycle": ("const x = {}; x.x = x; return x;", ABSENT),
    "throwing toJSON": ("return { toJSON() { throw new Error('no'); } };", ABSENT),
    "throwing getter": ("return { get x() { throw new Error('no'); } };", ABSENT),
    "proxy": ("return new Proxy({}, { ownKeys() { throw new Error('no'); } });", ABSENT),
    "toJSON that gives undefined": ("return { toJSON() {} };", ABSENT),
    "null": ("return null;", None),
    "Map, Date, NaN, undefined in a list": (
        "return [new Map([[1, 2]]), new Date(0), NaN, undefined];",
        [{}, "1970-01-01T00:00:00.000Z", None, None],
    ),
    "thenable": ("return { then(ok) { ok('settled'); } };", "settled"),
    "promise": ("return Promise.resolve({ a: 1 });", {"a": 1}),
    "typed array": ("return new Uint8Array([1, 2]);", {"0": 1, "1": 2}),
}


@pytest.mark.parametrize("name", JS_RESULTS)
def test_javascript_result_is_strict_json_or_an_error(service: Service, name: str) -> None:
    """PR-26, R7: as JSON.stringify has it; undefined is an error that says so."""
    body, expected = JS_RESULTS[name]
    answer = service.js(f"function main() {{ {body} }}")
    if expected is ABSENT:
        assert (answer.status, answer.exit_code) == ("program_error", 1)
    else:
        assert answer.value == expected


OUTPUTS: dict[str, tuple[str, str]] = {
    "no line end": ("print('a', end='')", "a"),
    "odd line ends": (
        "print('a\\r\\nb\\rc\\x0bd\\x0ce\\x1cf\\x1dg\\x1eh\\x85i\\u2028j\\u2029k', end='')",
        "a\r\nb\rc\x0bd\x0ce\x1cf\x1dg\x1eh\x85i\u2028j\u2029k",
    ),
    "invalid UTF-8": ("import os; os.write(1, b'a\\xffb\\xc3(')", "a\ufffdb\ufffd("),
    "character split over writes": (
        "import os, time\n    for b in '🐍'.encode():\n        os.write(1, bytes([b])); time.sleep(0.01)",
        "🐍",
    ),
    "NUL": ("print('a\\0b', end='')", "a\0b"),
    "unflushed": ("import sys; sys.stdout.write('kept')", "kept"),
    "through a child": ("import subprocess; subprocess.run(['printf', 'child'])", "child"),
    "half a mebibyte": ("print('z' * 524287)", "z" * 524287 + "\n"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_is_exact(service: Service, name: str) -> None:
    """PR-27, OD-02, OD-03: byte for byte; only what is not UTF-8 becomes U+FFFD."""
    body, expected = OUTPUTS[name]
    answer = service.run(f"def main():\n    {body}\n    return 'done'")
    assert (answer.value, answer.stdout) == ("done", expected)


def test_native_and_buffered_output_are_both_there(service: Service) -> None:
    """PR-27: in the order in which they were written to the descriptor."""
    answer = service.run(
        "import os\ndef main():\n    print('first', flush=True)\n    os.write(1, b'second\\n')\n    print('third')\n    return 1"
    )
    assert answer.stdout == "first\nsecond\nthird\n"


@pytest.mark.parametrize(
    "write",
    [
        "process.stdout.write('y'.repeat(300000));",
        "for (let i = 0; i < 3000; i++) console.log('y'.repeat(99));",
        "await new Promise((ok) => process.stdout.write('y'.repeat(300000), ok));",
        "process.stdout.write('y'.repeat(299999)); setTimeout(() => {}, 50); process.stdout.write('y');",
        "require('fs').writeSync(1, 'y'.repeat(60000)); process.stdout.write('y'.repeat(240000));",
    ],
)
def test_output_of_node_beyond_one_pipe_is_not_lost(service: Service, write: str) -> None:
    """PR-27: node queues what a pipe does not take at once; the end of main must not cut it off."""
    answer = service.js(f"async function main() {{ {write} return 1; }}")
    assert answer.value == 1
    assert len(answer.stdout) == 300000


SEMANTICS: dict[str, tuple[str, Any]] = {
    "guard is not run": ("ran = []\ndef main():\n    return ran\nif __name__ == '__main__':\n    ran.append(1)", []),
    "future import first": (
        '"""doc"""\nfrom __future__ import annotations\ndef main() -> Nonexistent:\n    return 1',
        1,
    ),
    "dataclass": (
        "from __future__ import annotations\nfrom dataclasses import dataclass, asdict\n@dataclass\nclass A:\n    x: int\ndef main():\n    return asdict(A(1))",
        {"x": 1},
    ),
    "pickle": ("import pickle\nclass A:\n    x = 1\ndef main():\n    return pickle.loads(pickle.dumps(A())).x", 1),
    "source": ("import inspect\ndef main():\n    return inspect.getsource(main).startswith('def main')", True),
    "byte order mark": ("\ufeffdef main():\n    return 'bom'", "bom"),
    "carriage returns": ("def main():\r\n    x = 1\r\n    return x + 1\r\n", 2),
    "coding cookie": ("# -*- coding: latin-1 -*-\ndef main():\n    return 'x'", "x"),
    "globals": ("def main():\n    return sorted(n for n in globals() if not n.startswith('__'))", ["main"]),
    "async main": ("import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    return 'awaited'", "awaited"),
    "process pool": (
        "import multiprocessing as mp\ndef cube(v):\n    return v ** 3\ndef main():\n    with mp.get_context('fork').Pool(2) as pool:\n        return pool.map(cube, [1, 2, 3])",
        [1, 8, 27],
    ),
    "executor": (
        "from concurrent.futures import ThreadPoolExecutor as T\ndef main():\n    with T(4) as t:\n        return list(t.map(lambda v: v * v, range(4)))",
        [0, 1, 4, 9],
    ),
    "typed dict and enum": (
        "import enum\nclass C(str, enum.Enum):\n    RED = 'red'\ndef main():\n    return [C.RED]",
        ["red"],
    ),
}


@pytest.mark.parametrize("name", SEMANTICS)
def test_python_means_what_it_means_elsewhere(service: Service, name: str) -> None:
    """PR-28: isolation must not be seen by honest programs."""
    code, expected = SEMANTICS[name]
    assert service.run(code.encode()).value == expected


@pytest.mark.parametrize("code", ["", "   \n", "# only a comment\n"])
def test_program_without_main_is_an_error(service: Service, code: str) -> None:
    """PR-28, AP-01: it says what is missing; no source at all is a malformed request."""
    reply = service.post("/run", {"code_b64": base64.b64encode(code.encode()).decode(), "language": "python"})
    assert reply.status == (200 if code else 422)
    assert (b"defines no function named main" if code else b"must not be empty") in reply.body


JS_SEMANTICS = {
    "plain function": ("function main() { return 1; }", 1),
    "module.exports": ("module.exports = { main: () => 2 };", 2),
    "exports is the function": ("module.exports = () => 3;", 3),
    "const arrow": ("const main = () => 4;", 4),
    "async": ("async function main() { await null; return 5; }", 5),
    "export function": ("export function main() { return 6; }", 6),
    "export default": ("export default function () { return 7; }", 7),
    "import": ("import { sep } from 'node:path';\nexport const main = () => sep;", "/"),
    "top-level await": ("const x = await Promise.resolve(8);\nexport function main() { return x; }", 8),
    "strict": ("'use strict';\nfunction main() { return (function () { return this === undefined; })(); }", True),
    "class": ("class A { #x = 9; get() { return this.#x; } }\nfunction main() { return new A().get(); }", 9),
    "require": ("const axios = require('axios');\nfunction main() { return typeof axios.get; }", "function"),
    "worker threads": (
        "const { Worker } = require('worker_threads');\nfunction main() { return new Promise((ok) => new Worker('require(\"worker_threads\").parentPort.postMessage(10)', { eval: true }).on('message', ok)); }",
        10,
    ),
    "byte order mark": ("\ufefffunction main() { return 11; }", 11),
    "argument is one object": ("function main(args) { return [arguments.length, typeof args]; }", [1, "object"]),
}


@pytest.mark.parametrize("name", JS_SEMANTICS)
def test_javascript_means_what_it_means_elsewhere(service: Service, name: str) -> None:
    """PR-28, R7: classic and ES modules, promises, workers."""
    code, expected = JS_SEMANTICS[name]
    assert service.js(code).value == expected


def test_templates_carry_nothing_into_a_run(service: Service) -> None:
    """PR-29: no threads, exit handlers, log handlers, signal handlers or arguments of whatever was loaded before the fork:
    a run has what an interpreter has that was started for it and imported the same."""
    probe = """
        import atexit, gc, logging, os, signal, subprocess, sys, threading
        LOOK = '''
        import atexit, logging
        USES
        names = [n for n, l in logging.root.manager.loggerDict.items() if getattr(l, 'handlers', None)]
        print(atexit._ncallbacks(), len(logging.getLogger().handlers), names)
        '''
        def main():
            names = [n for n, l in logging.root.manager.loggerDict.items() if getattr(l, 'handlers', None)]
            ours = f'{atexit._ncallbacks()} {len(logging.getLogger().handlers)} {names}'
            code = '\\n'.join(line.strip() for line in LOOK.splitlines())
            fresh = subprocess.run([sys.executable, '-I', '-c', code], capture_output=True, text=True)
            handled = [n for n in range(1, 32) if callable(signal.getsignal(n)) and n != signal.SIGINT]
            return {'threads': [len(os.listdir('/proc/self/task')), threading.active_count()], 'ours': ours,
                    'fresh': fresh.stdout.strip() + fresh.stderr, 'gc': gc.isenabled(), 'frozen': gc.get_freeze_count() > 5000,
                    'blas': os.environ.get('OPENBLAS_NUM_THREADS'), 'argv': sys.argv, 'isolated': sys.flags.isolated,
                    'signals': handled, 'wakeup': signal.set_wakeup_fd(-1),
                    'supervisor': sorted(m for m in sys.modules if m.startswith('supervisor'))}
        """
    for uses in ("", "import pandas\n", "import matplotlib.pyplot\n"):
        found = service.run(uses + py(probe.replace("USES", uses.strip()))).value
        assert found.pop("ours") == found.pop("fresh")
        assert found == {
            "threads": [1, 1],
            "gc": True,
            "frozen": True,
            "blas": "1",
            "argv": ["main.py"],
            "isolated": 1,
            "signals": [],
            "wakeup": -1,
            # What forks a process and makes it nobody; none of it ever sees a request.
            "supervisor": ["supervisor", "supervisor.channel", "supervisor.layout", "supervisor.user_process"],
        }


def test_numbers_are_crunched_in_every_fork(service: Service) -> None:
    """PR-29: BLAS in a fork of a process that loaded it; a pool of threads that did not survive would hang here."""
    answer = service.run(
        "import numpy as np\ndef main():\n    a = np.ones((300, 300))\n    return float(np.linalg.inv(a @ a + np.eye(300)).shape[0])"
    )
    assert answer.value == 300.0


def test_signals_of_the_terminal_do_not_exist(service: Service) -> None:
    """PR-09, PR-18: no controlling terminal, no job control to reach anybody by."""
    answer = service.run(
        "import os\ndef main():\n    try:\n        os.open('/dev/tty', os.O_RDWR)\n        return 'tty'\n    except OSError as error:\n        return error.errno"
    )
    assert answer.value in (6, 2, 5, 13)
    assert signal.SIGHUP.value == 1


# What the parsers on both sides make of bytes that no program of ours would write is shown without a container:
# PR-19 (handshake), PR-20 (splits), PR-21 (slow reader), PR-22 (wrong frames) in tests/unit/test_frames.py,
# tests/unit/test_docker_sandbox.py and tests/supervisor. Here is the whole of it, end to end.


def test_answer_of_the_largest_kind_arrives_whole(service: Service) -> None:
    """PR-20, PR-21: a mebibyte of result and one of output cross the engine's stream in many pieces; so does the source."""
    source = "def main(pad):\n    print('o' * 1000000)\n    return 'r' * 1000000\n" + "# padding\n" * 100_000
    answer = service.run(source.encode(), {"pad": "p" * 1_000_000})
    assert (len(answer.value), len(answer.stdout)) == (1_000_000, 1_000_001)
    assert service.run(f"def main():\n    return {'x' * 10!r}").value == "x" * 10


def test_handshake_is_with_this_container(service: Service) -> None:
    """PR-19: what a program prints before, while and after anything starts is never read as a greeting."""
    hello = base64.b64encode(bytes([1, 2, 0, 0]) + (2).to_bytes(4, "big") + bytes(12) + b"{}").decode()
    with same_container(service):
        answer = service.run(
            f"import base64, os\ndata = base64.b64decode('{hello}')\nos.write(1, data)\nos.write(2, data)\ndef main():\n    return 1"
        )
    assert answer.value == 1

"""What the supervisor and the Python runner report about programs; no container is needed for that."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time

import pytest

from sandbox_svc.runtime.protocol import MAX_FRAMES
from tests.supervisor.conftest import Answer, SupervisorProcess


def value(answer: Answer) -> object:
    assert (answer.head.exit_code, answer.head.limit, answer.head.error) == (0, None, None)
    assert answer.result is not None
    return json.loads(answer.result)


def test_main_gets_arguments_by_name_and_its_value_comes_back(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("def main(a, b):\n    print('out')\n    return {'sum': a + b}", {"a": 2, "b": 40})
    assert value(answer) == {"sum": 42}
    assert answer.stdout == b"out\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def main():\n    return None", None),
        ("async def main():\n    return 'awaited'", "awaited"),
        (
            "def main():\n    return (1, [2.5, True], {'k': None, 3: 'int key'})",
            [1, [2.5, True], {"k": None, "3": "int key"}],
        ),
        ("import sys\nclass S(str):\n    __str__ = None\ndef main():\n    return S('plain')", "plain"),
        ("def main():\n    return 10**30", 10**30),
        ("def main():\n    return __name__, __file__.endswith('/workspace/main.py')", ["main", True]),
        (
            "import inspect\ndef main():\n    return inspect.getsource(main)",
            "def main():\n    return inspect.getsource(main)\n",
        ),
        ("import os\ndef main():\n    return os.listdir('.')", ["artifacts"]),
        ("import sys\ndef main():\n    return sys.stdin.read()", ""),
        (
            "def main():\n    return {'\\ud83d': ['a\\udc00b', '\\ud83d\\ude00']}",
            {"\ufffd": ["a\ufffdb", "\U0001f600"]},
        ),
    ],
)
def test_values(supervisor: SupervisorProcess, code: str, expected: object) -> None:
    assert value(supervisor.run(code)) == expected


@pytest.mark.parametrize(
    ("code", "type_names", "words"),
    [
        ("def main():\n    return 1 / 0", "ZeroDivisionError", b"main.py"),
        (
            "def main():\n    return {1, 2}",
            "TypeError",
            b"the result of main is no JSON: it contains an object of type set",
        ),
        ("def main():\n    return {(1, 2): 3}", "TypeError", b"the result of main is no JSON: keys must be str"),
        ("def main():\n    return float('nan')", "ValueError", b"the result of main is no JSON: Out of range"),
        (
            "class Own(dict):\n    def items(self): raise ValueError('mine')\ndef main():\n    return Own(a=1)",
            "ValueError",
            b"\nValueError: mine\n",
        ),
        ("def main():\n    a = []\n    a.append(a)\n    return a", "ValueError", b"ircular"),
        ("def main():\n    return 10**6000", "ValueError", b"digits"),
        (
            "def main():\n    v = None\n    for _ in range(5000):\n        v = [v]\n    return v",
            "RecursionError",
            b"recursion",
        ),
        ("x = 1", "Error", b"main"),
        ("def main(:", "SyntaxError", b"main.py"),
        (b"def main():\n    return '\xff\xfe'", "SyntaxError", b"utf-8"),
        (b"def main():\n    return 1\0", ("SyntaxError", "ValueError"), b"null"),
        ("def main(a): pass", "TypeError", b"argument"),
        ("raise LookupError('while loading')", "LookupError", b"while loading"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\ndef main(): raise E()", "E", b"E"),
        ("def main(): raise KeyboardInterrupt", "KeyboardInterrupt", b"KeyboardInterrupt"),
    ],
)
def test_exceptions_end_with_status_one_and_a_traceback(
    supervisor: SupervisorProcess, code: str, type_names: str | tuple[str, ...], words: bytes
) -> None:
    answer = supervisor.run(code)
    assert answer.head.error is not None
    assert (answer.head.exit_code, answer.result) == (1, None)
    assert answer.head.error.type in ((type_names,) if isinstance(type_names, str) else type_names)
    assert words in answer.stderr
    assert b"runner.py" not in answer.stderr


BAD_NAME = """
class Meta(type):
    __name__ = property(lambda cls: 1 / 0)
class Bad(Exception, metaclass=Meta):
    pass
def main():
    raise Bad
"""
BAD_PLACE = """
def main():
    error = SyntaxError('x')
    error.filename, error.lineno = __file__, object()
    raise error
"""
BAD_EXIT = """
import sys
class Bad:
    def __str__(self): raise ValueError('mine')
def main():
    sys.exit(Bad())
"""
BAD_NUMBER = """
import sys
class Bad(int):
    def __and__(self, other): return 'x'
def main():
    sys.exit(Bad(300))
"""


@pytest.mark.parametrize(
    ("code", "exit_code", "has_error"),
    [(BAD_NAME, 1, True), (BAD_PLACE, 1, True), (BAD_EXIT, 1, False), (BAD_NUMBER, 44, False)],
)
def test_what_cannot_be_shown_is_the_programs_error(
    supervisor: SupervisorProcess, code: str, exit_code: int, has_error: bool
) -> None:
    """They were said to be processes that had not started, with status 111."""
    answer = supervisor.run(code)
    assert (answer.head.exit_code, answer.head.error is not None) == (exit_code, has_error)
    assert b"not started" not in answer.stderr


def test_lines_are_those_of_the_compiler(supervisor: SupervisorProcess) -> None:
    """Form feeds and U+2028 end no line for it, and the text that is shown has to belong to the number."""
    answer = supervisor.run("TEXT = '\x0c\x0b\x85\u2028'\r\ndef main():\r\n    return 1 / 0  # here\n")
    assert frames(answer) == [("main.py", 3, "main", "return 1 / 0  # here")]
    assert b"return 1 / 0  # here" in answer.stderr


def test_sigint_is_not_ignored(supervisor: SupervisorProcess) -> None:
    """It was, as the supervisor does: `interrupt_main` did nothing, and no child could trap it."""
    code = """
import signal, subprocess
def main():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass
    else:
        return 'ignored'
    return subprocess.run(['/bin/sh', '-c', 'trap "echo trapped" INT; kill -INT $$'], capture_output=True, text=True).stdout
"""
    assert value(supervisor.run(code)) == "trapped\n"


LONG_DOUBLES = """
import sys, types
numpy = sys.modules['numpy'] = types.ModuleType('numpy')
class generic:
    def item(self): return self
class floating(generic):
    def __float__(self): return 1.5
numpy.generic, numpy.floating, numpy.ndarray = generic, floating, type('ndarray', (), {})
def main(is_complex):
    return [generic() if is_complex else floating()]
"""


def test_long_doubles_of_numpy_are_numbers(supervisor: SupervisorProcess) -> None:
    """Their `item()` is no number of Python's but one of them again, which was asked for its own until the stack was full."""
    assert value(supervisor.run(LONG_DOUBLES, {"is_complex": False})) == [1.5]
    answer = supervisor.run(LONG_DOUBLES, {"is_complex": True})
    assert answer.head.error is not None
    assert "it contains an object of type generic" in answer.head.error.message


def test_error_names_the_line_in_the_callers_source(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("def helper():\n    raise KeyError('k')\n\ndef main():\n    helper()")
    assert answer.head.error is not None
    assert answer.head.error.line == 2
    assert b"raise KeyError('k')" in answer.stderr


def frames(answer: Answer) -> list[tuple[str, int, str, str]]:
    assert answer.head.error is not None
    return [(frame.file, frame.line, frame.function, frame.text) for frame in answer.head.error.traceback]


def test_traceback_holds_the_callers_frames_and_no_others(supervisor: SupervisorProcess) -> None:
    """Neither the runner's nor the libraries': what is between two frames of the caller's is none of its code."""
    helper = b"def apply(function):\n    return sorted([2, 1], key=function)\n"
    code = """
import functools, json
from lib.tools import apply

def main():
    return apply(lambda n: json.loads('{', object_hook=n))
"""
    answer = supervisor.run(code, None, helper, files=(("lib/tools.py", len(helper)),))
    assert frames(answer) == [
        ("main.py", 6, "main", "return apply(lambda n: json.loads('{', object_hook=n))"),
        ("lib/tools.py", 2, "apply", "return sorted([2, 1], key=function)"),
        ("main.py", 6, "<lambda>", "return apply(lambda n: json.loads('{', object_hook=n))"),
    ]
    assert answer.head.error is not None
    assert (answer.head.error.type, answer.head.error.line) == ("JSONDecodeError", 6)


@pytest.mark.parametrize("call_main", [True, False])
def test_traceback_of_a_deep_recursion_has_both_ends(supervisor: SupervisorProcess, call_main: bool) -> None:
    code = "def f(n):\n    return f(n + 1)\ndef main():\n    f(0)\nif __name__ == '__main__':\n    main()"
    found = frames(supervisor.run(code, call_main=call_main))
    assert len(found) == MAX_FRAMES
    if call_main:
        assert found[0] == ("main.py", 4, "main", "f(0)")
    else:
        assert found[:2] == [("main.py", 6, "<module>", "main()"), ("main.py", 4, "main", "f(0)")]
    assert found[-1] == ("main.py", 2, "f", "return f(n + 1)")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("x = 1\ndef main(:", [("main.py", 2, "<module>", "def main(:")]),
        (
            "import broken",
            [("main.py", 1, "<module>", "import broken"), ("broken.py", 2, "<module>", "return = 3")],
        ),
        ("def main():\n    eval('1 +')", [("main.py", 2, "main", "eval('1 +')")]),
        ("raise SyntaxError('by hand')", [("main.py", 1, "<module>", "raise SyntaxError('by hand')")]),
    ],
)
def test_syntax_errors_end_with_the_line_itself(
    supervisor: SupervisorProcess, code: str, expected: list[tuple[str, int, str, str]]
) -> None:
    broken = b"x = 1\nreturn = 3\n"
    assert frames(supervisor.run(code, None, broken, files=(("broken.py", len(broken)),))) == expected


@pytest.mark.parametrize(
    "code",
    [
        "x = 1",
        "def main(a): pass",
        "def main():\n    return {1}",
        "def main():\n    return [float('inf')]",
        "def main():\n    import sys; sys.exit('words')",
    ],
)
def test_no_traceback_where_no_line_of_the_caller_failed(supervisor: SupervisorProcess, code: str) -> None:
    answer = supervisor.run(code)
    assert answer.head.exit_code == 1
    assert answer.head.error is None or answer.head.error.traceback == ()


@pytest.mark.parametrize(
    ("code", "count"),
    [
        # Two bytes in UTF-8, six as an escape: without a bound, the report would be taken for garbage.
        ("def main():\n    raise ValueError('\u00e9' * 4000)", 1),
        ("def main():\n    raise ValueError('\U0001f600' * 4000)", 0),
        ("def f(n):\n    f(n)  # " + "\U0001f600" * 300 + "\ndef main():\n    f(1)", 2),
        ("exec(compile('1/0', '/etc/passwd', 'exec'))", 1),
        ("import os\nexec(compile('1/0', os.getcwd() + '/../etc/passwd', 'exec'))", 1),
        ("import os\nexec(compile('1/0', os.getcwd() + '/' + 'd/' * 300 + 'a.py', 'exec'))", 1),
        ("import builtins\nbuiltins.len = builtins.isinstance = None\nraise KeyError", 1),
    ],
)
def test_odd_errors_are_reported_within_bounds(supervisor: SupervisorProcess, code: str, count: int) -> None:
    answer = supervisor.run(code)
    assert answer.head.error is not None
    assert answer.head.error.type in ("ValueError", "RecursionError", "ZeroDivisionError", "KeyError")
    assert len(frames(answer)) >= count
    assert all(file == "main.py" for file, *_ in frames(answer))


def test_entry_point_is_a_file_like_the_others(supervisor: SupervisorProcess) -> None:
    """It runs as `python pkg/app.py` does: its folder comes first, and what lies beside it finds it there."""
    code = """
import os, sys
import helper

X = 'of the entry'

def main():
    return [__file__, os.getcwd(), sys.argv[0], sys.path[0], helper.read(), os.path.exists('main.py')]
"""
    helper = b"import inspect, app\ndef read(): return [app.X, len(inspect.getsource(app)) > 100]\n"
    head = {"files": (("pkg/helper.py", len(helper)),), "source_name": "pkg/app.py"}
    workspace = f"{supervisor.root}/workspace"
    assert value(supervisor.run(code, None, helper, **head)) == [
        f"{workspace}/pkg/app.py",
        workspace,
        "pkg/app.py",
        f"{workspace}/pkg",
        ["of the entry", True],
        False,
    ]
    failed = supervisor.run("print(__name__)\nraise KeyError", call_main=False, source_name="pkg/app.py")
    assert failed.stdout == b"__main__\n"
    assert f'File "{workspace}/pkg/app.py", line 2'.encode() in failed.stderr
    assert frames(failed) == [("pkg/app.py", 2, "<module>", "raise KeyError")]


def test_own_modules_hide_a_librarys_only_beside_an_entry_point(supervisor: SupervisorProcess) -> None:
    """As in Python itself; a program that is no file has always found the library."""
    code = "import calendar\ndef main():\n    return hasattr(calendar, 'mine')"
    files = (("calendar.py", 8),)
    assert value(supervisor.run(code, None, b"mine = 1", files=files, source_name="app.py")) is True
    assert value(supervisor.run(code, None, b"mine = 1", files=files)) is False


def test_entry_point_that_does_not_fit_the_other_files_is_the_callers_error(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("def main(): pass", None, b"x", files=(("a/b", 1),), source_name="a")
    assert answer.head.error is not None
    assert answer.head.error.type == "FilesError"
    assert value(supervisor.run("def main(): return 'alive'")) == "alive"


@pytest.mark.parametrize(
    ("statement", "exit_code", "signal"),
    [
        ("sys.exit(3)", 3, None),
        ("sys.exit(124)", 124, None),
        ("sys.exit(137)", 137, None),
        ("sys.exit('words')", 1, None),
        ("sys.exit(-1)", 255, None),
        ("sys.exit(256)", 0, None),
        ("os._exit(7)", 7, None),
        ("os._exit(0)", 0, None),
        ("os.kill(os.getpid(), 9)", None, 9),
        ("os.abort()", None, 6),
        ("os.killpg(0, 9)", None, 9),
    ],
)
def test_exit_status_is_the_programs_own(
    supervisor: SupervisorProcess, statement: str, exit_code: int | None, signal: int | None
) -> None:
    answer = supervisor.run(f"import os, sys\ndef main():\n    {statement}")
    assert (exit_code, signal, None, None) == (
        answer.head.exit_code,
        answer.head.signal,
        answer.head.limit,
        answer.result,
    )


@pytest.mark.parametrize(
    "hang",
    [
        "time.sleep(9)",
        "while True: pass",
        "threading.Event().wait()",
        "subprocess.run(['sleep', '9'])",
        "asyncio.run(asyncio.sleep(9))",
        "os.read(os.pipe()[0], 1)",
    ],
)
def test_what_was_printed_before_the_time_limit_is_told(supervisor: SupervisorProcess, hang: str) -> None:
    """Output is held back until there is much of it: nothing would tell an author where the program hangs."""
    code = f"import asyncio, os, subprocess, threading, time\ndef main():\n    print('step 1')\n    {hang}"
    answer = supervisor.run(code, wall_ms=300)
    assert (answer.head.limit, answer.head.signal, answer.head.exit_code) == ("time", 9, None)
    assert answer.stdout == b"step 1\n"


def test_the_begun_line_of_a_stream_is_told_at_the_time_limit(supervisor: SupervisorProcess) -> None:
    code = "import time\ndef main():\n    print('50 %', end='')\n    time.sleep(9)"
    answer = supervisor.run(code, wall_ms=300, stream=True)
    assert (answer.head.limit, answer.streamed, answer.stdout) == ("time", b"50 %", b"50 %")


@pytest.mark.parametrize(
    "statement",
    [
        "signal.signal(64, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, {64})",
        "signal.signal(64, lambda *_: time.sleep(9))",
        "signal.signal(64, lambda *_: os._exit(0))",
        "sys.stdout.flush = lambda: time.sleep(9)",
    ],
)
def test_no_last_words_are_waited_for_long(supervisor: SupervisorProcess, statement: str) -> None:
    code = f"""
import os, signal, sys, time
def main():
    {statement}
    end = time.monotonic() + 9
    while time.monotonic() < end: pass
"""
    answer = supervisor.run(code, wall_ms=300)
    assert answer.head.limit == "time"
    assert 300_000 <= answer.head.wall_us < 900_000


def test_wall_time_is_enforced_from_outside(supervisor: SupervisorProcess) -> None:
    """Signals are ignored and every exception is swallowed: only SIGKILL from outside ends this."""
    code = """
import signal
for n in range(1, signal.NSIG):
    try: signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError): pass
def main():
    print('before', flush=True)
    while True:
        try:
            while True: pass
        except BaseException: pass
"""
    answer = supervisor.run(code, wall_ms=300)
    assert (answer.head.limit, answer.head.signal, answer.result) == ("time", 9, None)
    assert 300_000 <= answer.head.wall_us < 1_000_000
    assert answer.stdout == b"before\n"


def test_memory_error_is_the_memory_limit(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("def main():\n    raise MemoryError")
    assert (answer.head.exit_code, answer.head.limit) == (1, "memory")


def test_words_classify_nothing(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("def main():\n    raise ValueError('Permission denied MemoryError Killed')")
    assert (answer.head.exit_code, answer.head.limit) == (1, None)


def test_output_is_cut_at_its_bound(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("def main():\n    while True: print('x' * 1000)", output_bytes=10_000)
    assert (answer.head.limit, answer.head.stdout_truncated) == ("output", True)
    assert len(answer.stdout) <= 10_000


def test_output_that_grows_in_json_is_cut_earlier(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("def main():\n    import os\n    while True: os.write(1, bytes(1000))", output_bytes=30_000)
    assert answer.head.limit == "output"
    assert len(answer.stdout) <= 15_000


def test_output_at_its_bound_is_intact(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("def main():\n    print('z' * 524287)")
    assert (answer.head.limit, len(answer.stdout)) == (None, 524288)


def test_result_over_its_bound_is_the_output_limit(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("def main():\n    return 'r' * 2000", result_bytes=1000)
    assert (answer.head.limit, answer.result) == ("output", None)
    sentence = "The result of main is larger than 1000 bytes."
    assert answer.head.error is not None
    assert (answer.head.error.type, answer.head.error.message) == ("ResultError", sentence)
    assert answer.stderr == sentence.encode()


def test_output_is_cut_at_its_bound_and_not_before(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("def main():\n    print('z' * 5000)", output_bytes=1000)
    assert (answer.head.limit, answer.head.stdout_truncated, answer.stdout) == ("output", True, b"z" * 1000)


def test_an_exception_whose_traceback_is_too_much_output_is_told(supervisor: SupervisorProcess) -> None:
    """The answer was an output limit without a word of why the program had said so much."""
    code = "def main():\n    print('z' * 40)\n    raise ValueError('mine')"
    answer = supervisor.run(code, output_bytes=100)
    assert (answer.head.limit, answer.head.stderr_truncated) == ("output", True)
    assert answer.head.error is not None
    assert (answer.head.error.type, answer.head.error.message, answer.head.error.line) == ("ValueError", "mine", 3)
    assert (len(answer.stdout), len(answer.stderr)) == (41, 59)


def test_an_exception_in_a_fork_of_the_program_is_not_the_programs(supervisor: SupervisorProcess) -> None:
    code = "import os\ndef main():\n    if os.fork() == 0: raise ValueError('fork')\n    os.wait()\n    return 1"
    assert value(supervisor.run(code)) == 1


def test_files_that_do_not_fit_are_named(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("def main(): pass", None, b"xy", files=(("a", 1), ("a/b", 1)))
    assert answer.stderr == b"the input files cannot be placed: a/b: Not a directory\n"


def test_huge_traceback_is_cut_with_a_marker(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("def main():\n    raise ValueError('v' * 8_000_000)")
    assert (answer.head.limit, answer.head.error and answer.head.error.type) == (None, "ValueError")
    assert b"truncated" in answer.stderr
    assert len(answer.stderr) < 100_000


def test_late_output_and_exit_handlers_do_not_change_the_result(supervisor: SupervisorProcess) -> None:
    code = """
import atexit, threading, time
atexit.register(print, 'at exit')
def late():
    time.sleep(0.05); print('thread')
def main():
    threading.Thread(target=late).start()
    return 'real'
"""
    answer = supervisor.run(code)
    assert value(answer) == "real"
    assert answer.stdout == b"thread\nat exit\n"


def test_patched_libraries_do_not_silence_the_report(supervisor: SupervisorProcess) -> None:
    code = """
import builtins, io, json, os, struct, sys, signal
json.dumps = json.encoder.c_make_encoder = os.write = os._exit = None
builtins.print = builtins.len = None
signal.pause = None
def main():
    sys.stdout = sys.stderr = io.StringIO()
    return {'n': 1}
"""
    assert value(supervisor.run(code)) == {"n": 1}


def test_garbage_on_every_descriptor_harms_only_its_own_run(supervisor: SupervisorProcess) -> None:
    code = """
import os, struct
def main():
    for fd in [*range(3, 64), 0]:
        for blob in (struct.pack('>Q', 1 << 40), b'R\\xff\\xff\\xff\\xff', b'\\x00' * 64, b'{}\\n'):
            try: os.write(fd, blob)
            except OSError: break
    return 'real'
"""
    answer = supervisor.run(code)
    assert answer.head.limit in (None, "output")
    assert value(supervisor.run("def main(): return 'alive'")) == "alive"


def test_closed_result_pipe_loses_the_result_only(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("import os\ndef main():\n    os.closerange(0, 64)\n    return 1")
    assert (answer.head.exit_code, answer.head.signal, answer.result) == (0, None, None)


def test_fork_that_comes_back_out_of_main_gives_one_answer(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("import os\ndef main():\n    os.fork()\n    return 'one'")
    assert value(answer) == "one"
    assert value(supervisor.run("def main(): return 'next'")) == "next"


def test_child_that_holds_stdout_does_not_delay_the_answer(supervisor: SupervisorProcess) -> None:
    answer = supervisor.run("import subprocess\ndef main():\n    subprocess.Popen(['sleep', '60'])\n    return 1")
    assert value(answer) == 1
    assert answer.head.wall_us < 5_000_000
    assert len(supervisor.user_processes()) == 1, "only the next parked process is left"


def test_survivors_are_killed_even_when_they_refork(supervisor: SupervisorProcess) -> None:
    """A single pass of kill loses the race against children that fork faster than they die."""
    code = """
import os, signal, time
def main():
    if os.fork() == 0:
        os.setsid()
        for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)
        while True:
            try:
                if os.fork() == 0: continue
            except OSError: pass
    time.sleep(0.2)
    return 'planted'
"""
    assert value(supervisor.run(code)) == "planted"
    assert len(supervisor.user_processes()) == 1


def test_stdin_args_env_and_files_of_a_script(supervisor: SupervisorProcess) -> None:
    code = """
import os, sys
from pkg import helper
print(__name__, sys.argv[1:], os.environ['WORD'], sys.stdin.read(), helper.X, open('data.txt').read())
"""
    answer = supervisor.run(
        code,
        None,
        b"from stdin",
        b"X = 'helped'",
        b"content",
        call_main=False,
        stdin_bytes=10,
        files=(("pkg/helper.py", 12), ("data.txt", 7)),
        args=("--flag", "v"),
        env={"WORD": "w"},
    )
    assert answer.stdout == b"__main__ ['--flag', 'v'] w from stdin helped content\n"
    assert (answer.head.exit_code, answer.head.error) == (0, None)


def test_file_that_was_sent_can_be_executed_at_once(supervisor: SupervisorProcess) -> None:
    """SF-19: a file that somebody still has open for writing cannot be executed (ETXTBSY), and a fork at the wrong moment
    keeps it open. Files are closed before the program is told anything, and what forks never has them."""
    tool = b"#!/bin/sh\necho $0\n"
    code = """
import os, subprocess
for name in sorted(os.listdir('.')):
    if name.startswith('tool'):
        os.chmod(name, 0o755)
        print(subprocess.run(['./' + name], capture_output=True, text=True, check=True).stdout, end='')
"""
    names = [f"tool{n}" for n in range(5)]
    for _ in range(6):
        answer = supervisor.run(
            code, None, *[tool] * 5, call_main=False, files=tuple((name, len(tool)) for name in names)
        )
        assert (answer.head.exit_code, answer.stdout.decode().split()) == (0, [f"./{name}" for name in names])


def test_large_stdin_flows_past_the_size_of_a_pipe(supervisor: SupervisorProcess) -> None:
    data = os.urandom(300_000)
    code = "import sys, hashlib\nprint(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
    answer = supervisor.run(code, None, data, call_main=False, stdin_bytes=len(data))
    assert answer.stdout.decode().strip() == hashlib.sha256(data).hexdigest()


def test_streamed_output_arrives_before_the_end(supervisor: SupervisorProcess) -> None:
    code = "import time\ndef main():\n    print('first'); time.sleep(0.3); print('second')\n    return 1"
    answer = supervisor.run(code, stream=True)
    assert answer.streamed == b"first\nsecond\n"
    assert answer.stdout == answer.streamed


def test_cpu_bound_run_with_a_cpu_limit_ends_by_it(supervisor: SupervisorProcess) -> None:
    """Without a visible cgroup there is no CPU counter; the wall limit still ends the run."""
    answer = supervisor.run("def main():\n    while True: pass", cpu_ms=100, wall_ms=600)
    assert answer.head.limit in ("cpu", "time")


def test_process_attributes_are_the_same_for_every_run(supervisor: SupervisorProcess) -> None:
    look = """
import os, resource, signal
def main():
    mask = os.umask(0); os.umask(mask)
    return [mask, os.getpriority(os.PRIO_PROCESS, 0), resource.getrlimit(resource.RLIMIT_NOFILE),
            resource.getrlimit(resource.RLIMIT_CORE), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
            len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), open('/proc/self/comm').read(), os.getgroups()]
"""
    before = value(supervisor.run(look))
    supervisor.run("import os, signal\ndef main():\n    os.umask(0o777); os.nice(5); signal.signal(15, signal.SIG_IGN)")
    assert value(supervisor.run(look)) == before


def test_random_state_differs_between_runs(supervisor: SupervisorProcess) -> None:
    code = "import random, tempfile\ndef main():\n    return [random.random(), next(tempfile._get_candidate_names())]"
    first, second = value(supervisor.run(code)), value(supervisor.run(code))
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert not set(first) & set(second)


def test_nothing_of_a_request_is_in_the_memory_of_a_later_process(supervisor: SupervisorProcess) -> None:
    """The supervisor parses requests; were user processes forked from it, freed copies would be in their heaps."""
    token = "TOKEN-" + os.urandom(12).hex()
    supervisor.run(f"SECRET = 'source-{token}'\ndef main(t):\n    print(t)\n    return t", {"t": token})
    search = """
import ctypes, re
def main(head, tail):
    needle = (head + tail).encode()
    places = []
    with open('/proc/self/maps') as maps:
        lines = maps.readlines()
    for line in lines:
        found = re.match(r'([0-9a-f]+)-([0-9a-f]+) r', line)
        if found and '[v' not in line:
            start, end = (int(x, 16) for x in found.groups())
            places += [line.split()[-1]] * (ctypes.c_char * (end - start)).from_address(start).raw.count(needle)
    return places
"""
    places = value(supervisor.run(search, {"head": token[:12], "tail": token[12:]}))
    assert isinstance(places, list)
    # Its own copies: the joined str and the bytes, and buffers of this very search.
    control = value(supervisor.run(search, {"head": "CONTROL-abcd", "tail": token[::-1]}))
    assert isinstance(control, list)
    assert len(places) <= len(control)


FLOOD = """
import os, time
def main():
    if os.fork() == 0:
        while True:
            os.write({fd}, {data})
    time.sleep(0.1)  # the flood is at its height
    os._exit(3)
"""


@pytest.mark.parametrize(
    ("fd", "data"),
    [(3, "b'P\\0\\0\\0\\0' * 13000"), (3, "b'P\\0\\0\\0\\0'"), (3, "b'X' * 65536"), (1, "b'x'"), (2, "b'x'")],
    ids=["reports", "single reports", "garbage", "stdout", "stderr"],
)
def test_child_that_goes_on_writing_delays_nobody(supervisor: SupervisorProcess, fd: int, data: str) -> None:
    """Reading what a dead program had written must not become reading what its child writes meanwhile."""
    started = time.monotonic()
    answer = supervisor.run(FLOOD.format(fd=fd, data=data), wall_ms=5000)
    assert (3, None) == (answer.head.exit_code, answer.head.limit)
    assert time.monotonic() - started < 2
    assert value(supervisor.run("def main():\n    return 1")) == 1


@pytest.mark.parametrize("line", ["true", "1.5", '"7"', "[1]", "-1", "1e3", "99999999999"])
def test_forged_error_is_still_a_result_that_the_service_reads(supervisor: SupervisorProcess, line: str) -> None:
    """`answer` decodes it as strictly as the service does."""
    answer = supervisor.run(f"""
import os, struct
def main():
    error = b'{{"type": "x", "message": "y", "line": {line}}}'
    os.write(3, struct.pack(">cI", b"E", len(error)) + error + b"D\\0\\0\\0\\x011")
    os._exit(0)
""")
    assert answer.head.error is not None
    assert ("x", "y", None) == (answer.head.error.type, answer.head.error.message, answer.head.error.line)


def test_exception_while_threads_are_joined_does_not_lose_the_result(supervisor: SupervisorProcess) -> None:
    """A handler of the program may raise wherever the interpreter is; at its end CPython goes on too."""
    answer = supervisor.run("""
import signal, threading, time
def main():
    threading.Thread(target=time.sleep, args=(0.5,)).start()
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    return "kept"
""")
    assert value(answer) == "kept"
    assert b"KeyboardInterrupt" in answer.stderr


# What CPython does, where a process that was forked ahead might do something else


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.stdout.reconfigure(encoding='utf-8')\ndef main(): print('ä')",
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')\ndef main(): print('ä')",
    ],
)
def test_stdout_may_be_set_up_anew(supervisor: SupervisorProcess, code: str) -> None:
    """It was `Illegal seek`: the template had a device there that can seek, as far as Python asks."""
    answer = supervisor.run(code)
    assert (answer.head.exit_code, answer.stdout) == (0, "ä\n".encode())


def test_pipes_cannot_seek(supervisor: SupervisorProcess) -> None:
    code = "import sys\ndef main(): return [s.seekable() for s in (sys.stdin, sys.stdout)]"
    assert value(supervisor.run(code)) == [False, False]


@pytest.mark.parametrize(
    ("opening", "content"),
    [
        ("f = open('out', 'w'); f.write('kept')", b"kept"),
        ("f = open('out', 'wb'); f.write(b'kept')", b"kept"),
        ("class C: pass\nc = C(); c.f = open('out', 'w'); c.f.write('kept')", b"kept"),
        ("import gzip\nf = gzip.open('out', 'wt'); f.write('kept')", b"\x1f\x8b"),
        ("import csv\nw = csv.writer(open('out', 'w')); w.writerow(['kept'])", b"kept"),
    ],
)
def test_files_that_are_open_at_the_end_are_written(
    supervisor: SupervisorProcess, opening: str, content: bytes
) -> None:
    """As the interpreter does at its end. They were empty, and the run a success."""
    code = f"import os\nos.makedirs('artifacts', exist_ok=True); os.chdir('artifacts')\n{opening}\n"
    answer = supervisor.run(code, call_main=False, artifact_globs=("*",))
    assert answer.head.exit_code == 0, answer.stderr
    assert answer.artifacts["out"].startswith(content)
    if content == b"\x1f\x8b":
        assert gzip.decompress(answer.artifacts["out"]) == b"kept"


def test_a_program_may_leave_no_descriptor_at_its_end(supervisor: SupervisorProcess) -> None:
    code = "import os\nfds = []\ndef main():\n    try:\n        while True: fds.append(os.dup(0))\n    except OSError: return len(fds) > 900"
    assert value(supervisor.run(code)) is True


def test_the_time_zone_of_the_environment_holds(supervisor: SupervisorProcess) -> None:
    code = "import time\ndef main(): return time.strftime('%z')"
    assert value(supervisor.run(code, env={"TZ": "Asia/Tokyo"})) == "+0900"
    assert value(supervisor.run(code)) == "+0000"


@pytest.mark.parametrize(
    ("status", "code"), [("2**70", 255), ("-2**70", 255), ("-1", 255), ("256", 0), ("2**40 + 3", 3)]
)
def test_exit_statuses_are_those_of_the_interpreter(supervisor: SupervisorProcess, status: str, code: int) -> None:
    assert supervisor.run(f"import sys\nsys.exit({status})", call_main=False).head.exit_code == code

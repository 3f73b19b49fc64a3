"""What the runner of bash makes of scripts; no container is needed for that."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator

import pytest

from tests.supervisor.conftest import Answer, SupervisorProcess, new_root


@pytest.fixture(scope="module")
def bash(sandboxes: pathlib.Path) -> Iterator[SupervisorProcess]:
    if os.getuid() != 0:
        pytest.skip("the supervisor changes uids, which takes root")
    supervisor = SupervisorProcess(new_root(sandboxes), language="bash")
    supervisor.start()
    yield supervisor
    supervisor.close()


def value(answer: Answer) -> object:
    assert (answer.head.exit_code, answer.head.limit, answer.head.error) == (0, None, None), answer
    assert answer.result is not None
    return json.loads(answer.result)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("main() { cat >&3; }", {"a": ["\u00e9", None]}),
        ("main() { :; }", None),
        ("main() { echo 1; exec true; }", None),
        ("set -eu\nmain() { echo 5 >&3; }", 5),
        ("main() { cat <(echo 5) >&3; }", 5),
        ("main() { printf '\"%0500d\"' 0 >&3; }", "0" * 500),
        ("cd /\nmain() { echo 5 >&3; }\n[[ -n '' ]]", 5),
        ("shopt -s extglob\nf() { case x in !(y)) ;; esac; }\nmain() { echo 5 >&3; }\nfalse", 5),
        # Names of ours and of what we call, and descriptors that scripts are used to.
        (
            "readonly __code=1 __result=1\nprintf() { echo no; }\nexit() { :; }\necho() { :; }\nmain() { cat <<<5 >&3; }",
            5,
        ),
        ("exec 8>a 9>b\nmain() { echo a >&8; echo b >&9; cat a b | jq -Rcs . >&3; }", "a\nb\n"),
        # As the author called it, not as it is run.
        ('main() { echo "\\"$0 $(basename "${BASH_SOURCE[0]}")\\"" >&3; }', "main.sh main.sh"),
    ],
)
def test_values(bash: SupervisorProcess, code: str, expected: object) -> None:
    assert value(bash.run(code, {"a": ["\u00e9", None]})) == expected


@pytest.mark.parametrize("where", ["main() { sleep 30 & echo 7 >&3; }", "sleep 30 &\nmain() { echo 7 >&3; }"])
def test_what_main_leaves_running_delays_nobody(bash: SupervisorProcess, where: str) -> None:
    """It held the pipe for the result: the run ended at its time limit."""
    answer = bash.run(where, wall_ms=5000)
    assert value(answer) == 7
    assert answer.head.wall_us < 4_000_000


@pytest.mark.parametrize("leave", ["echo 7 >&3", "echo 7 >&3; exit 0"])
def test_an_exit_trap_is_run_and_heard(bash: SupervisorProcess, leave: str) -> None:
    answer = bash.run(f"trap 'echo bye' EXIT\nmain() {{ {leave}; }}")
    assert (value(answer), answer.stdout) == (7, b"bye\n")


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("main() {\n  if true; then\n  echo 1\n}", 4),
        # Everything before it was read and run: this was a success, whose result was null.
        ("main() { echo 1 >&3; }\nfoo(\n", 2),
        ("set -e\nmain() { echo 1 >&3; }\nfoo(\n", 3),
        ('set -eu\nmain() { echo "1 >&3; }\n', 2),
        ("echo '\"\\' )\nmain() { :; }", 1),
    ],
)
def test_a_syntax_error_is_one(bash: SupervisorProcess, code: str, line: int) -> None:
    answer = bash.run(code)
    assert (answer.head.exit_code, answer.result) != (0, None)
    assert answer.head.error is not None
    assert (answer.head.error.type, answer.head.error.line) == ("SyntaxError", line)
    assert b"main.sh: line" in answer.stderr
    assert b"no function" not in answer.stderr


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        ("echo a; exit 3\nmain() { :; }", 3, b""),
        ("main() { exit 4; }", 4, b""),
        ("main() { return 300; }", 44, b""),
        ("set -e\nmain() { false; echo no; }", 1, b""),
        ("set -e\nfalse\nmain() { :; }", 1, b""),
        ("set -u\nmain() { echo $nope; }", 1, b"nope: unbound variable"),
        ("other() { :; }", 1, b"the program defines no function named main"),
        ("main() { kill -SEGV $BASHPID; }", 139, b""),
        ("main() { nosuch; }", 127, b"./main.sh: line 1: nosuch: command not found"),
    ],
)
def test_failures_are_the_scripts_own(bash: SupervisorProcess, code: str, exit_code: int, words: bytes) -> None:
    answer = bash.run(code)
    assert (answer.head.exit_code, answer.result) == (exit_code, None)
    assert words in answer.stderr
    assert b"call_main" not in answer.stderr
    assert b"199" not in answer.stderr


def test_leaving_before_main_is_a_success_without_a_result(bash: SupervisorProcess) -> None:
    answer = bash.run("echo a; exit 0\nmain() { :; }")
    assert (answer.head.exit_code, answer.head.error, answer.result, answer.stdout) == (0, None, None, b"a\n")


def test_nuls_in_a_result_are_nothing_to_talk_about(bash: SupervisorProcess) -> None:
    answer = bash.run("main() { printf '\"a\\0b\"' >&3; }")
    assert (value(answer), answer.stderr) == ("ab", b"")


def test_a_file_of_the_callers_is_not_overwritten(bash: SupervisorProcess) -> None:
    """The source lies in main.sh, and took the place of what the caller had sent under that name."""
    answer = bash.run("main() { :; }", None, b"mine", files=(("main.sh", 4),))
    assert answer.head.exit_code == 1
    assert answer.head.error is not None
    assert answer.head.error.type == "FilesError"
    assert b"main.sh is the name of the program itself" in answer.stderr

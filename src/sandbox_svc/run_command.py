"""`sandbox-svc run FILE`: runs a file in a service as if it were run here."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox_svc.client import Answer, Client

URL_VARIABLE: Final = "SANDBOX_CLIENT_URL"
KEY_VARIABLE: Final = "SANDBOX_CLIENT_KEY"

EXIT_USAGE: Final = 2
EXIT_TIME: Final = 124
EXIT_REFUSED: Final = 125
"""As `docker run` says that it is not the program that failed."""
EXIT_INTERRUPTED: Final = 130
EXIT_MEMORY: Final = 137
EXIT_OUTPUT: Final = 153
_SAME_LANGUAGE: Final = {".mjs": ".js", ".cjs": ".js", ".mts": ".ts", ".cts": ".ts"}
"""Endings of files that are not the one of their language's `source_name`."""
_LIMITS: Final = {
    "time_limit": EXIT_TIME,
    "cpu_limit": EXIT_TIME,
    "memory_limit": EXIT_MEMORY,
    "output_limit": EXIT_OUTPUT,
}


def add_subcommand(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser(
        "run",
        help="run a file in a service, with live output and its exit code",
        description="Runs FILE as a script, with standard input and the arguments behind it. With --main or --arg its "
        "main is called instead, and what it returns is printed as JSON. Exit codes: the program's own; 128 + n after "
        "signal n; 124, 137 and 153 at the time, memory and output limit; 125 when the service refused or failed.",
    )
    run.add_argument("file", metavar="FILE", help="the program; - is standard input")
    run.add_argument("args", metavar="ARG", nargs="*", help="arguments of a script (behind -- where they begin with -)")
    run.add_argument("--main", action="store_true", help="call main")
    run.add_argument(
        "--arg", metavar="NAME=VALUE", action="append", default=[], help="argument of main; JSON, or else text"
    )
    run.add_argument(
        "--file",
        metavar="PATH",
        dest="files",
        action="append",
        default=[],
        help="put a file into the program's working directory",
    )
    run.add_argument("--artifacts", metavar="DIR", type=Path, help="save what the program left in artifacts/")
    run.add_argument("--language", help="default: by the ending of FILE, else python")
    run.add_argument("--profile", help="a profile of the language")
    run.add_argument("--timeout", metavar="SECONDS", type=_seconds, help="wall time limit, below the service's own")
    run.add_argument("--url", help=f"the service (default: {URL_VARIABLE}, else http://127.0.0.1:9385)")
    run.set_defaults(run=_run)


def _run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    try:
        return _run_file(arguments, environ)
    except KeyboardInterrupt:
        # Wherever it was: a run that was under way has lost its connection, and its program is killed.
        return EXIT_INTERRUPTED


def _run_file(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    try:
        from sandbox_svc import client as clients  # noqa: PLC0415 - the service itself does without httpx
    except ModuleNotFoundError as error:
        return _say(f"{error.name} is missing: pip install 'sandbox-svc[client]'", EXIT_USAGE)
    calls_main = arguments.main or bool(arguments.arg)
    is_piped = arguments.file == "-"
    if calls_main and arguments.args:
        return _say("arguments behind FILE are for scripts; main takes --arg NAME=VALUE", EXIT_USAGE)
    try:
        source = sys.stdin.buffer.read() if is_piped else Path(arguments.file).read_bytes()
        values = dict(map(_argument, arguments.arg))
        if arguments.artifacts is not None:
            _prepare(arguments.artifacts)
        files = {PurePath(path).name: Path(path).read_bytes() for path in arguments.files}
        # A terminal is no input: the program would wait for an end of it that nobody means to give.
        stdin = b"" if calls_main or is_piped or sys.stdin.isatty() else sys.stdin.buffer.read()
    except (OSError, ValueError) as error:
        return _say(str(error), EXIT_USAGE)
    url = arguments.url or environ.get(URL_VARIABLE) or clients.DEFAULT_URL
    terminal = _Terminal()
    try:
        with clients.Client(url, key=environ.get(KEY_VARIABLE)) as client:
            answer = client.run(
                source,
                language=arguments.language or _language(client, arguments.file, arguments.profile),
                profile=arguments.profile,
                script=not calls_main,
                arguments=values if calls_main else None,
                stdin=stdin,
                args=arguments.args,
                files=files,
                limits=None if arguments.timeout is None else {"wall_ms": round(arguments.timeout * 1000)},
                artifacts=() if arguments.artifacts is None else ("*",),
                on_output=terminal.write,
            )
        terminal.end(answer)
        if arguments.artifacts is not None and not _save(answer, arguments.artifacts):
            return EXIT_REFUSED
    except clients.Refused as error:
        for finding in error.problem.findings:
            _say(f"{arguments.file}:{finding.line}: {finding.message}", EXIT_REFUSED)
        return _say(str(error), EXIT_REFUSED)
    except clients.ClientError as error:
        return _say(f"{url}: {error}", EXIT_REFUSED)
    except BrokenPipeError:
        # Who read our output has seen enough; what is left of it must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        # Our own output could not be written, which must not look like an exit code of the program.
        return _say(str(error), EXIT_REFUSED)
    return _exit_code(answer)


class _Terminal:
    """Our own stdout and stderr, which show the program's as it writes them."""

    def write(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        out = sys.stdout if stream == "stdout" else sys.stderr
        out.buffer.write(text.encode())
        out.buffer.flush()

    def end(self, answer: Answer) -> None:
        """Show what is no output: the result of main, and which limit ended it."""
        if not answer.is_success and answer.stderr and not answer.stderr.endswith("\n"):
            self.write("stderr", "\n")
        if answer.result is not None:
            self.write("stdout", json.dumps(answer.result.value, ensure_ascii=False) + "\n")
        if answer.outcome in _LIMITS:
            _say(f"ended at its {answer.outcome.replace('_', ' ')}", 0)


def _say(text: str, code: int) -> int:
    sys.stderr.write(f"sandbox-svc: {text}\n")
    return code


def _argument(text: str) -> tuple[str, Any]:
    """`n=3` is a number, `n=abc` a text, `n="3"` a text as well. Raises `ValueError`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--arg {text} is not NAME=VALUE")
    try:
        return name, json.loads(value, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        return name, value


def _finite(text: str) -> float:
    """`NaN`, `Infinity` and `1e999` are no JSON that anybody else reads. Raises `ValueError`."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _seconds(text: str) -> float:
    """Raises `ArgumentTypeError`."""
    try:
        seconds = _finite(text)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


def _language(client: Client, file: str, profile: str | None) -> str:
    """The language whose sources end as the file does; a profile only when it was asked for."""
    suffix = PurePath(file).suffix
    suffix = _SAME_LANGUAGE.get(suffix, suffix)
    if suffix:
        for language in client.languages():
            if language.profile == profile and PurePath(language.source_name).suffix == suffix:
                return language.base
    return "python"


def _prepare(folder: Path) -> None:
    """Make sure that files can be written there, before a program runs for nothing. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    # Permission bits say little: of root, of read-only mounts, of access lists.
    with tempfile.TemporaryFile(dir=folder):
        pass


def _save(answer: Answer, folder: Path) -> bool:
    """Write the artifacts; False when one that should be there is not, which is said."""
    is_complete = True
    for artifact in answer.artifacts:
        # The program chose the name; it must not choose the folder.
        if artifact.name in ("", ".", "..") or "\0" in artifact.name or PurePath(artifact.name).name != artifact.name:
            _say(f"not saved, for its name: {artifact.name!r}", 0)
            continue
        try:
            (folder / artifact.name).write_bytes(artifact.content)
        except OSError as error:
            is_complete = False
            _say(f"not saved: {error}", 0)
    if answer.artifacts_skipped:
        _say(f"{answer.artifacts_skipped} files in artifacts/ were too many, too large or no plain files", 0)
    return is_complete


def _exit_code(answer: Answer) -> int:
    if answer.outcome in _LIMITS:
        return _LIMITS[answer.outcome]
    if answer.signal is not None:
        try:
            return 128 + signal.Signals[answer.signal]
        except KeyError:
            number = answer.signal.removeprefix("SIG")
            return 128 + int(number) if number.isdecimal() else EXIT_REFUSED
    if answer.exit_code is None:
        return EXIT_REFUSED
    return answer.exit_code if answer.exit_code or answer.is_success else 1

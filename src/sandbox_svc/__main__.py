"""The command `sandbox-svc`: serve, run, doctor, keys.

Imports of weight stand in the functions that need them: the handler of SIGTERM has to be there before they begin.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from sandbox_svc import __version__

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_TERMINATED = 128 + signal.SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 wrong usage or settings."""
    if argv is None:
        # The process is ours. The kernel drops a signal without a handler that is sent to process 1, which we are in a
        # container: whoever stops one that has just started would wait for the whole grace period.
        signal.signal(signal.SIGTERM, _leave)
    from sandbox_svc.errors import SandboxServiceError, SettingsError  # noqa: PLC0415 - see above

    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments, os.environ)
    except (SandboxServiceError, OSError) as error:
        complain = _log if arguments.run is _serve and _log_format(os.environ) == "json" else _write
        complain(error)
        return EXIT_USAGE if isinstance(error, SettingsError) else EXIT_FAILED
    return code


def _leave(*_: object) -> None:
    """Ends the process while there is nothing to put in order; `serve` replaces this by a handler of its own."""
    raise SystemExit(EXIT_TERMINATED)


def _write(error: Exception) -> None:
    sys.stderr.write(f"sandbox-svc: {error}\n")


def _log(error: Exception) -> None:
    """For those who read the log by machine: why it did not start is the line that they need most."""
    import logging  # noqa: PLC0415 - see above

    logging.getLogger("sandbox_svc").error("%s", error)


def _log_format(environ: Mapping[str, str]) -> str:
    return environ.get("SANDBOX_LOG_FORMAT", "text").strip().lower()


def _parser() -> argparse.ArgumentParser:
    from sandbox_svc import run_command  # noqa: PLC0415 - see above
    from sandbox_svc.admission import keys  # noqa: PLC0415 - see above

    parser = argparse.ArgumentParser(
        prog="sandbox-svc", description="Runs code snippets in warm, isolated containers behind an HTTP API."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the service; settings are SANDBOX_* variables")
    serve.add_argument("--host", help="address to listen on (SANDBOX_HOST)")
    serve.add_argument("--port", help="port to listen on, 0 for a free one (SANDBOX_PORT)")
    serve.set_defaults(run=_serve)
    run_command.add_subcommand(commands)
    doctor = commands.add_parser("doctor", help="say what is missing, and what to do about it")
    doctor.set_defaults(run=_doctor)
    keys.add_subcommand(commands)
    return parser


def _serve(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from sandbox_svc import app  # noqa: PLC0415 - half a second of imports that `keys` and usage errors do without
    from sandbox_svc.settings import read_settings  # noqa: PLC0415 - see above

    # What is wrong with the settings is said in the format that they will ask for.
    _log_to_stderr("info", _log_format(environ))
    given = {name: value for name in ("host", "port") if (value := getattr(arguments, name)) is not None}
    settings = read_settings(environ, **given)
    _log_to_stderr(settings.log_level, settings.log_format)
    _raise_file_limit()
    return _run_loop(app.serve(settings))


def _doctor(_arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from sandbox_svc import doctor  # noqa: PLC0415 - see above

    _log_to_stderr("error")
    return _run_loop(doctor.main(environ, sys.stdout))


def _run_loop(work: Coroutine[Any, Any, int]) -> int:
    import asyncio  # noqa: PLC0415 - see above

    import uvloop  # noqa: PLC0415 - see above

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _log_to_stderr(level: str, log_format: str = "text") -> None:
    from sandbox_svc.telemetry import logs  # noqa: PLC0415 - see above

    logs.set_up(level, log_format)


def _raise_file_limit() -> None:
    """Use all the descriptors we may have: each connection and each container is one, and 1024 is a common default."""
    import resource  # noqa: PLC0415 - see above

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())

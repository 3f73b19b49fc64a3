"""A template: a process that has modules loaded and forks user processes on command.

It never sees a byte of a request, since whatever a process once held stays readable in the heap of its forks. Commands
come on descriptor 3 (`templates.py` is the other side); it ends when that is closed.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
from typing import Any

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, _HERE)

from supervisor import user_process  # noqa: E402  started as a file, it says itself where its package is
from supervisor.layout import Layout, Manifest, read_manifest  # noqa: E402
from supervisor.layout import Template as TemplateSpec  # noqa: E402

CONTROL_FD = 3
MAX_COMMAND_BYTES = 16 * 1024

FORK = struct.Struct(">cI")
FORKED = struct.Struct(">cI")
STARTED = struct.Struct(">cI")
EXITED = struct.Struct(">cIiQQ")

# A program may replace these in `os` before its process comes back here to end.
_exit = os._exit
_write = os.write

# What every program needs at once or finds missing when it fails; loaded before the first fork, never after.
_ALWAYS = ("json", "traceback", "linecache", "threading", "inspect")


class Template:
    """Forks on command and reports the end of what it forked."""

    def __init__(self, layout: Layout, manifest: Manifest, options: dict[str, Any]) -> None:
        self._layout = layout
        self._manifest = manifest
        self._options = options
        self._runner: Any = None
        self._touch = ""

    def serve(self, control: socket.socket, name: str) -> None:
        """Load modules, then obey until the control socket closes."""
        control.send(STARTED.pack(b"s", os.getpid()))
        self._load(self._manifest.templates[name])
        # Both ends non-blocking: a full pipe already says that there is something to reap.
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(control, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        control.send(b"l")
        while True:
            for fd, _ in poll.poll():
                if fd == wake_read:
                    os.read(wake_read, 512)
                    self._reap(control)
                else:
                    command, fds, _, _ = socket.recv_fds(control, MAX_COMMAND_BYTES, 8)
                    if not command:
                        return
                    if command[:1] == b"F":
                        self._fork(control, FORK.unpack(command)[1], fds)
                    else:
                        self._grow(control, json.loads(command[1:]), fds[0])

    def _load(self, template: TemplateSpec) -> None:
        if self._manifest.runner_kind == "python":
            if self._runner is None:
                for name in _ALWAYS:
                    importlib.import_module(name)
                sys.path.append(self._layout.runner)
                self._runner = importlib.import_module("runner")
                sys.path.remove(self._layout.runner)
                self._runner.rehearse()
            for name in template.preload:
                importlib.import_module(name)
            self._runner.warm(template.warm)
            self._runner.warm(template.touch)
            self._touch = template.touch
        # Objects that are there now are never looked at by a collection again, so their pages stay shared.
        gc.collect()
        gc.freeze()

    def _fork(self, control: socket.socket, uid: int, fds: list[int]) -> None:
        pid = os.fork()
        if pid:
            for fd in fds:
                os.close(fd)
            control.send(FORKED.pack(b"f", pid))
            return
        status = 111
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # The supervisor ignores it, which goes on to whatever it starts and which no shell can undo with `trap`.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            user_process.become_user(uid, fds, self._layout.workspace, self._options["processes"])
            if self._manifest.runner_kind == "exec":
                user_process.exec_runner(self._manifest, heap_mb=self._options["heap_mb"])
            status = self._runner.main(
                user_process.RESULT_FD,
                user_process.read_program,
                touch=self._touch,
                last_words_signal=user_process.LAST_WORDS_SIGNAL,
            )
        except BaseException as error:  # noqa: BLE001  the next line but one ends the process
            _write(2, f"user process not started: {error!r}\n".encode()[:500])
        finally:
            _exit(status)

    def _grow(self, control: socket.socket, command: dict[str, Any], fd: int) -> None:
        """Fork a template that loads more modules; it shares all pages this one has."""
        if os.fork():
            os.close(fd)
            return
        try:
            signal.set_wakeup_fd(-1)
            control.close()
            os.dup2(fd, CONTROL_FD, inheritable=False)
            os.closerange(CONTROL_FD + 1, user_process.MAX_OPEN_FILES)
            self.serve(socket.socket(fileno=CONTROL_FD), command["template"])
        finally:
            os._exit(0)

    def _reap(self, control: socket.socket) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            cpu_us = int((usage.ru_utime + usage.ru_stime) * 1e6)
            control.send(EXITED.pack(b"x", pid, status, usage.ru_maxrss, cpu_us))


def main() -> None:
    options = json.loads(sys.argv[1])
    # The working directory holds files of programs, and some libraries look there for their settings.
    os.chdir("/")
    layout = Layout(**options["layout"])
    # The program sees an interpreter that was started for it alone.
    sys.argv = [""]
    sys.path.remove(_HERE)
    control = socket.socket(fileno=CONTROL_FD)
    control.set_inheritable(False)
    Template(layout, read_manifest(layout), options).serve(control, options["template"])


if __name__ == "__main__":
    main()

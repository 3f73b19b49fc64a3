"""The supervisor's side of the templates: starts them, asks for forks, keeps what is parked."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from supervisor import channel
from supervisor.layout import Layout, Manifest
from supervisor.template_main import EXITED, FORK, FORKED, MAX_COMMAND_BYTES, STARTED


class UserProcess:
    """A forked process and our ends of its pipes; parked until it is given a program."""

    def __init__(
        self, uid: int, template: str, stdin: int, stdout: int, stderr: int, result: int, program: int
    ) -> None:
        self.uid = uid
        self.template = template
        self.pid = 0
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.result = result
        self.program = program
        self.report = channel.RunnerReport()
        self.exit: tuple[int, int, int] | None = None
        """Wait status, peak resident set in KiB and CPU microseconds, once it ended."""

    def close(self, name: str) -> None:
        """Close our end of one pipe; closing twice is fine."""
        fd: int = getattr(self, name)
        if fd >= 0:
            setattr(self, name, -1)
            os.close(fd)

    def close_all(self) -> None:
        for name in ("stdin", "stdout", "stderr", "result", "program"):
            self.close(name)


class TemplateLink:
    """One template process; at most one user process of it is parked or running."""

    def __init__(self, name: str, control: socket.socket) -> None:
        self.name = name
        self.control = control
        self.pid = 0
        """Known once it has started; a grown template is a child of the first one, not ours."""
        self.is_loaded = False
        """Whether it has all its modules, so that its memory grows no more."""
        self.is_failed = False
        self.killed_forks = 0
        """Forks in a row that the kernel took before they were parked."""
        self.process: UserProcess | None = None

    def fork(self, uid: int) -> UserProcess:
        """Ask for a process that parks under `uid`; it reports on its result pipe when it is ready."""
        # A pipe belongs to whoever makes it, and only its owner can open /dev/stdin and the like by name. No process of
        # this uid exists yet that could take advantage of our having it for a moment.
        os.seteuid(uid)
        try:
            pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(5)]
        finally:
            os.seteuid(0)
        (stdin_r, stdin_w), (out_r, out_w), (err_r, err_w), (result_r, result_w), (program_r, program_w) = pipes
        theirs = [stdin_r, out_w, err_w, result_w, program_r]
        process = UserProcess(uid, self.name, stdin_w, out_r, err_r, result_r, program_w)
        for fd in (stdin_w, out_r, err_r, result_r, program_w):
            os.set_blocking(fd, False)
        try:
            socket.send_fds(self.control, [FORK.pack(b"F", uid)], theirs)
        finally:
            for fd in theirs:
                os.close(fd)
        self.process = process
        return process

    def read(self) -> tuple[str, Any] | None:
        """Take one message, None when the template died.

        ("started", pid), ("loaded", None), ("forked", pid) or ("exited", (pid, status, peak KiB, CPU microseconds));
        ("nothing", None) when none is there, since whoever ended the run may have taken the message that woke us.
        """
        try:
            message = self.control.recv(MAX_COMMAND_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return "nothing", None
        except OSError:
            return None
        kind = message[:1]
        if kind == b"l":
            return "loaded", None
        if kind == b"s":
            return "started", STARTED.unpack(message)[1]
        if kind == b"f":
            return "forked", FORKED.unpack(message)[1]
        if kind == b"x":
            return "exited", EXITED.unpack(message)[1:]
        return None


def start_template(layout: Layout, manifest: Manifest, name: str, *, processes: int, heap_mb: int) -> TemplateLink:
    """Start the first template by exec.

    An exec gives the template a memory of its own: nothing the supervisor read is in it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        options = {"layout": layout._asdict(), "template": name, "processes": processes, "heap_mb": heap_mb}
        _spawn(layout, manifest, theirs, json.dumps(options))
    return TemplateLink(name, ours)


def grow_template(links: list[TemplateLink], manifest: Manifest, name: str) -> TemplateLink:
    """Have one more template forked from the one that has most of its modules, which it then shares with it.

    Whatever was run before, templates saw none of it, so the new one may come at any time.
    """
    wanted = set(manifest.templates[name].preload)
    able = [link for link in links if wanted.issuperset(manifest.templates[link.name].preload)]
    parent = max(able or links[:1], key=lambda link: len(manifest.templates[link.name].preload))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = b"G" + json.dumps({"template": name}).encode()
        socket.send_fds(parent.control, [command], [theirs.fileno()])
    return TemplateLink(name, ours)


def _spawn(layout: Layout, manifest: Manifest, control: socket.socket, options: str) -> None:
    # -I: no variable, user folder or working directory of anybody takes part in what the template imports.
    argv = [layout.python, "-I", "-B", f"{layout.supervisor}/template_main.py", options]
    # Pipes, as every process that is forked from it will have: the interpreter asks only once whether it can seek.
    readable, writable = os.pipe2(os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, readable, 0), (os.POSIX_SPAWN_DUP2, writable, 1)]
        if control.fileno() == 3:
            control.set_inheritable(True)
        else:
            actions.append((os.POSIX_SPAWN_DUP2, control.fileno(), 3))
        os.posix_spawn(argv[0], argv, manifest.env, file_actions=actions)
    finally:
        os.close(readable)
        os.close(writable)

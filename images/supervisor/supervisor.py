"""PID 1 of a sandbox: takes programs as frames, gives them to parked processes, enforces limits, resets, answers.

It reads requests, so it never forks a user process: what it once held would be readable in the heap of its forks.
Templates, started by exec before the first request, do that. One thread, one epoll; it waits for nothing but epoll
while a run is timed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import sys
import time
from typing import Any

from supervisor import frames, reset
from supervisor.accounting import Cgroup, CpuMeter, peak_memory_kb
from supervisor.fault import Fault
from supervisor.frames import Frame, FrameReader
from supervisor.layout import Layout, read_manifest
from supervisor.limits import WATCH_SECONDS, LimitWatch
from supervisor.outbox import Outbox
from supervisor.outcome import NOTHING, describe
from supervisor.parking import Parking
from supervisor.poller import Poller
from supervisor.run import READ_BYTES, Run, RunRequest
from supervisor.templates import TemplateLink, UserProcess
from supervisor.user_process import LAST_WORDS_SIGNAL
from supervisor.workspace import Workspace

RESET_SECONDS = 2.0
PARK_SECONDS = 10.0
"""Loading the largest template counts into the first one."""
GROW_SECONDS = 0.2
"""How long a container is idle before it loads one more template. Loading pandas and matplotlib costs as much CPU as a
hundred runs, which a container that is used at once, and perhaps only once, should not spend beside them."""
LAST_WORDS_SECONDS = 0.1
MAX_UNSENT_BYTES = 512 * 1024
"""While a run streams, its output is left in its pipes once this much waits for the service to read."""


class Supervisor:
    """One sandbox from CONFIGURE to the end of its stdin."""

    def __init__(self, layout: Layout, stdin: int = 0, stdout: int = 1) -> None:
        self._layout = layout
        self._manifest = read_manifest(layout)
        self._in = stdin
        self._outbox = Outbox(stdout)
        self._reader = FrameReader()
        self._poller = Poller()
        self._cgroup = Cgroup(layout.cgroup)
        self._workspace = Workspace(layout)
        self._parking = Parking(
            layout,
            self._manifest,
            self._poller,
            on_parked=self._on_parked,
            on_exit=self._on_exit,
            on_fault=self._on_template_fault,
        )
        self._grow_at = math.inf
        self._run: Run | None = None
        self._limits: LimitWatch | None = None
        """Of the run, where it has some that nothing else enforces."""
        self._waiting: RunRequest | None = None
        self._finishing: UserProcess | None = None
        self._fault: Fault | None = None
        """Ends the container once the run it came beside is answered."""
        self._is_output_paused = False
        self._awaited: TemplateLink | None = None
        """The template whose next process READY waits for."""
        self._park_deadline = 0.0
        self._reset_us = 0
        self._memory_bytes = self._watched_bytes = 0
        self._is_over = False

    def serve(self) -> None:
        """Work until stdin ends or something is beyond repair; then say why and return, which ends the container."""
        os.set_blocking(self._in, False)
        os.set_blocking(self._outbox.fd, False)
        self._poller.watch(self._in, self._on_stdin)
        orphans = _wake_when_a_child_ends()
        self._poller.watch(orphans, lambda: self._on_orphans(orphans))
        try:
            while not self._is_over:
                self._poller.turn(self._timeout())
                self._tick()
        except Fault as fault:
            with contextlib.suppress(OSError):
                self._outbox.send(frames.FAULT, 0, {"reason": fault.reason})

    # Frames from the service

    def _on_stdin(self) -> None:
        try:
            chunk = os.read(self._in, READ_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            self._is_over = True  # the service is gone, nobody is left to tell
            return
        try:
            for frame in self._reader.feed(chunk):
                self._on_frame(frame)
        except (frames.FrameError, ValueError, KeyError, TypeError):
            raise Fault("bad_frame") from None

    def _on_frame(self, frame: Frame) -> None:
        if frame.type == frames.RUN and self._parking.is_begun and self._run is None and self._waiting is None:
            self._waiting = RunRequest(frame, self._manifest.source_name)
            self._start_waiting()
        elif frame.type == frames.CANCEL:
            self._cancel(frame.run_id)
        elif frame.type == frames.PING:
            self._outbox.send(frames.PONG, 0, {})
        elif frame.type == frames.CONFIGURE and not self._parking.is_begun:
            self._configure(json.loads(frame.head))
        else:
            raise ValueError("frame out of turn")

    def _configure(self, head: dict[str, Any]) -> None:
        with open(self._layout.packages, "rb") as file:
            packages = json.load(file)
        hello = {"nonce": head["nonce"], "version": packages["version"], "packages": packages["packages"]}
        self._outbox.send(frames.HELLO, 0, hello)
        self._workspace.wipe(time.monotonic() + RESET_SECONDS)
        self._memory_bytes = head["memory_bytes"]
        self._watched_bytes = self._memory_bytes if self._cgroup.counts_memory(head["container_bytes"]) else 0
        first = self._parking.begin(
            head["templates"],
            range(head["uid_base"], head["uid_base"] + head["uid_count"]),
            processes=head["processes"],
            heap_mb=self._memory_bytes // (1024 * 1024),
        )
        self._await_parked(first)

    def _cancel(self, run_id: int) -> None:
        if self._waiting is not None and self._waiting.id == run_id:
            self._waiting = None
            self._outbox.send(frames.RESULT, run_id, {**NOTHING, "cancelled": True})
            self._announce()
        elif self._run is not None and self._run.request.id == run_id:
            self._run.is_cancelled = True
            self._finish()

    # Parked processes

    def _on_parked(self, link: TemplateLink) -> None:
        if self._waiting is not None:
            self._start_waiting()
        elif self._awaited in (link, None) and self._run is None:
            self._awaited = None
            self._announce()  # also when one more template became available

    def _on_exit(self, process: UserProcess) -> bool:
        if self._run is not None and self._run.process is process:
            self._finish()
            return True
        return self._finishing is process

    def _on_template_fault(self, link: TemplateLink, fault: Fault) -> None:
        """A template that fails beside a run is no reason to lose that run, whose own template goes on."""
        busy = self._run.process if self._run is not None else self._finishing
        if busy is None or link.process is busy:
            raise fault
        self._fault = fault

    def _await_parked(self, link: TemplateLink) -> None:
        self._awaited = link
        self._park_deadline = time.monotonic() + PARK_SECONDS

    def _end_if_at_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _announce(self) -> None:
        self._end_if_at_fault()
        head = {
            "runs_left": self._parking.runs_left,
            "templates": self._parking.parked(),
            "reset_us": self._reset_us,
        }
        self._outbox.send(frames.READY, 0, head)
        if self._parking.can_grow:
            self._grow_at = time.monotonic() + GROW_SECONDS

    @staticmethod
    def _on_orphans(fd: int) -> None:
        """Collect them at once: a dead one counts against the processes of the run that left it."""
        os.read(fd, 4096)
        reset.reap_orphans()

    # A run

    def _start_waiting(self) -> None:
        request = self._waiting
        assert request is not None
        self._end_if_at_fault()
        self._grow_at = math.inf  # the next READY sets it anew
        link = self._parking.link_for(request.template)
        process = link.process
        if process is None or not process.report.is_parked:
            self._await_parked(link)  # still loading or forking; `_on_parked` comes back here
            return
        self._waiting = self._awaited = None
        try:
            self._workspace.place(request, process.uid)
        except OSError as error:
            self._refuse(request, error)
            return
        cgroup = self._cgroup
        # A template that loads uses as much CPU as a hundred runs, on nobody's account.
        is_settled = self._parking.is_settled
        others = None if is_settled else lambda: self._parking.cpu_us_besides(process)
        run = Run(request, process, cpu=CpuMeter(cgroup, others), oom_kills=cgroup.oom_kills())
        limits = LimitWatch(run, cgroup, memory_bytes=self._watched_bytes, is_settled=is_settled)
        self._limits = limits if limits.is_needed else None
        self._run = run
        self._poller.watch(process.result, self._on_report)
        self._poller.watch(process.stdout, lambda: self._on_output(1))
        self._poller.watch(process.stderr, lambda: self._on_output(2))
        run.to_write = {"program": memoryview(request.message), "stdin": request.stdin}
        for name in ("stdin", "program"):
            if run.write(name):
                process.close(name)
            else:
                fd = getattr(process, name)
                self._poller.watch(fd, lambda name=name: self._on_writable(name), select.EPOLLOUT)  # type: ignore[misc]

    def _refuse(self, request: RunRequest, error: OSError) -> None:
        """The files do not fit the working directory or each other, which is the caller's doing and no loss of ours."""
        path = "" if error.filename is None else f"{os.path.relpath(error.filename, self._layout.workspace)}: "
        message = f"the input files cannot be placed: {path}{error.strerror}"
        stderr = f"{message}\n".encode()
        head = {
            **NOTHING,
            "exit_code": 1,
            "error": {"type": "FilesError", "message": message, "line": None},
            "stderr_bytes": len(stderr),
        }
        self._outbox.send(frames.RESULT, request.id, head, [stderr])
        # No program saw them; the parked process stays.
        self._workspace.wipe(time.monotonic() + RESET_SECONDS)
        self._announce()

    def _on_writable(self, name: str) -> None:
        run = self._run
        if run is not None and run.write(name):
            self._poller.unwatch(getattr(run.process, name))
            run.process.close(name)

    def _on_report(self) -> None:
        run = self._run
        assert run is not None
        if not run.read_report():
            # Closed or garbage: the program goes on without a voice, its end comes from the template.
            self._poller.unwatch(run.process.result)
            run.process.close("result")
        if run.report.is_done or run.limit:
            self._finish()

    def _on_output(self, stream: int) -> None:
        run = self._run
        assert run is not None
        kept, is_end = run.read_output(stream)
        if kept and run.request.is_streaming:
            self._outbox.queue(frames.OUTPUT, run.request.id, {"stream": stream}, [kept])
            self._outbox.flush()
            if self._outbox.unsent_bytes > MAX_UNSENT_BYTES and not run.limit:
                self._pause_output(run)
        if is_end:
            name = "stdout" if stream == 1 else "stderr"
            self._poller.unwatch(getattr(run.process, name))
            run.process.close(name)
        if run.limit:
            self._finish()

    def _pause_output(self, run: Run) -> None:
        """The service reads slowly: the program waits in its write, the wall clock goes on."""
        self._is_output_paused = True
        self._poller.unwatch(run.process.stdout)
        self._poller.unwatch(run.process.stderr)
        self._poller.watch(self._outbox.fd, self._on_out_writable, select.EPOLLOUT)

    def _on_out_writable(self) -> None:
        self._outbox.flush()
        if self._outbox.unsent_bytes <= MAX_UNSENT_BYTES // 2:
            self._resume_output()

    def _resume_output(self) -> None:
        self._is_output_paused = False
        self._poller.unwatch(self._outbox.fd)
        if self._run is not None:
            process = self._run.process
            for stream, fd in ((1, process.stdout), (2, process.stderr)):
                if fd >= 0:
                    self._poller.watch(fd, lambda stream=stream: self._on_output(stream))  # type: ignore[misc]

    def _finish(self) -> None:
        """The run is over, one way or another: gather the facts, answer, then reset."""
        run = self._run
        assert run is not None
        run.wall_us = int((time.monotonic() - run.started) * 1e6)
        run.limit = run.met_limit or run.limit
        self._run = None
        process = self._finishing = run.process
        if self._is_output_paused:
            self._resume_output()
        is_dead = process.exit is not None
        if is_dead:
            # First, so that no child it left behind goes on writing reports while they are read.
            self._parking.kill(process, time.monotonic() + RESET_SECONDS)
        if run.limit in (None, "output") and not run.is_cancelled:
            # With too much output too: its end may be the traceback of an exception that was reported before it.
            run.drain_report()
        ended_well = run.report.is_done and not run.limit and not run.is_cancelled
        memory_kb = process.exit[1] if process.exit else peak_memory_kb(process.pid)
        is_collectable = run.request.keep_artifacts or (ended_well and not run.report.error)
        collects = is_collectable and self._workspace.has_artifacts()
        if not is_dead and (collects or not ended_well):
            # A program that goes on must be stopped; and no process may change a file while it is read.
            self._parking.kill(process, time.monotonic() + RESET_SECONDS)
            is_dead = True
        for stream, kept in run.drain_output():
            if run.request.is_streaming:
                self._outbox.queue(frames.OUTPUT, run.request.id, {"stream": stream}, [kept])
        head, parts = describe(
            run,
            memory_kb=memory_kb,
            memory_bytes=self._memory_bytes,
            cgroup=self._cgroup,
            keeps_own_heap=self._manifest.runner_kind == "exec",
        )
        if collects and (head["exit_code"] == 0 or run.request.keep_artifacts):
            head["artifacts_skipped"] = self._workspace.send_artifacts(run.request, process.uid, self._outbox)
        self._outbox.send(frames.RESULT, run.request.id, head, parts)
        self._reset(process, is_dead=is_dead)
        self._finishing = None

    # Reset

    def _reset(self, process: UserProcess, *, is_dead: bool) -> None:
        started = time.monotonic()
        deadline = started + RESET_SECONDS
        link = self._parking.link_of(process)
        if not is_dead:
            self._parking.kill(process, deadline)
        self._parking.discard(link)
        if self._manifest.runner_kind == "python":
            # Forking takes longest and looks at no file, so it goes on beside the wipe.
            self._parking.park(link)
            self._workspace.wipe(deadline)
        else:
            # An interpreter that starts looks where it likes, its home and its working directory included.
            self._workspace.wipe(deadline)
            self._parking.park(link)
        self._reset_us = int((time.monotonic() - started) * 1e6)
        if link.process is not None:
            self._await_parked(link)
        else:
            self._announce()

    # Time

    def _timeout(self) -> float:
        now = time.monotonic()
        if self._run is not None:
            left = self._run.deadline - now
            if self._limits is not None:
                left = min(left, WATCH_SECONDS)
            return max(0.0, left)
        if self._awaited is not None:
            return max(0.0, self._park_deadline - now)
        return -1 if self._grow_at == math.inf else max(0.0, self._grow_at - now)

    def _tick(self) -> None:
        now = time.monotonic()
        run = self._run
        if run is None:
            if self._awaited is not None and now > self._park_deadline:
                raise Fault("park_slow")
            if self._awaited is None and now >= self._grow_at:
                self._grow_at = math.inf
                self._parking.grow()
            return
        if now >= run.deadline:
            self._end(run, "time")
        elif self._limits is not None and (limit := self._limits.exceeded()) is not None:
            self._end(run, limit)

    def _end(self, run: Run, limit: str) -> None:
        """A limit is met. A runner that holds output back may give it away first, where that takes no more memory."""
        pid = run.process.pid
        if run.met_limit is None and self._manifest.runner_kind == "python" and limit != "memory" and pid:
            run.met_limit = limit
            run.deadline = time.monotonic() + LAST_WORDS_SECONDS
            self._limits = None
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, LAST_WORDS_SIGNAL)
            return
        run.limit = limit
        self._finish()


def _wake_when_a_child_ends() -> int:
    """Return a descriptor that can be read when one has."""
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    return readable


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    layout = Layout(**json.loads(sys.argv[1])) if len(sys.argv) > 1 else Layout()
    if layout.is_pid_one and not reset.has_seccomp():
        # Under gVisor, which ignores the engine's profile. Elsewhere nobody needs ctypes in memory.
        from supervisor import syscall_filter  # noqa: PLC0415

        syscall_filter.install()
    Supervisor(layout).serve()

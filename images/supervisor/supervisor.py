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
from collections.abc import Callable
from typing import Any

from supervisor import frames, reset
from supervisor.accounting import Cgroup, count_processes, peak_memory_kb
from supervisor.frames import Frame, FrameReader
from supervisor.layout import Layout, read_manifest
from supervisor.outbox import Outbox
from supervisor.outcome import NOTHING, describe
from supervisor.run import READ_BYTES, Run, RunRequest
from supervisor.templates import TemplateLink, UserProcess, grow_template, start_template
from supervisor.workspace import Workspace

RESET_SECONDS = 2.0
PARK_SECONDS = 10.0
"""Loading the largest template counts into the first one."""
MAX_KILLED_FORKS = 3
PROCESS_BYTES = 8 * 1024 * 1024
"""What each process of a run costs where we are the only ones to look (gVisor), whatever it does; not its own use."""
TEMPLATES_BYTES = 256 * 1024 * 1024
"""Likewise, of templates that load beside a run. The container has room for both."""
GROW_SECONDS = 0.2
"""How long a container is idle before it loads one more template. Loading pandas and matplotlib costs as much CPU as a
hundred runs, which a container that is used at once, and perhaps only once, should not spend beside them."""
WATCH_SECONDS = 0.02
"""How often CPU and memory are looked at when a run has limits of its own for them."""
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
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._cgroup = Cgroup(layout.cgroup)
        self._workspace = Workspace(layout)
        self._scheduling = reset.scheduling()
        self._links: list[TemplateLink] = []
        self._missing: list[str] = []
        """Templates that are not started yet."""
        self._grow_at = math.inf
        self._uids = range(0)
        self._next_uid = 0
        self._run: Run | None = None
        self._waiting: RunRequest | None = None
        self._finishing: UserProcess | None = None
        self._is_output_paused = False
        self._parking: TemplateLink | None = None
        """The template whose next process READY waits for."""
        self._park_deadline = 0.0
        self._reset_us = 0
        self._memory_bytes = 0
        self._fault: str | None = None

    def serve(self) -> None:
        """Work until stdin ends or something is beyond repair; then say why and return, which ends the container."""
        os.set_blocking(self._in, False)
        os.set_blocking(self._outbox.fd, False)
        self._watch(self._in, self._on_stdin)
        orphans = _wake_when_a_child_ends()
        self._watch(orphans, lambda: self._on_orphans(orphans))
        while self._fault is None:
            for fd, _ in self._epoll.poll(self._timeout()):
                # A handler may have closed what a later event of the same batch is about.
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler()
            self._tick()
        if self._fault:
            with contextlib.suppress(OSError):
                self._outbox.send(frames.FAULT, 0, {"reason": self._fault})

    # Frames from the service

    def _on_stdin(self) -> None:
        try:
            chunk = os.read(self._in, READ_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            self._fault = ""  # the service is gone, nobody is left to tell
            return
        try:
            for frame in self._reader.feed(chunk):
                self._on_frame(frame)
        except (frames.FrameError, ValueError, KeyError, TypeError):
            self._fault = "bad_frame"

    def _on_frame(self, frame: Frame) -> None:
        if frame.type == frames.RUN and self._links and self._run is None and self._waiting is None:
            request = RunRequest(frame, self._manifest.source_name)
            if request.memory_bytes >= self._memory_bytes and self._cgroup.enforces_memory:
                request.memory_bytes = 0  # the kernel takes a process of the run at that one, nobody has to look
            self._waiting = request
            self._start_waiting()
        elif frame.type == frames.CANCEL:
            self._cancel(frame.run_id)
        elif frame.type == frames.PING:
            self._outbox.send(frames.PONG, 0, {})
        elif frame.type == frames.CONFIGURE and not self._links:
            self._configure(json.loads(frame.head))
        else:
            raise ValueError("frame out of turn")

    def _configure(self, head: dict[str, Any]) -> None:
        self._uids = range(head["uid_base"], head["uid_base"] + head["uid_count"])
        self._next_uid = self._uids.start
        with open(self._layout.packages, "rb") as file:
            packages = json.load(file)
        hello = {"nonce": head["nonce"], "version": packages["version"], "packages": packages["packages"]}
        self._outbox.send(frames.HELLO, 0, hello)
        self._workspace.wipe(time.monotonic() + RESET_SECONDS)
        self._memory_bytes = head["memory_bytes"]
        heap_mb = self._memory_bytes // (1024 * 1024)
        first, *self._missing = (name for name in self._manifest.templates if name in head["templates"])
        processes = head["processes"]
        self._add(start_template(self._layout, self._manifest, first, processes=processes, heap_mb=heap_mb))
        self._await_parked(self._links[0])

    def _cancel(self, run_id: int) -> None:
        if self._waiting is not None and self._waiting.id == run_id:
            self._waiting = None
            self._outbox.send(frames.RESULT, run_id, {**NOTHING, "cancelled": True})
            self._announce()
        elif self._run is not None and self._run.request.id == run_id:
            self._run.is_cancelled = True
            self._finish()

    # Templates and parked processes

    def _add(self, link: TemplateLink) -> TemplateLink:
        self._links.append(link)
        self._watch(link.control.fileno(), lambda: self._on_template(link))
        return link

    def _grow(self, name: str) -> TemplateLink:
        self._missing.remove(name)
        self._grow_at = math.inf
        return self._add(grow_template(self._links, self._manifest, name))

    def _on_template(self, link: TemplateLink) -> None:
        message = link.read()
        if message is None:
            self._fault = "template_lost"
            return
        kind, value = message
        process = link.process
        if kind == "loaded":
            link.is_loaded = True
            self._park(link)
        elif kind == "started":
            link.pid = value
        elif kind == "forked" and process is not None:
            process.pid = value
        elif kind == "exited" and process is not None and process.pid == value[0]:
            process.exit = value[1:]
            if self._run is not None and self._run.process is process:
                self._finish()
            elif not process.report.is_parked:
                # What a run hoarded in the kernel may be freed a moment after its processes are gone.
                link.killed_forks += 1
                if value[1] != signal.SIGKILL or link.killed_forks > MAX_KILLED_FORKS:
                    self._fault = "park_failed"
                else:
                    self._discard(link)
                    self._park(link)
            elif self._finishing is not process:
                # A parked process was taken by the kernel, for memory that a run used up.
                self._discard(link)
                self._park(link)

    def _park(self, link: TemplateLink) -> None:
        if self._next_uid >= self._uids.stop:
            return  # READY says that no run is left
        process = link.fork(self._next_uid)
        self._next_uid += 1
        self._watch(process.result, lambda: self._on_parked(link, process))

    def _on_parked(self, link: TemplateLink, process: UserProcess) -> None:
        try:
            process.report.feed(os.read(process.result, 64))
        except BlockingIOError:
            return
        self._unwatch(process.result)
        if not process.report.is_parked:
            return  # it ended; its template says so next
        link.killed_forks = 0
        if self._waiting is not None:
            self._start_waiting()
        elif self._parking in (link, None) and self._run is None:
            self._parking = None
            self._announce()  # also when one more template became available

    def _await_parked(self, link: TemplateLink) -> None:
        self._parking = link
        self._park_deadline = time.monotonic() + PARK_SECONDS

    def _announce(self) -> None:
        parked = [link.name for link in self._links if link.process is not None and link.process.report.is_parked]
        runs_left = self._uids.stop - self._next_uid + len(parked)
        head = {"runs_left": runs_left, "templates": parked, "reset_us": self._reset_us}
        self._outbox.send(frames.READY, 0, head)
        if self._missing and runs_left > len(parked):
            self._grow_at = time.monotonic() + GROW_SECONDS

    def _discard(self, link: TemplateLink) -> None:
        process = link.process
        if process is not None:
            for fd in (process.stdin, process.stdout, process.stderr, process.result, process.program):
                self._unwatch(fd)
            process.close_all()
            link.process = None

    @staticmethod
    def _on_orphans(fd: int) -> None:
        """Collect them at once: a dead one counts against the processes of the run that left it."""
        os.read(fd, 4096)
        reset.reap_orphans()

    # A run

    def _start_waiting(self) -> None:
        request = self._waiting
        assert request is not None
        if request.template in self._missing and self._next_uid < self._uids.stop:
            self._grow(request.template)
        link = next((link for link in self._links if link.name == request.template), self._links[0])
        if link.process is None and self._next_uid >= self._uids.stop:
            # No more will be parked. Any template runs any program; some only take longer over their imports.
            link = next((other for other in self._links if other.process is not None), link)
        process = link.process
        if process is None or not process.report.is_parked:
            self._await_parked(link)  # still loading or forking; `_on_parked` comes back here
            return
        self._waiting = self._parking = None
        try:
            self._workspace.place(request, process.uid)
        except OSError as error:
            self._refuse(request, error)
            return
        cgroup = self._cgroup
        run = Run(request, process, cpu_us=cgroup.cpu_us(), oom_kills=cgroup.oom_kills())
        # While a template grows beside the run nobody can say whose memory it is, and the container's limit must do.
        is_settled = all(other.is_loaded for other in self._links)
        run.watches_memory = bool(request.memory_bytes) and (is_settled or not cgroup.enforces_memory)
        if run.watches_memory:
            run.memory_bound = request.memory_bytes
            if not is_settled:
                run.memory_bound += TEMPLATES_BYTES
            run.memory_before = cgroup.memory_bytes() - cgroup.cache_bytes()
        self._run = run
        self._watch(process.result, self._on_report)
        self._watch(process.stdout, lambda: self._on_output(1))
        self._watch(process.stderr, lambda: self._on_output(2))
        run.to_write = {"program": memoryview(request.message), "stdin": request.stdin}
        for name in ("stdin", "program"):
            if run.write(name):
                process.close(name)
            else:
                fd = getattr(process, name)
                self._watch(fd, lambda name=name: self._on_writable(name), select.EPOLLOUT)  # type: ignore[misc]

    def _refuse(self, request: RunRequest, error: OSError) -> None:
        """The files do not fit the working directory or each other, which is the caller's doing and no loss of ours."""
        message = f"the input files cannot be placed: {error.strerror}"
        stderr = f"{message}\n".encode()
        head = {
            **NOTHING,
            "exit_code": 1,
            "error": {"type": "FilesError", "message": message, "line": None},
            "stderr_bytes": len(stderr),
        }
        self._outbox.send(frames.RESULT, request.id, head, [stderr])
        try:
            # No program saw them; the parked process stays.
            self._workspace.wipe(time.monotonic() + RESET_SECONDS)
        except reset.ResetError as failure:
            self._fault = failure.reason
            return
        self._announce()

    def _on_writable(self, name: str) -> None:
        run = self._run
        if run is not None and run.write(name):
            self._unwatch(getattr(run.process, name))
            run.process.close(name)

    def _on_report(self) -> None:
        run = self._run
        assert run is not None
        if not run.read_report():
            # Closed or garbage: the program goes on without a voice, its end comes from the template.
            self._unwatch(run.process.result)
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
            self._unwatch(getattr(run.process, name))
            run.process.close(name)
        if run.limit:
            self._finish()

    def _pause_output(self, run: Run) -> None:
        """The service reads slowly: the program waits in its write, the wall clock goes on."""
        self._is_output_paused = True
        self._unwatch(run.process.stdout)
        self._unwatch(run.process.stderr)
        self._watch(self._outbox.fd, self._on_out_writable, select.EPOLLOUT)

    def _on_out_writable(self) -> None:
        self._outbox.flush()
        if self._outbox.unsent_bytes <= MAX_UNSENT_BYTES // 2:
            self._resume_output()

    def _resume_output(self) -> None:
        self._is_output_paused = False
        self._unwatch(self._outbox.fd)
        if self._run is not None:
            process = self._run.process
            for stream, fd in ((1, process.stdout), (2, process.stderr)):
                if fd >= 0:
                    self._watch(fd, lambda stream=stream: self._on_output(stream))  # type: ignore[misc]

    def _finish(self) -> None:
        """The run is over, one way or another: gather the facts, answer, then reset."""
        run = self._run
        assert run is not None
        run.wall_us = int((time.monotonic() - run.started) * 1e6)
        self._run = None
        process = self._finishing = run.process
        if self._is_output_paused:
            self._resume_output()
        try:
            is_dead = process.exit is not None
            if is_dead:
                # First, so that no child it left behind goes on writing reports while they are read.
                self._kill(process, time.monotonic() + RESET_SECONDS)
            if not run.limit and not run.is_cancelled:
                run.drain_report()
            ended_well = run.report.is_done and not run.limit and not run.is_cancelled
            memory_kb = process.exit[1] if process.exit else peak_memory_kb(process.pid)
            is_collectable = run.request.keep_artifacts or (ended_well and not run.report.error)
            collects = is_collectable and self._workspace.has_artifacts()
            if not is_dead and (collects or not ended_well):
                # A program that goes on must be stopped; and no process may change a file while it is read.
                self._kill(process, time.monotonic() + RESET_SECONDS)
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
        except reset.ResetError as error:
            self._fault = error.reason
        self._finishing = None

    # Reset

    def _kill(self, process: UserProcess, deadline: float) -> None:
        """Kill every process of the run and wait until none is left, zombies included."""
        known = {1, os.getpid()}
        while True:
            reset.kill_user(process.uid)
            self._await_exit(process, deadline)
            reset.reap_orphans()
            known.update(link.pid for link in self._links)
            known.update(link.process.pid for link in self._links if link.process and link.process is not process)
            if not reset.strangers(known, self._uids, is_pid_one=self._layout.is_pid_one):
                if reset.scheduling() != self._scheduling:
                    raise reset.ResetError("tampered_with")
                return
            if any(not link.pid or (link.process and not link.process.pid) for link in self._links):
                # A template that is just starting, or a fork that was not announced yet, is no stranger.
                self._poll_templates()
            if time.monotonic() > deadline:
                raise reset.ResetError("kill_failed")

    def _await_exit(self, process: UserProcess, deadline: float) -> None:
        link = next(link for link in self._links if link.process is process)
        poll = select.poll()
        poll.register(link.control, select.POLLIN)
        while process.exit is None:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise reset.ResetError("kill_slow")
            self._on_template(link)
            if self._fault:
                raise reset.ResetError(self._fault)

    def _poll_templates(self) -> None:
        poll = select.poll()
        by_fd = {link.control.fileno(): link for link in self._links}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(5):
            self._on_template(by_fd[fd])

    def _reset(self, process: UserProcess, *, is_dead: bool) -> None:
        started = time.monotonic()
        deadline = started + RESET_SECONDS
        link = next(link for link in self._links if link.process is process)
        if not is_dead:
            self._kill(process, deadline)
        self._discard(link)
        if self._manifest.runner_kind == "python":
            # Forking takes longest and looks at no file, so it goes on beside the wipe.
            self._park(link)
            self._workspace.wipe(deadline)
        else:
            # An interpreter that starts looks where it likes, its home and its working directory included.
            self._workspace.wipe(deadline)
            self._park(link)
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
            if self._run.request.cpu_us or self._run.watches_memory:
                left = min(left, WATCH_SECONDS)
            return max(0.0, left)
        if self._parking is not None:
            return max(0.0, self._park_deadline - now)
        return -1 if self._grow_at == math.inf else max(0.0, self._grow_at - now)

    def _tick(self) -> None:
        now = time.monotonic()
        run = self._run
        if run is None:
            if self._parking is not None and now > self._park_deadline:
                self._fault = "park_slow"
            elif self._parking is None and now >= self._grow_at:
                self._grow(self._missing[0])
            return
        if now >= run.deadline:
            run.limit = "time"
        elif run.request.cpu_us and self._cpu_used(run) > run.request.cpu_us:
            run.limit = "cpu"
        elif run.watches_memory and self._memory_used(run) > run.memory_bound:
            run.limit = "memory"
        if run.limit:
            self._finish()

    def _cpu_used(self, run: Run) -> int:
        now = self._cgroup.cpu_us()
        return 0 if now is None or run.cpu_before is None else now - run.cpu_before

    def _memory_used(self, run: Run) -> int:
        used = self._cgroup.memory_bytes() - run.memory_before
        if used <= run.memory_bound:
            return used
        # Only a doubt is worth the second look. Reading a file fills the page cache, which is nobody's use of memory.
        used -= self._cgroup.cache_bytes()
        if not self._cgroup.enforces_memory:
            used -= PROCESS_BYTES * count_processes(run.process.uid)
        return used

    # Descriptors

    def _watch(self, fd: int, handler: Callable[[], None], events: int = select.EPOLLIN) -> None:
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)


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

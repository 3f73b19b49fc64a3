"""Templates and what they park: of each at most one process, that has a user of its own and waits for a program."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable

from supervisor import reset
from supervisor.accounting import process_cpu_us
from supervisor.fault import Fault
from supervisor.layout import Layout, Manifest
from supervisor.poller import Poller
from supervisor.templates import TemplateLink, UserProcess, grow_template, start_template

MAX_KILLED_FORKS = 3


class Parking:
    """Starts templates, has them fork, and kills what they forked."""

    def __init__(
        self,
        layout: Layout,
        manifest: Manifest,
        poller: Poller,
        *,
        on_parked: Callable[[TemplateLink], None],
        on_exit: Callable[[UserProcess], bool],
        on_fault: Callable[[TemplateLink, Fault], None],
    ) -> None:
        """`on_exit` is told of every process that ended, and returns whether it was one that had been given a program.
        One that had not is replaced. `on_fault` is told when a template is lost or cannot fork any more.
        """
        self._layout = layout
        self._manifest = manifest
        self._poller = poller
        self._on_parked = on_parked
        self._on_exit = on_exit
        self._on_fault = on_fault
        self._scheduling = reset.scheduling()
        self._links: list[TemplateLink] = []
        self._missing: list[str] = []
        """Templates that are not started yet."""
        self._uids = range(0)
        self._next_uid = 0

    def begin(self, templates: Iterable[str], uids: range, *, processes: int, heap_mb: int) -> TemplateLink:
        """Start the first template; the others come with `grow` or when a program wants one."""
        self._uids, self._next_uid = uids, uids.start
        first, *self._missing = (name for name in self._manifest.templates if name in templates)
        return self._add(start_template(self._layout, self._manifest, first, processes=processes, heap_mb=heap_mb))

    # What is there

    @property
    def is_begun(self) -> bool:
        return bool(self._links)

    @property
    def is_settled(self) -> bool:
        """Whether no template is loading."""
        return all(link.is_loaded for link in self._links)

    @property
    def has_users(self) -> bool:
        """Whether one more process can be parked; each gets a user that no other ever has."""
        return self._next_uid < self._uids.stop

    @property
    def can_grow(self) -> bool:
        return bool(self._missing) and self.has_users

    def parked(self) -> list[str]:
        """Names of the templates whose process waits for a program."""
        return [link.name for link in self._links if link.process is not None and link.process.report.is_parked]

    @property
    def runs_left(self) -> int:
        return self._uids.stop - self._next_uid + len(self.parked())

    def cpu_us_besides(self, process: UserProcess) -> int:
        """CPU time that templates, and what they parked besides this process, have used so far."""
        parked = (link.process.pid for link in self._links if link.process is not None and link.process is not process)
        return sum(process_cpu_us(pid) for pid in (*(link.pid for link in self._links), *parked) if pid)

    def link_for(self, template: str) -> TemplateLink:
        """The template that is to run a program, grown where it is missing; its process may not be parked yet."""
        if template in self._missing and self.has_users:
            self.grow(template)
        link = next((link for link in self._links if link.name == template), self._links[0])
        if link.process is None and not self.has_users:
            # No more will be parked. Any template runs any program; some only take longer over their imports.
            link = next((other for other in self._links if other.process is not None), link)
        return link

    def link_of(self, process: UserProcess) -> TemplateLink:
        return next(link for link in self._links if link.process is process)

    # Starting

    def grow(self, name: str | None = None) -> None:
        """Start one of the missing templates, the next one unless named."""
        name = name if name is not None else self._missing[0]
        self._missing.remove(name)
        self._add(grow_template(self._links, self._manifest, name))

    def park(self, link: TemplateLink) -> None:
        if not self.has_users:
            return  # READY says that no run is left
        process = link.fork(self._next_uid)
        self._next_uid += 1
        self._poller.watch(process.result, lambda: self._on_result(link, process))

    def discard(self, link: TemplateLink) -> None:
        """Close all that is left of a template's process, which has ended."""
        process = link.process
        if process is not None:
            for fd in (process.stdin, process.stdout, process.stderr, process.result, process.program):
                self._poller.unwatch(fd)
            process.close_all()
            link.process = None

    def _add(self, link: TemplateLink) -> TemplateLink:
        self._links.append(link)
        self._poller.watch(link.control.fileno(), lambda: self._on_template(link))
        return link

    def _on_template(self, link: TemplateLink) -> None:
        message = link.read()
        if message is None:
            self._fail(link, "template_lost")
            return
        kind, value = message
        process = link.process
        if kind == "loaded":
            link.is_loaded = True
            self.park(link)
        elif kind == "started":
            link.pid = value
        elif kind == "forked" and process is not None:
            process.pid = value
        elif kind == "exited" and process is not None and process.pid == value[0]:
            process.exit = value[1:]
            if not self._on_exit(process):
                self._replace(link, process)

    def _replace(self, link: TemplateLink, process: UserProcess) -> None:
        """The kernel took a process that had no program, for memory that a run used up."""
        if not process.report.is_parked:
            # What a run hoarded in the kernel may be freed a moment after its processes are gone.
            link.killed_forks += 1
            if process.exit is None or process.exit[0] != signal.SIGKILL or link.killed_forks > MAX_KILLED_FORKS:
                self._fail(link, "park_failed")
                return
        self.discard(link)
        self.park(link)

    def _fail(self, link: TemplateLink, reason: str) -> None:
        # Nothing it says matters any more, and a socket that is hung up wakes whoever waits for it.
        link.is_failed = True
        self._poller.unwatch(link.control.fileno())
        self._on_fault(link, Fault(reason))

    def _on_result(self, link: TemplateLink, process: UserProcess) -> None:
        try:
            process.report.feed(os.read(process.result, 64))
        except BlockingIOError:
            return
        self._poller.unwatch(process.result)
        if process.report.is_parked:
            link.killed_forks = 0
            self._on_parked(link)
        # Else it ended; its template says so next.

    # Killing

    def kill(self, process: UserProcess, deadline: float) -> None:
        """Kill every process of a run and wait until none is left, zombies included. Raises `Fault`."""
        known = {1, os.getpid()}
        while True:
            reset.kill_user(process.uid)
            self._await_exit(process, deadline)
            reset.reap_orphans()
            known.update(link.pid for link in self._links)
            known.update(link.process.pid for link in self._links if link.process and link.process is not process)
            if not reset.strangers(known, self._uids, is_pid_one=self._layout.is_pid_one):
                if reset.scheduling() != self._scheduling:
                    raise Fault("tampered_with")
                return
            if any(not link.pid or (link.process and not link.process.pid) for link in self._links):
                # A template that is just starting, or a fork that was not announced yet, is no stranger.
                self._poll_templates()
            if time.monotonic() > deadline:
                raise Fault("kill_failed")

    def _await_exit(self, process: UserProcess, deadline: float) -> None:
        link = self.link_of(process)
        poll = select.poll()
        poll.register(link.control, select.POLLIN)
        while process.exit is None:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise Fault("kill_slow")
            self._on_template(link)

    def _poll_templates(self) -> None:
        poll = select.poll()
        by_fd = {link.control.fileno(): link for link in self._links if not link.is_failed}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(5):
            self._on_template(by_fd[fd])

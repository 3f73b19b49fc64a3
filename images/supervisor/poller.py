"""One epoll, and whom to call when a descriptor is ready."""

from __future__ import annotations

import select
from collections.abc import Callable


class Poller:
    """Handlers of descriptors; whoever closes one takes it out first."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, handler: Callable[[], None], events: int = select.EPOLLIN) -> None:
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Twice is fine, and so is a descriptor that was never watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def turn(self, seconds: float) -> None:
        """Wait at most so long (-1: without bound) and call whom it concerns."""
        for fd, _ in self._epoll.poll(seconds):
            # A handler may have closed what a later event of the same batch is about.
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()

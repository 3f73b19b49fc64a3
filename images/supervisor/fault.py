"""What a container does not live on after."""

from __future__ import annotations


class Fault(Exception):
    """The container must not be used again, and ends. `reason` is one of a few words, for the service's log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

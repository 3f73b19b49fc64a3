"""What the pool tells an observer: frozen events, so that metrics need no call in the pool's code."""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec

from sandbox_svc.pool.slots import Retirement


class QueueAnswer(enum.Enum):
    """How the wait for a slot ended."""

    SERVED = "served"
    FULL = "full"
    TIMED_OUT = "timed_out"
    """Waited its full time, or it was clear that it would."""
    CANCELLED = "cancelled"
    CLOSED = "closed"


class QueueWaited(msgspec.Struct, frozen=True):
    """A lease was asked for and answered; `seconds` is 0 when it was answered at once."""

    language: str
    answer: QueueAnswer
    seconds: float


class SlotStarted(msgspec.Struct, frozen=True):
    """A container became ready; `seconds` from the call that created it."""

    language: str
    seconds: float


class StartFailed(msgspec.Struct, frozen=True):
    """A container could not be started; `code` is the stable code of our error, `failures` counts those in a row."""

    language: str
    code: str
    failures: int
    retry_seconds: float


class ResetTook(msgspec.Struct, frozen=True):
    """A reset was verified, `seconds` after the lease was over."""

    language: str
    seconds: float


class SlotRetired(msgspec.Struct, frozen=True):
    """A container is to be removed; emitted once for each."""

    language: str
    reason: Retirement


class SlotRemoved(msgspec.Struct, frozen=True):
    """A removal was confirmed, `seconds` after it was first tried."""

    language: str
    seconds: float


class RemovalFailed(msgspec.Struct, frozen=True):
    """One attempt to remove a container failed; it is tried again."""

    language: str


class OrphansSwept(msgspec.Struct, frozen=True):
    """Containers of dead instances were removed."""

    count: int


class EngineChecked(msgspec.Struct, frozen=True):
    """The engine was asked for a sign of life."""

    is_up: bool


PoolEvent = (
    QueueWaited
    | SlotStarted
    | StartFailed
    | ResetTook
    | SlotRetired
    | SlotRemoved
    | RemovalFailed
    | OrphansSwept
    | EngineChecked
)

Observer = Callable[[PoolEvent], None]
"""Called within transitions: it must return at once, must not raise and must not call the pool."""


def ignore(_event: PoolEvent) -> None:
    """The observer of those who have none."""

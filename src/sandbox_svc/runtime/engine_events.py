"""What the client of the engine tells an observer: frozen events, so that metrics need no call in its code."""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec


class EngineCall(enum.Enum):
    """What the engine is asked for, in our words for it; the value is a label of a metric."""

    DESCRIBE = "describe"
    PING = "ping"
    IMAGES = "images"
    CREATE = "create"
    ATTACH = "attach"
    START = "start"
    WAIT = "wait"
    REMOVE = "remove"
    LIST = "list"
    INSPECT = "inspect"
    NETWORK = "network"


class EngineErrorKind(enum.Enum):
    """How a call failed."""

    TIMEOUT = "timeout"
    """No answer within the call's deadline."""
    REFUSED = "refused"
    """The engine answered, and said no."""
    UNREACHABLE = "unreachable"
    """No connection, or one that broke."""


class EngineFailed(msgspec.Struct, frozen=True):
    """A call failed; who made it may try again."""

    call: EngineCall
    kind: EngineErrorKind


EngineObserver = Callable[[EngineFailed], None]
"""It must return at once and must not raise."""


def ignore(_event: EngineFailed) -> None:
    """The observer of those who have none."""

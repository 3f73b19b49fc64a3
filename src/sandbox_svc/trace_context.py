"""The W3C Trace Context of a request: reading `traceparent`, and the span of ours that answers it."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 0x01


class TraceContext(msgspec.Struct, frozen=True):
    """Where a run stands in a trace. Ids are lower-case hexadecimal, as they travel."""

    trace_id: str
    parent_id: str | None
    """The caller's span; None when the trace begins here."""
    span_id: str
    """The span of the run."""
    is_sampled: bool

    @property
    def response_header(self) -> tuple[bytes, bytes]:
        """`traceresponse`, as in level 2 of the recommendation: which span of which trace the run was."""
        text = f"00-{self.trace_id}-{self.span_id}-{self.is_sampled:02x}"
        return b"traceresponse", text.encode("ascii")


def read_traceparent(headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
    """Return the context of a request's headers; None without one, or where it is not valid or not unique."""
    found: bytes | None = None
    for name, value in headers:
        if name == b"traceparent":
            if found is not None:
                return None
            found = value
    if found is None:
        return None
    match = _TRACEPARENT.fullmatch(found.strip())
    if match is None:
        return None
    version, trace_id, parent_id, flags, rest = match.groups()
    # Later versions may say more; they must still begin like this one.
    if version == b"ff" or (version == b"00" and rest) or not trace_id.strip(b"0") or not parent_id.strip(b"0"):
        return None
    return TraceContext(trace_id.decode(), parent_id.decode(), new_span_id(), bool(int(flags, 16) & _SAMPLED))


def new_trace() -> TraceContext:
    """A trace that begins here."""
    return TraceContext(secrets.token_hex(16), None, new_span_id(), True)


def new_span_id() -> str:
    return secrets.token_hex(8)

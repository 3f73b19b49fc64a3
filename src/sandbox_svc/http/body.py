"""Reads request bodies within bounds: bytes of one and of all together, and time for the whole of one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from sandbox_svc.errors import InvalidRequest, PoolExhausted, RequestTimeout, RequestTooLarge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]


class BodyBudget:
    """Bytes of all requests that are being received, wait or run; bounds what callers can make us hold.

    Nobody holds more than is left for all others: the first one may have half of it, the next half of the rest. So one
    caller, however many uploads it begins and never ends, keeps nobody else out.
    """

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._held: dict[str, int] = {}
        """By caller; none that holds nothing."""

    def share(self) -> BodyShare:
        return BodyShare(self)

    def take(self, caller: str, count: int) -> None:
        """Raises `PoolExhausted`; nothing is taken then."""
        held = self._held.get(caller, 0) + count
        if held > self._left - count:
            raise PoolExhausted("The service holds too many large requests at the moment")
        self._left -= count
        self._held[caller] = held

    def give_back(self, caller: str, count: int) -> None:
        self._left += count
        held = self._held.get(caller, 0) - count
        if held > 0:
            self._held[caller] = held
        else:
            self._held.pop(caller, None)


class BodyShare:
    """What one request takes of the budget: `with budget.share() as share`."""

    __slots__ = ("_budget", "_taken", "caller")

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._taken = 0
        self.caller = ""
        """Whom it counts for; to be set before anything is taken."""

    def take(self, count: int) -> None:
        """Raises `PoolExhausted`."""
        self._budget.take(self.caller, count)
        self._taken += count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self.caller, self._taken)


async def read_body(
    receive: Receive,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    share: BodyShare,
    max_bytes: int,
    timeout_seconds: float,
) -> bytes | None:
    """Return the body, or None when the caller is gone.

    Raises `RequestTooLarge` as soon as that is clear, `RequestTimeout` when the end has not come in time,
    `PoolExhausted` when `share` does not suffice, and `InvalidRequest` for an encoded body. Cancelling leaves the rest
    unread.
    """
    for name, value in headers:
        if name == b"content-length":
            # The server refuses a length that is no number or does not match what is sent.
            if int(value) > max_bytes:
                raise _too_large(max_bytes)
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise InvalidRequest("The body must be sent without Content-Encoding")
    try:
        # Covers the loop as a whole, so that a byte now and then does not keep the request alive.
        async with asyncio.timeout(timeout_seconds):
            chunks: list[bytes] = []
            count = 0
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                chunk = message.get("body", b"")
                if chunk:
                    count += len(chunk)
                    if count > max_bytes:
                        raise _too_large(max_bytes)
                    share.take(len(chunk))
                    chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {timeout_seconds:g} seconds") from None


def _too_large(max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"The body must not be larger than {max_bytes} bytes")

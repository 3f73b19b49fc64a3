"""Whose request it is where there are no keys: the address of the client, which only configured proxies may name."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_HOPS: Final = 32
MAX_HEADER_BYTES: Final = 4096
"""How much of `X-Forwarded-For` is looked at, from its end; what comes before is of the caller's own making."""


def parse_networks(text: str) -> tuple[Network, ...]:
    """Read a list such as `10.0.0.0/8, ::1`. Raises `ValueError` with a phrase that continues "SANDBOX_X=... "."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("is not a list of networks such as 10.0.0.0/8,192.168.1.7,fd00::/8") from None


class ForwardedClient:
    """ASGI middleware: behind a trusted proxy, `scope["client"]` is the client that the proxy names.

    The headers of anyone else are never looked at, so nobody can choose whom a request is counted for.
    """

    def __init__(self, app: ASGIApp, *, trusted: Sequence[Network]) -> None:
        self._app = app
        self._trusted = tuple(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if self._trusted and client is not None and scope["type"] in {"http", "websocket"}:
            values = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
            named = forwarded_client(client[0], values, self._trusted) if values else client[0]
            if named != client[0]:
                scope = {**scope, "client": (named, 0)}
        await self._app(scope, receive, send)


def forwarded_client(peer: str, forwarded_for: Sequence[bytes], trusted: Sequence[Network]) -> str:
    """Return the client's address. `forwarded_for` are the values of all `X-Forwarded-For` headers in their order.

    They are read from their end: each trusted proxy vouches for the entry before it, nobody for what comes before the
    first address that is no trusted proxy. An entry that is no address ends the reading.
    """
    address = _parse(peer)
    if address is None:
        return peer
    text = b",".join(forwarded_for)[-MAX_HEADER_BYTES:].decode("latin-1")
    for hop in reversed(text.split(",")[-MAX_HOPS:]):
        if not any(address in network for network in trusted):
            break
        named = _parse(hop)
        if named is None:
            break
        address = named
    return str(address)


def address_key(client: str | None) -> str:
    """Return what one caller cannot change at will: an IPv4 address, or the /64 of an IPv6 address.

    A peer without an address (a Unix socket) is `local`.
    """
    address = _parse(client or "")
    if address is None:
        return "local"
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)


def _parse(text: str) -> Address | None:
    """Read an address with or without a port, brackets or a zone; None for anything else."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address

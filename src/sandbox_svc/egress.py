"""Networks that lead out, as an operator names them: what may be named, and what stays out of reach on all of them."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

Block = ipaddress.IPv4Network

NEVER_REACHED: Final = tuple(
    Block(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # behind a provider's address translation; Alibaba Cloud's metadata service is there
        "127.0.0.0/8",  # on the wire, that is: a host with route_localnet would take it for its own
        "169.254.0.0/16",  # link-local: the metadata services of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # Oracle's older metadata service among them
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/4",  # multicast, which finds neighbours without knowing them
        "240.0.0.0/4",  # with the broadcast address
        "168.63.129.16/32",  # public by its number, and Azure's own host to every machine there
    )
)
"""Special by RFC 6890, or somebody's inside. The documentation's own networks are not among them: nobody has them."""

_LANGUAGE = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)
_NOT_THE_OPERATORS: Final = frozenset(("bridge", "default", "host", "none", "nat", "ingress"))
MAX_RESOLVERS: Final = 3
"""What libc takes from a resolv.conf."""
MAX_DENIED: Final = 64


class Egress(msgspec.Struct, frozen=True, kw_only=True):
    """Which languages have a network, and what they find there."""

    networks: dict[str, str] = {}
    """The engine's networks by language; a language that is not here has none."""
    resolvers: tuple[str, ...] = ()
    denied: tuple[Block, ...] = ()
    """Refused beside what always is."""

    @property
    def refused(self) -> tuple[str, ...]:
        """What the filter refuses, without repetition."""
        return tuple(str(block) for block in ipaddress.collapse_addresses((*NEVER_REACHED, *self.denied)))


# Parsers of settings: ValueError with a phrase that continues "SANDBOX_X=... ".


def parse_egress_networks(text: str) -> dict[str, str]:
    """Read `python=sandbox-egress,nodejs=sandbox-egress`."""
    found: dict[str, str] = {}
    for part in _parts(text):
        language, _, network = (word.strip() for word in part.partition("="))
        if not _LANGUAGE.fullmatch(language) or not _NETWORK.fullmatch(network):
            raise ValueError("is not a list of languages and networks such as python=sandbox-egress")
        if network in _NOT_THE_OPERATORS:
            raise ValueError(f"names {network}, which is the engine's own: make a network for sandboxes alone")
        if language in found:
            raise ValueError(f"names {language} twice")
        found[language] = network
    return found


def parse_resolvers(text: str) -> tuple[str, ...]:
    """Read `1.1.1.1,8.8.8.8`."""
    try:
        addresses = [ipaddress.IPv4Address(part) for part in _parts(text)]
    except ValueError:
        raise ValueError("is not a list of IPv4 addresses such as 1.1.1.1,8.8.8.8") from None
    if not 1 <= len(addresses) <= MAX_RESOLVERS:
        raise ValueError(f"names {len(addresses)} resolvers; 1 to {MAX_RESOLVERS} are asked")
    for address in addresses:
        if _is_within(address, NEVER_REACHED):
            raise ValueError(f"names {address}, which is not public and cannot be reached on an egress network")
    return tuple(str(address) for address in addresses)


def parse_denied(text: str) -> tuple[Block, ...]:
    """Read `198.51.100.0/24,203.0.113.7`."""
    try:
        blocks = tuple(Block(part) for part in _parts(text))
    except ValueError:
        raise ValueError("is not a list of IPv4 networks such as 198.51.100.0/24,203.0.113.7") from None
    if len(blocks) > MAX_DENIED or any(block.prefixlen == 0 for block in blocks):
        raise ValueError(f"is not a list of at most {MAX_DENIED} networks, each smaller than all of them")
    return blocks


def why_not(egress: Egress, languages: Iterable[str]) -> str | None:
    """Say what is wrong between settings that are right each for itself, as a sentence that starts with the name."""
    served = set(languages)
    for language in egress.networks:
        if language not in served:
            return f"SANDBOX_EGRESS_NETWORKS names {language}, which SANDBOX_LANGUAGES does not"
    for resolver in egress.resolvers if egress.networks else ():
        if _is_within(ipaddress.IPv4Address(resolver), egress.denied):
            return f"SANDBOX_EGRESS_DNS names {resolver}, which SANDBOX_EGRESS_DENY refuses"
    return None


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _is_within(address: ipaddress.IPv4Address, blocks: Iterable[Block]) -> bool:
    return any(address in block for block in blocks)

"""The filter of a sandbox that has a network: run once in its network namespace, before any program is.

    egress_filter.py 10.0.0.0/8 169.254.0.0/16 ...

Whatever the arguments name, the network's own subnet, multicast and broadcast are refused in both directions; IPv6
altogether. The last act is to try each of them. Exit code 0 says that the filter holds; anything else that there is no
knowing.

It is made of nf_tables and not of routes: a program without any capability may bind a socket to the interface
(SO_BINDTODEVICE, IP_PKTINFO), and the kernel then sends to an "unreachable" destination as if it were a neighbour.
Standard library only, and netlink by hand, since the images have no `nft`.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterator

SECONDS = 5.0
TABLE = "sandbox"
REFUSE = "refuse"
EVERYBODY, ALL_HERE = "224.0.0.0/3", "255.255.255.255"
"""Multicast and broadcast find neighbours without knowing them."""

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETLINK_NETFILTER, _NFTABLES = 12, 10
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_NESTED = 0x8000
_BEGIN, _END, _ERROR = 0x10, 0x11, 0x2
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 3, 6
_HOOKS = {"input": 1, "forward": 2, "output": 3}
_DROP, _ACCEPT, _JUMP = 0, 1, -3
_EQUAL, _DIFFERENT = 0, 1
_INCOMING, _OUTGOING = 4, 5
_NETWORK_HEADER = 1
_NEW_FLOW = 1 << 3
_TCP_RESET, _ICMP_UNREACHABLE, _HOST_UNREACHABLE = 1, 0, 1

# Of an IPv4 header: where, and how many bytes.
_LENGTH, _PROTOCOL, _SOURCE, _DESTINATION = (0, 1), (9, 1), (12, 4), (16, 4)
_WITHOUT_OPTIONS = b"\x45"
_ICMP, _TCP, _UDP = b"\x01", b"\x06", b"\x11"

_HEADER = struct.Struct("=IHHII")
_IP_PKTINFO = 8
_SAMPLE_PORT = 9

FLOWS_PER_SECOND, FLOWS_AT_ONCE = 50, 200
"""New connections and peers of a sandbox. Each takes a place for up to two minutes in the host's table of connections,
which all of the host shares and a program could otherwise fill within a second."""


class Subnet:
    """An IPv4 network as the kernel compares it."""

    def __init__(self, text: str) -> None:
        """Read `10.0.0.0/8`. Raises `ValueError` or `OSError` for anything else."""
        address, _, bits = text.partition("/")
        if not 1 <= int(bits) <= 32:
            raise ValueError(f"{text} is no network")
        mask = 0xFFFFFFFF << (32 - int(bits)) & 0xFFFFFFFF
        number = struct.unpack(">I", socket.inet_aton(address))[0] & mask
        self.mask = struct.pack(">I", mask)
        self.address = struct.pack(">I", number)
        self.sample = socket.inet_ntoa(struct.pack(">I", number | (mask != 0xFFFFFFFF)))

    def __str__(self) -> str:
        return f"{socket.inet_ntoa(self.address)} mask {socket.inet_ntoa(self.mask)}"


def own_subnets(table: str) -> Iterator[Subnet]:
    """Networks that this namespace is attached to, and its gateways, from the text of /proc/net/route."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        destination, gateway, mask = (socket.inet_ntoa(struct.pack("=I", int(fields[at], 16))) for at in (1, 2, 7))
        if mask != "0.0.0.0":
            yield Subnet(f"{destination}/{int(fields[7], 16).bit_count()}")
        if gateway != "0.0.0.0":
            yield Subnet(f"{gateway}/32")


# Netlink: attributes, expressions, messages


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(">i", value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _nest(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(parts))


def _expression(name: str, *parts: bytes) -> bytes:
    return _nest(1, _text(1, name), _nest(2, *parts))


def _load(place: tuple[int, int]) -> bytes:
    offset, length = place
    return _expression("payload", _number(1, 1), _number(2, _NETWORK_HEADER), _number(3, offset), _number(4, length))


def _compare(value: bytes, how: int = _EQUAL) -> bytes:
    return _expression("cmp", _number(1, 1), _number(2, how), _nest(3, _attribute(1, value)))


def _mask(bits: bytes) -> bytes:
    keep, flip = _nest(4, _attribute(1, bits)), _nest(5, _attribute(1, bytes(4)))
    return _expression("bitwise", _number(1, 1), _number(2, 1), _number(3, 4), keep, flip)


def _within(place: tuple[int, int], subnet: Subnet) -> bytes:
    return _load(place) + _mask(subnet.mask) + _compare(subnet.address)


def _by_interface(direction: int, name: str) -> bytes:
    index = struct.pack("=I", socket.if_nametoindex(name))
    return _expression("meta", _number(1, 1), _number(2, direction)) + _compare(index)


def _verdict(code: int, chain: str = "") -> bytes:
    target = _text(2, chain) if chain else b""
    return _expression("immediate", _number(1, 0), _nest(2, _nest(2, _number(1, code), target)))


def _reject(kind: int) -> bytes:
    code = b"" if kind == _TCP_RESET else _attribute(2, bytes((_HOST_UNREACHABLE,)))
    return _expression("reject", _number(1, kind), code)


def _is_new_flow() -> bytes:
    state = struct.pack("=I", _NEW_FLOW)
    return _expression("ct", _number(1, 1), _number(2, 0)) + _mask(state) + _compare(state)


def _is_beyond(per_second: int, at_once: int) -> bytes:
    rate = _attribute(1, struct.pack(">Q", per_second)) + _attribute(2, struct.pack(">Q", 1))
    return _expression("limit", rate, _number(3, at_once), _number(4, 0), _number(5, 1))


def _message(kind: int, family: int, *attributes: bytes) -> tuple[int, bytes]:
    return kind | _NFTABLES << 8, struct.pack(">BBH", family, 0, 0) + b"".join(attributes)


def _chain(family: int, name: str, *, is_hooked: bool = True) -> tuple[int, bytes]:
    """A chain; where it is hooked, what no rule accepts is dropped."""
    hook = _nest(4, _number(1, _HOOKS[name]), _number(2, 0)) if is_hooked else b""
    policy = _number(5, _DROP) + _text(7, "filter") if is_hooked else b""
    return _message(_NEW_CHAIN, family, _text(1, TABLE), _text(3, name), hook, policy)


def _rule(family: int, chain: str, *expressions: bytes) -> tuple[int, bytes]:
    return _message(_NEW_RULE, family, _text(1, TABLE), _text(2, chain), _nest(4, *expressions))


def messages(refused: list[Subnet], *, with_ipv6: bool) -> list[tuple[int, bytes]]:
    """Return the whole filter; the kernel takes all of it or nothing."""
    found: list[tuple[int, bytes]] = []
    families = [socket.AF_INET, socket.AF_INET6] if with_ipv6 else [socket.AF_INET]
    for family in families:
        found.append(_message(_NEW_TABLE, family, _text(1, TABLE)))
        found += [_chain(family, name) for name in _HOOKS]
        # Loopback, where the engine's resolver listens too.
        found.append(_rule(family, "input", _by_interface(_INCOMING, "lo"), _verdict(_ACCEPT)))
        found.append(_rule(family, "output", _by_interface(_OUTGOING, "lo"), _verdict(_ACCEPT)))
    family = socket.AF_INET
    found.append(_chain(family, REFUSE, is_hooked=False))
    # Heard at once, not after a timeout: whoever asks for what is refused may well be honest.
    found.append(_rule(family, REFUSE, _load(_PROTOCOL), _compare(_TCP), _reject(_TCP_RESET)))
    found.append(_rule(family, REFUSE, _reject(_ICMP_UNREACHABLE)))
    # Options can name another destination than the header does (source routes).
    found.append(_rule(family, "output", _load(_LENGTH), _compare(_WITHOUT_OPTIONS, _DIFFERENT), _verdict(_DROP)))
    found += [_rule(family, "output", _within(_DESTINATION, subnet), _verdict(_JUMP, REFUSE)) for subnet in refused]
    # The gateway tells of packets that are too large for the way ahead.
    found.append(_rule(family, "input", _load(_PROTOCOL), _compare(_ICMP), _verdict(_ACCEPT)))
    found += [_rule(family, "input", _within(_SOURCE, subnet), _verdict(_DROP)) for subnet in refused]
    too_many = _is_new_flow() + _is_beyond(FLOWS_PER_SECOND, FLOWS_AT_ONCE)
    found.append(_rule(family, "output", too_many, _verdict(_DROP)))
    found += [
        _rule(family, chain, _load(_PROTOCOL), _compare(protocol), _verdict(_ACCEPT))
        for chain in ("input", "output")
        for protocol in (_TCP, _UDP)
    ]
    return found


def batch(content: list[tuple[int, bytes]]) -> bytes:
    """Return the messages as one transaction; each will be acknowledged under its number, from 1."""
    edge = struct.pack(">BBH", 0, 0, _NFTABLES)
    packed = [_HEADER.pack(_HEADER.size + len(edge), _BEGIN, _REQUEST, 0, 0) + edge]
    for number, (kind, body) in enumerate(content, 1):
        flags = _REQUEST | _ACK | _CREATE | _APPEND
        packed.append(_HEADER.pack(_HEADER.size + len(body), kind, flags, number, 0) + body)
    packed.append(_HEADER.pack(_HEADER.size + len(edge), _END, _REQUEST, len(content) + 1, 0) + edge)
    return b"".join(packed)


def install(content: list[tuple[int, bytes]]) -> None:
    """Hand the filter to the kernel and wait until all of it is acknowledged. Raises `OSError`."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as link:
        link.settimeout(SECONDS)
        link.bind((0, 0))
        link.send(batch(content))
        missing = set(range(1, len(content) + 1))
        while missing:
            answer = link.recv(65536)
            while answer:
                length, kind, _, number, _ = _HEADER.unpack_from(answer)
                if kind == _ERROR:
                    (code,) = struct.unpack_from("=i", answer, _HEADER.size)
                    if code:
                        raise OSError(-code, f"the kernel refused part {number} of the filter")
                    missing.discard(number)
                answer = answer[(length + 3) & ~3 :]


# Whether it holds


def holds_against(address: str, interface: int) -> bool:
    """Try to send to `address` as a program without rights could, past all routes; True when the filter refuses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        way_out = struct.pack("=I8x", interface)
        try:
            sender.sendmsg([b""], [(socket.IPPROTO_IP, _IP_PKTINFO, way_out)], 0, (address, _SAMPLE_PORT))
        except OSError as error:
            # What netfilter drops; any other reason proves nothing.
            return error.errno == errno.EPERM
    return False


def has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


def main(arguments: list[str]) -> None:
    """Set the filter and try it; ends with a sentence on stderr and exit code 1 where it does not hold."""
    if not arguments:
        sys.exit("nothing to refuse was named")
    refused = [Subnet(text) for text in (*arguments, EVERYBODY)]
    with open("/proc/net/route", encoding="ascii") as routes:
        refused += own_subnets(routes.read())
    interfaces = [index for index, name in socket.if_nameindex() if name != "lo"]
    if not interfaces:
        sys.exit("there is no network to filter")
    install(messages(refused, with_ipv6=has_ipv6()))
    samples = [ALL_HERE, *(subnet.sample for subnet in refused)]
    leaks = [address for address in samples for interface in interfaces if not holds_against(address, interface)]
    if leaks:
        sys.exit(f"these can still be reached: {', '.join(leaks)}")


if __name__ == "__main__":
    main(sys.argv[1:])

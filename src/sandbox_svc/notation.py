"""Values as operators write them: durations, sizes, rates, addresses.

Every parser takes text and returns a value, or raises `ValueError` with a phrase that continues "SANDBOX_X=... ".
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

ENGINE_ADDRESS = "unix:///var/run/docker.sock"
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?", re.ASCII)
_SIZE = re.compile(r"(\d+)([kmgt]?)b?", re.ASCII)
_SIZE_UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1024 * GIB}
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_RATE = re.compile(r"([1-9]\d{0,8})(?:/| per )([1-9]\d{0,5} ?)?(second|minute|hour|day)s?", re.ASCII)
_LANGUAGE = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)


def duration(minimum: float, maximum: float) -> Callable[[str], float]:
    """Seconds from `10s`, `1m30s`, `500ms` or a plain number of seconds."""

    def parse(text: str) -> float:
        lowered = text.lower()
        if _NUMBER.fullmatch(lowered):
            seconds = float(lowered)
        else:
            match = _DURATION.fullmatch(lowered)
            if match is None or not lowered:
                raise ValueError("is not a duration such as 10s, 1m30s, 500ms or a number of seconds")
            hours, minutes, whole, millis = (float(part or 0) for part in match.groups())
            seconds = hours * 3600 + minutes * 60 + whole + millis / 1000
        if not minimum <= seconds <= maximum:
            raise ValueError(f"is not between {show_duration(minimum)} and {show_duration(maximum)}")
        return seconds

    return parse


def size(minimum: int, maximum: int) -> Callable[[str], int]:
    """Bytes from `256m`, `1g`, `64k` or a plain number of bytes; units are powers of 1024."""

    def parse(text: str) -> int:
        match = _SIZE.fullmatch(text.lower())
        if match is None:
            raise ValueError("is not a size such as 256m, 1g or a number of bytes")
        count = int(match[1]) * _SIZE_UNITS[match[2]]
        if not minimum <= count <= maximum:
            raise ValueError(f"is not between {show_size(minimum)} and {show_size(maximum)}")
        return count

    return parse


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not minimum <= int(text) <= maximum:
            raise ValueError(f"is not a whole number between {minimum} and {maximum}")
        return int(text)

    return parse


def choice(literal: Any) -> Callable[[str], str]:
    values = get_args(literal)

    def parse(text: str) -> str:
        if text.lower() not in values:
            raise ValueError(f"is none of {', '.join(values)}")
        return text.lower()

    return parse


def rate(text: str) -> str | None:
    """A rate such as `5/second` in the notation of `limits`, or None (no limit) for the empty text."""
    if text and not _RATE.fullmatch(text):
        raise ValueError("is not a rate such as 5/second, 100/minute or 1000/2 hours (empty: no limit)")
    return text or None


def languages(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in text.split(","))
    if not all(_LANGUAGE.fullmatch(name) for name in names) or len(set(names)) != len(names):
        raise ValueError("is not a list of different language names such as python,nodejs")
    return names


def whole_or_none(minimum: int, maximum: int) -> Callable[[str], int | None]:
    parse = whole(minimum, maximum)
    return lambda text: parse(text) if text else None


def redis_url(text: str) -> Secret:
    if text and not re.match(r"(?:rediss?|unix)://.", text):
        raise ValueError("is not an address such as redis://host:6379/0 (empty: no Redis)")
    return Secret(text)


def engine_address(text: str) -> str:
    """Address of the engine; the empty text is as none, as for Docker's own client."""
    if not text:
        return ENGINE_ADDRESS
    try:
        # Raises for a port that is out of range and for half a pair of brackets.
        is_possible = urlsplit(text).port != 0
    except ValueError:
        is_possible = False
    # A socket's path is absolute: of unix://var/run/x the first part would be taken for a host and lost.
    if not is_possible or not re.fullmatch(r"unix:///.+|(?:tcp|https?)://[^/?#]+/?", text, re.ASCII):
        raise ValueError("is not an address such as unix:///var/run/docker.sock or tcp://host:2376")
    return text


def crosses_a_network_unprotected(address: str) -> bool:
    """Whether an engine at this address is not of this host, and asked without TLS."""
    parts = urlsplit(address)
    if parts.scheme not in ("tcp", "http") or parts.hostname == "localhost":
        return False
    try:
        return not ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return True  # a name


def tls_folder(text: str) -> str | None:
    """Path of a folder with what a TLS connection to an engine needs, or None for the empty text."""
    if not text:
        return None
    for name in ("ca.pem", "cert.pem", "key.pem"):
        try:
            with open(f"{text}/{name}", "rb"):
                pass
        except OSError as error:
            raise ValueError(f"is not a folder with a {name} that can be read ({error.strerror})") from None
    return text


def collector_address(text: str) -> str:
    if text and not re.match(r"https?://.", text):
        raise ValueError("is not an address such as http://collector:4318 (empty: no spans)")
    return text


def host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:\[\]%-]+", text, re.ASCII):
        raise ValueError("is not an address to listen on such as 127.0.0.1, 0.0.0.0 or ::")
    return text.strip("[]")


def file_path(text: str) -> str | None:
    """Path of a file that can be read now; None for the empty text, and for the null device, which is what a container
    has at a place where nothing was mounted.
    """
    if not text:
        return None
    try:
        status = os.stat(text)
        # By its number: one that is mounted from the host is another file of another file system.
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev:
            return None
        if stat.S_ISREG(status.st_mode):
            with open(text, "rb"):
                return text
        reason = "it is no regular file"
    except OSError as error:
        reason = str(error.strerror)
    raise ValueError(f"is not a file that can be read ({reason})")


def show_duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    return (f"{minutes:g}m" if minutes else "") + (f"{rest:g}s" if rest or not minutes else "")


def show_size(count: int) -> str:
    for unit, factor in (("t", 1024 * GIB), ("g", GIB), ("m", MIB), ("k", KIB)):
        if count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


class Secret:
    """Text that does not appear in `repr`, logs or tracebacks; `reveal()` where it is used."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')" if self._text else "Secret('')"

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

"""API keys: the file that holds their hashes, the ring that knows them, and the command that makes one."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec

from sandbox_svc import notation
from sandbox_svc.clock import Clock, LoopClock, sleep
from sandbox_svc.errors import SettingsError, Unauthorized
from sandbox_svc.runtime import RunLimits
from sandbox_svc.service.runs import default_maxima
from sandbox_svc.service.tenants import Tenant
from sandbox_svc.settings import read_variable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

logger = logging.getLogger("sandbox_svc.keys")

VARIABLE: Final = "SANDBOX_API_KEYS_FILE"
KEY_PREFIX: Final = "sbx_"
"""Lets people and secret scanners recognise one of our keys."""
MAX_KEY_CHARS: Final = 256
MAX_FILE_BYTES: Final = 4 * notation.MIB
RELOAD_SECONDS: Final = 1.0

T = TypeVar("T")

TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One `[[key]]` of the file. What is left out is as the service's settings have it."""

    tenant: Annotated[str, msgspec.Meta(pattern=rf"^{TENANT.pattern}\Z")]
    hash: Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
    created: datetime | None = None
    rate_limit: str | None = None
    """Such as `20/second`; the empty text means no limit."""
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=10_000)] | None = None
    """Containers of a language that it may use at once while others wait."""
    max_timeout: str | None = None
    max_cpu: str | None = None
    max_memory: str | None = None
    max_output: str | None = None
    max_result: str | None = None


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    key: tuple[KeyEntry, ...] = ()


class _Policy(msgspec.Struct, frozen=True):
    """A tenant with what its keys grant."""

    tenant: Tenant
    rate_limit: str | None
    """None: that of the service; the empty text: no limit."""


class _Known(msgspec.Struct, frozen=True):
    digest: bytes
    tenant: Tenant


class _Keys(msgspec.Struct, frozen=True):
    """What one reading of the file came to; replaced as a whole."""

    known: dict[bytes, _Known] = {}
    """By the first bytes of the hash."""
    policies: dict[str, _Policy] = {}
    """By the name of the tenant."""


_PREFIX_BYTES: Final = 8
_NOBODY: Final = _Known(bytes(32), Tenant())


class KeyRing:
    """Knows the keys of the file, and looks at it again when it changes; no request waits for the file.

    Keys are long and random, so one round of SHA-256 is all the hashing they need: there is no dictionary to try. A key
    is found by the first bytes of its hash and compared in constant time.
    """

    def __init__(self, path: str, *, maxima: RunLimits, clock: Clock | None = None) -> None:
        """Read the file; `maxima` are the service's own limits, which no key exceeds. Raises `SettingsError`."""
        self._path = Path(path)
        self._maxima = maxima
        self._clock = clock or LoopClock()
        self._problem: str | None = None
        self._signature, content = _read(self._path)
        self._keys = _parse(content, maxima)
        self._warn_of_none()

    def __len__(self) -> int:
        return len(self._keys.known)

    def __repr__(self) -> str:
        return f"<KeyRing {len(self._keys.known)} keys, {len(self._keys.policies)} tenants>"

    @property
    def problem(self) -> str | None:
        """Why the file as it is now is not in force; None while it is."""
        return self._problem

    def tenant(self, key: str | None) -> Tenant:
        """Return the tenant of a key. Raises `Unauthorized`, with the same words for every wrong key."""
        if not key:
            raise Unauthorized("An API key is required: send it as X-API-Key or as Authorization: Bearer.")
        # Longer text is no key of ours and is not worth hashing.
        digest = hash_key(key) if len(key) <= MAX_KEY_CHARS else b"\0" * 32
        known = self._keys.known.get(digest[:_PREFIX_BYTES], _NOBODY)
        if not hmac.compare_digest(known.digest, digest) or known is _NOBODY:
            raise Unauthorized("This API key is not known.")
        return known.tenant

    def rate_limit(self, tenant: str) -> str | None:
        """Return a tenant's own rate limit, empty for none at all; None where its keys leave it to the service."""
        policy = self._keys.policies.get(tenant)
        return None if policy is None else policy.rate_limit

    def reload(self) -> bool:
        """Take the file as it is now if it changed; return whether it did and was good.

        A file that is missing or wrong changes nothing but `problem`, and is logged once. One that holds no key is good
        and lets nobody in. Blocks on the file, so `watch` calls it in a thread. Raises nothing.
        """
        if self._is_unchanged():
            return False
        try:
            signature, content = _read(self._path)
            if signature == self._signature and self._problem is None:
                return False
            keys = _parse(content, self._maxima)
        except SettingsError as error:
            if str(error) != self._problem:
                logger.error("%s; the %d keys from before stay in force", error, len(self))  # noqa: TRY400
            self._problem = str(error)
            return False
        self._signature, self._problem, self._keys = signature, None, keys
        logger.info("%s was read again: %d keys of %d tenants", VARIABLE, len(keys.known), len(keys.policies))
        self._warn_of_none()
        return True

    def _warn_of_none(self) -> None:
        if not self._keys.known:
            logger.warning("%s holds no key: every run is refused until one is added", VARIABLE)

    def _is_unchanged(self) -> bool:
        """Whether the file need not be read to know that it is the same."""
        if self._problem is not None:
            return False
        try:
            status = self._path.stat()
        except OSError:
            return False
        # A file system stamps times in steps: what was written just now may be written again and keep its stamp.
        is_settled = time.time() - status.st_mtime > 2 * RELOAD_SECONDS
        return is_settled and _stamp(status) == self._signature.stamp

    async def watch(self) -> None:
        """Look at the file every second until cancelled. Run it supervised."""
        while True:
            await sleep(self._clock, RELOAD_SECONDS)
            await asyncio.to_thread(self.reload)


class _Signature(msgspec.Struct, frozen=True):
    """What tells one state of a file from another."""

    stamp: tuple[int, ...]
    digest: bytes


def hash_key(key: str) -> bytes:
    """The hash that the file holds of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(path: Path) -> tuple[_Signature, bytes]:
    """Read the file with what tells it from a later one. Raises `SettingsError`."""
    try:
        # Without waiting: whoever opens a named pipe waits for somebody to write.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SettingsError(f"{VARIABLE}: the file cannot be read (it is no regular file)")
            stamp = _stamp(status)
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{VARIABLE}: the file cannot be read ({error.strerror})") from None
    if len(content) > MAX_FILE_BYTES:
        raise SettingsError(f"{VARIABLE}: the file is larger than {notation.show_size(MAX_FILE_BYTES)}")
    return _Signature(stamp, hashlib.sha256(content).digest()), content


def _parse(content: bytes, maxima: RunLimits) -> _Keys:
    """Read the keys of a file, all or none. Raises `SettingsError` that names the place, and quotes nothing of it."""
    try:
        file = msgspec.toml.decode(content, type=KeyFile)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{VARIABLE}: {error}") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SettingsError(f"{VARIABLE}: the file is no TOML: {error}") from None
    known: dict[bytes, _Known] = {}
    policies: dict[str, _Policy] = {}
    for number, entry in enumerate(file.key, 1):
        where = f"{VARIABLE}: key {number} (tenant {entry.tenant})"
        policy = _Policy(
            Tenant(name=entry.tenant, share=entry.concurrency, maxima=_maxima(entry, where, maxima)),
            None if entry.rate_limit is None else _text(where, "rate_limit", entry.rate_limit, notation.rate) or "",
        )
        if policies.setdefault(entry.tenant, policy) != policy:
            raise SettingsError(f"{where} grants something else than an earlier key of the same tenant")
        digest = bytes.fromhex(entry.hash.removeprefix("sha256:"))
        if known.setdefault(digest[:_PREFIX_BYTES], _Known(digest, policy.tenant)).digest is not digest:
            raise SettingsError(f"{where} has the hash of an earlier key")
    return _Keys(known, policies)


def _maxima(entry: KeyEntry, where: str, service: RunLimits) -> RunLimits | None:
    """The largest limits that a key grants; None for those of the service."""
    changes: dict[str, int] = {}
    for name, field, is_time in (
        ("max_timeout", "wall_ms", True),
        ("max_cpu", "cpu_ms", True),
        ("max_memory", "memory_bytes", False),
        ("max_output", "output_bytes", False),
        ("max_result", "result_bytes", False),
    ):
        text = getattr(entry, name)
        if text is None:
            continue
        # 0 is "no bound of its own" among limits.
        most = getattr(service, field)
        if is_time:
            seconds: float = _text(where, name, text, notation.duration(0.1, (most or 3_600_000) / 1000))
            changes[field] = round(seconds * 1000)
        else:
            least = _LEAST_MEMORY if field == "memory_bytes" else 1024
            changes[field] = _text(where, name, text, notation.size(least, most or 64 * notation.GIB))
    return msgspec.structs.replace(service, **changes) if changes else None


_LEAST_MEMORY: Final = 16 * notation.MIB


def _text(where: str, name: str, text: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(text.strip())
    except ValueError as error:
        raise SettingsError(f"{where}: {name} {error}") from None


def create_key(path: Path, tenant: str, **grants: Any) -> str:
    """Make a key, append its hash to the file (made if missing) and return the key.

    The key exists nowhere else. `grants` are fields of `KeyEntry`; where none are given, those of the tenant's earlier
    keys are taken over, since all keys of a tenant grant the same. Raises `SettingsError`; the file is then unchanged.
    """
    if not TENANT.fullmatch(tenant):
        raise SettingsError(f"tenant {tenant[:64]!r} is not a name of letters, digits, '.', '_' and '-'")
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    try:
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), "r+b") as file:
            # Two commands at a time must not write into one another, nor miss each other's tenant.
            fcntl.flock(file, fcntl.LOCK_EX)
            content = file.read(MAX_FILE_BYTES + 1)
            _parse(content, _UNBOUNDED)
            given = {name: value for name, value in grants.items() if value is not None}
            if not given:
                given = _grants_of(tenant, content)
            entry = KeyEntry(
                tenant=tenant,
                hash="sha256:" + hash_key(key).hex(),
                created=datetime.now(UTC).replace(microsecond=0),
                **given,
            )
            added = b"\n" * bool(content and not content.endswith(b"\n")) + _as_toml(entry)
            _parse(content + added, _UNBOUNDED)
            # One write at the end: a service that reads meanwhile sees the file with the whole entry or without it.
            file.write(added)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SettingsError(f"{VARIABLE}: {path} cannot be written ({error.strerror})") from None
    return key


_UNBOUNDED: Final = RunLimits(wall_ms=0, output_bytes=0, result_bytes=0)


def _grants_of(tenant: str, content: bytes) -> dict[str, Any]:
    """What the first key of a tenant grants; nothing for a new tenant."""
    for entry in msgspec.toml.decode(content, type=KeyFile).key:
        if entry.tenant == tenant:
            fields = msgspec.structs.asdict(entry)
            return {name: value for name, value in fields.items() if name not in {"tenant", "hash", "created"}}
    return {}


def _as_toml(entry: KeyEntry) -> bytes:
    lines = ["[[key]]"]
    for name, value in msgspec.structs.asdict(entry).items():
        if isinstance(value, datetime):
            lines.append(f"{name} = {value:%Y-%m-%dT%H:%M:%SZ}")
        elif isinstance(value, int):
            lines.append(f"{name} = {value}")
        elif value is not None:
            # JSON strings are TOML basic strings.
            lines.append(f"{name} = {msgspec.json.encode(value).decode()}")
    return ("\n".join(lines) + "\n\n").encode()


def add_subcommand(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `keys create TENANT`; the chosen command's arguments have `run(arguments, environ) -> int`."""
    keys = subparsers.add_parser("keys", help="make API keys")
    commands = keys.add_subparsers(required=True, metavar="COMMAND")
    create = commands.add_parser(
        "create",
        help="make a key, print it once and append its hash to the file",
        description="Makes an API key, prints it once and appends its hash to the file. A running service takes it at "
        "once. Without options a further key of a tenant grants what its earlier keys do.",
    )
    create.add_argument("tenant", metavar="TENANT")
    create.add_argument("--file", metavar="PATH", help=f"file of keys (default: {VARIABLE})")
    create.add_argument("--rate-limit", metavar="RATE", help="such as 20/second; empty: no limit")
    create.add_argument("--concurrency", metavar="N", type=int, help="containers of a language used at once")
    create.add_argument("--max-timeout", metavar="TIME", help="such as 5s")
    create.add_argument("--max-cpu", metavar="TIME", help="CPU time, such as 5s")
    create.add_argument("--max-memory", metavar="SIZE", help="such as 128m")
    create.add_argument("--max-output", metavar="SIZE", help="such as 64k")
    create.add_argument("--max-result", metavar="SIZE", help="such as 64k")
    create.set_defaults(run=_run_create)


def _run_create(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    path = arguments.file or environ.get(VARIABLE, "").strip()
    if not path:
        raise SettingsError(f"{VARIABLE} is not set; name the file with --file")
    key = create_key(
        Path(path),
        arguments.tenant,
        rate_limit=arguments.rate_limit,
        concurrency=arguments.concurrency,
        max_timeout=arguments.max_timeout,
        max_cpu=arguments.max_cpu,
        max_memory=arguments.max_memory,
        max_output=arguments.max_output,
        max_result=arguments.max_result,
    )
    sys.stdout.write(key + "\n")
    sys.stderr.write(f"Key of tenant {arguments.tenant}. It is shown this once; {path} holds its hash only.\n")
    try:
        _parse(Path(path).read_bytes(), _maxima_of(environ))
    except SettingsError as error:
        # No refusal: the service may have other settings than this shell.
        sys.stderr.write(f"A service with the settings of this environment refuses the file as a whole: {error}\n")
    return 0


def _maxima_of(environ: Mapping[str, str]) -> RunLimits:
    """The limits of a service with this environment. Raises `SettingsError`."""
    here = [read_variable(field, environ) for field in ("timeout_seconds", "max_memory_bytes")]
    return default_maxima(timeout_seconds=here[0], memory_bytes=here[1])

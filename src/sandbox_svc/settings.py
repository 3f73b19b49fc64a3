"""The service's settings: one frozen struct, read once from the environment, refused by name when wrong.

`python -m sandbox_svc.settings` prints the table that stands in the README.
"""

from __future__ import annotations

import difflib
import logging
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args, get_type_hints
from urllib.parse import urlsplit

import msgspec

from sandbox_svc.client_address import Network, parse_networks
from sandbox_svc.egress import Block, Egress, parse_denied, parse_egress_networks, parse_resolvers, why_not
from sandbox_svc.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger("sandbox_svc.settings")

PREFIX = "SANDBOX_"
ENGINE_ADDRESS = "unix:///var/run/docker.sock"
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


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


class Variable(NamedTuple):
    """Where a field comes from. `default` is written as an operator would write it and parsed like a value."""

    name: str
    default: str
    parse: Callable[[str], Any]
    help: str


# Parsers: text in, value out; ValueError with a phrase that continues "SANDBOX_X=... ".

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?", re.ASCII)
_SIZE = re.compile(r"(\d+)([kmgt]?)b?", re.ASCII)
_SIZE_UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1024 * GIB}
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_RATE = re.compile(r"([1-9]\d{0,8})(?:/| per )([1-9]\d{0,5} ?)?(second|minute|hour|day)s?", re.ASCII)
_LANGUAGE = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
# Longer text is never right and would only end up in an error message.
_MAX_VALUE_CHARS = 4096


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
    """Path of a file that can be read now, or None for the empty text."""
    if not text:
        return None
    try:
        with open(text, "rb"):
            return text
    except OSError as error:
        raise ValueError(f"is not a file that can be read ({error.strerror})") from None


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


AnalysisLevel = Literal["off", "report", "standard", "strict"]
RuntimeName = Literal["auto", "runc", "runsc"]
Reuse = Literal["tenant", "never"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an operator can choose. Built by `read_settings`; tests build it with `default_settings(...)`."""

    host: Annotated[str, Variable("SANDBOX_HOST", "127.0.0.1", host, "Address to listen on.")]
    port: Annotated[int, Variable("SANDBOX_PORT", "9385", whole(0, 65535), "Port to listen on; 0 picks a free one.")]
    pool_size: Annotated[
        int, Variable("SANDBOX_POOL_SIZE", "4", whole(1, 256), "Warm containers per language, and runs at once.")
    ]
    timeout_seconds: Annotated[
        float, Variable("SANDBOX_TIMEOUT", "10s", duration(0.1, 600), "Wall time one run may take.")
    ]
    max_memory_bytes: Annotated[
        int,
        Variable(
            "SANDBOX_MAX_MEMORY",
            "256m",
            size(16 * MIB, 64 * GIB),
            "Memory one run may use, beside what is preloaded for it.",
        ),
    ]
    max_body_bytes: Annotated[
        int, Variable("SANDBOX_MAX_BODY", "16m", size(64 * KIB, 24 * MIB), "Largest request body.")
    ]
    redis_url: Annotated[
        Secret,
        Variable(
            "SANDBOX_REDIS_URL",
            "",
            redis_url,
            "Redis for limits and permits shared by several instances; empty: this instance alone.",
        ),
    ]
    max_containers: Annotated[
        int | None,
        Variable(
            "SANDBOX_MAX_CONTAINERS",
            "",
            whole_or_none(1, 10_000),
            "Containers per language over all instances that share an engine and a Redis; the same for all of them. "
            "Empty: one more than `SANDBOX_POOL_SIZE`, so that a replacement can start beside what serves; they divide "
            "it among themselves.",
        ),
    ]
    rate_limit: Annotated[
        str | None,
        Variable("SANDBOX_RATE_LIMIT", "5/second", rate, "Runs per tenant and time; empty: no limit."),
    ]
    api_keys_file: Annotated[
        str | None,
        Variable("SANDBOX_API_KEYS_FILE", "", file_path, "File of API keys and their tenants; empty: no keys."),
    ]
    trusted_proxies: Annotated[
        tuple[Network, ...],
        Variable(
            "SANDBOX_TRUSTED_PROXIES",
            "",
            parse_networks,
            "Networks of proxies whose `X-Forwarded-For` names the client, such as `10.0.0.0/8,::1`; empty: nobody's.",
        ),
    ]
    analysis: Annotated[
        AnalysisLevel,
        Variable(
            "SANDBOX_ANALYSIS",
            "standard",
            choice(AnalysisLevel),
            "Static analysis before a run: `off`, `report`, `standard` or `strict`.",
        ),
    ]
    runtime: Annotated[
        RuntimeName,
        Variable(
            "SANDBOX_RUNTIME",
            "auto",
            choice(RuntimeName),
            "OCI runtime: `runc`, `runsc` (gVisor), or `auto`: runsc where the engine has it.",
        ),
    ]
    reuse: Annotated[
        Reuse,
        Variable(
            "SANDBOX_REUSE",
            "tenant",
            choice(Reuse),
            "`tenant`: a container, once reset and verified, serves the same tenant again; `never`: one run each.",
        ),
    ]
    queue_timeout_seconds: Annotated[
        float,
        Variable(
            "SANDBOX_QUEUE_TIMEOUT",
            "10s",
            duration(0, 600),
            "How long a request waits for a container; 0s: not at all.",
        ),
    ]
    queue_size: Annotated[
        int, Variable("SANDBOX_QUEUE_SIZE", "64", whole(0, 100_000), "Requests that may wait, per language.")
    ]
    drain_timeout_seconds: Annotated[
        float,
        Variable(
            "SANDBOX_DRAIN_TIMEOUT",
            "15s",
            duration(0, 3600),
            "How long runs may finish after a signal to stop; keep it 45 s below the orchestrator's grace period.",
        ),
    ]
    languages: Annotated[
        tuple[str, ...],
        Variable("SANDBOX_LANGUAGES", "python,nodejs", languages, "Languages to serve, by the names of their images."),
    ]
    egress_networks: Annotated[
        dict[str, str],
        Variable(
            "SANDBOX_EGRESS_NETWORKS",
            "",
            parse_egress_networks,
            "Networks of the engine for languages that may go out, such as `python=sandbox-egress`; needs runc. "
            "Empty: no language has a network. Read [docs/egress.md](docs/egress.md) first.",
        ),
    ]
    egress_dns: Annotated[
        tuple[str, ...],
        Variable(
            "SANDBOX_EGRESS_DNS", "1.1.1.1,8.8.8.8", parse_resolvers, "Public resolvers that are asked for names there."
        ),
    ]
    egress_deny: Annotated[
        tuple[Block, ...],
        Variable(
            "SANDBOX_EGRESS_DENY",
            "",
            parse_denied,
            "Networks refused there beside private ones, such as this host's public address, `203.0.113.7`.",
        ),
    ]
    log_level: Annotated[
        LogLevel,
        Variable("SANDBOX_LOG_LEVEL", "info", choice(LogLevel), "`debug`, `info`, `warning` or `error`."),
    ]
    log_format: Annotated[
        LogFormat,
        Variable(
            "SANDBOX_LOG_FORMAT",
            "text",
            choice(LogFormat),
            "Of the log on stderr: `text`, or `json` with one object a line; the compose stack sets `json`.",
        ),
    ]
    traces_endpoint: Annotated[
        str,
        Variable(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "",
            collector_address,
            "OpenTelemetry collector for spans of runs, OTLP over HTTP; needs `sandbox-svc[otel]`. Empty: no spans.",
        ),
    ]
    docker_host: Annotated[str, Variable("DOCKER_HOST", ENGINE_ADDRESS, engine_address, "The container engine.")]
    docker_cert_path: Annotated[
        str | None,
        Variable(
            "DOCKER_CERT_PATH",
            "",
            tls_folder,
            "Folder with `ca.pem`, `cert.pem` and `key.pem` for an engine at a `tcp://` address; empty: no TLS.",
        ),
    ]

    @property
    def egress(self) -> Egress:
        return Egress(networks=self.egress_networks, resolvers=self.egress_dns, denied=self.egress_deny)


def _variables() -> dict[str, Variable]:
    hints = get_type_hints(Settings, include_extras=True)
    return {
        field: next(extra for extra in get_args(hints[field])[1:] if isinstance(extra, Variable))
        for field in Settings.__struct_fields__
    }


VARIABLES = _variables()
"""By field name, in the order of the documentation."""


def _parse(variable: Variable, text: str) -> Any:
    text = text.strip()
    try:
        if len(text) > _MAX_VALUE_CHARS:
            raise ValueError("is too long")  # noqa: TRY301 - said like every other wrong value, just below
        return variable.parse(text)
    except ValueError as error:
        shown = "" if variable.parse is redis_url else f"={text[:64]!r}"
        raise SettingsError(f"{variable.name}{shown} {error}") from None


def read_variable(field: str, environ: Mapping[str, str]) -> Any:
    """One field alone, for commands that need no more. Raises `SettingsError`."""
    variable = VARIABLES[field]
    return _parse(variable, environ.get(variable.name, variable.default))


def read_settings(environ: Mapping[str, str], **overrides: str) -> Settings:
    """Build the settings from an environment; `overrides` are texts by field name and win (command line options).

    Raises `SettingsError` whose message starts with the variable's name. A `SANDBOX_*` variable that no setting has is
    refused when it looks like a slip of one, and otherwise only warned about, since other tools share the prefix.
    """
    known = {variable.name for variable in VARIABLES.values()}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if near:
                raise SettingsError(f"{name} is no setting; did you mean {near[0]}?")
            logger.warning("%s is no setting of this service and has no effect", name)
    values = {
        field: _parse(variable, overrides.get(field, environ.get(variable.name, variable.default)))
        for field, variable in VARIABLES.items()
    }
    settings = Settings(**values)
    if reason := why_not(settings.egress, settings.languages):
        raise SettingsError(reason)
    for contradiction in contradictions(settings):
        logger.warning("%s", contradiction.what)
    return settings


class Contradiction(NamedTuple):
    """Settings that are right alone and do not go together; what to do about it."""

    what: str
    advice: str


def contradictions(settings: Settings) -> list[Contradiction]:
    """What an operator should hear of although the service can start."""
    found = []
    if settings.drain_timeout_seconds < settings.timeout_seconds:
        found.append(
            Contradiction(
                "SANDBOX_DRAIN_TIMEOUT is shorter than SANDBOX_TIMEOUT: a shutdown cuts long runs short",
                "Raise SANDBOX_DRAIN_TIMEOUT, and the orchestrator's grace period with it.",
            )
        )
    if settings.max_containers is not None and not settings.redis_url:
        found.append(
            Contradiction(
                "SANDBOX_MAX_CONTAINERS has no effect without SANDBOX_REDIS_URL: nobody counts for several instances",
                "Choose SANDBOX_POOL_SIZE, or give the instances a Redis.",
            )
        )
    if settings.docker_cert_path is not None and settings.docker_host.startswith("unix:"):
        found.append(
            Contradiction(
                "DOCKER_CERT_PATH has no effect: DOCKER_HOST is a socket of this host",
                "Name the engine in DOCKER_HOST, or leave DOCKER_CERT_PATH empty.",
            )
        )
    return found


def default_settings(**overrides: str) -> Settings:
    """The defaults, with some fields given as an operator would write them; reads no environment."""
    return read_settings({}, **overrides)


def markdown_table() -> str:
    """The table of all settings for the documentation."""
    rows = [
        f"| `{variable.name}` | {f'`{variable.default}`' if variable.default else 'empty'} | {variable.help} |"
        for variable in VARIABLES.values()
    ]
    return "\n".join(["| Variable | Default | Meaning |", "| --- | --- | --- |", *rows]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown_table())

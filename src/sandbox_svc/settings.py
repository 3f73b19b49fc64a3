"""The service's settings: one frozen struct, read once from the environment, refused by name when wrong.

`python -m sandbox_svc.settings` prints the table that stands in the README.
"""

from __future__ import annotations

import difflib
import logging
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, get_args, get_type_hints

import msgspec

from sandbox_svc.client_address import Network, parse_networks
from sandbox_svc.egress import Block, Egress, parse_denied, parse_egress_networks, parse_resolvers, why_not
from sandbox_svc.errors import SettingsError
from sandbox_svc.notation import (
    ENGINE_ADDRESS,
    GIB,
    KIB,
    MIB,
    Secret,
    choice,
    collector_address,
    crosses_a_network_unprotected,
    duration,
    engine_address,
    file_path,
    host,
    languages,
    rate,
    redis_url,
    size,
    tls_folder,
    whole,
    whole_or_none,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger("sandbox_svc.settings")

PREFIX = "SANDBOX_"


class Variable(NamedTuple):
    """Where a field comes from. `default` is written as an operator would write it and parsed like a value."""

    name: str
    default: str
    parse: Callable[[str], Any]
    help: str


# Longer text is never right and would only end up in an error message.
_MAX_VALUE_CHARS = 4096

AnalysisLevel = Literal["off", "report", "standard", "strict"]
RuntimeName = Literal["auto", "runc", "runsc"]
Reuse = Literal["tenant", "never"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


SERVICE_LINKS: Final = ("SANDBOX_SVC_SERVICE_", "SANDBOX_SVC_PORT")
"""How the variables begin that Kubernetes makes in every pod beside a Service called `sandbox-svc`
(kubernetes.io, Services, environment variables)."""
SPARE_CONNECTIONS: Final = 1000
"""For callers who have not asked yet, who send their requests, who take their answers, and who ask how it is."""


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
        Variable(
            "SANDBOX_API_KEYS_FILE", "", file_path, "File of API keys and their tenants; empty or `/dev/null`: no keys."
        ),
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

    @property
    def max_connections(self) -> int:
        """HTTP connections at a time: of all that may wait for a run or have one, who so shut nobody out, and more."""
        return SPARE_CONNECTIONS + (self.pool_size + self.queue_size) * len(self.languages)


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
        if name.startswith(PREFIX) and name not in known and not name.startswith(SERVICE_LINKS):
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
    if settings.docker_cert_path is None and crosses_a_network_unprotected(settings.docker_host):
        found.append(
            Contradiction(
                f"DOCKER_HOST={settings.docker_host} is asked without TLS: whoever is on the way is root on that host",
                "Name the folder of certificates in DOCKER_CERT_PATH, or reach the engine through a tunnel.",
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

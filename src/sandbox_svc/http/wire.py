"""Public JSON as msgspec structs, with the encoder for it built once.

What a caller may send is bounded here, what the service answers is documented by the same structs, and
`/openapi.json` is generated from both.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

encode = msgspec.json.Encoder().encode

MAX_FILES: Final = 64
MAX_ARGS: Final = 256
MAX_GLOBS: Final = 32

Milliseconds = Annotated[float, Meta(ge=0)]


def described(text: str) -> Meta:
    return Meta(description=text)


# POST /run: the frozen contract of the old executor manager. Unknown fields are ignored, never honoured.


class CompatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A program whose `main` is called with the arguments."""

    code_b64: Annotated[str, described("The source: strict base64 (no line breaks) of UTF-8.")]
    language: Annotated[str, Meta(max_length=64, description="Name or alias of a language.")] = "python"
    arguments: (
        Annotated[
            msgspec.Raw,
            described(
                "JSON object: keyword arguments of `main` (python), or its only argument (nodejs). `null` is `{}`."
            ),
        ]
        | msgspec.UnsetType
    ) = msgspec.UNSET


CompatStatus = Literal[
    "success",
    "program_error",
    "resource_limit_exceeded",
    "unauthorized_access",
    "runtime_error",
    "program_runner_error",
]


class ArtifactItem(msgspec.Struct, frozen=True, kw_only=True):
    """A file the program left in its `artifacts` folder."""

    name: str
    mime_type: str
    size: int
    content_b64: bytes
    """Encoded as base64 by the encoder."""


class CompatResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `main` returned."""

    present: bool = True
    value: msgspec.Raw
    type: Literal["json"] = "json"


class CompatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Always all fields. On anything but success `stdout` is empty and `stderr` is not."""

    status: CompatStatus
    stdout: str = ""
    stderr: str = ""
    exit_code: Annotated[
        int,
        described(
            "The program's own, 128 + n after signal n; -124 time, -137 memory, -153 output limit; -10 busy, "
            "-429 rate limit, -999 refused by static analysis, -3 failure of the service."
        ),
    ]
    detail: str | None = None
    time_used_ms: float | None = None
    memory_used_kb: float | None = None
    resource_limit_type: Literal["time", "memory", "output"] | None = None
    unauthorized_access_type: Literal["disallowed_syscall", "file_access"] | None = None
    runtime_error_type: Literal["signalled", "nonzero_exit"] | None = None
    artifacts: tuple[ArtifactItem, ...] = ()
    result: CompatResult | None = None


# POST /v1/run


class FileContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes of a file that is not text."""

    b64: str


class LimitsBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of this run; each at most the maximum that `GET /v1/languages` names."""

    wall_ms: Annotated[int, Meta(ge=10, le=3_600_000)] | None = None
    cpu_ms: Annotated[int, Meta(ge=10, le=36_000_000)] | None = None
    memory_bytes: Annotated[int, Meta(ge=8 * 1024 * 1024, le=1 << 40)] | None = None
    output_bytes: Annotated[int, Meta(ge=0, le=1 << 30)] | None = None


class RunBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program to run, with everything it needs."""

    language: Annotated[str, Meta(max_length=64, description="Name or alias of a language.")] = "python"
    profile: (
        Annotated[
            str, Meta(min_length=1, max_length=64, description="Profile of the language: the same with more packages.")
        ]
        | None
    ) = None
    code: (
        Annotated[str, described("The source. Exactly one of `code`, `code_b64` and `entry_point` names it.")] | None
    ) = None
    code_b64: Annotated[str, described("The source as base64 of UTF-8.")] | None = None
    entry_point: (
        Annotated[str, Meta(max_length=512, description="Which of `files` is the source, when it is given there.")]
        | None
    ) = None
    files: Annotated[
        dict[str, str | FileContent],
        Meta(max_length=MAX_FILES, description="Files in the working directory, by relative path: text, or base64."),
    ] = {}
    mode: Annotated[
        Literal["main", "script"],
        described("`main`: call `main` with the arguments. `script`: just run the source, with stdin, args and env."),
    ] = "main"
    arguments: Annotated[msgspec.Raw, described("JSON object for `main`; `null` is `{}`.")] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    stdin: Annotated[str | FileContent, described("Standard input of a script.")] = ""
    args: Annotated[
        tuple[Annotated[str, Meta(max_length=32_768)], ...],
        Meta(max_length=MAX_ARGS, description="Command line arguments of a script."),
    ] = ()
    env: Annotated[
        dict[
            # In Python, `$` alone lets a line break follow.
            Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$(?!\n)")],
            Annotated[str, Meta(max_length=32_768)],
        ],
        Meta(max_length=128, description="Environment variables, beside those of the image."),
    ] = {}
    limits: LimitsBody | None = None
    artifacts: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=255)], ...],
        Meta(
            max_length=MAX_GLOBS,
            description="Name patterns of the files in `artifacts/` to send; default: images, PDF, CSV, JSON, HTML.",
        ),
    ] = ()


Outcome = Literal[
    "success",
    "program_error",
    "signalled",
    "time_limit",
    "cpu_limit",
    "memory_limit",
    "output_limit",
    "cancelled",
]


class Truncated(msgspec.Struct, frozen=True, kw_only=True):
    """Which outputs were cut at the output limit."""

    stdout: bool = False
    stderr: bool = False


class TracebackFrame(msgspec.Struct, frozen=True, kw_only=True):
    """A place in the program's own files."""

    file: Annotated[str, described("Relative to the working directory.")]
    line: int
    function: str
    text: Annotated[str, described("The line itself, cut after 200 characters; empty where it could not be read.")]


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """The exception that ended the program."""

    type: str
    message: str
    line: Annotated[int, described("Line in the submitted source, where known.")] | None = None
    traceback: Annotated[
        tuple[TracebackFrame, ...],
        described(
            "Where it happened, outermost call first, in files below the working directory only; at most 20, of which "
            "the middle is left out."
        ),
    ] = ()


class FindingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Something static analysis would refuse in a stricter mode."""

    line: int
    column: int
    rule: str
    message: str


class ResultValue(msgspec.Struct, frozen=True, kw_only=True):
    """What `main` returned; `null` is a value like any other."""

    value: msgspec.Raw


class RunAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the program did. Output and artifacts are kept on failure too."""

    run_id: str
    language: str
    outcome: Outcome
    exit_code: Annotated[int, described("The program's own; null when a signal ended it.")] | None
    signal: Annotated[str, described("Name of the signal that ended the program.")] | None
    result: Annotated[ResultValue, described("What `main` returned; null when it returned nothing.")] | None
    stdout: Annotated[str, described("As UTF-8; bytes that are not become U+FFFD.")]
    stderr: str
    truncated: Truncated
    artifacts: tuple[ArtifactItem, ...]
    artifacts_skipped: Annotated[
        int, described("Files in `artifacts/` that were too many, too large or no plain files.")
    ]
    error: ErrorDetail | None
    warnings: tuple[FindingInfo, ...]
    queue_ms: Annotated[Milliseconds, described("Waiting for a sandbox.")]
    start_ms: Annotated[Milliseconds, described("Handing the program over and taking its answer back.")]
    run_ms: Annotated[Milliseconds, described("Wall time of the program.")]
    cpu_ms: Annotated[Milliseconds, described("CPU time of the program and its children.")]
    memory_kb: int
    retryable: Annotated[bool, described("Whether the same request may well end differently later.")]


class OutputEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of output while the program runs: the data of an `output` event."""

    stream: Literal["stdout", "stderr"]
    text: str


# GET /v1/languages


class Package(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    version: str


class LimitMaxima(msgspec.Struct, frozen=True, kw_only=True):
    """The largest limits of one run of the caller, which are also the defaults; null: not limited by itself."""

    wall_ms: int
    cpu_ms: int | None
    memory_bytes: int | None
    output_bytes: int
    result_bytes: int


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A program that shows what the language can do here, and arguments for it."""

    code: str
    arguments: dict[str, Any]


class LanguageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A language, or a profile of one, that is served."""

    name: str
    base: Annotated[str, described("What to ask for as `language`, together with `profile`.")]
    profile: Annotated[str, described("Null for the language itself.")] | None
    aliases: tuple[str, ...]
    version: Annotated[str, described("Of the interpreter; null until a container has reported it.")] | None
    source_name: str
    packages: tuple[Package, ...]
    analyser: str | None
    is_ready: bool
    has_network: Annotated[bool, described("Its programs may reach public addresses; none but loopback otherwise.")]
    limits: LimitMaxima
    example: Example | None = None


class LanguagesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    languages: tuple[LanguageInfo, ...]
    queue_ms: Annotated[int, described("How long a request may wait for a sandbox; clients need patience beyond it.")]


# Health


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The event loop turns; nothing else was looked at."""

    status: Literal["ok"] = "ok"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing readiness depends on. `degraded` does not make the service unready."""

    status: Literal["ok", "degraded", "failing"]
    detail: str = ""


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["ready", "not_ready"]
    checks: dict[str, Check]


# Errors that are ours (RFC 9457)


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A problem document; `code` is stable, `detail` is a sentence for people."""

    type: str
    title: str
    status: int | None = None
    """Left out on `/run`, whose clients know a `status` that is a word."""
    code: str
    detail: str
    retryable: bool = False
    retry_after_seconds: (
        Annotated[
            int, described("As `Retry-After` says; in an event of a stream, which has no status, it is all there is.")
        ]
        | None
    ) = None
    findings: tuple[FindingInfo, ...] = ()


# Encoding


def text_of(output: bytes) -> str:
    """Output as text; what is not UTF-8 becomes U+FFFD."""
    return output.decode(errors="replace")


def schema_of(*types: Any) -> dict[str, Any]:
    """JSON Schema components of public types, by name."""
    _, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return components

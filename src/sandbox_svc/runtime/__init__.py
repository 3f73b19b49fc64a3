"""The seam between the pool and whatever runs programs: protocols and their value types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import msgspec

from sandbox_svc.runtime.languages import Language
from sandbox_svc.runtime.protocol import Hello, ProgramError

MIB = 1024 * 1024

Limit = Literal["time", "cpu", "memory", "output"]
OutputSink = Callable[[Literal["stdout", "stderr"], bytes], None]


class RunLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one run; exceeding one ends the run with the `Outcome` that names it."""

    wall_ms: int
    cpu_ms: int = 0
    memory_bytes: int = 0
    output_bytes: int = MIB
    result_bytes: int = MIB


class InputFile(msgspec.Struct, frozen=True):
    """A file placed in the working directory before the program starts; `path` is relative and normalised."""

    path: str
    content: bytes


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """What a sandbox is asked to run; validated, nothing in it is interpreted on the way."""

    source: bytes
    template: str
    limits: RunLimits
    arguments: bytes = b"{}"
    """JSON object, as received."""
    call_main: bool = True
    stdin: bytes = b""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    source_name: str = ""
    """The path of the source, where it is a file beside `files`; empty: it is none."""
    files: tuple[InputFile, ...] = ()
    artifact_globs: tuple[str, ...] = ()
    keep_artifacts: bool = False


class Artifact(msgspec.Struct, frozen=True):
    """A file the program left in its artifacts folder."""

    name: str
    content: bytes


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a program did: facts only, gathered by the supervisor, the same for every API that shows them."""

    exit_code: int | None
    """None when a signal ended the program."""
    signal: int | None = None
    limit: Limit | None = None
    """The limit that ended the run, or None. Known from timers and counters, never from what a program says."""
    error: ProgramError | None = None
    result: bytes | None = None
    """Canonical RFC 8259 JSON of what `main` returned, or None."""
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    wall_us: int = 0
    cpu_us: int = 0
    memory_kb: int = 0
    has_oom_kills: bool = False
    """Whether the kernel killed a process of it for memory. It may have gone on without that one."""
    artifacts: tuple[Artifact, ...] = ()
    artifacts_skipped: int = 0
    cancelled: bool = False

    @property
    def is_success(self) -> bool:
        return self.exit_code == 0 and self.limit is None and self.error is None and not self.cancelled


class Sandbox(Protocol):
    """One warm container, owned by one slot; at most one run at a time.

    Every method raises `SandboxLost` once the container is gone or broke the protocol; none waits without a deadline.
    """

    @property
    def id(self) -> str: ...

    @property
    def generation(self) -> str: ...

    @property
    def runs_left(self) -> int:
        """Runs until its uids are used up; 0 means that it must be replaced."""
        ...

    @property
    def templates(self) -> frozenset[str]:
        """Templates that have a process parked now."""
        ...

    async def run(self, program: Program, on_output: OutputSink | None = None) -> Outcome:
        """Run one program and return what it did; the sandbox then resets itself (see `settle`).

        Cancelling kills the program; the sandbox stays usable and settles as after any run.
        """
        ...

    async def settle(self) -> None:
        """Wait until the reset after the last run is verified. Raises `SandboxLost` when that takes too long."""
        ...

    async def ping(self) -> None:
        """Ask an idle sandbox for a sign of life. Never called while a run is under way."""
        ...

    async def wait_lost(self) -> None:
        """Return when the container is gone or broken; cancelling leaves it as it is."""
        ...

    async def remove(self) -> None:
        """Kill and delete the container; returns when the engine confirms. Safe to call again after a failure."""
        ...


class Runtime(Protocol):
    """Creates sandboxes. Only `DockerRuntime` and the tests' fake implement it, and one contract suite runs on both."""

    async def languages(self) -> Mapping[str, Language]:
        """Languages whose images are present, by name. Raises `RuntimeUnavailable`."""
        ...

    def hello(self, language: Language) -> Hello | None:
        """What containers of this image said of themselves; None until one was started. Never waits."""
        ...

    async def start(self, language: Language, templates: tuple[str, ...] | None = None, *, place: str = "") -> Sandbox:
        """Create a container and wait until it is ready for its first run, all within a deadline.

        `templates` limits which templates it keeps loaded; None means all of the manifest. Raises `RuntimeUnavailable`.
        On failure or cancellation nothing stays behind; where removing it takes long, `wait_gone` knows it by `place`.
        """
        ...

    async def wait_gone(self, place: str) -> None:
        """Wait until nothing of the failed starts for `place` is left, nor can come into being any more.

        As long as that takes; at once, most times. Cancelling changes nothing. Raises nothing.
        """
        ...

    async def sweep(self) -> int:
        """Remove containers that dead instances of this service left on the engine; return how many.

        One that cannot be removed is left for the next time. Raises `RuntimeUnavailable` when nothing can be listed.
        """
        ...

    async def ping(self) -> None:
        """Ask the engine for a sign of life. Raises `RuntimeUnavailable`."""
        ...

    def hasten(self) -> None:
        """Have `close`, under way or to come, wait for little more than what goes at once."""
        ...

    async def close(self) -> None: ...

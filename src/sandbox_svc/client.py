"""A client of `/v1/run`, blocking and for asyncio; needs httpx (`pip install 'sandbox-svc[client]'`).

    with Client("http://127.0.0.1:9385") as client:
        answer = client.run("def main(name):\\n    return 'hello ' + name", arguments={"name": "x"})
        print(answer.outcome, answer.value)

Imports nothing else of the service.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict, TypeVar

import httpx
import msgspec

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")

DEFAULT_URL: Final = "http://127.0.0.1:9385"
CONNECT_SECONDS: Final = 10.0
SILENCE_SECONDS: Final = 60.0
"""Without a byte of the answer. Every run is asked for as a stream, in which a comment comes every 15 s: queue and
program may take as long as the service lets them, also behind proxies that give up silent connections.
"""

OnOutput = Callable[[Literal["stdout", "stderr"], str], None]
Content = str | bytes


class ClientError(Exception):
    """There is no answer."""


class Refused(ClientError):
    """The service said no, or that something of its own failed: a problem document."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.code}: {problem.detail or problem.title}")
        self.problem = problem
        self.code = problem.code
        """Stable; docs/api.md lists them."""
        self.is_retryable = problem.retryable
        """The program was not started, and the same request may do better later."""
        self.retry_after_seconds = problem.retry_after_seconds


class NoAnswer(ClientError):
    """The service could not be reached, or what answered is not the service. The program may have run."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What static analysis says about a line."""

    line: int
    column: int
    rule: str
    message: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A problem document (RFC 9457)."""

    status: int
    code: str
    title: str = ""
    detail: str = ""
    retryable: bool = False
    retry_after_seconds: int | None = None
    findings: tuple[Finding, ...] = ()


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What `main` returned."""

    value: Any


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A file that the program left in `artifacts/`. Its name comes from the program: check it before you use it."""

    name: str
    mime_type: str
    size: int
    content: bytes = msgspec.field(name="content_b64")


class TracebackFrame(msgspec.Struct, frozen=True, kw_only=True):
    """A place in the program's own files, whose names are relative to the working directory."""

    file: str
    line: int
    function: str
    text: str


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """The exception that ended the program."""

    type: str
    message: str
    line: int | None = None
    traceback: tuple[TracebackFrame, ...] = ()
    """Outermost call first."""


class Truncated(msgspec.Struct, frozen=True, kw_only=True):
    """Which outputs were cut at the output limit."""

    stdout: bool = False
    stderr: bool = False


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the program did."""

    run_id: str
    language: str
    outcome: str
    """`success`, or how it ended otherwise; docs/api.md lists them."""
    exit_code: int | None
    signal: str | None
    result: Result | None
    stdout: str
    stderr: str
    truncated: Truncated
    artifacts: tuple[Artifact, ...]
    artifacts_skipped: int
    error: ErrorDetail | None
    warnings: tuple[Finding, ...]
    queue_ms: float
    start_ms: float
    run_ms: float
    cpu_ms: float
    memory_kb: int
    retryable: bool

    @property
    def is_success(self) -> bool:
        return self.outcome == "success"

    @property
    def value(self) -> Any:
        """What `main` returned; None also where it returned nothing, which `result` tells apart."""
        return None if self.result is None else self.result.value


class Package(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    version: str


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The largest limits of one run; None: not limited by itself."""

    wall_ms: int
    cpu_ms: int | None
    memory_bytes: int | None
    output_bytes: int
    result_bytes: int


class Language(msgspec.Struct, frozen=True, kw_only=True):
    """A language, or a profile of one, that is served."""

    name: str
    base: str
    """What to ask for as `language`, together with `profile`."""
    profile: str | None
    aliases: tuple[str, ...]
    version: str | None
    source_name: str
    packages: tuple[Package, ...]
    is_ready: bool
    has_network: bool = False
    limits: Limits


class _Languages(msgspec.Struct, frozen=True, kw_only=True):
    languages: tuple[Language, ...]


class _Output(msgspec.Struct, frozen=True, kw_only=True):
    stream: Literal["stdout", "stderr"]
    text: str


_answer: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
_problem: msgspec.json.Decoder[Problem] = msgspec.json.Decoder(Problem)
_output: msgspec.json.Decoder[_Output] = msgspec.json.Decoder(_Output)
_languages: msgspec.json.Decoder[_Languages] = msgspec.json.Decoder(_Languages)


class Client:
    """Blocking; safe to share between threads. `key`: an API key, where the service asks for one."""

    def __init__(
        self, url: str = DEFAULT_URL, *, key: str | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        """Raises `ClientError` for what can be no address or no key."""
        self._http = httpx.Client(**_options(url, key), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def run(
        self,
        code: Content | None = None,
        *,
        language: str = "python",
        profile: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        script: bool = False,
        stdin: Content = "",
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        files: Mapping[str, Content] | None = None,
        entry_point: str | None = None,
        limits: Mapping[str, int] | None = None,
        artifacts: Sequence[str] = (),
        on_output: OnOutput | None = None,
    ) -> Answer:
        """Run a program and return what it did, whatever that was.

        `code` is the source, or `entry_point` names it among `files`. `main` is called with `arguments`, unless
        `script`; only scripts take `stdin` and `args`. `on_output` gets output while the program runs. Raises `Refused`
        or `NoAnswer`; `TypeError` or `ValueError` for arguments that are no JSON. Interrupting it closes the
        connection, and the program is killed.
        """
        body = _body(
            code=code,
            language=language,
            profile=profile,
            arguments=arguments,
            script=script,
            stdin=stdin,
            args=args,
            env=env,
            files=files,
            entry_point=entry_point,
            limits=limits,
            artifacts=artifacts,
        )
        try:
            with self._http.stream("POST", "/v1/run", content=body, headers=_STREAM) as response:
                if not _is_stream(response):
                    return _read(response, response.read(), _answer)
                events = _Events(on_output)
                for chunk in response.iter_bytes():
                    answer = events.feed(chunk)
                    if answer is not None:
                        return answer
                raise NoAnswer("The connection ended before the answer came")
        except httpx.HTTPError as error:
            raise _no_answer(error) from error

    def languages(self) -> tuple[Language, ...]:
        """Raises `Refused` or `NoAnswer`."""
        try:
            response = self._http.get("/v1/languages")
        except httpx.HTTPError as error:
            raise _no_answer(error) from error
        return _read(response, response.content, _languages).languages


class AsyncClient:
    """The same for asyncio. Cancelling `run` closes the connection, and the program is killed."""

    def __init__(
        self, url: str = DEFAULT_URL, *, key: str | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """Raises `ClientError` for what can be no address or no key."""
        self._http = httpx.AsyncClient(**_options(url, key), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def run(
        self,
        code: Content | None = None,
        *,
        language: str = "python",
        profile: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        script: bool = False,
        stdin: Content = "",
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        files: Mapping[str, Content] | None = None,
        entry_point: str | None = None,
        limits: Mapping[str, int] | None = None,
        artifacts: Sequence[str] = (),
        on_output: OnOutput | None = None,
    ) -> Answer:
        """As `Client.run`. `on_output` is called on the loop and must not block."""
        body = _body(
            code=code,
            language=language,
            profile=profile,
            arguments=arguments,
            script=script,
            stdin=stdin,
            args=args,
            env=env,
            files=files,
            entry_point=entry_point,
            limits=limits,
            artifacts=artifacts,
        )
        try:
            async with self._http.stream("POST", "/v1/run", content=body, headers=_STREAM) as response:
                if not _is_stream(response):
                    return _read(response, await response.aread(), _answer)
                events = _Events(on_output)
                async for chunk in response.aiter_bytes():
                    answer = events.feed(chunk)
                    if answer is not None:
                        return answer
                raise NoAnswer("The connection ended before the answer came")
        except httpx.HTTPError as error:
            raise _no_answer(error) from error

    async def languages(self) -> tuple[Language, ...]:
        """As `Client.languages`."""
        try:
            response = await self._http.get("/v1/languages")
        except httpx.HTTPError as error:
            raise _no_answer(error) from error
        return _read(response, response.content, _languages).languages


class _Options(TypedDict):
    base_url: str
    headers: dict[str, str]
    timeout: httpx.Timeout
    limits: httpx.Limits


def _options(url: str, key: str | None) -> _Options:
    """Raises `ClientError` for what can be no address or no key."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key:
        if not re.fullmatch(r"[!-~]+", key):
            # Without a word of it: a line end too many is the usual reason, and the rest is right.
            raise ClientError("The API key holds characters that no key has, such as the end of a line")
        headers["X-API-Key"] = key
    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ClientError(f"{url!r} is no address of a service: {error}") from error
    return {
        "base_url": url,
        "headers": headers,
        "timeout": httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS, pool=None),
        # The service has queues. Here a run would wait without a sign of life, and be given up unsent.
        "limits": httpx.Limits(max_connections=None),
    }


_STREAM: Final = {"Accept": "text/event-stream"}


def _is_stream(response: httpx.Response) -> bool:
    media_type: str = response.headers.get("content-type", "")
    return media_type.startswith("text/event-stream")


def _body(
    *,
    code: Content | None,
    language: str,
    profile: str | None,
    arguments: Mapping[str, Any] | None,
    script: bool,
    stdin: Content,
    args: Iterable[str],
    env: Mapping[str, str] | None,
    files: Mapping[str, Content] | None,
    entry_point: str | None,
    limits: Mapping[str, int] | None,
    artifacts: Iterable[str],
) -> bytes:
    fields = {
        "code": code if isinstance(code, str) else None,
        "code_b64": _base64(code) if isinstance(code, bytes) else None,
        "profile": profile,
        "mode": "script" if script else None,
        "arguments": None if arguments is None else dict(arguments),
        "stdin": _content(stdin) if stdin else None,
        "args": list(args),
        "env": dict(env or {}),
        "files": {path: _content(content) for path, content in (files or {}).items()},
        "entry_point": entry_point,
        "limits": dict(limits or {}),
        "artifacts": list(artifacts),
    }
    # What is left out has its default, and empty is the default of everything but a source, which may not be empty.
    sources = ("code", "code_b64")
    given = {name: value for name, value in fields.items() if value or (name in sources and value is not None)}
    # NaN and infinity would make a body that is no JSON.
    return json.dumps({"language": language, **given}, allow_nan=False).encode()


def _content(content: Content) -> str | dict[str, str]:
    return content if isinstance(content, str) else {"b64": _base64(content)}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _read(response: httpx.Response, body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        if response.status_code == 200:
            return decoder.decode(body)
        problem = _problem.decode(body)
    except msgspec.MsgspecError:
        raise NoAnswer(f"HTTP {response.status_code} without an answer of the service") from None
    raise Refused(problem)


def _no_answer(error: httpx.HTTPError) -> NoAnswer:
    return NoAnswer(str(error) or type(error).__name__)


class _Events:
    """Reads server-sent events from chunks that end anywhere."""

    def __init__(self, on_output: OnOutput | None) -> None:
        self._on_output = on_output
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, chunk: bytes) -> Answer | None:
        """Return the answer once it is there. Raises `Refused` or `NoAnswer`."""
        self._buffer += chunk
        # An answer with artifacts comes in hundreds of chunks; no byte is searched twice.
        while (end := self._buffer.find(b"\n\n", max(self._searched - 1, 0))) >= 0:
            event = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            self._searched = 0
            answer = self._take(event)
            if answer is not None:
                return answer
        self._searched = len(self._buffer)
        return None

    def _take(self, event: bytes) -> Answer | None:
        fields = dict(
            line.split(b": ", 1) for line in event.split(b"\n") if b": " in line and not line.startswith(b":")
        )
        data = fields.get(b"data", b"")
        try:
            match fields.get(b"event"):
                case b"output" if self._on_output is not None:
                    output = _output.decode(data)
                    self._on_output(output.stream, output.text)
                case b"result":
                    return _answer.decode(data)
                case b"problem":
                    raise Refused(_problem.decode(data))
        except msgspec.MsgspecError as error:
            raise NoAnswer(f"An event that the service does not send ({error})") from error
        return None

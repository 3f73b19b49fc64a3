"""The answer to a run as server-sent events: output while it appears, then the same answer as without them."""

from __future__ import annotations

import asyncio
import codecs
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from sandbox_svc.http.wire import OutputEvent, encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from types import TracebackType

    from sandbox_svc.http.reply import Headers
    from sandbox_svc.runtime import Outcome

    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MEDIA_TYPE: Final = "text/event-stream"
KEEP_ALIVE_SECONDS: Final = 15.0
"""Between comments while there is no output; common proxies give a silent answer up after 30 to 60 s. Longer than the
default queue timeout, which thus comes before the stream begins and is a 503."""
PROBE_SECONDS: Final = 0.5
"""The same, once the caller has ended its sending: only something that is sent tells whether it still listens."""

HEADERS: Final[Headers] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # nginx would collect the events otherwise.
    (b"x-accel-buffering", b"no"),
]
_COMMENT: Final = b":\n\n"
_STREAMS: Final[tuple[Literal["stdout", "stderr"], ...]] = ("stdout", "stderr")


def event(name: str, data: bytes) -> bytes:
    """One event around JSON, in which line breaks only stand between tokens, where a space does as well.

    A result is the program's own JSON: left as it is, its line breaks could end the event and begin another.
    """
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data.replace(b"\n", b" ").replace(b"\r", b" "))


class EventStream:
    """One answer: `async with` it around the run, give `on_output` to the run, then say `complete` and `end`.

    The response begins with the first output or comment, so what is refused before that has its own HTTP status. A
    program is not kept waiting by a slow reader: what was not taken yet is held, at most the run's output limit, while
    the run lasts; then all of it goes to the connection, which bounds what all slow callers hold together.
    """

    def __init__(self, send: Send, headers: Headers, *, keep_alive_seconds: float = KEEP_ALIVE_SECONDS) -> None:
        self._send = send
        self._headers = headers
        self._seconds = keep_alive_seconds
        self._pending: list[tuple[Literal["stdout", "stderr"], bytes]] = []
        self._taken = dict.fromkeys(_STREAMS, 0)
        self._is_due = asyncio.Event()
        # A character may come in two pieces, and what is no UTF-8 becomes U+FFFD as in the answer.
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in _STREAMS}
        self._begun = asyncio.Event()
        self._is_beginning = False
        self._pump: asyncio.Task[None] | None = None

    @property
    def is_begun(self) -> bool:
        """The status went out: from now on everything is an event."""
        return self._is_beginning

    def on_output(self, stream: Literal["stdout", "stderr"], chunk: bytes) -> None:
        """Take output of the program. Never waits."""
        self._pending.append((stream, chunk))
        self._taken[stream] += len(chunk)
        self._is_due.set()

    def complete(self, outcome: Outcome) -> None:
        """Take what the answer holds beyond the program's own output: what was said of it when it had ended, or
        instead of starting it."""
        for stream, whole in zip(_STREAMS, (outcome.stdout, outcome.stderr), strict=True):
            if rest := whole[self._taken[stream] :]:
                self.on_output(stream, rest)

    def hasten(self) -> None:
        """The caller sends no more: find out soon whether it is gone altogether."""
        self._seconds = min(self._seconds, PROBE_SECONDS)
        self._is_due.set()

    async def end(self, name: Literal["result", "problem"], data: bytes) -> None:
        """Send what is left and the last event."""
        await self._begin()
        body = self._take(is_final=True) + event(name, data)
        await self._send({"type": "http.response.body", "body": body})

    async def __aenter__(self) -> Self:
        self._pump = asyncio.create_task(self._pump_events(), name="send events")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._pump is not None  # noqa: S101 - for the type checker
        if self._is_beginning and not self._begun.is_set() and not self._pump.done():
            # The server's own state changes when the head is out, so that must not be cut in half. What comes after is
            # written before it waits for the peer; it is the waiting that ends here.
            begun = asyncio.create_task(self._begun.wait())
            await asyncio.wait([begun, self._pump], return_when=asyncio.FIRST_COMPLETED)
            begun.cancel()
        self._pump.cancel()
        await asyncio.wait([self._pump])
        if not self._pump.cancelled() and (failure := self._pump.exception()) is not None and error is None:
            raise failure

    async def _pump_events(self) -> None:
        while True:
            is_silent = False
            try:
                async with asyncio.timeout(self._seconds):
                    await self._is_due.wait()
            except TimeoutError:
                is_silent = True
            self._is_due.clear()
            if self._pending or is_silent:
                await self._begin()
                # Nothing waits between taking and writing, so ending the pump loses nothing.
                body = self._take() or _COMMENT
                await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _begin(self) -> None:
        if not self._is_beginning:
            self._is_beginning = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
            self._begun.set()

    def _take(self, *, is_final: bool = False) -> bytes:
        """The events of the output that is there; neighbours of one stream become one."""
        pending, self._pending = self._pending, []
        merged: list[tuple[Literal["stdout", "stderr"], list[str]]] = []
        for stream, chunk in pending:
            if not merged or merged[-1][0] != stream:
                merged.append((stream, []))
            merged[-1][1].append(self._decoders[stream].decode(chunk))
        if is_final:
            merged += [(stream, [self._decoders[stream].decode(b"", final=True)]) for stream in _STREAMS]
        texts = ((stream, "".join(parts)) for stream, parts in merged)
        return b"".join(
            event("output", encode(OutputEvent(stream=stream, text=text))) for stream, text in texts if text
        )

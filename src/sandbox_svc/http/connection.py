"""One HTTP/1.1 connection: hypercorn parses and keeps messages in order; bytes, waits and deadlines are ours."""

from __future__ import annotations

import asyncio
import logging
import select
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import h11
import msgspec
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.config import Config
    from hypercorn.events import Event
    from hypercorn.protocol.events import Event as StreamEvent

    from sandbox_svc.http.server import HttpServer

    Message = dict[str, Any]
    App = Callable[..., Awaitable[None]]

logger = logging.getLogger("sandbox_svc.http")

READ_BYTES: Final = 64 * 1024
INBOX_BYTES: Final = 128 * 1024
"""Body that was read from the socket and not yet by the application; then the socket is not read."""
HEAD_SECONDS: Final = 10.0
"""From the first byte of a request to the end of its headers."""
IDLE_SECONDS: Final = 75.0
"""Between requests. Longer than common proxies keep idle connections, so that they are the ones to close."""
FIRST_SECONDS: Final = 1.0
"""For a caller who has connected and sent nothing when the service ends: it is about to ask, and a connection closed
under its request is reset, which does not tell it whether anybody took that."""
WRITE_SECONDS: Final = 30.0
"""Without any progress in sending an answer."""
ANSWER_SECONDS: Final = 300.0
"""For a whole answer to be taken, however steadily."""
LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 64 * 1024 * 1024
"""After an answer that came before the request's end: what is read and dropped before the connection is closed. Closing
at once resets it, and most clients report that instead of the answer that is already on its way."""
PROBE_SECONDS: Final = 0.5

HALF_CLOSED: Final = "sandbox_svc.half_closed"
"""A message to the application: the peer sends no more. Whether it still listens, only something sent can tell."""

_PROBE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """How long a peer may take for what; tests shorten them."""

    head_seconds: float = HEAD_SECONDS
    idle_seconds: float = IDLE_SECONDS
    first_seconds: float = FIRST_SECONDS
    write_seconds: float = WRITE_SECONDS
    answer_seconds: float = ANSWER_SECONDS
    linger_seconds: float = LINGER_SECONDS
    probe_seconds: float = PROBE_SECONDS


class _Http1(H11Protocol):
    """HTTP/1.1 alone: offers to switch to HTTP/2 are ignored, as the standard allows."""

    async def _check_protocol(self, event: h11.Request) -> None:
        pass

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, Response) and event.status_code >= 200 and self.context.terminated.is_set():
            event = Response(event.stream_id, [*event.headers, (b"connection", b"close")], event.status_code)
        await super().stream_send(event)

    async def _send_error_response(self, status_code: int) -> None:
        # h11 suggests 501 for a Transfer-Encoding it does not know, which is the peer's mistake and no failure of ours.
        await super()._send_error_response(400 if status_code == 501 else status_code)


class Inbox:
    """What a connection has for an application, bounded in bytes; the end of the connection always gets through."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._is_gone = False
        self._getter: asyncio.Future[None] | None = None
        self._putter: asyncio.Future[None] | None = None

    async def put(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self._is_gone = True
            self._wake_putter()
        else:
            while self._bytes >= INBOX_BYTES and not self._is_gone:
                self._putter = asyncio.get_running_loop().create_future()
                await self._putter
            if self._is_gone:
                return
            # A flood of tiny chunks costs what its messages cost, not what they hold.
            self._bytes += len(message.get("body", b"")) + 512
            self._messages.append(message)
        if self._getter is not None and not self._getter.done():
            self._getter.set_result(None)

    async def get(self) -> Message:
        while not self._messages:
            if self._is_gone:
                return {"type": "http.disconnect"}
            self._getter = asyncio.get_running_loop().create_future()
            await self._getter
        message = self._messages.popleft()
        self._bytes -= len(message.get("body", b"")) + 512
        self._wake_putter()
        return message

    def _wake_putter(self) -> None:
        if self._putter is not None and not self._putter.done():
            self._putter.set_result(None)


class Applications:
    """The application tasks of one connection; stands in for hypercorn's task group."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._latest: Inbox | None = None

    async def spawn_app(
        self, app: App, _config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Message], Awaitable[None]]:
        inbox = self._latest = Inbox()
        self.spawn(_answer, app, scope, inbox.get, send)
        return inbox.put

    async def tell(self, message: Message) -> None:
        """Say something to the application of the request that is under way."""
        if self._latest is not None:
            await self._latest.put(message)

    def spawn(self, function: Callable[..., Any], *args: Any) -> None:
        task = asyncio.create_task(function(*args))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def ended(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


async def _answer(
    app: App, scope: Any, receive: Callable[[], Awaitable[Message]], send: Callable[[Any], Awaitable[None]]
) -> None:
    try:
        await app(scope, receive, send)
    except Exception:
        logger.exception("the application failed")
    finally:
        await send(None)  # ends the stream, with a 500 when no answer was begun


class Connection:
    """One peer: reads for the protocol, writes for it, and watches the time."""

    def __init__(self, server: HttpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._transport = writer.transport
        self._deadlines = server.deadlines
        self._loop = asyncio.get_running_loop()
        self._applications = Applications()
        self._timer: asyncio.TimerHandle | None = None
        self._unsent: list[bytes] = []
        self._is_lingering = False
        self._is_over = asyncio.Event()
        """The answer that was being made is sent, or the connection is."""
        self.is_idle = True
        """No request is under way; the head of one may be on its way."""
        self.is_head_begun = False
        self.heard_at = self._loop.time()
        """When the peer last sent something, or had its answer."""
        self._is_fresh = True
        """Nothing was ever sent on it."""
        family = writer.get_extra_info("socket").family
        self._protocol = _Http1(
            server.app,  # type: ignore[arg-type]  # `Applications` calls it, as plain ASGI
            server.config,
            server.context,
            self._applications,  # type: ignore[arg-type]  # all of a task group that is used
            ConnectionState({}),
            False,
            parse_socket_addr(family, writer.get_extra_info("peername")),
            parse_socket_addr(family, writer.get_extra_info("sockname")),
            self._send,
        )

    async def run(self) -> None:
        """Serve the peer until one of us ends it. Raises `OSError`."""
        try:
            self._expect(self._deadlines.idle_seconds)
            await self._read()
            await self._protocol.handle(Closed())  # the application learns that the peer is gone
            await self._applications.ended()
        except BaseException:
            self._applications.cancel()
            raise
        finally:
            self._cancel_timer()
        self._write()
        self._transport.close()
        await self._while_peer_takes(self._writer.wait_closed)

    def retire(self) -> None:
        """End the connection: after the answer that is under way or about to be asked for, now if there is none."""
        if not self.is_idle or self.is_head_begun:
            return
        if self._is_fresh:
            self._expect(self._deadlines.first_seconds)
            return
        self._write()
        self._is_over.set()
        self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        self._is_over.set()
        self._cancel_timer()
        self._transport.abort()

    @property
    def waits_for_peer(self) -> bool:
        """Whether it is the peer's turn: to ask, to send the rest of a request, or to hang up."""
        return self._is_lingering or not self._is_request_complete

    @property
    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    # Reading

    async def _read(self) -> None:
        dropped = 0
        while data := await self._reader.read(READ_BYTES):
            self._is_fresh = False
            self.heard_at = self._loop.time()
            if self._is_lingering:
                dropped += len(data)
                if dropped > LINGER_BYTES:
                    return
                continue
            if self.is_idle and not self.is_head_begun:
                self.is_head_begun = True
                self._expect(self._deadlines.head_seconds)
            await self._protocol.handle(RawData(data))
        if not self.is_idle and not self._is_lingering and self._is_request_complete:
            await self._outlive_half_close()

    @property
    def _is_request_complete(self) -> bool:
        return self._protocol.connection.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

    async def _outlive_half_close(self) -> None:
        """The peer sends no more: wait for the answer to be sent, or until the peer turns out to be gone altogether.

        Both look the same until something is sent, so an interim answer is, which HTTP/1.1 allows at any time before
        the final one and which a peer that is gone answers with a reset.
        """
        # Once an answer has begun, no interim one may come between; what may, the application knows.
        await self._applications.tell({"type": HALF_CLOSED})
        if self._transport.is_closing():
            return  # the answer was sent meanwhile, and there is no socket any more
        poller = select.poll()
        poller.register(self._writer.get_extra_info("socket").fileno(), 0)  # errors and hang-ups are always told
        is_probing = True
        while not self._transport.is_closing():
            try:
                async with asyncio.timeout(self._deadlines.probe_seconds / 2):
                    await self._is_over.wait()
                    return
            except TimeoutError:
                pass
            if poller.poll(0):
                return
            connection = self._protocol.connection
            if (
                is_probing
                and connection.our_state is h11.SEND_RESPONSE
                and isinstance(connection, h11.Connection)
                and connection.their_http_version == b"1.1"
            ):
                self._transport.write(_PROBE)
            is_probing = not is_probing

    # Time

    def _expect(self, seconds: float) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_later(seconds, self.abort)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Writing, for the protocol

    async def _send(self, event: Event) -> None:
        if isinstance(event, RawData):
            if event.data and not self._transport.is_closing():
                if len(event.data) > READ_BYTES:
                    self._write()
                    self._transport.write(event.data)
                else:
                    # Head and body of an answer come one right after the other; this makes one system call and one
                    # packet of them, where the transport would make two of each.
                    if not self._unsent:
                        self._loop.call_soon(self._write)
                    self._unsent.append(event.data)
                if self.unsent_bytes > READ_BYTES:
                    await self._while_peer_takes(self._writer.drain)
        elif isinstance(event, Updated):
            self.is_idle = event.idle
            if event.idle:
                self._is_over.set()
                self.heard_at = self._loop.time()
                # The next head may have begun behind the request that was just answered.
                self.is_head_begun = bool(self._protocol.connection.trailing_data[0])
                seconds = self._deadlines.head_seconds if self.is_head_begun else self._deadlines.idle_seconds
                self._expect(seconds)
            else:
                self._is_over.clear()
                self._cancel_timer()
        elif isinstance(event, Closed):
            self._end()

    def _write(self) -> None:
        if self._unsent and not self._transport.is_closing():
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def _end(self) -> None:
        """The protocol is done with the connection."""
        self._write()
        self._is_over.set()
        if self._transport.is_closing() or self._is_lingering:
            return
        if self._reader.at_eof() or self._is_request_complete or not self._transport.can_write_eof():
            self._transport.close()
            self._expect(self._deadlines.write_seconds)
        else:
            self._is_lingering = True
            self._transport.write_eof()
            self._expect(self._deadlines.linger_seconds)

    async def _while_peer_takes(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Wait for the transport to get rid of what was written; cut the connection when the peer does not take it."""
        end = self._loop.time() + self._deadlines.answer_seconds
        left = self.unsent_bytes
        self._server.begin_slow(self)
        waiting = asyncio.ensure_future(wait())
        try:
            while True:
                await asyncio.wait([waiting], timeout=self._deadlines.write_seconds)
                if waiting.done():
                    return
                before, left = left, self.unsent_bytes
                if left >= before or self._loop.time() > end:
                    logger.debug("cut a connection whose peer does not take its answer")
                    self.abort()
                    return
        finally:
            self._server.end_slow(self)
            waiting.cancel()
            # What becomes of it does not matter, but a failure that nobody looks at is reported.
            await asyncio.gather(waiting, return_exceptions=True)

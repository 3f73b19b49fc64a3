"""A route that runs programs: who is asking, and the path of a run from bytes to bytes."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

from sandbox_svc.errors import CrossOrigin, ProtocolError, RuntimeUnavailable, SandboxLost, SandboxServiceError
from sandbox_svc.http.accept import prefers
from sandbox_svc.http.body import read_body
from sandbox_svc.http.connection import HALF_CLOSED
from sandbox_svc.http.event_stream import HEADERS, MEDIA_TYPE, EventStream
from sandbox_svc.http.reply import Reply
from sandbox_svc.service.runs import new_run_id
from sandbox_svc.service.tenants import Tenant
from sandbox_svc.trace_context import read_traceparent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from sandbox_svc.http.body import BodyBudget, BodyShare
    from sandbox_svc.http.reply import Headers
    from sandbox_svc.service.runs import Report, RunRequest
    from sandbox_svc.service.service import Service
    from sandbox_svc.service.tenants import Admission
    from sandbox_svc.trace_context import TraceContext

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

logger = logging.getLogger("sandbox_svc.api")


class Adapter(Protocol):
    """One public contract over the one use case: bytes to a request, a report or an error to an answer. Never waits."""

    def parse(self, body: bytes) -> RunRequest:
        """Raises `InvalidRequest`."""
        ...

    def answer(self, report: Report) -> Reply: ...

    def refuse(self, error: SandboxServiceError) -> Reply: ...


class RunEndpoint:
    """A route that runs programs: an ASGI application around an adapter and the service."""

    def __init__(
        self,
        adapter: Adapter,
        *,
        service: Service,
        admission: Admission,
        budget: BodyBudget,
        max_body_bytes: int,
        body_seconds: float,
        on_refused: Callable[[str], None],
        streams: bool,
    ) -> None:
        """`streams`: whether callers may ask for events, whose last one is then the adapter's answer."""
        self._adapter = adapter
        self._service = service
        self._admission = admission
        self._budget = budget
        self._max_body_bytes = max_body_bytes
        self._body_seconds = body_seconds
        self._on_refused = on_refused
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        run_id = new_run_id()
        trace = read_traceparent(scope["headers"])
        headers: Headers = [(b"x-run-id", run_id.encode())]
        if trace is not None:
            headers.append(trace.response_header)
        events: EventStream | None = None
        if self._streams and prefers(scope["headers"], MEDIA_TYPE, to="application/json"):
            events = EventStream(send, [*HEADERS, *headers])
        try:
            with self._budget.share() as share:
                reply = await self._reply(scope, receive, share, run_id, trace, events)
            if reply is None:
                return
            if events is not None:
                await events.end("result", reply.body)
                return
        except SandboxServiceError as error:
            if error.code in _WORTH_A_LINE:
                level = logging.ERROR if type(error) is SandboxServiceError else logging.WARNING
                logger.log(level, "run %s: %s: %s", run_id, error.code, error, exc_info=error.__cause__)
            reply = self._adapter.refuse(error)
        except Exception:
            # The border: whatever it was, the caller gets an answer of the contract, and nobody else notices.
            logger.exception("run %s failed", run_id)
            reply = self._adapter.refuse(SandboxServiceError("The run could not be completed"))
        if events is not None and events.is_begun:
            await events.end("problem", reply.body)
            return
        reply.headers.extend(headers)
        await send_reply(send, reply)

    async def _reply(
        self,
        scope: Scope,
        receive: Receive,
        share: BodyShare,
        run_id: str,
        trace: TraceContext | None,
        events: EventStream | None,
    ) -> Reply | None:
        """The whole way of one request; None when its caller is gone. Raises whatever goes wrong."""
        try:
            taken = await self._take(scope, receive, share)
        except SandboxServiceError as error:
            self._on_refused(error.code)
            raise
        if taken is None:
            return None
        tenant, request = taken
        if events is None:
            run = self._service.run(request, tenant=tenant, run_id=run_id, trace=trace)
            report = await _unless_gone(run, receive)
        else:
            async with events:
                run = self._service.run(request, tenant=tenant, run_id=run_id, trace=trace, on_output=events.on_output)
                report = await _unless_gone(run, receive, on_half_close=events.hasten)
            if report is not None:
                events.complete(report.outcome)
        return None if report is None else self._adapter.answer(report)

    async def _take(self, scope: Scope, receive: Receive, share: BodyShare) -> tuple[Tenant, RunRequest] | None:
        """Who asks for what; None when the caller is gone."""
        # Before the body is read, so that strangers cannot make us hold any.
        _refuse_other_sites(scope["headers"])
        tenant = identify(scope, self._admission)
        share.caller = tenant.caller
        body = await read_body(
            receive, scope["headers"], share=share, max_bytes=self._max_body_bytes, timeout_seconds=self._body_seconds
        )
        # What is taken out of the body is held through queue and run; the body itself ends here.
        return None if body is None else (tenant, self._adapter.parse(body))


_WORTH_A_LINE = {kind.code for kind in (SandboxServiceError, SandboxLost, RuntimeUnavailable, ProtocolError)}
"""Errors that an operator can do something about; the others are the callers' business and in the line of the run."""


async def _unless_gone(
    run: Awaitable[Report], receive: Receive, *, on_half_close: Callable[[], None] | None = None
) -> Report | None:
    """Await a run; cancel it when the caller hangs up, so that nobody's program keeps a sandbox. None: gone."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - for the type checker
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (kind := (await receive())["type"]) != "http.disconnect":
            if kind == HALF_CLOSED and on_half_close is not None:
                on_half_close()
        is_gone = True
        task.cancel()

    watcher = asyncio.create_task(watch(), name="watch for disconnect")
    try:
        return await run
    except asyncio.CancelledError:
        # As `asyncio.timeout` does: the cancellation is ours to swallow only when nobody else asked for one.
        if is_gone and task.uncancel() == 0:
            return None
        raise
    finally:
        watcher.cancel()


def identify(scope: Scope, admission: Admission, *, may_be_anonymous: bool = False) -> Tenant:
    """Whom the request is for; nobody in particular where it may be anonymous and no key was sent. Raises
    `Unauthorized`.
    """
    key: str | None = None
    bearer: str | None = None
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            key = value.decode("latin-1")
        elif name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                bearer = token.strip()
    if may_be_anonymous and not (key or bearer):
        return Tenant()
    client = scope["client"]
    # The key is the more deliberate one: gateways put tokens of their own into Authorization.
    return admission.identify(bearer if key is None else key, client[0] if client else None)


def _refuse_other_sites(headers: Headers) -> None:
    """Any page may send a plain POST to a loopback address without asking. Raises `CrossOrigin`."""
    # Only browsers send this header.
    if any(name == b"sec-fetch-site" and value in (b"cross-site", b"same-site") for name, value in headers):
        raise CrossOrigin("Requests from pages of other sites are refused")


async def send_reply(send: Send, reply: Reply) -> None:
    headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})

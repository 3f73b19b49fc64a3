"""The HTTP face: which path answers what, health, and errors of no route in particular."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route

from sandbox_svc.errors import SandboxServiceError, Unauthorized
from sandbox_svc.http.accept import prefers
from sandbox_svc.http.body import BodyBudget
from sandbox_svc.http.compat import CompatAdapter
from sandbox_svc.http.openapi import openapi_document
from sandbox_svc.http.pages import read_pages
from sandbox_svc.http.reply import JSON, Reply, problem, problem_reply
from sandbox_svc.http.run_endpoint import RunEndpoint, identify, send_reply
from sandbox_svc.http.v1 import V1Adapter
from sandbox_svc.http.wire import Check, Health, Readiness, encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping

    from starlette.requests import Request

    from sandbox_svc.http.run_endpoint import Adapter
    from sandbox_svc.http.wire import LanguagesAnswer
    from sandbox_svc.service.service import Service
    from sandbox_svc.service.tenants import Admission, Tenant

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

BODY_SECONDS: Final = 30.0
"""For the whole of a request body to arrive; 16 MiB within it is 4.5 Mbit/s."""
BODIES_AT_ONCE: Final = 8
"""Largest bodies whose bytes may be held at the same time, between all requests, of one caller half as many; each costs
about three times its size while it is taken apart."""


def create_api(
    *,
    service: Service,
    admission: Admission,
    max_body_bytes: int,
    readiness: Callable[[], Mapping[str, Check]],
    languages: Callable[[Tenant], LanguagesAnswer],
    metrics: Callable[[], Reply],
    on_refused: Callable[[str], None],
    body_seconds: float = BODY_SECONDS,
) -> Starlette:
    """The ASGI application.

    `readiness`, `languages` and `metrics` answer from memory; they are called for every request. `on_refused` is told
    the code of each error that answers a request before the service hears of it; it must return at once.
    """
    budget = BodyBudget(BODIES_AT_ONCE * max_body_bytes)

    def run_route(path: str, adapter: Adapter, *, streams: bool = False) -> Route:
        endpoint = RunEndpoint(
            adapter,
            service=service,
            admission=admission,
            budget=budget,
            max_body_bytes=max_body_bytes,
            body_seconds=body_seconds,
            on_refused=on_refused,
            streams=streams,
        )
        return Route(path, endpoint, methods=["POST"])

    health = Fixed(Reply(200, [JSON, (b"vary", b"Accept")], encode(Health())))
    pages = {name: Fixed(page) for name, page in read_pages().items()}
    api = Starlette(
        routes=[
            run_route("/run", CompatAdapter()),
            run_route("/v1/run", V1Adapter(), streams=True),
            Route("/", Root(health, pages["index.html"]), methods=["GET"]),
            Route("/docs", pages["docs.html"], methods=["GET"]),
            Mount("/ui", routes=[Route(f"/{name}", page, methods=["GET"]) for name, page in pages.items()]),
            Route("/healthz", health, methods=["GET"]),
            Route("/readyz", Computed(lambda: readiness_reply(readiness())), methods=["GET"]),
            Route("/v1/languages", Languages(admission, languages), methods=["GET"]),
            Route("/metrics", Computed(metrics), methods=["GET"]),
            Route("/openapi.json", Fixed(Reply(200, [JSON], encode(openapi_document()))), methods=["GET"]),
        ],
        exception_handlers={404: _not_found, 405: _not_allowed, Exception: _failed},
    )
    # A redirected POST loses its body with many clients; there is one path per thing.
    api.router.redirect_slashes = False
    return api


class Fixed:
    """Always the same answer, prepared once."""

    def __init__(self, reply: Reply) -> None:
        headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
        self._start = {"type": "http.response.start", "status": reply.status, "headers": headers}
        self._body = {"type": "http.response.body", "body": reply.body}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        await send(self._start)
        await send(self._body)


class Root:
    """Whoever asks for HTML by name is a browser and gets the page; probes and everybody else learn that we live."""

    def __init__(self, health: Fixed, page: Fixed) -> None:
        self._health = health
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        chosen = self._page if prefers(scope["headers"], "text/html", to="application/json") else self._health
        await chosen(scope, receive, send)


class Computed:
    """An answer that a function makes from what is in memory."""

    def __init__(self, make: Callable[[], Reply]) -> None:
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        await send_reply(send, self._make())


class Languages:
    """What is served, with the limits of whoever asks; without a key, those of the service."""

    def __init__(self, admission: Admission, languages: Callable[[Tenant], LanguagesAnswer]) -> None:
        self._admission = admission
        self._languages = languages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        try:
            tenant = identify(scope, self._admission, may_be_anonymous=True)
        except Unauthorized as error:
            reply = problem(error)
        else:
            reply = Reply(200, [JSON, (b"vary", b"Authorization, X-API-Key")], encode(self._languages(tenant)))
        await send_reply(send, reply)


def readiness_reply(checks: Mapping[str, Check]) -> Reply:
    """200 unless a check fails; the body names each."""
    is_ready = all(check.status != "failing" for check in checks.values())
    answer = Readiness(status="ready" if is_ready else "not_ready", checks=dict(checks))
    return Reply(200 if is_ready else 503, [JSON], encode(answer))


async def _not_found(_request: Request, _error: Exception) -> Response:
    return _response(problem_reply(404, "not_found", "There is nothing at this path"))


async def _not_allowed(_request: Request, error: Exception) -> Response:
    allow = (getattr(error, "headers", None) or {}).get("Allow", "")
    return _response(problem_reply(405, "method_not_allowed", f"This path takes {allow}", [(b"allow", allow.encode())]))


async def _failed(_request: Request, _error: Exception) -> Response:
    return _response(problem_reply(500, SandboxServiceError.code, "The request could not be completed"))


def _response(reply: Reply) -> Response:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reply.headers}
    return Response(reply.body, status_code=reply.status, headers=headers)

"""The OpenAPI document, generated from the public types and the routes' table here."""

from __future__ import annotations

from typing import Any, Final

from sandbox_svc import __version__
from sandbox_svc.http.wire import (
    CompatAnswer,
    CompatRequest,
    Health,
    LanguagesAnswer,
    OutputEvent,
    Problem,
    Readiness,
    RunAnswer,
    RunBody,
    schema_of,
)

_JSON: Final = "application/json"
_PROBLEM: Final = "application/problem+json"

_HTML: Final = {"text/html": {"schema": {"type": "string"}}}

HEADERS: Final[dict[str, dict[str, Any]]] = {
    "X-Run-Id": {
        "description": "The run's name in the log of the service.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
    },
    "RateLimit": {
        "description": "Runs that are left, and seconds until there are more; where a rate limit applies and the "
        "request was counted, and not in streams.",
        "schema": {"type": "string", "examples": ['"runs";r=4;t=1']},
    },
    "RateLimit-Policy": {
        "description": "Runs in how many seconds; comes with `RateLimit`.",
        "schema": {"type": "string", "examples": ['"runs";q=5;w=1']},
    },
    "Retry-After": {
        "description": "Seconds. Always with 429 and 503; in a 200 of `/run` where that says so in its body.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {"description": "How to send a key.", "schema": {"type": "string"}},
}

STREAM_EVENT: Final = {
    "title": "StreamEvent",
    "description": "One server-sent event of a stream. `result` and `problem` are the last one.",
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["output", "result", "problem"]},
        "data": {
            "type": "string",
            "contentMediaType": _JSON,
            "description": "As JSON: an `OutputEvent`, a `RunAnswer` or a `Problem`.",
        },
    },
}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _answer(description: str, kind: type | None, media_type: str = _JSON, **more: Any) -> dict[str, Any]:
    content = {} if kind is None else {"content": {media_type: {"schema": _ref(kind)}}}
    return {"description": description, **content, **more}


def _problem(description: str, **more: Any) -> dict[str, Any]:
    return _answer(description, Problem, _PROBLEM, **more)


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _body(kind: type, example: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {_JSON: {"schema": _ref(kind), "example": example}}}


_RUN_ID: Final = _headers("X-Run-Id")
_RATE: Final = _headers("X-Run-Id", "RateLimit", "RateLimit-Policy")

_MALFORMED: Final = {
    "400": _problem("The body is no JSON (`malformed_request`).", headers=_RUN_ID),
    "401": _problem(
        "API keys are configured and none that is known was sent (`unauthorized`).",
        headers=_headers("X-Run-Id", "WWW-Authenticate"),
    ),
    "403": _problem("The request comes from a page of another site (`cross_origin`).", headers=_RUN_ID),
    "408": _problem("The body did not arrive in time (`request_timeout`).", headers=_RUN_ID),
    "413": _problem("The body is too large (`request_too_large`).", headers=_RUN_ID),
}

PATHS: Final[dict[str, dict[str, Any]]] = {
    "/v1/run": {
        "post": {
            "operationId": "run",
            "summary": "Run a program and say what it did",
            "requestBody": _body(
                RunBody,
                {
                    "language": "python",
                    "code": "def main(name):\n    return 'hello ' + name\n",
                    "arguments": {"name": "x"},
                },
            ),
            "responses": {
                "200": {
                    "description": "What the program did, whatever that was. `Accept` chooses: JSON, or, where it "
                    "names `text/event-stream` with no smaller `q`, a stream of events, each a `StreamEvent`: `output` "
                    "while it runs, then one `result` or `problem`.",
                    "headers": _RATE,
                    "content": {
                        _JSON: {"schema": _ref(RunAnswer)},
                        "text/event-stream": {"schema": {"$ref": "#/components/schemas/StreamEvent"}},
                    },
                },
                **_MALFORMED,
                "422": _problem(
                    "A field is wrong (`invalid_request`, `unknown_language`), or static analysis refuses the program "
                    "(`code_refused`).",
                    headers=_RATE,
                ),
                "429": _problem("The rate limit is used up (`rate_limited`).", headers=_RATE | _headers("Retry-After")),
                "500": _problem(
                    "The sandbox was lost, or something of ours failed (`sandbox_lost`, `internal`).", headers=_RATE
                ),
                "503": _problem(
                    "No sandbox became free in time (`pool_exhausted`), the service is stopping (`draining`), or the "
                    "engine is away (`engine_unavailable`).",
                    headers=_RATE | _headers("Retry-After"),
                ),
            },
        }
    },
    "/run": {
        "post": {
            "operationId": "runCompatible",
            "summary": "Call `main` of a program; the contract of RAGFlow's executor manager",
            "requestBody": _body(
                CompatRequest,
                {
                    "language": "python",
                    "code_b64": "ZGVmIG1haW4obmFtZSk6CiAgICByZXR1cm4gJ2hlbGxvICcgKyBuYW1lCg==",
                    "arguments": {"name": "x"},
                },
            ),
            "responses": {
                "200": _answer(
                    "Whatever became of it, overload and refusals included.",
                    CompatAnswer,
                    headers=_RATE | _headers("Retry-After"),
                ),
                **_MALFORMED,
                "422": _problem("A field is wrong (`invalid_request`, `unknown_language`).", headers=_RUN_ID),
            },
        }
    },
    "/v1/languages": {
        "get": {
            "operationId": "languages",
            "summary": "Languages, versions, aliases, packages and limits",
            "responses": {
                "200": _answer(
                    "The languages that are served, with the limits of the API key that was sent, or else those of the "
                    "service.",
                    LanguagesAnswer,
                ),
                "401": _problem(
                    "A key was sent that is not known (`unauthorized`).", headers=_headers("WWW-Authenticate")
                ),
            },
        }
    },
    "/healthz": {
        "get": {
            "operationId": "alive",
            "summary": "Liveness",
            "responses": {"200": _answer("The service runs.", Health)},
        }
    },
    "/": {
        "get": {
            "operationId": "root",
            "summary": "Liveness, as `/healthz`; for browsers, a page to try the service",
            "responses": {
                "200": {
                    "description": "The service runs. HTML for whoever asks for `text/html` by name.",
                    "content": {_JSON: {"schema": _ref(Health)}, **_HTML},
                }
            },
        }
    },
    "/docs": {
        "get": {
            "operationId": "docs",
            "summary": "This document for people",
            "responses": {"200": {"description": "A page.", "content": _HTML}},
        }
    },
    "/readyz": {
        "get": {
            "operationId": "ready",
            "summary": "Readiness, check by check",
            "responses": {
                "200": _answer("Every language can be served.", Readiness),
                "503": _answer("At least one check fails.", Readiness),
            },
        }
    },
    "/metrics": {
        "get": {
            "operationId": "metrics",
            "summary": "Metrics for Prometheus",
            "responses": {
                "200": {
                    "description": "The text format of Prometheus.",
                    "content": {"text/plain": {"schema": {"type": "string"}}},
                }
            },
        }
    },
    "/openapi.json": {
        "get": {
            "operationId": "openapi",
            "summary": "This document",
            "responses": {"200": {"description": "OpenAPI 3.1.", "content": {_JSON: {"schema": {"type": "object"}}}}},
        }
    },
}

TYPES: Final = (
    CompatAnswer,
    CompatRequest,
    Health,
    LanguagesAnswer,
    OutputEvent,
    Problem,
    Readiness,
    RunAnswer,
    RunBody,
)

_JSON_OBJECT: Final = {"anyOf": [{"type": "object"}, {"type": "null"}]}


def openapi_document() -> dict[str, Any]:
    """Return the document as plain data."""
    schemas = schema_of(*TYPES)
    for name in ("CompatRequest", "RunBody"):
        # JSON that is passed on as bytes has no type of its own.
        described = schemas[name]["properties"]["arguments"]
        schemas[name]["properties"]["arguments"] = {"description": described.get("description", ""), **_JSON_OBJECT}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sandbox_svc",
            "version": __version__,
            "description": "Runs code snippets in containers that were warm before the request came.",
        },
        "paths": PATHS,
        "components": {
            "schemas": schemas | {"StreamEvent": STREAM_EVENT},
            "headers": HEADERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }

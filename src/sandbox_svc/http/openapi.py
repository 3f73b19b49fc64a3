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

_RETRY_AFTER: Final = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}


def _answer(description: str, kind: type | None, media_type: str = _JSON, **more: Any) -> dict[str, Any]:
    content = {} if kind is None else {"content": {media_type: {"schema": _ref(kind)}}}
    return {"description": description, **content, **more}


def _problem(description: str, **more: Any) -> dict[str, Any]:
    return _answer(description, Problem, _PROBLEM, **more)


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _body(kind: type, example: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {_JSON: {"schema": _ref(kind), "example": example}}}


_MALFORMED: Final = {
    "400": _problem("The body is no JSON (`malformed_request`)."),
    "401": _problem("API keys are configured and none that is known was sent (`unauthorized`)."),
    "403": _problem("The request comes from a page of another site (`cross_origin`)."),
    "408": _problem("The body did not arrive in time (`request_timeout`)."),
    "413": _problem("The body is too large (`request_too_large`)."),
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
                    "description": "What the program did, whatever that was. With `Accept: text/event-stream`, events: "
                    "`output` (an `OutputEvent`) while it runs, then one `result` (a `RunAnswer`) or `problem` "
                    "(a `Problem`).",
                    "content": {
                        _JSON: {"schema": _ref(RunAnswer)},
                        "text/event-stream": {"schema": {"type": "string"}},
                    },
                },
                **_MALFORMED,
                "422": _problem(
                    "A field is wrong (`invalid_request`, `unknown_language`), or static analysis refuses the program "
                    "(`code_refused`)."
                ),
                "429": _problem("The rate limit is used up (`rate_limited`).", headers=_RETRY_AFTER),
                "500": _problem("The sandbox was lost, or something of ours failed (`sandbox_lost`, `internal`)."),
                "503": _problem(
                    "No sandbox became free in time (`pool_exhausted`), the service is stopping (`draining`), or the "
                    "engine is away (`engine_unavailable`).",
                    headers=_RETRY_AFTER,
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
                "200": _answer("Whatever became of it, overload and refusals included.", CompatAnswer),
                **_MALFORMED,
                "422": _problem("A field is wrong (`invalid_request`, `unknown_language`)."),
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
                "401": _problem("A key was sent that is not known (`unauthorized`)."),
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
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }

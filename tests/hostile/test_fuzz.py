"""Bodies of requests, made up by hypothesis: answered or refused, never a 500, never a hang, and nothing grows."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.harness import Service, check_compat, strict_json

MALFORMED = (400, 408, 413, 422)
SETTINGS = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TEXT = st.text(st.characters(codec=None), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
SOURCES = (
    st.sampled_from(
        [
            "def main(**kw):\n    return kw",
            "def main(**kw):\n    print(kw)\n    raise ValueError(kw)",
            "raise SystemExit(3)",
            "def main(:",
            "\x00",
            "é",
        ]
    )
    | TEXT
)
CODE = SOURCES.map(lambda text: base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()) | TEXT | JSON
COMPAT = st.fixed_dictionaries(
    {},
    optional={
        "code_b64": CODE,
        "language": st.sampled_from(["python", "nodejs", "x", ""]) | JSON,
        "arguments": JSON,
        "base_image": JSON,
    },
)
V1 = st.fixed_dictionaries(
    {},
    optional={
        "language": st.sampled_from(["python", "nodejs"]) | JSON,
        "code": SOURCES | JSON,
        "code_b64": CODE,
        "entry_point": TEXT,
        "files": st.dictionaries(TEXT, TEXT | st.fixed_dictionaries({"b64": CODE}), max_size=3) | JSON,
        "mode": st.sampled_from(["main", "script", "x"]),
        "arguments": JSON,
        "stdin": TEXT | JSON,
        "args": st.lists(TEXT, max_size=3) | JSON,
        "env": st.dictionaries(TEXT, TEXT, max_size=3) | JSON,
        "limits": st.dictionaries(
            st.sampled_from(["wall_ms", "cpu_ms", "memory_bytes", "output_bytes", "x"]), JSON, max_size=3
        ),
        "artifacts": st.lists(TEXT, max_size=3) | JSON,
    },
)


def mutate(draw: st.DrawFn, body: bytes) -> bytes:
    """Change a few bytes, cut, or repeat a part."""
    data = bytearray(body)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["set", "cut", "insert", "double"]))
        if kind == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 20))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=10))
        else:
            data[at:at] = data[at : at + 50]
    return bytes(data)


@st.composite
def bodies(draw: st.DrawFn, shape: st.SearchStrategy[Any]) -> bytes:
    return mutate(draw, json.dumps(draw(shape), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"))


@given(body=bodies(COMPAT))
@SETTINGS
@pytest.mark.http
def test_any_body_of_run_is_answered(service: Service, body: bytes) -> None:
    """AP-01, AP-02, AP-06, AP-07, AP-10: by the contract, or by a problem document."""
    reply = service.post("/run", body)
    assert reply.status in (200, *MALFORMED)
    assert reply.seconds < 6
    if reply.status == 200:
        fields = check_compat(reply.body)
        # Whatever it was, no container was lost over it.
        assert fields["exit_code"] not in (-3, -10)
    else:
        assert len(strict_json(reply.body)["detail"]) < 400


@given(body=bodies(V1))
@SETTINGS
@pytest.mark.http
def test_any_body_of_the_strict_api_is_answered(service: Service, body: bytes) -> None:
    """AP-05, AP-06, AP-09, AP-10: likewise."""
    reply = service.post("/v1/run", body)
    assert reply.status in (200, *MALFORMED)
    assert reply.seconds < 6
    strict_json(reply.body)


@given(data=st.binary(max_size=400))
@settings(SETTINGS, max_examples=60)
@pytest.mark.http
def test_any_bytes_on_a_connection_are_answered_or_dropped(service: Service, data: bytes) -> None:
    """AP-14: before, within and after a head that begins well."""
    for prefix in (
        b"",
        b"POST /run HTTP/1.1\r\nHost: x\r\n",
        b"POST /run HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    ):
        with service.socket(5) as sock:
            try:
                sock.sendall(prefix + data)
                sock.shutdown(1)
                answer = sock.recv(65536)
            except OSError:
                continue
        assert not answer.startswith(b"HTTP/1.1 5")


@pytest.mark.http
def test_fuzzing_left_nothing_behind(service: Service) -> None:
    """AP-09: memory and descriptors are as before another round of it."""
    before = service.memory_kb(), service.descriptors()
    for number in range(200):
        service.post("/run", b'{"code_b64": "%d", "x": "' % number + b"y" * 10_000)
        service.post("/v1/run", b"[" * number)
    assert service.memory_kb() - before[0] < 10 * 1024
    assert service.descriptors() <= before[1] + 2


pytestmark = pytest.mark.timeout(300)

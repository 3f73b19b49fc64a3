"""Whatever bytes arrive as a body: a request, or one of the errors that are the caller's; never anything else."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox_svc.errors import InvalidRequest
from sandbox_svc.http.compat import CompatAdapter
from sandbox_svc.http.v1 import V1Adapter
from sandbox_svc.http.wire import CompatRequest, RunBody
from sandbox_svc.service.runs import RunRequest

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("eA=="),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
COMPAT_FIELDS = st.sampled_from([*CompatRequest.__struct_fields__, "base_image"])
V1_FIELDS = st.sampled_from([*RunBody.__struct_fields__, "other"])
ADAPTERS = pytest.mark.parametrize("adapter", [CompatAdapter(), V1Adapter()], ids=["run", "v1"])


def parse(adapter: CompatAdapter | V1Adapter, body: bytes) -> RunRequest | None:
    try:
        return adapter.parse(body)
    except InvalidRequest as error:
        sentence = str(error)
    assert 0 < len(sentence) < 300
    return None


@ADAPTERS
@given(body=st.binary(max_size=200))
@example(body=b"\xef\xbb\xbf{}")
@example(body=b'{"code":"x","arguments":{"a":"\\ud800"}}')
@example(body=b'{"code":"x","files":{"\\ud800":""},"arguments":{}}')
@example(body=b'{"code":"\\ud83d","env":{"A":"\\ude00"}}')
def test_any_bytes(adapter, body):
    parse(adapter, body)


@ADAPTERS
@given(fields=st.dictionaries(COMPAT_FIELDS | V1_FIELDS, values, max_size=6))
def test_any_json_of_the_right_fields(adapter, fields):
    """Also with NaN, lone surrogates and numbers of any size, which Python writes as they are."""
    request = parse(adapter, json.dumps(fields).encode())

    if request is not None:
        request.source.decode()
        assert b"\0" not in request.source


@ADAPTERS
@given(arguments=st.dictionaries(st.text(), values, max_size=4), data=st.data())
def test_arguments_that_pass_are_passed_on_unchanged(adapter, arguments, data):
    encoded = json.dumps(arguments, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 1])))
    code = base64.b64encode(b"x").decode()
    body = f'{{"code_b64": "{code}", "arguments": {encoded}}}'.encode("utf-8", "surrogatepass")

    request = parse(adapter, body)

    if request is not None:
        assert request.arguments == encoded.encode()

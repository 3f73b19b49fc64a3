"""Bytes that a fuzzer found worth keeping, and any others: no parser that meets hostile bytes breaks its promise."""

from __future__ import annotations

import json
import pathlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from supervisor import channel
from tests.hostile.fuzz_targets import EXITS, LIMITS, TARGETS, outcome_of, report_frame

CORPUS = pathlib.Path(__file__).parent / "corpus"

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ERRORS = st.dictionaries(st.sampled_from(["type", "message", "line", "is_memory", "x"]), ANY_JSON).map(
    lambda fields: json.dumps(fields).encode()
)
MESSAGES = st.one_of(
    st.builds(channel.encode, st.sampled_from([b"P", b"R", b"D", b"E", b"x"]), st.binary(max_size=20)),
    st.builds(channel.encode, st.just(b"E"), ERRORS),
    st.builds(channel.encode, st.just(b"R"), ANY_JSON.map(lambda value: json.dumps(value).encode())),
    st.builds(channel.encode, st.just(b"D"), st.integers().map(lambda number: b"%d" % number)),
    st.binary(max_size=40),
)


@pytest.mark.parametrize("target", TARGETS)
def test_bytes_that_were_kept_break_no_promise(target: str) -> None:
    """PR-06, PR-20, PR-22, PR-26, AP-01, AP-06, AP-10: every file of the corpus; `make fuzz` looks for more."""
    kept = sorted((CORPUS / target).iterdir())
    assert len(kept) > 10
    for path in kept:
        try:
            TARGETS[target](path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.name} breaks a promise of {target}") from error


@given(data=st.lists(MESSAGES, max_size=5).map(b"".join) | st.binary(max_size=300), status=st.sampled_from(EXITS))
@example(data=channel.encode(b"E", b'{"type":"T","message":"m","line":true}') + channel.encode(b"D", b"1"), status=0)
@example(data=channel.encode(b"E", b'{"type":{},"message":[[]],"line":1e400}'), status=256)
@example(data=channel.encode(b"E", b'{"type":"\\ud800","message":"\\udfff","line":[]}'), status=9)
@example(data=channel.encode(b"E", b'{"type":%b,"message":0}' % (b"9" * 30_000)), status=0)
@example(data=channel.encode(b"E", b'{"type":%b,"message":0}' % (b"[" * 9000 + b"]" * 9000)), status=0)
@example(data=channel.encode(b"R", b"1") + channel.encode(b"D", b"-" + b"9" * 15), status=None)
@settings(max_examples=600)
def test_any_bytes_on_the_channel_of_a_runner_are_an_outcome(data: bytes, status: int | None) -> None:
    """PR-06: from the bytes that a program wrote to what its caller is told: well-formed messages with values of any type,
    garbage, and everything between. Nothing on that way may raise, since that would cost the container."""
    outcome = outcome_of(report_frame(data, status))
    assert outcome.result is None or len(outcome.result) <= LIMITS.result_bytes
    assert outcome.error is None or len(outcome.error.type) <= 200
    assert outcome.error is None or outcome.error.line is None or type(outcome.error.line) is int

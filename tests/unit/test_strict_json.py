"""JSON that is passed on as bytes is strict, bounded and keeps every digit."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_svc.strict_json import MAX_DEPTH, MAX_DIGITS, SurrogateCloak, check_bounds, clean_result


def nested(levels: int) -> bytes:
    return b'{"a":[' * (levels // 2) + b"1" + b"]}" * (levels // 2)


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b'{"a": 12345678901234567890123456789}',
        nested(MAX_DEPTH),
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        json.dumps(["[" * 300, "{[" * 300 + '"', '\\"[' * 300]).encode(),
        json.dumps([{"row": [1, 2]}] * 500).encode(),
        json.dumps({"digits": "7" * 10_000, "escaped": '\\"' + "7" * 5000}).encode(),
        b"1" * MAX_DIGITS,
        b"[" + b"[]," * 1000 + b"1]",
    ],
)
def test_what_is_within_the_bounds_passes(text):
    check_bounds(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (nested(MAX_DEPTH + 2), "nested more than 200 levels"),
        (b"[" * 201 + b"]" * 201, "nested more than 200 levels"),
        (b'["\\\\",' + b"[" * 201 + b"]" * 201 + b"]", "nested more than 200 levels"),
        (b'{"a":' + b"1" * (MAX_DIGITS + 1) + b"}", "more than 4000 digits"),
        (b'["\\"",' + b"1" * (MAX_DIGITS + 1) + b',"\\""]', "more than 4000 digits"),
        (b"[" + b"[]," * 500_001 + b"1]", "more than 500000 arrays"),
    ],
)
def test_what_exceeds_a_bound_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        check_bounds(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='[]{}"\\au\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='[{"\\'), inner),
)


def depth_of(value: object) -> int:
    if isinstance(value, list | dict):
        return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)
    return 0


@given(value=json_values, levels=st.integers(150, 220))
def test_depth_is_measured_as_a_parser_would(value, levels):
    """Brackets, quotes and backslashes in strings neither add to the depth nor hide any of it."""
    text = json.dumps([value, "[" * 300]).encode()
    text = b"[" * levels + text + b"]" * levels

    if levels + depth_of([value]) > MAX_DEPTH:
        with pytest.raises(ValueError, match="nested"):
            check_bounds(text)
    else:
        check_bounds(text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"' + b"a" * 16_000_000 + b'":1}',
        b"[" + b'"",' * 5_000_000 + b"[" * 300 + b"]" * 300 + b"]",
        b"[" + b'["["],' * 2_000_000 + b"1]",
        (b"[" * 180 + b"]" * 180 + b",") * 5000,
        b'["' + b"\\\\" * 7_000_000 + b'"]',
        b"[" + (b"1" * 3999 + b",") * 4000 + b"1]",
    ],
    ids=["long string", "many strings", "brackets in strings", "deep blocks", "backslashes", "long numbers"],
)
def test_hostile_text_of_a_full_body_does_not_hold_up_the_loop(text):
    """A bound on work, not a benchmark: a quadratic check takes minutes on these."""
    started = time.process_time()
    with contextlib.suppress(ValueError):
        check_bounds(text)
    assert time.process_time() - started < 1


def surrogates(points: Iterable[int], padding: bytes) -> bytes:
    return b'{"arguments":{"x":"' + b"".join(rb"\u%04x" % point for point in points) + padding + b'"}}'


@pytest.mark.parametrize(
    "body",
    [
        surrogates(range(0xD800, 0xE000), b"a" * 12_000_000),
        surrogates([0xD800], b"a" * 12_000_000 + b"".join(rb"\u%04x" % point for point in range(0xE000, 0xF900))),
        surrogates([0xD800] * 2_000_000, b""),
        surrogates([0xDC00], rb"\ud83d\ude00" * 1_000_000),
        surrogates([0xDC00], rb"\n" * 6_000_000),
        surrogates([0xDC00], rb"\\" * 6_000_000),
    ],
    ids=["all of them", "no private use left", "nothing else", "pairs", "escapes", "backslashes"],
)
def test_surrogates_of_a_full_body_do_not_hold_up_the_loop(body):
    """A search per surrogate, or per code point that could stand for one, took most of a minute on these."""
    started = time.process_time()
    cloak = SurrogateCloak()
    with contextlib.suppress(ValueError):
        hidden = cloak.hide(body)
        assert hidden is not None
        assert cloak.restore(hidden) == body
    assert time.process_time() - started < 1


def test_lone_surrogates_are_bounded():
    with pytest.raises(ValueError, match="more than 100000 lone surrogates"):
        SurrogateCloak().hide(surrogates([0xD800] * 100_001, b""))


# Results


@pytest.mark.parametrize(
    "text",
    [
        b"null",
        b'"\\ud83d\\ude00"',
        '"ñ 世界"'.encode(),
        b"123456789012345678901234567890",
        b'{"a":1,"a":2}',
        b"-0.0",
        b"1e400",
    ],
)
def test_a_sound_result_is_passed_on_unchanged(text):
    assert clean_result(text, max_bytes=1000) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "is not valid JSON"),
        (b"NaN", "is not valid JSON"),
        (b"[Infinity]", "is not valid JSON"),
        (b"[1,]", "is not valid JSON"),
        (b"1 2", "is not valid JSON"),
        (b'"\x01"', "is not valid JSON"),
        (b"'a'", "is not valid JSON"),
        (b'"\xff"', "is not UTF-8"),
        (b'"\xed\xa0\x80"', "is not UTF-8"),
        (b"[" * 50_000 + b"]" * 50_000, "is nested more than 200 levels deep"),
        (b"[" * 300 + b"]" * 300, "is nested more than 200 levels deep"),
        (b"1" * 6000, "holds a number of more than 4000 digits"),
        (b'"' + b"a" * 100_000 + b'"', "is larger than 100000 bytes"),
    ],
)
def test_a_forged_result_is_refused_with_a_reason(text, words):
    with pytest.raises(ValueError, match=words):
        clean_result(text, max_bytes=100_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rb'"\ud800"', rb'"\ufffd"'),
        (rb'"a\udc00\ud83d\ude00\uD83Dz"', rb'"a\ufffd\ud83d\ude00\ufffdz"'),
        (rb'"\\ud800 \ud800"', rb'"\\ud800 \ufffd"'),
        (rb'{"\udbff":1}', rb'{"\ufffd":1}'),
    ],
)
def test_lone_surrogates_in_a_result_become_replacement_characters(text, expected):
    assert clean_result(text, max_bytes=1000) == expected


@given(
    st.text(alphabet=st.characters(min_codepoint=0xD700, max_codepoint=0xE100) | st.sampled_from("\\ud8u"), max_size=20)
)
def test_lone_surrogates_in_arguments_survive_a_strict_decoder(text):
    """What JSON escapes cannot pair is hidden from the decoder and put back, whatever stands around it."""
    body = json.dumps([text]).encode()
    cloak = SurrogateCloak()
    hidden = cloak.hide(body)

    if hidden is None:
        json.loads(body)[0].encode()  # nothing lone in it
    else:
        assert json.loads(hidden)[0].encode()
        assert cloak.restore(hidden) == body

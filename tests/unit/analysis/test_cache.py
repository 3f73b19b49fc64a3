"""The cache holds answers by content, within its bounds, and nothing of the source."""

from __future__ import annotations

from sandbox_svc.analysis.cache import AnalysisCache, key_of
from sandbox_svc.analysis.findings import NOTHING, Analysis, Finding, SourceError


def _refused(size: int) -> Analysis:
    return Analysis((Finding(rule="r", level="standard", line=1, column=1, message="x" * size),))


def test_the_oldest_unused_answer_makes_room():
    cache = AnalysisCache(max_entries=2, max_bytes=1_000_000)
    cache.put(b"a", NOTHING)
    cache.put(b"b", NOTHING)
    assert cache.get(b"a") is NOTHING
    cache.put(b"c", NOTHING)
    assert cache.get(b"b") is None
    assert cache.get(b"a") is NOTHING
    assert 2 == len(cache)


def test_bytes_are_bounded_and_counted():
    cache = AnalysisCache(max_entries=100, max_bytes=5_000)
    for number in range(50):
        cache.put(b"%d" % number, _refused(1_000))
    assert cache.size_bytes <= 5_000
    assert 3 == len(cache)
    cache.put(b"49", NOTHING)
    assert cache.get(b"49") is NOTHING
    cache.put(b"large", _refused(10_000))
    assert 0 == len(cache) == cache.size_bytes


def test_a_source_error_counts_with_its_text():
    cache = AnalysisCache(max_entries=10, max_bytes=10_000)
    error = SourceError(type="SyntaxError", message="m", line=1, column=1, text="t" * 2_000)
    cache.put(b"a", Analysis(source_error=error))
    assert cache.size_bytes > 2_000


def test_keys_tell_languages_and_sources_apart_and_hold_neither():
    keys = {key_of(name, source) for name in ("python", "javascript") for source in (b"", b"x", b"x" * 1000)}
    assert 6 == len(keys)
    assert {16} == {len(key) for key in keys}

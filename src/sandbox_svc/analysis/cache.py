"""Answers of the analysis by content, least recently used first out, bounded in entries and bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from sandbox_svc.analysis.findings import Analysis

_FIXED_BYTES = 300
"""An entry without findings: key, links, the shared empty answer."""


def key_of(analyser_name: str, source: bytes) -> bytes:
    """Return the key of a source: a hash, so that the cache holds no submitted code."""
    return hashlib.blake2b(source, digest_size=16, person=analyser_name.encode()[:16]).digest()


class AnalysisCache:
    """Not safe across threads; the event loop's thread is the only one that uses it."""

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[Analysis, int]] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Analysis | None:
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: bytes, analysis: Analysis) -> None:
        """Keep an answer; the oldest ones make room."""
        size = _FIXED_BYTES + sum(200 + len(finding.message) for finding in analysis.findings)
        if analysis.source_error is not None:
            error = analysis.source_error
            size += 300 + len(error.text) + len(error.message) + len(error.source_line)
        previous = self._entries.pop(key, None)
        if previous is not None:
            self.size_bytes -= previous[1]
        self._entries[key] = (analysis, size)
        self.size_bytes += size
        while len(self._entries) > self._max_entries or self.size_bytes > self._max_bytes:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.size_bytes -= dropped

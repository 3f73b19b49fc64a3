"""What the service asks: answers from a cache, small sources at once, large ones in another process."""

from __future__ import annotations

import logging
import time
from typing import Final

from sandbox_svc.analysis import common_rules
from sandbox_svc.analysis.analyser import MAX_SOURCE_BYTES, SANDBOX_PYTHON, Budget, SourceAnalyser
from sandbox_svc.analysis.cache import AnalysisCache, key_of
from sandbox_svc.analysis.findings import NOTHING, Analysis, AnalysisMode
from sandbox_svc.analysis.lane import Lane, LaneFailed, SourceTooHard
from sandbox_svc.analysis.report import TooMuchWork
from sandbox_svc.analysis.worker import Options

logger = logging.getLogger("sandbox_svc.analysis")

MIB: Final = 1024 * 1024

INLINE_BYTES: Final = {"python": 4 * 1024, "javascript": 2 * 1024}
"""Sources up to here are analysed on the event loop. Fuzzing found none that keeps it longer than 30 ms; twice the size
took four times as long, since the JavaScript parser's error recovery is quadratic between the points where it can be
stopped."""

MEDIUM_BYTES: Final = 64 * 1024
"""Sources up to here have a worker of their own, so that a megabyte of brackets delays no ordinary program."""

INLINE_BUDGET: Final = Budget(max_steps=10_000, max_parse_seconds=0.005)

_MEDIUM_CPU_SECONDS: Final = 2.0
_LARGE_CPU_SECONDS: Final = 5.0
_WALL_SECONDS: Final = 15.0
"""Waiting for a worker and its answer together; on a machine that is not overloaded, processor time ends it earlier."""
_IDLE_SECONDS: Final = 300.0
_SLOW_SECONDS: Final = 0.1


class AnalysisService:
    """Answers for one mode. Implements the `Analyser` that the service declares.

    `analyse` never raises for what a source holds, is bounded in time, and leaves nothing behind when cancelled.
    `aclose` ends the workers.
    """

    def __init__(
        self,
        mode: AnalysisMode | str,
        *,
        python_version: tuple[int, int] = SANDBOX_PYTHON,
        max_cache_entries: int = 4096,
        max_cache_bytes: int = 4 * MIB,
        wall_seconds: float = _WALL_SECONDS,
    ) -> None:
        self.mode = AnalysisMode(mode)
        self._inline = SourceAnalyser(self.mode, python_version=python_version, budget=INLINE_BUDGET)
        self._cache = AnalysisCache(max_entries=max_cache_entries, max_bytes=max_cache_bytes)

        def lane(cpu_seconds: float, memory_bytes: int) -> Lane:
            options = Options(
                mode=self.mode,
                python_version=python_version,
                cpu_seconds=cpu_seconds,
                memory_bytes=memory_bytes,
                recycle_bytes=128 * MIB,
                idle_seconds=_IDLE_SECONDS,
            )
            return Lane(options, wall_seconds=wall_seconds)

        self._medium = lane(_MEDIUM_CPU_SECONDS, 512 * MIB)
        self._large = lane(_LARGE_CPU_SECONDS, 1024 * MIB)

    async def analyse(self, analyser: str | None, source: bytes) -> Analysis:
        """Return what speaks against running the source; `analyser` is the name in the language's manifest."""
        if self.mode is AnalysisMode.OFF or analyser not in INLINE_BYTES:
            return NOTHING
        if len(source) > MAX_SOURCE_BYTES:
            return self._inline.analyse(analyser, source)
        key = key_of(analyser, source)
        known = self._cache.get(key)
        if known is not None:
            return known
        try:
            analysis = await self._answer(analyser, source)
        except SourceTooHard:
            analysis = self._inline.single(common_rules.TOO_COMPLEX, "it takes too much processor time")
        except LaneFailed as error:
            # Not the source's doing, so not remembered.
            return self._inline.not_analysed(str(error))
        self._cache.put(key, analysis)
        return analysis

    async def aclose(self) -> None:
        """End the workers; the service is stopping."""
        await self._medium.aclose()
        await self._large.aclose()

    async def _answer(self, analyser: str, source: bytes) -> Analysis:
        if len(source) <= INLINE_BYTES[analyser]:
            analysis = self._at_once(analyser, source)
            if analysis is not None:
                return analysis
        lane = self._medium if len(source) <= MEDIUM_BYTES else self._large
        return await lane.analyse(analyser, source)

    def _at_once(self, analyser: str, source: bytes) -> Analysis | None:
        """Return the answer, None when the budget on the event loop does not suffice for it."""
        started = time.perf_counter()
        try:
            return self._inline.attempt(analyser, source)
        except TooMuchWork:
            return None
        except Exception as error:
            # A fault of ours must neither fail the run nor let `strict` run what it did not read.
            logger.error("the analysis of a source failed: %s", type(error).__name__)  # noqa: TRY400 - no code in logs
            raise LaneFailed("the analysis failed") from error
        finally:
            took = time.perf_counter() - started
            if took > _SLOW_SECONDS:
                logger.warning("analysing %d bytes on the event loop took %.0f ms", len(source), took * 1e3)

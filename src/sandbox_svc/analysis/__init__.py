"""Static analysis: advice on what a program does before it is run. The container is the boundary, not this."""

from __future__ import annotations

from sandbox_svc.analysis.analyser import MAX_SOURCE_BYTES, SANDBOX_PYTHON, Analyser, SourceAnalyser
from sandbox_svc.analysis.findings import Analysis, AnalysisMode, Finding, Level, SourceError
from sandbox_svc.analysis.front import AnalysisService

__all__ = [
    "MAX_SOURCE_BYTES",
    "SANDBOX_PYTHON",
    "Analyser",
    "Analysis",
    "AnalysisMode",
    "AnalysisService",
    "Finding",
    "Level",
    "SourceAnalyser",
    "SourceError",
]

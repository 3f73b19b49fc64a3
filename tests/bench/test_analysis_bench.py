"""What the analysis finds in code that nobody wrote for it, and what it costs; figures for docs/analysis.md."""

from __future__ import annotations

import platform
import statistics
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_svc.analysis import AnalysisMode, AnalysisService, SourceAnalyser
from tests.unit.analysis.corpus import load

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

HERE = sys.version_info[:2]
# Not pure programs: tests attack on purpose, and these modules are the very thing that rules are about.
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
REPEATS = 5


def _sources(root: Path, pattern: str) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(root.rglob(pattern)):
        if not LEFT_OUT & set(path.relative_to(root).parts) and path.is_file() and path.stat().st_size < 1024 * 1024:
            yield path, path.read_bytes()


def _facts() -> str:
    return f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}"


@pytest.mark.parametrize("place", ["stdlib", "purelib", "node"])
def test_precision_on_real_code(place: str):
    """Every finding is printed with its line: whoever changes a rule reads them."""
    language, pattern = ("javascript", "*.js") if place == "node" else ("python", "*.py")
    root = Path("/usr/lib/node_modules") if place == "node" else Path(sysconfig.get_path(place))
    if not root.is_dir():
        pytest.skip(f"no {root} here")
    analyser = SourceAnalyser(AnalysisMode.STANDARD, python_version=HERE)
    by_rule: Counter[str] = Counter()
    files = with_findings = lines = 0
    seconds = 0.0
    for path, source in _sources(root, pattern):
        started = time.process_time()
        analysis = analyser.analyse(language, source)
        seconds += time.process_time() - started
        files, lines = files + 1, lines + source.count(b"\n")
        with_findings += bool(analysis.findings)
        text = source.splitlines()
        for finding in analysis.findings:
            by_rule[finding.rule] += 1
            shown = text[finding.line - 1].strip()[:100].decode(errors="replace") if finding.line <= len(text) else ""
            print(f"{path.relative_to(root)}:{finding.line} {finding.rule} {finding.message[:50]} | {shown}")
    assert files
    print(
        f"{place} ({_facts()}): {files} files, {lines} lines, {with_findings} files with findings, {seconds:.1f} s CPU"
    )
    for rule, count in by_rule.most_common():
        print(f"  {count:5} {rule}")


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_cost_of_a_snippet(language: str):
    """Processor time of one analysis on the event loop, over the corpus; the best of a few runs for each."""
    analyser = SourceAnalyser(AnalysisMode.STANDARD, python_version=HERE)
    costs = []
    for snippet in (*load("honest"), *load("hostile")):
        if snippet.language != language:
            continue
        best = float("inf")
        for _ in range(REPEATS):
            started = time.perf_counter()
            analyser.analyse(language, snippet.source)
            best = min(best, time.perf_counter() - started)
        costs.append((best * 1e3, len(snippet.source)))
    milliseconds = sorted(cost for cost, _ in costs)
    size = statistics.median(size for _, size in costs)
    p95 = milliseconds[int(len(milliseconds) * 0.95)]
    print(
        f"{language} ({_facts()}): {len(costs)} snippets of {size:.0f} bytes (median): "
        f"median {statistics.median(milliseconds):.2f} ms, p95 {p95:.2f} ms, worst {milliseconds[-1]:.2f} ms"
    )
    assert statistics.median(milliseconds) < 2


async def test_cost_of_a_known_snippet():
    front = AnalysisService("standard", python_version=HERE)
    source = next(snippet.source for snippet in load("honest") if len(snippet.source) > 500)
    await front.analyse("python", source)
    started = time.perf_counter()
    for _ in range(10_000):
        await front.analyse("python", source)
    each = (time.perf_counter() - started) / 10_000
    print(f"known answer for {len(source)} bytes: {each * 1e6:.1f} us")
    await front.aclose()
    assert each < 100e-6


async def test_cost_of_a_large_snippet():
    """The round trip to a worker that runs already, for a program of ordinary shape."""
    front = AnalysisService("standard", python_version=HERE)
    source = b"".join(snippet.source for snippet in load("honest") if snippet.language == "python")[: 16 * 1024]
    source = source[: source.rindex(b"\n\n")]
    costs = []
    for number in range(20):
        started = time.perf_counter()
        await front.analyse("python", source + b"\n#%d" % number)
        costs.append((time.perf_counter() - started) * 1e3)
    print(
        f"{len(source)} bytes in a worker: first {costs[0]:.0f} ms, then median {statistics.median(costs[1:]):.1f} ms"
    )
    await front.aclose()

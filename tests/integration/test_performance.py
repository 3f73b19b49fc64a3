"""A guard against slowness: ratios within one run, never times, so that a slow machine passes and a regression fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.engine import Bench, Engine
from bench.ladder import Ladder
from bench.programs import CASES
from bench.service import Running
from tests.integration.conftest import why_no_engine

pytestmark = [pytest.mark.docker, pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine())]

ROUNDS = 6
"""Noise only makes a ratio worse, so the best of some rounds counts; a regression makes all of them worse."""

AT_MOST = {
    # 0.15 to 0.3, 1.2 to 1.5 and 0.1 to 0.16 were seen, the worse ones beside other work.
    ("python warm p50", "bare python"): 0.5,
    ("pandas warm p50", "python warm p50"): 3.0,
    ("nodejs warm p50", "bare nodejs"): 0.4,
}
AT_LEAST = {
    # 0.4 to 0.85, 0.56 to 0.85 and 0.63 to 1.1 were seen, the worse ones beside other work.
    ("python@8 rate", "fork loop python"): 0.3,
    ("pandas@8 rate", "fork loop pandas"): 0.3,
    ("nodejs@8 rate", "bare nodejs rate"): 0.3,
}


@pytest.fixture
def ladder() -> Iterator[Ladder]:
    with Bench("python") as python, Bench("nodejs") as nodejs, Running() as service:
        yield Ladder(service, Engine(), {"python": python, "nodejs": nodejs}, seconds=0.5)


@pytest.mark.timeout(180)
def test_a_run_costs_no_more_than_a_few_rounds_of_comparison_allow(ladder: Ladder) -> None:
    """Half as fast as it was when the bounds were set must fail, wherever it runs."""
    best: dict[tuple[str, str], float] = {}
    for _ in range(ROUNDS):
        figures = ladder.round((8,), CASES, is_brief=True)
        for name, of in AT_MOST:
            best[name, of] = min(best.get((name, of), float("inf")), figures[name] / figures[of])
        for name, of in AT_LEAST:
            best[name, of] = max(best.get((name, of), 0.0), figures[name] / figures[of])
        too_slow = {pair: best[pair] for pair, bound in AT_MOST.items() if best[pair] > bound}
        too_slow |= {pair: best[pair] for pair, bound in AT_LEAST.items() if best[pair] < bound}
        if not too_slow:
            return
    assert {} == too_slow, best

"""Fairness between tenants, shown by simulation on the real pool code; `docs/fairness.md` has the figures."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.simulation import EQUALS, GREEDY_LONG, GREEDY_SHORT, SCENARIOS, Scenario, jain, one_name, play, small

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if len(s.loads) > 1], ids=lambda scenario: scenario.name)
def test_a_greedy_tenant_starves_nobody(scenario):
    """Small tenants are never refused, and wait for one run of the greedy one and one replacement per rival at most."""
    result = play(scenario)
    longest_run = max(load.run_seconds for load in scenario.loads) * 1.2
    rivals = len(scenario.loads)
    few = result.merged("small")
    assert few.runs > 0
    assert 0 == few.refused
    assert few.wait(1.0) < longest_run + max(rivals / scenario.slots, 1) * 0.8
    assert result.of("greedy").runs > 0, "and the greedy one is served as well"


def test_a_language_does_not_feel_what_happens_in_another():
    loads = (GREEDY_SHORT, *(load._replace(language="nodejs") for load in small(3)))
    assert 0.0 == (play(Scenario("two languages", loads))).merged("small").wait(1.0)


def test_tenants_that_want_the_same_get_the_same():
    result = play(EQUALS)
    assert jain([seen.runs for seen in result.seen]) > 0.99
    assert max(seen.wait(1.0) for seen in result.seen) < len(result.seen) / EQUALS.slots * 1.4


def test_places_are_not_traded_for_nothing():
    """Equals on more slots than tenants: after the first moments everybody has a share of their own, and keeps it."""
    loads = tuple(load._replace(tenant=name) for name in "ab" for load in (GREEDY_SHORT._replace(callers=5),))
    result = play(Scenario("two equals", loads, slots=4))
    assert result.replaced <= 4
    assert jain([seen.runs for seen in result.seen]) > 0.99


def test_time_is_shared_and_not_the_number_of_runs():
    """One tenant's runs take fifty times as long; both have half of the slots' time, not half of the runs."""
    loads = (GREEDY_LONG._replace(callers=5), GREEDY_SHORT._replace(tenant="quick", callers=5))
    result = play(Scenario("long and short", loads, slots=4, seconds=120))
    assert jain([seen.slot_seconds for seen in result.seen]) > 0.9
    assert result.of("quick").runs > 20 * result.of("greedy").runs


def test_nobody_gains_by_having_no_tenants():
    """The same load in one line serves the greedy one better and everybody else worse."""
    scenario = SCENARIOS[1]
    assert (play(scenario)).merged("small").wait(0.5) < (play(one_name(scenario))).merged("default").wait(0.5)


def test_the_document_is_up_to_date():
    """The figures in the document are those of the code; a tenth is left to differences between Python versions."""
    spec = importlib.util.spec_from_file_location("fairness_script", ROOT / "scripts" / "fairness.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = script.DOCUMENT.read_text()
    made = script.fill(written)
    number = re.compile(r"\d+(?:\.\d+)?")
    assert number.sub("N", written) == number.sub("N", made), "run scripts/fairness.py"
    figures = zip(number.findall(written), number.findall(made), strict=True)
    wrong = [pair for pair in figures if float(pair[0]) != pytest.approx(float(pair[1]), rel=0.1, abs=10)]
    assert [] == wrong, "run scripts/fairness.py"

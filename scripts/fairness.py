"""Writes the figures of `docs/fairness.md`: simulated load on the real pool code, the same on every machine.

`scripts/fairness.py` rewrites the tables in place; `tests/unit/test_fairness.py` fails when they are out of date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.simulation import EQUALS, LIGHT, SCENARIOS, Result, Seen, jain, one_name, play  # noqa: E402

DOCUMENT = ROOT / "docs" / "fairness.md"


def _ms(seen: Seen, quantile: float) -> str:
    return f"{seen.wait(quantile) * 1000:.0f}"


def _small(result: Result) -> str:
    small = result.merged("small")
    waits = " | ".join(_ms(small, quantile) for quantile in (0.5, 0.99, 1.0))
    return f"{small.runs} | {small.refused} | {waits}"


def greedy_table() -> str:
    lines = [
        "| load | greedy runs | refused | small runs | refused | p50 ms | p99 | longest | in line p50 | p99 | new |",
        "| --- |" + " ---: |" * 10,
    ]
    for scenario in SCENARIOS:
        result = play(scenario)
        if not result.merged("small").runs:
            greedy = result.of("greedy")
            lines.append(f"| {scenario.name} | {greedy.runs} | {greedy.refused} | | | | | | | | {result.replaced} |")
            continue
        greedy = result.of("greedy")
        in_line = " | "
        if len({load.language for load in scenario.loads}) == 1:
            line = play(one_name(scenario)).merged("default")
            in_line = f"{_ms(line, 0.5)} | {_ms(line, 0.99)}"
        lines.append(
            f"| {scenario.name} | {greedy.runs} | {greedy.refused} | {_small(result)} | {in_line} | {result.replaced} |"
        )
    return "\n".join(lines)


def equals_table() -> str:
    result = play(EQUALS)
    runs = [seen.runs for seen in result.seen]
    longest = max(seen.wait(1.0) for seen in result.seen) * 1000
    refused = sum(seen.refused for seen in result.seen)
    row = f"| {len(runs)} | {EQUALS.slots} | {min(runs)} to {max(runs)} | {jain(runs):.3f} | {longest:.0f} | {refused} "
    row += f"| {result.replaced} |"
    return "\n".join(
        (
            "| tenants | slots | runs of each | Jain's index | longest wait ms | refused | new |",
            "|" + " ---: |" * 7,
            row,
        )
    )


def light_table() -> str:
    lines = ["| load | runs | refused | wait p50 ms | p99 | longest | new |", "| --- |" + " ---: |" * 6]
    for scenario in LIGHT:
        result = play(scenario)
        lines.append(f"| {scenario.name} | {_small(result)} | {result.replaced} |")
    return "\n".join(lines)


TABLES = {"greedy": greedy_table, "equals": equals_table, "light": light_table}


def fill(text: str) -> str:
    """The document with its tables made anew; each stands between two comments that name it."""
    for name, table in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, table=table: match[1] + table() + "\n" + match[2], text)  # type: ignore[misc]
        if count != 1:
            raise SystemExit(f"{DOCUMENT} has no place for the table {name!r}")
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(fill(DOCUMENT.read_text()))

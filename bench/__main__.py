"""`python -m bench`: measure, print the targets, and keep everything as JSON, Markdown, PNG and SVG."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import growth, never, report
from bench.engine import Bench, Engine
from bench.ladder import STEPS, Ladder
from bench.machine import facts
from bench.programs import CASES
from bench.service import Running
from bench.statistic import median

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
PARTS = ("ladder", "never", "idle", "endurance", "large", "refill")


def main() -> int:
    arguments = _arguments()
    engine = Engine()
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": facts(engine), "arguments": vars(arguments), "runtimes": {}}
    parts = arguments.parts.split(",")
    unmet = 0
    with ExitStack() as stack:
        floors = {language: stack.enter_context(Bench(language)) for language in ("python", "nodejs")}
        for runtime in arguments.runtimes.split(",") if arguments.runtimes else _runtimes(engine):
            if "ladder" in parts:
                results["runtimes"][runtime] = found = _compare(runtime, engine, floors, arguments, parts, folder)
                unmet += sum(not target["is_met"] for target in found["targets"])
    for part, measure in (
        ("idle", lambda: growth.idle_slots(seconds=3 * arguments.seconds)),
        ("endurance", lambda: growth.endurance(runs=arguments.runs)),
        ("large", lambda: growth.large(seconds=3 * arguments.seconds)),
        ("refill", lambda: growth.refill(rounds=max(3, arguments.rounds // 2))),
    ):
        if part in parts:
            _say(f"-- {part}\n")
            results[part] = measure()
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    (folder / "report.md").write_text(report.markdown(results))
    if arguments.docs:
        report.into_document(DOCUMENT, results)
        shutil.copy(folder / "bench.svg", DOCUMENT.with_name("performance.svg"))
    _say(f"\n{folder}/report.md, results.json, bench.png, bench.svg; {unmet} targets not met\n")
    return 0


def _compare(
    runtime: str,
    engine: Engine,
    floors: dict[str, Bench],
    arguments: argparse.Namespace,
    parts: list[str],
    folder: Path,
) -> dict[str, Any]:
    steps = tuple(int(step) for step in arguments.steps.split(","))
    with Running(SANDBOX_RUNTIME=runtime) as service:
        ladder = Ladder(service, engine, floors, seconds=arguments.seconds)
        for number in range(arguments.rounds):
            _say(f"-- {runtime}, round {number + 1} of {arguments.rounds}\n")
            ladder.round(steps, CASES)
        memory = ladder.memory()
        title = " / ".join(f"{value}" for key, value in facts(engine).items() if key in ("cpu", "engine", "commit"))
        if runtime == "runc":
            report.draw(service, ladder, f"sandbox_svc on {title}", folder)
    once = None
    if "never" in parts:
        _say(f"-- {runtime}, one run per container\n")
        once = never.measure(
            engine, rounds=max(2, arguments.rounds // 4), seconds=8 * arguments.seconds, runtime=runtime
        )
    found = report.targets(ladder, once)
    report.say(found, _say)
    return {
        "targets": [target._asdict() for target in found],
        "ladder": ladder.table(),
        "figures": {name: median([figures[name] for figures in ladder.rounds]) for name in ladder.rounds[0]},
        "rounds": ladder.rounds,
        "memory": memory,
        "never": once,
    }


def _runtimes(engine: Engine) -> list[str]:
    return [name for name in ("runc", "runsc") if name in engine.runtimes]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="how often everything is measured")
    parser.add_argument("--seconds", type=float, default=0.6, help="of each single measurement")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)), help="callers")
    parser.add_argument("--runs", type=int, default=10_000, help="of the endurance part")
    parser.add_argument("--runtimes", default="", help="runc, runsc or both; default: those that the engine has")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts to measure")
    parser.add_argument("--out", default="build/bench", help="folder for the results")
    parser.add_argument("--docs", action="store_true", help=f"put the report into {DOCUMENT.name} too")
    return parser.parse_args()


def _say(text: str) -> None:
    sys.stderr.write(text)


if __name__ == "__main__":
    sys.exit(main())

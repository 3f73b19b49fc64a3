"""From figures to a report: targets as ratios first, then tables; and a plot that the service itself draws."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench.ladder import Ladder
from bench.service import Running
from bench.statistic import median

PLOT_SOURCE = """
import matplotlib.pyplot as plt

def main(title, series, rates):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, points in series.items():
        callers = [point[0] for point in points]
        line, = left.plot(callers, [point[1] for point in points], marker="o", label=f"{name} p50")
        left.plot(callers, [point[3] for point in points], linestyle=":", color=line.get_color(), label=f"{name} p99")
        right.plot(callers, [point[4] for point in points], marker="o", color=line.get_color(), label=name)
    for (name, rate), style in zip(rates.items(), ("--", "-.", ":")):
        right.axhline(rate, linestyle=style, color="grey", linewidth=1, label=name)
    for axes, what in ((left, "latency, ms"), (right, "runs per second")):
        axes.set(xlabel="callers", ylabel=what, xscale="log", yscale="log")
        axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        axes.grid(True, which="both", alpha=0.25)
        axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.savefig("artifacts/bench.svg")
    figure.savefig("artifacts/bench.png", dpi=110)
"""


_ALONE = ("bare ", "host ", "docker ", "fork loop ", "healthz")
"""How the figures begin that are not in the table of latencies already."""

BEGIN, END = "<!-- figures: python -m bench --docs -->", "<!-- end of figures -->"


class Target(NamedTuple):
    """One promise, with what was measured in each round."""

    what: str
    bound: str
    values: list[float]
    is_met: bool


def targets(ladder: Ladder, never: dict[str, Any] | None) -> list[Target]:
    """The promises, each as the median of one ratio per round."""
    found: list[Target] = []

    def at_most(what: str, bound: float, values: list[float]) -> None:
        if values:
            found.append(Target(what, f"<= {bound:.3g}", values, median(values) <= bound))

    def at_least(what: str, bound: float, values: list[float]) -> None:
        if values:
            found.append(Target(what, f">= {bound:.3g}", values, median(values) >= bound))

    r = ladder.ratios
    at_most("python, warm p50 / bare `python3 -I -c pass` on the host", 0.25, r("python warm p50", "host python"))
    at_most("the same, against the image's own interpreter", 0.25, r("python warm p50", "bare python"))
    at_most("python, 1 caller without pause, p50 / the same", 0.25, r("python@1 p50", "host python"))
    at_most("nodejs, warm p50 / bare `node -e 0` on the host", 0.15, r("nodejs warm p50", "host nodejs"))
    at_most("the same, against the image's own interpreter", 0.15, r("nodejs warm p50", "bare nodejs"))
    at_most("pandas code, warm p50 / python hello", 1.5, r("pandas warm p50", "python warm p50"))
    at_most("pandas code, 1 caller without pause, p50 / python hello", 1.5, r("pandas@1 p50", "python@1 p50"))
    for name in ("python", "pandas", "nodejs"):
        for callers, how in ((0, "warm"), (1, "1 caller without pause,")):
            if ladder.latencies[name, callers]:
                at_most(f"{name}, {how} p99 / p50", 3, [ladder.tail(name, callers)])
    at_least("python, runs/s of 8 callers / bare fork loop", 0.4, r("python@8 rate", "fork loop python"))
    at_least("pandas code, runs/s of 8 callers / bare fork loop", 0.6, r("pandas@8 rate", "fork loop pandas"))
    at_least("nodejs, runs/s of 8 callers / bare starts of node", 0.6, r("nodejs@8 rate", "bare nodejs rate"))
    for name in ("python", "pandas", "nodejs"):
        at_most(f"{name}, warm p50 / `docker run`", 1 / 30, r(f"{name} warm p50", f"docker run {name}"))
    if never is not None:
        at_most("reuse never: first answer / reuse tenant", 1.25, never["first ratio"])
        at_least("reuse never: runs/s / bare create + start + remove", 0.8, never["rate ratio"])
    return found


def markdown(results: dict[str, Any]) -> str:
    """The whole report."""
    parts = ["# Benchmark\n", _table(["fact", "value"], results["machine"].items())]
    for name, part in results["runtimes"].items():
        parts += [f"## {name}: targets\n", _target_table(part["targets"])]
        parts += [f"## {name}: latency and throughput\n", _ladder_table(part["ladder"])]
        parts += [f"## {name}: beside it\n", _table(["what", "median of the rounds"], _beside(part["figures"]))]
        memory = [(key, f"{value:.1f} MiB") for key, value in part["memory"].items()]
        parts += [f"## {name}: memory\n", _table(["per slot, and of the service", "memory"], memory)]
        if part.get("never"):
            rows = [(key, _number(value)) for key, value in part["never"].items()]
            parts += [f"## {name}: one run per container\n", _table(["what", "value"], rows)]
    for key, title in (
        ("idle", "Idle slots"),
        ("endurance", "Endurance"),
        ("large", "Large messages"),
        ("refill", "Refill"),
    ):
        if results.get(key):
            flat = [_flat(row) for row in results[key]]
            parts += [f"## {title}\n", _table(list(flat[0]), [[_number(v) for v in row.values()] for row in flat])]
    return "\n".join(parts)


def into_document(path: Path, results: dict[str, Any]) -> None:
    """Put the report between the marks of a document, its headings one level down."""
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    body = markdown(results).partition("\n\n")[2].replace("\n## ", "\n### ")
    path.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{key.removesuffix('_ms')} {inner}, ms": number for inner, number in value.items()}
        else:
            flat[key] = value
    return flat


def _target_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        (
            row["what"],
            row["bound"],
            _number(median(row["values"])),
            _range(row["values"]),
            "yes" if row["is_met"] else "**no**",
        )
        for row in rows
    ]
    return _table(["ratio", "target", "median", "rounds", "met"], lines)


def _ladder_table(rows: list[dict[str, Any]]) -> str:
    head = ["program", "callers", "p50 ms", "p95 ms", "p99 ms", "runs/s"]
    head += ["CPU ms per run: service", "engine", "containers", "load generator"]
    lines = []
    for row in rows:
        cpu = row.get("cpu_ms", {})
        numbers = [row["p50_ms"], row["p95_ms"], row["p99_ms"], row.get("runs_per_second", "")]
        numbers += [cpu.get(part, "") for part in ("service", "engine", "containers", "load")]
        lines.append([row["program"], str(row["callers"]), *map(_number, numbers)])
    return _table(head, lines)


def _beside(figures: dict[str, float]) -> list[tuple[str, str]]:
    def unit(name: str) -> str:
        return "/s" if "rate" in name or "loop" in name else " ms"

    return [(name, _number(value) + unit(name)) for name, value in sorted(figures.items()) if name.startswith(_ALONE)]


def _range(values: list[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


def _number(value: Any) -> str:
    if isinstance(value, list):
        return f"{median(value):.3g} ({_range(value)})"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
    return str(value)


def _table(head: list[str], rows: Any) -> str:
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def draw(service: Running, ladder: Ladder, title: str, folder: Path) -> None:
    """Have the plot drawn in a sandbox: no library for it is needed here, and it is one more proof that it works."""
    series: dict[str, list[list[float]]] = {}
    for row in ladder.table():
        if "runs_per_second" in row:
            numbers = [row["callers"], row["p50_ms"], row["p95_ms"], row["p99_ms"], row["runs_per_second"]]
            series.setdefault(row["program"], []).append(numbers)
    limits = {"bare fork loop, python": "fork loop python", "bare fork loop, pandas": "fork loop pandas"}
    limits["bare starts of node"] = "bare nodejs rate"
    rates = {name: ladder.figure(key) for name, key in limits.items()}
    body = json.dumps(
        {
            "language": "python",
            "code_b64": base64.b64encode(PLOT_SOURCE.encode()).decode(),
            "arguments": {"title": title, "series": series, "rates": rates},
        }
    )
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request("POST", "/run", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    if answer["status"] != "success":
        raise RuntimeError(f"the plot was not drawn: {answer['stderr']}")
    for artifact in answer["artifacts"]:
        (folder / artifact["name"]).write_bytes(base64.b64decode(artifact["content_b64"]))


def say(targets_found: list[Target], write: Callable[[str], object]) -> None:
    """The targets for a terminal."""
    for target in targets_found:
        mark = "ok " if target.is_met else "NOT"
        write(f"{mark} {median(target.values):7.3f} {target.bound:>9}  {target.what} ({_range(target.values)})\n")

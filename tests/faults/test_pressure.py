"""More asked than can be given: containers used once while more callers come than there are, and floods of output."""

from __future__ import annotations

import concurrent.futures
import secrets
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.harness import ServiceProcess, until
from tests.integration.conftest import why_no_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
]

Start = Callable[..., ServiceProcess]
Report = Callable[..., None]

SPOIL = """
import os, subprocess
def main(n):
    places = ('/tmp', '/dev/shm', '/workspace')
    found = [name for place in places for name in os.listdir(place) if name != 'artifacts']
    for place in places:
        open(f'{place}/left-{n}', 'w').close()
    subprocess.Popen(['sleep', '600'], start_new_session=True, stdin=-3, stdout=-3, stderr=-3)
    return [n, found, os.getuid()]
"""


def test_containers_used_once_under_pressure(start_service: Start, report: Report) -> None:
    """SF-09: replenishment is slower than use: callers wait longer, each is answered rightly, and nobody meets a container
    that served another: each run finds its places empty and has the first uids of a range of its own."""
    service = start_service(
        SANDBOX_POOL_SIZE="2", SANDBOX_REUSE="never", SANDBOX_QUEUE_TIMEOUT="60s", SANDBOX_ANALYSIS="off"
    )
    runs = 14
    with concurrent.futures.ThreadPoolExecutor(7) as threads:
        answers: list[tuple[int, Any]] = list(threads.map(lambda n: service.run(SPOIL, n=n), range(runs)))
    assert [(status, answer.get("outcome", answer)) for status, answer in answers] == [(200, "success")] * runs
    values = [answer["result"]["value"] for _, answer in answers]
    assert [(n, found) for n, found, _ in values] == [(n, []) for n in range(runs)]
    # A range has 4096 uids, of which the templates of a new container have the first three.
    assert all((uid - 1_000_000) % 4096 < 3 for _, _, uid in values)
    assert len({uid // 4096 for _, _, uid in values}) == runs
    waits = sorted(answer["queue_ms"] for _, answer in answers)
    seconds = until(lambda: service.is_full() and len(service.containers()) == 2, 30, service.log)
    report(
        f"{runs} runs on 2 places used once each, all right",
        f"waited {waits[0]:.0f} to {waits[-1]:.0f} ms, full again after {seconds:.1f} s",
    )


def test_floods_of_output_are_no_flood_of_log(start_service: Start, report: Report) -> None:
    """SF-20: a line of bounded length for each run, however much it prints and wherever, and not a word of it."""
    word = "word-" + secrets.token_hex(8)
    floods = [
        f"import os\ndef main():\n    os.write(1, b'{word}\\n' * 40_000)\n    return 1",
        f"import os\ndef main():\n    while True:\n        os.write(2, b'{word}\\n' * 3000)",
        f"def main():\n    raise ValueError('{word}' * 40_000)",
        f"def main():\n    return ['{word}'] * 30_000",
        f"import sys\nsys.exit('{word}' * 40_000)",
    ]
    service = start_service(SANDBOX_POOL_SIZE="2")
    before = len(service.log())
    runs = 60
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda n: service.run(floods[n % len(floods)]), range(runs)))
    assert {status for status, _ in answers} == {200}
    assert {answer["outcome"] for _, answer in answers} == {"success", "output_limit", "program_error"}
    log = service.log()
    assert word not in log
    assert len(log) - before < 1500 * runs
    assert max(map(len, log.splitlines())) < 4000
    report(f"{runs} runs that printed up to 1 MiB each", f"{(len(log) - before) / runs:.0f} bytes of log for each")

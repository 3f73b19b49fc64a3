"""The real composition root as a process of its own, with a fake engine: `python -m tests.serve_fake [what dies]`.

Prints its port. Programs: `slow` takes a second, `hang` never ends, anything else returns null at once.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from sandbox_svc import app
from sandbox_svc.clock import LoopClock
from sandbox_svc.runtime import Outcome
from sandbox_svc.settings import Settings, read_settings
from tests.fakes import FakeEngine, FakeRuntime
from tests.http_stack import language


async def slow(*_: Any) -> Outcome:
    await asyncio.sleep(1)
    return Outcome(exit_code=0, result=b'"slow"')


async def hang(*_: Any) -> Outcome:
    await asyncio.sleep(60)
    return Outcome(exit_code=0)


@asynccontextmanager
async def open_fake_runtime(_settings: Settings, **_: Any) -> AsyncIterator[FakeRuntime]:
    engine = FakeEngine(language("python", analyser="python"))
    runtime = FakeRuntime(engine, LoopClock())  # type: ignore[arg-type]  # only its `sleep` is used
    runtime.programs = {b"slow": slow, b"hang": hang}
    if "sweep" in sys.argv:
        runtime.stages.fail("sweep", RuntimeError("a slip of ours"))
    yield runtime
    await runtime.close()
    assert not engine.containers
    sys.stdout.write("no containers left\n")


def main() -> int:
    settings = read_settings({}, port="0", languages="python", rate_limit="", drain_timeout_seconds="3s")

    def listening(_host: str, port: int) -> None:
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(app.serve(settings, open_runtime=open_fake_runtime, on_listening=listening))


if __name__ == "__main__":
    sys.exit(main())

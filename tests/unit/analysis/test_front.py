"""What the service asks: quick for what it knows, off the loop for what is large, never without an answer."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from sandbox_svc.analysis import Analysis, AnalysisMode, AnalysisService, lane
from sandbox_svc.analysis import front as front_module
from sandbox_svc.analysis.front import INLINE_BYTES, MEDIUM_BYTES
from sandbox_svc.analysis.lane import Lane, LaneFailed, SourceTooHard
from sandbox_svc.analysis.worker import Options

HERE = sys.version_info[:2]
HONEST = b"def main(x):\n    return x + 1\n"
HOSTILE = b"import os\ndef main():\n    os.system('id')\n"
MIB = 1024 * 1024


def padded(source: bytes, size: int) -> bytes:
    """The same program, of that size."""
    return source + b"# " + b"x" * (size - len(source) - 2)


@asynccontextmanager
async def service(mode: str = "standard", **options: float) -> AsyncIterator[AnalysisService]:
    built = AnalysisService(mode, python_version=HERE, **options)  # type: ignore[arg-type]
    try:
        yield built
    finally:
        await built.aclose()


@asynccontextmanager
async def a_lane(*, cpu_seconds: float = 10, wall_seconds: float = 60, idle_seconds: float = 60) -> AsyncIterator[Lane]:
    options = Options(
        mode=AnalysisMode.STANDARD,
        python_version=HERE,
        cpu_seconds=cpu_seconds,
        memory_bytes=1024 * MIB,
        recycle_bytes=512 * MIB,
        idle_seconds=idle_seconds,
    )
    built = Lane(options, wall_seconds=wall_seconds)
    try:
        yield built
    finally:
        await built.aclose()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - polls what has no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("size", [200, INLINE_BYTES["python"] + 1, MEDIUM_BYTES + 1])
async def test_the_answer_is_the_same_on_the_loop_and_in_either_worker(size: int):
    async with service() as front:
        assert Analysis() == await front.analyse("python", padded(HONEST, size))
        (finding,) = (await front.analyse("python", padded(HOSTILE, size))).findings
        assert ("py-process", 3) == (finding.rule, finding.line)
        error = (await front.analyse("python", padded(b"print 'x'\n", size))).source_error
        assert error is not None
        assert 1 == error.line


@pytest.mark.parametrize("analyser", [None, "ruby"])
async def test_an_unknown_language_is_not_judged(analyser: str | None):
    async with service("strict") as front:
        assert Analysis() == await front.analyse(analyser, HOSTILE)


async def test_modes_decide_what_is_found():
    """`report` finds what `standard` finds; `strict` more; `off` nothing, not even syntax errors."""
    uses_os = b"import os\ndef main():\n    return os.getcwd()\n"
    found = {}
    for mode in AnalysisMode:
        async with service(mode) as front:
            found[mode.value] = [
                len((await front.analyse("python", source)).findings) for source in (HONEST, uses_os, HOSTILE)
            ]
            if mode is AnalysisMode.OFF:
                assert (await front.analyse("python", b"print 'x'")).source_error is None
    assert {"off": [0, 0, 0], "report": [0, 0, 1], "standard": [0, 0, 1], "strict": [0, 1, 2]} == found


async def test_what_was_asked_before_is_answered_without_being_read(monkeypatch: pytest.MonkeyPatch):
    async with service() as front:
        first = await front.analyse("python", HOSTILE)
        monkeypatch.setattr(front._inline, "attempt", lambda *_: pytest.fail("read again"))
        assert first is await front.analyse("python", HOSTILE)
        large = padded(HOSTILE, 10_000)
        second = await front.analyse("python", large)
        monkeypatch.setattr(front._medium, "analyse", lambda *_: pytest.fail("read again"))
        assert second is await front.analyse("python", large)


async def test_the_language_is_part_of_the_question():
    async with service() as front:
        assert Analysis() == await front.analyse("python", b"eval = print\neval(1)\n")
        assert (await front.analyse("javascript", b"eval = print\neval(x)\n")).findings


async def test_a_megabyte_of_hostile_source_stalls_nobody(monkeypatch: pytest.MonkeyPatch):
    """While one is read, the loop turns, and small programs and those of ordinary size are answered."""
    monkeypatch.setattr(front_module, "_LARGE_CPU_SECONDS", 1.5)
    hostile = b'f"' + b"{a}" * (MIB // 3 - 2) + b'"'
    async with service(wall_seconds=100) as front:
        await front.analyse("python", padded(HONEST, 10_000))  # starts the worker for ordinary sizes
        task = asyncio.create_task(front.analyse("python", hostile))
        worst, number = 0.0, 0
        while number < 40 and not task.done():
            number += 1
            started = time.monotonic()
            await asyncio.sleep(0.005)
            assert Analysis() == await front.analyse("python", HONEST + b"# %d" % number)
            if number % 10 == 0:
                assert Analysis() == await front.analyse("python", padded(HONEST, 10_000 + number))
            worst = max(worst, time.monotonic() - started)
        assert not task.done()
        # Milliseconds; the rest is for a busy machine. Read on the loop it would be 8 to 61 seconds.
        assert worst < 2.5
        (finding,) = (await task).findings
        assert "too-complex" == finding.rule
        assert finding is (await front.analyse("python", hostile)).findings[0]


async def test_a_small_source_that_needs_more_than_the_loop_may_give_is_read_in_a_worker():
    """The budget on the loop is small; the answer is nevertheless the full one."""
    source = b"require('child_process');" + b"> ! " * 480
    async with service() as front:
        assert len(source) <= INLINE_BYTES["javascript"]
        assert front._at_once("javascript", source) is None
        assert "js-process" in [f.rule for f in (await front.analyse("javascript", source)).findings]


async def test_a_source_above_the_bound_never_reaches_a_worker():
    async with service() as front:
        assert "too-complex" == (await front.analyse("python", b"#" * (MIB + 1))).findings[0].rule
        assert "<Lane worker=none waiting=0>" == repr(front._large)


@pytest.mark.parametrize(
    ("mode", "rules"), [("standard", []), ("report", ["not-analysed"]), ("strict", ["not-analysed"])]
)
async def test_what_could_not_be_analysed_is_refused_by_strict_alone(mode: str, rules: list[str]):
    """No fault of the program: `report` says so, `standard` leaves it to the container. And it is not remembered."""
    async with service(mode, wall_seconds=0.0) as front:
        source = padded(HOSTILE, 10_000)
        analysis = await front.analyse("python", source)
        assert rules == [finding.rule for finding in analysis.findings]
        assert 0 == len(front._cache)


async def test_a_fault_of_the_analysis_is_no_fault_of_the_program(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """It is logged without a word of the source, and the run goes on, except under `strict`."""

    def broken(*_: object) -> Analysis:
        raise RuntimeError("secret text of the program")

    for mode, rules in (("standard", []), ("strict", ["not-analysed"])):
        async with service(mode) as front:
            monkeypatch.setattr(front._inline, "attempt", broken)
            assert rules == [f.rule for f in (await front.analyse("python", HONEST)).findings]
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


# Workers


async def test_a_worker_that_uses_up_its_time_is_ended_and_replaced():
    async with a_lane(cpu_seconds=0.2) as worker:
        assert Analysis() == await worker.analyse("python", HONEST)
        with pytest.raises(SourceTooHard):
            await worker.analyse("python", b'f"' + b"{a}" * 300_000 + b'"')
        assert Analysis() == await worker.analyse("python", HONEST)


async def test_the_wall_clock_bounds_waiting_and_working_together():
    async with a_lane() as worker:
        await worker.analyse("python", HONEST)
        worker._wall_seconds = 0.5
        hard = b'f"' + b"{a}" * 300_000 + b'"'
        results = await asyncio.gather(
            worker.analyse("python", hard), worker.analyse("python", HONEST), return_exceptions=True
        )
        assert isinstance(results[0], LaneFailed)
        assert isinstance(results[1], LaneFailed)
        assert "waiting=0" in repr(worker)


async def test_no_more_than_so_many_wait(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lane, "MAX_WAITING", 2)
    async with a_lane() as worker:
        answers = await asyncio.gather(*(worker.analyse("python", HONEST) for _ in range(5)), return_exceptions=True)
        assert [True, True, False, False, False] == [isinstance(answer, Analysis) for answer in answers]


async def test_a_cancelled_caller_leaves_a_lane_that_works():
    """The worker may be in the middle of a source: what it says next belongs to nobody."""
    async with a_lane() as worker:
        await worker.analyse("python", HONEST)
        task = asyncio.create_task(worker.analyse("python", b'f"' + b"{a}" * 300_000 + b'"'))
        await until(lambda: "waiting=1" in repr(worker))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await worker.analyse("python", HOSTILE)).findings
        assert "waiting=0" in repr(worker)


async def test_a_worker_killed_from_outside_is_replaced():
    async with a_lane() as worker:
        await worker.analyse("python", HONEST)
        assert worker._process is not None
        os.kill(worker._process.pid, signal.SIGKILL)
        answers = [await _outcome(worker), await _outcome(worker)]
        assert Analysis() == answers[-1]


async def _outcome(worker: Lane) -> Analysis | LaneFailed:
    try:
        return await worker.analyse("python", HONEST)
    except LaneFailed as error:
        return error


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["the service's loop"])
async def test_a_worker_whose_pipe_is_closed_before_its_end_is_known_is_replaced():
    """It leaves when idle. A caller who came in that moment had an error of ours: this loop raises RuntimeError then."""
    async with a_lane() as worker:
        for _ in range(3):
            assert Analysis() == await worker.analyse("python", HONEST)
            assert worker._process is not None
            assert worker._process.stdin is not None
            worker._process.stdin.close()
            await asyncio.sleep(0)
            assert worker._process.returncode is None
            assert Analysis() == await worker.analyse("python", HONEST)


async def test_an_idle_worker_leaves_and_another_one_answers():
    async with a_lane(idle_seconds=0.05) as worker:
        assert Analysis() == await worker.analyse("python", HONEST)
        assert worker._process is not None
        assert 0 == await worker._process.wait()
        assert Analysis() == await worker.analyse("python", HONEST)


async def test_closing_ends_the_worker_and_all_who_wait():
    async with a_lane() as worker:
        await worker.analyse("python", HONEST)
        process = worker._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)  # it will be in the middle of the next source whenever we come back here
        task = asyncio.create_task(worker.analyse("python", HONEST))
        await until(lambda: "waiting=1" in repr(worker))
        await worker.aclose()
        with pytest.raises(LaneFailed):
            await task
        assert process.returncode is not None
        with pytest.raises(LaneFailed):
            await worker.analyse("python", HONEST)


async def test_a_worker_has_no_secrets_little_priority_and_bounds(monkeypatch: pytest.MonkeyPatch):
    """It reads what strangers sent: no environment but what an interpreter needs, and the kernel takes it first."""
    monkeypatch.setenv("SANDBOX_REDIS_URL", "redis://:secret@host")
    async with a_lane() as worker:
        await worker.analyse("python", HONEST)
        assert worker._process is not None
        folder = f"/proc/{worker._process.pid}"
        assert "secret" not in _read(f"{folder}/environ")
        assert "1000" == _read(f"{folder}/oom_score_adj").strip()
        assert str(1024 * MIB) in _read(f"{folder}/limits")
        assert os.getpriority(os.PRIO_PROCESS, worker._process.pid) > os.getpriority(os.PRIO_PROCESS, 0)


async def test_a_large_service_has_a_worker_that_stays():
    """What a process once held counts as held by what it starts, and a worker that has grown too large leaves."""
    ballast = bytearray(b"x") * (80 * MIB)
    options = Options(
        mode=AnalysisMode.STANDARD,
        python_version=HERE,
        cpu_seconds=20,
        memory_bytes=1024 * MIB,
        recycle_bytes=len(ballast) // 2,
        idle_seconds=60,
    )
    worker = Lane(options, wall_seconds=60)
    try:
        await worker.analyse("python", HONEST)
        first = worker._process
        await worker.analyse("python", HONEST)
        assert worker._process is first
    finally:
        await worker.aclose()


def _read(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()


async def test_a_source_that_needs_too_much_memory_is_refused_and_the_lane_goes_on():
    options = Options(
        mode=AnalysisMode.STANDARD,
        python_version=HERE,
        cpu_seconds=20,
        memory_bytes=160 * MIB,
        recycle_bytes=64 * MIB,
        idle_seconds=60,
    )
    worker = Lane(options, wall_seconds=60)
    try:
        (finding,) = (await worker.analyse("python", b"x = [" + b"a," * 400_000 + b"]")).findings
        assert "too-complex" == finding.rule
        assert Analysis() == await worker.analyse("python", HONEST)
    finally:
        await worker.aclose()

"""The whole HTTP side on a real socket, in a thread of its own, with a fake runtime behind it."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import uvloop

from sandbox_svc.clock import LoopClock
from sandbox_svc.egress import Egress
from sandbox_svc.http.api import create_api
from sandbox_svc.http.connection import Deadlines
from sandbox_svc.http.reply import Reply as HttpReply
from sandbox_svc.http.server import HttpServer
from sandbox_svc.http.wire import Check
from sandbox_svc.pool.keeper import Keeper
from sandbox_svc.pool.pool import Pool, PoolSettings
from sandbox_svc.pool.slots import SlotState
from sandbox_svc.runtime import Outcome, OutputSink, Program, RunLimits
from sandbox_svc.runtime.languages import Language, Manifest, Template
from sandbox_svc.service.events import RunEnded
from sandbox_svc.service.naming import LanguageNames
from sandbox_svc.service.runs import default_maxima
from sandbox_svc.service.service import Analyser, Service
from sandbox_svc.service.tenants import Admission, Unlimited
from sandbox_svc.telemetry.logs import log_run
from sandbox_svc.telemetry.metrics import Metrics
from sandbox_svc.view import View
from tests.fakes import Behaviour, FakeEngine, FakeRuntime, FakeSandbox

T = TypeVar("T")

MIB = 1024 * 1024


def language(name: str, *aliases: str, analyser: str | None = None, profile: str | None = None) -> Language:
    manifest = Manifest(
        language=name,
        aliases=aliases,
        source_name={"nodejs": "main.js", "typescript": "main.ts"}.get(name, "main.py"),
        templates=(Template(name="plain"),),
        analyser=analyser,
    )
    return Language(manifest=manifest, image_id=f"image-{name}", profile=profile)


class Reply(msgspec.Struct):
    """An HTTP answer as a client sees it."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Decode as the strictest clients do: no NaN, no lone surrogates, valid UTF-8."""
        msgspec.json.decode(self.body, type=msgspec.Raw)

        def refuse(constant: str) -> None:
            raise ValueError(constant)

        return json.loads(self.body.decode(), parse_constant=refuse)


class Stack:
    """A running service. `outcome` is what every program ends with, unless `behaviour` says otherwise."""

    def __init__(self) -> None:
        self.outcome = Outcome(exit_code=0, result=b"null", wall_us=1234, memory_kb=5678)
        self.behaviour: Behaviour | None = None
        self.programs: list[Program] = []
        """Every program that reached a sandbox."""
        self.killed = 0
        """Programs that were cancelled while they ran."""
        self.running = 0
        self.port = 0
        self.loop: asyncio.AbstractEventLoop
        self.stop: asyncio.Event
        self.pool: Pool
        self.runtime: FakeRuntime
        self.server: HttpServer
        self.metrics = Metrics()
        self.ended: list[RunEnded] = []

    def run_ended(self, event: RunEnded) -> None:
        self.ended.append(event)
        log_run(event)
        self.metrics.run_ended(event)

    async def run_program(self, sandbox: FakeSandbox, program: Program, on_output: OutputSink | None) -> Outcome:
        self.programs.append(program)
        self.running += 1
        try:
            if self.behaviour is not None:
                return await self.behaviour(sandbox, program, on_output)
            return self.outcome
        except asyncio.CancelledError:
            self.killed += 1
            raise
        finally:
            self.running -= 1

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the service's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    # As a client

    def request(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def run(self, source: str | bytes = "x", **fields: Any) -> dict[str, Any]:
        """POST /run of a source, which must be answered with 200; return the answer."""
        source = source.encode() if isinstance(source, str) else source
        body = {"code_b64": base64.b64encode(source).decode(), **fields}
        reply = self.request("POST", "/run", json.dumps(body))
        assert reply.status == 200, reply
        assert reply.headers["content-type"] == "application/json"
        answer: dict[str, Any] = reply.json()
        return answer

    def v1(self, **fields: Any) -> Reply:
        return self.request("POST", "/v1/run", json.dumps({"code": "x", **fields}))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@contextmanager
def running_stack(
    *,
    admission: Admission | None = None,
    analyser: Analyser | None = None,
    refuses: bool = True,
    deadlines: Deadlines | None = None,
    max_connections: int = 1000,
    max_unsent_bytes: int = 256 * MIB,
    max_body_bytes: int = MIB,
    body_seconds: float = 30.0,
    pool_size: int = 4,
    queue_size: int = 64,
    queue_seconds: float = 10.0,
    maxima: RunLimits | None = None,
    languages: Sequence[Language] = (),
    configure: Callable[[Stack], None] | None = None,
) -> Iterator[Stack]:
    """Start a stack, wait until its pool is warm, and end it in order; nothing may be left over."""
    stack = Stack()
    ready = threading.Event()
    failures: list[BaseException] = []

    async def main() -> None:
        stack.loop = asyncio.get_running_loop()
        clock = LoopClock()
        kind = "python" if analyser is not None else None
        served = languages or (language("python", "python3", analyser=kind), language("nodejs", "javascript"))
        engine = FakeEngine(*served)
        stack.runtime = FakeRuntime(engine, clock)  # type: ignore[arg-type]  # only its `sleep` is used
        stack.runtime.runs_per_sandbox = 1_000_000_000
        stack.runtime.programs = _Always(stack.run_program)
        stack.pool = Pool(
            {one.name: pool_size if one.name == "python" else 1 for one in served},
            clock=clock,
            settings=PoolSettings(queue_size=queue_size),
            observer=stack.metrics.pool_event,
        )
        keeper = Keeper(stack.pool, stack.runtime, clock=clock)
        chosen_admission = admission if admission is not None else Unlimited()
        names = LanguageNames([one.name for one in served], lambda: keeper.languages)
        service = Service(
            pool=stack.pool,
            names=names,
            maxima=maxima or default_maxima(timeout_seconds=10, memory_bytes=256 * MIB),
            queue_timeout_seconds=queue_seconds,
            admission=chosen_admission,
            analyser=analyser,
            refuses=refuses,
            observer=stack.run_ended,
        )
        view = View(
            pool=stack.pool,
            keeper=keeper,
            runtime=stack.runtime,
            names=names,
            service=service,
            link=None,
            keys=None,
            egress=Egress(),
            permits=None,
        )
        stack.server = HttpServer(
            create_api(
                service=service,
                admission=chosen_admission,
                max_body_bytes=max_body_bytes,
                body_seconds=body_seconds,
                readiness=lambda: {"pool": Check(status="ok" if stack.pool.is_ready("python") else "failing")},
                languages=view.languages,
                metrics=lambda: HttpReply(200, [], stack.metrics.render()),
                on_refused=stack.metrics.request_refused,
            ),
            deadlines=deadlines,
            max_connections=max_connections,
            max_unsent_bytes=max_unsent_bytes,
        )
        if configure is not None:
            configure(stack)
        keeping = asyncio.create_task(keeper.run())
        _, stack.port = await stack.server.listen("127.0.0.1", 0)
        # The pool has no event for "all are warm", and needs none.
        while any(one.slots[SlotState.READY] < one.size for one in stack.pool.stats().values()):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        stack.stop = asyncio.Event()
        ready.set()
        await stack.stop.wait()
        assert await keeper.drain(deadline_seconds=1) == 0
        await keeping
        await stack.server.stop_listening()
        await stack.server.finish(1)

    def thread() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            failures.append(error)
        finally:
            ready.set()

    worker = threading.Thread(target=thread, name="service")
    worker.start()
    ready.wait(10)
    try:
        if failures:
            raise failures[0]
        yield stack
    finally:
        if worker.is_alive():
            stack.loop.call_soon_threadsafe(stack.stop.set)
        worker.join(20)
    assert not worker.is_alive()
    if failures:
        raise failures[0]


class _Always(dict[bytes, Behaviour]):
    """The same behaviour for every source."""

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__()
        self._behaviour = behaviour

    def get(self, _source: bytes, _default: Any = None) -> Behaviour:
        return self._behaviour

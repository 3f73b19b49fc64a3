"""Metrics for Prometheus: events are counted as they are told, everything else is read when somebody asks.

`python -m sandbox_svc.telemetry.metrics` prints the table that stands in docs/operations.md.
"""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from sandbox_svc import __version__, errors
from sandbox_svc.pool.events import (
    EngineChecked,
    OrphansSwept,
    QueueWaited,
    RemovalFailed,
    ResetTook,
    SlotRemoved,
    SlotRetired,
    SlotStarted,
    StartFailed,
)
from sandbox_svc.pool.slots import Retirement
from sandbox_svc.runtime.engine_events import EngineCall, EngineErrorKind
from sandbox_svc.service.events import ABORTED
from sandbox_svc.service.verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from sandbox_svc.admission.permits import PermitStats
    from sandbox_svc.admission.rates import AdmissionStats
    from sandbox_svc.admission.redis_link import LinkStats
    from sandbox_svc.pool.events import PoolEvent
    from sandbox_svc.pool.shelf import LanguageStats
    from sandbox_svc.runtime.engine_events import EngineFailed
    from sandbox_svc.service.events import RunEnded

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4.encode("ascii")

SHORT: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Buckets in seconds for what takes milliseconds and must not take a minute."""
LONG: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 90.0)
"""Buckets in seconds for what the engine does."""


class Family(NamedTuple):
    """One metric: what the documentation and the exposition say of it. All its labels take values of fixed sets."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _family(*args: Any, **kwargs: Any) -> Family:
    family = Family(*args, **kwargs)
    FAMILIES.append(family)
    return family


FAMILIES: Final[list[Family]] = []
"""Every metric of our own, in the order of the documentation."""

RUNS = _family(
    "counter",
    "sandbox_runs_total",
    "Runs by what became of them: an outcome of `/v1/run`, the code of an error, or `aborted` when the caller hung up.",
    ("language", "outcome"),
)
REFUSED = _family(
    "counter",
    "sandbox_requests_refused_total",
    "Run requests that were answered before they were a run (no key, no JSON, too large, ...), by error code.",
    ("code",),
)
RUN_SECONDS = _family("histogram", "sandbox_run_seconds", "Wall time of programs.", ("language",), SHORT)
START_SECONDS = _family(
    "histogram",
    "sandbox_run_overhead_seconds",
    "Handing a program to its container and the outcome back, without queue and program.",
    ("language",),
    SHORT,
)
TOTAL_SECONDS = _family(
    "histogram",
    "sandbox_request_seconds",
    "From the decoded request to its outcome, whatever that was.",
    ("language",),
    SHORT,
)
QUEUE_SECONDS = _family(
    "histogram",
    "sandbox_queue_seconds",
    "Waiting for a container, by how it ended: `served`, `full`, `timed_out`, `cancelled`, `closed`.",
    ("language", "answer"),
    SHORT,
)
QUEUED = _family("gauge", "sandbox_queued", "Requests that wait for a container.", ("language",))
LONGEST_WAIT = _family(
    "gauge", "sandbox_queue_longest_wait_seconds", "How long the first of them has waited.", ("language",)
)
SLOTS = _family("gauge", "sandbox_slots", "Places for containers by state.", ("language", "state"))
READY = _family("gauge", "sandbox_language_ready", "1 while the language can be served.", ("language",))
FAILING = _family("gauge", "sandbox_language_failing", "1 while the last start of a container failed.", ("language",))
STARTS = _family(
    "histogram",
    "sandbox_container_start_seconds",
    "Containers that became ready, and how long it took.",
    ("language",),
    LONG,
)
START_FAILURES = _family(
    "counter",
    "sandbox_container_start_failures_total",
    "Containers that could not be started, by error code.",
    ("language", "code"),
)
RESETS = _family(
    "histogram",
    "sandbox_reset_seconds",
    "Verified resets, and how long after the run they were done.",
    ("language",),
    SHORT,
)
RETIRED = _family(
    "counter",
    "sandbox_containers_retired_total",
    "Containers given up, by reason; `reset_failed`, `lost`, `unhealthy` and `broken` are faults.",
    ("language", "reason"),
)
REMOVALS = _family(
    "histogram",
    "sandbox_container_removal_seconds",
    "Removals that the engine confirmed, and how long it took.",
    ("language",),
    LONG,
)
REMOVAL_FAILURES = _family(
    "counter", "sandbox_container_removal_failures_total", "Attempts to remove a container that failed.", ("language",)
)
ORPHANS = _family("counter", "sandbox_orphans_swept_total", "Containers of dead instances that were removed.")
ENGINE_UP = _family("gauge", "sandbox_engine_up", "1 when the container engine answered when it was last asked.")
ENGINE_CHECKS = _family(
    "counter", "sandbox_engine_checks_total", "Signs of life asked of the engine: `ok` or `failed`.", ("result",)
)
ENGINE_ERRORS = _family(
    "counter",
    "sandbox_engine_errors_total",
    "Calls to the container engine that failed, by call (`create`, `start`, `remove`, ...) and kind: `timeout`, "
    "`refused` or `unreachable`.",
    ("call", "kind"),
)
PERMITS = _family(
    "gauge",
    "sandbox_permits",
    "With Redis: permits for containers, `held` here, `total` of all instances, their `bound`, `waiting` for one.",
    ("language", "kind"),
)
DECISIONS = _family(
    "counter", "sandbox_rate_decisions_total", "Decisions of the rate limit: `allowed` or `refused`.", ("decision",)
)
LOCAL_DECISIONS = _family(
    "counter", "sandbox_rate_local_decisions_total", "Decisions made without the Redis that is configured."
)
KEYS_USABLE = _family(
    "gauge",
    "sandbox_keys_usable",
    "1 while the file of API keys is in force as it is; 0: the keys from before are. Absent where none is configured.",
)
REDIS_UP = _family("gauge", "sandbox_redis_up", "1 while Redis answers; absent where none is configured.")
REDIS_SINCE = _family("gauge", "sandbox_redis_state_seconds", "For how long Redis has been as `sandbox_redis_up` says.")
REDIS_CALLS = _family(
    "counter",
    "sandbox_redis_calls_total",
    "Calls to Redis: `ok`, `failed`, or `skipped` because it was known to be away.",
    ("result",),
)
REDIS_OUTAGES = _family("counter", "sandbox_redis_outages_total", "Times that Redis went away.")
CONNECTIONS = _family("gauge", "sandbox_http_connections", "Open HTTP connections.")
SHED = _family(
    "counter",
    "sandbox_http_connections_shed_total",
    "Connections given up for lack of room: `refused` when new, since every other one waits for its answer, or `cut` "
    "while it was slow to send its request.",
    ("how",),
)
TASKS = _family("gauge", "sandbox_tasks", "Tasks of the event loop: one per slot, connection and helper, when idle.")
DRAINING = _family("gauge", "sandbox_draining", "1 while the service is shutting down.")


_ENDS_A_RUN: Final = (
    errors.InvalidRequest,
    errors.RateLimited,
    errors.CodeRefused,
    errors.PoolExhausted,
    errors.PoolClosed,
    errors.RuntimeUnavailable,
    errors.SandboxLost,
    errors.ProtocolError,
    errors.SandboxServiceError,
)
"""Of a language that is known; a name that is none has no language to be counted for."""
_FAILS_A_START: Final = (errors.RuntimeUnavailable, errors.SandboxLost, errors.ProtocolError)
_REFUSES_A_REQUEST: Final = (
    errors.Unauthorized,
    errors.CrossOrigin,
    errors.MalformedRequest,
    errors.InvalidRequest,
    errors.RequestTooLarge,
    errors.RequestTimeout,
    errors.PoolExhausted,
)


class PoolView(Protocol):
    """What is read of the pool."""

    is_closed: bool

    def stats(self) -> Mapping[str, LanguageStats]: ...


class Sources(NamedTuple):
    """Where the figures come from that are read when somebody asks; None for what is not configured."""

    pool: PoolView
    is_engine_up: Callable[[], bool]
    connections: Callable[[], int]
    shed: Callable[[], Mapping[str, int]]
    tasks: Callable[[], int]
    rates: Callable[[], AdmissionStats]
    redis: Callable[[], LinkStats] | None = None
    permits: Callable[[], Mapping[str, PermitStats]] | None = None
    are_keys_usable: Callable[[], bool] | None = None


class Metrics:
    """A registry of its own. `pool_event`, `engine_failed` and `run_ended` observe pool, engine and service.

    Each takes some microseconds.
    """

    def __init__(self, languages: Iterable[str] = ()) -> None:
        """`languages` are those that are served: what is counted of them is there from the start."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside every other, which nobody asks for
        self.registry = registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        self._runs = _Children(_counter(RUNS, registry))
        self._refused = _Children(_counter(REFUSED, registry))
        self._run_seconds = _Children(_histogram(RUN_SECONDS, registry))
        self._start_seconds = _Children(_histogram(START_SECONDS, registry))
        self._total_seconds = _Children(_histogram(TOTAL_SECONDS, registry))
        self._queue_seconds = _Children(_histogram(QUEUE_SECONDS, registry))
        self._starts = _Children(_histogram(STARTS, registry))
        self._start_failures = _Children(_counter(START_FAILURES, registry))
        self._resets = _Children(_histogram(RESETS, registry))
        self._retired = _Children(_counter(RETIRED, registry))
        self._removals = _Children(_histogram(REMOVALS, registry))
        self._removal_failures = _Children(_counter(REMOVAL_FAILURES, registry))
        self._orphans = _counter(ORPHANS, registry)
        self._engine_checks = _Children(_counter(ENGINE_CHECKS, registry))
        self._engine_errors = _Children(_counter(ENGINE_ERRORS, registry))
        self._begin_at_zero(tuple(languages))

    def _begin_at_zero(self, languages: tuple[str, ...]) -> None:
        """Make the series of all counters, so that the first of a kind is an increase: to Prometheus, and so to the
        alerts, a series that begins at 4 never grew.
        """
        words = [verdict.value for verdict in Verdict] + [ABORTED] + [error.code for error in _ENDS_A_RUN]
        for counter, kinds in (
            (self._runs, words),
            (self._retired, [reason.value for reason in Retirement]),
            (self._start_failures, ["timeout"] + [error.code for error in _FAILS_A_START]),
        ):
            counter.begin(itertools.product(languages, kinds))
        self._removal_failures.begin(itertools.product(languages))
        self._refused.begin((error.code,) for error in _REFUSES_A_REQUEST)
        self._engine_checks.begin((("ok",), ("failed",)))
        self._engine_errors.begin((call.value, kind.value) for call in EngineCall for kind in EngineErrorKind)

    def read_from(self, sources: Sources) -> None:
        """Show what `sources` hold too, whenever the metrics are asked for. Called once."""
        self.registry.register(_Snapshot(sources))

    def render(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self.registry)

    def request_refused(self, code: str) -> None:
        self._refused[(code,)].inc()

    def engine_failed(self, event: EngineFailed) -> None:
        self._engine_errors[event.call.value, event.kind.value].inc()

    def run_ended(self, event: RunEnded) -> None:
        language = (event.language,)
        self._runs[event.language, event.outcome].inc()
        self._total_seconds[language].observe(event.total_seconds)
        if event.run_seconds is not None:
            self._run_seconds[language].observe(event.run_seconds)
            self._start_seconds[language].observe(event.start_seconds)

    def pool_event(self, event: PoolEvent) -> None:
        match event:
            case QueueWaited():
                self._queue_seconds[event.language, event.answer.value].observe(event.seconds)
            case ResetTook():
                self._resets[(event.language,)].observe(event.seconds)
            case SlotStarted():
                self._starts[(event.language,)].observe(event.seconds)
            case StartFailed():
                self._start_failures[event.language, event.code].inc()
            case SlotRetired():
                self._retired[event.language, event.reason.value].inc()
            case SlotRemoved():
                self._removals[(event.language,)].observe(event.seconds)
            case RemovalFailed():
                self._removal_failures[(event.language,)].inc()
            case OrphansSwept():
                self._orphans.inc(event.count)
            case EngineChecked():
                self._engine_checks[("ok" if event.is_up else "failed",)].inc()


class _Children(dict[tuple[str, ...], Any]):
    """The children of a metric by label values; `labels()` itself takes a lock and costs as much as counting does."""

    def __init__(self, metric: Counter | Histogram) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, values: tuple[str, ...]) -> Any:
        child = self[values] = self._metric.labels(*values)
        return child

    def begin(self, series: Iterable[tuple[str, ...]]) -> None:
        """Show these from now on, at zero."""
        for values in series:
            _ = self[values]


class _Snapshot:
    """Reads the state of the service when the registry collects."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        pool, is_engine_up, connections, shed, tasks, rates, redis, permits, are_keys_usable = self._sources
        info = InfoMetricFamily("sandbox_build", "The version that runs.")
        info.add_metric((), {"version": __version__})
        yield info
        stats = pool.stats()
        yield _gauge(QUEUED, (((name,), one.queued) for name, one in stats.items()))
        yield _gauge(LONGEST_WAIT, (((name,), one.longest_wait_seconds) for name, one in stats.items()))
        yield _gauge(
            SLOTS,
            (((name, state.value), count) for name, one in stats.items() for state, count in one.slots.items()),
        )
        yield _gauge(READY, (((name,), one.is_ready and not pool.is_closed) for name, one in stats.items()))
        yield _gauge(FAILING, (((name,), one.is_failing) for name, one in stats.items()))
        yield _gauge(ENGINE_UP, [((), is_engine_up())])
        yield _gauge(CONNECTIONS, [((), connections())])
        yield _count(SHED, [((how,), number) for how, number in shed().items()])
        yield _gauge(TASKS, [((), tasks())])
        yield _gauge(DRAINING, [((), pool.is_closed)])
        rate = rates()
        yield _count(DECISIONS, [(("allowed",), rate.allowed), (("refused",), rate.refused)])
        yield _count(LOCAL_DECISIONS, [((), rate.local)])
        if are_keys_usable is not None:
            yield _gauge(KEYS_USABLE, [((), are_keys_usable())])
        if redis is not None:
            link = redis()
            yield _gauge(REDIS_UP, [((), link.state.value == "ok")])
            yield _gauge(REDIS_SINCE, [((), link.since_seconds)])
            yield _count(
                REDIS_CALLS,
                [
                    (("ok",), link.ok_calls),
                    (("failed",), link.failed_calls),
                    (("skipped",), link.refused_calls),
                ],
            )
            yield _count(REDIS_OUTAGES, [((), link.outages)])
        if permits is not None:
            yield _gauge(
                PERMITS,
                (
                    ((name, kind), getattr(one, kind))
                    for name, one in permits().items()
                    for kind in ("bound", "held", "total", "waiting")
                ),
            )


def _counter(family: Family, registry: CollectorRegistry) -> Counter:
    return Counter(family.name, family.help, family.labels, registry=registry)


def _histogram(family: Family, registry: CollectorRegistry) -> Histogram:
    return Histogram(family.name, family.help, family.labels, registry=registry, buckets=family.buckets)


def _gauge(family: Family, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    metric = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for values, value in samples:
        metric.add_metric(values, float(value))
    return metric


def _count(family: Family, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    metric = CounterMetricFamily(family.name, family.help, labels=family.labels)
    for values, value in samples:
        metric.add_metric(values, value)
    return metric


def markdown_table() -> str:
    """The table of all metrics for the documentation."""
    rows = [
        f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels) or '-'} | {meaning} |"
        for kind, name, meaning, labels, _ in FAMILIES
    ]
    return "\n".join(["| Metric | Type | Labels | Meaning |", "| --- | --- | --- | --- |", *rows]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown_table())

"""An engine that restarts, dies, freezes or runs out of disk, and images that are missing, broken or new.

On an engine of the tests' own; nothing here reaches the machine's.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.harness import ServiceProcess, under_load, until
from tests.faults.own_engine import OwnEngine
from tests.faults.relay import Relay
from tests.faults.test_containers import SLOW

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]

Start = Callable[..., ServiceProcess]
Report = Callable[..., None]


def test_restarted_under_load(engine: OwnEngine, start_service: Start, report: Report) -> None:
    """SF-01: an engine that is upgraded stops its containers: errors meanwhile, then everything is as before, by itself."""
    service = start_service(engine.host)
    with under_load(service) as load:
        time.sleep(1)
        engine.terminate()
        until(lambda: service.readiness()[0] == 503, 20)
        assert service.ask("GET", "/healthz") == (200, {"status": "ok"})
        time.sleep(1)
        engine.start()
        seconds = service.await_ready()
        right = load.tally.right
        until(lambda: load.tally.right > right + 20, 30)
    assert len(service.containers()) == 3
    report(load, f"full {seconds:.1f} s after the engine was back")


def test_killed_under_load(engine: OwnEngine, start_service: Start, report: Report) -> None:
    """The engine dies and its containers live on without it; the next one removes them and starts others."""
    service = start_service(engine.host)
    before = service.containers()
    with under_load(service) as load:
        time.sleep(1)
        engine.kill()
        until(lambda: service.readiness()[0] == 503, 20)
        engine.start()
        seconds = service.await_ready()
        right = load.tally.right
        until(lambda: load.tally.right > right + 20, 30)
    until(lambda: len(service.containers()) == 3 and not set(before) & set(service.containers()), 30)
    report(load, f"full {seconds:.1f} s after the engine was back")


def test_frozen_under_load(engine: OwnEngine, start_service: Start, report: Report) -> None:
    """SF-02: streams pass through the engine, so runs wait while it is frozen; each ends within its own deadline."""
    service = start_service(engine.host, SANDBOX_TIMEOUT="3s", SANDBOX_QUEUE_TIMEOUT="5s")
    with under_load(service) as load:
        time.sleep(1)
        engine.freeze()
        try:
            noticed = until(lambda: service.readiness()[1]["checks"]["engine"]["status"] == "failing", 20)
            status, answer = service.readiness()
            assert service.ask("GET", "/healthz") == (200, {"status": "ok"})
        finally:
            engine.thaw()
        seconds = service.await_ready()
        right = load.tally.right
        until(lambda: load.tally.right > right + 20, 30)
    assert status == 503
    assert "no sign of life for" in answer["checks"]["engine"]["detail"]
    assert noticed < 17
    status, answer = service.readiness()
    assert (status, answer["checks"]["engine"]["status"]) == (200, "ok")
    assert load.tally.slowest < 3 + 5 + 10
    until(lambda: len(service.containers()) == 3, 30)
    report(load, f"readiness 503 after {noticed:.1f} s, full {seconds:.1f} s after it went on")


@pytest.mark.slow
def test_frozen_while_idle(engine: OwnEngine, start_service: Start, report: Report) -> None:
    """Every container stands, and yet no program would get anywhere: who balances loads is told, and told when it is over."""
    service = start_service(engine.host)
    before = set(service.containers())
    statuses = set()
    engine.freeze()
    try:

        def is_told() -> bool:
            status, answer = service.readiness()
            statuses.add((answer["checks"]["engine"]["status"], status))
            return status == 503

        noticed = until(is_told, 20)
        detail = service.readiness()[1]["checks"]["language python"]["detail"]
    finally:
        engine.thaw()
    seconds = until(lambda: service.readiness()[0] == 200, 10)
    assert statuses == {("ok", 200), ("degraded", 200), ("failing", 503)}
    assert detail == "3 of 3 containers"
    assert set(service.containers()) == before
    report(f"readiness 503 after {noticed:.1f} s and 200 {seconds:.1f} s after it went on, no container lost")


@pytest.mark.slow
def test_shutdown_while_the_engine_is_frozen(engine: OwnEngine, start_service: Start, report: Report) -> None:
    """The end has a bound too; what could not be removed ends by itself and the next start sweeps it."""
    service = start_service(engine.host)
    engine.freeze()
    try:
        began = time.monotonic()
        service.process.terminate()  # type: ignore[union-attr]  # it was started
        code = service.wait(60)
        took = time.monotonic() - began
    finally:
        engine.thaw()
    dead = service.pid
    service.start()

    until(lambda: not service.containers(dead), 30)
    assert code == 0, "an ordered end, though containers had to be left behind"
    assert took < 10 + 10 + 30 + 5
    report(f"exit code {code} after {took:.1f} s, the next start swept what was left")


@pytest.mark.slow
def test_a_second_signal_while_the_engine_is_frozen(engine: OwnEngine, start_service: Start, report: Report) -> None:
    """Who says it twice does not want to wait for an engine that may never answer; the next start sweeps."""
    service = start_service(engine.host)
    engine.freeze()
    try:
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        until(lambda: service.readiness()[0] == 503, 5)
        service.signal(signal.SIGTERM)
        code = service.wait(60)
        took = time.monotonic() - began
    finally:
        engine.thaw()
    dead = service.pid
    service.start()

    until(lambda: not service.containers(dead), 30)
    assert code == 0
    assert took < 10
    report(f"exit code {code} after {took:.1f} s, the next start swept what was left")


def test_a_full_disk(engine: OwnEngine, start_service: Start, report: Report) -> None:
    """SF-07: no container can be created: what is warm goes on serving, starts back off, and it ends with the shortage."""
    service = start_service(engine.host)
    with engine.full_disk():
        probe = engine.docker("create", "--network", "none", "sandbox-svc/python:latest", check=False)
        assert probe.returncode, "the disk is not full"
        with under_load(service, callers=2) as load:
            time.sleep(1)
            service.docker("kill", service.containers()[0])
            until(lambda: service.metric("sandbox_container_start_failures_total") >= 2, 30)
            time.sleep(3)
            right = load.tally.right
            until(lambda: load.tally.right > right + 10, 20)
            # Two of three still serve.
            assert service.readiness()[0] == 200
            assert service.readiness()[1]["checks"]["language python"]["status"] == "degraded"
        failures = service.metric("sandbox_container_start_failures_total")
        assert failures < 15
    seconds = service.await_ready(90)
    assert service.run(SLOW, seconds=0)[1]["outcome"] == "success"
    report(load, f"{failures:.0f} failed starts, full {seconds:.1f} s after there was room")


def test_no_inodes(engine: OwnEngine, start_service: Start, report: Report) -> None:
    """SF-07: the other way for a disk to be full: what is warm serves, starts back off, and it ends with the shortage."""
    service = start_service(engine.host)
    with engine.no_inodes():
        until(
            lambda: engine.docker("create", "--network", "none", "sandbox-svc/python:latest", check=False).returncode,
            20,
        )
        service.docker("kill", service.containers()[0])
        until(lambda: service.metric("sandbox_container_start_failures_total") >= 2, 30, service.log)
        for _ in range(10):
            assert service.run(SLOW, seconds=0)[1]["outcome"] == "success"
        status, answer = service.readiness()
        assert (status, answer["checks"]["language python"]["status"]) == (200, "degraded")
    failures = service.metric("sandbox_container_start_failures_total")
    seconds = service.await_ready(90)
    assert failures < 10
    report(f"{failures:.0f} failed starts", f"full {seconds:.1f} s after there were inodes")


NODEJS = "sandbox-svc/nodejs:latest"


@pytest.fixture
def no_nodejs(engine: OwnEngine) -> Iterator[None]:
    """The engine has no image of nodejs when the test begins, and none when it is over."""
    yield
    engine.docker("rmi", "--force", NODEJS, "good-nodejs", check=False)


def test_a_missing_image_is_named_and_taken_up_when_it_comes(
    engine: OwnEngine, no_nodejs: None, start_service: Start, report: Report
) -> None:
    """SF-05: the other language serves meanwhile, and readiness says which image is missing."""
    service = start_service(engine.host, is_ready=False, SANDBOX_LANGUAGES="python,nodejs")
    until(lambda: service.ready_containers() == 3, 30)

    status, answer = service.readiness()
    assert status == 503
    assert answer["checks"]["language nodejs"] == {"status": "failing", "detail": "its image is missing"}
    with under_load(service, callers=2) as load:
        status, problem = service.run("x", "nodejs")
        assert (status, problem["code"]) == (503, "engine_unavailable")
        engine.load(NODEJS)
        seconds = service.await_ready()
    assert load.tally.honest.total() == 0
    report(load, f"ready {seconds:.1f} s after the image came")


def test_an_image_that_crashes_makes_no_storm(
    engine: OwnEngine, no_nodejs: None, start_service: Start, report: Report
) -> None:
    """SF-05: few attempts, further and further apart; the other language does not notice; mended without a restart."""
    engine.load(NODEJS)
    engine.docker("tag", NODEJS, "good-nodejs")
    engine.build(NODEJS, "FROM good-nodejs", 'ENTRYPOINT ["/bin/false"]')
    service = start_service(engine.host, is_ready=False, SANDBOX_LANGUAGES="python,nodejs")
    until(lambda: service.ready_containers() == 3, 30)
    began = time.monotonic()
    with under_load(service, callers=2) as load:
        time.sleep(8)
        failures = service.metric("sandbox_container_start_failures_total", language="nodejs")
        status, answer = service.readiness()
        check = answer["checks"]["language nodejs"]
        seconds_tried = time.monotonic() - began
    assert (status, check["status"]) == (503, "failing")
    assert "the last start failed" in check["detail"]
    # 0.5 s doubled each time, the first two at once: about six in 8 s, never dozens.
    assert 2 <= failures <= 10
    assert load.tally.honest.total() == 0
    assert service.metric("sandbox_container_start_failures_total", language="python") == 0

    engine.docker("tag", "good-nodejs", NODEJS)
    seconds = service.await_ready(90)
    report(load, f"{failures:.0f} failed starts in {seconds_tried:.0f} s, ready {seconds:.1f} s after it was mended")


PYTHON = "sandbox-svc/python:latest"


@pytest.fixture
def python_image(engine: OwnEngine) -> Iterator[str]:
    """Id of the image that the engine has at first, and has again when the test is over."""
    image = engine.docker("image", "inspect", "--format", "{{.Id}}", PYTHON).stdout.strip()
    yield image
    engine.docker("tag", image, PYTHON)


class Watch:
    """Looks again and again at what the service says of itself, and at its containers."""

    def __init__(self, service: ServiceProcess) -> None:
        self._service = service
        self._old = set(service.containers())
        self.statuses: set[int] = set()
        self.fewest = 1_000
        """In service."""
        self.most = 0
        """In whatever state."""
        self.looks = 0

    def look(self) -> set[str]:
        """Return the containers there are."""
        status, answer = self._service.readiness()
        self.statuses.add(status)
        self.fewest = min(self.fewest, int(answer["checks"]["language python"]["detail"].split()[0]))
        containers = set(self._service.containers())
        self.most = max(self.most, len(containers))
        self.looks += 1
        return containers

    def sees_only_old(self) -> bool:
        """Whether all the containers of before are there, beside what is being tried."""
        return self._old <= self.look()

    def sees_only_new(self) -> bool:
        """Whether those are gone and as many others are there."""
        containers = self.look()
        return not self._old & containers and len(containers) == len(self._old) and self._service.is_full()


def test_a_new_image_rolls_out_without_a_dip(
    engine: OwnEngine, python_image: str, start_service: Start, report: Report
) -> None:
    """First one that does not start, then a good one, for a pool of three and one of one: readiness is 200 throughout.

    No container is missing at any time, since each is replaced by one that has started beside it.
    """
    services = [start_service(engine.host, SANDBOX_POOL_SIZE=size) for size in ("3", "1")]
    watches = [Watch(service) for service in services]

    def have_failed() -> bool:
        assert all(watch.sees_only_old() for watch in watches)
        return all(service.metric("sandbox_container_start_failures_total") >= 3 for service in services)

    with under_load(services[0], callers=2) as load_of_three, under_load(services[1], callers=2) as load_of_one:
        engine.build(PYTHON, f"FROM {python_image}", 'ENTRYPOINT ["/bin/false"]')
        until(have_failed, 60)
        checks = [service.readiness()[1]["checks"]["language python"] for service in services]
        engine.build(PYTHON, f"FROM {python_image}", labels={"generation": "good"})
        seconds = until(lambda: all([watch.sees_only_new() for watch in watches]), 90)  # noqa: C419 - each has to look
    for watch, check, size in zip(watches, checks, (3, 1), strict=True):
        assert check == {"status": "degraded", "detail": f"{size} of {size} containers, the last start failed"}
        assert (watch.statuses, watch.fewest, watch.most) == ({200}, size, size + 1)
    assert load_of_three.tally.honest.total() == load_of_one.tally.honest.total() == 0
    assert services[0].metric("sandbox_containers_retired_total", reason="outdated") == 3
    report(load_of_three, f"never fewer than 3 of 3 in {watches[0].looks} looks, {seconds:.1f} s after the good build")
    report(load_of_one, f"never fewer than 1 of 1 in {watches[1].looks} looks")


@pytest.mark.slow
def test_frozen_for_a_minute(engine: OwnEngine, start_service: Start, report: Report) -> None:
    """SF-02: a minute without the engine: nothing piles up, and it goes on by itself."""
    service = start_service(engine.host, SANDBOX_TIMEOUT="3s", SANDBOX_QUEUE_TIMEOUT="5s")
    with under_load(service) as load:
        time.sleep(1)
        engine.freeze()
        try:
            time.sleep(60)
            descriptors = service.metric("process_open_fds")
        finally:
            engine.thaw()
        seconds = service.await_ready(90)
    assert descriptors < 100
    until(lambda: len(service.containers()) == 3, 60)
    report(load, f"{descriptors:.0f} descriptors at its end, full {seconds:.1f} s after it went on")


@pytest.mark.slow
def test_restarted_with_live_restore(start_service: Start, report: Report) -> None:
    """SF-01: containers that outlive their engine have lost their streams: they are replaced, never used again."""
    engine = OwnEngine("--live-restore")
    try:
        engine.start()
        engine.load("sandbox-svc/python:latest")
        service = start_service(engine.host)
        before = set(service.containers())
        with under_load(service) as load:
            time.sleep(1)
            engine.terminate()
            until(lambda: service.readiness()[0] == 503, 20)
            engine.start()
            seconds = service.await_ready()
            until(lambda: not before & set(service.containers()), 60)
        report(load, f"full {seconds:.1f} s after the engine was back")
        service.end()
    finally:
        engine.close()


def test_remote_over_tls(engine: OwnEngine, start_service: Start, report: Report, tmp_path: Path) -> None:
    """An engine reached over TCP with certificates on both sides serves like a local one; without a certificate, nobody."""
    _make_certificates(tmp_path)
    files = (("cacert", "ca.pem"), ("cert", "s.pem"), ("key", "s-key.pem"))
    engine.terminate()
    engine.start(
        "--host", "tcp://127.0.0.1:2376", "--tlsverify", *(f"--tls{name}={tmp_path}/{file}" for name, file in files)
    )
    try:
        # The engine has a network of its own.
        with Relay(engine.pid, 2376) as relay:
            service = start_service(f"tcp://127.0.0.1:{relay.port}", DOCKER_CERT_PATH=str(tmp_path))
            with under_load(service, callers=2) as load:
                until(lambda: load.tally.right >= 50, 30)
            assert load.tally.honest.total() == 0
            service.end()
            with pytest.raises(AssertionError, match="describe itself"):
                start_service(f"tcp://127.0.0.1:{relay.port}", is_ready=False)
    finally:
        engine.terminate()
        engine.start()
    report(load, "engine at a TCP port with TLS")


def _make_certificates(folder: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30, cwd=folder)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca-key.pem", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2",
            "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    for name, key, subject, usage in (
        ("s.pem", "s-key.pem", "/CN=engine", "serverAuth"),
        ("cert.pem", "key.pem", "/CN=client", "clientAuth"),
    ):
        extensions = folder / "extensions"
        extensions.write_text(f"subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n")
        openssl("req", *curve, "-keyout", key, "-out", "request", "-subj", subject)
        openssl("x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial",
                "-out", name, "-days", "2", "-extfile", "extensions")  # fmt: skip

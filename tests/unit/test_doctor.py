"""What the doctor says, of an engine made up for it; the whole of it against a real one is in tests/integration."""

from __future__ import annotations

import io
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from sandbox_svc import __version__, doctor
from sandbox_svc.doctor import Diagnosis, examine
from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.runtime.container_spec import GENERATION_LABEL
from sandbox_svc.runtime.docker_engine import Engine
from sandbox_svc.runtime.languages import LANGUAGE_LABEL, MANIFEST_LABEL

pytestmark = pytest.mark.anyio

MANIFEST = '{"language": "python", "source_name": "main.py", "templates": [{"name": "plain"}]}'
INFO = {
    "ID": "x",
    "CgroupVersion": "2",
    "NCPU": 2,
    "MemTotal": 8 * 2**30,
    "Runtimes": {"runc": {}},
    "SecurityOptions": ["name=seccomp,profile=default"],
    "MemoryLimit": True,
    "PidsLimit": True,
    "SwapLimit": True,
    "CpuCfsQuota": True,
}
KEY = '[[key]]\ntenant = "acme"\nhash = "sha256:%s"\n' % ("0" * 64)


def image(image_id: str = "sha256:new", days: float = 1, manifest: str | None = MANIFEST) -> dict[str, Any]:
    labels = {LANGUAGE_LABEL: "python"} | ({} if manifest is None else {MANIFEST_LABEL: manifest})
    tags = ["sandbox-svc/python:latest"] if image_id == "sha256:new" else []
    return {"Id": image_id, "Labels": labels, "RepoTags": tags, "Created": int(time.time() - days * 86_400)}


class MadeUpEngine:
    """Answers what the doctor asks of an engine, on a socket of its own."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.info: dict[str, Any] = dict(INFO)
        self.api_version = "1.41"
        self.clock_ahead = 0.0
        self.images = [image()]
        self.generations: list[str] = []
        """Of the containers that run."""

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        application = web.Application()
        for path, answer in (
            ("/info", self._info),
            ("/version", lambda _: {"Version": "20.10", "ApiVersion": self.api_version}),
            ("/images/json", lambda _: self.images),
            ("/containers/json", lambda _: [{"Id": str(number)} for number, _ in enumerate(self.generations)]),
            ("/containers/{id}/json", self._container),
        ):
            application.router.add_get(r"/{version:v[\d.]+}" + path, _as_json(answer))
            application.router.add_get(path, _as_json(answer))
        runner = web.AppRunner(application)
        await runner.setup()
        await web.UnixSite(runner, str(self.socket)).start()
        try:
            yield
        finally:
            await runner.cleanup()

    def _info(self, _: web.Request) -> Any:
        return self.info | {"SystemTime": datetime.fromtimestamp(time.time() + self.clock_ahead, UTC).isoformat()}

    def _container(self, request: web.Request) -> Any:
        labels = {LANGUAGE_LABEL: "python", GENERATION_LABEL: self.generations[int(request.match_info["id"])]}
        return {
            "Id": request.match_info["id"],
            "Name": "/x",
            "Created": "2026-01-01T00:00:00Z",
            "Config": {"Labels": labels},
            "State": {"Status": "running", "FinishedAt": "0001-01-01T00:00:00Z"},
        }

    async def diagnoses(self, **environ: str) -> dict[str, Diagnosis]:
        """Everything that is said, by subject; the last where there are several of one."""
        usual = {"DOCKER_HOST": f"unix://{self.socket}", "SANDBOX_LANGUAGES": "python"}
        async with self.answering():
            return {diagnosis.subject: diagnosis async for diagnosis in examine(usual | environ)}


def _as_json(answer: Callable[[web.Request], Any]) -> Callable[[web.Request], Any]:
    async def handle(request: web.Request) -> web.Response:
        return web.json_response(answer(request))

    return handle


@pytest.fixture
def engine(tmp_path: Path) -> MadeUpEngine:
    return MadeUpEngine(tmp_path / "s")


async def test_a_good_engine_is_ok_in_every_line(engine: MadeUpEngine) -> None:
    found = await engine.diagnoses()

    assert {diagnosis.state for diagnosis in found.values()} == {"ok"}
    assert {"settings", "engine", "isolation", "limits", "time", "memory", "image python", "redis"} <= found.keys()


def without(**facts: Any) -> Callable[[MadeUpEngine], None]:
    return lambda engine: engine.info.update(facts)


AMISS: list[tuple[str, Callable[[MadeUpEngine], None], str, str, str]] = [
    ("an old API", lambda engine: setattr(engine, "api_version", "1.40"), "engine", "missing", "API 1.41 is needed"),
    ("no memory limit", without(MemoryLimit=False), "limits", "missing", "does not enforce MemoryLimit"),
    ("no pids limit", without(PidsLimit=False), "limits", "missing", "does not enforce PidsLimit"),
    ("no swap limit", without(SwapLimit=False), "limits", "warning", "swap is not limited"),
    ("no seccomp", without(SecurityOptions=["name=apparmor"]), "isolation", "missing", "no seccomp"),
    ("no usable runtime", without(Runtimes={"crun": {}}), "isolation", "missing", "no runtime 'runc'; it has crun"),
    ("another time", lambda engine: setattr(engine, "clock_ahead", 3600), "time", "warning", "+3600 s"),
    ("little memory", without(MemTotal=2**29), "memory", "warning", "more than there is"),
    ("no image", lambda engine: engine.images.clear(), "image python", "missing", "not there"),
    (
        "an image without a manifest",
        lambda engine: setattr(engine, "images", [image(manifest=None)]),
        "image python",
        "missing",
        "has no usable manifest ('sandbox_svc.manifest')",
    ),
    (
        "an image of another service",
        lambda engine: setattr(engine, "images", [image(manifest=MANIFEST.replace("source_name", "file"))]),
        "image python",
        "missing",
        "missing required field `source_name`",
    ),
    (
        "an old image",
        lambda engine: setattr(engine, "images", [image(days=90)]),
        "image python",
        "warning",
        "built 90 days ago",
    ),
    (
        "containers of an earlier image",
        lambda engine: setattr(engine, "generations", ["sha256:new", "sha256:old"]),
        "image python",
        "warning",
        "2 containers run, 1 of them of another generation",
    ),
]


@pytest.mark.parametrize(
    ("change", "subject", "state", "words"), [case[1:] for case in AMISS], ids=[case[0] for case in AMISS]
)
async def test_what_is_amiss_is_told_with_advice_and_hides_nothing_else(
    engine: MadeUpEngine, change: Callable[[MadeUpEngine], None], subject: str, state: str, words: str
) -> None:
    change(engine)

    found = await engine.diagnoses()

    assert (found[subject].state, words in found[subject].detail) == (state, True), found[subject]
    assert found[subject].advice
    assert {"engine", "isolation", "limits", "time", "memory", "image python", "redis"} <= found.keys()
    assert {diagnosis.subject for diagnosis in found.values() if diagnosis.state != "ok"} == {subject}


async def test_a_runtime_that_was_named_and_is_missing_is_one_line_of_the_rest(engine: MadeUpEngine) -> None:
    found = await engine.diagnoses(SANDBOX_RUNTIME="runsc")

    assert found["isolation"].state == "missing"
    assert "gvisor.sh" in found["isolation"].advice
    assert found["image python"].state == "ok"


async def test_older_builds_and_the_containers_that_run_are_counted(engine: MadeUpEngine) -> None:
    engine.images = [image(), image("sha256:old", 9)]
    engine.generations = ["sha256:new"]

    found = await engine.diagnoses()

    assert found["image python"].detail == (
        "generation new, built 1 days ago, 1 older builds beside it; "
        "1 containers run, none of them of another generation"
    )
    assert "without a Redis each counts only its own" in found["instances"].detail


async def test_an_engine_that_is_not_there_is_a_line_and_what_comes_after_is_looked_at(tmp_path: Path) -> None:
    found = {diagnosis.subject: diagnosis async for diagnosis in examine({"DOCKER_HOST": f"unix://{tmp_path}/s"})}

    assert found["engine"].state == "missing"
    assert "No such file or directory" in found["engine"].detail
    assert found["redis"].state == "ok"


async def test_an_engine_that_is_silent_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of a deadline are none, and stood there as `()`."""

    async def describe(_: Engine) -> None:
        raise RuntimeUnavailable("The container engine did not describe itself.") from TimeoutError()

    monkeypatch.setattr(Engine, "describe", describe)
    found = {diagnosis.subject: diagnosis async for diagnosis in examine({})}["engine"]

    assert (found.state, found.detail) == ("missing", "The container engine did not describe itself.")


@pytest.mark.parametrize(
    ("content", "state", "words"),
    [
        (KEY, "ok", "1 in the file"),
        ("", "warning", "every run is refused"),
        ("[[key]]\ntenant = 1\n", "missing", "SANDBOX_API_KEYS_FILE"),
        (KEY + 'max_timeout = "1h"\n', "missing", "max_timeout"),
    ],
)
async def test_the_file_of_keys_is_read_as_the_service_would(
    engine: MadeUpEngine, tmp_path: Path, content: str, state: str, words: str
) -> None:
    (tmp_path / "keys").write_text(content)

    found = (await engine.diagnoses(SANDBOX_API_KEYS_FILE=str(tmp_path / "keys")))["keys"]

    assert (found.state, words in found.detail) == (state, True), found
    assert found.advice or state == "ok"


async def test_an_address_of_redis_that_is_none_is_a_line_without_its_password(engine: MadeUpEngine) -> None:
    found = await engine.diagnoses(SANDBOX_REDIS_URL="redis://:hunter2@host:port/0")

    assert found["redis"].state == "missing"
    assert "hunter2" not in str(found)
    assert found["redis"].advice


async def test_a_redis_that_is_away_is_a_warning_with_advice(engine: MadeUpEngine) -> None:
    found = await engine.diagnoses(SANDBOX_REDIS_URL="redis://127.0.0.1:1/0")

    assert (found["redis"].state, bool(found["redis"].advice)) == ("warning", True)


async def test_a_drain_that_cuts_runs_short_is_a_warning(engine: MadeUpEngine) -> None:
    found = await engine.diagnoses(SANDBOX_TIMEOUT="1m")

    assert (found["settings"].state, bool(found["settings"].advice)) == ("warning", True)
    assert found["engine"].state == "ok"


async def test_the_first_line_has_the_version_and_the_settings_that_do_not_go_together(engine: MadeUpEngine) -> None:
    """SECURITY.md asks whoever reports something for what the doctor prints."""
    found = (await engine.diagnoses(SANDBOX_MAX_CONTAINERS="2", SANDBOX_TIMEOUT="1m"))["settings"]

    assert found.detail.startswith(f"sandbox_svc {__version__} serves python ")
    assert found.state == "warning"
    for name in ("SANDBOX_MAX_CONTAINERS", "SANDBOX_DRAIN_TIMEOUT"):
        assert name in found.detail


async def test_certificates_that_cannot_be_used_are_named_with_the_reason(tmp_path: Path) -> None:
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_text("no certificate\n")
    environ = {"DOCKER_HOST": "tcp://127.0.0.1:1", "DOCKER_CERT_PATH": str(tmp_path)}

    found = {diagnosis.subject: diagnosis async for diagnosis in examine(environ)}["engine"]

    assert found.state == "missing"
    assert "DOCKER_CERT_PATH" in found.detail
    assert "NO_CERTIFICATE" in found.detail


async def test_wrong_settings_are_named_and_end_it() -> None:
    output = io.StringIO()

    assert await doctor.main({"SANDBOX_PORT": "http"}, output) == 1
    assert output.getvalue().startswith("missing  settings: SANDBOX_PORT=")


async def test_only_what_is_missing_makes_the_exit_code_1(engine: MadeUpEngine) -> None:
    environ = {"DOCKER_HOST": f"unix://{engine.socket}", "SANDBOX_LANGUAGES": "python"}
    engine.info["SwapLimit"] = False
    async with engine.answering():
        assert await doctor.main(environ, io.StringIO()) == 0
        assert await doctor.main(environ | {"SANDBOX_LANGUAGES": "cobol"}, io.StringIO()) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda engine: setattr(engine, "api_version", "1.40"), r"speaks API 1\.40; 1\.41 is needed"),
        (without(PidsLimit=False), "does not enforce PidsLimit"),
        (without(Runtimes={}), "no runtime 'runc'"),
    ],
)
async def test_what_the_doctor_calls_missing_keeps_the_service_from_starting(
    engine: MadeUpEngine, change: Callable[[MadeUpEngine], None], words: str
) -> None:
    change(engine)
    async with engine.answering():
        client = Engine(f"unix://{engine.socket}")
        try:
            with pytest.raises(RuntimeUnavailable, match=words):
                await client.facts("auto")
        finally:
            await client.close()

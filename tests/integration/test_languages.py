"""Languages and profiles that are folders under images/ and nothing else, over real HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox_svc.client import Answer, Client, Refused
from tests.hostile.harness import Service, running
from tests.integration.conftest import docker, why_no_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
]

ROOT = Path(__file__).parents[2]
LANGUAGES = ("bash", "typescript", "python", "python-office")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(
        tmp_path_factory.mktemp("languages"), "runc", SANDBOX_LANGUAGES=",".join(LANGUAGES), SANDBOX_ANALYSIS="standard"
    ) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{service.port}") as client:
        yield client


def test_no_source_names_them():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))

    for name in ("bash", "typescript", "office"):
        assert f'"{name}"' not in sources


def test_examples_of_the_images_run(client, service):
    infos = json.loads(service.get("/v1/languages").body)["languages"]

    assert [info["name"] for info in infos] == list(LANGUAGES)
    for info in infos:
        answer = client.run(
            info["example"]["code"], language=info["name"], arguments=info["example"]["arguments"], artifacts=["*"]
        )
        assert answer.outcome == "success", answer
        assert answer.value and answer.artifacts and "Hello world" in answer.stdout
        assert answer.memory_kb > 1000
        assert info["version"] and info["packages"]


class Case:
    """What a program does and what is said of it."""

    def __init__(self, language: str, source: str, arguments: Any = None, **fields: Any) -> None:
        self.language, self.source, self.arguments, self.fields = language, source, arguments, fields

    def run(self, client: Client, **options: Any) -> Answer:
        return client.run(self.source, language=self.language, arguments=self.arguments, **options)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case("bash", "main() { cat >&3; }", {"a": "x" * 100_000, "b": [1.5, None]}, value=...), ("success", 0)),
        (Case("bash", "main() { echo out; }", value=None), ("success", 0)),
        (Case("bash", "main() { return 7; }"), ("program_error", 7)),
        (Case("bash", "main() { exit 4; }"), ("program_error", 4)),
        (Case("bash", "set -e\nmain() { false; echo no; }", stdout=""), ("program_error", 1)),
        (Case("bash", "main() { echo nope >&3; }", error="ResultError"), ("program_error", 1)),
        (Case("bash", "other() { :; }", error="Error"), ("program_error", 1)),
        (Case("bash", "main() {\n  if\n}"), ("program_error", 1)),
        (Case("bash", "main() { kill -9 $$; }"), ("signalled", None)),
        (Case("bash", "main() { head -c 2000000 /dev/zero | tr '\\0' 1 >&3; }"), ("output_limit", None)),
        (Case("typescript", "function main({n}: {n: number}): number { return n * 2 }", {"n": 21}, value=42), ("success", 0)),
        (
            Case("typescript", "import fs from 'node:fs';\nexport const main = (): string => typeof fs.statSync;", value="function"),
            ("success", 0),
        ),
        (
            Case("typescript", "const x: number = await Promise.resolve(4);\nexport function main(): number { return x }", value=4),
            ("success", 0),
        ),
        (Case("typescript", "type A = 1;\nfunction main(): A {\n  throw new RangeError('no');\n}", error="RangeError", line=3), ("program_error", 1)),
        (Case("typescript", "const a: number = 1;\nenum E { A }\nfunction main() {}", error="SyntaxError", line=2), ("program_error", 1)),
        (Case("typescript", "function main(a: {x: number}): undefined { return undefined }", error="Error"), ("program_error", 1)),
        (Case("python-office", "import openpyxl\ndef main(): return openpyxl.__version__", value="3.1.5"), ("success", 0)),
        (Case("python3-office", "import pandas, openpyxl\ndef main(): return 1", value=1), ("success", 0)),
        (Case("python", "import openpyxl\ndef main(): return 1", error="ModuleNotFoundError"), ("program_error", 1)),
    ],
    ids=lambda value: f"{value.language}-{value.source[:24]!r}" if isinstance(value, Case) else "",
)  # fmt: skip
def test_programs(client, case, expected):
    answer = case.run(client)

    assert (answer.outcome, answer.exit_code) == expected, answer
    fields = case.fields
    if "value" in fields:
        assert answer.value == (case.arguments if fields["value"] is ... else fields["value"])
    if "error" in fields:
        assert answer.error is not None and answer.error.type == fields["error"]
    if "line" in fields:
        assert answer.error.line == fields["line"]
    if "stdout" in fields:
        assert answer.stdout == fields["stdout"]


def test_bash_scripts_are_just_run(client):
    answer = client.run('echo "$0 $1|$2"; cat; exit 3', language="bash", script=True, stdin="in", args=["a", "b c"])

    assert (answer.exit_code, answer.stdout) == (3, "main.sh a|b c\nin")
    stopped = client.run("sleep 20", language="bash", script=True, limits={"wall_ms": 300})
    assert stopped.outcome == "time_limit"


def test_typescript_finds_its_files(client):
    answer = client.run(
        "import { twice } from './lib/twice.ts';\nexport function main(n: object): number { return twice(21) }",
        language="typescript",
        files={"lib/twice.ts": "export function twice(n: number): number { return n * 2 }"},
    )

    assert answer.value == 42


def test_a_profile_is_named_beside_its_language(client):
    answer = client.run("import openpyxl\ndef main(): return 1", profile="office")

    assert (answer.language, answer.value) == ("python-office", 1)
    with pytest.raises(Refused, match="unknown_language: profile must be one of office"):
        client.run("def main(): return 1", profile="unknown")


def test_profiles_can_be_discovered(client):
    infos = {info.name: info for info in client.languages()}

    assert {name: (info.base, info.profile) for name, info in infos.items()} == {
        "bash": ("bash", None),
        "typescript": ("typescript", None),
        "python": ("python", None),
        "python-office": ("python", "office"),
    }


def test_a_profile_keeps_what_its_language_brings(service):
    packages = {
        info["name"]: {one["name"]: one["version"] for one in info["packages"]}
        for info in json.loads(service.get("/v1/languages").body)["languages"]
    }

    assert packages["python"].items() < packages["python-office"].items()
    assert packages["python-office"].keys() - packages["python"].keys() == {"openpyxl", "et_xmlfile"}
    label = docker(
        "image", "inspect", "--format", '{{index .Config.Labels "sandbox_svc.profile"}}', "sandbox-svc/python-office"
    )
    assert label.stdout.strip() == "office"


def test_output_of_bash_is_live(client):
    seen: list[str] = []
    client.run(
        "main() { echo one; sleep 0.5; echo two; }", language="bash", on_output=lambda _, text: seen.append(text)
    )

    assert seen == ["one\n", "two\n"]

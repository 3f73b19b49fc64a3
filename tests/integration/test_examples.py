"""The examples in the documents do what stands there, over real HTTP and in real containers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.hostile.harness import Service
from tests.integration.conftest import docker, why_no_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
]

DOCS = Path(__file__).parents[2] / "docs"
URL = "http://127.0.0.1:9385"


class Example(NamedTuple):
    """A program of a document and what it should print; `...` stands for any text."""

    document: str
    number: int
    kind: str
    source: str
    expected: str


def examples() -> Iterator[Example]:
    for name in ("client.md", "languages.md"):
        text = (DOCS / name).read_text(encoding="utf-8")
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for number, (kind, body) in enumerate(blocks):
            following = blocks[number + 1] if number + 1 < len(blocks) else ("", "")
            if kind == "python":
                yield Example(name, number, kind, body, following[1] if following[0] == "text" else "")
            elif kind == "console":
                commands = "".join(line[2:] + "\n" for line in body.splitlines() if line.startswith("$ "))
                output = "".join(line + "\n" for line in body.splitlines() if not line.startswith("$ "))
                yield Example(name, number, kind, commands, output)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Every language whose image is there."""
    names = docker("images", "--filter", "label=sandbox_svc.language", "--format", "{{.Repository}}").stdout.split()
    languages = sorted({name.removeprefix("sandbox-svc/") for name in names if name.startswith("sandbox-svc/")})
    service = Service(
        tmp_path_factory.mktemp("examples"),
        "runc",
        SANDBOX_LANGUAGES=",".join(languages),
        SANDBOX_ANALYSIS="standard",
        SANDBOX_TIMEOUT="10s",
    )
    try:
        service.start()
        yield service
    finally:
        service.stop()


@pytest.mark.parametrize("example", list(examples()), ids=lambda one: f"{one.document}-{one.number}")
def test_an_example_does_what_it_says(example, service, tmp_path):
    url = f"http://127.0.0.1:{service.port}"
    source = example.source.replace(URL, url)
    program = [sys.executable, "-c", source] if example.kind == "python" else ["bash", "-c", source]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    done = subprocess.run(
        program,
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "SANDBOX_CLIENT_URL": url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    pattern = re.escape(example.expected).replace(r"\.\.\.", ".*")
    assert re.fullmatch(pattern, done.stdout, re.DOTALL), done.stdout + done.stderr
    assert done.stderr == ""

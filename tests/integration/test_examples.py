"""The examples in the documents do what stands there, over real HTTP and in real containers."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.hostile.harness import Service, running
from tests.integration.conftest import docker, why_no_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
]

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/api.md", "docs/client.md", "docs/languages.md")
ADDRESS = "127.0.0.1:9385"
CHANGING = (r'"run_id":"[0-9a-f]{16}"', r'"version":"[0-9.]+"')
"""What is another one each time, or with each image; a document shows one of them."""


class Example(NamedTuple):
    """A program or a request of a document and what should come of it; `...` stands for any text."""

    document: str
    number: int
    kind: str
    source: str
    expected: str

    @property
    def pattern(self) -> str:
        text = re.escape(self.expected.removesuffix("\n"))
        for pattern in CHANGING:
            for one in re.findall(pattern, self.expected):
                text = text.replace(re.escape(one), pattern)
        return text.replace(r"\.\.\.", ".*") + r"\n?"


def console(body: str) -> tuple[str, str]:
    """The commands of a block, but for those of make, and what they print."""
    commands, output = [], []
    is_going_on = False
    for line in body.splitlines(keepends=True):
        if is_going_on or line.startswith("$ "):
            commands.append(line if is_going_on else line[2:])
            is_going_on = line.endswith("\\\n")
        else:
            output.append(line)
    return "".join(one for one in commands if not one.startswith("make ")), "".join(output)


def examples() -> Iterator[Example]:
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for number, (kind, body) in enumerate(blocks):
            following = blocks[number + 1] if number + 1 < len(blocks) else ("", "")
            if kind == "python":
                yield Example(name, number, kind, body, following[1] if following[0] == "text" else "")
            elif kind == "console":
                yield Example(name, number, kind, *console(body))
            elif kind == "json" and '"code"' in body:
                request = f"curl -s {ADDRESS}/v1/run -d {shlex.quote(body)}\n"
                yield Example(name, number, kind, request, '...,"outcome":"success",...')


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Every language whose image is there."""
    names = docker("images", "--filter", "label=sandbox_svc.language", "--format", "{{.Repository}}").stdout.split()
    found = {name.removeprefix("sandbox-svc/") for name in names if name.startswith("sandbox-svc/")}
    languages = ["python", "nodejs", *sorted(found - {"python", "nodejs"})]
    with running(
        tmp_path_factory.mktemp("examples"),
        "runc",
        SANDBOX_LANGUAGES=",".join(languages),
        SANDBOX_ANALYSIS="standard",
        SANDBOX_TIMEOUT="10s",
    ) as service:
        yield service


EXAMPLES = list(examples())


def test_every_document_has_examples():
    assert {example.document for example in EXAMPLES} == set(DOCUMENTS)
    # One that any text satisfies shows nothing.
    assert [example for example in EXAMPLES if not example.expected.strip(". \n")] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda one: f"{Path(one.document).name}-{one.number}")
def test_an_example_does_what_it_says(example, service, tmp_path):
    if "curl " in example.source and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    address = f"127.0.0.1:{service.port}"
    source = example.source.replace(ADDRESS, address)
    program = [sys.executable, "-c", source] if example.kind == "python" else ["bash", "-c", source]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    done = subprocess.run(
        program,
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "SANDBOX_CLIENT_URL": f"http://{address}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert re.fullmatch(example.pattern, done.stdout, re.DOTALL), done.stdout + done.stderr
    assert done.stderr == ""

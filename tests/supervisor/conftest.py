"""Runs the supervisor as a plain process in folders of its own, so that it is tested without an engine."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import pathlib
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import msgspec
import pytest

from sandbox_svc.runtime.protocol import (
    Configure,
    Frame,
    FrameReader,
    FrameType,
    Ready,
    ResultHead,
    RunHead,
    encode_frame,
)

IMAGES = pathlib.Path(__file__).parents[2] / "images"
SYSTEM_PYTHON = "/usr/bin/python3"
MIB = 1024 * 1024


_libc = ctypes.CDLL(None)
PR_SET_CHILD_SUBREAPER = 36


def _become_reaper() -> None:
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)


class Answer(msgspec.Struct):
    """One RESULT, taken apart."""

    head: ResultHead
    result: bytes | None
    stdout: bytes
    stderr: bytes
    artifacts: dict[str, bytes]
    streamed: bytes = b""


class SupervisorProcess:
    """A supervisor and the service's end of its stream."""

    def __init__(
        self,
        root: pathlib.Path,
        *,
        language: str = "python",
        uid_count: int = 1000,
        templates: tuple[str, ...] = ("plain",),
    ) -> None:
        self.root = root
        for name in ("workspace", "tmp", "shm"):
            (root / name).mkdir()
        root.chmod(0o711)  # user processes are somebody else
        supervisor, runner = root / "supervisor", root / "runner"
        shutil.copytree(IMAGES / "supervisor", supervisor, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(IMAGES / language / "runner", runner, ignore=shutil.ignore_patterns("__pycache__"))
        manifest = (IMAGES / language / "manifest.json").read_text().replace("/opt/sandbox/runner", str(runner))
        if language == "python":
            more = {"name": "more", "preload": ["decimal", "fractions"]}
            more |= {
                "warm": "import decimal; decimal.warmed = True",
                "touch": "import decimal, sys; decimal.touched = set(sys.modules)",
            }
            manifest = json.dumps(json.loads(manifest) | {"templates": [{"name": "plain"}, more]})
        (root / "manifest.json").write_text(manifest)
        (root / "packages.json").write_text(json.dumps({"version": "3", "packages": [{"name": "a", "version": "1"}]}))
        self.layout = {
            "manifest": f"{root}/manifest.json",
            "packages": f"{root}/packages.json",
            "runner": f"{runner}",
            "supervisor": f"{supervisor}",
            "python": SYSTEM_PYTHON,
            "workspace": f"{root}/workspace",
            "scratch": [f"{root}/tmp", f"{root}/shm"],
            "cgroup": f"{root}/no-cgroup",
            "is_pid_one": False,
        }
        self.process = subprocess.Popen(
            [SYSTEM_PYTHON, "-I", "-S", "-B", f"{supervisor}/__main__.py", json.dumps(self.layout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # Orphans come to it, as to PID 1 of a container. The machine's own init may take seconds to collect them.
            preexec_fn=_become_reaper,  # noqa: PLW1509 - no thread is about that could hold a lock
        )
        self._reader = FrameReader()
        self._frames: list[Frame] = []
        self._ids = itertools.count(1)
        self.last_id = 0
        self.uid_base = 1_500_000_000 + secrets.randbelow(100_000) * 1000
        self.configure = Configure(
            nonce="n-1",
            uid_base=self.uid_base,
            uid_count=uid_count,
            templates=templates,
            memory_bytes=256 * MIB,
            container_bytes=512 * MIB,
            processes=64,
        )

    def start(self) -> Ready:
        """Handshake."""
        self.send(FrameType.CONFIGURE, 0, self.configure)
        assert b'"n-1"' in self.expect(FrameType.HELLO).head
        return self.ready()

    def send(self, kind: FrameType, run_id: int, head: msgspec.Struct | None, *parts: bytes) -> None:
        self.send_bytes(encode_frame(kind, run_id, msgspec.json.encode(head or {}), parts))

    def send_bytes(self, data: bytes) -> None:
        assert self.process.stdin is not None
        while data:
            data = data[self.process.stdin.write(data) :]

    def next(self) -> Frame:
        """The next frame; EOFError when the supervisor ended. pytest's time limit bounds the wait."""
        assert self.process.stdout is not None
        while not self._frames:
            chunk = self.process.stdout.read(1 << 20)
            if not chunk:
                raise EOFError
            self._frames += self._reader.feed(chunk)
        return self._frames.pop(0)

    def expect(self, kind: FrameType) -> Frame:
        frame = self.next()
        assert (kind, frame.head) == (frame.type, frame.head)
        return frame

    def ready(self) -> Ready:
        return msgspec.json.decode(self.expect(FrameType.READY).head, type=Ready)

    def begin(self, code: str | bytes, arguments: object = None, *parts: bytes, **head: object) -> int:
        """Send a RUN frame; `parts` are stdin and files, as the head announces them."""
        self.last_id = next(self._ids)
        source = code.encode() if isinstance(code, str) else code
        encoded = json.dumps({} if arguments is None else arguments).encode()
        fields: dict[str, object] = {
            "template": "plain",
            "call_main": True,
            "source_bytes": len(source),
            "arguments_bytes": len(encoded),
            "wall_ms": 10_000,
            "output_bytes": MIB,
            "result_bytes": MIB,
        }
        run_head = RunHead(**(fields | head))  # type: ignore[arg-type]
        self.send(FrameType.RUN, self.last_id, run_head, source, encoded, *parts)
        return self.last_id

    def answer(self) -> Answer:
        """Collect frames up to the RESULT of the last run."""
        artifacts: dict[str, bytes] = {}
        streamed = b""
        while True:
            frame = self.next()
            assert frame.run_id == self.last_id
            if frame.type == FrameType.ARTIFACT:
                artifacts[json.loads(frame.head)["name"]] = frame.body
            elif frame.type == FrameType.OUTPUT:
                streamed += frame.body
            else:
                assert (FrameType.RESULT, frame.head) == (frame.type, frame.head)
                break
        head = msgspec.json.decode(frame.head, type=ResultHead)
        at = head.result_bytes or 0
        return Answer(
            head=head,
            result=None if head.result_bytes is None else frame.body[:at],
            stdout=frame.body[at : at + head.stdout_bytes],
            stderr=frame.body[at + head.stdout_bytes :],
            artifacts=artifacts,
            streamed=streamed,
        )

    def run(self, code: str | bytes, arguments: object = None, *parts: bytes, **head: object) -> Answer:
        """Run a program and wait until the sandbox is ready again."""
        self.begin(code, arguments, *parts, **head)
        answer = self.answer()
        self.ready()
        return answer

    def user_processes(self) -> list[int]:
        """Live processes of this sandbox's uids."""
        uids = range(self.uid_base, self.uid_base + self.configure.uid_count)
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.stat(f"/proc/{name}").st_uid in uids:
                    found.append(int(name))
            except FileNotFoundError:
                continue
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.stdout.close()
            for pid in self.user_processes():
                os.kill(pid, 9)


@pytest.fixture(scope="module")
def sandboxes() -> Iterator[pathlib.Path]:
    """Not below pytest's folders: those are private to root, and every session that starts makes them so again."""
    with tempfile.TemporaryDirectory(prefix="sandboxes-") as folder:
        path = pathlib.Path(folder)
        path.chmod(0o711)
        yield path


def new_root(sandboxes: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp(dir=sandboxes))


@pytest.fixture
def fresh_supervisor(sandboxes: pathlib.Path) -> Iterator[SupervisorProcess]:
    """A supervisor that was not configured yet."""
    if os.getuid() != 0:
        pytest.skip("the supervisor changes uids, which takes root")
    supervisor = SupervisorProcess(new_root(sandboxes))
    yield supervisor
    supervisor.close()


@pytest.fixture(scope="module")
def supervisor(sandboxes: pathlib.Path) -> Iterator[SupervisorProcess]:
    """One supervisor for a whole module: every test also shows that it survived the ones before."""
    if os.getuid() != 0:
        pytest.skip("the supervisor changes uids, which takes root")
    supervisor = SupervisorProcess(new_root(sandboxes))
    supervisor.start()
    yield supervisor
    supervisor.close()

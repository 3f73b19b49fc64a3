"""A container engine of the tests' own, to be broken: own socket, data and control groups; never the machine's."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.integration.conftest import docker

START_SECONDS = 60
STOP_SECONDS = 40


class OwnEngine:
    """dockerd with everything of it in one folder, its data on a tmpfs that a test can fill up."""

    def __init__(self, *arguments: str, size: str = "3g") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="own-engine-"))
        self.host = f"unix://{self.folder}/s"
        self.data = self.folder / "data"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.data.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.data)], check=True, timeout=20)

    @staticmethod
    def why_not() -> str:
        """Say why none can be started here; empty when one can."""
        if os.geteuid() != 0:
            return "an engine of its own needs root"
        return "" if shutil.which("dockerd") else "dockerd is not installed"

    def start(self, *arguments: str) -> None:
        """Start it, or start it again, and wait until it answers."""
        config = self.folder / "daemon.json"
        config.write_text("{}")
        # fmt: off
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    # In a network of its own: an engine without a bridge deletes the docker0 it finds, which would be
                    # the one of the machine's engine.
                    "unshare", "--net",
                    "dockerd", "--config-file", str(config), "--data-root", str(self.data),
                    "--exec-root", str(self.folder / "exec"), "--pidfile", str(self.folder / "pid"),
                    "--host", self.host, "--bridge", "none", "--iptables=false", "--ip-masq=false",
                    "--cgroup-parent", f"/{self.folder.name}", "--shutdown-timeout", "5",
                    *self._arguments, *arguments,
                ],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )
        # fmt: on
        deadline = time.monotonic() + START_SECONDS
        while self.docker("version", check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text()[-3000:])
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def revive(self) -> None:
        """Have it answer again, whatever a test that failed left it in."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
        else:
            self.start()
        (self.data / "filler").unlink(missing_ok=True)

    def docker(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return docker("--host", self.host, *arguments, check=check)

    def load(self, *images: str) -> None:
        """Copy images of the machine's engine."""
        with subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE) as save:
            subprocess.run(
                ["docker", "--host", self.host, "load", "--quiet"],
                stdin=save.stdout,
                check=True,
                timeout=180,
                stdout=subprocess.DEVNULL,
            )

    def build(self, tag: str, *lines: str, labels: Mapping[str, str] | None = None) -> str:
        """Build an image of lines that need no network; return its id."""
        options = [word for name, value in (labels or {}).items() for word in ("--label", f"{name}={value}")]
        with tempfile.TemporaryDirectory() as context:
            (Path(context) / "Dockerfile").write_text("\n".join(lines))
            return self.docker("build", "--quiet", "--tag", tag, *options, context).stdout.strip()

    def terminate(self) -> None:
        """End it as a package upgrade does; it stops its containers unless it keeps them alive (live-restore)."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """End it as the kernel does when memory is short; what it started lives on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)
        # Its containerd dies with it. Where nobody reaps that one, the next engine takes the corpse for a living one.
        (self.folder / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """Not a page is left where containers are made; what one gives back when it goes is taken at once."""
        filler = self.data / "filler"
        is_over = threading.Event()

        def fill() -> None:
            with filler.open("ab", buffering=0) as file:
                for piece in (bytes(1 << 20), bytes(4096)):
                    with contextlib.suppress(OSError):
                        while not is_over.is_set():
                            file.write(piece)

        def keep_full() -> None:
            while not is_over.wait(0.002):
                fill()

        fill()
        thread = threading.Thread(target=keep_full, name="filler")
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            filler.unlink()

    @contextlib.contextmanager
    def no_inodes(self) -> Iterator[None]:
        """There is room for bytes where containers are made, and for not one more file; what one gives back is taken too."""

        def allow(inodes: int) -> None:
            command = ["mount", "-o", f"remount,nr_inodes={inodes}", str(self.data)]
            subprocess.run(command, check=True, capture_output=True, timeout=20)

        status = os.statvfs(self.data)
        filler = self.data / "files"
        filler.mkdir()
        allow(status.f_files - status.f_ffree + 1000)
        is_over = threading.Event()

        def keep_full() -> None:
            number = 0
            while not is_over.wait(0.001):
                with contextlib.suppress(OSError):
                    while not is_over.is_set():
                        (filler / str(number)).touch()
                        number += 1

        thread = threading.Thread(target=keep_full, name="filler")
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            allow(status.f_files)
            shutil.rmtree(filler)

    def close(self) -> None:
        """End it and everything that it started, by their pids, and leave no mount and no file."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            with contextlib.suppress(subprocess.SubprocessError):
                listed = self.docker("ps", "-aq", check=False).stdout.split()
                if listed:
                    self.docker("rm", "--force", *listed, check=False)
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        for pid in self._descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(str(self.folder))), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False, timeout=20)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _descendants(self) -> list[int]:
        """Processes whose command line names our folder, such as containerd and its shims, whoever their parent is now."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if f"{self.folder}/".encode() in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return found

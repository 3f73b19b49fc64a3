"""Where things are in the image, and the manifest; tests run the same code on folders of their own."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

MAX_PATH_PARTS = 256


class Layout(NamedTuple):
    """Paths of one sandbox. `is_pid_one` is False only where the supervisor is tested outside a container."""

    manifest: str = "/opt/sandbox/manifest.json"
    packages: str = "/opt/sandbox/packages.json"
    runner: str = "/opt/sandbox/runner"
    supervisor: str = "/opt/sandbox/supervisor"
    python: str = "/usr/bin/python3"
    workspace: str = "/workspace"
    scratch: tuple[str, ...] = ("/tmp", "/dev/shm")
    cgroup: str = "/sys/fs/cgroup"
    is_pid_one: bool = True

    @property
    def artifacts(self) -> str:
        return self.workspace + "/artifacts"


class Template(NamedTuple):
    """What a template holds ready; the two sources are ours, run in a namespace that is thrown away."""

    preload: tuple[str, ...] = ()
    """Modules that it imports."""
    warm: str = ""
    """Run once in the template: fills caches and brings in what its modules import late."""
    touch: str = ""
    """Run in every process before it parks: takes the page faults of a first use out of the run. Costs no more than it
    saves where programs do the same, so it should be what nearly all programs of the template do."""


class Manifest(NamedTuple):
    """The supervisor's part of `manifest.json`."""

    source_name: str
    runner_kind: str
    runner_argv: tuple[str, ...]
    templates: dict[str, Template]
    env: dict[str, str]


def checked_path(path: str) -> str:
    """Return a path that stays below the folder it is relative to, as written. Raises `ValueError`."""
    parts = path.split("/")
    if not 0 < len(parts) <= MAX_PATH_PARTS or any(
        p in ("", ".", "..") or len(p.encode()) > 255 or "\0" in p for p in parts
    ):
        raise ValueError("unsafe path")
    return path


def read_manifest(layout: Layout) -> Manifest:
    """Read the image's manifest. Raises `OSError`, `ValueError` or `KeyError` for an image that was built wrong."""
    with open(layout.manifest, "rb") as file:
        raw: dict[str, Any] = json.load(file)
    runner = raw["runner"]
    kind = runner["kind"]
    if kind not in ("python", "exec"):
        raise ValueError(f"unknown runner kind {kind!r}")
    env = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": layout.workspace,
        "TMPDIR": layout.scratch[0],
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        # The library folders are read-only; a program's own modules need no bytecode on disk.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return Manifest(
        source_name=raw["source_name"],
        runner_kind=kind,
        runner_argv=tuple(runner.get("argv", ())),
        templates={
            t["name"]: Template(tuple(t.get("preload", ())), t.get("warm", ""), t.get("touch", ""))
            for t in raw["templates"]
        },
        env=env | raw.get("env", {}),
    )

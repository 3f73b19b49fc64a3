"""The writable places of a sandbox: files of a request go in, artifacts come out, and then they are empty again."""

from __future__ import annotations

import contextlib
import errno
import json
import os

from supervisor import frames, reset
from supervisor.artifacts import Collection
from supervisor.fault import Fault
from supervisor.layout import Layout
from supervisor.outbox import Outbox
from supervisor.run import RunRequest

ARTIFACT_CHUNK = 256 * 1024


class Workspace:
    """Used between runs only: a program is about in none of this."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._checks_ipc = layout.is_pid_one and not reset.has_seccomp()

    def place(self, request: RunRequest, uid: int) -> None:
        """Give the working directory to `uid`, with the files of its request. Raises `OSError` where they do not fit.

        It is empty and no program runs yet, so nothing can be in the way of these paths.
        """
        workspace = self._layout.workspace
        os.chown(workspace, uid, uid)
        os.chown(self._layout.artifacts, uid, uid)
        for path, content in request.files:
            folder = workspace
            *parents, name = path.split("/")
            for part in parents:
                folder += "/" + part
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, 0o755)
                    os.chown(folder, uid, uid)
            with open(f"{folder}/{name}", "wb", buffering=0) as file:
                os.fchown(file.fileno(), uid, uid)
                if file.write(content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def has_artifacts(self) -> bool:
        try:
            with os.scandir(self._layout.artifacts) as entries:
                return next(entries, None) is not None
        except OSError:
            return False  # removed or replaced by something else

    def send_artifacts(self, request: RunRequest, uid: int, outbox: Outbox) -> int:
        """Send what a dead program left to be collected; return how many files were not. Raises `Fault`."""
        collection = Collection(self._layout.artifacts, uid, request.artifact_globs)
        for file in collection.files():
            head = json.dumps({"name": file.name}).encode()
            outbox.write(frames.header(frames.ARTIFACT, request.id, len(head), file.size) + head)
            left = file.size
            while left:
                chunk = os.read(file.fd, min(left, ARTIFACT_CHUNK))
                if not chunk:
                    raise Fault("artifact_changed")
                left -= len(chunk)
                outbox.write(chunk)
        return collection.skipped

    def wipe(self, deadline: float) -> None:
        """Empty it all and verify. Raises `Fault`, also after `deadline` (monotonic seconds)."""
        with contextlib.suppress(OSError):
            # Few programs leave anything there; what is not an empty folder goes with all the rest.
            os.rmdir(self._layout.artifacts)
        reset.wipe(self._layout.workspace, mode=0o755, deadline=deadline)
        for folder in self._layout.scratch:
            reset.wipe(folder, mode=0o1777, deadline=deadline)
        os.mkdir(self._layout.artifacts, 0o755)
        if self._checks_ipc and reset.has_ipc_objects():
            raise Fault("ipc_left")

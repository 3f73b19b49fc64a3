"""What a forked process does before it may see a request: become nobody, take limits, say that it is parked."""

from __future__ import annotations

import os
import resource
import signal
from typing import NoReturn

from supervisor import channel
from supervisor.layout import Manifest

RESULT_FD = 3
PROGRAM_FD = 4
MAX_OPEN_FILES = 1024
LAST_WORDS_SIGNAL = 64
"""SIGRTMAX, which nobody uses: the runner of Python gives away the output it holds back, and ends itself."""


def become_user(uid: int, fds: list[int], workspace: str, processes: int) -> None:
    """Drop everything a user process must not have; the order matters, the uid goes last.

    `fds` are stdin, stdout, stderr, result and program ends of fresh pipes, all above `PROGRAM_FD`.
    """
    for target, fd in enumerate(fds):
        os.dup2(fd, target, inheritable=target <= 2)
    # The template keeps few descriptors; whatever a library opened in it is closed here with them.
    os.closerange(PROGRAM_FD + 1, MAX_OPEN_FILES)
    # A session of its own: no signal of the program to its process group reaches anything of ours.
    os.setsid()
    os.umask(0o022)
    os.chdir(workspace)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    try:
        # Short of memory, the kernel takes a user process and not the supervisor.
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(b"1000")
    except OSError:
        pass  # gVisor has no such file and no such choice
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (uid, uid, uid) or os.getgroups():
        os._exit(111)


def exec_runner(manifest: Manifest, *, heap_mb: int) -> NoReturn:
    """Replace this process with the runner of a language that is not preloaded; it reports PARKED itself."""
    os.set_inheritable(RESULT_FD, True)
    os.set_inheritable(PROGRAM_FD, True)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    argv = [word.replace("{heap_mb}", str(heap_mb)) for word in manifest.runner_argv]
    os.execve(argv[0], argv, manifest.env)


def read_program() -> bytes:
    """Say that this process is parked, then wait for the program; returns its message, b"" when none will come."""
    os.write(RESULT_FD, channel.encode(channel.PARKED))
    chunks = []
    # No more than a pipe holds: a larger buffer would be mapped and unmapped for every read.
    while chunk := os.read(PROGRAM_FD, 1 << 16):
        chunks.append(chunk)
    os.close(PROGRAM_FD)
    return b"".join(chunks)

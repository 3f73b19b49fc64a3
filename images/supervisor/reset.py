"""Leave nothing of a run: kill its processes until none is left, empty every writable place, look again."""

from __future__ import annotations

import os
import signal
import stat
import time

from supervisor.fault import Fault


def kill_user(uid: int) -> bool:
    """Send SIGKILL to every process of `uid` at once. Return False when there was none.

    `kill(-1)` walks the process table in the kernel, so it wins against a program that forks while it is killed; a loop
    over pids loses. With real and effective uid set to `uid` the signal reaches no other uid, and saved uid 0 brings
    the privileges back. For these microseconds the program may do to us what it may do to itself: signals do nothing to
    PID 1 of a namespace, limits need the saved uid too, and the rest is what `scheduling` looks at afterwards.
    """
    os.setresuid(uid, uid, 0)
    try:
        os.kill(-1, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.setresuid(0, 0, 0)


def scheduling() -> tuple[int, int, frozenset[int]]:
    """Our nice value, policy and processors: what `kill_user` lets a program of that uid change in passing; the profile
    has no call for more."""
    return os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), frozenset(os.sched_getaffinity(0))


def reap_orphans() -> None:
    """Collect every dead process that was re-parented to us."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def strangers(known: set[int], uids: range, *, is_pid_one: bool) -> bool:
    """Tell whether a process exists that is neither ours nor parked.

    As PID 1 every process in the namespace counts. Outside a container (tests) only the sandbox's own uids do.
    """
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in known:
            continue
        if is_pid_one:
            return True
        try:
            if os.stat(f"/proc/{name}").st_uid in uids:
                return True
        except FileNotFoundError:
            continue
    return False


def wipe(folder: str, *, mode: int, deadline: float) -> None:
    """Empty `folder`, whatever a program left in it, and give it back its owner and mode.

    Runs after every process of the run is dead, so nothing moves underneath. Never follows a link. Folders are
    flattened instead of recursed into: a subfolder is first moved up, so depth costs neither stack nor descriptors.
    Raises `Fault` after `deadline` (monotonic seconds) or when something cannot be removed.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        raise Fault("mount_lost") from None
    try:
        _own(fd, mode)
        _empty(fd, deadline)
        for attribute in _attributes(fd):
            os.removexattr(fd, attribute)
    except OSError:
        raise Fault("wipe_failed") from None
    finally:
        os.close(fd)


def _own(fd: int, mode: int) -> None:
    status = os.fstat(fd)
    if status.st_uid or status.st_gid:
        os.fchown(fd, 0, 0)
    if stat.S_IMODE(status.st_mode) != mode:
        os.fchmod(fd, mode)


def _attributes(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError:
        return []  # this file system has none


def _empty(top: int, deadline: float) -> None:
    """Remove all there is, and return when a look finds nothing."""
    pending = _entries(top)
    if not pending:
        return  # nearly always, so it costs one look and nothing else
    serial = 0
    # Unguessable, so that no name a program left can be in the way.
    prefix = os.urandom(8).hex()
    while pending:
        folders: list[str] = []
        for name, is_folder in pending:
            if is_folder:
                folders.append(name)
            else:
                os.unlink(name, dir_fd=top)
        _check(deadline)
        for name in folders:
            sub = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
            try:
                # Owning it lifts the sticky bit's protection, which DAC_OVERRIDE alone does not.
                _own(sub, 0o700)
                for count, (inner, is_folder) in enumerate(_entries(sub)):
                    if is_folder:
                        serial += 1
                        os.rename(inner, f"{prefix}{serial}", src_dir_fd=sub, dst_dir_fd=top)
                    else:
                        os.unlink(inner, dir_fd=sub)
                    if not count % 256:
                        _check(deadline)
            finally:
                os.close(sub)
            os.rmdir(name, dir_fd=top)
            _check(deadline)
        pending = _entries(top)


def _entries(fd: int) -> list[tuple[str, bool]]:
    # scandir on a descriptor gives str names with surrogate escapes, which go back to the same bytes.
    with os.scandir(fd) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]


def _check(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise Fault("wipe_slow")


def has_seccomp() -> bool:
    """Tell whether a profile of the engine is in force."""
    with open("/proc/self/status") as file:
        return any(line.split() == ["Seccomp:", "2"] for line in file)


def has_ipc_objects() -> bool:
    """Where no seccomp profile forbids System V IPC, its objects outlive processes: then the container is given up."""
    for name in ("shm", "sem", "msg"):
        try:
            with open(f"/proc/sysvipc/{name}", "rb", buffering=0) as file:
                if file.read(4096).count(b"\n") > 1:
                    return True
        except OSError:
            continue
    return False

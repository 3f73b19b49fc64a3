"""The seccomp profile as data: complete, free of contradictions, and the same as the file in images/."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from sandbox_svc.runtime import seccomp

NEVER_ALLOWED = set(
    """
    add_key bpf cachestat chroot clone3 clock_settime delete_module fanotify_init finit_module fsconfig fsmount fsopen
    init_module ioprio_set io_uring_enter io_uring_register io_uring_setup ioperm iopl ipc kcmp kexec_file_load kexec_load keyctl
    mbind memfd_secret modify_ldt mount mount_setattr move_mount mq_open msgget name_to_handle_at open_by_handle_at
    open_tree perf_event_open pidfd_getfd pivot_root process_madvise process_vm_readv process_vm_writev ptrace quotactl
    reboot request_key sched_setattr seccomp semget setdomainname sethostname setns settimeofday shmat shmget socketcall swapoff swapon
    sync syncfs syslog umount umount2 unshare userfaultfd vmsplice
""".split()  # noqa: SIM905 - sixty names read better so
)


def allowed(*, whatever_the_arguments: bool) -> set[str]:
    return {
        name
        for rule in seccomp.profile()["syscalls"]
        for name in rule["names"]
        if rule["action"] == "SCMP_ACT_ALLOW" and (not rule["args"] or not whatever_the_arguments)
    }


def test_the_file_in_images_is_what_the_service_uses() -> None:
    """It is there to be read and for `docker run`; after a change run `python -m sandbox_svc.runtime.seccomp`."""
    file = Path(__file__).parents[2] / "images" / "seccomp.json"
    assert seccomp.profile() == json.loads(file.read_text())


def test_what_hurts_is_not_allowed_under_any_argument() -> None:
    assert allowed(whatever_the_arguments=False) & NEVER_ALLOWED == set()


def test_calls_that_depend_on_their_arguments_are_nowhere_allowed_without_looking() -> None:
    assert allowed(whatever_the_arguments=True) & {"clone", "socket", "personality"} == set()


def test_nothing_kills_and_nothing_is_said_twice() -> None:
    """An unexpected call of a new libc must fail, not end an honest program."""
    rules = seccomp.profile()["syscalls"]
    assert {rule["action"] for rule in rules} == {"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"}
    names = Counter(name for rule in rules if not rule["args"] for name in rule["names"])
    assert {name: count for name, count in names.items() if count > 1} == {}


def test_the_profile_is_small_enough_for_every_create_call() -> None:
    assert len(seccomp.profile_json()) < 16 * 1024

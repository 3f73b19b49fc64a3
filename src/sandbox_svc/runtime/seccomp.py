"""The seccomp profile of every sandbox: what a program may ask of the kernel, and the answer to everything else.

`images/seccomp.json` is what `python -m sandbox_svc.runtime.seccomp` prints, for the eye and for `docker run
--security-opt`.
The reasons are in docs/decisions/0005-seccomp-profile.md.
"""

from __future__ import annotations

import errno
import json
import sys
from typing import Any, Final

# What is in none of these lists fails with EPERM; and with ENOSYS when it is newer than all of them (runc's doing).

ALLOWED: Final[dict[str, str]] = {
    "files": """
        access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
        fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock
        fremovexattr fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr
        inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl lchown lgetxattr link linkat listxattr
        llistxattr lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod mknodat newfstatat open openat openat2
        pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr rename
        renameat renameat2 rmdir sendfile setxattr splice stat statfs statx symlink symlinkat sync_file_range tee
        truncate umask unlink unlinkat utime utimensat utimes write writev
    """,
    "pipes, sockets, waiting": """
        accept accept4 bind connect epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd
        eventfd2 getpeername getsockname getsockopt listen pipe pipe2 poll ppoll pselect6 recvfrom recvmmsg recvmsg
        select sendmmsg sendmsg sendto setsockopt shutdown signalfd signalfd4 socketpair timerfd_create
        timerfd_gettime timerfd_settime
    """,
    "memory": """
        brk madvise membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap mseal msync munlock
        munlockall munmap pkey_alloc pkey_free pkey_mprotect map_shadow_stack
    """,
    "processes and threads": """
        arch_prctl execve execveat exit exit_group fork futex futex_requeue futex_wait futex_waitv futex_wake
        get_robust_list getcpu getpgid getpgrp getpid getppid getpriority getrlimit getrusage getsid gettid
        ioprio_get kill pidfd_open pidfd_send_signal prctl prlimit64 riscv_flush_icache rseq
        sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
        sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setparam sched_setscheduler
        sched_yield set_robust_list set_tid_address setpgid setpriority setrlimit setsid tgkill times tkill vfork wait4
        waitid
    """,
    "signals and time": """
        alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep pause restart_syscall
        rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
        rt_tgsigqueueinfo setitimer sigaltstack time timer_create timer_delete timer_getoverrun timer_gettime
        timer_settime
    """,
    "identity; the supervisor drops it, a program has none to change": """
        capget capset getegid geteuid getgid getgroups getresgid getresuid getuid setfsgid setfsuid setgid setgroups
        setregid setresgid setresuid setreuid setuid
    """,
    "the machine, and giving up rights": """
        getrandom landlock_add_rule landlock_create_ruleset landlock_restrict_self sysinfo uname
    """,
}

ABSENT: Final[dict[str, str]] = {
    # Answered as a kernel without the feature would, because libraries probe for these and know what to do then.
    "clone3 hides its flags in memory; libc then uses clone, whose flags can be seen": "clone3",
    "System V IPC and message queues outlive the run that made them": """
        mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl
        semget semop semtimedop shmat shmctl shmdt shmget
    """,
    "keyrings belong to the kernel's user, not to the container": "add_key keyctl request_key",
    "large and young attack surface, and a way around this filter": "io_uring_enter io_uring_register io_uring_setup",
    "nobody's, and often the way in": """
        cachestat io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit memfd_secret modify_ldt
        process_madvise process_mrelease remap_file_pages seccomp userfaultfd vmsplice
    """,
}

_NEW_NAMESPACES: Final = 0x7E02_0000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
_PERSONALITIES: Final = (0, 0xFFFF_FFFF)
"""The plain one, and the question which is set."""

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_INTERNET_PROTOCOLS: Final = (0, 6, 17)
"""By type, TCP, UDP. Others (SCTP, DCCP, ...) would make the kernel load their module."""
_NETLINK_ROUTE: Final = 0
"""What libc and node list interfaces with."""
_NETLINK_NETFILTER: Final = 12
"""For the filter of a sandbox that has a network: for the container that sets it, and no other."""


def _when(*conditions: tuple[int, int], op: str = "SCMP_CMP_EQ") -> list[dict[str, Any]]:
    return [{"index": index, "value": value, "valueTwo": 0, "op": op} for index, value in conditions]


def _allow(names: list[str], args: list[dict[str, Any]]) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW", "args": args}


def profile(*, sets_filter: bool = False) -> dict[str, Any]:
    """Return the profile in the form the engine takes, 20.10 and later."""
    rules = [_allow(sorted(names.split()), []) for names in ALLOWED.values()]
    rules.append(_allow(["clone"], _when((0, _NEW_NAMESPACES), op="SCMP_CMP_MASKED_EQ")))
    rules += [_allow(["personality"], _when((0, value))) for value in _PERSONALITIES]
    rules.append(_allow(["socket"], _when((0, _AF_UNIX))))
    rules += [
        _allow(["socket"], _when((0, family), (2, number)))
        for family in (_AF_INET, _AF_INET6)
        for number in _INTERNET_PROTOCOLS
    ]
    for number in (_NETLINK_ROUTE, _NETLINK_NETFILTER) if sets_filter else (_NETLINK_ROUTE,):
        rules.append(_allow(["socket"], _when((0, _AF_NETLINK), (2, number))))
    rules += [
        {"names": sorted(names.split()), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS, "args": []}
        for names in ABSENT.values()
    ]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        # No 32-bit calls: a second, older way into the kernel that nothing in the images uses.
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": rules,
    }


def profile_json(*, sets_filter: bool = False) -> str:
    """Return the profile as the engine's API takes it: the text itself, in a security option."""
    return json.dumps(profile(sets_filter=sets_filter), separators=(",", ":"))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(profile(), indent=2) + "\n")

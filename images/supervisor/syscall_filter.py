"""A seccomp filter that the supervisor sets for itself and all it starts, where the container came without one.

gVisor ignores the engine's profile unless told otherwise, and its own kernel offers what outlives a run (System V IPC)
or gives a program capabilities inside (user namespaces). What reaches the host's kernel is gVisor's business, so this
is a short list of what must not work, not a list of what may.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any

# By name: (x86-64, arm64).
ABSENT = {
    # Its flags are in memory, where no filter sees them; libc then uses clone.
    "clone3": (435, 435),
    "shmget": (29, 194),
    "shmctl": (31, 195),
    "shmat": (30, 196),
    "shmdt": (67, 197),
    "semget": (64, 190),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "semop": (65, 193),
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182),
    "mq_timedreceive": (243, 183),
    "mq_notify": (244, 184),
    "mq_getsetattr": (245, 185),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "memfd_secret": (447, 447),
}
FORBIDDEN = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
}
_CLONE = (56, 220)
_NEW_NAMESPACES = 0x7E020000
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_CALLS = 0x40000000

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_INSTRUCTION = struct.Struct("HBBI")


def program(machine: str) -> bytes:
    """Return the filter as the kernel takes it, for `x86_64` or `aarch64`. Raises `KeyError` for another machine."""
    arch = _AUDIT_ARCH[machine]
    column = list(_AUDIT_ARCH).index(machine)
    absent = [numbers[column] for numbers in ABSENT.values()]
    forbidden = [numbers[column] for numbers in FORBIDDEN.values()]
    # The answers stand at the end; jumps are counted from the instruction after the jump.
    body: list[tuple[Any, ...]] = [("load", _ARCH), ("unless", arch, "absent"), ("load", _NUMBER)]
    body += [("at least", _X32_CALLS, "absent")] if machine == "x86_64" else []
    body += [("if", number, "absent") for number in absent]
    body += [("if", number, "forbidden") for number in forbidden]
    body += [("unless", _CLONE[column], "allow"), ("load", _FIRST_ARGUMENT), ("any bit", _NEW_NAMESPACES, "forbidden")]
    answers = {"allow": _ALLOW, "absent": _ERRNO | errno.ENOSYS, "forbidden": _ERRNO | errno.EPERM}
    places = {name: len(body) + place for place, name in enumerate(answers)}
    code = []
    for at, (kind, value, *target) in enumerate(body):
        jump = places[target[0]] - at - 1 if target else 0
        match kind:
            case "load":
                code.append(_INSTRUCTION.pack(_LOAD, 0, 0, value))
            case "unless":
                code.append(_INSTRUCTION.pack(_JUMP_EQUAL, 0, jump, value))
            case "if":
                code.append(_INSTRUCTION.pack(_JUMP_EQUAL, jump, 0, value))
            case "at least":
                code.append(_INSTRUCTION.pack(_JUMP_GREATER_EQUAL, jump, 0, value))
            case _:
                code.append(_INSTRUCTION.pack(_JUMP_ANY_BIT, jump, 0, value))
    code += [_INSTRUCTION.pack(_RETURN, 0, 0, answer) for answer in answers.values()]
    return b"".join(code)


def install() -> None:
    """Set the filter for this process and everything it will start; there is no way back. Raises `OSError`."""
    code = program(os.uname().machine)
    memory = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxQ", len(code) // _INSTRUCTION.size, ctypes.addressof(memory))
    buffer = ctypes.create_string_buffer(header, len(header))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(buffer)),
    ):
        if libc.prctl(*map(ctypes.c_ulong, (*arguments, 0, 0))):
            raise OSError(ctypes.get_errno(), "seccomp filter refused")

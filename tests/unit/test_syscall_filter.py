"""The supervisor's own filter, interpreted here instruction by instruction: what it answers to which call."""

from __future__ import annotations

import errno
import struct

import pytest

from supervisor import syscall_filter

ALLOW, ABSENT, FORBIDDEN = 0x7FFF0000, 0x00050000 | errno.ENOSYS, 0x00050000 | errno.EPERM
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def answer(program: bytes, arch: int, number: int, first_argument: int = 0) -> int:
    """Run a classic BPF program on one call, as the kernel would."""
    data = struct.pack("<IIQQ", number, arch, 0, first_argument)
    code = list(struct.iter_unpack("HBBI", program))
    at = value = 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        match operation:
            case 0x20:
                (value,) = struct.unpack_from("<I", data, operand)
            case 0x15:
                at += if_true if value == operand else if_false
            case 0x35:
                at += if_true if value >= operand else if_false
            case 0x45:
                at += if_true if value & operand else if_false
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(f"unknown operation {operation:#x}")


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_named_is_denied_and_nothing_else(machine: str) -> None:
    column, arch = MACHINES[machine]
    program = syscall_filter.program(machine)
    absent = {numbers[column] for numbers in syscall_filter.ABSENT.values()}
    forbidden = {numbers[column] for numbers in syscall_filter.FORBIDDEN.values()}
    for number in range(600):
        expected = ABSENT if number in absent else FORBIDDEN if number in forbidden else ALLOW
        assert answer(program, arch, number) == expected, number


@pytest.mark.parametrize(("machine", "clone"), [("x86_64", 56), ("aarch64", 220)])
def test_clone_may_start_threads_and_processes_but_no_namespaces(machine: str, clone: int) -> None:
    _, arch = MACHINES[machine]
    program = syscall_filter.program(machine)
    assert answer(program, arch, clone, 0x01200011) == ALLOW  # what fork uses
    assert answer(program, arch, clone, 0x003D0F00) == ALLOW  # what pthread_create uses
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert answer(program, arch, clone, 1 << bit) == FORBIDDEN, bit


def test_other_ways_into_the_kernel_are_closed() -> None:
    program = syscall_filter.program("x86_64")
    assert answer(program, 0x40000003, 20) == ABSENT  # 32-bit
    assert answer(program, 0xC000003E, 0x40000000 | 39) == ABSENT  # x32


def test_a_machine_that_nobody_prepared_for_is_an_error() -> None:
    """Better no sandbox than one without its filter."""
    with pytest.raises(KeyError):
        syscall_filter.program("riscv64")

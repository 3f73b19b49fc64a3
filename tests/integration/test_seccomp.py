"""The seccomp profile in force: what a program may not ask of the kernel, and that honest programs never notice."""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import AsyncIterator, Callable

import pytest

from sandbox_svc.runtime import MIB, Program, RunLimits
from sandbox_svc.runtime.docker_runtime import DockerRuntime
from sandbox_svc.runtime.docker_sandbox import DockerSandbox
from supervisor.syscall_filter import ABSENT, FORBIDDEN
from tests.integration.conftest import runtimes, why_no_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of calls are those of x86-64"),
]

HOST = os.environ.get("DOCKER_HOST")
LIMITS = RunLimits(wall_ms=30_000)

EPERM, ENOSYS = errno.EPERM, errno.ENOSYS

# Name: (number, arguments, expected errno). With these arguments every call would reach the kernel's own code and fail
# otherwise (EINVAL, EFAULT, EBADF), or succeed, if the filter let it pass.
DENIED: dict[str, tuple[int, tuple[int, ...], int]] = {
    "mount": (165, (0, 0, 0, 0, 0), EPERM),
    "umount2": (166, (0, 0), EPERM),
    "pivot_root": (155, (0, 0), EPERM),
    "fsopen": (430, (0, 0), EPERM),
    "open_tree": (428, (0, 0, 0), EPERM),
    "mount_setattr": (442, (0, 0, 0, 0, 0), EPERM),
    "unshare(CLONE_NEWUSER)": (272, (0x10000000,), EPERM),
    "unshare(0)": (272, (0,), EPERM),
    "setns": (308, (0, 0), EPERM),
    "clone(CLONE_NEWUSER)": (56, (0x10000000 | 17, 0, 0, 0, 0), EPERM),
    "clone(CLONE_NEWNET)": (56, (0x40000000 | 17, 0, 0, 0, 0), EPERM),
    "clone3": (435, (0, 0), ENOSYS),
    "chroot": (161, (0,), EPERM),
    "bpf": (321, (0, 0, 0), EPERM),
    "perf_event_open": (298, (0, 0, 0, 0, 0), EPERM),
    "ptrace(TRACEME)": (101, (0, 0, 0, 0), EPERM),
    "process_vm_readv": (310, (1, 0, 0, 0, 0, 0), EPERM),
    "process_vm_writev": (311, (1, 0, 0, 0, 0, 0), EPERM),
    "pidfd_getfd": (438, (0, 0, 0), EPERM),
    "kcmp": (312, (1, 1, 0, 0, 0), EPERM),
    "userfaultfd": (323, (0,), ENOSYS),
    "io_uring_setup": (425, (1, 0), ENOSYS),
    "io_uring_enter": (426, (0, 0, 0, 0), ENOSYS),
    "io_setup": (206, (0, 0), ENOSYS),
    "add_key": (248, (0, 0, 0, 0, 0), ENOSYS),
    "request_key": (249, (0, 0, 0, 0), ENOSYS),
    "keyctl": (250, (0, 0, 0, 0, 0), ENOSYS),
    "shmget": (29, (0, 4096, 0o1600), ENOSYS),
    "semget": (64, (0, 1, 0o1600), ENOSYS),
    "msgget": (68, (0, 0o1600), ENOSYS),
    "mq_open": (240, (0, 0, 0, 0), ENOSYS),
    "open_by_handle_at": (304, (0, 0, 0), EPERM),
    "name_to_handle_at": (303, (0, 0, 0, 0, 0), EPERM),
    "kexec_load": (246, (0, 0, 0, 0), EPERM),
    "init_module": (175, (0, 0, 0), EPERM),
    "finit_module": (313, (0, 0, 0), EPERM),
    "reboot": (169, (0, 0, 0, 0), EPERM),
    "settimeofday": (164, (0, 0), EPERM),
    "adjtimex": (159, (0,), EPERM),
    "sethostname": (170, (0, 0), EPERM),
    "swapon": (167, (0, 0), EPERM),
    "acct": (163, (0,), EPERM),
    "syslog": (103, (3, 0, 0), EPERM),
    "iopl": (172, (3,), EPERM),
    "modify_ldt": (154, (0, 0, 0), ENOSYS),
    "personality(ADDR_NO_RANDOMIZE)": (135, (0x40000,), EPERM),
    "seccomp": (317, (0, 0, 0), ENOSYS),
    "memfd_secret": (447, (0,), ENOSYS),
    "vmsplice": (278, (0, 0, 0, 0), ENOSYS),
    "mbind": (237, (0, 0, 0, 0, 0, 0), EPERM),
    "sync": (162, (), EPERM),
    "socket(AF_VSOCK)": (41, (40, 1, 0), EPERM),
    "socket(AF_PACKET)": (41, (17, 3, 0), EPERM),
    "socket(AF_ALG)": (41, (38, 5, 0), EPERM),
    "socket(AF_BLUETOOTH)": (41, (31, 1, 0), EPERM),
    "socket(SCTP)": (41, (2, 1, 132), EPERM),
    "socket(ICMP)": (41, (2, 2, 1), EPERM),
    "socket(NETLINK_NETFILTER)": (41, (16, 3, 12), EPERM),
}

PROBE = """
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
def main(calls):
    answers = {}
    for name, (number, arguments) in calls.items():
        ctypes.set_errno(0)
        value = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
        if value == 0 and number == 56: os._exit(0)
        answers[name] = ctypes.get_errno() if value == -1 else 0
    return answers
"""


@pytest.fixture
async def runtime(instance_id: str, containers: Callable[[], list[str]]) -> AsyncIterator[DockerRuntime]:
    async with DockerRuntime.open(
        memory_bytes=512 * MIB, instance_id=instance_id, runtime="runc", docker_host=HOST
    ) as opened:
        yield opened
    assert containers() == []


@pytest.fixture
async def python(runtime: DockerRuntime) -> DockerSandbox:
    return await runtime.start((await runtime.languages())["python"])


async def test_what_is_denied_fails_with_its_errno_and_kills_nobody(python: DockerSandbox) -> None:
    arguments = json.dumps({"calls": {name: call[:2] for name, call in DENIED.items()}}).encode()
    outcome = await python.run(Program(source=PROBE.encode(), template="plain", arguments=arguments, limits=LIMITS))
    assert outcome.result is not None, outcome
    assert json.loads(outcome.result) == {name: expected for name, (_, _, expected) in DENIED.items()}


async def test_under_gvisor_the_supervisors_own_filter_answers(
    instance_id: str, containers: Callable[[], list[str]]
) -> None:
    """gVisor ignores the profile, and its kernel knows System V IPC and user namespaces."""
    if "runsc" not in runtimes():
        pytest.skip("the engine has no runsc")
    # Names, since only those have arguments that mean something: EPERM must come from the filter and not from them.
    calls = {name: call for name, call in DENIED.items() if name.split("(")[0] in {*ABSENT, *FORBIDDEN, "clone"}}
    assert len(calls) > 25
    async with DockerRuntime.open(
        memory_bytes=512 * MIB, instance_id=instance_id, runtime="runsc", docker_host=HOST
    ) as runtime:
        sandbox = await runtime.start((await runtime.languages())["python"], ("plain",))
        arguments = json.dumps({"calls": {name: call[:2] for name, call in calls.items()}}).encode()
        outcome = await sandbox.run(
            Program(source=PROBE.encode(), template="plain", arguments=arguments, limits=LIMITS)
        )
        assert outcome.result is not None, outcome
        assert json.loads(outcome.result) == {name: expected for name, (_, _, expected) in calls.items()}
    assert containers() == []


async def test_a_call_that_no_kernel_has_yet_is_absent_not_forbidden(python: DockerSandbox) -> None:
    """A newer libc tries newer calls first and falls back on ENOSYS only."""
    arguments = json.dumps({"calls": {"1000": [1000, []]}}).encode()
    outcome = await python.run(Program(source=PROBE.encode(), template="plain", arguments=arguments, limits=LIMITS))
    assert outcome.result == b'{"1000":%d}' % ENOSYS


OLD_DOOR = b"""
import ctypes, mmap
def main():
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""


async def test_the_32_bit_way_into_the_kernel_is_closed(python: DockerSandbox) -> None:
    """The one thing that does end a program; there is no 32-bit program or library in the images."""
    outcome = await python.run(Program(source=OLD_DOOR, template="plain", limits=LIMITS))
    assert (outcome.exit_code, outcome.signal, outcome.result) == (None, 31, None)
    await python.settle()


HONEST_PYTHON = {
    "threads": """
        import concurrent.futures, threading
        def main():
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                return sum(pool.map(lambda n: n * n, range(100)))
    """,
    "asyncio, subprocesses, pidfds": """
        import asyncio, sys
        async def work():
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(7)", stdout=-1)
            out, _ = await process.communicate()
            server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await reader.read(); writer.close(); server.close()
            return int(out)
        def main():
            return asyncio.run(work())
    """,
    "multiprocessing with shared memory": """
        import multiprocessing as mp
        from multiprocessing import shared_memory
        def square(n): return n * n
        def main():
            memory = shared_memory.SharedMemory(create=True, size=4096)
            memory.buf[0] = 9; value = memory.buf[0]; memory.close(); memory.unlink()
            with mp.get_context("fork").Pool(4) as pool:
                return sum(pool.map(square, range(10))) + value
    """,
    "numpy and pandas": """
        import numpy as np, pandas as pd
        def main():
            a = np.random.default_rng(1).random((300, 300))
            frame = pd.DataFrame({"k": np.arange(1000) % 7, "v": np.arange(1000)})
            frame.to_csv("t.csv"); back = pd.read_csv("t.csv")
            return [round(float(np.linalg.det(a @ a.T) > 0)), int(back.groupby("k").v.sum().sum())]
    """,
    "matplotlib": """
        import matplotlib.pyplot as plt, os
        def main():
            plt.plot([1, 2, 3]); plt.savefig("a.png"); return os.path.getsize("a.png") > 1000
    """,
    "files, fifos, locks, inotify, memfd, signals, sqlite": """
        import fcntl, mmap, os, shutil, signal, socket, sqlite3, tempfile, time
        def main():
            os.mkfifo("f"); os.symlink("f", "l"); os.link("f", "h")
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "a"); open(path, "w").write("x" * 9000)
                shutil.copy2(path, path + "2"); os.chmod(path, 0o600); os.utime(path); os.truncate(path, 10)
                with open(path, "r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX); mmap.mmap(file.fileno(), 10).close(); os.fsync(file)
            with os.fdopen(os.memfd_create("m"), "wb") as file: file.write(b"x")
            signal.setitimer(signal.ITIMER_REAL, 0.01); signal.signal(signal.SIGALRM, lambda *_: None); time.sleep(0.03)
            a, b = socket.socketpair(); a.sendall(b"x"); b.recv(1)
            sqlite3.connect("d.db").executescript("create table t(x); insert into t values (1)")
            return [len(socket.if_nameindex()), os.cpu_count() > 0, os.getloadavg()[0] >= 0]
    """,
}

HONEST_NODE = {
    "workers, children, files, servers": """
        const { Worker } = require('worker_threads'), { execFileSync } = require('child_process');
        const fs = require('fs'), net = require('net'), os = require('os'), zlib = require('zlib');
        async function main() {
          const worker = await new Promise((resolve, reject) => {
            const w = new Worker("require('worker_threads').parentPort.postMessage(42)", { eval: true });
            w.on('message', resolve); w.on('error', reject);
          });
          fs.writeFileSync('a', 'x'.repeat(1e5)); fs.copyFileSync('a', 'b'); fs.watch('a').close();
          await fs.promises.readFile('b');
          const port = await new Promise(r => { const s = net.createServer(c => c.end()).listen(0, '127.0.0.1', () => r(s.address().port)); s.unref(); });
          await new Promise(r => net.connect(port, '127.0.0.1').on('close', r).resume());
          return [worker, execFileSync('/bin/echo', ['7']).toString().trim(), zlib.gzipSync('x').length > 0,
                  Object.keys(os.networkInterfaces()), os.cpus().length > 0];
        }
    """,
}


def dedent(source: str) -> bytes:
    lines = source.strip("\n").splitlines()
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join(line[margin:] for line in lines).encode()


@pytest.mark.parametrize("name", HONEST_PYTHON)
async def test_honest_python_runs(python: DockerSandbox, name: str) -> None:
    template = "plot" if name == "matplotlib" else "data" if name.startswith("numpy") else "plain"
    outcome = await python.run(Program(source=dedent(HONEST_PYTHON[name]), template=template, limits=LIMITS))
    assert (outcome.exit_code, outcome.error, outcome.stderr) == (0, None, b"")
    assert outcome.result not in (None, b"null")


@pytest.mark.parametrize("name", HONEST_NODE)
async def test_honest_node_runs(runtime: DockerRuntime, name: str) -> None:
    sandbox = await runtime.start((await runtime.languages())["nodejs"])
    outcome = await sandbox.run(Program(source=dedent(HONEST_NODE[name]), template="plain", limits=LIMITS))
    assert (outcome.exit_code, outcome.error, outcome.stderr) == (0, None, b"")
    assert outcome.result not in (None, b"null")

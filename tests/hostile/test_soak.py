"""Honest programs, many of them: the walls of the sandbox must not be felt, and no system call that they need is denied."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import pathlib
import time
from collections.abc import Iterator

import pytest

from sandbox_svc.runtime import seccomp
from tests.hostile.harness import Service, py, running

HONEST = {
    "python": [
        "import numpy as np\ndef main(n):\n    a = np.random.default_rng(n).random((40, 40))\n    return float(np.linalg.svd(a @ a.T)[1].sum()) > 0",
        "import pandas as pd\ndef main(n):\n    f = pd.DataFrame({'k': [i % 3 for i in range(60)], 'v': range(60)})\n    f.to_csv('f.csv')\n    return int(pd.read_csv('f.csv').groupby('k').v.sum().sum()) == 1770",
        "from concurrent.futures import ThreadPoolExecutor as T\ndef main(n):\n    with T(8) as t:\n        return sum(t.map(lambda v: v * v, range(50))) == 40425",
        "import asyncio\nasync def main(n):\n    async def f(v):\n        await asyncio.sleep(0.001)\n        return v\n    got = await asyncio.gather(*(f(v) for v in range(20)))\n    p = await asyncio.create_subprocess_exec('true')\n    return sum(got) == 190 and await p.wait() == 0",
        "import subprocess, sys\ndef main(n):\n    return subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True, text=True).stdout == '42\\n'",
        "import multiprocessing as mp\ndef f(v):\n    return v * 2\ndef main(n):\n    with mp.get_context('fork').Pool(2) as pool:\n        return pool.map(f, [1, 2]) == [2, 4]",
        "import json, os, pathlib, shutil, sqlite3, tempfile, zipfile\ndef main(n):\n    with tempfile.TemporaryDirectory() as d:\n        p = pathlib.Path(d, 'a.txt')\n        p.write_text('x')\n        os.chmod(p, 0o600); os.utime(p); os.link(p, d + '/b'); os.symlink(p, d + '/c'); shutil.copytree(d, d + '/../t%d' % n)\n        with zipfile.ZipFile(d + '/z', 'w') as z:\n            z.write(p)\n        db = sqlite3.connect(d + '/db')\n        db.execute('create table t (a)'); db.execute('insert into t values (1)'); db.commit()\n        return db.execute('select a from t').fetchone() == (1,)",
        "import socket, threading\ndef main(n):\n    s = socket.create_server(('127.0.0.1', 0))\n    threading.Thread(target=lambda: s.accept()[0].sendall(b'ok')).start()\n    return socket.create_connection(s.getsockname()).recv(2) == b'ok'",
        "import os, resource, sched, select, signal, threading, time\ndef main(n):\n    signal.setitimer(signal.ITIMER_REAL, 60); signal.signal(signal.SIGALRM, lambda *a: 1)\n    e = select.epoll(); r, w = os.pipe(); e.register(r); os.write(w, b'x')\n    os.eventfd(1); os.memfd_create('x'); os.posix_fadvise(r, 0, 0, 0) if 0 else None\n    os.sched_yield(); os.getloadavg(); os.sysconf('SC_NPROCESSORS_ONLN'); os.sched_getaffinity(0); os.times(); resource.getrusage(0)\n    return len(e.poll(1)) == 1",
        "import mmap, os\nfrom multiprocessing import shared_memory\ndef main(n):\n    m = mmap.mmap(-1, 1 << 16); m[:2] = b'ok'; m.madvise(mmap.MADV_DONTNEED) if hasattr(m, 'madvise') else None\n    b = shared_memory.SharedMemory(create=True, size=99)\n    b.buf[0] = 1; b.close(); b.unlink()\n    return os.copy_file_range is not None",
        "import matplotlib.pyplot as plt\ndef main(n):\n    plt.plot([1, 2]); plt.savefig('artifacts/p.png')\n    return True",
        "import decimal, hashlib, hmac, lzma, random, re, secrets, ssl, uuid, zlib, zoneinfo, datetime\ndef main(n):\n    ssl.create_default_context(); zoneinfo.ZoneInfo('Asia/Tokyo'); uuid.uuid4(); secrets.token_hex(8)\n    return lzma.decompress(lzma.compress(b'x')) == b'x' and len(hashlib.scrypt(b'p', salt=b's', n=2, r=1, p=1)) == 64",
    ],
    "nodejs": [
        "const fs = require('fs/promises');\nasync function main() { await fs.writeFile('a', 'x'); await fs.rename('a', 'b'); const d = await fs.mkdtemp('/tmp/x'); await fs.copyFile('b', d + '/c'); return (await fs.readFile(d + '/c', 'utf8')) === 'x'; }",
        "const { Worker } = require('worker_threads');\nfunction main() { return new Promise((ok) => new Worker('require(\"worker_threads\").parentPort.postMessage(1)', { eval: true }).on('message', () => ok(true))); }",
        "const { execFile } = require('child_process');\nfunction main() { return new Promise((ok) => execFile('echo', ['x'], (e, out) => ok(out === 'x\\n'))); }",
        "const http = require('http');\nfunction main() { return new Promise((ok) => { const s = http.createServer((q, r) => r.end('x')).listen(0, '127.0.0.1', () => http.get({ port: s.address().port, host: '127.0.0.1' }, (r) => r.on('data', (d) => ok(`${d}` === 'x')))); }); }",
        "const crypto = require('crypto'), zlib = require('zlib'), os = require('os');\nasync function main() { os.cpus(); os.networkInterfaces(); const k = crypto.generateKeyPairSync('ed25519'); await new Promise((ok) => zlib.gzip('x', ok)); return crypto.sign(null, Buffer.from('x'), k.privateKey).length === 64; }",
        "async function main() { const axios = require('axios'); const { setTimeout: wait } = require('timers/promises'); await Promise.all([1, 2, 3].map(() => wait(2))); return typeof axios.get === 'function' && Intl.DateTimeFormat('de').format(0).length > 4; }",
        "const fs = require('fs');\nfunction main() { const w = fs.watch('.'); fs.writeFileSync('x', '1'); w.close(); const s = new SharedArrayBuffer(8); Atomics.add(new Int32Array(s), 0, 1); return process.memoryUsage().rss > 0 && process.resourceUsage().maxRSS > 0; }",
    ],
}
"""Each returns true. Between them they use what scripts of people and models use."""


@pytest.fixture(scope="module")
def soak_service(runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(
        tmp_path_factory.mktemp(f"soak-{runtime}"), runtime, SANDBOX_POOL_SIZE="2", SANDBOX_TIMEOUT="20s"
    ) as service:
        yield service


def soak(service: Service, runs: int) -> None:
    """Run honest programs; all succeed, and the containers are the ones from before."""
    before = service.containers()
    descriptors, started = service.descriptors(), time.monotonic()
    programs = itertools.islice(
        itertools.cycle([(language, code) for language, codes in HONEST.items() for code in codes]), runs
    )

    def one(numbered: tuple[int, tuple[str, str]]) -> str | None:
        number, (language, code) = numbered
        answer = service.run(code, {"n": number}, language)
        if (
            answer.status == "success"
            and answer.result == {"present": True, "value": True, "type": "json"}
            and not answer.stderr
        ):
            return None
        return f"{number}: {answer.status} {answer.result} {answer.stderr[-600:]} in\n{code}"

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        failures = [failure for failure in threads.map(one, enumerate(programs)) if failure]
    assert failures == [], f"{len(failures)} of {runs} after {time.monotonic() - started:.0f} s"
    assert service.containers() == before
    assert service.descriptors() <= descriptors + 8
    service.check_invariants()


def test_honest_programs_feel_nothing(soak_service: Service) -> None:
    """ES-18: some hundred runs, none of which is denied what it needs: each returns the value that it computes by way of
    the call in question, writes nothing to stderr and ends by itself, so no call was fatal; and no container is lost.

    What the profile denied and a library then did without is not counted: it denies with an error, which the kernel notes
    nowhere (it logs what kills, and errors only for filters that ask for it, which no engine lets us do). What it denies,
    and with which error, is in tests/integration/test_seccomp.py.
    """
    soak(soak_service, 8 * sum(map(len, HONEST.values())))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_thousand_honest_programs_feel_nothing(soak_service: Service) -> None:
    """ES-18, SF-17: a thousandth of all runs would show here; memory and descriptors of the service stay flat."""
    soak(soak_service, 200)
    before = soak_service.memory_kb()
    soak(soak_service, 5000)
    assert soak_service.memory_kb() - before < 40 * 1024


def test_unknown_system_calls_are_answered_as_by_an_older_kernel(soak_service: Service) -> None:
    """ES-18: ENOSYS, so that a libc that is newer than the profile falls back; never death."""
    answer = soak_service.run(
        py("""
        import ctypes, errno
        def main():
            libc = ctypes.CDLL(None, use_errno=True)
            codes = []
            for number in (435, 470, 500, 600):
                libc.syscall(ctypes.c_long(number), 0, 0, 0, 0)
                codes.append(errno.errorcode.get(ctypes.get_errno()))
            return codes
        """)
    )
    assert set(answer.value) <= {"ENOSYS", "EPERM", "EINVAL", "EFAULT"}


def test_profile_in_the_image_folder_is_the_one_in_force() -> None:
    """ES-18: what a reader finds in images/seccomp.json is what containers get."""
    written = json.loads((pathlib.Path(__file__).parents[2] / "images/seccomp.json").read_text())
    assert written == json.loads(seccomp.profile_json())

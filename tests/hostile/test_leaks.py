"""Leakage between runs that follow each other in one container: the second must find it as if nobody had been there."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import json
import os
import time
from typing import Any

import pytest

from tests.hostile.harness import CANARY, Service, py, same_container, until
from tests.integration.conftest import docker


def follow(service: Service, first: str, second: str, language: str = "python", **arguments: Any) -> tuple[Any, Any]:
    """Run two programs in one container and return what each returned."""
    # Emptying takes gVisor longer than it may when the machine is busy; then the second run meets another container.
    with same_container(service, language) if service.runtime == "runc" else contextlib.nullcontext():
        one = service.run(py(first), language=language).value
        two = service.run(py(second), arguments, language).value
    return one, two


def test_files_are_gone(service: Service) -> None:
    """LK-01: wherever one can write, and whatever they are called."""
    left, found = follow(
        service,
        """
        import os
        PLACES = ['/tmp', '/var/tmp', '/dev/shm', '/workspace', '/run/lock', '/run', '/dev/mqueue', '/var/lock', '/home', '/root', '/mnt',
                  '/var/cache', '/var/log', '/var/spool', '/var/lib', '/srv', '/opt', '/dev', os.getcwd(), os.path.dirname(os.getcwd()),
                  os.path.expanduser('~'), '/workspace/artifacts', '/workspace/.config', '/workspace/.cache/pip']
        def main():
            left = set()
            for place in PLACES:
                for name in (b'probe-7731', b'.probe-7731', b'pro be\\n7731', b'-rf 7731', b'\\xff\\xfe7731', b'*7731', b'$(id)7731'):
                    try:
                        os.makedirs(place, exist_ok=True)
                        with open(os.path.join(place.encode(), name), 'w') as file:
                            file.write('left')
                        left.add(place)
                    except OSError:
                        pass
            return sorted(left)
        """,
        """
        import os
        def main():
            found = []
            for folder, folders, names in os.walk('/'):
                folders[:] = [n for n in folders if os.path.join(folder, n) not in ('/proc', '/sys')]
                found += [os.path.join(folder, n) for n in names + folders if '7731' in n]
            return found + os.listdir('.') + os.listdir('artifacts') + os.listdir('/tmp') + os.listdir('/dev/shm')
        """,
    )
    assert {"/tmp", "/workspace", "/dev/shm"} <= set(left)
    assert found == ["artifacts"]


def test_cleaner_is_neither_stopped_nor_led_astray(service: Service) -> None:
    """LK-02: a tree that resists, and links that would make a naive cleaner delete or own what they point to."""
    _, found = follow(
        service,
        """
        import os, socket
        def main():
            for place in ('/workspace', '/tmp', '/dev/shm'):
                os.chdir(place)
                os.makedirs('locked/inner/more')
                for name in ('locked/inner/more/file', 'locked/file'):
                    open(name, 'w').close()
                os.mkfifo('fifo')
                keep = socket.socket(socket.AF_UNIX)
                keep.bind('socket')
                for target in ('/', '/etc', '/opt/sandbox', '/usr/bin/python3', '..', '.', '/proc/self/fd/0', '/proc/1/root'):
                    os.symlink(target, 'to' + target.replace('/', '_'))
                os.symlink('/opt/sandbox', 'locked/inner/out')
                os.mkdir(b'\\xff\\xfe\\n')
                open('a' * 255, 'w').close()
                os.open('unlinked', os.O_CREAT | os.O_RDWR)
                os.unlink('unlinked')
                for _ in range(600):
                    os.mkdir('d')
                    os.chdir('d')
                os.chdir(place)
                for folder in ('locked/inner/more', 'locked/inner', 'locked', 'd'):
                    os.chmod(folder, 0)
                os.chmod(place, 0) if place == '/workspace' else None
            return 1
        """,
        """
        import os
        def main():
            stat = os.stat('/workspace')
            same = [os.stat(p).st_uid for p in ('/', '/etc', '/opt/sandbox', '/opt/sandbox/manifest.json', '/usr/bin/python3')]
            return [os.listdir('/workspace'), os.listdir('/tmp'), os.listdir('/dev/shm'), same,
                    os.path.exists('/opt/sandbox/manifest.json'), oct(stat.st_mode & 0o7777), oct(os.stat('/tmp').st_mode & 0o7777)]
        """,
    )
    assert found == [["artifacts"], [], [], [0] * 5, True, "0o755", "0o1777"]


def test_attributes_and_access_lists_are_gone(service: Service) -> None:
    """LK-01: what hangs on the mount points themselves: user attributes, default access lists, modes, times."""
    _, found = follow(
        service,
        """
        import os, struct
        def main():
            done = []
            acl = struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *entry) for entry in
                  ((1, 7, 0xFFFFFFFF), (2, 7, 12345), (4, 7, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 7, 0xFFFFFFFF)))
            for place in ('/workspace', '/tmp', '/dev/shm', '/workspace/artifacts'):
                for name, value in (('user.left', b'7731'), ('system.posix_acl_default', acl), ('system.posix_acl_access', acl)):
                    try:
                        os.setxattr(place, name, value)
                        done.append([place, name])
                    except OSError:
                        pass
            return done
        """,
        """
        import os
        def main():
            open('new', 'w').close()
            found = {p: os.listxattr(p) for p in ('/workspace', '/tmp', '/dev/shm', '/workspace/artifacts', '/workspace/new')}
            return [{p: n for p, n in found.items() if n}, oct(os.stat('new').st_mode & 0o777)]
        """,
    )
    assert found == [{}, "0o644"]


SURVIVORS = {
    "daemon that forks again every 10 ms": """
        import os, signal, time
        def main():
            if os.fork() == 0:
                os.setsid()
                if os.fork():
                    os._exit(0)
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
                while True:
                    if os.fork():
                        os._exit(0)
                    for place in ('/tmp', '/dev/shm', '/workspace'):
                        try:
                            open(place + '/beat', 'w').close()
                        except OSError:
                            pass
                    time.sleep(0.01)
            return 1
        """,
    "many that fork as fast as they can": """
        import os
        def main():
            for _ in range(8):
                if os.fork() == 0:
                    os.setsid()
                    while True:
                        try:
                            if os.fork():
                                os._exit(0)
                            open('/tmp/beat', 'w').close()
                        except OSError:
                            pass
            return 1
        """,
    "threads of a process whose first thread ended": """
        import ctypes, os, threading, time
        def beat():
            while True:
                try:
                    open('/tmp/beat', 'w').close()
                except OSError:
                    pass
                time.sleep(0.01)
        def main():
            if os.fork() == 0:
                os.setsid()
                threading.Thread(target=beat).start()
                ctypes.CDLL(None).pthread_exit(None)
            time.sleep(0.1)
            return 1
        """,
}
LOOK = """
    import os, time
    def main():
        time.sleep(0.4)
        beats = [p for p in ('/tmp', '/dev/shm', '/workspace', '/var/tmp') if os.path.exists(p + '/beat')]
        uids = []
        for pid in filter(str.isdigit, os.listdir('/proc')):
            try:
                uids.append(os.stat('/proc/' + pid).st_uid)
            except OSError:
                pass
        return [beats, sum(uid != 0 for uid in uids)]
    """


@pytest.mark.parametrize("name", SURVIVORS)
def test_no_process_survives(service: Service, name: str) -> None:
    """LK-03: however it hides; parked processes of the templates are all that is there."""
    with same_container(service):
        assert service.run(py(SURVIVORS[name])).seconds < 2.5
        beats, others = service.run(py(LOOK)).value
    assert beats == []
    assert others <= 3


def test_no_shell_daemon_survives_in_javascript(service: Service) -> None:
    """LK-03, LK-01: in the other language."""
    planted, found = follow(
        service,
        """
        const fs = require('fs');
        const { spawn } = require('child_process');
        function main() {
          for (const dir of ['/tmp', '/var/tmp', '/dev/shm', '/workspace']) fs.writeFileSync(dir + '/left', 'left');
          spawn('sh', ['-c', 'trap "" TERM HUP INT; while :; do echo x > /tmp/beat; sleep 0.02; done'],
            { detached: true, stdio: 'ignore' }).unref();
          return 'planted';
        }
        """,
        """
        const fs = require('fs');
        async function main() {
          await new Promise((done) => setTimeout(done, 400));
          return [fs.readdirSync('/tmp'), fs.readdirSync('/dev/shm'), fs.readdirSync('/workspace')];
        }
        """,
        "nodejs",
    )
    assert (planted, found) == ("planted", [[], [], ["artifacts"]])


def test_listeners_are_gone(service: Service) -> None:
    """LK-04: abstract names have no owner and no permissions, and ports are the container's: only death frees them.

    Under runc not even a connection that was closed first on the server's side, and would else hold its port for a minute,
    is left. gVisor has no such setting: there the port can be taken at once by whoever asks for SO_REUSEADDR, as servers do.
    """
    _, found = follow(
        service,
        """
        import os, socket, time
        def main():
            ready, done = os.pipe()
            if os.fork() == 0:
                os.setsid()
                server = socket.socket(socket.AF_UNIX)
                server.bind('\\0abstract-5512')
                server.listen(4)
                udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                udp.bind(('127.0.0.1', 45512))
                tcp = socket.create_server(('127.0.0.1', 45512))
                os.write(done, b'x')
                peer, _ = tcp.accept()
                peer.close()
                os.write(done, b'y')
                time.sleep(600)
            assert os.read(ready, 1) == b'x'
            client = socket.create_connection(('127.0.0.1', 45512))
            assert os.read(ready, 1) == b'y' and client.recv(1) == b''
            client.close()
            return 1
        """,
        """
        import socket
        def main():
            found = [line for line in open('/proc/net/tcp')][1:] + [line for line in open('/proc/net/udp')][1:]
            with socket.socket(socket.AF_UNIX) as client:
                try:
                    client.connect('\\0abstract-5512')
                    found.append('abstract')
                except OSError:
                    pass
            for kind, reuse in ((socket.SOCK_DGRAM, 0), (socket.SOCK_STREAM, 1), (socket.SOCK_STREAM, 0)):
                with socket.socket(socket.AF_INET, kind) as server:
                    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
                    try:
                        server.bind(('127.0.0.1', 45512))
                    except OSError as error:
                        found.append([int(kind), reuse, error.errno])
            return found + [line for line in open('/proc/net/unix') if '5512' in line]
        """,
    )
    assert found == ([] if service.runtime == "runc" else [[1, 0, errno.EADDRINUSE]])


def test_system_v_objects_cannot_be_left(service: Service) -> None:
    """LK-05: shared memory, semaphores and queues with a fixed key and open to all; refused, or at least gone."""
    first = service.run(
        py("""
        import ctypes
        def main():
            libc = ctypes.CDLL(None, use_errno=True)
            return [libc.shmget(0x5EAF, 65536, 0o1666) >= 0, libc.semget(0x5EAF, 1, 0o1666) >= 0, libc.msgget(0x5EAF, 0o1666) >= 0]
        """)
    )
    second = service.run(
        py("""
        import ctypes
        def main():
            libc = ctypes.CDLL(None, use_errno=True)
            left = []
            for name, call in (('shm', lambda: libc.shmget(0x5EAF, 0, 0)), ('sem', lambda: libc.semget(0x5EAF, 0, 0)),
                               ('msg', lambda: libc.msgget(0x5EAF, 0))):
                if call() >= 0 or ctypes.get_errno() == 13:
                    left.append(name)
            return left
        """)
    )
    assert (first.value, second.value) == ([False] * 3, [])


def test_posix_ipc_is_gone(service: Service) -> None:
    """LK-06: queues cannot be made; shared memory is a file of a mount that is emptied."""
    made, found = follow(
        service,
        """
        import ctypes, os
        from multiprocessing import shared_memory
        def main():
            libc = ctypes.CDLL(None, use_errno=True)
            block = shared_memory.SharedMemory('left7731', create=True, size=4096, track=False)
            block.buf[:4] = b'7731'
            try:
                os.close(os.open('/dev/mqueue/left', os.O_CREAT | os.O_RDWR))
                queue = True
            except OSError:
                queue = False
            return [libc.mq_open(b'/left7731', os.O_CREAT | os.O_RDWR, 0o666, 0) >= 0, queue]
        """,
        """
        import ctypes, os
        def main():
            libc = ctypes.CDLL(None, use_errno=True)
            try:
                queues = os.listdir('/dev/mqueue')
            except OSError:
                queues = []
            return [libc.mq_open(b'/left7731', os.O_RDONLY) >= 0, queues, os.listdir('/dev/shm')]
        """,
    )
    assert (made, found) == ([False, False], [False, [], []])


def test_keyrings_cannot_be_used(service: Service) -> None:
    """LK-07: keys belong to the kernel's user, which no container contains."""
    added, found = follow(
        service,
        """
        import ctypes
        def main():
            libc = ctypes.CDLL(None, use_errno=True)
            return [libc.syscall(248, b'user', b'key-6620', b'carried', 7, ring) > 0 for ring in (-1, -2, -3, -4, -5)]
        """,
        """
        import ctypes
        def main():
            libc = ctypes.CDLL(None, use_errno=True)
            return libc.syscall(249, b'user', b'key-6620', None, 0) > 0
        """,
    )
    assert (added, found) == ([False] * 5, False)


POISON = """
    import builtins, json, os, random, sys
    def main():
        import numpy
        numpy.mean = lambda *a, **k: 'hijacked'
        json.dumps = lambda *a, **k: 'hijacked'
        json.loads = lambda *a, **k: 'hijacked'
        builtins.len = lambda thing: 999
        builtins.left_marker = 1
        os.environ['LEFT_MARKER'] = '1'
        os.getcwd = lambda: '/hijacked'
        sys.path.insert(0, '/tmp')
        sys.modules['colorsys'] = json
        random.seed(1234)
        numpy.random.seed(1234)
        sys.setrecursionlimit(150)
        sys.left_marker = 1
        type(sys)('x')
        import codecs
        codecs.register(lambda name: None)
        return 1
    """


@pytest.mark.parametrize("uses", ["", "import numpy\n", "import matplotlib.pyplot\n"])
def test_interpreter_is_pristine(service: Service, uses: str) -> None:
    """LK-08: whichever template serves the second run."""
    with same_container(service):
        service.run(py(POISON))
        signs = service.run(
            uses
            + py("""
            import builtins, colorsys, json, os, sys
            def main():
                import numpy
                return [json.dumps([1]) == '[1]', json.loads('[2]') == [2], len([1, 2]) == 2, hasattr(builtins, 'left_marker'),
                        'LEFT_MARKER' in os.environ, os.getcwd(), hasattr(sys, 'left_marker'), sys.getrecursionlimit(), '/tmp' in sys.path,
                        hasattr(colorsys, 'rgb_to_hsv'), float(numpy.mean([2, 4]))]
            """)
        ).value
    assert signs == [True, True, True, False, False, "/workspace", False, 1000, False, True, 3.0]


def test_planted_modules_are_not_imported(service: Service) -> None:
    """LK-09: neither by the run, nor by what it starts, nor by the process that is parked for the one after."""
    _, found = follow(
        service,
        """
        import os, site
        def main():
            places = {'.', '/tmp', '/workspace', '/dev/shm', '/var/tmp', os.path.expanduser('~'), os.path.dirname(os.getcwd()),
                      site.getusersitepackages(), '/workspace/node_modules/axios', '/node_modules', '/workspace/.node_modules'}
            for place in places:
                for name in ('colorsys.py', 'sitecustomize.py', 'usercustomize.py', 'json.py', 'probe.pth', 'main.py', 'runner.py',
                             'numpy.py', 'supervisor.py', 'index.js', 'encodings.py', 'pyvenv.cfg', '.pythonrc.py'):
                    try:
                        os.makedirs(place, exist_ok=True)
                        with open(os.path.join(place, name), 'w') as file:
                            file.write('import sys; sys.shadowed = 1\\n' if name.endswith('.pth') else 'SHADOWED = True\\n')
                    except OSError:
                        pass
            return 1
        """,
        """
        import colorsys, json, subprocess, sys
        import numpy
        def main():
            probe = ("import sys, json; print(hasattr(sys, 'shadowed'), hasattr(json, 'SHADOWED'), "
                     "hasattr(sys.modules.get('sitecustomize'), 'SHADOWED'))")
            child = subprocess.run([sys.executable, '-c', probe], capture_output=True, text=True).stdout.split()
            return [hasattr(m, 'SHADOWED') for m in (colorsys, json, numpy)] + [hasattr(sys, 'shadowed'), child]
        """,
    )
    assert found == [False, False, False, False, ["False"] * 3]


PLANTED = ["pandas", "numpy", "decimal", "zoneinfo", "dateutil", "pytz", "six", "matplotlib", "sitecustomize"]
"""As an argument: a program whose source names them is given a template that has them already."""
PLANT_WHILE_LOADING = """
    import os, time
    def roots():
        found = {}
        for pid in filter(str.isdigit, os.listdir('/proc')):
            try:
                if os.stat('/proc/' + pid).st_uid == 0:
                    lines = open(f'/proc/{pid}/status').read().split('VmRSS:')
                    found[int(pid)] = int(lines[1].split()[0])
            except (OSError, IndexError):
                pass
        return found
    def main(names):
        before = roots()
        for place in ('.', '/tmp', '/dev/shm'):
            for name in names:
                with open(f'{place}/{name}.py', 'w') as file:
                    file.write('SHADOWED = True\\nimport sys; sys.shadowed = True\\n')
            with open(place + '/x.pth', 'w') as file:
                file.write('import sys; sys.shadowed = True\\n')
        end = time.monotonic() + 2
        while time.monotonic() < end:
            time.sleep(0.2)
            after = roots()
            # What loads grows by tens of MiB; nothing more to wait for when it is done.
            grown = [after[pid] - before.get(pid, 0) for pid in after]
            if max(grown) > 15_000:
                time.sleep(0.5)
                break
        return max(grown)
    """


def test_planted_modules_are_not_imported_by_a_template_that_loads_meanwhile(service: Service) -> None:
    """LK-09: the next zygote: a container that was idle for a moment loads pandas beside the runs that come. One of these
    plants modules of every name that is being imported, wherever it can write, while the template looks for them."""
    for pause in (0.25, 0.4, 0.6, 0.3, 0.5):
        (before,) = service.containers("python")
        docker("kill", before)
        until(lambda before=before: service.containers("python") not in ([before], []), 20, 0.01)  # type: ignore[misc]
        assert service.run("def main():\n    return 1").value == 1
        time.sleep(pause)
        grown = service.run(py(PLANT_WHILE_LOADING), {"names": PLANTED}).value
        if grown > 10_000:
            break
    assert grown > 10_000, "no template was caught while it loaded"
    found = service.run(
        py("""
        import pandas, numpy, sys
        def main():
            shadowed = [name for name, module in sys.modules.items() if getattr(module, 'SHADOWED', None) is True]
            return [shadowed, hasattr(sys, 'shadowed'), pandas.__file__.partition('pandas')[0], numpy.__file__.partition('numpy')[0]]
        """)
    ).value
    assert found == [[], False, *["/usr/local/lib/python3.13/dist-packages/"] * 2]


def test_own_files_do_not_shadow_the_standard_library(service: Service) -> None:
    """LK-09: a run's own json.py is behind the library's, as it is for the runner; its other modules can be imported."""
    answer = service.v1(
        "import json, helper\ndef main():\n    return [hasattr(json, 'SHADOWED'), helper.VALUE]",
        files={"json.py": "SHADOWED = 1", "helper.py": "VALUE = 7"},
    )
    assert answer["result"]["value"] == [False, 7]


def test_no_bytecode_is_written(service: Service) -> None:
    """LK-10: library folders are not writable, and nothing is cached for anybody."""
    answer = service.v1(
        py("""
        import json, os, sys, helper
        def main():
            return [sys.dont_write_bytecode, os.listdir('.'), os.access(os.path.dirname(json.__file__), os.W_OK),
                    os.environ.get('PYTHONDONTWRITEBYTECODE')]
        """),
        files={"helper.py": "VALUE = 7"},
    )
    assert answer["result"]["value"] == [True, ["helper.py", "artifacts"], False, "1"] or answer["result"]["value"] == [
        True,
        ["artifacts", "helper.py"],
        False,
        "1",
    ]


STATE = """
    import os, resource, signal
    def main():
        mask = os.umask(0)
        os.umask(mask)
        return {'nice': os.getpriority(os.PRIO_PROCESS, 0), 'umask': mask, 'cpus': sorted(os.sched_getaffinity(0)),
                'limits': [resource.getrlimit(getattr(resource, n)) for n in sorted(dir(resource)) if n.startswith('RLIMIT')],
                'signals': [str(signal.getsignal(n)) for n in range(1, 32) if n != signal.SIGINT],
                'blocked': len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), 'comm': open('/proc/self/comm').read(),
                'policy': os.sched_getscheduler(0), 'supervisor': [os.getpriority(os.PRIO_PROCESS, 1), os.sched_getscheduler(1),
                sorted(os.sched_getaffinity(1))], 'session': os.getsid(0) == os.getpid(), 'cwd': os.getcwd()}
    """


def test_process_attributes_are_as_before(service: Service) -> None:
    """LK-11: umask, nice, limits, affinity, signals, name."""
    before = service.run(py(STATE)).value
    _, after = follow(
        service,
        """
        import ctypes, os, resource, signal
        def main():
            os.umask(0o777)
            os.nice(10)
            for name in ('NOFILE', 'NPROC', 'FSIZE', 'AS', 'STACK', 'CPU'):
                resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (1 << 30 if name in ('AS', 'STACK') else 60,) * 2)
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
            ctypes.CDLL(None).prctl(15, b'renamed', 0, 0, 0)
            os.chdir('/')
            return 1
        """,
        STATE,
    )
    assert before == after
    assert (before["umask"], before["nice"], before["blocked"]) == (0o022, 0, 0)


def test_scheduling_of_the_supervisor_cannot_be_changed_for_the_next_run(service: Service) -> None:
    """LK-11, PR-11: while it kills a run, the supervisor has that run's uid for some microseconds, and a program may try
    to hit them. Whoever succeeds has spent the container."""
    before = service.run(py(STATE)).value["supervisor"]
    for _ in range(3):
        service.run(
            py("""
            import os
            def main():
                for kind in range(6):
                    if os.fork() == 0:
                        os.setsid()
                        while True:
                            try:
                                if kind % 3 == 0:
                                    os.setpriority(os.PRIO_PROCESS, 1, 19)
                                elif kind % 3 == 1:
                                    os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))
                                else:
                                    os.setpriority(os.PRIO_USER, os.getuid(), 19)
                            except OSError:
                                pass
                return 1
            """)
        )
        assert service.run(py(STATE)).value["supervisor"] == before


SECRET_SEARCHES = {
    "heap": """
        import gc, os, sys
        def main(head, tail):
            needle, places = head + tail, []
            if any(needle in v for v in os.environ.values()):
                places.append('environ')
            for pid in filter(str.isdigit, os.listdir('/proc')):
                for name in ('cmdline', 'environ', 'comm', 'stat', 'status', 'wchan'):
                    try:
                        if needle in open(f'/proc/{pid}/{name}', errors='replace').read():
                            places.append(name)
                    except OSError:
                        pass
            for item in gc.get_objects():
                if isinstance(item, dict):
                    places += ['heap' for value in list(item.values()) if type(value) is str and needle in value and value != needle]
            frame = sys._getframe().f_back
            while frame is not None:
                places += ['frames' for v in list(frame.f_locals.values()) if type(v) in (str, bytes) and needle in str(v)]
                frame = frame.f_back
            return places
        """,
    "memory": """
        import ctypes, re
        def main(head, tail):
            needle = (head + tail).encode()
            wide = (head + tail).encode('utf-16-le')
            count = 0
            for line in open('/proc/self/maps').readlines():
                found = re.match(r'([0-9a-f]+)-([0-9a-f]+) r', line)
                if found and '[v' not in line:
                    start, end = (int(x, 16) for x in found.groups())
                    try:
                        raw = (ctypes.c_char * (end - start)).from_address(start).raw
                    except MemoryError:
                        continue
                    count += raw.count(needle) + raw.count(wide)
            return count
        """,
}


def plant(service: Service, language: str, token: str, uses: str = "") -> None:
    """Leave a token in every way a request can carry one: source, arguments, output, result, file, error, environment."""
    code = {
        "python": f"{uses}HIDDEN = 'source-{token}'\ndef main(token):\n    print(token)\n    open('f', 'w').write(token)\n    return [token]",
        "nodejs": f"const HIDDEN = 'source-{token}';\nfunction main({{token}}) {{ console.log(token); return [token, HIDDEN]; }}",
    }
    assert token in service.run(code[language], {"token": token}, language).value
    service.run(
        f"raise ValueError('{token}')" if language == "python" else f"throw new Error('{token}')", language=language
    )
    if language == "python":
        kept = service.v1(
            uses + "import sys\nprint(sys.stdin.read(), sys.argv)",
            mode="script",
            stdin=token,
            args=[token],
            env={"TOKEN": token},
            files={"data.txt": token},
        )
        assert token in kept["stdout"]


@pytest.mark.parametrize("uses", ["", "import pandas\n"])
def test_earlier_request_is_not_visible_to_python(service: Service, uses: str) -> None:
    """LK-12: not in command lines, environments, objects or frames."""
    token = CANARY + os.urandom(9).hex()
    with same_container(service):
        plant(service, "python", token, uses)
        places = service.run(uses + py(SECRET_SEARCHES["heap"]), {"head": token[:20], "tail": token[20:]}).value
    assert places == []


@pytest.mark.parametrize("uses", ["", "import pandas\n", "import matplotlib\n"])
def test_earlier_request_is_not_in_raw_memory(service: Service, uses: str) -> None:
    """LK-13: every readable page of a later process is searched, whichever template it came from.

    A search finds its own copies of what it looks for. So the same search for a token that no run ever held is the
    measure; a hit left by an earlier run would come on top.
    """
    search = uses + py(SECRET_SEARCHES["memory"])
    token, control = (CANARY + os.urandom(9).hex() for _ in range(2))
    with same_container(service):
        plant(service, "python", token, uses)
        plant(service, "python", token, "")
        found = service.run(search, {"head": token[:20], "tail": token[20:]}).value
        expected = service.run(search, {"head": control[:20], "tail": control[20:]}).value
    assert found <= expected


def test_earlier_request_is_not_in_the_memory_of_node(service: Service) -> None:
    """LK-13: node is started anew, and may read its own memory to prove it."""
    search = py("""
        const fs = require('fs');
        function main({ head, tail, largest }) {
          const needle = Buffer.concat([Buffer.from(head), Buffer.from(tail)]);
          const fd = fs.openSync('/proc/self/mem', 'r');
          let count = 0;
          for (const line of fs.readFileSync('/proc/self/maps', 'latin1').split('\\n')) {
            const found = /^([0-9a-f]+)-([0-9a-f]+) r/.exec(line);
            if (!found || line.includes('[v')) continue;
            const start = BigInt('0x' + found[1]), size = Number(BigInt('0x' + found[2]) - start);
            if (size > largest) continue;
            for (let at = 0; at < size; at += 1 << 20) {
              const part = Buffer.alloc(Math.min((1 << 20) + 64, size - at));
              try { if (!fs.readSync(fd, part, 0, part.length, start + BigInt(at))) break; } catch { break; }
              for (let i = part.indexOf(needle); i >= 0; i = part.indexOf(needle, i + 1)) count++;
              part.fill(0);
            }
          }
          return count;
        }
        """)
    token, control = (CANARY + os.urandom(9).hex() for _ in range(2))
    with same_container(service, "nodejs"):
        plant(service, "nodejs", token)
        # Looking at what node has reserved and never used makes gVisor fill it with zeros, beyond any limit.
        largest = 1 << 40 if service.runtime == "runc" else 16 << 20
        found = service.js(search, {"head": token[:20], "tail": token[20:], "largest": largest}).value
        expected = service.js(search, {"head": control[:20], "tail": control[20:], "largest": largest}).value
    # The search touches as many copies of its own needle, give or take what the garbage collector moved.
    assert found <= expected + 4


def test_random_state_is_not_cloned(service: Service) -> None:
    """LK-14: two runs from one template share no random number and no name that is made of one.

    They do share the hash seed and the layout of addresses, of which there is one per container, see below.
    """
    probe = """
        import numpy, random, secrets, tempfile, uuid, os
        def main():
            return [random.random(), float(numpy.random.random()), secrets.token_hex(8), os.path.basename(tempfile.mktemp()),
                    str(uuid.uuid4()), float(numpy.random.default_rng().random()), os.getpid()]
        """
    with same_container(service):
        runs = [service.run(py(probe)).value for _ in range(4)]
    for values in zip(*runs, strict=True):
        assert len(set(values)) == len(runs)


def test_hash_seed_and_addresses_are_a_containers_own(wide_service: Service) -> None:
    """LK-14: all runs of a container fork from the same templates, so they hash alike and lie at the same addresses. Another
    container has others: what a program learns of them tells it nothing of another tenant's, nor of what comes when its
    own container has been replaced."""
    probe = """
        import os, time
        def main():
            time.sleep(0.15)
            return [os.readlink('/proc/self/ns/pid') if os.path.exists('/proc/self/ns/pid') else '', os.getuid() // 4096,
                    hash('x'), hash(b'y'), id(os)]
        """
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        runs = list(threads.map(lambda _: wide_service.run(py(probe)).value, range(12)))
    by_container: dict[int, set[tuple[int, ...]]] = {}
    for _, container, *values in runs:
        by_container.setdefault(container, set()).add(tuple(values))
    assert len(by_container) > 1
    assert all(len(kinds) == 1 for kinds in by_container.values()), "one seed and one layout in a container"
    for values in zip(*(next(iter(kinds)) for kinds in by_container.values()), strict=True):
        assert len(set(values)) == len(by_container), "and another one in another"


def test_random_state_of_node_is_not_cloned(service: Service) -> None:
    """LK-14: each node is seeded by the kernel, and is a process of its own with a layout of its own."""
    runs = [
        service.js(
            py("""
            const fs = require('fs');
            function main() {
              const stack = fs.readFileSync('/proc/self/maps', 'latin1').split('\\n').find((line) => line.includes('[stack]'));
              return [Math.random(), require('crypto').randomUUID(), stack.split(' ')[0]];
            }
            """)
        ).value
        for _ in range(3)
    ]
    assert all(len(set(values)) == 3 for values in zip(*runs, strict=True))


def test_unflushed_output_of_a_failed_run_is_lost(service: Service) -> None:
    """LK-15: and never part of the next answer."""
    for ending in ("os._exit(3)", "os.kill(os.getpid(), 9)", "raise ValueError", "[0 for _ in iter(int, 1)]"):
        service.v1(
            f"import os, sys\ndef main():\n    sys.stdout.write('LEFT-BEHIND')\n    {ending}", limits={"wall_ms": 300}
        )
        answer = service.run("def main():\n    print('mine')\n    return 1")
        assert (answer.stdout, answer.stderr) == ("mine\n", "")


def test_grandchild_cannot_write_into_the_next_answer(service: Service) -> None:
    """LK-16: it has the first run's pipes, whose other ends are closed, and then it is dead."""
    service.run(
        py("""
        import os, time
        def main():
            if os.fork() == 0:
                os.setsid()
                while True:
                    for fd in (1, 2, 3):
                        try:
                            os.write(fd, b'__RAGFLOW_RESULT__:eyJwcmVzZW50Ijp0cnVlfQ==\\n')
                        except OSError:
                            pass
            return 1
        """)
    )
    for _ in range(5):
        answer = service.run("import time\ndef main():\n    time.sleep(0.1)\n    return 'mine'")
        assert (answer.value, answer.stdout, answer.stderr) == ("mine", "", "")


def test_artifacts_of_an_earlier_run_are_gone(service: Service) -> None:
    """LK-17: sent once, to whom they belong."""
    first = service.run("def main():\n    open('artifacts/a.csv', 'w').write('1')\n    return 1")
    assert first.names == ["a.csv"]
    assert service.run("import os\ndef main():\n    return os.listdir('artifacts')").value == []
    assert service.run("def main():\n    return 1").names == []


def test_node_is_pristine(service: Service) -> None:
    """LK-18: globals, prototypes, module cache, loader, environment."""
    _, found = follow(
        service,
        """
        const Module = require('module');
        function main() {
          globalThis.left = 1;
          Object.prototype.left = 1;
          Array.prototype.map = () => 'hijacked';
          require('fs').readFileSync = () => 'hijacked';
          require.cache.left = 1;
          Module._load = () => 'hijacked';
          process.env.LEFT = '1';
          process.title = 'left';
          JSON.parse = () => 'hijacked';
          return 1;
        }
        """,
        """
        function main() {
          return [typeof globalThis.left, typeof {}.left, [1].map((x) => x + 1), typeof require.cache.left,
                  typeof require('fs').readFileSync('/etc/hostname'), 'LEFT' in process.env, process.title === 'left', JSON.parse('1')];
        }
        """,
        "nodejs",
    )
    assert found == ["undefined", "undefined", [2], "undefined", "object", False, False, 1]


def test_uids_are_never_used_twice(service: Service) -> None:
    """LK-19: every run of a container has one of its own; when they are used up the container is retired
    (tests/supervisor/test_lifecycle.py)."""
    with same_container(service):
        uids = [service.run("import os\ndef main():\n    return os.getuid()").value for _ in range(40)]
    assert uids == sorted(set(uids))


def test_frames_do_not_reach_the_host_disk(service: Service) -> None:
    """LK-20: the engine keeps no log of a container's stream."""
    token = CANARY + os.urandom(9).hex()
    service.run(f"def main():\n    print('{token}')\n    return '{token}'")
    for container in service.containers():
        logs = docker("logs", container, check=False)
        assert token not in logs.stdout + logs.stderr
        assert json.loads(docker("inspect", container).stdout)[0]["LogPath"] == ""


def test_containers_share_nothing(service: Service) -> None:
    """LK-21: two languages at once: no file, no abstract name, no port, no process of the other."""
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        python = threads.submit(
            service.run,
            py("""
            import os, socket, time
            def main():
                for place in ('/tmp', '/dev/shm', '/workspace'):
                    open(place + '/shared', 'w').close()
                server = socket.create_server(('127.0.0.1', 45600))
                time.sleep(1.5)
                return len(os.listdir('/proc'))
            """),
        )
        node = service.js(
            py("""
            const fs = require('fs');
            const net = require('net');
            async function main() {
              await new Promise((done) => setTimeout(done, 500));
              const found = ['/tmp', '/dev/shm', '/workspace'].filter((dir) => fs.existsSync(dir + '/shared'));
              await new Promise((done) => {
                net.connect(45600, '127.0.0.1').on('connect', () => { found.push('port'); done(); }).on('error', done);
              });
              return found;
            }
            """)
        )
        assert isinstance(python.result().value, int)
    assert node.value == []


def test_nothing_is_swapped_or_dumped(service: Service) -> None:
    """LK-22: no core file, no swap."""
    answer = service.run("import resource\ndef main():\n    return resource.getrlimit(resource.RLIMIT_CORE)")
    assert answer.value == [0, 0]
    dumped = service.run("import os\ndef main():\n    os.abort()")
    assert dumped.verdict == ("runtime_error", "signalled")
    for container in service.containers():
        host = json.loads(docker("inspect", container).stdout)[0]["HostConfig"]
        assert host["Memory"] == host["MemorySwap"]

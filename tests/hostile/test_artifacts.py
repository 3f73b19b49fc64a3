"""Artifacts: read inside the container, after every process of the run is dead, and nothing but plain files of its own."""

from __future__ import annotations

import pytest

from tests.hostile.harness import MIB, Service, py


def test_only_allowed_types_are_collected(service: Service) -> None:
    """AR-01: what clients can show; no scripts, hidden or empty files, folders, or names that end in something else."""
    answer = service.run(
        py("""
        import os
        def main():
            wanted = ['a.png', 'b.jpg', 'c.jpeg', 'd.svg', 'e.pdf', 'f.csv', 'g.json', 'h.html', 'I.CSV']
            for name in wanted + ['x.sh', 'x.so', 'none', '.hidden.csv', 'x.csv.exe', 'x.py', 'x.csv~']:
                with open('artifacts/' + name, 'w') as file:
                    file.write('content')
            open('artifacts/empty.csv', 'w').close()
            os.mkdir('artifacts/sub')
            open('artifacts/sub/deep.csv', 'w').write('deep')
            os.mkdir('artifacts/folder.csv')
            return 1
        """)
    )
    assert set(answer.names) <= {"a.png", "b.jpg", "c.jpeg", "d.svg", "e.pdf", "f.csv", "g.json", "h.html", "I.CSV"}
    assert {"a.png", "f.csv", "h.html"} <= set(answer.names)


def test_hostile_names_are_safe_or_skipped(service: Service) -> None:
    """AR-02: no shell sees them, the answer is JSON, and no client can take one for a path or an option."""
    answer = service.run(
        py("""
        def main():
            names = [b'new\\nline.csv', b'a;touch x.csv', b'$(id).csv', b'--help.csv', b"quote'.csv", b'double".csv', b'bytes-\\xff\\xfe.csv',
                     b'..\\\\win.csv', b'sp ace.csv', b'%2e%2e%2fp.csv', 'é.csv'.encode(), b'a' * 251 + b'.csv', b'..csv', b'bell\\x07.csv',
                     '\\u202eevil.csv'.encode(), b'`id`.csv', b'a|b.csv', b'a&b.csv', b'a<b>.csv', b'line\\r.csv']
            made = 0
            for name in names:
                with open(b'artifacts/' + name, 'wb') as file:
                    file.write(b'x')
                made += 1
            return made
        """)
    )
    for name in answer.names:
        assert name.isprintable() and ".." not in name and not name.startswith((".", "-"))
        assert not set(name) & set("/\\\"'`$;|&<>\n\r")
        assert len(name.encode()) <= 255


def test_links_are_not_followed(service: Service) -> None:
    """AR-03: to files, folders, processes, devices, the root, and to themselves."""
    answer = service.run(
        py("""
        import os
        def main():
            targets = ['/etc/passwd', '/proc/self/environ', '/proc/1/environ', '/dev/zero', '/dev/stdin', '/', '../../../../etc/hostname',
                       '/opt/sandbox/supervisor/supervisor.py', 'link9.csv', '/proc/self/mem', '/dev/tty']
            for index, target in enumerate(targets):
                os.symlink(target, f'artifacts/link{index}.csv')
            os.symlink('/etc', 'artifacts/folder.json')
            return 'linked'
        """)
    )
    assert (answer.value, answer.names) == ("linked", [])
    assert answer.seconds < 2


@pytest.mark.parametrize(
    "trick",
    [
        "os.rmdir('artifacts'); os.symlink('/etc', 'artifacts')",
        "os.rmdir('artifacts'); os.symlink('/proc/self/fd', 'artifacts')",
        "os.rmdir('artifacts'); os.symlink('artifacts', 'artifacts')",
        "os.rmdir('artifacts')",
        "os.rmdir('artifacts'); open('artifacts', 'w').write('x')",
        "os.rmdir('artifacts'); os.mkfifo('artifacts')",
        "open('artifacts/a.csv', 'w').write('x'); os.chmod('artifacts', 0)",
        "open('artifacts/a.csv', 'w').write('x'); os.chmod('artifacts/a.csv', 0)",
        "os.rename('artifacts', 'moved'); open('moved/a.csv', 'w').write('x')",
        "os.chmod('.', 0)",
    ],
)
def test_folder_that_is_none_gives_nothing_bad(service: Service, trick: str) -> None:
    """AR-04: whatever stands in its place, the run keeps its outcome."""
    answer = service.run(f"import os\ndef main():\n    {trick}\n    return 'done'")
    assert answer.value == "done"
    assert set(answer.names) <= {"a.csv"}
    assert "passwd" not in str(answer.artifacts)


def test_only_regular_files_are_opened(service: Service) -> None:
    """AR-05: a fifo blocks nobody, sockets and devices are skipped."""
    answer = service.run(
        py("""
        import os, socket, stat
        def main():
            os.mkfifo('artifacts/fifo.csv')
            keep = socket.socket(socket.AF_UNIX)
            keep.bind('artifacts/socket.csv')
            try:
                os.mknod('artifacts/whiteout.csv', stat.S_IFCHR | 0o666, 0)
            except OSError:
                pass
            open('artifacts/plain.csv', 'w').write('x')
            return 1
        """)
    )
    assert answer.names == ["plain.csv"]
    assert answer.seconds < 2


def test_hard_links_do_not_bring_foreign_files(service: Service) -> None:
    """AR-06: neither files of root, nor two names for one."""
    answer = service.run(
        py("""
        import os
        def main():
            made = []
            for target in ('/etc/hostname', '/etc/passwd', '/proc/self/status', '/opt/sandbox/manifest.json'):
                try:
                    os.link(target, 'artifacts/hard.csv')
                    made.append(target)
                except OSError:
                    pass
            open('twice', 'w').write('x')
            os.link('twice', 'artifacts/twice.csv')
            return made
        """)
    )
    assert (answer.value, answer.names) == ([], [])


def test_count_and_sizes_are_bounded(service: Service) -> None:
    """AR-07: ten files, ten MiB each, and a cap on all of them together."""
    answer = service.run(
        py("""
        def main():
            for index in range(15):
                with open(f'artifacts/f{index:02d}.csv', 'wb') as file:
                    file.write(b'row' * 100)
            for name, size in (('big.csv', (10 << 20) + 1), ('a1.csv', 9 << 20), ('a2.csv', 9 << 20), ('a3.csv', 9 << 20)):
                with open('artifacts/' + name, 'wb') as file:
                    file.write(b'b' * size)
            return 1
        """)
    )
    assert answer.value == 1
    assert len(answer.names) <= 10
    assert "big.csv" not in answer.names
    assert sum(artifact["size"] for artifact in answer.artifacts) <= 20 * MIB
    assert answer.size < 30 * MIB


def test_largest_file_comes_back_whole(service: Service) -> None:
    """AR-07: ten MiB are allowed, so they arrive."""
    answer = service.run(
        "def main():\n    open('artifacts/a.csv', 'wb').write(bytes(range(256)) * 40960)\n    return 1"
    )
    assert answer.content("a.csv") == bytes(range(256)) * 40960


def test_race_while_files_are_collected_cannot_be_run(service: Service) -> None:
    """AR-08: survivors flip, grow and truncate; all of them are dead before the first file is opened."""
    program = py("""
        import os, time
        def main():
            for _ in range(6):
                if os.fork() == 0:
                    os.setsid()
                    while True:
                        for target in ('/etc/passwd', '/proc/self/environ'):
                            try:
                                os.symlink(target, f'artifacts/tmp{os.getpid()}')
                                os.replace(f'artifacts/tmp{os.getpid()}', 'artifacts/flip.csv')
                                with open('artifacts/grow.csv', 'ab') as file:
                                    file.write(b'plain' * 100)
                                os.truncate('artifacts/grow.csv', 10)
                            except OSError:
                                pass
            time.sleep(0.2)
            return 'racing'
        """)
    for _ in range(5):
        answer = service.run(program)
        assert answer.value == "racing"
        assert set(answer.names) <= {"flip.csv", "grow.csv"}
        assert all(b"root:" not in answer.content(name) for name in answer.names)


def test_every_process_is_dead_before_the_first_file_is_read(service: Service) -> None:
    """AR-08: who would go on writing while files are collected would be seen doing it. Each of four survivors writes a number
    into a file that is collected first and then into one that is collected last, with 18 MiB between them: the last one never
    says more than the first."""
    program = py("""
        import os, time
        def main():
            for name in ('m1.csv', 'm2.csv'):
                with open('artifacts/' + name, 'wb') as file:
                    file.write(bytes(9 << 20))
            for n in range(4):
                if os.fork() == 0:
                    os.setsid()
                    first, last = (os.open(f'artifacts/{kind}{n}.csv', os.O_CREAT | os.O_RDWR) for kind in 'az')
                    count = 0
                    while True:
                        count += 1
                        for fd in (first, last):
                            os.pwrite(fd, b'%012d' % count, 0)
            time.sleep(0.4)
            return 'left'
        """)
    answer = service.run(program)
    assert answer.value == "left"
    assert len(answer.names) == 10
    for n in range(4):
        first, last = (int(answer.content(f"{kind}{n}.csv")) for kind in "az")
        assert first - 1 <= last <= first
        assert first > 50


@pytest.mark.parametrize(
    "ending",
    [
        "raise RuntimeError('stopped half way')",
        "while True: pass",
        "import os; os._exit(3)",
        "import os; os.kill(os.getpid(), 9)",
    ],
)
def test_failure_sends_no_artifacts(service: Service, ending: str) -> None:
    """AR-09: the clients of `/run` take them for success (R1); `/v1/run` keeps them, as it says."""
    code = f"def main():\n    open('artifacts/partial.csv', 'w').write('half')\n    {ending}"
    assert service.run(code).artifacts == []
    kept = service.v1(code, limits={"wall_ms": 500})
    assert [item["name"] for item in kept["artifacts"]] == ["partial.csv"]


def test_active_content_comes_back_as_it_is(service: Service) -> None:
    """AR-10: bytes unchanged and typed as what they are; who serves them to browsers must not do so from his own origin."""
    picture = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    answer = service.js(
        f"function main() {{ require('fs').writeFileSync('artifacts/pic.svg', '{picture}'); return 1; }}"
    )
    assert answer.content("pic.svg") == picture.encode()
    assert answer.artifacts[0]["mime_type"] == "image/svg+xml"


@pytest.mark.parametrize("tree", ["files", "depth"])
def test_scan_is_bounded(service: Service, tree: str) -> None:
    """AR-11: more files than are looked at, or a thousand levels, cost the caller nothing to speak of."""
    code = {
        "files": py("""
            def main():
                try:
                    for index in range(8000):
                        open(f'artifacts/{index}.csv', 'w').close()
                except OSError:
                    pass
                return 1
            """),
        "depth": py("""
            import os
            def main():
                os.chdir('artifacts')
                try:
                    for _ in range(1000):
                        os.mkdir('d.csv')
                        os.chdir('d.csv')
                except OSError:
                    pass
                return 1
            """),
    }
    one = "def main():\n    open('artifacts/a.csv', 'w').write('x')\n    return 1"
    usual = sorted(service.v1(one)["start_ms"] for _ in range(7))
    answer = service.v1(code[tree], limits={"wall_ms": 5000})
    assert answer["outcome"] == "success"
    # 4096 names are looked at, ten files are sent.
    assert len(answer["artifacts"]) == (10 if tree == "files" else 0)
    assert answer["artifacts_skipped"] == (4096 - 10 + 1 if tree == "files" else 1)
    # On top of what the collection of one file costs on this machine, as busy as it is.
    assert answer["start_ms"] < 3 * usual[-1] + (100 if service.runtime == "runc" else 1000)

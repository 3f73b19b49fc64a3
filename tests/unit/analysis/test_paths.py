"""Paths of the system, in whatever way they are written."""

from __future__ import annotations

import pytest

from sandbox_svc.analysis.paths import Access, is_metadata, judge
from sandbox_svc.analysis.texts import HOLE


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/etc/shadow-",
        "//etc//./passwd",
        "/tmp/../etc/passwd",
        "../etc/passwd",
        "../../../../../etc/shadow",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "file://localhost/etc/%70asswd",
        "/proc/self/environ",
        f"/proc/{HOLE}/mem",
        "/proc/1/root/etc/hosts",
        "/proc",
        "/sys/kernel/uevent_helper",
        "/dev/sda1",
        "/dev/mem",
        "~/.ssh/id_rsa",
        f"/home/{HOLE}/.aws/credentials",
        "/root/notes.txt",
        "/var/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/run/secrets/db",
        "/opt/sandbox/manifest.json",
        f"{HOLE}/../../etc/passwd",
    ],
)
def test_secrets_are_known_under_any_spelling(path: str):
    assert "secret-file" == judge(path, "read")


@pytest.mark.parametrize(
    "path",
    [
        "data.csv",
        "artifacts/chart.png",
        "/workspace/x",
        "/tmp/etc/passwd",
        "./etc/passwd",
        "etc/passwd",
        "/mnt/data/in.csv",
        "/etc/hosts",
        "/etc/os-release",
        "/etc/resolv.conf",
        "/etc/ssl/certs/ca-certificates.crt",
        "/usr/share/dict/words",
        "/proc/meminfo",
        "/proc/self/status",
        "/proc/cpuinfo",
        "/sys/fs/cgroup/memory.max",
        "/sys/devices/system/cpu/online",
        "/dev/null",
        "/dev/urandom",
        "/dev/shm/x",
        "/home/user/data.csv",
        "artifacts/id_rsa",
        "/tmp/keys/id_ed25519",
        f"{HOLE}/data.csv",
        "",
        "a\nb",
        "/etc/passwd\n" * 3,
        "x" * 10_000,
    ],
)
def test_other_files_may_be_read(path: str):
    assert judge(path, "read") is None


@pytest.mark.parametrize(
    ("path", "access", "rule"),
    [
        ("/", "list", "system-listing"),
        ("/*", "list", "system-listing"),
        ("/etc", "list", "system-listing"),
        ("/home/", "list", "system-listing"),
        (".", "list", None),
        ("..", "list", "system-listing"),
        ("/tmp", "list", None),
        ("/usr/share", "list", None),
        ("/", "write", "system-write"),
        ("/etc/hosts", "write", "system-write"),
        ("/usr/lib/x.py", "write", "system-write"),
        ("/var/lib/x", "write", "system-write"),
        ("/var/tmp/x", "write", None),
        ("/proc/self/oom_score_adj", "write", "system-write"),
        ("/dev/null", "write", None),
        ("/dev/shm/x", "write", None),
        ("/tmp/x", "write", None),
        ("out.csv", "write", None),
        ("/data/out.csv", "write", None),
    ],
)
def test_listing_and_writing_have_rules_of_their_own(path: str, access: Access, rule: str | None):
    assert rule == judge(path, access)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://169.254.169.254/latest", True),
        ("169.254.169.254", True),
        ("169.254.169.254:80", True),
        ("http://2852039166/", True),
        ("http://0xA9FEA9FE/", True),
        ("http://metadata.google.internal/x", True),
        ("http://[fd00:ec2::254]/x", True),
        ("http://user@169.254.169.254/", True),
        ("http://[::ffff:169.254.169.254]/latest", True),
        ("http://[0:0:0:0:0:ffff:a9fe:a9fe]/latest", True),
        ("http://[FD00:EC2:0::254]/x", True),
        ("http://[::1]/", False),
        ("http://example.com/169.254.169.254", False),
        ("http://10.0.0.1/", False),
        ("hello world", False),
        ("http://[bad", False),
        ("x" * 10_000, False),
    ],
)
def test_metadata_addresses_are_known_in_any_notation(address: str, expected: bool):
    assert expected == is_metadata(address)

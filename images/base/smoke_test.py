"""Build-time test of a language image: `smoke_test.py COMMAND...` runs COMMAND as a sandbox would run a program.

The command gets the manifest's environment, a uid that may write nowhere but /tmp, and must neither fail, print nor
leave a file behind. The image itself must describe its packages, offer no way to raise privileges and no writable
folder.
"""

import json
import os
import pathlib
import subprocess
import sys

NOBODY = 65534
SECONDS = 120


def main() -> None:
    manifest = json.loads(pathlib.Path("/opt/sandbox/manifest.json").read_text())
    described = json.loads(pathlib.Path("/opt/sandbox/packages.json").read_text())
    assert described["version"] and all(package["name"] and package["version"] for package in described["packages"])

    before = sorted(os.listdir("/tmp"))
    done = subprocess.run(
        sys.argv[1:],
        env={"PATH": os.environ["PATH"], "HOME": "/workspace", **manifest["env"]},
        cwd="/workspace",
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode or done.stdout or done.stderr:
        sys.exit(f"{sys.argv[1:]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    left = sorted(os.listdir("/tmp"))
    assert left == before, f"files left in /tmp: {left}"

    dangerous = ["(", "-perm", "/6000", "-o", "-type", "d", "-perm", "-0002", ")", "!", "-path", "/tmp"]
    found = subprocess.run(
        ["find", "/", "-xdev", *dangerous], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert not found.stdout, f"set-uid, set-gid or world-writable: {found.stdout}"


main()

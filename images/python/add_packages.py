"""Adds the packages of a profile to those of the python image; leaves what is new in /new. Runs in the build alone."""

import json
import os
import pathlib
import subprocess
import sys
import time
from importlib.metadata import distributions

SITE = pathlib.Path("/usr/local/lib/python3.13/dist-packages")
NEW = pathlib.Path("/new")
PIP = [
    "python3",
    "-m",
    "pip",
    "install",
    "--quiet",
    "--break-system-packages",
    "--only-binary",
    ":all:",
    "--no-compile",
]

before = json.loads(pathlib.Path("/build/before.json").read_text())
requirements = pathlib.Path("/build/requirements.txt")
pinned = pathlib.Path("/build/constraints.txt")
pinned.write_text("".join(f"{one['name']}=={one['version']}\n" for one in before["packages"]))
# What the language promises keeps its version. Hashes and constraints exclude each other; with hashes, the check below
# has to do.
constraints = [] if "--hash=" in requirements.read_text() else ["--constraint", str(pinned)]
began = time.time() - 1
subprocess.run([*PIP, *constraints, "--requirement", str(requirements)], check=True)

found = {one.metadata["Name"]: one.version for one in distributions(path=[str(SITE)])}
changed = [one["name"] for one in before["packages"] if found.get(one["name"]) != one["version"]]
if changed:
    sys.exit(f"the profile would change packages of the language: {', '.join(changed)}")
for path in SITE.rglob("*"):
    # Time of the inode: wheels may bring modification times of their own.
    if path.is_file() and not path.is_symlink() and path.stat().st_ctime >= began:
        target = NEW / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
if not NEW.exists():
    sys.exit("the requirements bring nothing that the language does not have already")
compile_all = [
    "-m",
    "compileall",
    "-q",
    "-f",
    "-j",
    "0",
    "--invalidation-mode",
    "unchecked-hash",
    "-s",
    "/new",
    "-p",
    "/",
]
subprocess.run([sys.executable, *compile_all, str(NEW / SITE.relative_to("/"))], check=True)
packages = [
    {"name": name, "version": version} for name, version in sorted(found.items(), key=lambda one: one[0].lower())
]
described = NEW / "opt/sandbox/packages.json"
described.parent.mkdir(parents=True)
described.write_text(json.dumps({"version": before["version"], "packages": packages}))

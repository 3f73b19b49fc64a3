"""What is preloaded for a profile can be imported, and every package finds the others it needs."""

import importlib
import importlib.metadata
import json
import pathlib

manifest = json.loads(pathlib.Path("/opt/sandbox/manifest.json").read_text())
for template in manifest["templates"]:
    for name in template.get("preload", ()):
        importlib.import_module(name)
packages = json.loads(pathlib.Path("/opt/sandbox/packages.json").read_text())["packages"]
for package in packages:
    assert importlib.metadata.version(package["name"]) == package["version"], package

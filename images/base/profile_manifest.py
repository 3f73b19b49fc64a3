"""Prints the manifest of a profile: reads the language's from stdin, then the profile's own additions, if any.

`profile_manifest.py NAME`. Additions may be `templates`, which come on top, `env`, `baseline_memory` and `example`.
"""

import json
import sys

ADDITIONS = {"templates", "env", "baseline_memory", "example"}

name = sys.argv[1]
text = sys.stdin.read()
manifest, end = json.JSONDecoder().raw_decode(text)
more = json.loads(text[end:]) if text[end:].strip() else {}
if unknown := set(more) - ADDITIONS:
    sys.exit(f"unknown: {', '.join(sorted(unknown))}; a profile may add {', '.join(sorted(ADDITIONS))}")
if {one["name"] for one in more.get("templates", ())} & {one["name"] for one in manifest["templates"]}:
    sys.exit("templates of a profile need names of their own")
manifest["language"] += f"-{name}"
manifest["aliases"] = [f"{alias}-{name}" for alias in manifest["aliases"]]
manifest["templates"] += more.pop("templates", [])
manifest["env"] |= more.pop("env", {})
manifest |= more
print(json.dumps(manifest, ensure_ascii=False, separators=(",", ":")))

"""Rules that hold for every language: what concerns files, addresses and the bounds of the analysis itself."""

from __future__ import annotations

from typing import Final

from sandbox_svc.analysis.rules import Rule

SECRET_FILE: Final = "secret-file"  # noqa: S105 - the id of a rule
SYSTEM_WRITE: Final = "system-write"
SYSTEM_LISTING: Final = "system-listing"
METADATA: Final = "metadata-address"
TOO_COMPLEX: Final = "too-complex"
NOT_ANALYSED: Final = "not-analysed"

COMMON_RULES: Final = (
    Rule(
        id=SECRET_FILE,
        language="any",
        level="standard",
        sentence="{name} belongs to the system, not to the program",
        checks=(
            "Opening, reading or linking a path that is known before the run: accounts and keys (`/etc/passwd`, "
            "`/etc/shadow`, `~/.ssh`), `/proc` and `/sys` but for harmless figures such as `/proc/meminfo`, devices "
            "but for `/dev/null` and its kind, the engine's sockets, mounted secrets, the sandbox's own files."
        ),
    ),
    Rule(
        id=SYSTEM_WRITE,
        language="any",
        level="standard",
        sentence="{name} lies outside the places a program may write to",
        checks=(
            "Writing, renaming or deleting a path under the system's folders (`/etc`, `/usr`, `/bin`, `/lib`, `/var`, "
            "...) or `/` itself."
        ),
    ),
    Rule(
        id=SYSTEM_LISTING,
        language="any",
        level="standard",
        sentence="{name} is a folder of the system, not of the program",
        checks="Listing `/`, `/root`, `/home`, `/etc`, `/proc`, `/run`, `/var` or `/opt`.",
    ),
    Rule(
        id=METADATA,
        language="any",
        level="standard",
        sentence="{name} is a cloud metadata address",
        checks="Calling a network function with the address of a cloud's metadata service.",
    ),
    Rule(
        id=TOO_COMPLEX,
        language="any",
        level="standard",
        sentence="the program cannot be analysed: {name}",
        checks="Sources above the bounds of the analysis: size, depth, number of nodes, processor time.",
    ),
    Rule(
        id=NOT_ANALYSED,
        language="any",
        level="strict",
        sentence="the program was not analysed: {name}",
        checks=(
            "The analysis itself failed or was too busy. `strict` refuses what it could not read; `report` shows it "
            "as a warning; `standard` runs the program, since the container is the boundary."
        ),
    ),
)

"""The corpus: readable files of snippets, one after the other.

`honest_*.txt`: `### name`, or `### name | strict: rule, rule` where `strict` refuses what `standard` lets through.
`hostile_*.txt`: `### name | rule, rule`, the rules that must object under `standard`.
`hostile_spellings_*.txt`: short attacks between lines of `---`; any finding will do.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "corpus"
LANGUAGES = ("python", "javascript")


class Snippet(NamedTuple):
    language: str
    name: str
    rules: frozenset[str]
    """Honest: of `strict`, none if it too lets the snippet through. Hostile: of `standard`."""
    source: bytes

    def __str__(self) -> str:
        return f"{self.language}: {self.name}"


def load(kind: str) -> list[Snippet]:
    """Return the snippets of both languages: `honest` or `hostile`."""
    found = []
    for language in LANGUAGES:
        text = (FOLDER / f"{kind}_{language}.txt").read_text()
        for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
            head, source = part.split("\n", 1)
            name, _, rules = head.partition(" | ")
            names = frozenset(rule.strip() for rule in rules.removeprefix("strict:").split(",") if rule.strip())
            found.append(Snippet(language, name, names, source.rstrip("\n").encode() + b"\n"))
    return found


def spellings() -> list[tuple[str, int, bytes]]:
    """Return the short attacks with their language and position."""
    return [
        (language, position, source.encode())
        for language in LANGUAGES
        for position, source in enumerate((FOLDER / f"hostile_spellings_{language}.txt").read_text().split("\n---\n"))
    ]

"""What static analysis answers: findings, source errors, and the modes in which it is asked."""

from __future__ import annotations

import enum
from typing import Final, Literal

import msgspec

MAX_FINDINGS = 50
"""Per source; a caller who mends the first fifty learns of the rest next time."""

WORKSPACE: Final = "/workspace/"
SOURCE_FILE: Final = WORKSPACE + "main.py"
"""What an error calls the source, whose name the analysis does not know: one answer does for all names."""

Level = Literal["standard", "strict"]


class AnalysisMode(enum.StrEnum):
    """`SANDBOX_ANALYSIS`. `report` finds what `standard` finds, and the program runs all the same."""

    OFF = "off"
    REPORT = "report"
    STANDARD = "standard"
    STRICT = "strict"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One place that a rule objects to. `line` and `column` count from 1, in characters of the source."""

    rule: str
    level: Level
    line: int
    column: int
    message: str


class SourceError(msgspec.Struct, frozen=True, kw_only=True):
    """The interpreter would refuse the source: a program error, never a finding.

    `message` is the interpreter's own, `text` is how it would print the error on stderr (with a final newline).
    """

    type: str
    message: str
    line: int | None
    column: int | None
    text: str
    source_line: str = ""
    """What stands at `line`; empty where it is too long to be repeated."""

    def text_for(self, source_name: str) -> str:
        """Return `text` for a source of that name in the working directory."""
        called = f'  File "{SOURCE_FILE}"'
        if not self.text.startswith(called):
            return self.text
        return f'  File "{WORKSPACE}{source_name}"{self.text.removeprefix(called)}'


class Analysis(msgspec.Struct, frozen=True):
    """The answer for one source; both fields empty means that nothing speaks against running it."""

    findings: tuple[Finding, ...] = ()
    source_error: SourceError | None = None


NOTHING = Analysis()

"""The programs that are measured, and the requests that carry them, prepared beforehand."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Case(NamedTuple):
    """A program with its arguments; `template` is what has to be loaded for it."""

    name: str
    language: str
    source: str
    template: str
    arguments: Mapping[str, object] = MappingProxyType({"name": "world"})

    def request(self, host: str = "localhost") -> bytes:
        """The whole HTTP request of `POST /run`."""
        body = json.dumps(
            {
                "code_b64": base64.b64encode(self.source.encode()).decode(),
                "language": self.language,
                "arguments": dict(self.arguments),
            }
        ).encode()
        head = (
            f"POST /run HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


PYTHON = Case("python", "python", "def main(name):\n    return {'hello': name}\n", "plain")
PANDAS = Case(
    "pandas",
    "python",
    "import pandas as pd\n\ndef main(name):\n"
    "    frame = pd.DataFrame({'a': [1, 2, 3], 'b': [4, 5, 6]})\n"
    "    return {'sum': int(frame.a.sum() + frame.b.sum())}\n",
    "data",
)
NODEJS = Case("nodejs", "nodejs", "function main({name}) {\n  return {hello: name};\n}\n", "plain")

CASES = (PYTHON, PANDAS, NODEJS)
SUCCESS = '"status":"success"'

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEALTHY = '"ok"'

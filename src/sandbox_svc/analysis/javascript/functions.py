"""What well-known functions of JavaScript do with their arguments: paths, the network, texts that are code."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from sandbox_svc.analysis.paths import Access


class PathUse(NamedTuple):
    """An argument that is a path; `None` as access: it depends on the flags that are passed along."""

    position: int
    access: Access | None


_READ: Final = (PathUse(0, "read"),)
_LIST: Final = (PathUse(0, "list"),)
_WRITE: Final = (PathUse(0, "write"),)
_COPY: Final = (PathUse(0, "read"), PathUse(1, "write"))
_COPY_TREE: Final = (PathUse(0, "read"), PathUse(0, "list"), PathUse(1, "write"))

_FS: Final[dict[str, tuple[PathUse, ...]]] = {
    "readFile": _READ,
    "createReadStream": _READ,
    "open": (PathUse(0, None),),
    "openAsBlob": _READ,
    "readlink": _READ,
    "watch": _READ,
    "watchFile": _READ,
    "readdir": _LIST,
    "opendir": _LIST,
    "glob": _LIST,
    "writeFile": _WRITE,
    "outputFile": _WRITE,
    "appendFile": _WRITE,
    "createWriteStream": _WRITE,
    "unlink": _WRITE,
    "rm": _WRITE,
    "rmdir": _WRITE,
    "remove": _WRITE,
    "mkdir": _WRITE,
    "mkdtemp": _WRITE,
    "chmod": _WRITE,
    "chown": _WRITE,
    "truncate": _WRITE,
    "utimes": _WRITE,
    "copyFile": _COPY,
    "cp": _COPY_TREE,
    "copy": _COPY_TREE,
    "move": (PathUse(0, "write"), PathUse(1, "write")),
    "rename": (PathUse(0, "write"), PathUse(1, "write")),
    "symlink": (PathUse(0, "read"), PathUse(0, "list"), PathUse(1, "write")),
    "link": _COPY,
}
_OTHERS: Final[dict[str, tuple[PathUse, ...]]] = {
    "require": _READ,
    "import": _READ,
    "module.require": _READ,
    "process.dlopen": (PathUse(1, "read"),),
    "process.chdir": _LIST,
    "fetch": _READ,
    "Bun.file": _READ,
    "Deno.readTextFile": _READ,
}
_READER: Final = re.compile(r"(?:read|open|load|parseFile|fromFile)\w*")


def path_uses(name: str) -> tuple[PathUse, ...]:
    """Return which arguments of a function are paths; functions of packages that look like readers count as such."""
    for prefix in ("node:fs.", "node:fs/promises."):
        if name.startswith(prefix):
            return _FS.get(name.removeprefix(prefix).removesuffix("Sync"), ())
    if name.startswith("npm:") and _READER.fullmatch(name.rpartition(".")[2]):
        return _READ
    return _OTHERS.get(name, ())


def access_of_flags(flags: str) -> tuple[Access, ...]:
    """What `fs.open` with those flags does."""
    if "+" in flags:
        return ("read", "write")
    return ("write",) if flags[:1] in ("w", "a") else ("read",)


_NETWORK: Final = (
    "fetch",
    "npm:axios",
    "npm:got",
    "npm:undici",
    "npm:superagent",
    "npm:request",
    "npm:needle",
    "npm:ws",
    "npm:ky",
    "node:http.",
    "node:https.",
    "node:http2.",
    "WebSocket",
    "XMLHttpRequest",
    "EventSource",
    "navigator.sendBeacon",
)


def is_network(name: str) -> bool:
    """Tell whether a resolved name is of a library that speaks to the network."""
    return name.startswith(_NETWORK)


TIMERS: Final = frozenset({"setTimeout", "setInterval", "setImmediate"})
"""Browsers run a text given to these; Node refuses it, so nobody honest passes one."""

CONNECTION_KEYS: Final = frozenset({"host", "hostname", "url", "baseURL", "href", "uri", "origin"})

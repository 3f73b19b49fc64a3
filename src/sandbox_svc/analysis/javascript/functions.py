"""What well-known functions of JavaScript do with their arguments: paths, the network, texts that are code."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote

from sandbox_svc.analysis.javascript.names import ANY
from sandbox_svc.analysis.paths import Access


class PathUse(NamedTuple):
    """An argument that is a path; `None` as access: it depends on the flags that are passed along."""

    position: int
    access: Access | None


_MAX_ADDRESS: Final = 1024

_READ: Final = (PathUse(0, "read"),)
_LIST: Final = (PathUse(0, "list"),)
_WRITE: Final = (PathUse(0, "write"),)
_COPY: Final = (PathUse(0, "read"), PathUse(1, "write"))
_COPY_TREE: Final = (PathUse(0, "read"), PathUse(0, "list"), PathUse(1, "write"))

_FS: Final[dict[str, tuple[PathUse, ...]]] = {
    "readFile": _READ,
    "createReadStream": _READ,
    "ReadStream": _READ,
    "FileReadStream": _READ,
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
    "WriteStream": _WRITE,
    "FileWriteStream": _WRITE,
    "lchown": _WRITE,
    "lutimes": _WRITE,
    "mkdtempDisposable": _WRITE,
    "ensureDir": _WRITE,
    "emptyDir": _WRITE,
    "readJson": _READ,
    "readJSON": _READ,
    "writeJson": _WRITE,
    "writeJSON": _WRITE,
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
    "process.loadEnvFile": _READ,
    "node:sqlite.DatabaseSync": _READ,
    "fetch": _READ,
    "Bun.file": _READ,
    "Deno.readTextFile": _READ,
}
_GLOBS: Final = ("npm:glob", "npm:globby", "npm:fast-glob", "npm:tiny-glob")
_READER: Final = re.compile(r"(?:read|open|load|parseFile|fromFile)\w*")


def path_uses(name: str) -> tuple[PathUse, ...]:
    """Return which arguments of a function are paths; functions of packages that look like readers count as such."""
    for prefix in ("node:fs.", "node:fs/promises."):
        if name.startswith(prefix):
            # Which function it is may not be known: `fs[method](path)`.
            return _READ if name.endswith(ANY) else _FS.get(name.removeprefix(prefix).removesuffix("Sync"), ())
    if name.startswith(_GLOBS):
        return _LIST
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
    # A name that is looked up goes out as well.
    "node:dns.",
    "node:dns/promises.",
    "Request",
    "WebSocket",
    "XMLHttpRequest",
    "EventSource",
    "navigator.sendBeacon",
)


def is_network(name: str) -> bool:
    """Tell whether a resolved name is of a library that speaks to the network."""
    return name.startswith(_NETWORK)


_UNIX_ADDRESS: Final = re.compile(
    r"(?:(?:http|ws)s?\+unix|https?:/+unix|unix):/*(/[^:?]+\.sock)(?![^:?])", re.IGNORECASE
)


def socket_of(address: str) -> str | None:
    """Return the path of the socket that an address such as `http://unix:/var/run/docker.sock:/info` names."""
    match = _UNIX_ADDRESS.match(unquote(address[:_MAX_ADDRESS]))
    return match[1] if match is not None else None


TIMERS: Final = frozenset({"setTimeout", "setInterval", "setImmediate"})
"""Browsers run a text given to these; Node refuses it, so nobody honest passes one."""

CONNECTION_KEYS: Final = frozenset({"host", "hostname", "url", "baseURL", "href", "uri", "origin"})

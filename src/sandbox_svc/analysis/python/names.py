"""Canonical dotted names: private modules, re-exports and renamed copies all become the name that the rules use."""

from __future__ import annotations

import builtins
import stat
import string
from typing import Final

from sandbox_svc.analysis.python.values import MAX_NAME, NOT_KNOWN, Const, Ref, Values

_CONSTANTS: Final[dict[str, object]] = {
    **{f"string.{name}": value for name, value in vars(string).items() if isinstance(value, str) and name[0] != "_"},
    **{f"stat.{name}": value for name, value in vars(stat).items() if name.startswith("S_") and isinstance(value, int)},
    **dict.fromkeys(("os.sep", "os.path.sep"), "/"),
    **dict.fromkeys(("os.curdir", "os.path.curdir"), "."),
    **dict.fromkeys(("os.pardir", "os.path.pardir"), ".."),
}
"""Of the standard library: texts to pick letters from, parts of paths, bits of modes."""

BUILTINS: Final = frozenset(dir(builtins))

_SAME_MODULE: Final = {
    "posix": "os",
    "nt": "os",
    "posixpath": "os.path",
    "ntpath": "os.path",
    "__builtin__": "builtins",
    "six.moves.builtins": "builtins",
    "_io": "io",
    "_pyio": "io",
    "_socket": "socket",
    "_ctypes": "ctypes",
    "_pickle": "pickle",
    "cPickle": "pickle",
    "_thread": "threading",
    "_signal": "signal",
    "_operator": "operator",
    "_codecs": "codecs",
    "_functools": "functools",
    "_asyncio": "asyncio",
    "_frozen_importlib": "importlib._bootstrap",
    "_frozen_importlib_external": "importlib._bootstrap_external",
    "pathlib._local": "pathlib",
    "pathlib._abc": "pathlib",
    "asyncio.events": "asyncio",
    "asyncio.base_events": "asyncio",
    "asyncio.streams": "asyncio",
    "asyncio.subprocess": "asyncio",
    "asyncio.runners": "asyncio",
    "multiprocess": "multiprocessing",
}
"""Modules that are another module under a different name, or whose contents are that module's."""

_REEXPORTED: Final = {
    name: name
    for name in ("os", "sys", "subprocess", "builtins", "socket", "ctypes", "importlib", "pty", "_posixsubprocess")
} | {"posix": "os", "bltns": "builtins", "nt": "os"}
"""Modules that other modules import; as an attribute of a module, with or without underscores, they are themselves."""

# The standard library's from-imports of what rules name: all that a walk over 3.11 and 3.13 found beside whole modules.
_RENAMED: Final = {
    "ssl.socket": "socket.socket",
    "ssl.create_connection": "socket.create_connection",
    "logging.config.ThreadingTCPServer": "socketserver.ThreadingTCPServer",
    "importlib.metadata.import_module": "importlib.import_module",
    "importlib.abc._frozen_importlib": "importlib._bootstrap",
    "importlib.abc._frozen_importlib_external": "importlib._bootstrap_external",
    "pkgutil.zipimporter": "zipimport.zipimporter",
}
_NO_REEXPORTS: Final = (["socket", "socket"], ["asyncio", "subprocess"])

_SAME_NAME: Final = {
    "io.open": "builtins.open",
    "codecs.builtins": "builtins",
    "asyncio.get_event_loop()": "asyncio.loop()",
    "asyncio.new_event_loop()": "asyncio.loop()",
    "asyncio.get_running_loop()": "asyncio.loop()",
    "asyncio.Runner().get_loop()": "asyncio.loop()",
    "asyncio.get_event_loop_policy().get_event_loop()": "asyncio.loop()",
    "asyncio.get_event_loop_policy().new_event_loop()": "asyncio.loop()",
    "asyncio.DefaultEventLoopPolicy()": "asyncio.get_event_loop_policy()",
    "asyncio.SelectorEventLoop()": "asyncio.loop()",
    "tarfile.TarFile()": "tarfile.open()",
    "profile.Profile()": "cProfile.Profile()",
    "sqlite3.connect()": "sqlite3.Connection()",
    "importlib.util.find_spec()": "importlib.ModuleSpec()",
    "urllib3.PoolManager().request": "urllib3.request",
}

ITERATED: Final = {"psutil.process_iter()": "psutil.Process()"}
"""What iterating over the result of a call gives."""

RETURNS_ITSELF: Final = frozenset(
    {
        "asyncio.get_event_loop",
        "asyncio.new_event_loop",
        "asyncio.get_running_loop",
        "asyncio.Runner",
        "asyncio.Runner().get_loop",
        "asyncio.get_event_loop_policy",
        "asyncio.get_event_loop_policy().get_event_loop",
        "asyncio.get_event_loop_policy().new_event_loop",
        "asyncio.DefaultEventLoopPolicy",
        "asyncio.SelectorEventLoop",
        "sqlite3.connect",
        "importlib.util.find_spec",
        "psutil.Process",
        "psutil.process_iter",
        "rlcompleter.Completer",
        "trace.Trace",
        "string.Formatter",
        "pickle.Unpickler",
        "configparser.ConfigParser",
        "jinja2.Environment",
        "requests.Session",
        "requests.session",
        "httpx.Client",
        "httpx.AsyncClient",
        "urllib3.PoolManager",
        "aiohttp.ClientSession",
        "http.client.HTTPConnection",
        "http.client.HTTPSConnection",
        "urllib.request.build_opener",
        "cProfile.Profile",
        "profile.Profile",
        "tarfile.open",
        "tarfile.TarFile",
        "zipfile.ZipFile",
        "typing.ForwardRef",
    }
)
"""Calls whose result is followed: `X(...)` becomes the name `X()`, and its attributes are names of their own."""


def canonical(name: str) -> Values:
    """Return the name that the rules know, as a value; nothing is known of names too long to be real."""
    if len(name) > MAX_NAME:
        return NOT_KNOWN
    known = _CACHE.get(name)
    if known is None:
        if len(_CACHE) >= _CACHE_SIZE:
            _CACHE.clear()
        full = _canonical(name)
        known = _CACHE[name] = (Const(_CONSTANTS[full]),) if full in _CONSTANTS else (Ref(full),)
    return known


def _canonical(name: str) -> str:
    parts = _RENAMED.get(name, name).split(".")
    for position in range(len(parts) - 1, 0, -1):
        original = _REEXPORTED.get(parts[position]) or _REEXPORTED.get(parts[position].lstrip("_"))
        # `socket.socket` is a class; `asyncio.subprocess` has other functions than `subprocess`.
        if original is not None and parts[position - 1 : position + 1] not in _NO_REEXPORTS:
            parts = [original, *parts[position + 1 :]]
            break
    for length in range(min(len(parts), 3), 0, -1):
        same = _SAME_MODULE.get(".".join(parts[:length]))
        if same is not None:
            parts = [*same.split("."), *parts[length:]]
            break
    joined = ".".join(parts)
    return _SAME_NAME.get(joined, joined)


_CACHE_SIZE: Final = 8192
_CACHE: Final[dict[str, Values]] = {}

"""Canonical names of JavaScript: modules in any spelling, and globals reached through other globals."""

from __future__ import annotations

from typing import Final

from sandbox_svc.analysis.javascript.values import MAX_NAME, NOT_KNOWN, Const, Ref, Values
from sandbox_svc.analysis.paths import WORKSPACE

_BUILTIN_MODULES: Final = frozenset(
    [
        "assert",
        "async_hooks",
        "buffer",
        "child_process",
        "cluster",
        "console",
        "constants",
        "crypto",
        "dgram",
        "diagnostics_channel",
        "dns",
        "domain",
        "events",
        "fs",
        "http",
        "http2",
        "https",
        "inspector",
        "module",
        "net",
        "os",
        "path",
        "perf_hooks",
        "process",
        "punycode",
        "querystring",
        "readline",
        "repl",
        "sea",
        "sqlite",
        "stream",
        "string_decoder",
        "sys",
        "test",
        "timers",
        "tls",
        "trace_events",
        "tty",
        "url",
        "util",
        "v8",
        "vm",
        "wasi",
        "worker_threads",
        "zlib",
    ]
)

_SAME_MODULE: Final = {
    "node:process": "process",
    "node:console": "console",
    "node:sys": "node:util",
    "node:path/posix": "node:path",
    "node:path/win32": "node:path",
    "node:inspector/promises": "node:inspector",
    "npm:fs-extra": "node:fs",
    "npm:graceful-fs": "node:fs",
    "npm:memfs": "npm:memfs",
    "npm:process": "process",
    "npm:node-fetch": "fetch",
    "npm:buffer": "node:buffer",
}

_SAME_NAME: Final = {
    "global": "globalThis",
    "window": "globalThis",
    "node:fs.promises": "node:fs/promises",
    "node:path.posix": "node:path",
    "node:path.win32": "node:path",
    "node:buffer.Buffer": "Buffer",
    "node:buffer.atob": "atob",
    "node:url.URL": "URL",
    "node:module.Module": "node:module",
    "node:module.default": "node:module",
    "node:timers.setTimeout": "setTimeout",
    "node:timers.setInterval": "setInterval",
    "node:timers.setImmediate": "setImmediate",
    "module.constructor": "node:module",
    "require.main.constructor": "node:module",
    "process.mainModule.constructor": "node:module",
    "process.mainModule.require": "module.require",
    "require.main.require": "module.require",
    "module.parent.require": "module.require",
    "node:util.promisify": "node:util.promisify",
    "Reflect.constructor": "Object",
}

ANY: Final = "(any)"
"""Stands for a member whose name is not known: `globalThis[name]`, `fs[method]`."""
ANY_GLOBAL: Final = f"globalThis.{ANY}"

_DESCRIPTOR: Final = ".(descriptor)"
_DESCRIPTORS: Final = ".(descriptors)"

_TEXTS: Final = {
    "node:path.sep": "/",
    "node:path.delimiter": ":",
    "node:os.EOL": "\n",
    "node:os.devNull": "/dev/null",
    "import.meta.dirname": WORKSPACE,
    "import.meta.filename": f"{WORKSPACE}/main.js",
    "import.meta.url": f"file://{WORKSPACE}/main.js",
}

_MODULE_GLOBALS: Final = frozenset({"process", "console", "fetch"})
_NO_FUNCTIONS: Final = frozenset({"Math", "JSON", "Reflect", "Atomics", "Intl", "WebAssembly", "NaN", "Infinity"})
_OBJECTS: Final = frozenset(
    {
        "console",
        "globalThis",
        "module",
        "exports",
        "process",
        "navigator",
        "performance",
        "crypto",
        "arguments",
        "undefined",
    }
)


def module(name: str) -> Ref:
    """Return the module that `require(name)` or `import` of that name gives."""
    plain = name.removeprefix("node:")
    root = plain.partition("/")[0]
    if root in _BUILTIN_MODULES and not (
        plain != root and root in ("punycode", "buffer", "events", "process", "assert")
    ):
        found = f"node:{plain}"
    else:
        found = f"npm:{plain[:MAX_NAME]}"
    return Ref(_SAME_MODULE.get(found, found))


def member(owner: str, name: str) -> Values:
    """Return what property `name` of a known thing is."""
    if owner == "globalThis":
        return (Ref(_SAME_NAME.get(name, name)),)
    if name == "default" and (owner in _MODULE_GLOBALS or owner.startswith(("node:", "npm:"))):
        return (Ref(owner),)
    if owner.endswith(_DESCRIPTOR) and name in ("value", "get"):
        return (Ref(owner.removesuffix(_DESCRIPTOR)),)
    if owner.endswith(_DESCRIPTORS):
        found = member(owner.removesuffix(_DESCRIPTORS), name)
        return tuple(Ref(f"{value.name}{_DESCRIPTOR}") if isinstance(value, Ref) else value for value in found)
    full = f"{owner}.{name}"
    if full in _TEXTS:
        return (Const(_TEXTS[full]),)
    if full in _SAME_NAME:
        return (Ref(_SAME_NAME[full]),)
    if name == "constructor":
        return (Ref("Function" if is_function(owner) else "(value).constructor"),)
    if name == "__proto__":
        # What an object inherits is found by the names it has on the object.
        return (Ref("Function.prototype" if is_function(owner) else owner),)
    return NOT_KNOWN if len(full) > MAX_NAME else (Ref(full),)


def is_function(name: str) -> bool:
    """Tell whether a known thing is, as far as its name tells, a function."""
    if name in ("Function.prototype", "(value).constructor", "Function"):
        return True
    if name in _NO_FUNCTIONS or name in _OBJECTS or name.startswith("(value)") or name.endswith(".prototype"):
        return False
    if name.endswith("()"):
        return False
    if name.startswith(("node:", "npm:")):
        return "." in name
    return True


GLOBALS: Final = frozenset(
    {
        "eval",
        "Function",
        "require",
        "module",
        "exports",
        "process",
        "globalThis",
        "global",
    }
)
"""Names that keep their meaning next to a binding that may not have happened: parameters of the module wrapper and
globals that sloppy code assigns to."""

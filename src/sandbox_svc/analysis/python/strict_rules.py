"""The rules for Python that only `strict` has: whole modules and functions, and what gives the same powers."""

from __future__ import annotations

from typing import Final

from sandbox_svc.analysis.rules import Rule

# Of the seed's list: modules whose import `strict` refuses.
SEED_MODULES: Final = (
    "os",
    "subprocess",
    "sys",
    "shutil",
    "socket",
    "ctypes",
    "pickle",
    "threading",
    "multiprocessing",
    "asyncio",
    "http.client",
    "ftplib",
    "telnetlib",
    "builtins",
)
# What gives the same powers under another name.
MORE_MODULES: Final = (
    "importlib",
    "imp",
    "runpy",
    "pkgutil",
    "signal",
    "resource",
    "mmap",
    "fcntl",
    "select",
    "selectors",
    "socketserver",
    "marshal",
    "inspect",
    "gc",
    "concurrent.futures.process",
    "_multiprocessing",
    "_posixshmem",
    "shelve",
    "dbm",
    "cffi",
    "dill",
    "cloudpickle",
    "psutil",
)
# Of the seed's list: calls that `strict` refuses.
SEED_CALLS: Final = (
    "eval",
    "exec",
    "open",
    "__import__",
    "compile",
    "input",
    "getattr",
    "setattr",
    "globals",
    "locals",
)

STRICT_RULES: Final = (
    Rule(
        id="py-strict-module",
        language="python",
        level="strict",
        sentence="module {name} is not allowed here",
        modules=SEED_MODULES + MORE_MODULES,
        checks="Imports in any spelling, and modules reached through others (`random._os`).",
    ),
    Rule(
        id="py-strict-call",
        language="python",
        level="strict",
        sentence="{name} is not allowed here",
        names=(
            *(f"builtins.{name}" for name in SEED_CALLS),
            "builtins.delattr",
            "io.FileIO",
            "io.open_code",
            "codecs.open",
            "tokenize.open",
            "fileinput.*",
            "gzip.open",
            "gzip.GzipFile",
            "bz2.open",
            "bz2.BZ2File",
            "lzma.open",
            "lzma.LZMAFile",
            "tarfile.*",
            "zipfile.ZipFile",
            "tempfile.NamedTemporaryFile",
            "tempfile.TemporaryFile",
            "tempfile.mkstemp",
            "concurrent.futures.ProcessPoolExecutor",
            "pathlib.Path().open",
            "pathlib.Path().read_*",
            "pathlib.Path().write_*",
            "pathlib.Path().unlink",
            "pathlib.Path().rename",
            "pathlib.Path().replace",
            "pathlib.Path().rmdir",
            "pathlib.Path().chmod",
            "pathlib.Path().symlink_to",
            "pathlib.Path().hardlink_to",
        ),
    ),
    Rule(
        id="py-strict-dunder",
        language="python",
        level="strict",
        sentence="{name} leads into the interpreter's internals",
        attributes=(
            "__bases__",
            "__base__",
            "__mro__",
            "__getattribute__",
            "__closure__",
            "__reduce__",
            "__reduce_ex__",
            "__import__",
        ),
    ),
)

"""What well-known functions do with their arguments: open a path, send to the network, run a text."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from sandbox_svc.analysis.paths import Access


class PathUse(NamedTuple):
    """An argument that is a path; `None` as access: it depends on the mode that is passed along."""

    position: int
    keyword: str
    access: Access | None


_READ: Final = (PathUse(0, "path", "read"),)
_LIST: Final = (PathUse(0, "path", "list"),)
_WRITE: Final = (PathUse(0, "path", "write"),)
_COPY: Final = (PathUse(0, "src", "read"), PathUse(1, "dst", "write"))
_MOVE: Final = (PathUse(0, "src", "write"), PathUse(1, "dst", "write"))

PATH_USES: Final[dict[str, tuple[PathUse, ...]]] = {
    "builtins.open": (PathUse(0, "file", None),),
    "codecs.open": (PathUse(0, "filename", None),),
    "io.FileIO": (PathUse(0, "file", None),),
    "gzip.open": (PathUse(0, "filename", None),),
    "bz2.open": (PathUse(0, "filename", None),),
    "lzma.open": (PathUse(0, "filename", None),),
    "tarfile.open": (PathUse(0, "name", None),),
    "os.open": (PathUse(0, "path", "read"), PathUse(0, "path", "list")),
    "os.chdir": _LIST,
    "io.open_code": _READ,
    "os.readlink": _READ,
    "os.listdir": _LIST,
    "os.scandir": _LIST,
    "os.walk": (PathUse(0, "top", "list"),),
    "os.fwalk": (PathUse(0, "top", "list"),),
    "os.remove": _WRITE,
    "os.unlink": _WRITE,
    "os.rmdir": _WRITE,
    "os.removedirs": (PathUse(0, "name", "write"),),
    "os.mkdir": _WRITE,
    "os.makedirs": (PathUse(0, "name", "write"),),
    "os.chmod": _WRITE,
    "os.chown": _WRITE,
    "os.lchown": _WRITE,
    "os.truncate": _WRITE,
    "os.mkfifo": _WRITE,
    "os.symlink": (PathUse(0, "src", "read"), PathUse(0, "src", "list"), PathUse(1, "dst", "write")),
    "os.link": _COPY,
    "os.rename": _MOVE,
    "os.renames": (PathUse(0, "old", "write"), PathUse(1, "new", "write")),
    "os.replace": _MOVE,
    "shutil.copy": _COPY,
    "shutil.copy2": _COPY,
    "shutil.copyfile": _COPY,
    "shutil.copytree": _COPY,
    "shutil.move": _MOVE,
    "shutil.rmtree": _WRITE,
    "shutil.make_archive": (PathUse(2, "root_dir", "read"), PathUse(2, "root_dir", "list")),
    "shutil.unpack_archive": (PathUse(1, "extract_dir", "write"),),
    "shutil.chown": _WRITE,
    "glob.glob": (PathUse(0, "pathname", "list"), PathUse(0, "pathname", "read")),
    "glob.iglob": (PathUse(0, "pathname", "list"), PathUse(0, "pathname", "read")),
    "linecache.getline": (PathUse(0, "filename", "read"),),
    "linecache.getlines": (PathUse(0, "filename", "read"),),
    "fileinput.input": (PathUse(0, "files", "read"),),
    "fileinput.FileInput": (PathUse(0, "files", "read"),),
    "sqlite3.connect": (PathUse(0, "database", "read"),),
    "zipfile.ZipFile": (PathUse(0, "file", None),),
    "tarfile.TarFile": (PathUse(0, "name", None),),
    "tarfile.open().add": (PathUse(0, "name", "read"),),
    "tarfile.open().extractall": (PathUse(0, "path", "write"),),
    "zipfile.ZipFile().extractall": (PathUse(0, "path", "write"),),
    "zipfile.ZipFile().write": (PathUse(0, "filename", "read"),),
    "readline.read_history_file": (PathUse(0, "filename", "read"),),
    "readline.write_history_file": (PathUse(0, "filename", "write"),),
    "numpy.memmap": (PathUse(0, "filename", "read"),),
    "numpy.genfromtxt": (PathUse(0, "fname", "read"),),
    "numpy.fromfile": (PathUse(0, "file", "read"),),
    "configparser.ConfigParser().read": (PathUse(0, "filenames", "read"),),
    "urllib.request.urlopen": (PathUse(0, "url", "read"),),
    "urllib.request.urlretrieve": (PathUse(0, "url", "read"),),
    "urllib.request.Request": (PathUse(0, "url", "read"),),
}
"""By resolved name."""

PLACE_USES: Final[dict[str, Access | None]] = {
    "open": None,
    "read_text": "read",
    "read_bytes": "read",
    "readlink": "read",
    "iterdir": "list",
    "glob": "list",
    "rglob": "list",
    "walk": "list",
    "write_text": "write",
    "write_bytes": "write",
    "touch": "write",
    "mkdir": "write",
    "unlink": "write",
    "rmdir": "write",
    "rename": "write",
    "replace": "write",
    "chmod": "write",
    "lchmod": "write",
    "symlink_to": "write",
    "hardlink_to": "write",
}
"""Methods of `pathlib.Path` that touch the disk."""

_READER: Final = re.compile(
    r"(?:.*_)?(?:open|read|load|loads?_\w+|scan|imread|parse|read_\w+|scan_\w+|from_?file|loadtxt)"
)
_NO_READERS: Final = (
    "os.path.",
    "re.",
    "urllib.parse.",
    "json.loads",
    "builtins.",
    "string.",
    "datetime.",
    "dateutil.",
)


def path_uses(name: str) -> tuple[PathUse, ...]:
    """Return which arguments of the function are paths; foreign functions that look like readers count as such."""
    known = PATH_USES.get(name)
    if known is not None:
        return known
    owner, _, last = name.rpartition(".")
    if owner and not name.startswith(_NO_READERS) and _READER.fullmatch(last):
        return _READ
    return ()


def access_of_mode(mode: str) -> tuple[Access, ...]:
    """What `open` with that mode does."""
    if "r" in mode and "+" not in mode:
        return ("read",)
    return ("read", "write") if "+" in mode else ("write",) if set(mode) & set("wax") else ("read",)


_NETWORK: Final = (
    "requests.",
    "urllib.request.",
    "urllib3.",
    "httpx.",
    "aiohttp.",
    "http.client.",
    "socket.",
    "websocket.",
    "websockets.",
    "paramiko.",
    "ftplib.",
    "smtplib.",
    "telnetlib.",
)


def is_network(name: str) -> bool:
    """Tell whether a resolved name is of a library that speaks to the network."""
    return name.startswith(_NETWORK)


_NO_DOWNLOADS: Final = ("urllib.request.url2pathname", "urllib.request.pathname2url", "urllib.request.unquote")


def is_download(name: str) -> bool:
    """Tell whether what a function returns came over the network."""
    return is_network(name) and name not in _NO_DOWNLOADS


EMBEDDED_CODE: Final[dict[str, tuple[tuple[int, str], ...]]] = {
    # The setup first: the statement uses what it imports.
    "timeit.timeit": ((1, "setup"), (0, "stmt")),
    "timeit.repeat": ((1, "setup"), (0, "stmt")),
    "timeit.Timer": ((1, "setup"), (0, "stmt")),
    "doctest.run_docstring_examples": ((0, "f"),),
    "pandas.eval": ((0, "expr"),),
    "numexpr.evaluate": ((0, "ex"),),
}
"""Functions that run a text as code, and which arguments are that text."""

EMBEDDED_METHODS: Final = frozenset({"eval", "query"})
"""Methods, of pandas among others, whose text is code in part."""

TEMPLATE_FUNCTIONS: Final = ("jinja2.Template", "jinja2.Environment().from_string", "flask.render_template_string")
TEMPLATE_WALK: Final = re.compile(
    r"__(?:globals|builtins|subclasses|import|mro|bases?|loader|code)__|\.mro\(|\|\s*attr\s*\("
)
YAML_WALK: Final = re.compile(r"!!python/(?:object|name|module)")

UNPICKLERS: Final = frozenset(
    {
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "dill.load",
        "dill.loads",
        "cloudpickle.load",
        "cloudpickle.loads",
        "jsonpickle.decode",
        "pandas.read_pickle",
        "joblib.load",
        "torch.load",
    }
)
UNPICKLERS_OF_FILES: Final = frozenset({"pandas.read_pickle", "joblib.load", "torch.load"})
"""Those that take a path, or an open file."""
PICKLERS: Final = frozenset(
    {"pickle.dumps", "pickle.dump", "dill.dumps", "cloudpickle.dumps", "jsonpickle.encode", "pickle.Pickler"}
)

_DECODERS: Final = (
    "base64.",
    "binascii.",
    "zlib.",
    "gzip.decompress",
    "bz2.decompress",
    "lzma.decompress",
    "io.BytesIO",
    "codecs.",
    "builtins.bytes",
    "builtins.bytearray",
    "builtins.memoryview",
    "builtins.str",
    "urllib.parse.unquote",
    "urllib.request.unquote",
    "json.loads",
    "copy.",
)
TEXT_METHODS: Final = frozenset(
    name for kind in (str, bytes, bytearray, memoryview) for name in dir(kind) if not name.startswith("_")
)


def is_decoder(name: str) -> bool:
    """Tell whether what a function returns is its argument in another form."""
    return name.startswith(_DECODERS) and not name.endswith(".open")


FACTORY_KEYS: Final = frozenset({"()", "class", "factory"})
"""Keys of `logging.config.dictConfig` whose text names something that it calls."""

IMPORTERS: Final = frozenset(
    {
        "builtins.__import__",
        "importlib.__import__",
        "importlib.import_module",
        "pkgutil.resolve_name",
        "pydoc.locate",
        "pydoc.safeimport",
        "unittest.mock._importer",
    }
)
ATTRIBUTE_READERS: Final = frozenset(
    {
        "builtins.getattr",
        "builtins.setattr",
        "builtins.delattr",
        "builtins.object.__getattribute__",
        "builtins.type.__getattribute__",
        "builtins.object.__setattr__",
        "inspect.getattr_static",
    }
)
MEMORY_MEMBERS: Final = frozenset({"from_address", "in_dll"})
"""Methods of ctypes' types that lay them over memory that is not theirs."""
ATTRIBUTE_PICKERS: Final = frozenset({"operator.attrgetter", "operator.methodcaller"})
"""Functions whose first argument names an attribute of something that comes later."""
HARMFUL_MODULES: Final = frozenset(
    {
        "os",
        "sys",
        "builtins",
        "subprocess",
        "socket",
        "ctypes",
        "importlib",
        "pty",
        "types",
        "marshal",
        "_posixsubprocess",
    }
)
"""Modules whose attributes must not be picked at run time."""
TELLING_MEMBERS: Final[dict[str, frozenset[str]]] = {
    "subprocess": frozenset(
        {"run", "call", "check_call", "check_output", "Popen", "getoutput", "getstatusoutput", "_fork_exec"}
    ),
    "ctypes": frozenset(
        {
            *("CDLL", "PyDLL", "cdll", "pydll", "pythonapi", "LibraryLoader", "CFUNCTYPE", "PYFUNCTYPE", "POINTER"),
            *("pointer", "cast", "string_at", "wstring_at", "memmove", "memset", "addressof", "py_object", "_dlopen"),
        }
    ),
    "_posixsubprocess": frozenset({"fork_exec"}),
    "sqlite3.Connection()": frozenset({"enable_load_extension", "load_extension"}),
    "asyncio.loop()": frozenset(
        {
            *("subprocess_exec", "subprocess_shell", "create_connection", "create_unix_connection", "create_server"),
            *("create_unix_server", "create_datagram_endpoint"),
        }
    ),
}
"""Of modules that are refused as a whole, and of what calls return: the members whose names say by themselves what is
meant."""

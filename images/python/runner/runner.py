"""Runs one Python program in a process that was forked for it, and reports on the result pipe.

Loaded by the template, so everything here is imported before any program is seen. What a run needs of the standard
library is bound to names here: a program that patches `json` or `os` harms itself and not its report.
"""

from __future__ import annotations

import atexit
import gc
import io
import json
import linecache
import os
import signal
import struct
import sys
import threading
import time
import traceback
import types
from builtins import (  # noqa: UP029  a program may replace or delete any builtin
    BaseException,
    MemoryError,
    OSError,
    RecursionError,
    SyntaxError,
    SystemExit,
    TypeError,
    UnicodeEncodeError,
    ValueError,
    any,
    callable,
    compile,
    exec,
    float,
    int,
    isinstance,
    issubclass,
    len,
    str,
    type,
)
from collections.abc import Callable
from typing import Any

_write = os.write
_getpid = os.getpid
_kill = os.kill
_SIGKILL = signal.SIGKILL
_sleep = time.sleep
_pack_header = struct.Struct(">cI").pack
_loads = json.loads
_make_encoder = json.encoder.c_make_encoder  # type: ignore[attr-defined]
_encode_string = json.encoder.encode_basestring
_escape_string = json.encoder.encode_basestring_ascii
_format_exception = traceback.format_exception
_get_line = linecache.getline
_Text = io.StringIO
_BOM = b"\xef\xbb\xbf"
_Coroutine = types.CoroutineType
# What the interpreter itself calls when it ends; there is no public name for either.
_run_exit_handlers = atexit._run_exitfuncs  # noqa: SLF001
_join_threads = threading._shutdown  # type: ignore[attr-defined]  # noqa: SLF001
_stdout, _stderr = sys.stdout, sys.stderr
_listdir = os.listdir
_get_objects = gc.get_objects  # without those that the template had: they are frozen
_IOBase: Any = io.IOBase.__base__  # of C, which asks nobody whether a class is one of its own
_TEXTS = (io.TextIOWrapper,)
_BUFFERS = (io.BufferedWriter, io.BufferedRandom)
_BUILT_IN = (*_TEXTS, *_BUFFERS, io.BufferedReader, io.BufferedRWPair, io.FileIO, io.StringIO, io.BytesIO)

OWN_DESCRIPTORS = 5
"""Standard streams, the result, and what looks at them."""

LINGER_SECONDS = 0.25
MAX_TRACEBACK_CHARS = 64 * 1024
# Of a report, as the supervisor takes it.
MAX_ERROR_BYTES = 32 * 1024
MAX_FRAMES = 20
MAX_FILE_CHARS = 512
MAX_TEXT_CHARS = 200
_TRUNCATED = "\n... (traceback truncated)\n"


class ProgramFailed(Exception):
    """The program broke a rule of the contract; the message is for its author."""


def main(result_fd: int, read_program: Callable[[], bytes], *, touch: str, last_words_signal: int) -> int:
    """Touch, park, take a program, run it, report. Called in the forked process, which must end
    with the returned status where it returns at all."""
    signal.signal(last_words_signal, _say_last_words)
    _fresh_random_state()
    rehearse()
    warm(touch)
    message = read_program()
    if not message:
        return 0
    run = _Run(result_fd, message)
    del message
    run.execute()
    return run.finish()


def _say_last_words(_number: int, _frame: types.FrameType | None) -> None:
    """A limit is met: what was printed before may be all that tells its author where the program hangs. Then end as the
    supervisor would end it, which waits no longer than a moment for this.
    """
    for stream in (sys.stdout, _stdout):
        try:
            stream.flush()
        except BaseException:  # noqa: BLE001  the program's own object, or it was writing to it just now
            continue
    _kill(_getpid(), _SIGKILL)


def warm(source: str) -> None:
    """Run a source of the manifest, in a namespace of its own. Raises what it raises: the image was built wrong."""
    if source:
        exec(compile(source, "<manifest>", "exec", dont_inherit=True), {})


def rehearse() -> None:
    """Do once what every run does, so that the first writes to pages that are shared with the template, each of them a
    page fault, come before the request instead of after it."""
    space: dict[str, Any] = {}
    exec(compile(_REHEARSAL, "<rehearsal>", "exec", dont_inherit=True), space)
    _encode_result(space["main"](**_loads(b'{"name": "value"}')))
    _encode_error({"type": "", "line": None})


_REHEARSAL = "import math\n\ndef main(name):\n    return {'name': name, 'numbers': [number for number in range(3)]}\n"


class _Run:
    def __init__(self, result_fd: int, message: bytes) -> None:
        self._result_fd = result_fd
        self._pid = _getpid()
        self._report: list[bytes] = []
        self._exit_code = 0
        start = 4 + int.from_bytes(message[:4], "big")
        self._meta = _loads(message[4:start])
        end = start + self._meta["source_bytes"]
        self._source = message[start:end]
        self._arguments = message[end:]
        self._folder = os.getcwd() + "/"
        self._file = self._folder + self._meta["source_name"]

    def execute(self) -> None:
        if self._meta["stream"]:
            _stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        if self._meta["is_file"]:
            # As `python FILE` has it. A program that is no file has none of its own that should hide a library's.
            sys.path.insert(0, self._file.rpartition("/")[0])
        if self._folder[:-1] not in sys.path:
            sys.path.append(self._folder[:-1])
        os.environ.update(self._meta["env"])
        if "TZ" in self._meta["env"]:
            time.tzset()
        sys.argv = [self._meta["source_name"], *self._meta["args"]]
        try:
            if self._meta["call_main"]:
                self._call_main()
            else:
                self._run_script()
        except SystemExit as error:
            self._exit_code = self._exit_status(error.code)
        except BaseException as error:  # noqa: BLE001  whatever ends a program is reported
            self._fail(error)

    def finish(self) -> int:
        """What the interpreter does at its end, then the report of how it ended."""
        if _getpid() != self._pid:
            # A fork of the program came back out of `main`; the report is not its to write.
            self._flush()
            return self._exit_code
        for step in (_join_threads, _run_exit_handlers):
            try:
                step()
            except BaseException as error:  # noqa: BLE001  a signal handler of the program may raise anywhere
                self._print_error(f"Exception ignored at exit:\n{self._traceback(error)[0]}")
        self._flush()
        if _has_files():
            _end_files()
            self._flush()
        code = b"%d" % self._exit_code
        if not self._send(b"".join((*self._report, _pack_header(b"D", len(code)), code))):
            # The program closed it: its result is lost, its exit status is not.
            return self._exit_code
        # The supervisor has all it needs and kills this process once it has read its peak memory. Exiting at once
        # would put the teardown of a large address space between the program's end and the answer; not at all, and a
        # program that spoiled its result pipe would wait for its time limit.
        _sleep(LINGER_SECONDS)
        return self._exit_code

    def _send(self, data: bytes) -> bool:
        try:
            while data:
                data = data[_write(self._result_fd, data) :]
        except OSError:
            return False
        return True

    def _call_main(self) -> None:
        # Before the program has a chance to patch what decoding needs.
        arguments = _loads(self._arguments)
        module = self._new_module("main")
        exec(self._compile(), module.__dict__)
        function = module.__dict__.get("main")
        if not callable(function):
            raise ProgramFailed("the program defines no function named main")
        value = function(**arguments)
        if type(value) is _Coroutine:
            import asyncio  # noqa: PLC0415  costs 40 ms and few programs need it

            value = asyncio.run(value)
        self._add(b"R", _encode_result(value))

    def _run_script(self) -> None:
        module = self._new_module("__main__")
        exec(self._compile(), module.__dict__)

    def _compile(self) -> types.CodeType:
        return compile(self._source, self._file, "exec", dont_inherit=True)

    def _new_module(self, name: str) -> types.ModuleType:
        module = types.ModuleType(name)
        module.__file__ = self._file
        sys.modules[name] = module
        # For tracebacks and inspect.getsource, which look for lines here when there is no such file.
        # Whole, not as a function that gives the text: `linecache` would split that at form feeds and U+2028 as well,
        # where neither files nor line numbers of the compiler have an end of line.
        # Not as `utf-8-sig`, a codec that every process would have to import: 0.7 ms.
        text = self._source.removeprefix(_BOM).decode("utf-8", "replace")
        lines = _Text(text, None).readlines()
        if lines and lines[-1][-1] != "\n":
            lines[-1] += "\n"
        linecache.cache[self._file] = (len(self._source), None, lines, self._file)
        return module

    def _exit_status(self, code: object) -> int:
        if code is None:
            return 0
        if isinstance(code, int):
            # What does not fit a C long is -1 to the interpreter.
            return int.__and__(code, 0xFF) if int.bit_length(code) < 64 else 0xFF
        try:
            text = f"{code}\n"
        except BaseException:  # noqa: BLE001  it is the program's own object
            text = ""  # as the interpreter has it
        self._print_error(text)
        return 1

    def _fail(self, error: BaseException) -> None:
        self._exit_code = 1
        self._report.clear()
        # An exception object is the program's code too, and anything about it may fail.
        try:
            lines, line = self._traceback(error)
        except BaseException:  # noqa: BLE001  as said
            lines, line = f"{_name_of(error)} (its traceback cannot be shown)\n", None
        try:
            payload = self._describe(error, line)
        except BaseException:  # noqa: BLE001  as said
            message = "the program failed with an exception that cannot be shown"
            payload = _encode_error({"type": "Error", "message": message, "line": None})
        if _getpid() == self._pid:
            # Before the traceback, which may be what is too much output.
            self._send(_pack_header(b"E", len(payload)) + payload)
        self._print_error(lines)

    def _describe(self, error: BaseException, line: int | None) -> bytes:
        try:
            message = str(error)[:4000]
        except BaseException:  # noqa: BLE001  it is the program's own
            message = "<exception str() failed>"
        try:
            frames = self._own_frames(error)
        except BaseException:  # noqa: BLE001  as above
            frames = []
        fields = {
            "type": "Error" if isinstance(error, ProgramFailed) else _name_of(error)[:200],
            "message": message,
            "line": line,
            "is_memory": isinstance(error, MemoryError),
            "traceback": frames,
        }
        # Written with escapes, few characters may be many bytes.
        while len(payload := _encode_error(fields)) > MAX_ERROR_BYTES:
            if frames:
                del frames[len(frames) // 2]
            else:
                fields["message"] = message = message[: len(message) // 2]
        return payload

    def _own_frames(self, error: BaseException) -> list[dict[str, Any]]:
        """Where it came from, outermost call first, as far as that is in the program's own files."""
        places: list[tuple[str, int | None, str]] = []
        at = error.__traceback__
        while at is not None:
            code = at.tb_frame.f_code
            places.append((code.co_filename, at.tb_lineno, code.co_name))
            at = at.tb_next
        if isinstance(error, SyntaxError):
            places.append((error.filename or "", error.lineno, "<module>"))
        own = [(file, line, function) for file, line, function in places if line and self._is_own(file)]
        if len(own) > MAX_FRAMES:
            half = MAX_FRAMES // 2
            own = own[:half] + own[-half:]
        return [
            {
                "file": file[len(self._folder) :],
                "line": line,
                "function": function[:MAX_TEXT_CHARS],
                "text": _line_of(file, line),
            }
            for file, line, function in own
        ]

    def _is_own(self, file: str) -> bool:
        """Whether a file is below the working directory, by its name."""
        name = file[len(self._folder) :]
        return (
            file.startswith(self._folder)
            and len(name) <= MAX_FILE_CHARS
            and not any(part in ("", ".", "..") for part in name.split("/"))
        )

    def _traceback(self, error: BaseException) -> tuple[str, int | None]:
        if isinstance(error, ProgramFailed):
            return f"{error}\n", None
        where = error.__traceback__
        # Our own frames are no news to the author.
        while where is not None and where.tb_frame.f_code.co_filename == __file__:
            where = where.tb_next
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == self._file else None
        at = where
        while at is not None:
            if at.tb_frame.f_code.co_filename == self._file:
                line = at.tb_lineno
            at = at.tb_next
        text = "".join(_format_exception(type(error), error, where))
        if len(text) > MAX_TRACEBACK_CHARS:
            half = MAX_TRACEBACK_CHARS // 2
            text = text[:half] + _TRUNCATED + text[-half:]
        return text, line

    def _print_error(self, text: str) -> None:
        self._flush()
        data = text.encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[_write(2, data) :]
        except OSError:
            pass  # the program closed its stderr

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr, _stdout, _stderr):
            try:
                stream.flush()
            except BaseException:  # noqa: BLE001  so is whatever it put in the place of stdout
                continue  # closed or replaced by the program: its own choice

    def _add(self, kind: bytes, payload: bytes) -> None:
        self._report.append(_pack_header(kind, len(payload)) + payload)


def _has_files() -> bool:
    try:
        return len(_listdir("/proc/self/fd")) > OWN_DESCRIPTORS
    except OSError:
        return True  # it has so many that none is left to look with


def _end_files() -> None:
    """What the interpreter does at its end with files that are still open: their last bytes are written.

    In the order in which they write to each other: texts, what is written in Python (a `GzipFile` writes its last bytes
    when it is closed), texts again, for that may have written to one, and the files of the system.
    """
    try:
        files = [one for one in _get_objects() if issubclass(type(one), _IOBase)]
    except MemoryError:
        return  # the program used up what looking takes
    for kinds in (_TEXTS, None, _TEXTS, _BUFFERS):
        for file in files:
            try:
                if kinds is None and type(file) not in _BUILT_IN:
                    file.close()
                elif kinds is not None and type(file) in kinds:
                    file.flush()
            except BaseException:  # noqa: BLE001  it may be the program's own, or closed
                continue


def _name_of(error: BaseException) -> str:
    try:
        return str(type(error).__name__)
    except BaseException:  # noqa: BLE001  the program may have a metaclass for it
        return "Error"


def _line_of(file: str, line: int) -> str:
    try:
        return _get_line(file, line).strip()[:MAX_TEXT_CHARS]
    except BaseException:  # noqa: BLE001  the program may have replaced what reading a file takes
        return ""


def _encode_result(value: Any) -> bytes:
    """Strict JSON (RFC 8259), UTF-8. Raises what `json` raises, with a message that says what it is about: there is no
    line of the program that could."""
    encode = _make_encoder({}, _encode_other, _encode_string, None, ":", ",", False, False, False)
    try:
        text = "".join(encode(value, 0))
    except (TypeError, ValueError, RecursionError) as error:
        if type(error) not in (TypeError, ValueError, RecursionError) or _has_other_frames(error):
            raise  # by a method of the program's own
        raise type(error)(f"the result of main is no JSON: {error}") from None
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Halves of surrogate pairs, which JSON in UTF-8 cannot carry; two that belong together become one.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _has_other_frames(error: BaseException) -> bool:
    at = error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename != __file__:
            return True
        at = at.tb_next
    return False


def _encode_error(fields: dict[str, Any]) -> bytes:
    """With escapes: texts of an error may hold halves of surrogate pairs. In C throughout, so that no builtin that the
    program replaced is looked up."""
    encode = _make_encoder({}, _encode_other, _escape_string, None, ":", ",", False, False, False)
    return "".join(encode(fields, 0)).encode()


def _encode_other(value: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name = type(value).__name__
        is_array = isinstance(value, numpy.ndarray)
        # Dates would come out as numbers of which nobody knows the unit.
        if name in ("datetime64", "timedelta64") or (is_array and value.dtype.kind in "mM"):
            raise TypeError(f"it contains an object of type {value.dtype if is_array else name}")
        if isinstance(value, numpy.generic):
            item = value.item()
            if not isinstance(item, numpy.generic):
                return item
            if isinstance(item, numpy.floating):
                return float(item)  # a long double is its own item
        if is_array:
            return value.tolist()
    raise TypeError(f"it contains an object of type {type(value).__name__}")


def _fresh_random_state() -> None:
    """Forks of one template start with the same state; `random` reseeds itself, these do not."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile._name_sequence = None  # type: ignore[attr-defined]  # noqa: SLF001  no public way
    gc.enable()

"""Find the files a program left to be sent back; runs after every process of the run is dead."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

MAX_FILES = 10
MAX_FILE_BYTES = 10 * 1024 * 1024
MAX_TOTAL_BYTES = 20 * 1024 * 1024
MAX_ENTRIES = 4096
MAX_NAME_BYTES = 200
"""Bounds of the old executor manager (10 files of 10 MiB) plus one for the whole answer and one for the look itself."""

# What the old executor manager sends back; everything else needs an explicit glob.
DEFAULT_SUFFIXES = (".png", ".jpg", ".jpeg", ".svg", ".pdf", ".csv", ".json", ".html")


class Candidate(NamedTuple):
    """An open regular file of the run's own uid; `size` is what will be read, whatever the file says later."""

    name: str
    fd: int
    size: int


class Collection:
    """Walks one artifacts folder; `skipped` counts what was there and is not sent."""

    def __init__(self, folder: str, uid: int, globs: tuple[str, ...]) -> None:
        self._folder = folder
        self._uid = uid
        self._globs = globs
        self.skipped = 0

    def files(self) -> Iterator[Candidate]:
        """Yield files to send; each descriptor is closed when the next is asked for."""
        try:
            if not stat.S_ISDIR(os.lstat(self._folder).st_mode):
                return  # gVisor follows a link in spite of O_NOFOLLOW, where O_DIRECTORY stands beside it
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return  # replaced by something else, or removed: then there are none
        try:
            sent = total = 0
            for name in sorted(self._names(folder)):
                try:
                    # O_NONBLOCK: opening a fifo must not wait for a writer.
                    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
                except OSError:
                    self.skipped += 1
                    continue
                try:
                    status = os.fstat(fd)
                    if (
                        not stat.S_ISREG(status.st_mode)
                        or status.st_uid != self._uid
                        or status.st_nlink != 1
                        or status.st_size > MAX_FILE_BYTES
                        or total + status.st_size > MAX_TOTAL_BYTES
                        or sent == MAX_FILES
                    ):
                        self.skipped += 1
                        continue
                    sent += 1
                    total += status.st_size
                    yield Candidate(name, fd, status.st_size)
                finally:
                    os.close(fd)
        finally:
            os.close(folder)

    def _names(self, folder: int) -> Iterator[str]:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if count == MAX_ENTRIES:
                    self.skipped += 1
                    return
                if self._is_wanted(entry.name):
                    yield entry.name
                else:
                    self.skipped += 1

    def _is_wanted(self, name: str) -> bool:
        # A name that is not UTF-8, or that a client could take for a path or an option, is not passed on.
        if name.startswith((".", "-")) or not name.isprintable() or set(name) & set("/\\\"'`$;|&<>"):
            return False
        try:
            if len(name.encode()) > MAX_NAME_BYTES:
                return False
        except UnicodeEncodeError:
            return False
        if self._globs:
            return any(fnmatch.fnmatchcase(name, glob) for glob in self._globs)
        return name.lower().endswith(DEFAULT_SUFFIXES)

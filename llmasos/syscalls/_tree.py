"""Every file below an open folder, without ever following a link.

Hidden names, caches of other tools and our own temporary files are left out. At most one
descriptor per level is open; what cannot be entered or read is counted, not raised.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from llmasos.syscalls._paths import MAX_DEPTH, READ_FILE, READ_FOLDER, OpenFile

MAX_FILES = 100_000
SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file on the way; `folder_fd` is valid until the next one is asked for."""

    folder_fd: int
    name: str
    path: str
    """Relative to the root, `/` between names."""
    status: os.stat_result


@contextmanager
def open_found(found: Found) -> Iterator[OpenFile]:
    """The found file, open; raises `OSError`, also when it is no longer the kind of file it was."""
    fd = os.open(found.name, READ_FILE, dir_fd=found.folder_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, "No longer a file", found.path)
        yield OpenFile(fd, found.path, status)
    finally:
        os.close(fd)


@dataclass(slots=True)
class Tree:
    """A walk over the files below a folder, and what it had to leave out."""

    fd: int
    """An open folder; the caller closes it."""
    path: str
    """Its path relative to the root."""
    only: str | None = None
    """Visit but the file of this name in the folder itself."""
    num_unreadable: int = 0
    is_cut: bool = False
    """More files than `MAX_FILES`, or folders deeper than `MAX_DEPTH`, were not visited."""
    _num_files: int = field(default=0, init=False)

    def files(self) -> Iterator[Found]:
        """Files in the order of their names, each folder's own before those below it."""
        prefix = "" if self.path == "." else f"{self.path}/"
        return self._below(self.fd, prefix, 0)

    def _below(self, fd: int, prefix: str, depth: int) -> Iterator[Found]:
        folders = []
        for name, status in self._entries(fd):
            if stat.S_ISDIR(status.st_mode):
                folders.append(name)
            elif stat.S_ISREG(status.st_mode):
                if self._num_files >= MAX_FILES:
                    self.is_cut = True
                    return
                self._num_files += 1
                yield Found(fd, name, prefix + name, status)
        for name in folders:
            yield from self._inside(fd, name, prefix, depth + 1)

    def _inside(self, parent_fd: int, name: str, prefix: str, depth: int) -> Iterator[Found]:
        if depth > MAX_DEPTH or self._num_files >= MAX_FILES:
            self.is_cut = True
            return
        try:
            fd = os.open(name, READ_FOLDER, dir_fd=parent_fd)
        except OSError:  # gone, swapped for a link, or not ours to enter
            self.num_unreadable += 1
            return
        try:
            yield from self._below(fd, f"{prefix}{name}/", depth)
        finally:
            os.close(fd)

    def _entries(self, fd: int) -> list[tuple[str, os.stat_result]]:
        found = []
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if self._is_wanted(entry.name):
                        with suppress(FileNotFoundError):  # removed while we look
                            found.append((entry.name, entry.stat(follow_symlinks=False)))
        except OSError:  # a folder that may not be listed
            self.num_unreadable += 1
        return sorted(found)

    def _is_wanted(self, name: str) -> bool:
        if self.only is not None:
            return name == self.only
        return name[0] != "." and name not in SKIPPED_FOLDERS

"""Confinement: the one way from a path that a model wrote to an open file under a process's root.

A path is walked one component at a time, each opened relative to its parent's descriptor and never
through a symlink; a link's target is read as text and walked by the same rules. So what was checked
is what is opened, whoever swaps names meanwhile. `..` goes back along the walk, never to the disk.

Covered: `..`, absolute paths, `~`, NUL bytes, drive letters, symlinks anywhere and of any depth,
/proc's magic links (their text is walked, they are never jumped through), symlink races, and FIFOs,
sockets and devices (never opened, so never waited for). Not covered: hard links and mounts that
somebody placed inside the root, and another user moving an open folder out of the root.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from llmasos.kernel.errors import Failed, InvalidArguments, PermissionDenied, SyscallError
from llmasos.syscalls._oserrors import telling, told

if TYPE_CHECKING:
    from llmasos.kernel.syscall import Call

MAX_PATH_CHARS = 4096
MAX_DEPTH = 64
"""Folders below the root; each one on the way is a descriptor held open."""
MAX_DETOURS = 40
"""Links followed (and names that changed under the walk) before it counts as a loop."""
MAX_NAMES_SCANNED = 10_000
"""Names looked at to find another spelling or a suggestion."""
TEMP_PREFIX = ".llmasos-tmp-"
"""Files of writes under way; no listing or search shows them."""

_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
READ_FILE = _READ | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
READ_FOLDER = _READ | getattr(os, "O_DIRECTORY", 0)
_SWAPPED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What opening a folder says when its name has become something else since it was looked at."""
_UNFIT = ("Cc", "Cs", "Zl", "Zp")
"""Categories that a new name may not hold: control characters, line separators, half characters."""
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def shown(path: str) -> str:
    """A path quoted for a message: bounded, and printable whatever bytes it has."""
    text = readable_name(path)
    if len(text) > 100:
        text = f"{text[:60]}...{text[-30:]}"
    return "'" + "".join(char if char.isprintable() else "?" for char in text) + "'"


def readable_name(name: str) -> str:
    """A name from the disk as valid text: bytes that are not UTF-8 are written as `\\xff`."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode()


def kind_of(mode: int) -> str:
    """`file`, `folder`, `link` or `other`."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "other"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path led: `name` in an open folder, or `.` for that folder itself.

    `folder_fd` belongs to the `Root` and is valid while that is open.
    """

    folder_fd: int
    name: str
    path: str
    """Relative to the root, links resolved, `/` between names; `.` is the root."""
    status: os.stat_result | None
    """What stands there, not following a link; None when nothing does."""

    @property
    def kind(self) -> str:
        """`file`, `folder`, `link`, `other`, or empty when nothing is there."""
        return kind_of(self.status.st_mode) if self.status else ""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A regular file under the root, open for reading; its descriptor belongs to the `Root`."""

    fd: int
    path: str
    status: os.stat_result


class Root:
    """A process's folder, held open. A context manager, for one thread and one call."""

    def __init__(self, base: Path, within: str = "") -> None:
        """The folder `within` a base, reached from it at every opening, so that it is below it."""
        self._base = os.path.abspath(base)
        self._within = _split(within)
        self._folder = os.path.join(self._base, *self._within)
        self._bases = tuple(
            {tuple(_split(base)) for base in (self._folder, os.path.realpath(self._folder))}
        )
        self._closing = ExitStack()
        self.fd = -1

    def __enter__(self) -> Self:
        if os.open not in os.supports_dir_fd:
            raise Failed("File syscalls need Linux, macOS or WSL; this system cannot confine them.")
        try:
            # The root itself is the operator's word: a link there is followed.
            self.fd = self.keep(os.open(self._base, READ_FOLDER & ~os.O_NOFOLLOW))
            for name in self._within:  # what is below is not: a link there, or `..`, leads nowhere
                if name == "..":
                    raise outside(self._folder)
                self.fd = self.keep(os.open(name, READ_FOLDER, dir_fd=self.fd))
        except FileNotFoundError as error:
            raise Failed(f"This process's folder {shown(self._folder)} is gone.") from error
        except OSError as error:
            raise told(error, f"This process's folder {shown(self._folder)}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.close()

    def keep(self, fd: int) -> int:
        """Close this descriptor together with the root."""
        self._closing.callback(os.close, fd)
        return fd

    def locate(self, path: str, *, follow: bool = True, make_folders: bool = False) -> Place:
        """Where `path` leads, whether or not something is there yet.

        `follow` False stops at a link in the last place instead of going where it points.
        `make_folders` creates missing folders on the way. Raises `SyscallError`.
        """
        walk = _Walk(self, path, follow, make_folders)
        with telling(shown(path)):
            while walk.pending:
                place = walk.step()
                if place is not None:
                    return place
            return walk.here()

    def existing(self, path: str, *, follow: bool = True) -> Place:
        """Like `locate`, but something must be there."""
        place = self.locate(path, follow=follow)
        if place.status is None:
            raise missing(path, place.folder_fd, place.name)
        return place

    def open_file(self, path: str) -> OpenFile:
        """Open a regular file for reading; raises `SyscallError` for anything else."""
        return self.open_at(self.existing(path), path)

    def open_at(self, place: Place, path: str) -> OpenFile:
        """Open the regular file at a place that `path` led to."""
        refuse_unless_file(place.status, path)
        with telling(shown(path)):
            fd = self.keep(os.open(place.name, READ_FILE, dir_fd=place.folder_fd))
            status = os.fstat(fd)
        refuse_unless_file(status, path)
        return OpenFile(fd, place.path, status)

    def open_folder(self, path: str) -> tuple[int, str]:
        """An open descriptor of a folder and its path relative to the root."""
        place = self.existing(path)
        if place.kind != "folder":
            raise Failed(f"{shown(path)} is not a folder; read it with fs.read.")
        with telling(shown(path)):
            fd = self.keep(os.open(place.name, READ_FOLDER, dir_fd=place.folder_fd))
        return fd, place.path

    def parts(self, path: str, asked: str) -> list[str]:
        """The components of a relative path, or of an absolute one that names this very root."""
        components = _split(path)
        if not path.startswith("/"):
            return components
        for base in self._bases:
            if tuple(components[: len(base)]) == base:
                return components[len(base) :]
        raise outside(asked)


def root_of(call: Call) -> Root:
    """The folder that a call's process is confined to."""
    return Root(Path(call.capabilities.root), call.capabilities.within)


class _Walk:
    """One path on its way down from the root."""

    def __init__(self, root: Root, asked: str, follow: bool, make_folders: bool) -> None:
        self._root = root
        self._asked = asked
        self._follow = follow
        self._make_folders = make_folders
        self._names: list[str] = []
        self._fds = [root.fd]
        self._detours_left = MAX_DETOURS
        self.pending = deque(root.parts(_checked(asked), asked))

    def step(self) -> Place | None:
        """Take the next component; the place it names if it was the last one."""
        name = self.pending.popleft()
        if name == "..":
            self._up()
            return None
        name, status = _look(self._fds[-1], name)
        last = not self.pending
        if status is None:
            return self._absent(name, last)
        if stat.S_ISLNK(status.st_mode) and (self._follow or not last):
            self._follow_link(name)
            return None
        if last:
            return self._place(name, status)
        self._enter(name, status)
        return None

    def here(self) -> Place:
        """The folder the walk stands in, for a path that ends in `.` or `..`."""
        fd = self._fds[-1]
        return Place(fd, ".", "/".join(self._names) or ".", os.stat(fd))

    def _place(self, name: str, status: os.stat_result | None) -> Place:
        return Place(self._fds[-1], name, "/".join([*self._names, name]), status)

    def _absent(self, name: str, last: bool) -> Place | None:
        if last:
            return self._place(name, None)
        if not self._make_folders:
            raise missing(self._asked, self._fds[-1], name)
        refuse_new_name(name, self._asked)
        try:
            os.mkdir(name, dir_fd=self._fds[-1])
        except FileExistsError:  # somebody else was faster, which is as good
            self._detour()
        self.pending.appendleft(name)
        return None

    def _enter(self, name: str, status: os.stat_result) -> None:
        if not stat.S_ISDIR(status.st_mode):
            raise Failed(
                f"{shown(name)} in {shown(self._asked)} is not a folder; list with fs.list."
            )
        if len(self._names) >= MAX_DEPTH:
            raise InvalidArguments(f"{shown(self._asked)} goes more than {MAX_DEPTH} folders deep.")
        try:
            fd = os.open(name, READ_FOLDER, dir_fd=self._fds[-1])
        except OSError as error:
            if error.errno not in _SWAPPED:
                raise
            self._detour()
            self.pending.appendleft(name)
            return
        self._fds.append(self._root.keep(fd))
        self._names.append(name)

    def _follow_link(self, name: str) -> None:
        self._detour()
        try:
            target = os.readlink(name, dir_fd=self._fds[-1])
        except OSError:  # no link any more: look at the name again
            self.pending.appendleft(name)
            return
        parts = self._root.parts(target, self._asked)
        if target.startswith("/"):
            del self._fds[1:], self._names[:]
        self.pending.extendleft(reversed(parts))

    def _up(self) -> None:
        if not self._names:
            raise outside(self._asked)
        self._names.pop()
        self._fds.pop()

    def _detour(self) -> None:
        self._detours_left -= 1
        if self._detours_left < 0:
            raise Failed(f"{shown(self._asked)} is a loop of links; use another path.")


def _split(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _checked(path: str) -> str:
    """The path, if it can be one at all."""
    if "\0" in path:
        raise InvalidArguments(f"{shown(path)} holds a NUL byte; no file name can.")
    if len(path) > MAX_PATH_CHARS:
        raise InvalidArguments(f"A path has at most {MAX_PATH_CHARS} characters.")
    if path == "~" or path.startswith("~/") or _DRIVE.match(path):
        raise outside(path)
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InvalidArguments(f"{shown(path)} is not valid text.") from error
    return path


def _look(folder_fd: int, name: str) -> tuple[str, os.stat_result | None]:
    """What stands under a name, which may be spelled in another normal form on the disk."""
    try:
        return name, os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        pass
    spelling = _other_spelling(folder_fd, name)
    if spelling is None:
        return name, None
    return spelling, os.stat(spelling, dir_fd=folder_fd, follow_symlinks=False)


def _other_spelling(folder_fd: int, name: str) -> str | None:
    if name.isascii() and "\\x" not in name:
        return None
    wanted = unicodedata.normalize("NFC", name)
    for entry in _names_in(folder_fd):
        if unicodedata.normalize("NFC", readable_name(entry)) == wanted:
            return entry
    return None


def _names_in(folder_fd: int) -> list[str]:
    try:
        with os.scandir(folder_fd) as entries:
            return [entry.name for entry in islice(entries, MAX_NAMES_SCANNED)]
    except OSError:  # may be entered but not listed: then there is nothing to suggest
        return []


def refuse_unless_file(status: os.stat_result | None, path: str) -> None:
    """Raise `Failed` unless this is a regular file."""
    mode = status.st_mode if status else 0
    if stat.S_ISDIR(mode):
        raise Failed(f"{shown(path)} is a folder; list it with fs.list.")
    if not stat.S_ISREG(mode):
        raise Failed(f"{shown(path)} is a pipe, socket, device or link, not a file.")


def refuse_new_name(name: str, path: str) -> None:
    """Raise `InvalidArguments` for a name that should not come into being."""
    if "\\" in name:
        raise InvalidArguments(f"{shown(path)} has a backslash; write / between folders.")
    if name.startswith(TEMP_PREFIX) or any(unicodedata.category(char) in _UNFIT for char in name):
        raise InvalidArguments(f"{shown(path)} is not a good file name; choose another one.")


def outside(path: str) -> PermissionDenied:
    """The error for a path that would leave the root."""
    return PermissionDenied(
        f"{shown(path)} is outside this process's folder; use a path inside it, such as 'notes.md'."
    )


def missing(path: str, folder_fd: int, name: str) -> SyscallError:
    """The error for a path where nothing is, with what is there instead."""
    names = sorted(readable_name(entry) for entry in _names_in(folder_fd) if entry[0] != ".")
    close = get_close_matches(name.lower(), {entry.lower() for entry in names}, n=3)
    near = [entry for entry in names if entry.lower() in close]
    hint = f"did you mean {_listed(near)}?" if near else f"here are: {_listed(names)}."
    if not names:
        hint = "the folder is empty."
    return Failed(f"There is no {shown(path)}; {hint}")


def _listed(names: Iterable[str]) -> str:
    first = list(islice(names, 9))
    return ", ".join(shown(name)[1:-1] for name in first[:8]) + (", ..." if len(first) > 8 else "")

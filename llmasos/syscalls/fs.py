"""`fs.*`: reading files and folders under a process's root, and the table of all file syscalls.

Every result is a plain dict that is JSON already. `text` is what a model reads, bounded whatever the
file; `note`, where not empty, says what was left out and how to ask for it. Writing is in `fs_write`,
finding in `fs_find`, earlier versions in `fs_history`; how a path is confined, in `_paths`.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, TypedDict

from pydantic import Field

from llmasos.kernel.abi import Effect
from llmasos.kernel.errors import Failed, SyscallError
from llmasos.kernel.syscall import Call, syscall
from llmasos.syscalls import _labels, fs_find, fs_history, fs_write
from llmasos.syscalls._encoding import Encoding
from llmasos.syscalls._mounts import in_mount
from llmasos.syscalls._oserrors import telling
from llmasos.syscalls._paths import (
    TEMP_PREFIX,
    OpenFile,
    Root,
    kind_of,
    readable_name,
    root_of,
    shown,
)
from llmasos.syscalls._text import count_lines, iso_time, open_text, size_text, skip_lines

DEFAULT_LINES = 100
MAX_LINES = 20_000
CHARS_PER_LINE = 80
"""What a read may return is `max_lines` times this, so that one huge line cannot flood a context."""
MAX_SKIPPED_CHARS = 500_000_000
MAX_COUNTED_BYTES = 32_000_000
"""In files up to this size all lines are counted, to say how many there are."""
MAX_LISTED = 500
MAX_NAMES = 200_000

FilePath = Annotated[str, Field(description="File, like notes.md or docs/plan.txt")]
FolderPath = Annotated[str, Field(description="Folder, . for the whole folder")]


class ReadResult(TypedDict):
    """Lines of a text file."""

    path: str
    text: str
    start_line: int
    end_line: int
    """The last line in `text`; `start_line - 1` when there is none."""
    total_lines: int | None
    """None when counting them would have meant reading a huge file."""
    truncated: bool
    encoding: str
    note: str


class Entry(TypedDict):
    """A name in a folder; `kind` is `file`, `folder`, `link` (leads nowhere it may) or `other`."""

    name: str
    kind: str
    size_bytes: int


class ListResult(TypedDict):
    """What is in a folder: folders first, then files, by name."""

    path: str
    text: str
    entries: list[Entry]
    truncated: bool
    note: str


class StatResult(TypedDict):
    """One file or folder."""

    path: str
    text: str
    kind: str
    size_bytes: int
    modified: str
    """ISO 8601, UTC."""
    read_only: bool


@syscall("fs.read", effect=Effect.READ)
@in_mount(writes=False)
def read(
    call: Call,
    path: FilePath,
    start_line: Annotated[int, Field(ge=1, description="First line to read")] = 1,
    max_lines: Annotated[
        int, Field(ge=1, le=MAX_LINES, description="Lines to read")
    ] = DEFAULT_LINES,
) -> ReadResult:
    """Read a text file."""
    with root_of(call) as root:
        file = root.open_file(path)
        _labels.read_file(call, file)
        with open_text(file) as (stream, encoding):
            _skip_to(stream, start_line, path)
            piece = _take(stream, start_line, max_lines)
            if not piece.text and start_line > 1:
                raise _beyond_end(path, start_line - 1)
            total = _total_lines(stream, file, piece)
    return ReadResult(
        path=readable_name(file.path),
        text=piece.text,
        start_line=start_line,
        end_line=piece.end_line,
        total_lines=total,
        truncated=piece.is_cut or total is None or piece.end_line < total,
        encoding=encoding.codec,
        note=" ".join(_read_notes(piece, total, encoding)),
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some lines of a file. The stream they came from stands behind `ahead`."""

    text: str
    end_line: int
    is_cut: bool
    """The last line is not whole."""
    ahead: str
    """Read from the stream already, but not part of `text`."""


def _skip_to(stream: io.TextIOWrapper, start_line: int, path: str) -> None:
    passed, is_cut = skip_lines(stream, start_line - 1, MAX_SKIPPED_CHARS)
    if is_cut:
        raise Failed(f"Line {start_line} of {shown(path)} is too far in; start before {passed}.")
    if passed < start_line - 1:
        raise _beyond_end(path, passed)


def _beyond_end(path: str, num_lines: int) -> Failed:
    lines_text = f"{num_lines} line" + "s" * (num_lines != 1)
    return Failed(f"{shown(path)} has only {lines_text}; use a smaller start_line.")


def _take(stream: io.TextIOWrapper, start_line: int, max_lines: int) -> _Piece:
    """The next lines, as many as fit the budget; at least the beginning of one."""
    budget = max_lines * CHARS_PER_LINE
    block = stream.read(budget)
    last = stream.read(1)
    seen = list(io.StringIO(block + last, newline="\n"))
    if last not in ("", "\n"):
        seen.pop()  # how this line goes on is not known
    is_cut = bool(block) and not seen
    taken = [block] if is_cut else seen[:max_lines]
    text = "".join(taken)
    return _Piece(text, start_line + len(taken) - 1, is_cut, (block + last)[len(text) :])


def _total_lines(stream: io.TextIOWrapper, file: OpenFile, piece: _Piece) -> int | None:
    if file.status.st_size > MAX_COUNTED_BYTES and (piece.ahead or stream.read(1)):
        return None
    return piece.end_line + count_lines(stream, piece.ahead) - piece.is_cut


def _read_notes(piece: _Piece, total: int | None, encoding: Encoding) -> Iterator[str]:
    if total == 0:
        yield "The file is empty."
    if piece.is_cut:
        yield f"Line {piece.end_line} is too long and was cut; fs.grep finds words in it."
    if total is None:
        yield f"There is more; read on with start_line={piece.end_line + 1}."
    elif piece.end_line < total:
        yield f"The file has {total} lines; read on with start_line={piece.end_line + 1}."
    if encoding.is_guess:
        yield f"The encoding is a guess: {encoding.codec}."


@syscall("fs.list", effect=Effect.READ)
@in_mount(writes=False)
def list_folder(
    call: Call,
    path: FolderPath = ".",
    hidden: Annotated[bool, Field(description="Also names that begin with a dot")] = False,
) -> ListResult:
    """List the files in a folder."""
    with root_of(call) as root:
        fd, where = root.open_folder(path or ".")
        with telling(shown(where)):
            found, num_hidden, is_cut = _entries(fd, hidden)
        prefix = "" if where == "." else f"{where}/"
        _labels.read_names(call, [prefix + name for name, _ in found[:MAX_LISTED]])
        entries = [_entry(root, prefix, name, status) for name, status in found[:MAX_LISTED]]
    text = "".join(f"{_entry_line(entry)}\n" for entry in entries)
    is_cut = is_cut or len(found) > MAX_LISTED
    note = " ".join(_list_notes(len(found), num_hidden, is_cut))
    return ListResult(
        path=readable_name(where),
        text=text or "(empty folder)\n",
        entries=entries,
        truncated=is_cut,
        note=note,
    )


def _entries(fd: int, hidden: bool) -> tuple[list[tuple[str, os.stat_result]], int, bool]:
    """Names with what stands there, folders first; how many were hidden; whether there are more."""
    found = []
    num_hidden = 0
    with os.scandir(fd) as entries:
        for entry in islice(entries, MAX_NAMES):
            if entry.name.startswith(TEMP_PREFIX):
                continue
            if entry.name[0] == "." and not hidden:
                num_hidden += 1
                continue
            with suppress(FileNotFoundError):  # removed while we look
                found.append((entry.name, entry.stat(follow_symlinks=False)))
        is_cut = next(entries, None) is not None
    found.sort(key=lambda item: (not stat.S_ISDIR(item[1].st_mode), item[0].casefold(), item[0]))
    return found, num_hidden, is_cut


def _entry(root: Root, prefix: str, name: str, status: os.stat_result) -> Entry:
    if stat.S_ISLNK(status.st_mode):
        with suppress(SyscallError):  # one that leads nowhere it may stays a link
            status = root.existing(prefix + name).status or status
    kind = kind_of(status.st_mode)
    size_bytes = status.st_size if kind == "file" else 0
    return Entry(name=readable_name(name), kind=kind, size_bytes=size_bytes)


def _entry_line(entry: Entry) -> str:
    if entry["kind"] == "folder":
        return f"{entry['name']}/"
    if entry["kind"] == "file":
        return f"{entry['name']} ({size_text(entry['size_bytes'])})"
    return f"{entry['name']} (not a file that can be read)"


def _list_notes(num_found: int, num_hidden: int, is_cut: bool) -> Iterator[str]:
    if is_cut:
        yield f"Only {MAX_LISTED} of {num_found} or more names are listed; fs.glob narrows it down."
    if num_hidden:
        yield f"{num_hidden} hidden name{'s' * (num_hidden != 1)} not shown."


@syscall("fs.stat", effect=Effect.READ, tool=False)
@in_mount(writes=False)
def stat_file(call: Call, path: FilePath) -> StatResult:
    """Tell the size and date of a file."""
    with root_of(call) as root:
        place = root.existing(path)
    status = place.status or os.stat_result([0] * 10)
    size_bytes = status.st_size if place.kind == "file" else 0
    modified = iso_time(status.st_mtime)
    return StatResult(
        path=readable_name(place.path),
        text=f"{readable_name(place.path)}: {place.kind}, {size_text(size_bytes)}, {modified}",
        kind=place.kind,
        size_bytes=size_bytes,
        modified=modified,
        read_only=not status.st_mode & 0o222,
    )


SYSCALLS = (
    read,
    list_folder,
    stat_file,
    *fs_find.SYSCALLS,
    *fs_write.SYSCALLS,
    *fs_history.SYSCALLS,
)

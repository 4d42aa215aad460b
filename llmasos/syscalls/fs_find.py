"""`fs.*`: finding files by name and lines by content, below a folder of a process's root.

Links are not followed, hidden names are left out. Patterns come from a model, so none may take long:
globs are matched name by name without backtracking, and lines by plain words or, if asked for, by an
expression under a clock: one that goes back and forth without end is refused after a second.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, TypedDict

import regex
from pydantic import Field

from llmasos.kernel.abi import Effect
from llmasos.kernel.errors import Failed, InvalidArguments, SyscallError
from llmasos.kernel.syscall import Call, syscall
from llmasos.syscalls import _labels
from llmasos.syscalls._mounts import in_mount
from llmasos.syscalls._paths import OpenFile, readable_name, root_of
from llmasos.syscalls._text import lines, open_text
from llmasos.syscalls._tree import Tree, open_found

MAX_GLOB_PARTS = 32
MAX_PATHS = 500
MAX_MATCHES = 50
MAX_LINE_CHARS = 240
TIME_S = 20.0
"""A search through files ends then, with what it has."""
LINE_S = 1.0
"""An expression that takes longer on one line is refused."""

Where = Annotated[str, Field(description="Folder to look in, . for all")]


class GlobResult(TypedDict):
    """Files by name."""

    text: str
    paths: list[str]
    truncated: bool
    note: str


class Match(TypedDict):
    """A line of a file."""

    path: str
    line: int
    text: str


class GrepResult(TypedDict):
    """Lines by content."""

    text: str
    matches: list[Match]
    truncated: bool
    note: str


@syscall("fs.glob", effect=Effect.READ)
@in_mount(writes=False)
def glob(
    call: Call,
    pattern: Annotated[str, Field(description="Like *.md or docs/**/*.txt", max_length=500)],
    path: Where = ".",
) -> GlobResult:
    """Find files by name."""
    is_wanted = _glob(pattern)
    with root_of(call) as root:
        fd, where = root.open_folder(path or ".")
        tree = Tree(fd, where)
        prefix = 0 if where == "." else len(where) + 1
        found = [f.path for f in tree.files() if is_wanted(f.path[prefix:])]
    _labels.read_names(call, found[:MAX_PATHS])
    paths = [readable_name(each) for each in found]
    is_cut = tree.is_cut or len(paths) > MAX_PATHS
    note = f"Only the first {MAX_PATHS} are shown; use a narrower pattern." if is_cut else ""
    text = "".join(f"{name}\n" for name in paths[:MAX_PATHS]) or "No file has such a name.\n"
    return GlobResult(text=text, paths=paths[:MAX_PATHS], truncated=is_cut, note=note)


def _glob(pattern: str) -> Callable[[str], bool]:
    """Whether a path fits; a pattern without `/` is about the name alone, in any folder."""
    globs = [part for part in pattern.split("/") if part not in ("", ".")]
    if not globs or len(globs) > MAX_GLOB_PARTS or ".." in globs:
        raise InvalidArguments("Give a pattern like *.md or docs/**/*.txt.")
    if "/" not in pattern:
        globs.insert(0, "**")
    tests: list[Callable[[str], object] | None] = [
        None if part == "**" else re.compile(fnmatch.translate(part), re.IGNORECASE).match
        for part in globs
    ]

    def fits(path: str) -> bool:
        reached = _beyond_stars(tests, {0})
        for name in path.split("/"):
            onward = {at for at in reached if at < len(tests) and tests[at] is None}
            for at in reached - onward:
                test = tests[at] if at < len(tests) else None
                if test is not None and test(name):
                    onward.add(at + 1)
            reached = _beyond_stars(tests, onward)
        return len(tests) in reached

    return fits


def _beyond_stars(tests: list[Callable[[str], object] | None], reached: set[int]) -> set[int]:
    """Those places, and the ones behind a `**` there, which may stand for no folder at all."""
    result = set(reached)
    for at, test in enumerate(tests):
        if at in result and test is None:
            result.add(at + 1)
    return result


@syscall("fs.grep", effect=Effect.READ)
@in_mount(writes=False)
def grep(
    call: Call,
    text: Annotated[str, Field(min_length=1, max_length=500, description="Words to look for")],
    path: Annotated[str, Field(description="File or folder to look in, . for all")] = ".",
    files: Annotated[str, Field(description="Only files like *.md", max_length=500)] = "",
    is_regex: Annotated[bool, Field(description="text is a regular expression")] = False,
) -> GrepResult:
    """Find lines with certain words in files."""
    find = _by_expression(text) if is_regex else _by_words(text)
    search = _Search(find, _glob(files) if files else None, call.runtime.now)
    with root_of(call) as root:
        place = root.existing(path or ".")
        if place.kind == "folder":
            fd, where = root.open_folder(path or ".")
            search.tree(Tree(fd, where), 0 if where == "." else len(where) + 1)
        else:
            search.file(root.open_file(path))
        _labels.read_files(call, root, search.paths)
    found = "".join(f"{m['path']}:{m['line']}: {m['text']}\n" for m in search.matches)
    return GrepResult(
        text=found or "No line has it.\n",
        matches=search.matches,
        truncated=bool(search.cut_by),
        note=search.cut_by,
    )


Find = Callable[[str], int | None]
"""Where in a line it is, if it is there."""


def _by_words(words: str) -> Find:
    pattern = re.compile(re.escape(words), re.IGNORECASE)

    def find(line: str) -> int | None:
        found = pattern.search(line)
        return found.start() if found else None

    return find


def _by_expression(text: str) -> Find:
    """Raises `InvalidArguments`; what it returns raises `Failed` for what takes too long."""
    try:
        pattern = regex.compile(text, regex.IGNORECASE | regex.VERSION0)
    except (regex.error, OverflowError, RecursionError, ValueError, MemoryError) as error:
        raise InvalidArguments(
            f"That is no regular expression: {str(error)[:200]}; leave is_regex out to look for words."
        ) from error

    def find(line: str) -> int | None:
        try:
            found = pattern.search(line, timeout=LINE_S, concurrent=True)
        except (TimeoutError, MemoryError, RecursionError) as error:
            raise Failed(
                f"That expression takes more than {LINE_S:g} s on a single line; use a simpler one,"
                " without repeats inside repeats."
            ) from error
        return found.start() if found else None

    return find


class _Search:
    """One search through files: what it found, and why it ended early, if it did."""

    def __init__(
        self, find: Find, is_wanted: Callable[[str], bool] | None, now: Callable[[], float]
    ) -> None:
        self._find = find
        self._is_wanted = is_wanted
        self._now = now
        self._ends_at = now() + TIME_S
        self.matches: list[Match] = []
        self.paths: list[str] = []
        """Of the files that they are in, as they stand on the disk."""
        self.cut_by = ""
        self._refused: Failed | None = None

    def tree(self, tree: Tree, below: int) -> None:
        """Look through the text files of a tree, whose paths begin with the folder's, so many characters;
        binary and unreadable ones are passed over."""
        for found in tree.files():
            if self._is_wanted is not None and not self._is_wanted(found.path[below:]):
                continue
            with suppress(OSError, SyscallError), open_found(found) as file:
                self.file(file)
            if self._refused is not None:
                raise self._refused
            if self.cut_by:
                return
        if tree.is_cut:
            self.cut_by = "There are too many files, not all were looked at; name a folder."

    def file(self, file: OpenFile) -> None:
        """Look through one file; raises `Failed` if it is not text."""
        path = readable_name(file.path)
        with open_text(file) as (stream, _):
            number = 1
            for piece in lines(stream):
                at = self._looked(piece)
                if at is not None:
                    self._add(path, number, piece, at)
                    self.paths.append(file.path)
                if self._is_late():
                    return
                number += piece.endswith("\n")

    def _looked(self, line: str) -> int | None:
        try:
            return self._find(line)
        except Failed as error:  # is told, unlike a file's own failures
            self._refused = error
            raise

    def _is_late(self) -> bool:
        if self._now() > self._ends_at:
            self.cut_by = f"Looking took more than {TIME_S:.0f} s; name a smaller folder."
        return bool(self.cut_by)

    def _add(self, path: str, number: int, line: str, at: int) -> None:
        if len(self.matches) == MAX_MATCHES:
            self.cut_by = f"There are more lines than these {MAX_MATCHES}; look for rarer words."
            return
        start = max(0, at - MAX_LINE_CHARS // 3)
        text = line[start : start + MAX_LINE_CHARS].strip()
        self.matches.append(Match(path=path, line=number, text=text))


SYSCALLS = (glob, grep)

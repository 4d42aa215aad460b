"""The files that are a process's own: those that its journal shows it wrote, under its root.

For checkpoints, which take them along and put them back. Every path is walked as for `fs.*`: nothing outside
the root is read or written, whatever a path says or a link points at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from llmasos.kernel.errors import CheckpointRefused, SyscallError
from llmasos.kernel.journal.events import Event
from llmasos.kernel.journal.history import History
from llmasos.syscalls._atomic import locked, refuse_unwritable, replace
from llmasos.syscalls._oserrors import telling
from llmasos.syscalls._paths import Place, Root, refuse_new_name, shown
from llmasos.syscalls.fs_write import MAX_FILE_BYTES

WRITING_CALLS: Final = frozenset({"fs.write", "fs.append", "fs.edit", "fs.move", "fs.remove"})


def owned_paths(history: History) -> list[str]:
    """Paths of files that the process wrote and did not remove since."""
    asked: dict[str, Event] = {}
    paths: dict[str, None] = {}
    for event in history.events:
        if event[0] == "begin" and event[2] in WRITING_CALLS:
            asked[event[1]] = event
        elif event[0] == "plan" and event[1] in asked:
            _take(paths, asked[event[1]][2], _planned(event), asked[event[1]])
        elif event[0] == "done" and event[1] in asked:
            _take(paths, asked[event[1]][2], str(event[2]["path"]), asked[event[1]])
    return list(paths)


def _planned(event: Event) -> str:
    receipt = event[2]
    return str(receipt.get("path", "")) if isinstance(receipt, Mapping) else ""


def _take(paths: dict[str, None], name: str, path: str, begin: Event) -> None:
    if name in ("fs.write", "fs.append", "fs.edit") and path:
        paths[path] = None
    elif name in ("fs.move", "fs.remove"):
        paths.pop(path, None)
        if name == "fs.move":
            target = str(begin[3]["to"])
            paths[target] = None
            paths[f"{target.rstrip('/')}/{path.rpartition('/')[2]}"] = None


def read_owned(root: Path, within: str, paths: Sequence[str]) -> dict[str, bytes]:
    """What these files in a folder of a root hold now; those that are gone, are no files, or are in mounts,
    are left out. Blocks.

    Raises `CheckpointRefused` for one that is too large to take along.
    """
    files: dict[str, bytes] = {}
    with Root(root, within) as opened:
        for path in paths:
            try:
                place = opened.existing(path)
            except SyscallError:
                continue
            if place.kind == "file":
                files[place.path] = _content(opened, place)
    return files


def _content(root: Root, place: Place) -> bytes:
    file = root.open_at(place, place.path)
    with telling(shown(place.path)), open(file.fd, "rb", closefd=False) as stream:
        data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise CheckpointRefused(f"{shown(place.path)} is too large to go into a checkpoint.")
    return data


def refuse_clashes(root: Path, files: Mapping[str, bytes], *, force: bool) -> None:
    """Raise `CheckpointRefused` unless all of these files can be written there; without `force` also where
    one would replace a different one. Writes nothing. Blocks."""
    try:
        with Root(root) as opened:
            different = [path for path in files if _clashes(opened, path, files[path])]
    except SyscallError as error:
        raise CheckpointRefused(f"Its files cannot be put back: {error}") from error
    if different and not force:
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise CheckpointRefused(
            f"It would replace {shown(different[0])}{more}, which is different here; `--force` does it."
        )


def _clashes(root: Root, path: str, data: bytes) -> bool:
    names = path.split("/")
    if path.startswith("/") or ".." in names or "" in names or len(data) > MAX_FILE_BYTES:
        raise CheckpointRefused(f"{shown(path)} is no path that a file in a checkpoint can have.")
    for name in names:
        refuse_new_name(name, path)
    for folder in _folders(names):
        place = root.locate(folder)
        if place.status is None:
            return False
        if place.kind != "folder":
            raise CheckpointRefused(f"{shown(folder)} is not a folder here, and should be one.")
    place = root.locate(path)
    refuse_unwritable(place, path)
    return place.status is not None and _content(root, place) != data


def _folders(names: Sequence[str]) -> Iterator[str]:
    return ("/".join(names[:number]) for number in range(1, len(names)))


def write_owned(root: Path, files: Mapping[str, bytes]) -> None:
    """Put the files there, each in one act. Raises `CheckpointRefused`. Blocks."""
    try:
        with Root(root) as opened:
            for path, data in files.items():
                place = opened.locate(path, make_folders=True)
                with locked(place.folder_fd):
                    place = opened.locate(path)
                    refuse_unwritable(place, path)
                    replace(place, data)
    except SyscallError as error:
        raise CheckpointRefused(f"Its files cannot be put back: {error}") from error

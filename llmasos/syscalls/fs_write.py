"""`fs.*`: changing files under a process's root. Every change is atomic (see `_atomic`)."""

from __future__ import annotations

import os
from typing import Annotated, Any, TypedDict, cast

from pydantic import Field

from llmasos.kernel.abi import Effect, Labels
from llmasos.kernel.errors import Failed, InvalidArguments, LimitExceeded, SyscallError
from llmasos.kernel.syscall import Call, syscall
from llmasos.kernel.taint import joined
from llmasos.syscalls import _labels
from llmasos.syscalls._atomic import locked, refuse_unwritable, replace
from llmasos.syscalls._edit import diff_text, exact_span, line_end_of, with_line_end
from llmasos.syscalls._encoding import SAMPLE_BYTES, detect, split_mark
from llmasos.syscalls._mounts import in_mount
from llmasos.syscalls._once import NOTHING, digest, holds, identity, intend, made_before
from llmasos.syscalls._oserrors import telling
from llmasos.syscalls._paths import (
    Place,
    Root,
    readable_name,
    refuse_new_name,
    root_of,
    shown,
)
from llmasos.syscalls._text import size_text
from llmasos.syscalls._versions import keep

MAX_FILE_BYTES = 16 * 2**20
"""The largest file that these calls make or change."""

NewFile = Annotated[str, Field(description="File, like notes.md or docs/plan.txt")]


class WriteResult(TypedDict):
    """A file that was written."""

    path: str
    text: str
    size_bytes: int
    """Of the whole file, now."""
    num_lines: int
    """Of the text that was given."""
    created: bool


class EditResult(TypedDict):
    """A change inside a file; `text` is a unified diff."""

    path: str
    text: str
    size_bytes: int


class ChangeResult(TypedDict):
    """A file or folder that was moved or removed; `path` is where it was."""

    path: str
    text: str


@syscall("fs.write", effect=Effect.WRITE, repeatable=True)
@in_mount(writes=True)
def write(
    call: Call,
    path: NewFile,
    text: Annotated[str, Field(description="The whole text of the file")],
) -> WriteResult:
    """Write a text file. It replaces an old file of that name."""
    data = _encoded(text)
    with root_of(call) as root:
        _labels.made_folders(call, root, path)
        place = root.locate(path, make_folders=True)
        with locked(place.folder_fd):
            if (made := _made_before(call, root, place)) is not None:
                return cast("WriteResult", made)
            refuse_unwritable(place, path)
            result = _written("Wrote", place, text, len(data))
            call.charge_bytes(len(data))
            intend(call, place, after=digest(data), result=result)
            keep(call, root, place, "fs.write")
            with _labels.writing(call, place, data):
                replace(place, data)
    return result


@syscall("fs.append", effect=Effect.WRITE, repeatable=True)
@in_mount(writes=True)
def append(
    call: Call,
    path: NewFile,
    text: Annotated[str, Field(description="Text to add at the end")],
) -> WriteResult:
    """Add lines to the end of a file. It makes the file if there is none."""
    with root_of(call) as root:
        _labels.made_folders(call, root, path)
        folder = root.locate(path, make_folders=True)
        with locked(folder.folder_fd):
            place = root.locate(path)
            if (made := _made_before(call, root, place)) is not None:
                return cast("WriteResult", made)
            refuse_unwritable(place, path)
            data = _appended(_content(root, place, path), text, path)
            result = _written("Added to", place, text, len(data))
            call.charge_bytes(len(data) - (place.status.st_size if place.status else 0))
            intend(call, place, after=digest(data), result=result)
            keep(call, root, place, "fs.append")
            with _labels.writing(call, place, data, keeps=_labels_at(call, root, place)):
                replace(place, data)
    return result


@syscall("fs.edit", effect=Effect.WRITE, repeatable=True)
@in_mount(writes=True)
def edit(
    call: Call,
    path: Annotated[str, Field(description="File to change")],
    old: Annotated[str, Field(min_length=1, description="Text to replace, exactly as in the file")],
    new: Annotated[str, Field(description="Text to put in its place")],
) -> EditResult:
    """Replace one piece of text in a file."""
    with root_of(call) as root:
        folder = root.existing(path)
        with locked(folder.folder_fd):
            place = root.existing(path)
            if (made := _made_before(call, root, place)) is not None:
                return cast("EditResult", made)
            refuse_unwritable(place, path)
            content = _content(root, place, path)
            mark, codec = _codec(content, path)
            before = _decoded(content[len(mark) :], codec, path)
            line_end = line_end_of(before)
            span = exact_span(before, with_line_end(old, line_end), shown(path))
            after = before[: span[0]] + with_line_end(new, line_end) + before[span[1] :]
            data = mark + _encoded(after, codec)
            labels = _labels_at(call, root, place)
            call.came_from(labels)
            readable = readable_name(place.path)
            text = diff_text(readable, before, after, span)
            result = EditResult(path=readable, text=text, size_bytes=len(data))
            call.charge_bytes(len(data))
            intend(call, place, after=digest(data), result=result)
            keep(call, root, place, "fs.edit")
            with _labels.writing(call, place, data, keeps=labels):
                replace(place, data)
    return result


@syscall("fs.remove", effect=Effect.WRITE, repeatable=True)
@in_mount(writes=True)
def remove(call: Call, path: Annotated[str, Field(description="File to delete")]) -> ChangeResult:
    """Delete a file or an empty folder."""
    with root_of(call) as root:
        if call.receipt is not None and not _is_there(root, path):
            return cast("ChangeResult", call.receipt["result"])
        place = _changeable(root, path)
        made_before(call, identity(place.status), lambda _: False)
        result = ChangeResult(path=readable_name(place.path), text=f"Deleted {shown(place.path)}.")
        with locked(place.folder_fd), telling(shown(path)):
            intend(call, place, after=NOTHING, result=result)
            keep(call, root, place, "fs.remove")
            if place.kind == "folder":
                os.rmdir(place.name, dir_fd=place.folder_fd)
            else:
                os.unlink(place.name, dir_fd=place.folder_fd)
            os.fsync(place.folder_fd)
        _forget_labels(call, place.path)
    return result


@syscall("fs.move", effect=Effect.WRITE, repeatable=True)
@in_mount(writes=True)
def move(
    call: Call,
    path: Annotated[str, Field(description="File to move or rename")],
    to: Annotated[str, Field(description="New name, or a folder to move it into")],
) -> ChangeResult:
    """Move or rename a file. It never replaces another file."""
    with root_of(call) as root:
        if call.receipt is not None and not _is_there(root, path):
            return cast("ChangeResult", _moved_before(call, root))
        source = _changeable(root, path)
        made_before(call, identity(source.status), lambda _: False)
        _labels.made_folders(call, root, to)
        target = _target(root, to, source)
        result = ChangeResult(
            path=readable_name(source.path),
            text=f"Moved {shown(source.path)} to {shown(target.path)}.",
        )
        with locked(source.folder_fd, target.folder_fd), telling(shown(to)):
            _refuse_taken(target, to)
            intend(call, source, after=target.path, result=result)
            keep(call, root, source, "fs.move")
            _move_labels(call, source.path, target.path)
            os.rename(
                source.name,
                target.name,
                src_dir_fd=source.folder_fd,
                dst_dir_fd=target.folder_fd,
            )
            os.fsync(target.folder_fd)
            os.fsync(source.folder_fd)
        _forget_labels(call, source.path)
    return result


def _labels_at(call: Call, root: Root, place: Place) -> Labels:
    """What a file is labelled with that stands there, if any."""
    if place.status is None:
        return ()
    file = root.open_at(place, place.path)
    content = _labels.store_of(call).of_content(file.status.st_size, file.fd)
    return joined(_labels.names(call, [place.path]), content)


def _move_labels(call: Call, source: str, target: str) -> None:
    store = _labels.store_of(call)
    labels = joined(call.taint, _labels.names(call, [source]))
    if labels or not store.is_empty:
        store.copy(_labels.key_of(call, source), _labels.key_of(call, target), labels)


def _forget_labels(call: Call, path: str) -> None:
    _labels.store_of(call).clear(_labels.key_of(call, path), below=True, is_gone=True)


def _made_before(call: Call, root: Root, place: Place) -> Any | None:
    return made_before(call, identity(place.status), lambda wanted: holds(root, place, wanted))


def _is_there(root: Root, path: str) -> bool:
    try:
        return root.locate(path, follow=False).status is not None
    except SyscallError:
        return False


def _moved_before(call: Call, root: Root) -> Any:
    """The answer of a move whose source is gone: what it was to move must stand at its target."""
    moved: str = call.receipt["before"]

    def is_made(target: str) -> bool:
        return identity(root.locate(target, follow=False).status) == moved

    return made_before(call, NOTHING, is_made)


def _changeable(root: Root, path: str) -> Place:
    """What a path names itself, a link included, but never the root or an odd file."""
    place = root.existing(path, follow=False)
    if place.name == ".":
        raise InvalidArguments(f"{shown(path)} is a folder in use; name something inside it.")
    if place.kind == "other":
        raise Failed(f"{shown(path)} is a pipe, socket or device, not a file.")
    return place


def _target(root: Root, to: str, source: Place) -> Place:
    """Where a move goes: into `to` if that is a folder, else to that name."""
    into = f"{to}/{source.name}"
    target = root.locate(into if to.endswith("/") else to, make_folders=True)
    if target.kind == "folder":
        target = root.locate(into, follow=False)
    if target.status is None:
        refuse_new_name(target.name, to)
    return target


def _refuse_taken(target: Place, to: str) -> None:
    """The last look before a rename, which would replace a file without asking."""
    try:
        os.stat(target.name, dir_fd=target.folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    raise Failed(f"{shown(to)} exists already; choose another name or remove it first.")


def _written(verb: str, place: Place, text: str, size_bytes: int) -> WriteResult:
    num_lines = text.count("\n") + (not text.endswith("\n")) if text else 0
    path = readable_name(place.path)
    plural = "s" * (num_lines != 1)
    return WriteResult(
        path=path,
        text=f"{verb} {shown(path)}: {num_lines} line{plural}, {size_text(size_bytes)} in all.",
        size_bytes=size_bytes,
        num_lines=num_lines,
        created=place.status is None,
    )


def _appended(old: bytes, text: str, path: str) -> bytes:
    """The old bytes and then the text, on a line of its own, in the file's own encoding."""
    mark, codec = _codec(old, path)
    # A sample tells the line ends, the tail whether the last line is finished.
    line_end = line_end_of(old[len(mark) : SAMPLE_BYTES].decode(codec, "ignore"))
    newline = line_end.encode(codec)
    is_open = len(old) > len(mark) and not old.endswith(newline)
    data = old + newline * is_open + _encoded(with_line_end(text, line_end), codec)
    _refuse_too_large(len(data))
    return data


def _encoded(text: str, codec: str = "utf-8") -> bytes:
    _refuse_too_large(len(text))
    try:
        data = text.encode(codec)
    except UnicodeEncodeError as error:
        char = f"U+{ord(text[error.start]):04X}"
        raise InvalidArguments(f"The text has a character ({char}) that {codec} lacks.") from error
    _refuse_too_large(len(data))
    return data


def _refuse_too_large(size_bytes: int) -> None:
    if size_bytes > MAX_FILE_BYTES:
        raise LimitExceeded(
            f"A file may have {size_text(MAX_FILE_BYTES)}, this would be {size_text(size_bytes)}; "
            "split it into several files."
        )


def _content(root: Root, place: Place, path: str) -> bytes:
    """All bytes of a file that is small enough to be changed; none where there is no file."""
    if place.status is None:
        return b""
    file = root.open_at(place, path)
    _refuse_too_large(file.status.st_size)
    with telling(shown(path)), open(file.fd, "rb", closefd=False) as stream:
        data = stream.read(MAX_FILE_BYTES + 1)
    _refuse_too_large(len(data))
    return data


def _codec(data: bytes, path: str) -> tuple[bytes, str]:
    """The byte-order mark of a text file (often empty), and the codec of what follows it."""
    mark, codec = split_mark(data)
    if codec:
        return mark, codec
    encoding = detect(data[:SAMPLE_BYTES])
    if encoding is None:
        raise Failed(f"{shown(path)} is not text; choose a text file.")
    return b"", encoding.codec


def _decoded(data: bytes, codec: str, path: str) -> str:
    """A file's whole text; raises unless encoding it again gives the same bytes."""
    try:
        text = data.decode(codec)
        if text.encode(codec) == data:
            return text
    except UnicodeError:
        pass
    raise Failed(
        f"{shown(path)} has bytes that are not {codec} text; write the whole file anew with fs.write."
    )


SYSCALLS = (write, append, edit, remove, move)

"""`fs.history` and `fs.restore`: what files were before `fs.*` changed them, and getting it back."""

from __future__ import annotations

import os
from typing import Annotated, TypedDict

from pydantic import Field

from llmasos.kernel.abi import Effect
from llmasos.kernel.errors import Failed
from llmasos.kernel.syscall import Call, syscall
from llmasos.kernel.taint import joined
from llmasos.syscalls import _labels, _versions
from llmasos.syscalls._atomic import locked, refuse_unwritable, replace
from llmasos.syscalls._mounts import in_mount
from llmasos.syscalls._paths import missing, readable_name, root_of, shown
from llmasos.syscalls._text import iso_time, size_text

MAX_LISTED = 100
MAX_NUMBER = 2**53


class VersionInfo(TypedDict):
    """A file as it was; `ended_by` is the syscall that replaced it, `until` when (ISO 8601, UTC)."""

    path: str
    version: int
    size_bytes: int
    until: str
    ended_by: str
    pid: int
    kept: bool
    """False for one that was too large to keep."""


class HistoryResult(TypedDict):
    """Earlier versions, latest first."""

    path: str
    text: str
    versions: list[VersionInfo]
    truncated: bool


class RestoreResult(TypedDict):
    """A file that was brought back."""

    path: str
    text: str
    version: int
    size_bytes: int


class PurgeResult(TypedDict):
    """Earlier versions that are gone."""

    path: str
    text: str
    num_versions: int


@syscall("fs.history", effect=Effect.READ)
@in_mount(writes=False)
def history(
    call: Call,
    path: Annotated[str, Field(description="File, or a folder to see what changed in it")] = ".",
) -> HistoryResult:
    """List the earlier versions of a file."""
    with root_of(call) as root:
        place = root.locate(path or ".")
        look = _versions.history_below if place.kind == "folder" else _versions.history
        found = look(call, place.path, MAX_LISTED + 1)
        if not found and place.status is None:
            raise missing(path, place.folder_fd, place.name)
        _labels.read_names(call, [_relative(call, v) for v in found], with_gone=True)
    versions = [_info(call, version) for version in found[:MAX_LISTED]]
    return HistoryResult(
        path=readable_name(place.path),
        text="".join(map(_line, versions)) or f"{shown(place.path)} has no earlier version.\n",
        versions=versions,
        truncated=len(found) > MAX_LISTED,
    )


@syscall("fs.restore", effect=Effect.WRITE)
@in_mount(writes=True)
def restore(
    call: Call,
    path: Annotated[str, Field(description="File to bring back")],
    version: Annotated[
        int | None,
        Field(ge=1, le=MAX_NUMBER, description="Number from fs.history; without it the latest"),
    ] = None,
    to: Annotated[
        str | None, Field(description="Another file to write it to, to look at it first")
    ] = None,
) -> RestoreResult:
    """Bring back an earlier version of a file."""
    with root_of(call) as root:
        source = root.locate(path, make_folders=True)
        number = _latest(call, source.path) if version is None else version
        data = _versions.content(call, source.path, number)
        target = source if to is None else root.locate(to, make_folders=True)
        with locked(target.folder_fd):
            place = root.locate(to or path)
            refuse_unwritable(place, to or path)
            call.charge_bytes(len(data))
            _versions.keep(call, root, place, "fs.restore")
            labels = joined(
                _labels.store_of(call).of_data(data), _labels.names(call, [source.path])
            )
            with _labels.writing(call, place, data, keeps=labels):
                replace(place, data)
    where = "" if to is None else f" as {shown(place.path)}"
    return RestoreResult(
        path=readable_name(place.path),
        text=f"Restored version {number} of {shown(source.path)}{where}: {size_text(len(data))}.",
        version=number,
        size_bytes=len(data),
    )


@syscall("fs.purge", effect=Effect.WRITE, tool=False, repeatable=True)
@in_mount(writes=True)
def purge(call: Call, path: Annotated[str, Field(description="File")]) -> PurgeResult:
    """Forget all earlier versions of a file for good; the file itself stays."""
    with root_of(call) as root:
        place = root.locate(path)
        with locked(place.folder_fd):
            num_versions = _versions.purge(call, place.path)
    return PurgeResult(
        path=readable_name(place.path),
        text=f"Forgot {num_versions} earlier versions of {shown(place.path)}.",
        num_versions=num_versions,
    )


def _latest(call: Call, path: str) -> int:
    kept = [v.number for v in _versions.history(call, path, MAX_LISTED) if v.is_kept]
    if not kept:
        raise Failed(f"{shown(path)} has no earlier version.")
    return kept[0]


def _info(call: Call, version: _versions.Version) -> VersionInfo:
    return VersionInfo(
        path=readable_name(_relative(call, version)),
        version=version.number,
        size_bytes=version.size_bytes,
        until=iso_time(version.kept_at),
        ended_by=version.ended_by,
        pid=version.pid,
        kept=version.is_kept,
    )


def _relative(call: Call, version: _versions.Version) -> str:
    return os.path.relpath(version.path, call.real_root)


def _line(version: VersionInfo) -> str:
    lost = "" if version["kept"] else ", too large to keep"
    return (
        f"{version['path']} version {version['version']}: {size_text(version['size_bytes'])}, "
        f"until {version['until']} ({version['ended_by']}){lost}\n"
    )


SYSCALLS = (history, restore, purge)

"""Changing a file exactly once, though a crash may come at any moment and the call be made again.

Before the change the call has on disk what stands there now, what will stand there after, and what it will
answer (`Call.intend`). Made again, it looks: as before, then it makes the change; as it was to be, then the
change was made and it answers as it would have; otherwise somebody else was there, and it says that it
cannot know.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from llmasos.kernel.errors import MaybeDone, SyscallError
from llmasos.kernel.syscall import Call
from llmasos.syscalls._oserrors import telling
from llmasos.syscalls._paths import Place, Root, shown

Result = TypeVar("Result", bound=Mapping[str, Any])
NOTHING = "nothing"


def identity(status: os.stat_result | None) -> str:
    """What stands in a place, as far as its inode tells; a rename takes it along."""
    if status is None:
        return NOTHING
    return f"{status.st_dev}.{status.st_ino}.{status.st_size}.{status.st_mtime_ns}"


def digest(data: bytes) -> str:
    """Names a content."""
    return hashlib.sha256(data).hexdigest()


def holds(root: Root, place: Place, wanted: str) -> bool:
    """Whether a file has this content."""
    try:
        file = root.open_at(place, place.path)
    except SyscallError:
        return False
    with telling(shown(place.path)), open(file.fd, "rb", closefd=False) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == wanted


def made_before(call: Call, now: str, is_made: Callable[[str], bool]) -> Any | None:
    """The answer of a call that had made its change when a kernel ended under it; None where the change
    is still to be made. Raises `MaybeDone`."""
    receipt = call.receipt
    if receipt is None or receipt["before"] == now:
        return None
    if is_made(receipt["after"]):
        return receipt["result"]
    raise MaybeDone(
        f"The kernel ended while {shown(receipt['path'])} was being changed, and it is now neither as it"
        " was nor as it was to be; look at it."
    )


def intend(call: Call, place: Place, *, after: str, result: Result) -> Result:
    """Have on disk what is about to be done to a place; returns the result."""
    call.intend(
        {
            "path": place.path,
            "before": identity(place.status),
            "after": after,
            "result": result,
        }
    )
    return result

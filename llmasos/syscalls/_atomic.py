"""Replacing a file as one act, and keeping writers of one folder apart.

A write goes to a temporary file in the same folder, to disk, and then takes the name: whoever reads
sees the old text or the new one, also after a crash or a full disk. What a killed writer left behind
is swept by a later write to that folder. Hard links to the old file keep the old text.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from llmasos.kernel.errors import Failed, InvalidArguments, PermissionDenied
from llmasos.syscalls._oserrors import telling
from llmasos.syscalls._paths import TEMP_PREFIX, Place, refuse_new_name, refuse_unless_file, shown

STALE_S = 3600.0
"""Older than this, a temporary file has no living writer."""
LOCK_TRIES = 500
_LOCK_PAUSE_S = 0.01
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def locked(*folder_fds: int) -> Iterator[None]:
    """Keep other writers of these folders out, in this process and in others. May block 5 s.

    The locks are advisory and die with their holder.
    """
    by_inode = {(os.fstat(fd).st_dev, os.fstat(fd).st_ino): fd for fd in folder_fds}
    with ExitStack() as releasing:
        for _, fd in sorted(by_inode.items()):  # one order for all, so that no two wait in a ring
            _lock(fd)
            releasing.callback(fcntl.flock, fd, fcntl.LOCK_UN)
        yield


def _lock(fd: int) -> None:
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        except OSError:  # a disk without locks: the last of two writers wins, nothing is torn
            return
        else:
            return
    raise Failed("Somebody else keeps this folder locked; try again later.")


def refuse_unwritable(place: Place, path: str) -> None:
    """Raise unless a file may be written there: a new one, or a regular one that is not read-only."""
    if path.endswith("/"):
        raise InvalidArguments(f"{shown(path)} names a folder; add a file name.")
    if place.status is None:
        refuse_new_name(place.name, path)
        return
    refuse_unless_file(place.status, path)
    if not place.status.st_mode & 0o222:
        raise PermissionDenied(f"{shown(path)} is read-only; write to another file.")


def replace(place: Place, data: bytes) -> None:
    """Make `data` the whole content of the file at `place`. Keeps its mode. Reaches the disk."""
    with telling(shown(place.path)), ExitStack() as undo:
        temp = f"{TEMP_PREFIX}{secrets.token_hex(8)}"
        fd = os.open(temp, _NEW, 0o666, dir_fd=place.folder_fd)
        undo.callback(_unlink, temp, place.folder_fd)
        with open(fd, "wb") as stream:
            _take_after(fd, place.status)
            stream.write(data)
            stream.flush()
            os.fsync(fd)
            now = os.fstat(fd).st_mtime
        os.replace(temp, place.name, src_dir_fd=place.folder_fd, dst_dir_fd=place.folder_fd)
        undo.pop_all()
        os.fsync(place.folder_fd)
        _sweep(place.folder_fd, now)


def _take_after(fd: int, old: os.stat_result | None) -> None:
    """Give the new file the old one's permissions, and its owner where that is allowed."""
    if old is None:
        return
    new = os.fstat(fd)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with suppress(PermissionError):
            os.fchown(fd, old.st_uid, old.st_gid)
    os.fchmod(fd, stat.S_IMODE(old.st_mode) & 0o777)


def _sweep(folder_fd: int, now: float) -> None:
    """Remove temporary files whose writers were killed; `now` is by the disk's own clock."""
    with suppress(OSError), os.scandir(folder_fd) as entries:
        for entry in entries:
            if (
                entry.name.startswith(TEMP_PREFIX)
                and entry.stat(follow_symlinks=False).st_mtime < now - STALE_S
            ):
                _unlink(entry.name, folder_fd)


def _unlink(name: str, folder_fd: int) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=folder_fd)

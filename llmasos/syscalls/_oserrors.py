"""An `OSError` told to a process: one sentence, with what to do next.

Errors of the race kind (a name that was there a moment ago) ask for another try; the rest name
what the system refused.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from llmasos.kernel.errors import Failed, InvalidArguments, PermissionDenied, SyscallError

_CHANGED = (Failed, "changed while it was being used; try again")
_BUSY = (Failed, "cannot be opened now, too many files are open; try again later")
_FULL = (Failed, "could not be written, the disk is full; free some space and try again")

_REASONS: dict[int, tuple[type[SyscallError], str]] = {
    errno.ENOENT: _CHANGED,
    errno.ENOTDIR: _CHANGED,
    errno.ELOOP: _CHANGED,
    errno.ESTALE: _CHANGED,
    errno.EMFILE: _BUSY,
    errno.ENFILE: _BUSY,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: (PermissionDenied, "is not open to this user; use another file"),
    errno.EPERM: (PermissionDenied, "may not be changed by this user; use another file"),
    errno.EROFS: (PermissionDenied, "is on a read-only disk; write somewhere else"),
    errno.EFBIG: (Failed, "would become larger than the system allows; write less"),
    errno.EISDIR: (Failed, "is a folder; list it with fs.list"),
    errno.EEXIST: (Failed, "exists already; choose another name"),
    errno.ENOTEMPTY: (Failed, "is a folder that is not empty; remove what is in it first"),
    errno.EINVAL: (Failed, "cannot be used that way; choose another path"),
    errno.EXDEV: (Failed, "is on another disk; write a copy and remove the original"),
    errno.ENAMETOOLONG: (InvalidArguments, "is too long for a file name; choose a shorter one"),
    errno.EILSEQ: (InvalidArguments, "is not a name this disk can hold; choose another one"),
    errno.EIO: (Failed, "could not be used, the disk reports an error"),
}


def told(error: OSError, subject: str) -> SyscallError:
    """The error about `subject` (a quoted path) as a process should read it."""
    kind, reason = _REASONS.get(error.errno or 0, (Failed, ""))
    if not reason:
        reason = f"could not be used: {error.strerror or type(error).__name__}"
    return kind(f"{subject} {reason}.")


@contextmanager
def telling(subject: str) -> Iterator[None]:
    """Turn an `OSError` of the block into the `SyscallError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise told(error, subject) from error

"""Where the kernel runs as root: another user for code that a model wrote, so that limits bind it.

The operating system counts a user's processes against `RLIMIT_NPROC`, but never root's, nor those that root
has only mapped to another number. So there are two sandboxes, one in the other: the outer one is made by
root and shows the system's programs at places that anybody may reach (root's own folders are closed to
others); in it the process becomes a user that nothing else belongs to, takes on the limit, and makes the
inner one, which is the sandbox proper.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Sequence, Set
from pathlib import Path

import psutil

FIRST_UID = 61184
LAST_UID = 65519
"""Numbers that systemd hands to services for as long as they run; no person has one."""
GIVEN = "/given"
"""Where the outer sandbox shows a run's files."""
_LIMITS = "/limits.py"


def free_uid(taken: Set[int]) -> int | None:
    """A user that has no name and no process now, and is not among the `taken`; None where all have."""
    used = set(taken)
    for process in psutil.process_iter(["uids"]):
        if process.info["uids"]:
            used |= set(process.info["uids"])
    count = LAST_UID - FIRST_UID + 1
    for number in range(count):
        uid = FIRST_UID + (os.getpid() * 7 + number) % count
        if uid not in used and not _has_name(uid):
            return uid
    return None


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def outer_sandbox(
    bubblewrap: str,
    system: Sequence[str],
    python: str,
    *,
    prefix: str,
    child: str,
    files: Sequence[Path],
    uid: int,
    max_processes: int,
) -> list[str]:
    """What goes before the inner sandbox's command line: afterwards root's rights are gone for good."""
    args = [bubblewrap, "--die-with-parent", "--clearenv"]
    for folder in ("/etc", "/tmp", GIVEN, *_ways_to(prefix)):
        args += ["--perms", "0755", "--dir", folder]
    args += [*system, "--bind", "/proc", "/proc", "--dev", "/dev", "--ro-bind", child, _LIMITS]
    for file in files:
        args += ["--ro-bind", str(file), f"{GIVEN}/{file.name}"]
    limits = json.dumps({"uid": uid, "NPROC": max_processes})
    return [
        *args, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--",
        python, "-I", "-S", _LIMITS, limits,
    ]  # fmt: skip


def _ways_to(prefix: str) -> list[str]:
    """The folders above a Python installation that is not the system's."""
    if prefix == "/usr" or prefix.startswith("/usr/"):
        return []
    return [str(folder) for folder in reversed(Path(prefix).parents) if str(folder) != "/"]

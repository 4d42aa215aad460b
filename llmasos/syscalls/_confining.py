"""What confining a process takes, whatever for: the interpreter, bubblewrap's view of the system, limits.

Code that a model wrote (`sandbox`) and apps in processes of their own (`shell/installed/launch`) are confined
to different degrees; this is what they have in common.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

LIMITS_CHILD = str(Path(__file__).with_name("_limits_child.py"))
"""The program that takes limits upon itself and becomes another one."""
_SYSTEM_FOLDERS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")


def system_view(more_files: Sequence[str] = ()) -> list[str]:
    """bubblewrap's arguments: the system's programs, read-only."""
    args = ["--ro-bind", "/usr", "/usr"]
    for folder in _SYSTEM_FOLDERS:
        if os.path.islink(folder):
            args += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            args += ["--ro-bind", folder, folder]
    for file in (*_SYSTEM_FILES, *more_files):
        args += ["--ro-bind-try", file, file]
    return args


def works(command: Sequence[str]) -> bool:
    """Whether a command ends well. Blocks, ten seconds at most."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False, env={}
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def python_prefix() -> str | None:
    """The folder of a Python installation that is not among the system's programs."""
    prefix = os.path.realpath(sys.base_prefix)
    return None if prefix == "/usr" or prefix.startswith("/usr/") else prefix


def num_own_threads() -> int:
    """Of this user, whose limit on processes counts them all."""
    uid, total = os.getuid(), 0
    for process in psutil.process_iter(["uids", "num_threads"]):
        uids = process.info["uids"]
        total += (process.info["num_threads"] or 0) if uids and uids.real == uid else 0
    return total

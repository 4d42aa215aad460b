"""Starting an app's process: confined as far as this machine can, and gone when its run is over.

With bubblewrap: no network, no files but the system's programs, Python, the SDK and the app's own
environment (all read-only) and a scratch folder in memory, its own process table, no privileges. Where the
kernel runs as root the app gets a user of its own, since limits on processes do not bind root. Without
bubblewrap only resource limits hold: `docs/security.md` says what that leaves open.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from llmasos.apps.remote.wire import FD, MAX_MESSAGE_BYTES, TOKEN
from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import AppError
from llmasos.syscalls._confining import (
    LIMITS_CHILD,
    interpreter,
    num_own_threads,
    python_prefix,
    system_view,
    works,
)
from llmasos.syscalls.sandbox import kill_tree

MEMORY_BYTES = 1024 * 2**20
"""What one process of an app may allocate, and resident memory of all of them together."""
ADDRESS_BYTES = 32 * MEMORY_BYTES
"""Its address space: some runtimes reserve a great deal and use little."""
MAX_PROCESSES = 64
MAX_OPEN_FILES = 256
SCRATCH_BYTES = 64 * 2**20
NICENESS = 10
FIRST_UID = 1_900_000_000
"""Where the kernel is root, apps are users from here on: far from any that a system gives out."""
NUM_UIDS = 100_000_000
OOM_SCORE = 800
_CERTIFICATES = "/etc/ssl"


@dataclass(frozen=True, slots=True)
class Executable:
    """What an app's process is started from."""

    argv: tuple[str, ...]
    readable: tuple[str, ...] = ()
    """Files and folders that it needs to read, beside the system's and Python's."""
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Started:
    """An app's process that runs."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    token: str


class Launcher:
    """Starts apps' processes. `bubblewrap` None does without it."""

    def __init__(self, *, bubblewrap: str | None = "bwrap") -> None:
        self._bubblewrap = shutil.which(bubblewrap) if bubblewrap else None

    @property
    def is_confining(self) -> bool:
        """Whether an app's process is kept from the network, the files and other processes. Blocks."""
        return bool(self._prefix.argv)

    @asynccontextmanager
    async def started(self, executable: Executable, pid: Pid) -> AsyncGenerator[Started]:
        """A process of `executable` for the process `pid`; killed with all its own at the end."""
        prefix = await anyio.to_thread.run_sync(lambda: self._prefix)
        ours, theirs = socket.socketpair()
        token = secrets.token_hex(16)
        env = {**_ENVIRONMENT, **executable.env, FD: str(theirs.fileno()), TOKEN: token}
        try:
            process = await asyncio.create_subprocess_exec(
                *prefix.command(executable, pid, env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=env,
                cwd="/",
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            reason = os.strerror(error.errno or 0)
            raise AppError(f"The app's process could not be started: {reason}.") from error
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_MESSAGE_BYTES)
        try:
            yield Started(process, reader, writer, token)
        finally:
            writer.transport.abort()
            with anyio.CancelScope(shield=True):
                await _end(process)

    @cached_property
    def _prefix(self) -> _Prefix:
        if self._bubblewrap is None:
            return _Prefix()
        is_root = os.getuid() == 0
        candidates = [_AS_ROOT] if is_root else []
        candidates += [[*_AS_USER, "--disable-userns"], _AS_USER]
        for privileges in candidates:
            argv = [self._bubblewrap, *privileges, *_view()]
            if works([*argv, "--remount-ro", "/", "--", "/bin/sh", "-c", "exit 0"]):
                return _Prefix(tuple(argv), has_own_user=privileges is _AS_ROOT)
        return _Prefix()


async def _end(process: asyncio.subprocess.Process) -> None:
    await anyio.to_thread.run_sync(kill_tree, process.pid)
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    # asyncio closes the pipes once their ends are read; a descendant that got away may hold them
    transport: Any = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()


_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "TMPDIR": "/tmp"}
_AS_ROOT = [
    "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
    "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID",
]  # fmt: skip
_AS_USER = [
    "--unshare-all",
    "--unshare-user",
    "--uid",
    "65534",
    "--gid",
    "65534",
    "--cap-drop",
    "ALL",
]


@dataclass(frozen=True, slots=True)
class _Prefix:
    """What goes before a command; nothing where nothing confines."""

    argv: tuple[str, ...] = ()
    has_own_user: bool = False

    def command(self, executable: Executable, pid: Pid, env: Mapping[str, str]) -> list[str]:
        """The whole command line."""
        limits = json.dumps(
            {
                "nice": NICENESS,
                "oom_score_adj": OOM_SCORE,
                "uid": FIRST_UID + pid % NUM_UIDS if self.has_own_user else None,
                **self._rlimits(),
            }
        )
        confined = [interpreter(), "-I", "-S", "-B", LIMITS_CHILD, limits, *executable.argv]
        if not self.argv:
            return confined
        prefix = python_prefix()
        seen = dict.fromkeys([*executable.readable, LIMITS_CHILD, *([prefix] if prefix else [])])
        binds = [arg for path in seen for arg in _seen(path)]
        variables = [arg for name, value in env.items() for arg in ("--setenv", name, value)]
        return [*self.argv, *variables, *binds, "--remount-ro", "/", "--", *confined]

    def _rlimits(self) -> dict[str, int]:
        limits = {
            "DATA": MEMORY_BYTES,
            "AS": ADDRESS_BYTES,
            "NOFILE": MAX_OPEN_FILES,
            "CORE": 0,
            "FSIZE": SCRATCH_BYTES,
        }
        if self.argv:
            limits["NPROC"] = MAX_PROCESSES
        elif os.getuid() != 0:  # outside a namespace the count is of all that the user runs
            limits["NPROC"] = num_own_threads() + MAX_PROCESSES
        return limits


def _seen(path: str) -> list[str]:
    """bubblewrap's arguments that show a file or folder where it is; what lies above it is made, since
    what bubblewrap makes by itself can be entered by root alone."""
    above = [str(folder) for folder in reversed(Path(path).parents)][1:]
    made = [arg for folder in above for arg in ("--perms", "0755", "--dir", folder)]
    return [*made, "--ro-bind", path, path]


def _view() -> list[str]:
    """bubblewrap's arguments: what the inside looks like, before an app's own folders."""
    args = ["--die-with-parent", "--new-session", "--clearenv", "--hostname", "app"]
    args += system_view([_CERTIFICATES])
    size = ["--perms", "1777", "--size", str(SCRATCH_BYTES), "--tmpfs"]
    return [
        *args,
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        *size,
        "/dev/shm",
        *size,
        "/tmp",
        "--chdir",
        "/tmp",
    ]

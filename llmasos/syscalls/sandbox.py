"""Where code that a model wrote runs: a process of its own that can do little and is gone at the deadline.

With bubblewrap (Linux): no network, no files but the system's programs (read-only) and an empty scratch
folder in memory, its own process table, no privileges, no environment. Without it only resource limits,
a scratch folder and an empty environment, which confine neither reading nor, mostly, the network: such a
sandbox must be allowed by a setting. `docs/security.md` has the whole list.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import psutil

from llmasos.kernel.errors import Failed
from llmasos.syscalls._confining import (
    LIMITS_CHILD,
    interpreter,
    num_own_threads,
    python_prefix,
    system_view,
    works,
)
from llmasos.syscalls._other_user import GIVEN, free_uid, outer_sandbox

MEMORY_BYTES = 1024 * 2**20
"""Of one process, and resident of all of a run's together."""
FILE_BYTES = 64 * 2**20
SCRATCH_BYTES = 128 * 2**20
MAX_PROCESSES = 64
MAX_OPEN_FILES = 256
MAX_OUTPUT_BYTES = 2**20
MAX_CONCURRENT = 4
NICENESS = 10
WATCH_S = 0.05
SCRATCH = "/scratch"


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a run."""

    stdout: bytes
    stderr: bytes
    exit_code: int
    """As a shell has it: 128+n where signal n ended it."""
    ended_for: str
    """Why it was ended before its own end; empty if it was not."""
    kind: str
    """What confined it: `bubblewrap`, `limits without network` or `limits`; `, as root` where nothing
    but the watch limits how many processes there are."""


class Sandbox:
    """Runs commands. `allow_weak` lets it run them under resource limits alone where bubblewrap is not."""

    def __init__(self, *, allow_weak: bool = False, bubblewrap: str | None = "bwrap") -> None:
        self._allow_weak = allow_weak
        self._bubblewrap = shutil.which(bubblewrap) if bubblewrap else None
        self._prefix: list[str] | None = None
        self._kind = ""
        self._places: anyio.CapacityLimiter | None = None
        self._uids: set[int] = set()
        """Users that runs of this kernel have now, where it runs as root."""

    async def run(
        self,
        command: Callable[[str], Sequence[str]],
        *,
        files: Mapping[str, str],
        stdin: str,
        timeout_s: float,
        on_output: Callable[[str], None] | None = None,
    ) -> Ran:
        """Run a command in a new scratch folder that holds `files`.

        `command` is given the folder's path as the command will see it. Cancelled, it kills what runs
        first. Raises `Failed` where nothing may be run.
        """
        if self._places is None:
            self._places = anyio.CapacityLimiter(MAX_CONCURRENT)
        async with self._places:
            prefix = await anyio.to_thread.run_sync(self._ready)
            folder = Path(tempfile.mkdtemp(prefix="llmasos-run-"))
            try:
                for name, text in files.items():
                    (folder / name).write_text(text, encoding="utf-8", errors="replace")
                    (folder / name).chmod(0o644)
                with self._user() as uid:
                    line = self._command(prefix, folder, command, timeout_s, uid)
                    run = _Run(line, folder, on_output)
                    return await run.finish(stdin, timeout_s, self._kind)
            finally:
                await anyio.to_thread.run_sync(partial(shutil.rmtree, folder, ignore_errors=True))

    async def is_sealed(self) -> bool:
        """Whether nothing is read in it but what it is given and the system's own. Raises `Failed`."""
        await anyio.to_thread.run_sync(self._ready)
        return self._kind == "bubblewrap"

    def _command(
        self,
        prefix: list[str],
        folder: Path,
        command: Callable[[str], Sequence[str]],
        timeout_s: float,
        uid: int | None,
    ) -> list[str]:
        limits = {
            "AS": MEMORY_BYTES, "CPU": int(timeout_s) + 1, "FSIZE": FILE_BYTES, "CORE": 0,
            "NOFILE": MAX_OPEN_FILES, "nice": NICENESS,
        }  # fmt: skip
        if uid is None:
            limits["NPROC"] = num_own_threads() + MAX_PROCESSES
        limiting = [interpreter(), "-I", "-S", LIMITS_CHILD, json.dumps(limits)]
        if self._kind != "bubblewrap":
            return [*limiting, *prefix, *command(str(folder))]
        files = sorted(folder.iterdir())
        inputs = [arg for f in files for arg in _given(f, shown_in_outer=uid is not None)]
        inner = [*prefix, *inputs, "--remount-ro", "/", "--", *command(SCRATCH)]
        return [*limiting, *self._outer(uid, files), *inner]

    def _outer(self, uid: int | None, files: Sequence[Path]) -> list[str]:
        if uid is None or self._bubblewrap is None:
            return []
        return outer_sandbox(
            self._bubblewrap,
            _system(),
            interpreter(),
            prefix=os.path.realpath(sys.base_prefix),
            child=LIMITS_CHILD,
            files=files,
            uid=uid,
            max_processes=MAX_PROCESSES,
        )

    @contextmanager
    def _user(self) -> Iterator[int | None]:
        """The user that a run has for itself; None where it is the kernel's own. Raises `Failed`."""
        if self._kind != "bubblewrap" or os.geteuid() != 0:
            yield None
            return
        uid = free_uid(self._uids)
        if uid is None:
            raise Failed("Code is not run as root here: no user is free; run LLMasOS as a user.")
        self._uids.add(uid)
        try:
            yield uid
        finally:
            self._uids.discard(uid)

    def _ready(self) -> list[str]:
        """What goes before a command; found out once. Blocks. Raises `Failed`."""
        if self._prefix is None:
            self._prefix = self._find_out()
        return self._prefix

    def _find_out(self) -> list[str]:
        if self._bubblewrap is not None:
            for extra in (["--disable-userns"], []):
                prefix = [self._bubblewrap, *_view(), *extra]
                outer = self._outer(free_uid(self._uids) if os.geteuid() == 0 else None, ())
                try_out = [*outer, *prefix, "--remount-ro", "/", "--", "/bin/sh", "-c", "exit 0"]
                if works(try_out):
                    self._kind = "bubblewrap"
                    return prefix
        if not self._allow_weak:
            raise Failed(
                "Code is not run here: bubblewrap (bwrap) is missing or may make no namespaces;"
                " install it (as root it must be able to become another user too), or set exec_sandbox"
                " to weak to run under resource limits alone."
            )
        unbound = ", as root" if os.geteuid() == 0 else ""
        unshare = shutil.which("unshare")
        if unshare is not None:
            prefix = [
                unshare,
                "--user",
                "--map-root-user",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
            ]
            if works([*prefix, "/bin/sh", "-c", "exit 0"]):
                self._kind = f"limits without network{unbound}"
                return prefix
        self._kind = f"limits{unbound}"
        return []


def python_command(script: str) -> list[str]:
    """Runs a script with the standard library alone."""
    return [interpreter(), "-I", "-S", "-B", "-X", "utf8", script]


def _view() -> list[str]:
    """bubblewrap's arguments: what the inside looks like, before a run's own files."""
    args = [
        "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv",
        "--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox",
        "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", SCRATCH,
        "--setenv", "LANG", "C.UTF-8", *_system(),
    ]  # fmt: skip
    size = str(SCRATCH_BYTES)
    return [
        *args, "--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm",
        "--size", size, "--tmpfs", SCRATCH, "--symlink", SCRATCH, "/tmp", "--chdir", SCRATCH,
    ]  # fmt: skip


def _system() -> list[str]:
    """bubblewrap's arguments: the system's programs and Python, read-only."""
    prefix = python_prefix()
    return [*system_view(), *(["--ro-bind", prefix, prefix] if prefix else [])]


def _given(file: Path, *, shown_in_outer: bool) -> list[str]:
    source = f"{GIVEN}/{file.name}" if shown_in_outer else str(file)
    return ["--ro-bind", source, f"{SCRATCH}/{file.name}"]


class _Run:
    """One command under way: its output, its watch, its end."""

    def __init__(
        self, command: list[str], folder: Path, on_output: Callable[[str], None] | None
    ) -> None:
        self._command = command
        self._folder = folder
        self._on_output = on_output
        self._num_bytes = 0
        self._ended_for = ""

    async def finish(self, stdin: str, timeout_s: float, kind: str) -> Ran:
        """Run it to its end or to the deadline's."""
        process = await anyio.open_process(
            self._command, cwd=self._folder, env=self._environment(), start_new_session=True
        )
        stdout, stderr = bytearray(), bytearray()
        try:
            with anyio.move_on_after(timeout_s) as deadline:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._watch, process)
                    async with anyio.create_task_group() as streams:
                        streams.start_soon(self._feed, process, stdin)
                        streams.start_soon(self._read, process, process.stdout, stdout)
                        streams.start_soon(self._read, process, process.stderr, stderr)
                        await process.wait()
                        await _kill(process)  # what it left running ends with it
                    tasks.cancel_scope.cancel()
            if deadline.cancelled_caught:
                self._ended_for = f"it took more than {timeout_s:g} s"
        finally:
            with anyio.CancelScope(shield=True):
                await _kill(process)
                await process.wait()
                await process.aclose()
        code = process.returncode or 0
        code = 128 - code if code < 0 else code
        return Ran(bytes(stdout), bytes(stderr), code, self._ended_for, kind)

    def _environment(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "HOME": str(self._folder), "LANG": "C.UTF-8"}

    async def _feed(self, process: anyio.abc.Process, stdin: str) -> None:
        if process.stdin is not None:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # it need not read
                if stdin:
                    await process.stdin.send(stdin.encode("utf-8", "replace"))
                await process.stdin.aclose()

    async def _read(
        self,
        process: anyio.abc.Process,
        stream: anyio.abc.ByteReceiveStream | None,
        into: bytearray,
    ) -> None:
        if stream is None:
            return
        async for piece in stream:
            self._num_bytes += len(piece)
            if self._num_bytes > MAX_OUTPUT_BYTES:
                await self._end(process, f"it wrote more than {MAX_OUTPUT_BYTES} bytes")
                return
            into += piece
            if self._on_output is not None:
                self._on_output(piece.decode("utf-8", "replace"))

    async def _watch(self, process: anyio.abc.Process) -> None:
        """End a run that has too many processes or too much memory in all."""
        while not self._ended_for:
            await anyio.sleep(WATCH_S)
            reason = await anyio.to_thread.run_sync(_excess, process.pid)
            if reason:
                await self._end(process, reason)

    async def _end(self, process: anyio.abc.Process, reason: str) -> None:
        self._ended_for = self._ended_for or reason
        await _kill(process)


async def _kill(process: anyio.abc.Process) -> None:
    await anyio.to_thread.run_sync(kill_tree, process.pid)


def _excess(pid: int) -> str:
    """Why a tree of processes is too much; empty while it is not."""
    try:
        tree = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return ""
    if len(tree) > MAX_PROCESSES:
        return f"it started more than {MAX_PROCESSES} processes"
    total = 0
    for process in tree:
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return "" if total <= MEMORY_BYTES else f"it took more than {MEMORY_BYTES >> 20} MiB"


def kill_tree(pid: int) -> None:
    """Kill a process, its group and all that descend from it, until none is left or a second is over."""
    ends_at = time.monotonic() + 1.0
    victims: set[psutil.Process] = set()  # also those whose parent is gone before they are
    while time.monotonic() < ends_at:
        with suppress(psutil.Error):
            victims.update(psutil.Process(pid).children(recursive=True))
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        for process in victims:
            with suppress(psutil.Error):
                process.kill()
        victims = {process for process in victims if _is_alive(process)}
        if not victims:
            return
        time.sleep(0.001)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False

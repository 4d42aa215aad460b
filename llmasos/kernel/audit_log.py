"""The audit log's file: entries are put on the loop, and appended by one thread, many at a time.

Nothing in it is ever written over. A disk that is full is tried again until it takes what waits, and whoever
waits for a ticket stands still meanwhile, as with the journal. What a crash left half written at the end is
cut off at the next opening: it was never counted as written, and no call had gone on because of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import anyio.to_thread

from llmasos.kernel.audit_chain import NAME, ORIGIN, Head, files_of, link
from llmasos.kernel.delivery import Ticket
from llmasos.kernel.errors import ConfigError

_log = logging.getLogger(__name__)

LINGER_S: Final = 0.05
RETRY_S: Final = 1.0
MAX_FILE_BYTES: Final = 64 << 20
"""A file that has grown beyond is set aside, and the chain goes on in a new one."""
_TAIL_BYTES: Final = 1 << 18


class AuditFile:
    """The file alone. Its methods block, and belong to one thread at a time."""

    def __init__(self, folder: Path, *, durable: bool, max_bytes: int = MAX_FILE_BYTES) -> None:
        """Open it, made with mode 0600 if it is not there. Raises `ConfigError`."""
        self._folder, self._durable, self._max_bytes = folder, durable, max_bytes
        try:
            self.head = _last_head(folder)
            self._open()
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"The audit log in {folder} cannot be gone on with ({error}); `llmasos audit verify` says"
                " what is wrong with it. Move its files away to begin another."
            ) from error

    def append(self, lines: bytes, head: Head) -> None:
        """Write whole lines at the end, all of them or none. Raises `OSError`.

        Where the file was taken away or replaced meanwhile, they go where it should be: what they follow is
        then missing there, and `verify` says so.
        """
        if not self._is_in_place():
            _log.warning("The audit log was moved or replaced; `llmasos audit verify` tells more.")
            os.close(self._file)
            self._open()
        if self._size and self._size + len(lines) > self._max_bytes:
            self._set_aside()
        try:
            _write_all(self._file, lines)
            if self._durable:
                os.fdatasync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(lines)
        self.head = head

    def close(self) -> None:
        """Close it."""
        os.close(self._file)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(self._folder / NAME, flags, 0o600)
        self._size = os.fstat(self._file).st_size
        if self._size == 0 and self._durable:
            self._sync_folder()

    def _sync_folder(self) -> None:
        """Have it on disk that the file is there, and that another has its new name."""
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self._folder / NAME))
        except FileNotFoundError:
            return False

    def _set_aside(self) -> None:
        number = 1 + max([int(path.suffix[1:]) for path in files_of(self._folder)[:-1]], default=0)
        os.rename(self._folder / NAME, self._folder / f"{NAME}.{number}")
        os.close(self._file)
        self._open()


def _write_all(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def _last_head(folder: Path) -> Head:
    """The head to go on from; a half-written last line is cut off."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / NAME
    if path.exists():
        _cut_torn(path)
    written = [each for each in files_of(folder) if each.stat().st_size]
    if not written:
        return ORIGIN
    with written[-1].open("rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - _TAIL_BYTES, 0))
        last = file.read().splitlines()[-1]
    entry = json.loads(last)
    return Head(int(entry["n"]), str(entry["hash"]))


def _cut_torn(path: Path) -> None:
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        start = max(size - _TAIL_BYTES, 0)
        file.seek(start)
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)


class AuditLog:
    """One kernel's audit log. Made and used on its event loop."""

    def __init__(self, file: AuditFile) -> None:
        self._file = file
        self.head = file.head
        """Of what was put in, on disk or not yet."""
        self.on_head: Callable[[Head], None] = lambda _: None
        """Told of the head once it is on disk."""
        self.warning = ""
        self._lines: list[bytes] = []
        self._ticket = Ticket()
        self._writing: Ticket | None = None
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._is_urgent = False
        self._retry: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llmasos-audit")

    def put(self, values: Mapping[str, Any]) -> None:
        """Add an entry; its number and hashes are added to it."""
        if self.head == ORIGIN:
            self._add({"kind": "log", "name": secrets.token_hex(16)})
        self._add(values)
        self._schedule(urgent=False)

    def ticket(self) -> Ticket:
        """Done once everything put in until now is in the file, and on disk where that is wanted."""
        if self._lines:
            self._schedule(urgent=True)
            return self._ticket
        if self._writing is not None:
            return self._writing
        done = Ticket()
        done.finish()
        return done

    async def aclose(self) -> None:
        """Write what waits, unless the disk takes nothing, and close the file."""
        while (self._lines or self._writing is not None) and not self.warning:
            written = asyncio.Event()
            self.ticket().after(written.set)
            await written.wait()
        for timer in (self._timer, self._retry):
            if timer is not None:
                timer.cancel()
        await anyio.to_thread.run_sync(self._thread.shutdown)
        self._file.close()

    # --- within

    def _add(self, values: Mapping[str, Any]) -> None:
        line, self.head = link(self.head, values)
        self._lines.append(line)

    def _schedule(self, *, urgent: bool) -> None:
        self._is_urgent = self._is_urgent or urgent
        if self._writing is not None or (self._timer is not None and not urgent):
            return
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = (
            loop.call_soon(self._write) if urgent else loop.call_later(LINGER_S, self._write)
        )

    def _write(self) -> None:
        self._timer, self._is_urgent = None, False
        if self._writing is not None or not self._lines:
            return
        self._writing, self._ticket = self._ticket, Ticket()
        lines, self._lines = b"".join(self._lines), []
        self._submit(lines, self.head)

    def _submit(self, lines: bytes, head: Head) -> None:
        loop = asyncio.get_running_loop()

        def written(future: Future[None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._written, lines, head, future.exception())

        self._thread.submit(self._file.append, lines, head).add_done_callback(written)

    def _written(self, lines: bytes, head: Head, error: BaseException | None) -> None:
        if isinstance(error, OSError):
            if not self.warning:
                _log.warning("The audit log cannot be written: %s", error)
            reason = os.strerror(error.errno or 0)
            self.warning = (
                f"what changes the world stands still: the audit log takes nothing ({reason})"
            )
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(RETRY_S, self._submit, lines, head)
            return
        if error is not None:
            raise error
        self.warning = ""
        done, self._writing = self._writing, None
        self.on_head(head)
        if self._lines:
            self._schedule(urgent=self._is_urgent)
        if done is not None:
            done.finish()

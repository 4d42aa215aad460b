"""The tiers below a core's pages: host memory (`swap_host`), what is being written, segment files on disk.

A page is stored under its key, which names the model's fingerprint and every token from the first of the
context to the last of the page; so a page that is found is the right one, of whichever process, and also
after a restart. It comes back only if every byte of it is as it was written: a damaged, truncated, vanished
or foreign page is one that was never stored, and is computed again.

`put` copies nothing to disk itself: an I/O thread writes batches behind it. `read` fills the memory that it
is given in other threads, while the engine computes. A disk that fills up or fails turns writing off, with
a warning; what is stored already stays readable and the kernel goes on.

`put` and `read` are the engine thread's, `has` and `status` anybody's.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmasos.kernel.swap_files import (
    HEADER_BYTES,
    KEY_BYTES,
    Buffer,
    SegmentFolder,
    Storage,
    header_of,
    read_record,
    scan,
    segment_name,
    segment_number,
)
from llmasos.kernel.swap_host import HostTier
from llmasos.kernel.swap_reads import Reads, Wanted

_log = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 4 * 2**30
MAX_PENDING_BYTES = 256 * 2**20
"""Host memory for pages that wait to be written; beyond it the engine waits for the disk."""
SEGMENTS = 16
"""A full swap is about so many files: the oldest goes whole when room is needed."""
MAX_SEGMENT_BYTES = 256 * 2**20
NUM_READERS = 2
"""Threads that read pages: one waits for the disk while another checks what came."""
PATIENCE_S = 1.0
"""How long the engine waits for a disk that cannot keep up before it lets a page go."""


def root_key(fingerprint: str, page_size: int, salt: str = "") -> bytes:
    """Where the keys of one model's pages begin."""
    name = repr((fingerprint, page_size, salt)).encode()
    return hashlib.blake2b(name, digest_size=KEY_BYTES).digest()


def page_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of the page that holds these tokens (a full page's or fewer) after that parent."""
    content = np.asarray(tokens, dtype="<i8").tobytes()
    return hashlib.blake2b(content, digest_size=KEY_BYTES, key=parent).digest()


@dataclass(frozen=True, slots=True)
class SwapStatus:
    """What a swap holds and whether it still takes more."""

    num_pages: int
    num_bytes: int
    """Of host memory and of the disk, each page as often as it lies there."""
    max_bytes: int
    """Of the disk."""
    num_written: int
    num_read: int
    num_bad: int
    """Pages that were damaged or gone when they were wanted."""
    warning: str
    """Why nothing more is written; empty while all is well."""


@dataclass(slots=True)
class _Segment:
    """One file: how long it is, what it holds, when it was last wanted."""

    num_bytes: int = 0
    keys: set[bytes] = field(default_factory=set)
    last_used: int = 0


@dataclass(frozen=True, slots=True)
class _Place:
    segment: int
    offset: int
    num_bytes: int


class Swap:
    """Pages by key, in at most `max_bytes` of storage; least recently used segments go first."""

    def __init__(
        self,
        storage: Storage,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        host_bytes: int = 0,
        writer: Executor | None = None,
        readers: Executor | None = None,
    ) -> None:
        """Read the index of what is stored. Blocks for one small read a page. `host_bytes` of memory
        keep pages from the disk for a while. `writer` runs the writes, one at a time, and `readers` the
        reads; None is threads of its own."""
        self._storage = storage
        self._max_bytes = max_bytes
        self._segment_bytes = min(MAX_SEGMENT_BYTES, max(max_bytes // SEGMENTS, 1))
        self._max_pending = max_pending_bytes
        self._writer = writer or ThreadPoolExecutor(1, thread_name_prefix="llmasos-swap")
        self._readers = readers or ThreadPoolExecutor(
            NUM_READERS, thread_name_prefix="llmasos-swap-read"
        )
        self._changed = threading.Condition()
        self._host = HostTier(host_bytes)
        self._pending: dict[bytes, Buffer] = {}
        self._pending_bytes = 0
        self._is_draining = False
        self._places: dict[bytes, _Place] = {}
        self._segments: dict[int, _Segment] = {}
        self._current: int | None = None
        self._clock = 0
        self._num_written = self._num_read = self._num_bad = 0
        self._warning = ""
        self._read_index()
        self._next_segment = max(self._segments, default=0) + 1
        self._make_room(0)

    @classmethod
    def in_folder(
        cls, folder: Path, *, max_bytes: int = DEFAULT_MAX_BYTES, host_bytes: int = 0
    ) -> Swap:
        """A swap of segment files there. Raises `ConfigError` where the folder cannot be made."""
        return cls(SegmentFolder(folder), max_bytes=max_bytes, host_bytes=host_bytes)

    @property
    def is_writable(self) -> bool:
        """Whether pages are still taken."""
        return not self._warning

    def has(self, key: bytes) -> bool:
        """Whether `read` would look for the page; it may still turn out to be damaged."""
        with self._changed:
            return self._has(key)

    def put(self, key: bytes, content: Buffer) -> None:
        """Take a page, to be written behind the caller's back; `content` must not change any more.

        Waits where the disk cannot keep up, and drops the page when that takes too long.
        """
        with self._changed:
            if not self.is_writable or self._has(key):
                return
            pushed_out = self._host.put(key, content, is_dirty=True)
        self._write_behind(pushed_out)

    def read(self, wanted: Sequence[Wanted], *, now: Callable[[], float]) -> Reads:
        """Begin to fill each target with its page, every byte checked. A page that is not as it was
        written, or not of its target's size, is not found, and forgotten."""
        reads = Reads(wanted, self._read_into, order=self._in_file_order(wanted), now=now)
        reads.start(self._readers, NUM_READERS)
        return reads

    def read_ahead(self, keys: Sequence[bytes]) -> None:
        """These pages will be wanted soon: have the system fetch them from the disk meanwhile."""
        with self._changed:
            places = [place for key in keys if (place := self._places.get(key)) is not None]
        if places:
            self._readers.submit(self._hint, _neighbours(places))

    def flush(self) -> None:
        """Wait until what was put is written or given up. Blocks."""
        with self._changed:
            dirty = self._host.clean()
        self._write_behind(dirty)
        with self._changed:
            self._changed.wait_for(lambda: not self._is_draining)

    def close(self) -> None:
        """Write what waits and stop the I/O threads."""
        self.flush()
        self._writer.shutdown()
        self._readers.shutdown()
        self._storage.close()

    def clear(self) -> None:
        """Forget and delete everything that is written; blocks."""
        self.flush()
        with self._changed:
            self._host.clear()
            for number in list(self._segments):
                self._remove_segment(number)

    @property
    def status(self) -> SwapStatus:
        """Counts, for people and tests."""
        with self._changed:
            return SwapStatus(
                num_pages=len(self._places) + len(self._pending) + len(self._host),
                num_bytes=self._num_bytes + self._pending_bytes + self._host.num_bytes,
                max_bytes=self._max_bytes,
                num_written=self._num_written,
                num_read=self._num_read,
                num_bad=self._num_bad,
                warning=self._warning,
            )

    # --- within: reading

    def _in_file_order(self, wanted: Sequence[Wanted]) -> list[int]:
        """Numbers of the pages, those in memory first, then as they lie on the disk."""
        with self._changed:
            places = [self._places.get(key) for key, _ in wanted]
        where = [(place.segment, place.offset) if place else (-1, 0) for place in places]
        return sorted(range(len(wanted)), key=where.__getitem__)

    def _read_into(self, key: bytes, target: memoryview) -> bool:
        with self._changed:
            content = self._host.get(key) or self._pending.get(key)
            place = self._places.get(key)
        if content is None and place is None:
            return False
        if content is None and place is not None:
            is_whole = self._read_place(key, place, target)
        elif is_whole := content is not None and len(content) == len(target):
            target[:] = content
        with self._changed:
            if is_whole:
                self._num_read += 1
            else:
                self._num_bad += 1
                self._forget(key)
        return is_whole

    def _write_behind(self, pages: Sequence[tuple[bytes, Buffer]]) -> None:
        """Queue pages for the disk, waiting a while where it cannot keep up."""
        for key, content in pages:
            size = len(content)
            with self._changed:
                if not self._changed.wait_for(functools.partial(self._has_room, size), PATIENCE_S):
                    continue
                if not self.is_writable or key in self._pending or key in self._places:
                    continue
                self._pending[key] = content
                self._pending_bytes += size
                must_start, self._is_draining = not self._is_draining, True
            if must_start:
                self._writer.submit(self._drain)

    def _read_place(self, key: bytes, place: _Place, target: memoryview) -> bool:
        name = segment_name(place.segment)
        try:
            is_whole = read_record(self._storage, name, place.offset, key=key, content=target)
        except OSError as error:
            _log.warning("A swapped page could not be read (%s); it is computed again.", error)
            return False
        with self._changed:
            if (segment := self._segments.get(place.segment)) is not None:
                segment.last_used = self._tick()
            pushed_out = self._keep(key, target) if is_whole else []
        self._write_behind(pushed_out)
        return is_whole

    def _hint(self, places: Sequence[_Place]) -> None:
        for place in places:
            with contextlib.suppress(OSError):  # whoever reads it will find out
                self._storage.read_ahead(segment_name(place.segment), place.offset, place.num_bytes)

    def _read_index(self) -> None:
        """Files that cannot be read hold nothing; pages of other models are kept for their day."""
        try:
            names = self._storage.names()
        except OSError as error:
            self._turn_off(error)
            return
        for name in names:
            number = segment_number(name)
            segment = self._segments[number] = _Segment(last_used=self._tick())
            try:
                segment.num_bytes = self._storage.size(name)
                for key, offset, num_bytes in scan(self._storage, name):
                    self._record(key, _Place(number, offset, num_bytes))
            except OSError as error:
                _log.warning("The swap file %s could not be read (%s).", name, error)

    # --- within: the writer's thread

    def _drain(self) -> None:
        while True:
            with self._changed:
                batch = list(self._pending.items())[:SEGMENTS]
                if not batch:
                    self._is_draining = False
                    self._changed.notify_all()
                    return
            for key, content in batch:
                self._write(key, content)

    def _write(self, key: bytes, content: Buffer) -> None:
        size = HEADER_BYTES + len(content)
        place = None
        if self.is_writable and size <= self._max_bytes:
            try:
                place = self._append(key, content, size)
            except OSError as error:
                self._turn_off(error)
        with self._changed:
            if self._pending.pop(key, None) is not None:
                self._pending_bytes -= len(content)
            if place is not None:
                self._num_written += 1
                self._record(key, place)
            self._changed.notify_all()

    def _append(self, key: bytes, content: Buffer, size: int) -> _Place:
        with self._changed:
            number = self._segment_for(size)
            segment = self._segments[number]
            offset, segment.num_bytes = segment.num_bytes, segment.num_bytes + size
        self._storage.append(segment_name(number), (header_of(key, content), content))
        return _Place(number, offset, size)

    def _segment_for(self, size: int) -> int:
        """The segment that takes the next record, a new one where the last is full."""
        current = self._segments.get(self._current) if self._current is not None else None
        if current is None or current.num_bytes + size > self._segment_bytes:
            self._current = None
            self._make_room(size)
            self._current, self._next_segment = self._next_segment, self._next_segment + 1
            self._segments[self._current] = _Segment()
        else:
            self._make_room(size)
        self._segments[self._current].last_used = self._tick()  # type: ignore[index]
        return self._current  # type: ignore[return-value]

    # --- within: with the lock held

    def _keep(self, key: bytes, content: memoryview) -> list[tuple[bytes, Buffer]]:
        """Have a page that came from the disk in host memory too, where there is such a tier."""
        if not self._host.has_room(len(content)):
            return []
        return self._host.put(key, bytes(content), is_dirty=False)

    def _has(self, key: bytes) -> bool:
        return key in self._host or key in self._pending or key in self._places

    @property
    def _num_bytes(self) -> int:
        return sum(segment.num_bytes for segment in self._segments.values())

    def _has_room(self, size: int) -> bool:
        fits = self._pending_bytes + size <= self._max_pending
        return fits or not self._pending or not self.is_writable

    def _make_room(self, size: int) -> None:
        """Delete least recently used segments, never the one being written, until `size` fits."""
        while self._num_bytes + size > self._max_bytes:
            old = [number for number in self._segments if number != self._current]
            if not old:
                return
            self._remove_segment(min(old, key=lambda number: self._segments[number].last_used))

    def _remove_segment(self, number: int) -> None:
        segment = self._segments.pop(number)
        if number == self._current:
            self._current = None
        for key in segment.keys:
            del self._places[key]
        try:
            self._storage.remove(segment_name(number))
        except OSError as error:
            self._turn_off(error)

    def _record(self, key: bytes, place: _Place) -> None:
        if (segment := self._segments.get(place.segment)) is not None and key not in self._places:
            self._places[key] = place
            segment.keys.add(key)

    def _forget(self, key: bytes) -> None:
        self._host.drop(key)
        if (place := self._places.pop(key, None)) is not None:
            self._segments[place.segment].keys.discard(key)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _turn_off(self, error: OSError) -> None:
        self._warning = f"swap takes no more pages: {error.strerror or error}"
        _log.warning("Swap is off for new pages (%s); contexts are computed again instead.", error)


def _neighbours(places: Sequence[_Place]) -> list[_Place]:
    """The same bytes in as few places as can be: records that follow each other become one."""
    merged: list[_Place] = []
    for place in sorted(places, key=lambda place: (place.segment, place.offset)):
        last = merged[-1] if merged else None
        if last and (last.segment, last.offset + last.num_bytes) == (place.segment, place.offset):
            merged[-1] = _Place(last.segment, last.offset, last.num_bytes + place.num_bytes)
        else:
            merged.append(place)
    return merged

"""A process's archive in the home's memory: what its windows drop, found again by `memory.recall`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from llmasos.kernel.process import Process
from llmasos.syscalls._embedding import embedder_of
from llmasos.syscalls.memory import FILE, process_owner
from llmasos.syscalls.memory_store import MAX_TEXT_CHARS, PROCESS, MemoryStore


class MemoryArchive:
    """Implements `kernel.archive.Archive`; a text too long for one memory becomes several."""

    def __init__(self, store: MemoryStore, process: Process) -> None:
        self._store = store
        self._owner = process_owner(process)
        self._written_by = f"{process.app} (pid {process.pid})"

    def remember(self, text: str, source: str) -> None:
        """See `Archive.remember`; filing the same text again changes nothing."""
        for start in range(0, len(text), MAX_TEXT_CHARS):
            part = text[start : start + MAX_TEXT_CHARS]
            if part.strip():
                self._store.remember(
                    PROCESS, self._owner, part, source=source, written_by=self._written_by
                )

    def recall(self, query: str, limit: int) -> Sequence[str]:
        """See `Archive.recall`."""
        found = self._store.recall(query, PROCESS, self._owner, limit)
        return [memory.text for memory in found]


def archives_in(
    cache_folder: Path, *, now: Callable[[], float]
) -> Callable[[Process], MemoryArchive]:
    """Each process's archive, in the memory of the home that this is the cache folder of."""

    def archive_of(process: Process) -> MemoryArchive:
        file = cache_folder.parent / FILE
        return MemoryArchive(MemoryStore(file, embedder_of(cache_folder), now=now), process)

    return archive_of

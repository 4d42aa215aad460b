"""What the journal of a home says, read beside a kernel that may be running or not.

SQLite is loaded with the first journal: most commands open none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmasos.kernel.abi import Pid, ProcessInfo, ProcessState
from llmasos.kernel.errors import ConfigError
from llmasos.shell.environment import Environment
from llmasos.shell.home import JOURNAL_NAME, home_folder

if TYPE_CHECKING:
    from llmasos.kernel.journal.entries import ProcessRow
    from llmasos.kernel.journal.history import History
    from llmasos.kernel.journal.store import JournalStore

MAX_ROWS = 1000
COMES_BACK = "It comes back with the next kernel."


class Records:
    """A journal, open for reading. Its methods block."""

    def __init__(self, store: JournalStore) -> None:
        self._store = store

    @property
    def home_id(self) -> str:
        """Names the home wherever its records go."""
        return self._store.home_id

    @property
    def audit_head(self) -> str:
        """How far the audit log had come when the journal was last written; empty where it is not known."""
        return self._store.audit_head

    def history(self, pid: Pid, *, until: int | None = None) -> History:
        """A process's history. Raises `NoSuchProcess`, `JournalDamaged`."""
        from llmasos.kernel.journal.events import decode_events
        from llmasos.kernel.journal.history import History

        return History(pid, decode_events(self._store.events(pid, until=until)))

    def processes(self) -> list[ProcessInfo]:
        """The newest processes, by pid."""
        return [process_info(row) for row in reversed(self._store.rows(limit=MAX_ROWS))]


@contextmanager
def records_of(environment: Environment) -> Iterator[Records]:
    """The journal of the home that this command is about. Raises `ConfigError` where there is none."""
    with records_in(home_folder(environment.flags.home)) as records:
        yield records


@contextmanager
def records_in(home: Path) -> Iterator[Records]:
    """The same for a home by its folder."""
    from llmasos.kernel.journal.store import JournalStore

    path = home / JOURNAL_NAME
    if not path.exists():
        raise ConfigError(f"There is no journal in {home}; no kernel has kept one there yet.")
    store = JournalStore.open(path, read_only=True)
    try:
        yield Records(store)
    finally:
        store.close()


def process_info(row: ProcessRow) -> ProcessInfo:
    """A row of `ps` for a process that only the journal knows: it has no figures."""
    info = ProcessInfo(
        pid=row.pid,
        ppid=row.ppid,
        app=row.app,
        title=row.title,
        state=ProcessState.DEAD,
        wchan="",
        nice=0,
        started_at=row.started_at,
        wall_s=(row.ended_at or row.started_at) - row.started_at,
        model_s=0.0,
        tokens_in=0,
        tokens_out=0,
        tokens_computed=0,
        tokens_cached=0,
        tokens_per_s=0.0,
        pages_private=0,
        pages_shared=0,
        num_contexts=0,
        num_syscalls=0,
        exit=row.exit,
        note="Part of its journal is lost." if row.is_damaged else "",
    )
    if row.ended_at is None:
        return replace(info, state=ProcessState.STOPPED, note=info.note or COMES_BACK)
    return info

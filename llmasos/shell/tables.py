"""Tables of processes, models and apps: rich on a terminal, plain aligned columns elsewhere.

A table too wide for the terminal loses its least important columns first, then has cells cut.
Cells are untrusted text (titles come from models): they are made safe and flat here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len

from llmasos.kernel.abi import AppInfo, GroupInfo, KernelStatus, ProcessInfo
from llmasos.shell.plain import one_line

if TYPE_CHECKING:
    from rich.table import Table as RichTable

GAP = 2
"""Spaces between columns."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, its side, and how soon it goes: 0 never, then the highest first."""

    heading: str
    right: bool = False
    drop: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows of text, as many cells a row as columns."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]

    def fitted(self, width: int) -> Table:
        """This table without the columns that do not fit."""
        table = self
        while sum(table.widths()) + GAP * len(table.columns) > width:
            drops = [column.drop for column in table.columns]
            if max(drops, default=0) == 0:
                break
            table = table.without(drops.index(max(drops)))
        return table

    def without(self, index: int) -> Table:
        """This table less one column."""
        rows = tuple(row[:index] + row[index + 1 :] for row in self.rows)
        return Table(self.columns[:index] + self.columns[index + 1 :], rows)

    def widths(self) -> list[int]:
        """Cells of the terminal that each column takes."""
        lines = [tuple(column.heading for column in self.columns), *self.rows]
        return [max(cell_len(cell) for cell in cells) for cells in zip(*lines, strict=True)]

    def plain(self) -> str:
        """Aligned text, a line a row, nothing cut."""
        widths = self.widths()
        lines = [tuple(column.heading for column in self.columns), *self.rows]
        return "".join(self._plain_line(line, widths) + "\n" for line in lines)

    def _plain_line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        padded = []
        for column, cell, width in zip(self.columns, cells, widths, strict=True):
            padding = " " * (width - cell_len(cell))
            padded.append(padding + cell if column.right else cell + padding)
        return (" " * GAP).join(padded).rstrip()


def rich_table(content: Table) -> RichTable:
    """The table as something rich can print or keep live."""
    from rich.table import Table
    from rich.text import Text

    rich = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column, width in zip(content.columns, content.widths(), strict=True):
        rich.add_column(
            column.heading,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=width if column.right else 5,  # a number cut short would be another number
        )
    for row in content.rows:
        rich.add_row(*(Text(cell) for cell in row))
    return rich


PS_COLUMNS = (
    Column("PID", right=True),
    Column("PPID", right=True, drop=5),
    Column("STATE"),
    Column("NI", right=True, drop=7),
    Column("APP"),
    Column("IN", right=True, drop=3),
    Column("CACHED", right=True, drop=6),
    Column("OUT", right=True),
    Column("TOK/S", right=True, drop=2),
    Column("PAGES", right=True, drop=4),
    Column("SHARED", right=True, drop=8),
    Column("MODEL", right=True, drop=9),
    Column("WALL", right=True, drop=1),
    Column("WAITS IN", drop=10),
    Column("TITLE"),
)


LONG_COLUMNS = (
    Column("PID", right=True),
    Column("STATE"),
    Column("APP"),
    Column("GROUP"),
    Column("COMPUTED", right=True),
    Column("CACHED", right=True, drop=3),
    Column("LOADED", right=True),
    Column("AGAIN", right=True),
    Column("FAULTS", right=True, drop=2),
    Column("PAGES", right=True),
    Column("SHARED", right=True, drop=5),
    Column("SHARE", right=True, drop=4),
    Column("PAGE*S", right=True, drop=1),
    Column("MODEL", right=True),
    Column("ADAPTER", drop=6),
)


def memory_table(processes: Sequence[ProcessInfo]) -> Table:
    """What `ps -l` shows: where the K/V of each process came from, in tokens (computed, found in
    memory, loaded from swap; AGAIN are those computed that had been lost), and the pages it holds.
    SHARE counts a page by how many hold it."""
    return Table(LONG_COLUMNS, tuple(_memory_row(process) for process in processes))


def _memory_row(process: ProcessInfo) -> tuple[str, ...]:
    return (
        str(process.pid),
        _state(process),
        one_line(process.app, max_chars=24),
        one_line(process.group, max_chars=32) or "-",
        str(process.tokens_computed),
        str(process.tokens_cached),
        str(process.tokens_swapped_in),
        str(process.tokens_recomputed),
        str(process.minor_faults),
        str(process.pages_private),
        str(process.pages_shared),
        f"{process.pages_proportional:.1f}",
        f"{process.page_s:.1f}",
        duration(process.model_s),
        one_line(" ".join(process.adapters), max_chars=32) or "-",
    )


def _title(process: ProcessInfo) -> str:
    """What it is called and, while it lives, how far it says that it is."""
    progress = f"[{process.progress}]" if process.progress and process.exit is None else ""
    return f"{process.title} {progress}".strip()


def process_table(processes: Sequence[ProcessInfo]) -> Table:
    """What `ps` shows. PAGES are private ones; MODEL is time that the core spent on it."""
    return Table(PS_COLUMNS, tuple(_process_row(process) for process in processes))


def _process_row(process: ProcessInfo) -> tuple[str, ...]:
    return (
        str(process.pid),
        str(process.ppid),
        _state(process),
        str(process.nice),
        one_line(process.app, max_chars=24),
        str(process.tokens_in),
        str(process.tokens_cached),
        str(process.tokens_out),
        f"{process.tokens_per_s:.1f}",
        str(process.pages_private),
        str(process.pages_shared),
        duration(process.model_s),
        duration(process.wall_s),
        process.wchan or "-",
        one_line(_title(process), max_chars=48) or "-",
    )


def _state(process: ProcessInfo) -> str:
    if process.exit is None:
        return process.state.value
    return f"exit {process.exit.code}"


def status_table(status: KernelStatus) -> Table:
    """What `status` shows, a line a fact."""
    facts = (
        ("model", status.model),
        ("core", f"{status.core}{', exact' if status.exact else ''}"),
        ("window", f"{status.context_length} tokens"),
        ("pages", f"{status.pages_held} held, {status.pages_cached} cached, "
         f"{status.pages_free} free of {status.pages_total} ({status.page_size} tokens each)"),
        ("swap", swap_line(status)),
        ("processes", f"{status.num_processes} ({status.num_running} with the model)"),
        *(("group", _group_line(group)) for group in status.groups if group.path or _bounds(group)),
        ("speed", f"{status.tokens_per_s:.1f} tokens/s, {status.num_steps} steps"),
        ("journal", _journal(status)),
        ("up", duration(status.uptime_s)),
    )  # fmt: skip
    rows = tuple((name, one_line(value)) for name, value in facts)
    return Table((Column("KERNEL"), Column("")), rows)


def swap_line(status: KernelStatus) -> str:
    """Swap in a few words: what is in it, how much went through it, why it takes no more."""
    words = (
        f"{status.swap_pages} pages, {size(status.swap_bytes)};"
        f" {status.pages_saved} saved, {status.pages_loaded} loaded"
    )
    return f"{words}; {status.swap_warning}" if status.swap_warning else words


def _group_line(group: GroupInfo) -> str:
    words = (
        f"{group.path or '(root)'}: weight {group.weight}, {group.num_processes_in_all} processes,"
        f" {group.tokens_out} tokens, {duration(group.model_s)} of the model, {group.pages_held} pages"
    )
    bounds = _bounds(group)
    return f"{words}; at most {', '.join(bounds)}" if bounds else words


def _bounds(group: GroupInfo) -> list[str]:
    """A group's limits, those that it has."""
    limits = group.limits
    named = (
        (limits.processes, "processes"),
        (limits.tokens_out, "tokens"),
        (limits.model_s, "s of the model"),
        (limits.pages, "pages"),
    )
    return [f"{value:g} {what}" for value, what in named if value is not None]


def _journal(status: KernelStatus) -> str:
    if status.journal == "off":
        return "off: a crash loses what runs"
    lag = f", {duration(status.journal_lag_s)} behind" if status.journal_lag_s else ""
    warning = f"; {status.journal_warning}" if status.journal_warning else ""
    return f"{status.journal}, {size(status.journal_bytes)}{lag}{warning}"


def app_table(apps: Sequence[AppInfo]) -> Table:
    """What `app list` shows."""
    columns = (
        Column("APP"),
        Column("VERSION", drop=2),
        Column("PARAMETERS", drop=1),
        Column("DOES"),
    )
    rows = tuple(
        (
            one_line(app.name),
            one_line(app.version),
            one_line(" ".join(app.parameters.get("properties", {}))) or "-",
            one_line(app.summary),
        )
        for app in apps
    )
    return Table(columns, rows)


def duration(seconds: float) -> str:
    """A time for people: `0.42s`, `12.3s`, `4m07s`, `2h05m`, `3d04h`."""
    if seconds < 1:
        return f"{max(seconds, 0):.2f}s"
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def size(num_bytes: float) -> str:
    """Bytes for people: `271 MB`."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"

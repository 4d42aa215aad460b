"""Groups of processes: weights, limits and accounts of subtrees, as Linux's cgroups have them.

A group's processes and its subgroups compete for what the group gets: each subgroup with its weight, all
its own processes together as one with the default weight, and those among each other by niceness. So nobody
gets more of the model by starting more processes. Which of them runs is the policy's business
(`policies.FairShare`); here stand its numbers.

What is used below a group counts against its limits too, so a subgroup has what its own limits and those of
everything above it leave. `lacks_pages` is asked by the scheduler, `admit` by the kernel;
what is used up for good is the account's business (`limits`).

A group that was only ever named by a spawn is forgotten with its last process; one whose weight or limits
were set stays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmasos.kernel.abi import GroupInfo, GroupLimits, LimitInfo, Pid
from llmasos.kernel.accounts import Account, check_limits, group_limits_of, used_of
from llmasos.kernel.core import PageId
from llmasos.kernel.errors import InvalidArguments, KernelBug, LimitExceeded
from llmasos.kernel.limits import SaveAccount

if TYPE_CHECKING:
    from llmasos.kernel.context import Context
    from llmasos.kernel.process import Process

DEFAULT_WEIGHT = 100
MAX_WEIGHT = 10_000
NICE_STEP = 1.25
"""One step of niceness changes a process's weight by this factor, as on Unix."""
MAX_DEPTH = 16

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:-]{0,63}")


@dataclass(slots=True)
class Turn:
    """Where a competitor stands among its siblings; written by the policy alone."""

    virtual_time: float = -math.inf
    """Tokens it was given, over its weight in units of the default weight; from its siblings' clock on."""
    round: int = -1
    """The latest ordering in which it had work."""


@dataclass(slots=True)
class Clock:
    """The virtual time of a set of siblings: what a newcomer is measured against."""

    time: float = 0.0
    weight: float = 0.0
    """Sum of the weights of the siblings that have work."""


@dataclass(slots=True, eq=False)
class Group:
    """One group. `turn` is its place among its parent's subgroups; `own_turn` that of its own processes,
    taken together, among its subgroups."""

    name: str
    number: int
    parent: Group | None = None
    weight: int = DEFAULT_WEIGHT
    is_kept: bool = False
    limits: GroupLimits = field(default_factory=GroupLimits)
    account: Account = field(init=False)
    """What it may use and has used; see `limits`."""
    children: dict[str, Group] = field(default_factory=dict)
    processes: dict[Pid, Process] = field(default_factory=dict)
    """Live ones of the group itself."""
    turn: Turn = field(default_factory=Turn)
    own_turn: Turn = field(default_factory=Turn)
    clock: Clock = field(default_factory=Clock)
    own_clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        above = None if self.parent is None else self.parent.account
        self.account = Account(self.title, above, self.limits)

    @property
    def path(self) -> str:
        """Its name from the root, `a/b`; empty for the root."""
        return "/".join(group.name for group in reversed(list(self.upwards()))).lstrip("/")

    def upwards(self) -> Iterator[Group]:
        """This group, its parent, and so on to the root."""
        group: Group | None = self
        while group is not None:
            yield group
            group = group.parent

    @property
    def num_processes(self) -> int:
        """Live processes in the group itself."""
        return len(self.processes)

    @property
    def is_page_limited(self) -> bool:
        """Whether it, or anything above it, has a limit on pages."""
        return any(group.limits.pages is not None for group in self.upwards())

    def downwards(self) -> Iterator[Group]:
        """This group, then everything below it."""
        yield self
        for child in self.children.values():
            yield from child.downwards()

    def contexts(self) -> Iterator[Context]:
        """Of every process in it and below."""
        for group in self.downwards():
            for process in group.processes.values():
                yield from process.contexts.values()

    def pages(self, *, but: Context | None = None) -> set[PageId]:
        """Pages that it and everything below it hold, those of one context left out."""
        return {
            page_id
            for context in self.contexts()
            if context is not but
            for page_id in context.page_ids
        }

    def rows(self) -> Iterator[LimitInfo]:
        """Its limits of things at a time, and what is used of them."""
        scope = self.title[:1].lower() + self.title[1:]
        if self.limits.processes is not None:
            num = sum(each.num_processes for each in self.downwards())
            yield LimitInfo("processes", self.limits.processes, num, scope)
        if self.limits.pages is not None:
            yield LimitInfo("pages", self.limits.pages, len(self.pages()), scope)

    def too_large(self, num_pages: int) -> LimitExceeded | None:
        """The error of a context of it that needs more pages than may ever be held; None if it may."""
        for group in self.upwards():
            most = group.limits.pages
            if most is not None and num_pages > most:
                return LimitExceeded(
                    f"{group.title} may hold {most} pages and this context needs {num_pages}."
                )
        return None

    def lacks_pages(self, context: Context, end: int) -> Group | None:
        """The group, it or one above, that would hold too many pages if this context of it were
        writable to position `end`; None if there is none."""
        for group in self.upwards():
            most = group.limits.pages
            if most is None:
                continue
            kept, num_new = context.pages_to(end)
            if len(group.pages(but=context) | kept) + num_new > most:
                return group
        return None

    @property
    def title(self) -> str:
        """What errors call it."""
        return f"Group {self.path}" if self.parent else "The root group"


class GroupTree:
    """Every group of one kernel."""

    def __init__(self) -> None:
        self.root = Group("", 0)
        self.save: SaveAccount = lambda _name, _row: None
        """Has a row kept for the next kernel."""
        self._next_number = 1

    def open(self, path: str) -> Group:
        """The group of a path such as `batch/nightly`, made where it does not exist.

        Raises `InvalidArguments` for a path that is none.
        """
        group = self.root
        for name in _names(path):
            if name not in group.children:
                group.children[name] = Group(name, self._next_number, group)
                self._next_number += 1
            group = group.children[name]
        return group

    def set_weight(self, path: str, weight: int) -> None:
        """Give a group a weight among its siblings, 1 to 10000; it stays."""
        if not 1 <= weight <= MAX_WEIGHT:
            raise InvalidArguments(f"A group's weight goes from 1 to {MAX_WEIGHT}.")
        if not _names(path):
            raise InvalidArguments("The root group has no siblings and no weight.")
        group = self.open(path)
        group.weight, group.is_kept = weight, True
        self._save(group)

    def set_limits(self, path: str, limits: GroupLimits) -> None:
        """Give a group limits for what it has used and will use; they stay.

        Raises `InvalidArguments` for one below 0, or no pages or processes at all.
        """
        check_limits(limits)
        if limits.pages == 0:
            raise InvalidArguments("A group without a page could not even begin; give it one.")
        group = self.open(path)
        group.limits = group.account.limits = limits
        group.is_kept = True
        self._save(group)

    def restore(self, path: str, row: Mapping[str, Any]) -> None:
        """Put back what an earlier kernel saved of a group."""
        group = self.open(path)
        group.weight, group.is_kept = row["weight"], True
        group.limits = group.account.limits = group_limits_of(row["limits"])
        group.account.ended = used_of(row["ended"])
        group.account.used.add(group.account.ended)

    def _save(self, group: Group) -> None:
        """Have a group that was set up by hand, and what those that have ended used in it, kept."""
        self.save(f"group {group.path}", {**group.account.saved(), "weight": group.weight})

    def admit(self, process: Process) -> None:
        """Count a new process in; raises `LimitExceeded` where its group is full."""
        for group in process.group.upwards():
            most = group.limits.processes
            if most is not None and sum(each.num_processes for each in group.downwards()) >= most:
                self._forget_unused(process.group)
                raise LimitExceeded(f"{group.title} may have {most} processes and has them.")
        self.enter(process)

    def enter(self, process: Process) -> None:
        """Count a process in, whatever the limits say: it is there already."""
        process.group.processes[process.pid] = process

    def leave(self, process: Process) -> None:
        """Count a process out; groups that nobody needs any more are forgotten."""
        del process.group.processes[process.pid]
        for group in process.group.upwards():
            if group.is_kept:
                self._save(group)
        self._forget_unused(process.group)

    def _forget_unused(self, group: Group) -> None:
        while group.parent is not None and _is_unused(group):
            del group.parent.children[group.name]
            group = group.parent

    def infos(self) -> list[GroupInfo]:
        """Every group, the root first, each before its subgroups."""
        return [
            GroupInfo(
                path=group.path,
                weight=group.weight,
                num_processes=group.num_processes,
                tokens_computed=group.account.used.tokens_computed,
                tokens_out=group.account.used.tokens_out,
                model_s=group.account.used.model_s,
                limits=group.limits,
                num_processes_in_all=sum(each.num_processes for each in group.downwards()),
                pages_held=len(group.pages()),
            )
            for group in self._all()
        ]

    def check_integrity(self, num_tokens_computed: int) -> None:
        """Raise `KernelBug` unless every token computed was charged to a group and its ancestors."""
        if self.root.account.used.tokens_computed != num_tokens_computed:
            raise KernelBug("tokens charged to groups differ from tokens computed")
        for group in self._all():
            below = sum(child.account.used.tokens_computed for child in group.children.values())
            if below > group.account.used.tokens_computed:
                raise KernelBug(f"group {group.path!r} miscounts what its subgroups used")
            if any(process.exit is not None for process in group.processes.values()):
                raise KernelBug(f"group {group.path!r} counts a process that has exited")

    def _all(self) -> Iterator[Group]:
        waiting = [self.root]
        while waiting:
            group = waiting.pop()
            yield group
            waiting += reversed(group.children.values())


def weight_of_nice(nice: int) -> float:
    """A process's weight among the processes of its group."""
    return DEFAULT_WEIGHT * NICE_STEP**-nice


def _is_unused(group: Group) -> bool:
    return not (group.is_kept or group.num_processes or group.children)


def _names(path: str) -> list[str]:
    names = path.split("/") if path else []
    if len(names) > MAX_DEPTH:
        raise InvalidArguments(f"Groups nest {MAX_DEPTH} deep at most.")
    for name in names:
        if not _NAME.fullmatch(name):
            raise InvalidArguments(
                f"{path[:200]!r} is no group: names are joined by '/' and made of up to 64 letters,"
                " digits and _ . @ : -."
            )
    return names

"""Groups of processes: weights and accounts of subtrees, as Linux's cgroups have them.

A group's processes and its subgroups compete for what the group gets: each subgroup with its weight, all
its own processes together as one with the default weight, and those among each other by niceness. So nobody
gets more of the model by starting more processes. Which of them runs is the policy's business
(`policies.FairShare`); here stand its numbers.

A group that was only ever named by a spawn is forgotten with its last process; one whose weight was
set stays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from llmasos.kernel.abi import GroupInfo
from llmasos.kernel.errors import InvalidArguments, KernelBug

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


@dataclass(slots=True)
class GroupUsage:
    """What a group and everything below it has used, finished processes included."""

    tokens_computed: int = 0
    tokens_out: int = 0
    model_s: float = 0.0


@dataclass(slots=True, eq=False)
class Group:
    """One group. `turn` is its place among its parent's subgroups; `own_turn` that of its own processes,
    taken together, among its subgroups."""

    name: str
    number: int
    parent: Group | None = None
    weight: int = DEFAULT_WEIGHT
    is_kept: bool = False
    usage: GroupUsage = field(default_factory=GroupUsage)
    children: dict[str, Group] = field(default_factory=dict)
    num_processes: int = 0
    turn: Turn = field(default_factory=Turn)
    own_turn: Turn = field(default_factory=Turn)
    clock: Clock = field(default_factory=Clock)
    own_clock: Clock = field(default_factory=Clock)

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

    def charge(self, *, tokens_computed: int, tokens_out: int, model_s: float) -> None:
        """Add to what it and everything above it has used."""
        for group in self.upwards():
            group.usage.tokens_computed += tokens_computed
            group.usage.tokens_out += tokens_out
            group.usage.model_s += model_s


class GroupTree:
    """Every group of one kernel."""

    def __init__(self) -> None:
        self.root = Group("", 0)
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
        """Give a group a weight among its siblings, 1 to 10000; it stays until the kernel ends."""
        if not 1 <= weight <= MAX_WEIGHT:
            raise InvalidArguments(f"A group's weight goes from 1 to {MAX_WEIGHT}.")
        if not _names(path):
            raise InvalidArguments("The root group has no siblings and no weight.")
        group = self.open(path)
        group.weight, group.is_kept = weight, True

    def enter(self, group: Group) -> None:
        """Count a process in."""
        group.num_processes += 1

    def leave(self, group: Group) -> None:
        """Count a process out; groups that nobody needs any more are forgotten."""
        group.num_processes -= 1
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
                tokens_computed=group.usage.tokens_computed,
                tokens_out=group.usage.tokens_out,
                model_s=group.usage.model_s,
            )
            for group in self._all()
        ]

    def check_integrity(self, num_tokens_computed: int) -> None:
        """Raise `KernelBug` unless every token computed was charged to a group and its ancestors."""
        if self.root.usage.tokens_computed != num_tokens_computed:
            raise KernelBug("tokens charged to groups differ from tokens computed")
        for group in self._all():
            below = sum(child.usage.tokens_computed for child in group.children.values())
            if below > group.usage.tokens_computed or group.num_processes < 0:
                raise KernelBug(f"group {group.path!r} miscounts what its subgroups used")

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

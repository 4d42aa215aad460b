"""Syscalls that other packages bring: entry points of the group `llmasos.syscalls`.

An entry point names a module with `SYSCALLS`, or a list of syscalls itself. One that cannot be imported, is
not that, or takes a name that is taken already is left out and told; the others are there. A plugin is code
that the operator installed, and runs inside the kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from llmasos.kernel.syscall import Syscall

GROUP = "llmasos.syscalls"


@dataclass(frozen=True, slots=True)
class Plugins:
    """What was found."""

    syscalls: tuple[Syscall, ...]
    origins: dict[str, str]
    """The package and version that each syscall is from, by its name."""
    problems: tuple[str, ...]
    """What was left out and why, a sentence each."""


def installed_plugins(taken: Collection[str]) -> Plugins:
    """Load every plugin; names in `taken` are nobody's to take. Blocks."""
    syscalls: dict[str, Syscall] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda each: (each.name, each.value)):
        origin = _origin(entry)
        try:
            found = _syscalls_of(entry)
            _check(found, {*taken, *syscalls})
        except Exception as error:  # noqa: BLE001 - a plugin's module may raise anything
            told = str(error) or type(error).__name__
            problems.append(f"The plugin {entry.name} of {origin} is left out: {told}")
            continue
        syscalls.update((each.name, each) for each in found)
        origins.update((each.name, origin) for each in found)
    return Plugins(tuple(syscalls.values()), origins, tuple(problems))


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _syscalls_of(entry: EntryPoint) -> tuple[Syscall, ...]:
    loaded = entry.load()
    if isinstance(loaded, ModuleType):
        loaded = getattr(loaded, "SYSCALLS", None)
    if isinstance(loaded, Syscall):
        return (loaded,)
    if not isinstance(loaded, Iterable):
        raise TypeError(f"{entry.value} is neither a list of syscalls nor a module with SYSCALLS.")
    found = tuple(loaded)
    if not all(isinstance(each, Syscall) for each in found):
        raise TypeError(f"not everything in {entry.value} was made with @syscall.")
    return found


def _check(found: Iterable[Syscall], taken: set[str]) -> None:
    """Raise unless all of a plugin can be used."""
    names = set(taken)
    for each in found:
        if each.name in names:
            raise ValueError(f"there is a syscall {each.name} already.")
        names.add(each.name)
        each.check_result_type()

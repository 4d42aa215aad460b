"""The tree of capabilities: what every process may do, who gave it that, and taking it back.

A capability is an object of the kernel's. Its holder names it by a small number in its own table, like a
file descriptor; the number means nothing in any other process and is never used twice, so there is nothing
to forge and nothing to replay. One that is passed on is a new one, below the one it was derived from, and
allows the same or less (`attenuation`). To revoke one is to revoke all below it, whoever holds them.

A call is admitted by all of its process's live capabilities that allow it, together: the first of them says
where its root is (for a write, the first whose root may be changed), and hosts and mounts are those of all.
A call that was admitted goes on to its end where its capability is revoked meanwhile: half a write would be
worse than a whole one.

Each process's journal says what it holds, from which line of capabilities, and which of those were revoked,
so the tree is there again after a crash though processes in the middle of it are forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmasos.kernel.abi import (
    ArgumentRule,
    Capabilities,
    CapabilityInfo,
    Grant,
    Mount,
    Narrowing,
    Pid,
)
from llmasos.kernel.attenuation import broken_rule, narrowed
from llmasos.kernel.errors import KernelBug, LimitExceeded, PermissionDenied
from llmasos.kernel.grants import held_to_grant

if TYPE_CHECKING:
    from llmasos.kernel.process import Process

CapabilityId = str
"""`pid:handle` of the first and only holder: never used twice in a home."""
MAX_HANDLES = 1024
"""Capabilities that a process may ever hold."""

NOTHING = Capabilities(syscalls=())

_ID = re.compile(r"([0-9]{1,18}):([0-9]{1,9})")


@dataclass(slots=True, eq=False)
class Capability:
    """One capability. The tree writes it."""

    holder: Pid
    handle: int
    allows: Capabilities
    parent: Capability | None = None
    is_revoked: bool = False
    children: list[Capability] = field(default_factory=list)
    is_held: bool = True
    """False once its holder has ended; it stays while others hold what was derived from it."""

    @property
    def id(self) -> CapabilityId:
        """Names it in journals, where nobody but the kernel writes."""
        return f"{self.holder}:{self.handle}"

    def is_live(self, now: float) -> bool:
        """Whether it allows anything (any more)."""
        return not self.is_revoked and not self.has_expired(now)

    def has_expired(self, now: float) -> bool:
        """Whether its time is over."""
        expires_at = self.allows.expires_at
        return expires_at is not None and now >= expires_at

    def downwards(self) -> Iterator[Capability]:
        """It, and all that was derived from it."""
        waiting = [self]
        while waiting:
            capability = waiting.pop()
            yield capability
            waiting += capability.children

    @property
    def line(self) -> list[CapabilityId]:
        """The ids of those that it comes from, the oldest first."""
        ids = []
        above = self.parent
        while above is not None:
            ids.append(above.id)
            above = above.parent
        return ids[::-1]


class CapabilityTree:
    """Every capability of one kernel."""

    def __init__(self) -> None:
        self._by_id: dict[CapabilityId, Capability] = {}

    def grant(
        self, process: Process, allows: Capabilities, parent: Capability | None = None
    ) -> Capability:
        """Put a new capability into a process's table, an installed app's no wider than its user has
        granted. Raises `LimitExceeded` where the table is full."""
        if process.next_handle >= MAX_HANDLES:
            raise LimitExceeded(f"A process is given {MAX_HANDLES} capabilities at most.")
        allows = held_to_grant(allows, process.program.info)
        capability = Capability(process.pid, process.next_handle, allows, parent)
        self._add(process, capability)
        return capability

    def derive(self, source: Capability, to: Process, by: Narrowing, now: float) -> Capability:
        """Give a process the same as a capability or less. Raises `PermissionDenied` where that one is no
        longer live, `InvalidArguments` for what is no narrowing, `LimitExceeded`."""
        if not source.is_live(now):
            raise PermissionDenied(f"The capability {source.handle} was revoked or has expired.")
        return self.grant(to, narrowed(source.allows, by, now), source)

    def endow(
        self, parent: Process, child: Process, grants: Iterable[Grant] | None, now: float
    ) -> None:
        """Give a new child what it is to hold: by default all that its parent does."""
        if grants is None:
            live = (each for each in parent.handles.values() if each.is_live(now))
            grants = [Grant(each.handle) for each in live]
        for grant in grants:
            self.derive(held(parent, grant.handle), child, grant.narrowed, now)

    def revoke(self, capability: Capability) -> list[Capability]:
        """Take a capability back with all that was derived from it; returns those that this changed."""
        changed = [each for each in capability.downwards() if not each.is_revoked]
        for each in changed:
            each.is_revoked = True
        return changed

    def named(self, capability_id: CapabilityId) -> Capability | None:
        """One by its id, if it is known."""
        return self._by_id.get(capability_id)

    def restore(
        self, process: Process, handle: int, line: list[CapabilityId], allows: Capabilities
    ) -> Capability:
        """Put back one that a journal tells of, below those that it came from."""
        parent: Capability | None = None
        for above in line:
            parent = self._known(above, parent)
        process.next_handle = max(process.next_handle, handle)
        capability = self._by_id.get(f"{process.pid}:{handle}")
        if capability is None:
            capability = Capability(process.pid, handle, allows, parent)
        capability.allows, capability.is_held = allows, True
        self._add(process, capability)
        return capability

    def forget(self, process: Process) -> None:
        """A process has ended: what it held is gone, but for what others hold from it."""
        for capability in process.handles.values():
            capability.is_held = False
            self._prune(capability)

    def check_integrity(self, processes: Iterable[Process]) -> None:
        """Raise `KernelBug` unless tables and tree say the same, and nothing below what is revoked lives."""
        held_ids = {
            each.id for process in processes for each in process.handles.values()
            if process.exit is None
        }  # fmt: skip
        for capability in self._by_id.values():
            parent = capability.parent
            if capability.is_held != (capability.id in held_ids):
                raise KernelBug(f"capability {capability.id} is miscounted")
            if parent is not None and capability not in parent.children:
                raise KernelBug(f"capability {capability.id} is not among its parent's")
            if parent is not None and parent.is_revoked and not capability.is_revoked:
                raise KernelBug(f"capability {capability.id} outlives what it came from")

    # --- within

    def _add(self, process: Process, capability: Capability) -> None:
        process.handles[capability.handle] = capability
        process.next_handle = max(process.next_handle, capability.handle + 1)
        self._link(capability)

    def _link(self, capability: Capability) -> None:
        if self._by_id.setdefault(capability.id, capability) is not capability:
            raise KernelBug(f"capability {capability.id} is there twice")
        parent = capability.parent
        if parent is not None and capability not in parent.children:
            parent.children.append(capability)
            capability.is_revoked = capability.is_revoked or parent.is_revoked

    def _known(self, capability_id: CapabilityId, parent: Capability | None) -> Capability:
        """One that something is below: known already, or nobody's any more until its holder comes."""
        known = self._by_id.get(capability_id)
        if known is None:
            holder, handle = split_id(capability_id)
            known = Capability(holder, handle, NOTHING, parent, is_held=False)
            self._link(known)
        return known

    def _prune(self, capability: Capability) -> None:
        above: Capability | None = capability
        while above is not None and not above.is_held and not above.children:
            self._by_id.pop(above.id, None)
            if above.parent is not None:
                above.parent.children.remove(above)
            above = above.parent


def held(process: Process, handle: int) -> Capability:
    """One of a process's own, by its number. Raises `PermissionDenied` where it holds no such one."""
    try:
        return process.handles[handle]
    except KeyError:
        raise PermissionDenied(f"This process holds no capability {handle}.") from None


def may_call(process: Process, name: str, now: float) -> bool:
    """Whether anything that a process holds lets it make some call of this name."""
    return any(each.allows.allows(name) and each.is_live(now) for each in process.handles.values())


def authorised(
    process: Process, name: str, arguments: Mapping[str, Any], now: float, *, writes: bool = False
) -> tuple[int, Capabilities]:
    """The first capability that allows a call, and what it may rely on: see the module. For one that
    `writes` the first whose folder may be changed, where there is one.

    Raises `PermissionDenied`.
    """
    allowing = [
        each
        for each in process.handles.values()
        if each.allows.allows(name)
        and each.is_live(now)
        and broken_rule(each.allows, name, arguments) is None
    ]
    if not allowing:
        raise _refusal(process, name, arguments, now)
    first = allowing[0]
    if writes:
        first = next((each for each in allowing if not each.allows.read_only), first)
    allows = first.allows
    for other in allowing:
        allows = _together(allows, other.allows)
    return first.handle, allows


def _together(one: Capabilities, other: Capabilities) -> Capabilities:
    """The first one's root, and the hosts, mounts and secrets of both."""
    if other is one:
        return one
    names = {mount.name for mount in one.mounts}
    mounts = (*one.mounts, *(each for each in other.mounts if each.name not in names))
    hosts = tuple(dict.fromkeys((*one.hosts, *other.hosts)))
    secrets = tuple(dict.fromkeys((*one.secrets, *other.secrets)))
    tainted = tuple(dict.fromkeys((*one.tainted, *other.tainted)))
    if (mounts, hosts, secrets, tainted) == (one.mounts, one.hosts, one.secrets, one.tainted):
        return one
    return replace(one, mounts=mounts, hosts=hosts, secrets=secrets, tainted=tainted)


def _refusal(
    process: Process, name: str, arguments: Mapping[str, Any], now: float
) -> PermissionDenied:
    for capability in process.handles.values():
        if not capability.allows.allows(name):
            continue
        if not capability.is_live(now):
            what = "was revoked" if capability.is_revoked else "has expired"
            return PermissionDenied(
                f"This process may not call {name} any more: its capability {what}."
            )
        if (rule := broken_rule(capability.allows, name, arguments)) is not None:
            likes = " or ".join(repr(pattern) for pattern in rule.patterns)
            return PermissionDenied(
                f"This process may call {name} only with {rule.argument} like {likes}."
            )
    return PermissionDenied(f"This process may not call {name}.")


def infos(process: Process, now: float) -> list[CapabilityInfo]:
    """What a process holds, or held, as people see it."""
    return [
        CapabilityInfo(
            handle=each.handle,
            allows=each.allows,
            state="revoked" if each.is_revoked else "expired" if each.has_expired(now) else "live",
            grantor=each.parent.holder if each.parent else None,
            num_derived=sum(1 for _ in each.downwards()) - 1,
        )
        for each in process.handles.values()
    ]


# --- in the journal


def held_values(process: Process) -> list[list[Any]]:
    """A process's table as its first event says it."""
    return [values_of(each) for each in process.handles.values()]


def values_of(capability: Capability) -> list[Any]:
    """A capability as an event says it: its handle, the line that it comes from, what it allows."""
    return [capability.handle, capability.line, asdict(capability.allows)]


def allows_of(values: Mapping[str, Any]) -> Capabilities:
    """What a journal says that a capability allows. Raises `TypeError` for what it does not know."""
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    given["mounts"] = tuple(Mount(**each) for each in given.get("mounts", ()))
    given["arguments"] = tuple(
        ArgumentRule(each["syscalls"], each["argument"], tuple(each["patterns"]))
        for each in given.get("arguments", ())
    )
    return Capabilities(**given)


def split_id(capability_id: CapabilityId) -> tuple[Pid, int]:
    """Holder and handle. Raises `ValueError`."""
    match = _ID.fullmatch(capability_id)
    if match is None:
        raise ValueError(f"{capability_id!r} names no capability")
    return Pid(int(match[1])), int(match[2])

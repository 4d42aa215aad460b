"""Making a process that begins with the past of another: a branch of history, or a restored checkpoint.

`journal.branch` says what such a past is; here it becomes a process. Its app is run again through the past
by a `Feed`, as after a crash, and then goes on for real. Its pages are found where the original's are.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from llmasos.kernel.abi import Capabilities, ExitStatus, Pid
from llmasos.kernel.attenuation import meet
from llmasos.kernel.capabilities import allows_of
from llmasos.kernel.errors import (
    JournalDamaged,
    NoSuchProcess,
    PermissionDenied,
    ProcessError,
    SyscallError,
)
from llmasos.kernel.journal.branch import Granted, Past
from llmasos.kernel.journal.entries import ProcessRow
from llmasos.kernel.journal.events import decode_events, encode_event
from llmasos.kernel.journal.history import History
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.process import KERNEL_PID
from llmasos.kernel.recovery import ComeBack, bring_in, reason_to_hold
from llmasos.kernel.rules import Decision
from llmasos.kernel.tasks import Task

if TYPE_CHECKING:
    from llmasos.kernel.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a new process differs from the one whose past it is given."""

    title: str = ""
    """Empty: it says what it branched from."""
    foreground: bool = False
    """Somebody waits for it: after a crash it comes back stopped."""
    root: str | None = None
    """The folder that it sees; None is the original's."""
    home: str = ""
    """Id of the home where the original ran; empty for this one."""
    salt: str = ""
    """Keeps the pages of its contexts apart: those that came with a checkpoint are believed for it alone."""


def branch(
    runtime: Runtime, journal: Journal, past: Past, beginning: Beginning, come_back: ComeBack
) -> Pid:
    """Start the process. It is on disk once the journal's ticket says so.

    Raises `ProcessError` where this kernel cannot run it, `JournalDamaged`, `OutOfMemory`.
    """
    granted = None
    if beginning.root is not None:
        own = str(past.spawn["capabilities"].get("within", ""))
        granted = functools.partial(_granted, runtime, root=beginning.root, own=own)
    spawn = _spawn_values(runtime, past, beginning, granted)
    now = runtime.now()
    is_foreign = beginning.home not in ("", journal.store.home_id)
    try:
        events = past.beginning(spawn, now, is_foreign=is_foreign, granted=granted)
    except SyscallError as error:
        raise ProcessError(f"Process {past.pid} cannot go on here: {error}") from error
    events.append(("front", beginning.foreground))
    history = History(past.pid, decode_events(map(encode_event, events)))
    refuse_unfit(runtime, history)
    pid = history.pid = runtime.kernel.new_pid()
    row = ProcessRow(pid, KERNEL_PID, spawn["app"], spawn["title"], now, 0)
    journal.begin(row, events[0])
    for event in events[1:]:
        journal.record(pid, event)
    process, task = bring_in(runtime, history, live=set())
    for context in process.contexts.values():
        context.salt = beginning.salt
    come_back(process, task, history)
    return pid


def refuse_unfit(runtime: Runtime, history: History) -> None:
    """Raise `ProcessError` unless this kernel can go on with what a history is of."""
    if reason := reason_to_hold(runtime, history):
        raise ProcessError(f"Process {history.pid} cannot go on here: {reason}")


async def outcome_of_shared_child(
    runtime: Runtime, journal: Journal | None, tasks: Mapping[Pid, Task], pid: Pid, child: Pid
) -> tuple[ExitStatus, str]:
    """How a child of the original ended and what it printed, for a branch that knows it; waits for that, and
    does not reap it. Raises `PermissionDenied` where it is no such child, or is forgotten."""
    if child in tasks[pid].children.values():
        if child in tasks:
            await tasks[child].done.wait()
            if (status := runtime.kernel.process(child).exit) is not None:
                return status, tasks[child].output.text
        elif journal is not None:
            with contextlib.suppress(NoSuchProcess, JournalDamaged):
                history = History(child, await journal.events(child))
                if (status := history.status) is not None:
                    return status, "".join(history.holdings.output)
    raise PermissionDenied(f"Process {child} is not a child of this process.")


def _granted(runtime: Runtime, wanted: Mapping[str, Any], *, root: str, own: str) -> dict[str, Any]:
    """Of what a process from elsewhere wants to hold, what one that is spawned here could. The folder that
    it gets is in the place of its `own`, which was perhaps below a root."""
    ours = replace(runtime.capabilities, root=root)
    theirs = _believed(wanted)
    if own and f"{theirs.within}/".startswith(f"{own}/"):
        theirs = replace(theirs, within=theirs.within[len(own) :].lstrip("/"))
    return asdict(meet(ours, theirs))


def _believed(wanted: Mapping[str, Any]) -> Capabilities:
    """What a checkpoint says that a process held. Raises `ProcessError` for what makes no sense."""
    try:
        allows_of(wanted)  # a right that is not known cannot be ignored
        return TypeAdapter(Capabilities).validate_json(json.dumps(wanted), strict=True)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProcessError("It holds a capability that makes no sense.") from error


def _spawn_values(
    runtime: Runtime, past: Past, beginning: Beginning, granted: Granted | None
) -> dict[str, Any]:
    spawn, core = past.spawn, runtime.kernel.info
    origin = f"{past.pid}@{past.num_events}"
    capabilities = dict(spawn["capabilities"])
    if granted is not None:
        capabilities = granted(capabilities)
    return {
        **spawn,
        "ppid": KERNEL_PID,
        "title": beginning.title or f"{spawn['title'] or spawn['app']} from {origin}",
        "capabilities": capabilities,
        "foreground": beginning.foreground,
        "rules": [rule for rule in spawn.get("rules", ()) if rule["decision"] != Decision.ALLOW],
        "fingerprint": core.fingerprint,
        "from": {
            "pid": past.pid,
            "events": past.num_events,
            "home": beginning.home,
            "fingerprint": spawn["fingerprint"],
        },
    }

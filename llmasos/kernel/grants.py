"""What an installed app's processes may do: what they are given, and no more than its user has granted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

from llmasos.kernel.abi import AppInfo, Capabilities, Limits

EVERY_APP_MAY = (
    "ctx.*", "llm.*", "io.*", "ipc.*", "random.*", "random", "time.*",
    "proc.spawn", "proc.fork", "proc.wait", "proc.kill", "proc.self", "proc.tools",
)  # fmt: skip
"""Its own contexts, input and output, its children and what it shares with them, and the time: nobody is
asked for these."""


def held_to_grant(
    capabilities: Capabilities, app: AppInfo, syscalls: Iterable[str]
) -> Capabilities:
    """The capabilities that a process of an app is left with; `syscalls` are all that there are."""
    if app.grant is None:
        return capabilities
    granted = replace(capabilities, syscalls=(*EVERY_APP_MAY, *app.grant.syscalls))
    names = [name for name in syscalls if capabilities.allows(name) and granted.allows(name)]
    return replace(capabilities, syscalls=tuple(names)).with_hosts(app.grant.hosts)


def filled_limits(limits: Limits, app: AppInfo) -> Limits:
    """Limits, and the app's own where they say nothing."""
    own = {
        each.name: getattr(app.limits, each.name)
        for each in fields(limits)
        if getattr(limits, each.name) is None
    }
    return replace(limits, **own)

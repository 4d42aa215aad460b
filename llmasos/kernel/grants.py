"""What an installed app's processes may do: what they are given, and no more than its user has granted."""

from __future__ import annotations

from dataclasses import fields, replace

from llmasos.kernel.abi import AppInfo, Capabilities, Limits
from llmasos.kernel.attenuation import meet_patterns

EVERY_APP_MAY = (
    "ctx.*", "llm.*", "io.*", "ipc.*", "cap.*", "random.*", "random", "time.*",
    "proc.spawn", "proc.fork", "proc.wait", "proc.kill", "proc.self", "proc.tools", "proc.signals",
    "proc.limits",
)  # fmt: skip
"""Its own contexts, input and output, its children and what it shares with them, and the time: nobody is
asked for these."""


def held_to_grant(allows: Capabilities, app: AppInfo) -> Capabilities:
    """What is left of a capability that a process of an app is given, by whomever."""
    if app.grant is None:
        return allows
    granted = (*EVERY_APP_MAY, *app.grant.syscalls)
    return replace(
        allows.with_hosts(app.grant.hosts), syscalls=meet_patterns(allows.syscalls, granted)
    )


def filled_limits(limits: Limits, app: AppInfo) -> Limits:
    """Limits, and the app's own where they say nothing."""
    own = {
        each.name: getattr(app.limits, each.name)
        for each in fields(limits)
        if getattr(limits, each.name) in (None, ())
    }
    return replace(limits, **own)

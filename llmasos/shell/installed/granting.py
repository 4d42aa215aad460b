"""What the user lets an app do: asked when it is installed, and again when an update wants more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields, replace
from fnmatch import fnmatchcase

from llmasos.kernel.abi import AppGrant, AppInfo, Limits
from llmasos.kernel.errors import ConfigError
from llmasos.kernel.grants import EVERY_APP_MAY
from llmasos.shell.installed.store import Package, PackagedApp
from llmasos.shell.plain import one_line

Ask = Callable[[str], Awaitable[bool]]
"""Shows a question that can be answered with yes or no; raises `ConfigError` where nobody can answer."""


class Grants:
    """Decides by what the user says: `yes` to all, the patterns of `only`, or an answer to a question."""

    def __init__(self, *, yes: bool, only: Sequence[str], ask: Ask) -> None:
        self._yes = yes
        self._only = tuple(only)
        self._ask = ask

    async def __call__(self, package: Package, before: Package | None) -> Package:
        """The package with what its apps are granted. Raises `ConfigError` where that was refused."""
        known = {each.info.name: each.info for each in before.apps} if before else {}
        apps = [
            replace(each, info=await self._granted(package, each, known.get(each.info.name)))
            for each in package.apps
        ]
        return replace(package, apps=tuple(apps))

    async def _granted(self, package: Package, app: PackagedApp, before: AppInfo | None) -> AppInfo:
        info = app.info
        wanted = AppGrant(_beyond_every_app(info.syscalls), info.hosts)
        if self._only:
            return replace(info, grant=_narrowed(wanted, self._only))
        more = wanted if before is None else _new(wanted, before)
        kept = before.grant or AppGrant() if before is not None else AppGrant()
        now = AppGrant(
            tuple(each for each in wanted.syscalls if each in (*kept.syscalls, *more.syscalls)),
            tuple(each for each in wanted.hosts if each in (*kept.hosts, *more.hosts)),
        )
        if more.syscalls or more.hosts:
            question = f"{_wishes(package, info, more, is_update=before is not None)}Grant it?"
            if not self._yes and not await self._ask(question):
                raise ConfigError(
                    f"{info.name} was not granted what it wants; nothing has changed."
                )
        return replace(info, grant=now)


def _beyond_every_app(syscalls: Sequence[str]) -> tuple[str, ...]:
    return tuple(each for each in syscalls if not any(fnmatchcase(each, p) for p in EVERY_APP_MAY))


def _new(wanted: AppGrant, before: AppInfo) -> AppGrant:
    """What an app wants that it had not wanted: what was refused then is not asked for again."""
    return AppGrant(
        tuple(each for each in wanted.syscalls if each not in before.syscalls),
        tuple(each for each in wanted.hosts if each not in before.hosts),
    )


def _narrowed(wanted: AppGrant, only: Sequence[str]) -> AppGrant:
    """What is both wanted and named; `none` names nothing."""
    unknown = [each for each in only if each != "none" and not _is_wanted(each, wanted)]
    if unknown:
        raise ConfigError(
            f"The app does not want {', '.join(unknown)}; it wants"
            f" {', '.join((*wanted.syscalls, *wanted.hosts)) or 'nothing'}."
        )
    named = tuple(each for each in only if each != "none")
    return AppGrant(
        tuple(each for each in named if any(fnmatchcase(each, p) for p in wanted.syscalls)),
        tuple(each for each in named if any(fnmatchcase(each, p) for p in wanted.hosts)),
    )


def _is_wanted(pattern: str, wanted: AppGrant) -> bool:
    return any(fnmatchcase(pattern, each) for each in (*wanted.syscalls, *wanted.hosts))


def _wishes(package: Package, info: AppInfo, wanted: AppGrant, *, is_update: bool) -> str:
    more = " more than it has" if is_update else ""
    lines = [f"{info.name} {package.version} ({one_line(info.summary)}) wants{more}:"]
    lines += [f"  to call {one_line(each)}" for each in wanted.syscalls]
    lines += [f"  to reach {one_line(each)} on the web" for each in wanted.hosts]
    if info.limits != Limits():
        lines.append(f"  at most: {limits_text(info.limits)}")
    return "".join(f"{line}\n" for line in lines)


def limits_text(limits: Limits) -> str:
    """Limits in words, those that there are."""
    told = [(each.name, getattr(limits, each.name)) for each in fields(limits)]
    plain = [f"{name} {value:g}" for name, value in told if isinstance(value, (int, float))]
    calls = [f"{call.most} calls of {call.pattern}" for call in limits.calls]
    return ", ".join([*plain, *calls])

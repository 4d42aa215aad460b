"""Making a capability less. Pure: records in, records out, and never more comes out than went in.

Patterns of names are met pairwise. Where neither of two stands for all that the other does, what comes out
is both at once (`fs.*&*.read`), so nothing is lost and nothing gained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from llmasos.kernel.abi import ArgumentRule, Capabilities, Mount, Narrowing, matches
from llmasos.kernel.errors import InvalidArguments

MAX_PATTERNS = 256
MAX_PATTERN_CHARS = 400
MAX_RULES = 64

_WILD = re.compile(r"[*?\[]")


def narrowed(allows: Capabilities, by: Narrowing, now: float) -> Capabilities:
    """What is left of a capability. Raises `InvalidArguments` for what is no narrowing of it."""
    less = replace(
        allows,
        within=_below(allows.within, by.within),
        read_only=allows.read_only or by.read_only,
        arguments=_with_rules(allows.arguments, by.arguments),
    )
    if by.syscalls is not None:
        less = replace(less, syscalls=meet_patterns(allows.syscalls, by.syscalls))
    if by.hosts is not None:
        less = less.with_hosts(by.hosts)
    if by.mounts is not None:
        less = replace(less, mounts=_kept(allows, by.mounts))
    if by.read_only:
        less = replace(less, mounts=tuple(replace(each, read_only=True) for each in less.mounts))
    if by.secrets is not None:
        less = replace(less, secrets=meet_patterns(allows.secrets, by.secrets))
    if by.tainted is not None:
        less = replace(less, tainted=meet_patterns(allows.tainted, by.tainted))
    if by.expires_in_s is not None:
        less = replace(less, expires_at=_sooner(allows.expires_at, now + by.expires_in_s))
    return less


def meet(ours: Capabilities, theirs: Capabilities) -> Capabilities:
    """What both allow, under our root: what somebody who holds `ours` may give one who wants `theirs`."""
    return replace(
        ours.with_hosts(theirs.hosts),
        syscalls=meet_patterns(ours.syscalls, theirs.syscalls),
        within=_below(ours.within, theirs.within or None),
        read_only=ours.read_only or theirs.read_only,
        mounts=tuple(_met_mounts(ours, theirs)),
        arguments=_with_rules(ours.arguments, theirs.arguments),
        expires_at=_sooner(ours.expires_at, theirs.expires_at),
        secrets=meet_patterns(ours.secrets, theirs.secrets),
        tainted=meet_patterns(ours.tainted, theirs.tainted),
    )


def meet_patterns(mine: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Patterns of the names that are among both. Raises `InvalidArguments` where they grow too many."""
    met = dict.fromkeys(
        both for ours in mine for asked in wanted if (both := _meet(ours, asked)) is not None
    )
    if len(met) > MAX_PATTERNS or any(len(pattern) > MAX_PATTERN_CHARS for pattern in met):
        raise InvalidArguments("These patterns of syscalls are too many or too long; name fewer.")
    return tuple(met)


def broken_rule(
    allows: Capabilities, name: str, arguments: Mapping[str, Any]
) -> ArgumentRule | None:
    """The first rule that a call does not keep; None where it keeps all."""
    for rule in allows.arguments:
        if matches(name, rule.syscalls) and not _keeps(rule, arguments):
            return rule
    return None


# --- within


def _meet(mine: str, wanted: str) -> str | None:
    """A pattern of the names that two patterns share; None where there can be none."""
    if _covers(mine, wanted):
        return wanted
    if _covers(wanted, mine):
        return mine
    parts = dict.fromkeys((*mine.split("&"), *wanted.split("&")))
    if _are_apart(list(parts)):
        return None
    return "&".join(parts)


def _covers(pattern: str, other: str) -> bool:
    """Whether a pattern surely stands for all that another one does."""
    return all(
        any(part == each or _covers_part(part, each) for each in other.split("&"))
        for part in pattern.split("&")
    )


def _covers_part(pattern: str, other: str) -> bool:
    """With `*` as the only wildcard: one that matches another's spelling matches all it stands for."""
    return not set("?[]") & set(pattern + other) and fnmatchcase(other, pattern)


def _are_apart(parts: list[str]) -> bool:
    """Whether no name begins as all of these must."""
    exact = next((part for part in parts if not _WILD.search(part)), None)
    if exact is not None:
        return not all(fnmatchcase(exact, part) for part in parts)
    heads = [_WILD.split(part, maxsplit=1)[0] for part in parts]
    longest = max(heads, key=len)
    return not all(longest.startswith(head) for head in heads)


def _below(within: str, deeper: str | None) -> str:
    """A folder below a folder. `..` is left to who walks the path: it cannot leave the root there, but
    could leave `within`."""
    if deeper is None:
        return within
    names = [name for name in deeper.split("/") if name not in ("", ".")]
    if ".." in names or "\0" in deeper or deeper.startswith(("/", "~")):
        raise InvalidArguments(f"{deeper[:100]!r} is not a folder below the one it is confined to.")
    return "/".join([*([within] if within else []), *names])


def _with_rules(
    rules: tuple[ArgumentRule, ...], more: tuple[ArgumentRule, ...]
) -> tuple[ArgumentRule, ...]:
    both = tuple(dict.fromkeys((*rules, *more)))
    if len(both) > MAX_RULES:
        raise InvalidArguments(f"A capability has {MAX_RULES} rules about arguments at most.")
    return both


def _kept(allows: Capabilities, names: tuple[str, ...]) -> tuple[Mount, ...]:
    by_name = {mount.name: mount for mount in allows.mounts}
    if unknown := [name for name in names if name not in by_name]:
        raise InvalidArguments(f"There is no mount {unknown[0][:100]!r} to pass on.")
    return tuple(by_name[name] for name in dict.fromkeys(names))


def _met_mounts(ours: Capabilities, theirs: Capabilities) -> Iterator[Mount]:
    for mine in ours.mounts:
        for other in theirs.mounts:
            if (mine.name, mine.root) == (other.name, other.root):
                if mine.within and not _is_below(other.within, mine.within):
                    continue
                read_only = mine.read_only or other.read_only
                yield replace(mine, within=other.within or mine.within, read_only=read_only)


def _is_below(within: str, folder: str) -> bool:
    return ".." not in within.split("/") and f"{within}/".startswith(f"{folder}/")


def _sooner(one: float | None, other: float | None) -> float | None:
    times = [time for time in (one, other) if time is not None]
    return min(times, default=None)


def _keeps(rule: ArgumentRule, arguments: Mapping[str, Any]) -> bool:
    """Whether a call has the argument, and it is like one of the rule's patterns."""
    if rule.argument not in arguments:
        return False
    value = arguments[rule.argument]
    text = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
    return any(_is_like(text, pattern) for pattern in rule.patterns)


def _is_like(text: str, pattern: str) -> bool:
    steps_back = ".." in re.split(r"[/\\]", text) and ".." not in pattern
    return not steps_back and fnmatchcase(text, pattern)

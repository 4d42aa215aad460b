"""What is to become of a call that a process may make: allowed, asked about, or denied. Pure policy.

The first rule that matches decides. Where none does, a call that changes the world or reaches beyond it is
decided by `Policy.tainted` if text from outside has reached the process, and by `Policy.otherwise` if not.

A rule's patterns are shell patterns; a rule with several conditions wants all of them. Arguments can be
spelled in many ways (`notes/../key`, `./key`, a link, `HTTPS://Example.org`): to allow, a pattern must match
every spelling; to deny or to ask, one is enough.
"""

from __future__ import annotations

import enum
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from llmasos.kernel.abi import Effect, Labels
from llmasos.kernel.taint import MORE

CLEAN = "none"
"""As a rule's `taint`: processes that nothing from outside has reached."""
MOVES_LABELS = ("proc.*", "ipc.*", "cap.*")
"""Calls that change things for other processes alone, which get the labels with what they are given."""
ANYBODY = ("*", CLEAN)
"""As a rule's `taint`: tainted or not."""
MAX_PATH_CHARS = 4096
_NAMES_A_PATH = re.compile(r"path|file|folder|dir|root|^(to|from|source|target|destination)$")
_PORTS = {"http": 80, "https": 443}


class Decision(enum.StrEnum):
    """What becomes of a call."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Asked:
    """A call as rules see it."""

    syscall: str
    arguments: Mapping[str, Any]
    app: str
    effect: Effect
    taint: Labels = ()
    reaches_out: bool = False
    """Whether something beyond this home is told its arguments or answers it, whatever its effect."""
    root: str = ""
    """The folder that its paths are relative to."""

    @property
    def is_risky(self) -> bool:
        """Whether text from outside could use it to do harm."""
        changes = self.reaches_out or self.effect in (Effect.WRITE, Effect.EXTERNAL)
        return changes and not _any(MOVES_LABELS, self.syscall)


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a policy."""

    decision: Decision
    syscall: tuple[str, ...] = ("*",)
    app: tuple[str, ...] = ("*",)
    effect: tuple[Effect, ...] = ()
    """Empty: any."""
    arguments: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Patterns of arguments by name, each of which must be given."""
    taint: tuple[str, ...] = ()
    """Patterns of labels: to allow, all labels of the process must match one of them; to deny or to ask, one
    is enough. `none` is a process that has no label. Empty: any process, but a rule that allows must name
    what it allows to a tainted process that could do harm."""
    exactly: str | None = None
    """All arguments, as `exact` writes them; None: any."""

    def matches(self, asked: Asked) -> bool:
        """Whether it is about this call."""
        return (
            _any(self.syscall, asked.syscall)
            and _any(self.app, asked.app)
            and (not self.effect or asked.effect in self.effect)
            and self._fits_taint(asked)
            and self.exactly in (None, exact(asked.arguments))
            and all(self._fits(name, pattern, asked) for name, pattern in self.arguments.items())
        )

    def _fits_taint(self, asked: Asked) -> bool:
        taint = asked.taint
        if not self.taint:
            return not (taint and asked.is_risky and self.decision is Decision.ALLOW)
        if not taint:
            return CLEAN in self.taint
        if self.decision is Decision.ALLOW:
            return all(_any(self.taint, label) for label in taint)
        return any(label == MORE or _any(self.taint, label) for label in taint)

    def _fits(self, name: str, pattern: str, asked: Asked) -> bool:
        if name not in asked.arguments:
            return False
        enough: Callable[[Iterable[bool]], bool] = all if self.decision is Decision.ALLOW else any
        is_path = _NAMES_A_PATH.search(name) is not None
        spelled = spellings(asked.arguments[name], asked.root if is_path else None)
        return enough(fnmatchcase(each, pattern) for each in spelled)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of a kernel, in order, and what holds where none matches."""

    rules: tuple[Rule, ...] = ()
    tainted: Decision = Decision.ALLOW
    """Of risky calls of processes that text from outside has reached."""
    otherwise: Decision = Decision.ALLOW

    def decide(self, asked: Asked, own: Iterable[Rule] = ()) -> Decision:
        """What becomes of a call; `own` are its process's rules, which come first."""
        for rule in (*own, *self.rules):
            if rule.matches(asked):
                return rule.decision
        if asked.taint and asked.is_risky:
            return self.tainted
        return self.otherwise


def spellings(value: Any, root: str | None = None) -> set[str]:
    """How an argument reads: as it was given and as what it means, if it is a URL or (with `root`) a path."""
    if not isinstance(value, str):
        return {json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)}
    if "://" in value:
        return {value, _url(value)}
    if root is None or "\0" in value or len(value) > MAX_PATH_CHARS:
        return {value}
    return {value, _path(value, root), _real(value, root)}


def rule_values(rule: Rule) -> dict[str, Any]:
    """A rule as plain values."""
    return asdict(rule)


def rule_of(values: Mapping[str, Any]) -> Rule:
    """The rule that was made into these. Raises `ValueError`, `TypeError`, `KeyError` for what is none."""
    return Rule(
        Decision(values["decision"]),
        syscall=tuple(values["syscall"]),
        app=tuple(values["app"]),
        effect=tuple(map(Effect, values["effect"])),
        arguments=dict(values["arguments"]),
        taint=tuple(values["taint"]),
        exactly=values["exactly"],
    )


def exact(arguments: Mapping[str, Any]) -> str:
    """Arguments written so that the same ones, and no others, read the same."""
    return json.dumps(dict(arguments), ensure_ascii=False, sort_keys=True, default=str)


def _any(patterns: Iterable[str], text: str) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _url(text: str) -> str:
    """A URL with its scheme, host and port in their plain form; itself where it is none."""
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return text
    named = f"[{host}]" if ":" in host else host
    if port is not None and port != _PORTS.get(parts.scheme):
        named += f":{port}"
    return parts._replace(netloc=named, path=parts.path or "/", fragment="").geturl()


def _path(text: str, root: str) -> str:
    """A path without detours, relative to the root where it is below it."""
    plain = posixpath.normpath(text)
    for base in {root, os.path.realpath(root)} if root else ():
        if plain == base or plain.startswith(f"{base.rstrip('/')}/"):
            return posixpath.relpath(plain, base)
    return plain


def _real(text: str, root: str) -> str:
    """Where a path leads now, links followed, relative to the root."""
    base = os.path.realpath(root)
    return os.path.relpath(os.path.realpath(os.path.join(base, text)), base)

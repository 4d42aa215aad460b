"""Every verb by name, and finding the verb at the head of a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from llmasos.kernel.errors import UsageError
from llmasos.shell.arguments import did_you_mean
from llmasos.shell.verbs import (
    approvals,
    apps,
    ask,
    audit,
    authority,
    checkpoints,
    journal,
    machine,
    models,
    processes,
    run,
    scripts,
    secret,
    serve,
    strace,
    syscalls,
    taint,
)
from llmasos.shell.verbs.verb import Verb

_MODULES = (
    ask,
    run,
    processes,
    authority,
    journal,
    checkpoints,
    machine,
    scripts,
    models,
    apps,
    serve,
    approvals,
    taint,
    secret,
    strace,
    audit,
    syscalls,
)

Verbs = Mapping[str, Verb]

VERBS: Verbs = {verb.name: verb for module in _MODULES for verb in module.VERBS}


def find_verb(words: Sequence[str], verbs: Verbs, *, program: str) -> tuple[Verb, list[str]]:
    """The verb that a line begins with, and the words after it. Raises `UsageError`."""
    first, rest = words[0], list(words[1:])
    if rest and f"{first} {rest[0]}" in verbs:
        return verbs[f"{first} {rest[0]}"], rest[1:]
    if first in verbs:
        return verbs[first], rest
    group = [name for name in verbs if name.startswith(first + " ")]
    if group:
        _refuse_group(first, rest, group, program)
    known = {name.split(" ")[0] for name in verbs}
    raise UsageError(
        f"There is no verb {first!r}{did_you_mean(first, known)}; see `{program}{_help(program)}`."
    )


def _refuse_group(first: str, rest: list[str], group: list[str], program: str) -> NoReturn:
    choices = [name.removeprefix(first + " ") for name in group]
    said = f" {rest[0]!r}{did_you_mean(rest[0], choices)}" if rest else ""
    raise UsageError(
        f"{program}{first} takes one of {', '.join(choices)}, not{said or ' nothing'}."
    )


def _help(program: str) -> str:
    return "help" if program == "/" else "--help"


def verb_list(verbs: Verbs, prefix: str = "") -> str:
    """The verbs and what each does, a line each."""
    width = max(map(len, verbs))
    return "".join(f"  {prefix}{verb.name:<{width}}  {verb.summary}\n" for verb in verbs.values())

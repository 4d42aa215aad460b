"""Flags that say what a process may do (`--allow`, `--mount`, `--read-only`) and what it may use."""

from __future__ import annotations

import argparse
import math
import os
import re
from argparse import Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

from llmasos.kernel.abi import ArgumentRule, CallLimit, Capabilities, Limits, Mount
from llmasos.kernel.errors import UsageError
from llmasos.shell.arguments import Parser, count, seconds

INWARD = ("ctx.*", "llm.*", "io.*", "proc.*", "cap.*", "time.*", "calc", "calc.*")
"""What every process may call: it reaches nothing but the process itself, its model and its children."""
NONE = "none"

_ALLOW = re.compile(r"(?P<pattern>[a-z0-9_.*?\[\]-]+)(:(?P<argument>[a-z0-9_]+))?(=(?P<value>.+))?")
_MOUNT = re.compile(r"(?P<name>[A-Za-z0-9_-]{2,32})=(?P<folder>.+?)(?P<mode>:ro|:rw)?")


class Allowed(NamedTuple):
    """One `--allow`: syscalls, and what their hosts or one of their arguments must be like."""

    pattern: str
    argument: str | None
    value: str | None


def add_grant_flags(parser: Parser) -> None:
    """The flags about what a process may do."""
    parser.add_argument(
        "--allow", action="append", type=_allowed, metavar="WHAT",
        help="let it call these alone, such as fs.read, web.fetch=*.example.org, fs.*:path=docs/*",
    )  # fmt: skip
    parser.add_argument("--read-only", action="store_true", help="it may change no file")
    parser.add_argument(
        "--mount", action="append", type=_mount, metavar="NAME=FOLDER[:rw]",
        help="a further folder, whose files it sees as NAME:path; read-only without :rw",
    )  # fmt: skip

    parser.add_argument(
        "--secret", action="append", metavar="NAME", help="let it use this secret of the vault"
    )
    parser.add_argument(
        "--trust", action="append", metavar="PATTERN",
        help="calls it may make unasked though it has read text from outside, such as fs.*",
    )  # fmt: skip


def add_limit_flags(parser: Parser, *, lifting: bool = False) -> None:
    """A flag for each limit; with `lifting` it may be `none`."""
    for name, kind, what in _LIMITS:
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=_or_none(kind) if lifting else kind, metavar="N", help=what)
    parser.add_argument(
        "--calls", action="append", type=_or_none(_calls) if lifting else _calls,
        metavar="PATTERN=N", help="calls it may make of these syscalls",
    )  # fmt: skip


def capabilities_of(root: str, folder: Callable[[str], str], args: Namespace) -> Capabilities:
    """What `add_grant_flags` was told. Raises `UsageError`."""
    allowed: list[Allowed] = args.allow or []
    names = [name for name, _, _ in args.mount or ()]
    if len(set(names)) < len(names):
        raise UsageError("Two mounts have the same name; call one of them differently.")
    return Capabilities(
        syscalls=_syscalls(allowed),
        root=root,
        hosts=tuple(each.value for each in allowed if each.value and each.argument is None),
        read_only=args.read_only,
        mounts=tuple(
            Mount(name, folder(path), read_only=read_only)
            for name, path, read_only in args.mount or ()
        ),
        arguments=_rules(allowed),
        secrets=tuple(args.secret or ()),
        tainted=tuple(args.trust or ()),
    )


def limits_of(args: Namespace, *, wall_s: float | None) -> Limits:
    """What `add_limit_flags` was told; what is `none` is left out."""
    given = {name: getattr(args, name) for name, _, _ in _LIMITS}
    values = {name: value for name, value in given.items() if value not in (None, NONE)}
    calls = tuple(each for each in args.calls or () if each != NONE)
    return Limits(wall_s=wall_s, calls=calls, **values)


def lifted(args: Namespace) -> list[str]:
    """The limits that are to be no more."""
    names = [name for name, _, _ in _LIMITS if getattr(args, name) == NONE]
    return [*names, "calls"] if NONE in (args.calls or ()) else names


def amount(text: str) -> float:
    """A number from 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return value


def num_bytes(text: str) -> int:
    """A number of bytes: `4096`, `64KiB`, `10MB`."""
    match = re.fullmatch(r"([0-9]{1,15})(?:([kmg])(i?)b)?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size (such as 4096, 64KiB or 10MB)")
    unit = 1024 if match[3] else 1000
    return int(match[1]) * math.prod([unit] * " kmg".index(match[2] or " "))


def _whole(text: str) -> int:
    return 0 if text == "0" else count(text)


def _syscalls(allowed: list[Allowed]) -> tuple[str, ...]:
    if not allowed:
        return ("*",)
    return tuple(dict.fromkeys((*INWARD, *(each.pattern for each in allowed))))


def _rules(allowed: list[Allowed]) -> tuple[ArgumentRule, ...]:
    """One rule for each argument of each pattern: any of the values that were given for it."""
    values: dict[tuple[str, str], list[str]] = {}
    for each in allowed:
        if each.argument is not None and each.value is not None:
            values.setdefault((each.pattern, each.argument), []).append(each.value)
    return tuple(ArgumentRule(*key, tuple(patterns)) for key, patterns in values.items())


def _allowed(text: str) -> Allowed:
    match = _ALLOW.fullmatch(text)
    if match is None or (match["argument"] and not match["value"]):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not like fs.read, web.fetch=HOST or fs.write:path=PATTERN"
        )
    if match["value"] and not match["argument"] and not match["pattern"].startswith("web."):
        raise argparse.ArgumentTypeError(
            f"{text!r} does not say which argument; write {match['pattern']}:ARGUMENT={match['value']}"
        )
    return Allowed(match["pattern"], match["argument"], match["value"])


def _mount(text: str) -> tuple[str, str, bool]:
    match = _MOUNT.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER or NAME=FOLDER:rw")
    return match["name"], os.path.expanduser(match["folder"]), match["mode"] != ":rw"


def _calls(text: str) -> CallLimit:
    pattern, equals, most = text.rpartition("=")
    if not equals or not re.fullmatch(r"[a-z0-9_.*?\[\]-]+", pattern):
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=N, such as fs.*=100")
    return CallLimit(pattern, _whole(most))


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: NONE if text == NONE else kind(text)


_LIMITS: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("tokens_out", _whole, "tokens that may be sampled"),
    ("tokens_in", _whole, "tokens that may be put into contexts"),
    ("model_s", seconds, "time of the model, such as 30s"),
    ("page_s", amount, "pages held, times seconds"),
    ("bytes_written", num_bytes, "bytes that may be written to files, such as 10MB"),
    ("cost", amount, "money that tokens may cost"),
    ("processes", _whole, "processes it may have below it at a time"),
    ("children", _whole, "children it may have at a time"),
)

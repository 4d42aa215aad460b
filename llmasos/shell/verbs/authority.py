"""Verbs about what processes may do and use: `caps`, `limits`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from llmasos.kernel.abi import CapabilityInfo, LimitInfo, Limits
from llmasos.shell.arguments import Parser, pid, seconds
from llmasos.shell.environment import Environment
from llmasos.shell.grants import NONE, add_limit_flags, lifted, limits_of
from llmasos.shell.plain import one_line
from llmasos.shell.tables import Column, Table
from llmasos.shell.verbs.verb import Verb, add_json

REVOKE = "revoke"


def _configure_caps(parser: Parser) -> None:
    parser.usage = f"{parser.prog} [--json] PID | {parser.prog} revoke PID HANDLE"
    parser.add_argument(f"--{REVOKE}", type=_handle, metavar="HANDLE", help="take this one back")
    add_json(parser)
    parser.add_argument("pid", type=pid, metavar="PID")


def _handle(text: str) -> int:
    return 0 if text == "0" else int(pid(text))


def spread_revoke(words: Sequence[str]) -> list[str]:
    """`caps revoke PID HANDLE` as a flag."""
    if len(words) == 3 and words[0] == REVOKE:
        return [f"--{REVOKE}={words[2]}", words[1]]
    return list(words)


async def caps(environment: Environment, args: Namespace) -> int:
    """Show what a process may do, or take one of its capabilities back."""
    session = await environment.sessions.running()
    if args.revoke is not None:
        num_revoked = await session.revoke(args.pid, args.revoke)
        environment.output.note(f"Revoked {num_revoked}, those derived from it included.")
        return 0
    infos = await session.caps(args.pid)
    if args.json:
        environment.output.json(infos)
    else:
        environment.output.table(caps_table(infos))
    return 0


def caps_table(infos: Sequence[CapabilityInfo]) -> Table:
    """What `caps` shows; FROM is the process that granted it, DERIVED how many would go with it."""
    columns = (
        Column("HANDLE", right=True), Column("STATE"), Column("FROM", right=True, drop=2),
        Column("DERIVED", right=True, drop=3), Column("SYSCALLS"), Column("FOLDERS"), Column("ONLY", drop=1),
    )  # fmt: skip
    return Table(columns, tuple(_caps_row(info) for info in infos))


def _caps_row(info: CapabilityInfo) -> tuple[str, ...]:
    allows = info.allows
    only = [f"hosts {' '.join(allows.hosts)}"] if allows.hosts else []
    only += [f"{r.syscalls} {r.argument} like {' '.join(r.patterns)}" for r in allows.arguments]
    only += [f"until {allows.expires_at:.0f}"] if allows.expires_at is not None else []
    return (
        str(info.handle),
        info.state,
        str(info.grantor or "-"),
        str(info.num_derived),
        one_line(" ".join(allows.syscalls), max_chars=60) or "-",
        one_line(_folders(info), max_chars=80),
        one_line("; ".join(only), max_chars=80) or "-",
    )


def _folders(info: CapabilityInfo) -> str:
    allows = info.allows
    own = f"{allows.root}/{allows.within}" if allows.within else allows.root
    shown = [f"{own}{' (ro)' if allows.read_only else ''}"]
    shown += [f"{m.name}={m.root}{' (ro)' if m.read_only else ''}" for m in allows.mounts]
    return ", ".join(shown)


def _configure_limits(parser: Parser) -> None:
    parser.add_argument(
        "--wall", type=lambda text: NONE if text == NONE else seconds(text), metavar="TIME",
        help="how long it may run, such as 10m",
    )  # fmt: skip
    add_limit_flags(parser, lifting=True)
    add_json(parser)
    parser.add_argument("pid", type=pid, metavar="PID")


async def limits(environment: Environment, args: Namespace) -> int:
    """Show what a process may use, has used and has left; with flags change its own limits first."""
    session = await environment.sessions.running()
    wall_s = None if args.wall == NONE else args.wall
    given, gone = limits_of(args, wall_s=wall_s), lifted(args)
    if args.wall == NONE:
        gone.append("wall_s")
    if given != Limits() or gone:
        await session.set_limits(args.pid, given, gone)
    infos = await session.limits(args.pid)
    if args.json:
        environment.output.json([{**_values(info), "left": info.left} for info in infos])
    else:
        environment.output.table(limits_table(infos))
    return 0


def _values(info: LimitInfo) -> dict[str, object]:
    return {"name": info.name, "limit": info.limit, "used": info.used, "scope": info.scope}


def limits_table(infos: Sequence[LimitInfo]) -> Table:
    """What `limits` shows; OF is whose limit it is."""
    columns = (
        Column("LIMIT"), Column("MOST", right=True), Column("USED", right=True),
        Column("LEFT", right=True), Column("OF"),
    )  # fmt: skip
    rows = (
        (one_line(info.name), *map(_number, (info.limit, info.used, info.left)), info.scope)
        for info in infos
    )
    return Table(columns, tuple(rows))


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


VERBS = (
    Verb(
        "caps", "Show what a process may do, or revoke it.", caps, _configure_caps,
        completes=("pid",), prepare=spread_revoke,
    ),
    Verb(
        "limits", "Show or set what a process may use.", limits, _configure_limits,
        completes=("pid",),
    ),
)  # fmt: skip

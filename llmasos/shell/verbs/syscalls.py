"""The verb `syscalls`: what processes can ask for here. It needs no kernel."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict

from llmasos.kernel.abi import SyscallInfo
from llmasos.kernel.errors import UsageError
from llmasos.shell.arguments import Parser, did_you_mean
from llmasos.shell.environment import Environment
from llmasos.shell.plain import one_line
from llmasos.shell.tables import Column, Table
from llmasos.shell.verbs.verb import Verb, add_json

BUILT_IN = "llmasos"


def _configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="show one, with its arguments")
    add_json(parser)


async def syscalls(environment: Environment, args: Namespace) -> int:
    """Show all syscalls, or one."""
    from llmasos.syscalls import builtin_syscalls
    from llmasos.syscalls.plugins import installed_plugins

    built_in = builtin_syscalls()
    plugins = installed_plugins(built_in)
    for problem in plugins.problems:
        environment.output.note(problem)
    infos = {each.name: each.info for each in (*built_in.values(), *plugins.syscalls)}
    if args.name is None:
        return _show_all(environment, args, list(infos.values()), plugins.origins)
    if args.name not in infos:
        raise UsageError(f"There is no syscall {args.name!r}{did_you_mean(args.name, infos)}.")
    return _show_one(environment, args, infos[args.name], plugins.origins)


def _show_all(
    environment: Environment, args: Namespace, infos: list[SyscallInfo], origins: dict[str, str]
) -> int:
    if args.json:
        environment.output.json([_described(info, origins) for info in infos])
        return 0
    rows = tuple(
        (
            info.name,
            info.effect.value,
            "yes" if info.tool else "",
            origins.get(info.name, BUILT_IN),
            one_line(info.description.partition("\n")[0]),
        )
        for info in infos
    )
    columns = (
        Column("NAME"), Column("EFFECT", drop=1), Column("TOOL", drop=2), Column("ORIGIN", drop=3),
        Column("DOES", drop=4),
    )  # fmt: skip
    environment.output.table(Table(columns, rows))
    return 0


def _show_one(
    environment: Environment, args: Namespace, info: SyscallInfo, origins: dict[str, str]
) -> int:
    described = _described(info, origins)
    if args.json:
        environment.output.json(described)
        return 0
    tool = ", offered to models" if info.tool else ""
    environment.output.line(f"{info.name} ({info.effect.value}{tool}; from {described['origin']})")
    environment.output.line(info.description)
    required = info.parameters.get("required", ())
    rows = tuple(
        (name, "required" if name in required else "", one_line(schema.get("description", "")))
        for name, schema in info.parameters.get("properties", {}).items()
    )
    if rows:
        columns = (Column("ARGUMENT"), Column("", drop=1), Column("", drop=2))
        environment.output.table(Table(columns, rows))
    return 0


def _described(info: SyscallInfo, origins: dict[str, str]) -> dict[str, object]:
    return {**asdict(info), "origin": origins.get(info.name, BUILT_IN)}


VERBS = (
    Verb("syscalls", "List what processes can ask for, or show one of them.", syscalls, _configure),
)

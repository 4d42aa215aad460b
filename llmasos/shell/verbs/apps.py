"""Verbs about apps: `app list`, `app info`. They need no kernel."""

from __future__ import annotations

from argparse import Namespace

from llmasos.kernel.abi import AppInfo
from llmasos.kernel.errors import NoSuchApp
from llmasos.shell.arguments import Parser, did_you_mean
from llmasos.shell.environment import Environment
from llmasos.shell.plain import one_line
from llmasos.shell.tables import Column, Table, app_table
from llmasos.shell.verbs.verb import Verb, add_json


def installed_apps() -> list[AppInfo]:
    """Every app that can be run here, by name."""
    from llmasos.apps.builtin import builtin_apps

    return sorted((app.info for app in builtin_apps().values()), key=lambda info: info.name)


async def list_apps(environment: Environment, args: Namespace) -> int:
    """Show the apps."""
    if args.json:
        environment.output.json(installed_apps())
    else:
        environment.output.table(app_table(installed_apps()))
    return 0


def _configure_info(parser: Parser) -> None:
    parser.add_argument("app", metavar="APP")
    add_json(parser)


async def info(environment: Environment, args: Namespace) -> int:
    """Show one app and its parameters."""
    apps = {app.name: app for app in installed_apps()}
    if args.app not in apps:
        raise NoSuchApp(
            f"There is no app {args.app!r}{did_you_mean(args.app, apps)};"
            " `app list` shows those there are."
        )
    app = apps[args.app]
    if args.json:
        environment.output.json(app)
        return 0
    environment.output.line(f"{app.name} {app.version}: {app.summary}")
    environment.output.table(_parameter_table(app))
    return 0


def _parameter_table(app: AppInfo) -> Table:
    required = app.parameters.get("required", ())
    rows = tuple(
        (
            name,
            _type_name(schema),
            "required" if name in required else one_line(str(schema.get("default"))),
            one_line(schema.get("description", "")),
        )
        for name, schema in app.parameters.get("properties", {}).items()
    )
    columns = (Column("PARAMETER"), Column("TYPE", drop=1), Column("DEFAULT"), Column("", drop=2))
    return Table(columns, rows)


def _type_name(schema: dict[str, object]) -> str:
    options = schema.get("anyOf", [schema])
    if not isinstance(options, list):
        return "any"
    return " or ".join(str(option.get("type", "any")) for option in options)


VERBS = (
    Verb("app list", "List the apps.", list_apps, add_json),
    Verb("app info", "Show an app and its parameters.", info, _configure_info, completes=("app",)),
)

"""Verbs about apps: `app list`, `info`, `new`, `install`, `update`, `remove`. They need no kernel."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from llmasos.kernel.abi import AppInfo
from llmasos.kernel.errors import ConfigError, NoSuchApp, UsageError
from llmasos.shell.arguments import Parser, did_you_mean
from llmasos.shell.environment import Environment
from llmasos.shell.home import home_folder
from llmasos.shell.plain import one_line
from llmasos.shell.tables import Column, Table, app_table
from llmasos.shell.verbs.verb import Verb, add_json, kernel_flags

if TYPE_CHECKING:
    from llmasos.shell.installed.install import Changed
    from llmasos.shell.installed.store import AppStore, Package, Source


def installed_apps(home: Path | None = None) -> list[AppInfo]:
    """Every app that can be run in a home, by name; without one, those that come with LLMasOS."""
    if home is None:
        from llmasos.apps.builtin import builtin_apps

        return sorted((app.info for app in builtin_apps().values()), key=lambda info: info.name)
    from llmasos.shell.installed.apps import Apps

    return Apps(home).infos()


def _home(environment: Environment, args: Namespace) -> Path:
    return home_folder(kernel_flags(args, environment.flags).home)


def _store(environment: Environment, args: Namespace) -> AppStore:
    from llmasos.shell.installed.store import AppStore

    return AppStore(_home(environment, args))


async def list_apps(environment: Environment, args: Namespace) -> int:
    """Show the apps."""
    apps = installed_apps(_home(environment, args))
    if args.json:
        environment.output.json(apps)
    else:
        environment.output.table(app_table(apps))
    return 0


def _configure_info(parser: Parser) -> None:
    parser.add_argument("app", metavar="APP")
    add_json(parser)


async def info(environment: Environment, args: Namespace) -> int:
    """Show one app and its parameters."""
    apps = {app.name: app for app in installed_apps(_home(environment, args))}
    if args.app not in apps:
        raise NoSuchApp(
            f"There is no app {args.app!r}{did_you_mean(args.app, apps)};"
            " `app list` shows those there are."
        )
    app = apps[args.app]
    if args.json:
        environment.output.json(app)
        return 0
    environment.output.line(f"{app.name} {app.version}: {one_line(app.summary)}")
    environment.output.table(_parameter_table(app))
    for line in _facts(app, _store(environment, args).package(app.name)):
        environment.output.line(line)
    return 0


def _facts(app: AppInfo, package: Package | None) -> list[str]:
    """What is to be known of an app beside its parameters."""
    from llmasos.shell.installed.granting import limits_text

    lines = []
    if wants := ", ".join((*app.syscalls, *app.hosts)):
        lines.append(f"wants: {one_line(wants)}")
    if app.grant is not None:
        granted = ", ".join((*app.grant.syscalls, *app.grant.hosts))
        lines.append(f"granted: {one_line(granted) or 'nothing beyond what every app may'}")
    if limits := limits_text(app.limits):
        lines.append(f"limits: {limits}")
    if app.models:
        lines.append(f"made for: {one_line(', '.join(app.models))}")
    if package is None:
        return [*lines, "comes with LLMasOS; runs within the kernel"]
    source = package.source
    at = f" at {source.revision[:12]}" if source.revision else ""
    pinned = ", pinned" if package.pinned else ""
    lines.append(f"package: {package.name} {package.version}{pinned}")
    lines.append(f"from: {source.kind} {one_line(source.text)}{at}")
    return [*lines, _confinement()]


def _confinement() -> str:
    from llmasos.shell.installed.launch import Launcher

    if Launcher().is_confining:
        return "runs in a process of its own, in the sandbox"
    return (
        "runs in a process of its own, under limits alone: bubblewrap (bwrap) is missing, so the app's own"
        " code can do whatever you can"
    )


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


def _configure_new(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="small letters, digits and hyphens")
    parser.add_argument("--folder", metavar="FOLDER", help="where (default: ./NAME)")


async def new(environment: Environment, args: Namespace) -> int:
    """Write a new app's files."""
    from llmasos.shell.installed.template import write_template

    folder = Path(environment.root, args.folder or args.name)
    write_template(args.name, folder)
    environment.output.line(f"{args.folder or args.name}: its README.md says how to go on.")
    return 0


def _add_granting(parser: Parser) -> None:
    parser.add_argument("--yes", action="store_true", help="grant what it wants without asking")
    parser.add_argument(
        "--grant", action="append", default=[], metavar="PATTERN",
        help="grant this of what it wants and no more (repeats; `none` grants nothing)",
    )  # fmt: skip


def _configure_install(parser: Parser) -> None:
    _add_granting(parser)
    parser.add_argument("--pin", action="store_true", help="leave it out of `app update`")
    parser.add_argument(
        "source", metavar="SOURCE", help="a folder, a wheel, a package's name or a git URL"
    )


async def install(environment: Environment, args: Namespace) -> int:
    """Install a package of apps into an environment of its own."""
    from llmasos.shell.installed.sources import understood

    source = understood(args.source, environment.root)
    changed = await _install(environment, args, source, pin=args.pin)
    _tell(environment, changed)
    return 0


async def _install(
    environment: Environment, args: Namespace, source: Source, *, pin: bool, only: str = ""
) -> Changed:
    from llmasos.shell.installed.granting import Grants
    from llmasos.shell.installed.install import install
    from llmasos.shell.installed.launch import Launcher

    async def ask(question: str) -> bool:
        return await _ask(environment, question)

    launcher = Launcher()
    if not await anyio.to_thread.run_sync(lambda: launcher.is_confining):
        environment.output.note(
            "bubblewrap (bwrap) is missing: the app will run under limits alone, and its own code can do"
            " whatever you can."
        )
    return await install(
        _store(environment, args),
        source,
        launcher=launcher,
        granting=Grants(yes=args.yes, only=args.grant, ask=ask),
        pin=pin,
        only=only,
    )


async def _ask(environment: Environment, question: str) -> bool:
    """A question on the terminal. Raises `UsageError` where there is none."""
    if not (environment.stdin_is_terminal and environment.stdin_fd is not None):
        raise UsageError(
            f"{' '.join(question.removesuffix('Grant it?').split())}; say --yes to grant it, or --grant"
            " for each that you grant."
        )
    environment.output.line(question + " [y/N]")
    answer = await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    return answer.strip().lower() in ("y", "yes")


def _tell(environment: Environment, changed: Changed) -> None:
    package, before = changed.package, changed.before
    was = f" (it was {before.version})" if before and before.version != package.version else ""
    names = ", ".join(each.info.name for each in package.apps)
    environment.output.line(
        f"{package.name} {package.version} is installed{was}: llmasos run {names}"
    )


def _configure_update(parser: Parser) -> None:
    _add_granting(parser)
    parser.add_argument("app", metavar="APP", nargs="?", help="default: all that are not pinned")


async def update(environment: Environment, args: Namespace) -> int:
    """Install newer versions from where they came from."""
    store = _store(environment, args)
    packages = store.packages()
    if args.app is not None:
        packages = [_package(store, args.app)]
        if packages[0].pinned:
            raise ConfigError(
                f"{args.app} is pinned to {packages[0].version}; `app install` another version of it."
            )
    for package in [each for each in packages if not each.pinned]:
        changed = await _install(environment, args, package.source, pin=False, only=package.name)
        _tell(environment, changed)
    return 0


def _configure_remove(parser: Parser) -> None:
    parser.add_argument("app", metavar="APP")


async def remove(environment: Environment, args: Namespace) -> int:
    """Delete an app's package and its environment."""
    store = _store(environment, args)
    package = _package(store, args.app)
    async with store.changing():
        await anyio.to_thread.run_sync(store.remove, package)
    environment.output.line(f"{package.name} {package.version} is removed.")
    return 0


def _package(store: AppStore, name: str) -> Package:
    package = store.package(name)
    if package is None:
        names = [each.info.name for package in store.packages() for each in package.apps]
        raise NoSuchApp(
            f"No app {name!r} is installed{did_you_mean(name, names)};"
            f" there are {', '.join(names) or 'none'}."
        )
    return package


VERBS = (
    Verb("app list", "List the apps.", list_apps, add_json),
    Verb("app info", "Show an app and its parameters.", info, _configure_info, completes=("app",)),
    Verb("app new", "Write the files of a new app.", new, _configure_new),
    Verb(
        "app install", "Install an app from a folder, wheel, package or git.", install,
        _configure_install, completes=("path",),
    ),
    Verb("app update", "Install newer versions of apps.", update, _configure_update, completes=("app",)),
    Verb("app remove", "Remove an installed app.", remove, _configure_remove, completes=("app",)),
)  # fmt: skip

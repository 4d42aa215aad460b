"""Every app that a home can run: those that come with LLMasOS, and those that are installed there."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llmasos.apps.builtin import builtin_apps
from llmasos.kernel.abi import AppInfo
from llmasos.kernel.errors import AppError, NoSuchApp
from llmasos.kernel.program import Port, Program
from llmasos.shell.installed.launch import Executable, Launcher
from llmasos.shell.installed.program import OutsideProgram
from llmasos.shell.installed.sdk import targets
from llmasos.shell.installed.store import AppStore, Package, PackagedApp, in_use, python_version


class Apps:
    """The apps of one home; what is installed meanwhile is found at once."""

    def __init__(self, home: Path, *, launcher: Launcher | None = None) -> None:
        self._store = AppStore(home)
        self._launcher = launcher or Launcher()

    def load(self, name: str) -> Program:
        """A `ProgramLoader`. Raises `NoSuchApp` naming the ones there are and a close match."""
        builtin = builtin_apps()
        if name in builtin:
            return builtin[name]
        found = self._store.find(name)
        if found is None:
            names = [info.name for info in self.infos()]
            close = get_close_matches(name.lower(), names, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise NoSuchApp(f"There is no app {name!r}; there are {', '.join(names)}.{hint}")
        return InstalledProgram(self._store, *found, self._launcher)

    def infos(self) -> list[AppInfo]:
        """Every app's manifest, by name; an installed one's version is its package's."""
        own = [app.info for app in builtin_apps().values()]
        packages = self._store.packages()
        installed = [described(package, each) for package in packages for each in package.apps]
        return sorted([*own, *installed], key=lambda info: info.name)


def described(package: Package, app: PackagedApp) -> AppInfo:
    """An installed app's manifest."""
    return replace(app.info, version=package.version)


def executable_of(apps_folder: Path, environment: Path, entry: str) -> Executable:
    """What runs an app of an environment. Blocks."""
    argv = (
        str(environment / "bin" / "python"),
        "-I",
        "-u",
        "-B",
        "-m",
        "llmasos.apps.remote",
        entry,
    )
    return Executable(argv, (str(environment), *targets(apps_folder)))


class InstalledProgram:
    """An installed app as a program; its environment is kept while it runs."""

    def __init__(
        self, store: AppStore, package: Package, app: PackagedApp, launcher: Launcher
    ) -> None:
        self.info = described(package, app)
        self._store = store
        self._package = package
        self._entry = app.entry
        self._launcher = launcher

    def check(self, params: Mapping[str, Any]) -> None:
        """See `Program`."""
        self._outside.check(params)

    async def run(self, port: Port, params: Mapping[str, Any]) -> int:
        """See `Program`. Raises `AppError` where its environment is gone or another Python's."""
        environment = self._store.environment(self._package)
        if not environment.is_dir():
            raise AppError(f"{self.info.name} {self.info.version} is not installed any more.")
        if self._package.python != python_version():
            raise AppError(
                f"{self.info.name} was installed for Python {self._package.python} and this is"
                f" {python_version()}; run `llmasos app update {self.info.name}`."
            )
        with in_use(environment):
            return await self._outside.run(port, params)

    @functools.cached_property
    def _outside(self) -> OutsideProgram:
        environment = self._store.environment(self._package)
        executable = executable_of(self._store.folder, environment, self._entry)
        return OutsideProgram(self.info, executable, self._launcher)

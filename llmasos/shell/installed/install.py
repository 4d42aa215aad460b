"""Installing a package of apps: its wheel, an environment of its own, its manifests, what it is granted.

Nothing that is installed changes until the last step, which is one renaming of one file; whatever goes
wrong before leaves all as it was.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import sys
import sysconfig
import venv
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio.to_thread
from pydantic import TypeAdapter, ValidationError

import llmasos
from llmasos.apps.app import NAME
from llmasos.apps.builtin import builtin_apps
from llmasos.kernel.abi import AppGrant, AppInfo
from llmasos.kernel.errors import AppError, ConfigError
from llmasos.shell.installed.apps import executable_of
from llmasos.shell.installed.launch import Launcher
from llmasos.shell.installed.program import manifest_of
from llmasos.shell.installed.sdk import sdk_folder
from llmasos.shell.installed.sources import Wheel, fetched, is_pinned, run_pip
from llmasos.shell.installed.store import (
    AppStore,
    Package,
    PackagedApp,
    Source,
    python_version,
)

Granting = Callable[[Package, Package | None], Awaitable[Package]]
"""Has the user decide what a package's apps may do, given what is installed of it now; returns it with the
grants. Raises `ConfigError` where the user will not have it."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What an installation did."""

    package: Package
    before: Package | None


async def install(
    store: AppStore,
    source: Source,
    *,
    launcher: Launcher,
    granting: Granting,
    pin: bool = False,
    only: str = "",
) -> Changed:
    """Install a package, or another version of it. `only` is the package that it must be.

    Raises `ConfigError`; then nothing has changed.
    """
    async with store.changing():
        work, environment = store.new_folder(), store.new_folder()
        try:
            source, wheel = await anyio.to_thread.run_sync(fetched, source, work)
            _check_names(store, wheel, only)
            prepare = functools.partial(_prepare, store, wheel, environment)
            await anyio.to_thread.run_sync(prepare)
            apps = tuple(
                [await _described(store, environment, wheel, n, launcher) for n in wheel.entries]
            )
            package = Package(
                name=wheel.name,
                version=wheel.version,
                folder=f"{wheel.version}-{_digest(wheel.path)}-{environment.name[-6:]}",
                python=python_version(),
                source=source,
                pinned=pin or is_pinned(source),
                apps=apps,
            )
            before = next((each for each in store.packages() if each.name == package.name), None)
            package = await granting(package, before)
            await anyio.to_thread.run_sync(store.put, package, environment)
            return Changed(package, before)
        finally:
            for folder in (work, environment):
                shutil.rmtree(folder, ignore_errors=True)


def _check_names(store: AppStore, wheel: Wheel, only: str) -> None:
    if only and wheel.name != only:
        raise ConfigError(f"{wheel.path.name} is {wheel.name}, and {only} was to be updated.")
    for name in wheel.entries:
        if not NAME.fullmatch(name):
            raise ConfigError(f"{wheel.name} calls an app {name!r}, which is no name for one.")
        if name in builtin_apps():
            raise ConfigError(
                f"There is an app {name} in LLMasOS itself; the package must rename its own."
            )
        taken = store.find(name)
        if taken is not None and taken[0].name != wheel.name:
            raise ConfigError(
                f"The package {taken[0].name} has an app {name} already; remove that first."
            )


def _prepare(store: AppStore, wheel: Wheel, environment: Path) -> None:
    """Make an environment that holds the wheel and what it needs. Blocks."""
    sdk = sdk_folder(store.folder)
    has_pip = find_spec("pip") is not None
    try:
        venv.EnvBuilder(with_pip=not has_pip, symlinks=True, prompt=wheel.name).create(environment)
    except (OSError, SystemExit, ValueError) as error:
        raise ConfigError(f"An environment for {wheel.name} could not be made: {error}.") from error
    python = environment / "bin" / "python"
    pip = ["install", "--quiet", "--no-warn-script-location", str(wheel.path)]
    (_site_packages(environment) / "llmasos-sdk.pth").write_text(f"{sdk}\n", encoding="utf-8")
    ours = f"llmasos=={llmasos.__version__}"
    what = f"install {wheel.name} {wheel.version}"
    if has_pip:
        run_pip(["--python", str(python), *pip, ours], what, python=sys.executable)
    else:
        run_pip([*pip, ours], what, python=str(python))
    _make_readable(environment)


def _site_packages(environment: Path) -> Path:
    base = str(environment)
    scheme = "venv" if "venv" in sysconfig.get_scheme_names() else "posix_prefix"
    return Path(sysconfig.get_path("purelib", scheme, {"base": base, "platbase": base}))


def _make_readable(environment: Path) -> None:
    """For the user that an app becomes where the kernel is root; the home is its owner's alone anyway."""
    for path in [environment, *environment.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if path.is_dir() or mode & 0o100 else 0o444))


async def _described(
    store: AppStore, environment: Path, wheel: Wheel, name: str, launcher: Launcher
) -> PackagedApp:
    """What an app of the wheel says of itself, in the sandbox that it will run in."""
    make = functools.partial(executable_of, store.folder, environment, wheel.entries[name])
    executable = await anyio.to_thread.run_sync(make)
    try:
        info = _manifest(await manifest_of(executable, launcher), name)
    except AppError as error:
        raise ConfigError(f"{wheel.name} was not installed: {error}") from error
    return PackagedApp(replace(info, version=wheel.version, grant=AppGrant()), wheel.entries[name])


def _manifest(said: Any, name: str) -> AppInfo:
    try:
        info = _infos.validate_python(said)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise AppError(f"its manifest is none ({where}: {problem['msg']}).") from error
    if info.name != name:
        raise AppError(
            f"its entry point is called {name} and the app {info.name}; they must agree."
        )
    return info


_infos = TypeAdapter(AppInfo)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]

"""Wheels written by hand: what a package index would have, without one."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    files: Mapping[str, str],
    apps: Mapping[str, str] | None = None,
    requires: Sequence[str] = (),
) -> Path:
    """Write a wheel; returns its path."""
    folder.mkdir(exist_ok=True)
    flat = name.replace("-", "_")
    path = folder / f"{flat}-{version}-py3-none-any.whl"
    info = f"{flat}-{version}.dist-info"
    needed = "".join(f"Requires-Dist: {each}\n" for each in requires)
    entries = "".join(f"{key} = {value}\n" for key, value in (apps or {}).items())
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        if apps is not None:
            archive.writestr(f"{info}/entry_points.txt", f"[llmasos.apps]\n{entries}")
        archive.writestr(f"{info}/RECORD", "")
    return path


GREETER = """
from pydantic import BaseModel
from llmasos.apps.sdk import Proc, SyscallError, app
{imports}

class Params(BaseModel):
    name: str = "you"

@app(name="{name}", summary="Greets.", syscalls={syscalls})
async def main(proc: Proc, params: Params) -> None:
    await proc.print("{greeting}", params.name, {more})
    for call, args in {calls}:
        try:
            await proc.print(await proc.call(call, **args) is not None)
        except SyscallError as error:
            await proc.print(type(error).__name__)
"""


def greeter(
    folder: Path,
    name: str = "greeter",
    version: str = "1.0",
    *,
    greeting: str = "hello",
    imports: str = "",
    more: str = "''",
    syscalls: Sequence[str] = (),
    calls: Sequence[tuple[str, Mapping[str, object]]] = (),
    requires: Sequence[str] = ("llmasos",),
) -> Path:
    """A wheel of an app that greets and makes some calls."""
    text = GREETER.format(
        name=name, greeting=greeting, imports=imports, more=more, syscalls=list(syscalls),
        calls=list(calls),
    )  # fmt: skip
    files = {f"{name}_app.py": text}
    apps = {name: f"{name}_app:main"}
    return wheel(folder, name, version, files=files, apps=apps, requires=requires)

"""Which of a process's folders a path is in: its own, or a mount, whose paths are written `name:path`.

A driver of files is wrapped by `in_mount`: it then sees the one folder that its paths are in as its root, and
knows nothing of others. Writing to a folder that is mounted read-only is refused here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llmasos.kernel.abi import Capabilities, Mount
from llmasos.kernel.errors import InvalidArguments, PermissionDenied, SyscallError
from llmasos.kernel.syscall import Call
from llmasos.syscalls import _labels

PATHS = ("path", "to")
"""Arguments of file syscalls that are paths."""

Driver = Callable[..., Any]


def in_mount(*, writes: bool) -> Callable[[Driver], Driver]:
    """Have a driver serve the folder that its paths are in. One that `writes` is refused where that is
    read-only; a `path` in its result is written as the process would."""

    def decorate(driver: Driver) -> Driver:
        @functools.wraps(driver)
        def serve(call: Call, **arguments: Any) -> Any:
            allows, mount = call.capabilities, None
            if allows.mounts:
                mount, arguments = _of_one_mount(allows, arguments)
            if mount is not None:
                call = replace(call, capabilities=_seen_from(allows, mount))
            if writes and call.capabilities.read_only:
                where = f"The mount {mount.name}" if mount else "This process's folder"
                raise PermissionDenied(f"{where} is read-only for it; it may not be changed.")
            try:
                result = driver(call, **arguments)
            except SyscallError:
                for name in PATHS:
                    if isinstance(arguments.get(name), str):
                        _labels.read_hints(call, arguments[name])
                raise
            if mount is not None and isinstance(result, dict) and "path" in result:
                result["path"] = f"{mount.name}:{result['path']}"
            return result

        return serve

    return decorate


def _of_one_mount(
    allows: Capabilities, arguments: dict[str, Any]
) -> tuple[Mount | None, dict[str, Any]]:
    """The mount that all paths are in, and the arguments with the paths as they are there."""
    by_name = {mount.name: mount for mount in allows.mounts}
    mounts: set[Mount | None] = set()
    for name in PATHS:
        path = arguments.get(name)
        if not isinstance(path, str):
            continue
        prefix, colon, rest = path.partition(":")
        mount = by_name.get(prefix) if colon else None
        mounts.add(mount)
        if mount is not None:
            arguments = {**arguments, name: rest.lstrip("/") or "."}
    if len(mounts) > 1:
        raise InvalidArguments(
            "Both paths must be in the same folder; read the one, write the other."
        )
    return next(iter(mounts), None), arguments


def _seen_from(allows: Capabilities, mount: Mount) -> Capabilities:
    """The same with a mount as its only folder."""
    return replace(
        allows, root=mount.root, within=mount.within, read_only=mount.read_only, mounts=()
    )

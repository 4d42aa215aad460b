"""Verbs about text from outside: `taint list`, `taint mark`, `taint clear`, `taint show`.

Labels of files are in the home, so all but `taint show` need no kernel.
"""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from llmasos.kernel.errors import Failed, UsageError
from llmasos.kernel.taint import label
from llmasos.shell.arguments import Parser, pid
from llmasos.shell.environment import Environment
from llmasos.shell.home import home_folder
from llmasos.shell.plain import one_line
from llmasos.shell.tables import Column, Table
from llmasos.shell.verbs.verb import Verb, add_json

if TYPE_CHECKING:
    from llmasos.syscalls._labels import LabelStore

MAX_CLEARED_BYTES = 1 << 30


def _store(environment: Environment) -> LabelStore:
    from llmasos.syscalls._labels import LabelStore

    return LabelStore(home_folder(environment.flags.home))


async def list_(environment: Environment, args: Namespace) -> int:
    """Show which files hold text from outside."""
    found = await anyio.to_thread.run_sync(_store(environment).all)
    if args.json:
        environment.output.json(found)
        return 0
    rows = tuple((one_line(each.path), one_line(", ".join(each.labels))) for each in found)
    environment.output.table(Table((Column("FILE"), Column("FROM")), rows))
    return 0


def _configure_paths(parser: Parser) -> None:
    parser.add_argument("path", nargs="+", metavar="PATH")


def _configure_mark(parser: Parser) -> None:
    _configure_paths(parser)
    parser.add_argument(
        "--source", default="marked by hand", metavar="TEXT", help="where it came from"
    )


async def mark(environment: Environment, args: Namespace) -> int:
    """Say that files come from outside."""
    for path in args.path:
        key = _key(environment, path, must_exist=True)
        labels = [label("file", args.source)]
        data = await anyio.to_thread.run_sync(_content, key)
        await anyio.to_thread.run_sync(_store(environment).mark, key, labels, data)
    return 0


async def clear(environment: Environment, args: Namespace) -> int:
    """Say that files, and what is in folders, may be trusted as they are now."""
    store = _store(environment)
    for path in args.path:
        key = _key(environment, path, must_exist=False)
        await anyio.to_thread.run_sync(_clear, store, key)
    return 0


def _clear(store: LabelStore, key: bytes) -> None:
    inside = key.rstrip(b"/") + b"/"
    for each in store.all():
        if (found := os.fsencode(each.path)) == key or found.startswith(inside):
            _clear_content(store, found)
    _clear_content(store, key)
    store.clear(key, below=True)


def _clear_content(store: LabelStore, path: bytes) -> None:
    if not store.is_empty and (data := _content(path)) is not None:
        store.forget_content(data)


def _content(path: bytes) -> bytes | None:
    if not os.path.isfile(path):
        return None
    try:
        if os.path.getsize(path) > MAX_CLEARED_BYTES:
            raise UsageError(f"{os.fsdecode(path)} is larger than 1 GiB.")
        return Path(os.fsdecode(path)).read_bytes()
    except OSError as error:
        raise Failed(f"{os.fsdecode(path)} cannot be read: {error.strerror}.") from error


def _key(environment: Environment, path: str, *, must_exist: bool) -> bytes:
    whole = os.path.realpath(os.path.join(environment.root, os.path.expanduser(path)))
    if must_exist and not os.path.exists(whole):
        raise UsageError(f"There is no {path}.")
    return os.fsencode(whole)


def _configure_show(parser: Parser) -> None:
    parser.add_argument("pid", type=pid, metavar="PID")
    add_json(parser)


async def show(environment: Environment, args: Namespace) -> int:
    """Show which text from outside has reached a process."""
    process = await (await environment.sessions.running()).info(args.pid)
    if args.json:
        environment.output.json(process.taint)
        return 0
    for each in process.taint:
        environment.output.line(one_line(each))
    return 0


VERBS = (
    Verb("taint list", "List files that hold text from outside.", list_, add_json),
    Verb("taint mark", "Say that files come from outside.", mark, _configure_mark,
         completes=("path",)),
    Verb("taint clear", "Say that files may be trusted.", clear, _configure_paths,
         completes=("path",)),
    Verb("taint show", "Show what from outside reached a process.", show, _configure_show,
         completes=("pid",)),
)  # fmt: skip

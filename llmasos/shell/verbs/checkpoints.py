"""`checkpoint` and `restore`: a process as one file, and a process made of one."""

from __future__ import annotations

import getpass
import os
from argparse import Namespace

import anyio.to_thread

from llmasos.kernel.errors import NoKernel, UsageError
from llmasos.shell.arguments import Parser, pid
from llmasos.shell.environment import Environment
from llmasos.shell.home import home_folder
from llmasos.shell.records import records_of
from llmasos.shell.session import CheckpointRequest, RestoreRequest
from llmasos.shell.tables import size
from llmasos.shell.verbs.journal import attend
from llmasos.shell.verbs.run import folder
from llmasos.shell.verbs.verb import Verb, kernel_flags

PASSPHRASE = "LLMASOS_PASSPHRASE"


def _configure_checkpoint(parser: Parser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="write it there")
    parser.add_argument(
        "--pages", action="store_true", help="its K/V pages too: larger, and goes on at once"
    )
    parser.add_argument("--zstd", action="store_true", help="compressed by zstd")
    parser.add_argument(
        "--encrypt", action="store_true", help=f"with the passphrase in {PASSPHRASE}, or asked for"
    )
    parser.add_argument("pid", type=pid, metavar="PID")


async def checkpoint(environment: Environment, args: Namespace) -> int:
    """Write a process, live or finished, to one file."""
    from llmasos.shell.checkpoints import save_recorded

    passphrase = None
    if args.encrypt:
        passphrase = await _passphrase(environment, "Passphrase for the checkpoint: ")
        if not passphrase:
            raise UsageError(f"--encrypt needs a passphrase; set {PASSPHRASE}.")
    request = CheckpointRequest(
        _path(environment, args.output),
        pages=args.pages,
        compress=args.zstd,
        passphrase=passphrase,
    )
    try:
        session = await environment.sessions.running()
    except NoKernel:
        with records_of(environment) as records:
            history = await anyio.to_thread.run_sync(records.history, args.pid)
            home = home_folder(environment.flags.home)
            num_bytes = await anyio.to_thread.run_sync(
                save_recorded, history, records.home_id, request, home
            )
    else:
        num_bytes = await session.checkpoint(args.pid, request)
    environment.output.note(f"Process {args.pid} is in {args.output} ({size(num_bytes)}).")
    return 0


def _configure_restore(parser: Parser) -> None:
    parser.add_argument(
        "-d", "--detach", action="store_true", help="print the pid and let it run on its own"
    )
    parser.add_argument("--force", action="store_true", help="replace files that are different")
    parser.add_argument("--title", default="", help="what `ps` calls it")
    parser.add_argument(
        "--root", metavar="FOLDER",
        help="the files it may see, and where its own go (default: the current folder)",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE")


async def restore(environment: Environment, args: Namespace) -> int:
    """Make a process of a checkpoint and attend to it; exit with its code."""
    from llmasos.kernel.checkpoint import is_encrypted
    from llmasos.shell.checkpoints import read_file

    path = _path(environment, args.file)
    head = (await anyio.to_thread.run_sync(read_file, path))[:64]
    passphrase = None
    if is_encrypted(head):
        passphrase = await _passphrase(environment, f"Passphrase of {args.file}: ")
    request = RestoreRequest(
        path,
        folder(environment, args.root),
        force=args.force,
        passphrase=passphrase,
        title=args.title,
        foreground=not args.detach,
    )
    session = await environment.sessions.needed(kernel_flags(args, environment.flags))
    target = await session.restore(request)
    if args.detach:
        environment.output.line(str(target))
        return 0
    return await attend(environment, session, target)


def _path(environment: Environment, path: str) -> str:
    return os.path.abspath(os.path.join(environment.root, os.path.expanduser(path)))


async def _passphrase(environment: Environment, prompt: str) -> str | None:
    if given := os.environ.get(PASSPHRASE):
        return given
    if not environment.stdin_is_terminal:
        return None
    return await anyio.to_thread.run_sync(getpass.getpass, prompt)


VERBS = (
    Verb(
        "checkpoint", "Write a process to a file.", checkpoint, _configure_checkpoint,
        completes=("pid",),
    ),
    Verb(
        "restore", "Make a process of a checkpoint.", restore, _configure_restore,
        boots=True, completes=("path",),
    ),
)  # fmt: skip

"""Verbs about the kernel as a whole: `up`, `down`, `status`, `top`."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from llmasos.kernel.errors import ConfigError, KernelLost
from llmasos.shell.arguments import Parser, count, seconds
from llmasos.shell.attach import check_flags, flag_values
from llmasos.shell.daemon import Daemon, answers
from llmasos.shell.environment import Environment
from llmasos.shell.home import home_folder, is_locked, kernel_pid
from llmasos.shell.interrupts import ENDING
from llmasos.shell.tables import status_table
from llmasos.shell.tasks import first_of
from llmasos.shell.top import watch_live, watch_plain
from llmasos.shell.verbs.verb import Verb, add_json, kernel_flags

if TYPE_CHECKING:
    from llmasos.shell.settings import Settings

DOWN_S = 20.0


def _configure_up(parser: Parser) -> None:
    parser.add_argument("-d", "--detach", action="store_true", help="return once it runs")
    parser.add_argument(
        "--while-needed", action="store_true",
        help="end once nobody is attached and nothing runs",
    )  # fmt: skip


async def up(environment: Environment, args: Namespace) -> int:
    """Boot a kernel that stays: here until it is told to end, or in the background (`-d`)."""
    from llmasos.shell.models import ensure_model
    from llmasos.shell.settings import load_settings

    flags = kernel_flags(args, environment.flags)
    settings = load_settings(flag_values(flags))
    if args.detach and await answers(settings.home):
        await check_flags(await environment.sessions.running(), flags, environment.output.note)
        await (await environment.sessions.running()).keep()
        environment.output.note(f"A kernel runs in {settings.home} already; it stays.")
        return 0
    await ensure_model(settings, environment.output)
    if not args.detach:
        return await _serve(environment, settings, while_needed=args.while_needed)
    daemon = Daemon.start(settings.home, flags, while_needed=args.while_needed)
    with environment.output.passing(f"loading {settings.model} ..."):
        await daemon.until_ready()
    return 0


async def _serve(environment: Environment, settings: Settings, *, while_needed: bool) -> int:
    """Host a kernel until `down`, a signal or (with `while_needed`) nobody needs it."""
    from llmasos.shell.hosting import hosted

    async with hosted(settings) as host:
        environment.output.note(f"{settings.model} is up in {settings.home}.")
        ends: list[Callable[[], Coroutine[Any, Any, object]]] = [host.session.stopping.wait]
        if while_needed:
            ends.append(
                partial(host.server.until_unneeded, lambda: host.session.kept, _is_orphan())
            )
        with environment.interrupts.taken_by(lambda _: host.session.stopping.set(), signals=ENDING):
            await first_of(ends)
        if not host.session.is_ended:
            await host.session.shutdown(suspend=True)
        environment.output.note("Going down.")
    return 0


def _is_orphan() -> Callable[[], bool]:
    """Tells whether the process that started this one has ended since."""
    parent = os.getppid()
    return lambda: os.getppid() != parent


def _configure_down(parser: Parser) -> None:
    parser.add_argument(
        "--suspend", action="store_true", help="let what runs come back with the next kernel"
    )


async def down(environment: Environment, args: Namespace) -> int:
    """End the running kernel and, unless told otherwise, everything in it; wait until it has gone."""
    home = home_folder(environment.flags.home)
    session = await environment.sessions.running()
    with suppress(KernelLost):
        await session.shutdown(suspend=args.suspend)
    with anyio.move_on_after(DOWN_S):
        while is_locked(home):
            await anyio.sleep(0.02)
        return 0
    raise ConfigError(
        f"The kernel (pid {kernel_pid(home)}) was told to end and has not within {DOWN_S:g} s;"
        " `kill -9` it if it hangs."
    )


def _configure_status(parser: Parser) -> None:
    parser.add_argument(
        "--prometheus", action="store_true", help="everything it counts, as Prometheus reads it"
    )
    add_json(parser)


async def status(environment: Environment, args: Namespace) -> int:
    """Show the running kernel."""
    if args.prometheus:
        session = await environment.sessions.running()
        await environment.output.stream(await session.metrics())
        return 0
    state = await (await environment.sessions.running()).status()
    if args.json:
        environment.output.json(state)
    else:
        environment.output.table(status_table(state))
    return 0


def _configure_top(parser: Parser) -> None:
    parser.add_argument("-n", "--count", type=count, metavar="N", help="end after N rounds")
    parser.add_argument(
        "-i", "--interval", type=seconds, default=1.0, metavar="TIME", help="between rounds (1s)"
    )
    add_json(parser)


async def top(environment: Environment, args: Namespace) -> int:
    """Show the kernel and its processes, live on a terminal, else `--count` rounds (1)."""
    session = await environment.sessions.running()
    live = environment.output.terminal and environment.stdin_is_terminal and not args.json
    watch = watch_live if live else watch_plain
    await watch(environment, session, interval_s=args.interval, count=args.count, json=args.json)
    return 0


VERBS = (
    Verb("up", "Boot a kernel that stays.", up, _configure_up, boots=True, outside_only=True),
    Verb("down", "End the running kernel.", down, _configure_down),
    Verb("status", "Show the running kernel.", status, _configure_status),
    Verb("top", "Show processes live.", top, _configure_top),
)

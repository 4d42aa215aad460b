"""`run`: an app in the foreground, its stdin and stdout ours; detached with `-d`."""

from __future__ import annotations

import argparse
import functools
import json
import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmasos.kernel.abi import AppInfo, Pid
from llmasos.kernel.errors import NoKernel, NoSuchApp, UsageError
from llmasos.shell.arguments import (
    Parser,
    count,
    did_you_mean,
    niceness,
    seconds,
    temperature,
)
from llmasos.shell.asking import APPROVES
from llmasos.shell.environment import Environment
from llmasos.shell.foreground import Attention, exit_code
from llmasos.shell.grants import (
    add_grant_flags,
    add_limit_flags,
    capabilities_of,
    limits_of,
)
from llmasos.shell.params import parse_params
from llmasos.shell.plain import one_line
from llmasos.shell.session import KernelSession, RuleRequest, SpawnRequest
from llmasos.shell.verbs.verb import Verb, kernel_flags


def add_process_flags(parser: Parser) -> None:
    """The flags that `run` and `ask` share."""
    parser.add_argument("--max-tokens", type=count, metavar="N", help="tokens a reply may have")
    parser.add_argument("--temperature", type=temperature, metavar="T", help="0 is greedy")
    parser.add_argument("--seed", type=int, metavar="N", help="same seed, same text")
    parser.add_argument("--timeout", type=seconds, metavar="TIME", help="end it after 30s, 2m ...")
    parser.add_argument("--nice", type=niceness, default=0, metavar="N", help="-20 to 19")
    parser.add_argument(
        "--adapter", metavar="NAME", help="what the model is changed by; `none`: by nothing"
    )
    parser.add_argument("--title", default="", help="what `ps` calls it")
    parser.add_argument(
        "--root", metavar="FOLDER", help="the files it may see (default: the current folder)"
    )
    for decision in ("ask", "deny"):
        parser.add_argument(
            f"--{decision}", dest="rules", action="append", metavar="PATTERN", default=[],
            type=functools.partial(RuleRequest, decision), help=f"{decision} calls such as fs.*",
        )  # fmt: skip
    parser.add_argument(
        "--approve", choices=APPROVES, default="ask",
        help="questions: ask here (default), wait for `llmasos approve` elsewhere, or deny",
    )  # fmt: skip
    parser.add_argument(
        "--untrusted", action="store_true", help="what it is given comes from outside: label it so"
    )
    add_grant_flags(parser)
    add_limit_flags(parser)
    parser.set_defaults(background=False)


def request_for(
    environment: Environment, app: AppInfo, args: Namespace, params: Mapping[str, Any]
) -> SpawnRequest:
    """A request with the flags that `add_process_flags` added. Raises `UsageError`."""
    given = {"max_tokens": args.max_tokens, "temperature": args.temperature}
    chosen = {name: value for name, value in given.items() if value is not None}
    if unknown := chosen.keys() - app.parameters.get("properties", {}):
        flag = sorted(unknown)[0].replace("_", "-")
        raise UsageError(f"App {app.name} has no parameter for --{flag}.")
    return SpawnRequest(
        app.name,
        {**params, **chosen},
        title=args.title,
        capabilities=capabilities_of(
            folder(environment, args.root), functools.partial(folder, environment), args
        ),
        limits=limits_of(args, wall_s=args.timeout),
        nice=args.nice,
        seed=args.seed,
        taint=("given:on the command line",) if args.untrusted else (),
        rules=tuple(args.rules),
        adapter=args.adapter,
    )


def folder(environment: Environment, path: str | None) -> str:
    """An absolute folder, taken from the shell's own. Raises `UsageError` where there is none."""
    chosen = os.path.join(environment.root, os.path.expanduser(path or "."))
    if not os.path.isdir(chosen):
        raise UsageError(f"There is no folder {path}.")
    return os.path.realpath(chosen)


async def app_named(session: KernelSession, name: str) -> AppInfo:
    """An app's description. Raises `NoSuchApp`."""
    apps = {app.name: app for app in await session.apps()}
    if name not in apps:
        raise NoSuchApp(
            f"There is no app {name!r}{did_you_mean(name, apps)}; `app list` shows those there are."
        )
    return apps[name]


def _configure(parser: Parser) -> None:
    parser.usage = f"{parser.prog} [-d] [flags] APP [ARGS ...]"
    parser.add_argument(
        "-d", "--detach", action="store_true", help="print the pid and let it run on its own"
    )
    parser.add_argument("--params", type=_json_object, metavar="JSON", help="parameters as JSON")
    add_process_flags(parser)
    parser.add_argument("app", metavar="APP")
    parser.add_argument(
        "args", nargs=argparse.REMAINDER, metavar="ARGS",
        help="its parameters: VALUE, NAME=VALUE or --NAME VALUE",
    )  # fmt: skip


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value


async def run(environment: Environment, args: Namespace) -> int:
    """Spawn an app and attend to it; exit with its code."""
    session = await _session(environment, args)
    app = await app_named(session, args.app)
    params = {**(args.params or {}), **parse_params(app, args.args)}
    await _tell_if_made_for_another(environment, session, app)
    request = request_for(environment, app, args, params)
    if args.detach or args.background:
        pid = await in_back(environment, session, request, detached=args.detach)
        environment.output.line(str(pid))
        return 0
    has_stdin = environment.stdin_fd is not None
    pid = await session.spawn(replace(request, stdin=has_stdin))
    attention = Attention(environment, session, pid, args.approve)
    status = await attention.until_exit(stdin=has_stdin)
    return exit_code(environment, status)


async def _tell_if_made_for_another(
    environment: Environment, session: KernelSession, app: AppInfo
) -> None:
    """Say so where an app prefers models that this kernel does not have."""
    if app.models and (model := (await session.status()).model) not in app.models:
        environment.output.note(
            f"{app.name} is made for {one_line(', '.join(app.models))}, and this kernel has {model}."
        )


async def in_back(
    environment: Environment, session: KernelSession, request: SpawnRequest, *, detached: bool
) -> Pid:
    """Spawn without attending: a job of this shell, or `detached` from it altogether."""
    pid = await session.spawn(replace(request, foreground=not detached))
    if environment.jobs is not None:
        environment.jobs.add(pid, request.title or request.app, detached=detached)
    return pid


async def _session(environment: Environment, args: Namespace) -> KernelSession:
    if not (args.detach and environment.jobs is None):
        return await environment.sessions.needed(kernel_flags(args, environment.flags))
    try:
        return await environment.sessions.running()
    except NoKernel as error:
        raise NoKernel(
            "A detached process needs a kernel that stays; start one with `llmasos up -d`."
        ) from error


VERBS = (
    Verb(
        "run", "Run an app; its input and output are yours.", run, _configure,
        boots=True, jobs=True, completes=("app", "path"),
    ),
)  # fmt: skip

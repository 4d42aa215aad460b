"""`script`: run a file of shell lines."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from llmasos.kernel.errors import UsageError
from llmasos.shell.arguments import Parser
from llmasos.shell.environment import Environment
from llmasos.shell.stdin import everything
from llmasos.shell.verbs.verb import Verb, kernel_flags

MAX_SCRIPT_CHARS = 10_000_000


def _configure(parser: Parser) -> None:
    parser.add_argument("--echo", action="store_true", help="show each line before it runs")
    parser.add_argument("--times", action="store_true", help="show what each line took")
    parser.add_argument("file", metavar="FILE", help="the script; `-` is stdin")
    parser.add_argument("args", nargs="*", metavar="ARGS", help="$1, $2 ... in the script")


async def script(environment: Environment, args: Namespace) -> int:
    """Run a script; the exit code is that of the line that failed, or 0."""
    from llmasos.shell.script_run import ScriptRun

    text = await _read(environment, args.file)
    run = ScriptRun(environment, args.file, args.args, echo=args.echo, times=args.times)
    lines = run.parse(text)
    await environment.sessions.needed(kernel_flags(args, environment.flags))
    return await run.run(lines)


async def _read(environment: Environment, file: str) -> str:
    if file == "-":
        if environment.stdin_fd is None:
            raise UsageError("There is no stdin to read a script from.")
        return await everything(environment.stdin_fd, max_chars=MAX_SCRIPT_CHARS)
    try:
        return Path(environment.root, file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text.") from error
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UsageError(f"The script {file} cannot be read ({reason}).") from error


VERBS = (
    Verb(
        "script", "Run a file of shell lines.", script, _configure,
        boots=True, completes=("path",),
    ),
)  # fmt: skip

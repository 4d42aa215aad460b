"""The command line: finds the verb, does it, and turns what happened into an exit code.

0 done, 1 the process or the command failed, 2 bad usage, 124 a limit or deadline was reached,
128+n ended by signal n. Errors are one sentence each on stderr, never a traceback unless
LLMASOS_DEBUG=1.
"""

from __future__ import annotations

import os
import signal
import sys
from argparse import REMAINDER
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import anyio

import llmasos
from llmasos.kernel.errors import UsageError
from llmasos.shell.arguments import HelpWanted, Parser
from llmasos.shell.attach import CommandSessions
from llmasos.shell.environment import Environment, KernelFlags
from llmasos.shell.guard import as_told, exit_code_of
from llmasos.shell.interrupts import ENDING, Interrupts
from llmasos.shell.output import Output, standard_output
from llmasos.shell.tasks import in_background
from llmasos.shell.verbs.table import VERBS, find_verb, verb_list
from llmasos.shell.verbs.verb import add_kernel_flags, kernel_flags

PROGRAM = "llmasos "
DESCRIPTION = """\
An operating system for language models: processes, paged memory, syscalls.

Without a verb it opens the interactive shell, where the same verbs begin with `/`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. The entry point of `llmasos`."""
    output = standard_output()
    try:
        code = _main(sys.argv[1:] if argv is None else argv, output)
        output.flush()
    except BrokenPipeError:  # `| head` has seen enough
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except OSError as error:  # stdout is full or gone
        output.note(f"The output cannot be written: {os.strerror(error.errno or 0)}.")
        code = 1
    _forget_unwritten()
    return code


def _main(argv: Sequence[str], output: Output) -> int:
    try:
        command = understand(list(argv))
    except HelpWanted as wanted:
        output.line(str(wanted).rstrip())
        return 0
    except UsageError as error:
        output.error(error)
        return exit_code_of(error)
    return anyio.run(_perform, command, output)


@dataclass(frozen=True, slots=True)
class Command:
    """What a command line asks for."""

    flags: KernelFlags
    run: Callable[[Environment], Awaitable[int]]


def understand(argv: list[str]) -> Command:
    """What these words ask for. Raises `UsageError`, `HelpWanted`."""
    args = _parser().parse(argv)
    flags = kernel_flags(args, KernelFlags())
    if args.version:
        raise HelpWanted(f"llmasos {llmasos.__version__}")
    if not args.words:
        return Command(flags, _interactive)
    verb, words = find_verb(args.words, VERBS, program=PROGRAM)
    parsed = verb.parse(words, program=PROGRAM)
    return Command(kernel_flags(parsed, flags), lambda environment: verb.run(environment, parsed))


async def _interactive(environment: Environment) -> int:
    if not (environment.stdin_is_terminal and environment.output.terminal):
        raise UsageError(
            "The interactive shell needs a terminal; use `llmasos ask` or `llmasos script FILE`."
        )
    from llmasos.shell.repl import interactive

    return await interactive(environment)


def _parser() -> Parser:
    parser = Parser(
        "llmasos",
        f"{DESCRIPTION}\nverbs:\n{verb_list(VERBS)}\n`llmasos VERB --help` tells more.",
        usage="llmasos [flags] [VERB ...]",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    add_kernel_flags(parser, booting=True)
    parser.add_argument("words", nargs=REMAINDER, help="a verb and its arguments")
    return parser


async def _perform(command: Command, output: Output) -> int:
    """Do it, ended by any signal that nothing in the foreground takes."""
    interrupts = Interrupts()
    killed_by: list[int] = []
    code = 1
    with anyio.CancelScope() as scope:

        def end(signum: int) -> None:
            killed_by.append(signum)
            scope.cancel()

        with interrupts.taken_by(end, signals=ENDING):
            async with in_background(interrupts.listen):
                code = await _exit_code(command, output, interrupts)
    return 128 + killed_by[0] if killed_by else code


async def _exit_code(command: Command, output: Output, interrupts: Interrupts) -> int:
    codes: list[int] = []

    async def work() -> None:
        async with AsyncExitStack() as stack:
            sessions = CommandSessions(stack, command.flags, output=output)
            codes.append(await command.run(_environment(command, output, interrupts, sessions)))

    error = await as_told(work)
    if error is None:
        return codes[0]
    output.error(error)
    return exit_code_of(error)


def _environment(
    command: Command, output: Output, interrupts: Interrupts, sessions: CommandSessions
) -> Environment:
    try:
        stdin_fd: int | None = sys.stdin.fileno()
    except (AttributeError, ValueError, OSError):  # there is none, or it is closed
        stdin_fd = None
    return Environment(
        output=output,
        interrupts=interrupts,
        sessions=sessions,
        root=os.getcwd(),
        flags=command.flags,
        stdin_fd=stdin_fd,
        stdin_is_terminal=stdin_fd is not None and os.isatty(stdin_fd),
    )


def _forget_unwritten() -> None:
    """Keep the interpreter from trying again at exit to write what nobody can take."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())

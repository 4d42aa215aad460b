"""Verbs that only scripts have: `set`, `echo`, `expect`, `fails`, `sleep`, `times`, `wait`, `exit`."""

from __future__ import annotations

import argparse
import re
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import anyio

from llmasos.kernel.errors import UsageError
from llmasos.shell.arguments import Parser, pid, seconds
from llmasos.shell.environment import Environment
from llmasos.shell.guard import as_told
from llmasos.shell.plain import one_line
from llmasos.shell.script import ScriptState
from llmasos.shell.tables import Column, Table, duration
from llmasos.shell.verbs import processes
from llmasos.shell.verbs.verb import Verb, add_json


@dataclass(frozen=True, slots=True)
class ScriptVerbs:
    """The verbs of one script run. `perform` does the words of another verb."""

    state: ScriptState
    perform: Callable[[Sequence[str]], Awaitable[int]]

    def all(self) -> tuple[Verb, ...]:
        """Every one of them."""
        return (
            Verb("echo", "Print words.", self._echo, _configure_words),
            Verb("expect", "Fail unless the latest output has a text.", self._expect, _configure_expect),
            Verb("fails", "Succeed where another verb fails.", self._fails, _configure_words),
            Verb("set", "Change an option: errexit, echo, times.", self._set, _configure_set),
            Verb("sleep", "Wait so long.", _sleep, _configure_sleep),
            Verb("times", "Show what each line took.", self._times, add_json),
            Verb("wait", "Wait for processes, or for all in the background.", self._wait, _configure_wait),
            Verb("exit", "End the script.", self._exit, _configure_exit),
        )  # fmt: skip

    async def _echo(self, environment: Environment, args: Namespace) -> int:
        environment.output.line(" ".join(args.words))
        return 0

    async def _expect(self, environment: Environment, args: Namespace) -> int:
        missed = [text for text in args.text if self._is_there(text, args) == args.absent]
        if not missed:
            return 0
        wanted = "should not have been" if args.absent else "was expected"
        said = one_line(self.state.output, max_chars=300) or "nothing"
        environment.output.note(f"{missed[0]!r} {wanted} in: {said}")
        return 1

    def _is_there(self, text: str, args: Namespace) -> bool:
        pattern = text if args.regex else re.escape(text)
        flags = re.IGNORECASE if args.ignore_case else re.NOFLAG
        try:
            return re.search(pattern, self.state.output, flags) is not None
        except re.error as error:
            raise UsageError(f"{text!r} is no regular expression: {error}.") from error

    async def _fails(self, environment: Environment, args: Namespace) -> int:
        if not args.words:
            raise UsageError("/fails needs a verb after it.")
        codes: list[int] = []

        async def work() -> None:
            codes.append(await self.perform([args.words[0].removeprefix("/"), *args.words[1:]]))

        if (error := await as_told(work)) is not None:
            environment.output.error(error)
        elif codes == [0]:
            environment.output.note(f"{' '.join(args.words)} should have failed and did not.")
            return 1
        return 0

    async def _set(self, environment: Environment, args: Namespace) -> int:
        del environment
        self.state.options[args.option] = args.value == "on"
        return 0

    async def _exit(self, environment: Environment, args: Namespace) -> int:
        del environment
        self.state.exit_code = args.code
        return 0

    async def _times(self, environment: Environment, args: Namespace) -> int:
        if args.json:
            steps = [
                {"line": s.line.number, "text": s.line.source, "seconds": s.seconds, "code": s.code}
                for s in self.state.steps
            ]
            environment.output.json(steps)
            return 0
        columns = (Column("LINE", right=True), Column("TIME", right=True), Column("DID"))
        rows = tuple(
            (
                str(step.line.number),
                duration(step.seconds),
                one_line(step.line.source, max_chars=90),
            )
            for step in self.state.steps
            if step.line.is_work
        )
        environment.output.table(Table(columns, rows))
        return 0

    async def _wait(self, environment: Environment, args: Namespace) -> int:
        args.pid = args.pid or list(self.state.background)
        self.state.background[:] = [pid for pid in self.state.background if pid not in args.pid]
        return await processes.wait(environment, args)


async def _sleep(environment: Environment, args: Namespace) -> int:
    del environment
    await anyio.sleep(args.time)
    return 0


def _configure_words(parser: Parser) -> None:
    parser.add_argument("words", nargs=argparse.REMAINDER)


def _configure_expect(parser: Parser) -> None:
    parser.add_argument("-i", "--ignore-case", action="store_true")
    parser.add_argument("--not", dest="absent", action="store_true", help="fail if it is there")
    parser.add_argument("--regex", action="store_true", help="regular expressions")
    parser.add_argument("text", nargs="+", metavar="TEXT")


def _configure_set(parser: Parser) -> None:
    parser.add_argument("option", choices=("errexit", "echo", "times"))
    parser.add_argument("value", choices=("on", "off"))


def _configure_sleep(parser: Parser) -> None:
    parser.add_argument("time", type=seconds, metavar="TIME")


def _configure_wait(parser: Parser) -> None:
    parser.add_argument("pid", nargs="*", type=pid, metavar="PID")
    add_json(parser)


def _configure_exit(parser: Parser) -> None:
    parser.add_argument("code", nargs="?", type=int, default=0, choices=range(256), metavar="CODE")

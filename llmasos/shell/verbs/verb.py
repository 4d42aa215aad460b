"""What a verb is, and how its words become arguments."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from llmasos.shell.arguments import Parser
from llmasos.shell.environment import Environment, KernelFlags

Run = Callable[[Environment, argparse.Namespace], Awaitable[int]]


def _nothing(parser: Parser) -> None:
    del parser


def _as_they_are(words: Sequence[str]) -> Sequence[str]:
    return words


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: `run` does it and returns the exit code."""

    name: str
    """One word, or two for a verb of a group (`model pull`)."""
    summary: str
    run: Run
    configure: Callable[[Parser], None] = _nothing
    """Adds its arguments to its parser."""
    boots: bool = False
    """May boot a kernel, so it takes the kernel's flags."""
    jobs: bool = False
    """May end in `&` in the interactive shell and in scripts."""
    completes: tuple[str, ...] = ()
    """What its words are, for completion: `pid`, `app`, `model`, `path`, `signal`; the last one
    repeats."""
    outside_only: bool = False
    """Makes sense on the command line alone."""
    prepare: Callable[[Sequence[str]], Sequence[str]] = _as_they_are
    """Changes its words before they are parsed."""

    def parser(self, program: str) -> Parser:
        """Its parser; `program` is `llmasos ` or `/`."""
        parser = Parser(f"{program}{self.name}", self.summary)
        self.configure(parser)
        if program != "/":
            add_kernel_flags(parser, booting=self.boots)
        return parser

    def parse(self, words: Sequence[str], *, program: str) -> argparse.Namespace:
        """Its arguments. Raises `UsageError`, `HelpWanted`."""
        return self.parser(program).parse(self.prepare(words))


def add_kernel_flags(parser: argparse.ArgumentParser, *, booting: bool) -> None:
    """The flags about the kernel itself: all of them where a kernel may boot, else its home."""
    group = parser.add_argument_group("kernel")
    group.add_argument("--home", metavar="FOLDER", help="the kernel's home (or LLMASOS_HOME)")
    if not booting:
        return
    group.add_argument("--model", metavar="NAME", help="a model of the store (default: smollm2)")
    group.add_argument("--kv-memory", metavar="SIZE", help="memory for contexts, such as 2GiB")
    group.add_argument("--dtype", metavar="TYPE", help="auto, bf16, fp32 or int8")
    group.add_argument("--threads", metavar="N", type=int, help="threads that compute")


def kernel_flags(args: argparse.Namespace, base: KernelFlags) -> KernelFlags:
    """The kernel's flags of a command, over those given before the verb."""
    names = ("home", "model", "kv_memory", "dtype", "threads")
    given = {name: getattr(args, name, None) for name in names}
    return KernelFlags(
        **{n: getattr(base, n) if value is None else value for n, value in given.items()}
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """The flag that every verb with a table has."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")

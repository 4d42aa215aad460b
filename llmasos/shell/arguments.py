"""Command lines to arguments: argparse, made to raise instead of exiting, and to suggest.

The command line, the interactive shell and scripts all parse with this, so an error has the same
words everywhere and none of them ends the shell.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from llmasos.kernel.abi import Pid, Signal
from llmasos.kernel.errors import UsageError


class HelpWanted(Exception):
    """`--help` was given; carries the text."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UsageError` and `HelpWanted` and never prints or exits."""

    def __init__(self, prog: str, description: str, **options: Any) -> None:
        super().__init__(
            prog=prog,
            description=description,
            add_help=False,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )
        self.add_argument("-h", "--help", action=_Help, help="show this help")

    def error(self, message: str) -> NoReturn:
        """Called by argparse for anything it does not understand."""
        text = re.sub(r"^argument (.*?): ", r"\1: ", message)
        raise UsageError(f"{self.prog}: {text}; see `{self.prog} --help`.")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Arguments of these words. Raises `UsageError`, `HelpWanted`."""
        args, rest = self.parse_known_args(list(words))
        if not rest:
            return args
        if rest[0].startswith("-") and rest[0] != "-":
            flag = rest[0].partition("=")[0]
            hint = did_you_mean(flag, self.flags())
            raise UsageError(f"{self.prog} has no flag {flag}{hint}; see `{self.prog} --help`.")
        raise UsageError(f"{self.prog} does not take {rest[0]!r}; see `{self.prog} --help`.")

    def flags(self) -> list[str]:
        """Every flag it knows."""
        return sorted(self._option_string_actions)


class _Help(argparse.Action):
    """Raises the help text."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Called by argparse when it meets the flag."""
        raise HelpWanted(parser.format_help())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` where one of the known words is near, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def pid(text: str) -> Pid:
    """A pid."""
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a pid (a whole number from 1)")
    return Pid(int(text))


def moment(text: str) -> tuple[Pid, bool, int | None]:
    """`3`; `3@17`, a process after its first 17 events; `3@`, as it is now. The flag is whether
    there is an `@`."""
    number, at, until = text.partition("@")
    return pid(number), bool(at), count(until) if until else None


def signal(text: str) -> Signal:
    """A signal by name, with or without SIG, or by number."""
    name = text.upper().removeprefix("SIG")
    if name in Signal.__members__:
        return Signal[name]
    if text.isdecimal() and int(text) in set(Signal):
        return Signal(int(text))
    known = ", ".join(Signal.__members__)
    raise argparse.ArgumentTypeError(f"there is no signal {text!r} (known: {known})")


def seconds(text: str) -> float:
    """A time above zero: `30`, `1.5`, `500ms`, `30s`, `2m`, `1h`."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)(ms|s|m|h)?", text.strip())
    value = float(match[1]) * _UNITS[match[2]] if match else math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time (such as 30, 500ms or 2m)")
    return value


_UNITS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def count(text: str) -> int:
    """A whole number from 1."""
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def temperature(text: str) -> float:
    """A temperature from 0 (greedy) to 10."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text!r} is not a temperature from 0 to 10")
    return value


def niceness(text: str) -> int:
    """A niceness from -20 (first) to 19 (last)."""
    if not re.fullmatch(r"[+-]?[0-9]{1,3}", text) or not -20 <= int(text) <= 19:
        raise argparse.ArgumentTypeError(f"{text!r} is not a niceness from -20 to 19")
    return int(text)


def spread_signal(words: Sequence[str]) -> list[str]:
    """`kill -9 3` and `kill -TERM 3` as `kill -s 9 3`: argparse has no such flags."""
    return [
        part
        for index, word in enumerate(words)
        for part in (
            ("-s", word[1:])
            if index == 0 and re.fullmatch(r"-([0-9]+|[A-Z][A-Z0-9]+)", word)
            else (word,)
        )
    ]

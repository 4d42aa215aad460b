"""What could come next in a line of the interactive shell: a pure function of the line and a world.

It never touches a kernel or a terminal; `repl` feeds it what is known and shows what it returns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmasos.kernel.abi import AppInfo, ProcessInfo, Signal
from llmasos.shell.plain import one_line
from llmasos.shell.verbs.table import Verbs

ListFolder = Callable[[str], Sequence[tuple[str, bool]]]
"""Names in a folder, and whether each is a folder itself; empty where it cannot be read."""


@dataclass(frozen=True, slots=True)
class World:
    """What can be named in a line."""

    verbs: Verbs
    flags: Callable[[str], Sequence[str]]
    """The flags of a verb, by its name."""
    list_folder: ListFolder
    apps: Sequence[AppInfo] = ()
    processes: Sequence[ProcessInfo] = ()
    models: Sequence[str] = ()
    pullable: Callable[[], Sequence[str]] = tuple
    """Models that could be fetched; asked for only where one may be named."""
    root: str = "/"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A completion: `text` replaces the line from `start` on."""

    text: str
    start: int
    note: str = ""


def candidates(line: str, world: World) -> list[Candidate]:
    """What the text before the cursor could become. Plain text has no completions."""
    if not line.startswith("/") or line.startswith("//") or "\n" in line:
        return []
    words, start = _words(line)
    current = words[-1]
    if len(words) == 1:
        return _matching(current.removeprefix("/"), _verb_words(world, ""), 1)
    name, rest = _verb_of(words, world.verbs)
    group = words[0].removeprefix("/") + " "
    of_group = _verb_words(world, group) if len(words) == 2 else {}
    found = _matching(current, of_group, start)
    return found if name is None else found + _arguments(name, rest, world, start)


def _words(line: str) -> tuple[list[str], int]:
    """The words so far, the last being the one at the cursor, and where that one starts."""
    words: list[str] = []
    start, quote = 0, ""
    for position, char in enumerate(line):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == " " and line[position - 1 : position] != "\\":
            if position > start:
                words.append(line[start:position])
            start = position + 1
    return [*words, line[start:]], start


def _verb_of(words: Sequence[str], verbs: Verbs) -> tuple[str | None, list[str]]:
    """The verb of these words and the words after it; None while it is not whole."""
    first = words[0].removeprefix("/")
    pair = " ".join((first, *words[1:2]))
    if pair in verbs and len(words) > 2:
        return pair, list(words[2:])
    return (first, list(words[1:])) if first in verbs else (None, [])


def _verb_words(world: World, group: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name, verb in world.verbs.items():
        if name.startswith(group):
            word, _, more = name.removeprefix(group).partition(" ")
            found.setdefault(word, verb.summary if not more else f"{word} ...")
    return found


def _arguments(name: str, rest: Sequence[str], world: World, start: int) -> list[Candidate]:
    current, before = rest[-1], rest[:-1]
    if current.startswith("-"):
        return _matching(current, dict.fromkeys(world.flags(name), ""), start)
    kinds = world.verbs[name].completes
    if not kinds:
        return []
    position = sum(not word.startswith("-") for word in before)
    kind = kinds[min(position, len(kinds) - 1)]
    if kind == "path":
        named = _parameters(before, world) if name == "run" else {}
        return _matching(current, named, start) or list(_paths(current, start, world))
    return _matching(current, _names(kind, before, world), start)


def _parameters(before: Sequence[str], world: World) -> Mapping[str, str]:
    app = next((app for app in world.apps if app.name in before), None)
    properties = app.parameters.get("properties", {}) if app else {}
    return {f"{name}=": str(schema.get("type", "")) for name, schema in properties.items()}


def _names(kind: str, before: Sequence[str], world: World) -> Mapping[str, str]:
    if kind == "pid":
        return {
            str(process.pid): one_line(f"{process.app} {process.title}", max_chars=40)
            for process in world.processes
            if str(process.pid) not in before
        }
    if kind == "app":
        return {app.name: one_line(app.summary, max_chars=60) for app in world.apps}
    if kind == "signal":
        return {number.name: "" for number in Signal}
    if kind == "verb":
        return {name.partition(" ")[0]: verb.summary for name, verb in world.verbs.items()}
    if kind == "model":
        return dict.fromkeys(world.models, "")
    return dict.fromkeys(world.pullable(), "") if kind == "source" else {}


def _matching(prefix: str, named: Mapping[str, str], start: int) -> list[Candidate]:
    return [
        Candidate(name, start, note)
        for name, note in sorted(named.items())
        if name.startswith(prefix)
    ]


def _paths(current: str, start: int, world: World) -> Iterator[Candidate]:
    """Files and folders that the word at the cursor begins, spelt so that they stay one word."""
    typed = current.lstrip("'\"").replace("\\ ", " ")
    folder, _, prefix = typed.rpartition("/")
    shown = folder + "/" if "/" in typed else ""
    where = os.path.join(world.root, os.path.expanduser(shown))
    for name, is_folder in sorted(world.list_folder(where)):
        if name.startswith(prefix) and (prefix.startswith(".") or not name.startswith(".")):
            yield Candidate(_quoted(shown + name + "/" * is_folder), start, "folder" * is_folder)


def _quoted(path: str) -> str:
    special = set(" '\"\\$#&")
    return "".join("\\" + char if char in special else char for char in path)

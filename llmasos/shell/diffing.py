"""Where two runs part: their beginnings, the first act that differs, what they printed.

Each task of an app is held against its twin, act by act: what it asked for and what came of it. Times,
measurements, the pids of children and how a stream was cut into pieces differ between any two runs and do
not count, nor does which of two tasks was a little faster.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from llmasos.kernel.journal.events import Event
from llmasos.kernel.journal.history import History
from llmasos.kernel.journal.holdings import OUTPUT_CALL
from llmasos.shell.plain import one_line

_NO_MATTER: Final = frozenset({"started_at", "title", "ppid", "from", "foreground", "interactive"})
_MEASURED: Final = frozenset({"first_token_s", "total_s", "tokens_cached"})
_PID_CALLS: Final = frozenset({"proc.spawn", "proc.fork"})


@dataclass(slots=True)
class _Act:
    """A call and what came of it; `number` is its event's, from 1."""

    number: int
    name: str
    args: Mapping[str, Any]
    outcome: tuple[Any, ...] = ("is under way",)

    @property
    def essence(self) -> tuple[Any, ...]:
        return self.name, self.args, self.outcome


_Acts = dict[str, list[_Act]]
"""By the path of the task."""


def differences(left: History, right: History) -> str:
    """The story of how two runs differ; empty where they do not."""
    lines = [*_beginnings(left, right), *_parting(left, right), *_outputs(left, right)]
    return "".join(f"{line}\n" for line in lines)


def _beginnings(left: History, right: History) -> Iterator[str]:
    names = sorted((left.spawn.keys() | right.spawn.keys()) - _NO_MATTER)
    for name in names:
        ours, theirs = left.spawn.get(name), right.spawn.get(name)
        if ours != theirs:
            yield f"They began with another {name}: {_short(ours)} and {_short(theirs)}"


def _parting(left: History, right: History) -> Iterator[str]:
    """Both sides of the first difference in any task."""
    ours, theirs = _acts(left), _acts(right)
    pairs = [
        pair
        for task in ours | theirs
        if (pair := _first_difference(ours.get(task, []), theirs.get(task, []))) is not None
    ]
    if pairs:
        first = min(pairs, key=lambda pair: (pair[0] or pair[1]).number)  # type: ignore[union-attr]
        for history, act in zip((left, right), first, strict=True):
            yield f"Process {history.pid} {_told(act)}"


def _first_difference(
    ours: list[_Act], theirs: list[_Act]
) -> tuple[_Act | None, _Act | None] | None:
    for mine, yours in zip_longest(ours, theirs):
        if mine is None or yours is None or mine.essence != yours.essence:
            return mine, yours
    return None


def _told(act: _Act | None) -> str:
    if act is None:
        return "does nothing more there"
    if act.name == OUTPUT_CALL:
        return f"parts at event {act.number}: prints {_short(act.args.get('text'))}"
    asked = f"{act.name}({_short(act.args)}) " if act.name else ""
    return f"parts at event {act.number}: {asked}{_told_outcome(act.outcome)}"


def _told_outcome(outcome: tuple[Any, ...]) -> str:
    return " ".join([outcome[0], *map(_short, outcome[1:])])


def _acts(history: History) -> _Acts:
    acts: _Acts = {}
    calls: dict[str, _Act] = {}
    for number, event in enumerate(history.events, 1):
        kind = event[0]
        if kind == "begin":
            calls[event[1]] = _begun(acts.setdefault(_task_of(event[1]), []), number, event)
        elif kind in ("done", "fail", "cancel") and event[1] in calls:
            calls[event[1]].outcome = _outcome(calls[event[1]].name, event)
        elif kind == "exit":
            acts.setdefault("", []).append(_Act(number, "", {}, ("ends with", *event[1:3])))
    return acts


def _begun(acts: list[_Act], number: int, event: Event) -> _Act:
    """A new act; what is printed in several pieces is one."""
    act = _Act(number, event[2], event[3])
    if act.name == OUTPUT_CALL and acts and acts[-1].name == OUTPUT_CALL:
        before = acts[-1]
        before.args = {"text": before.args["text"] + act.args["text"]}
        return before
    acts.append(act)
    return act


def _task_of(call: str) -> str:
    return call.rpartition("/")[0]


def _outcome(name: str, event: Event) -> tuple[Any, ...]:
    if event[0] == "fail":
        return ("fails", *event[2:4])
    if event[0] == "cancel":
        return ("is given up",)
    result = event[2]
    if name in _PID_CALLS:
        return ("gives a pid",)
    if isinstance(result, Mapping):
        result = {key: value for key, value in result.items() if key not in _MEASURED}
    return ("gives", result)


def _outputs(left: History, right: History) -> Iterator[str]:
    yield from difflib.unified_diff(
        "".join(left.holdings.output).splitlines(),
        "".join(right.holdings.output).splitlines(),
        f"output of {left.pid}",
        f"output of {right.pid}",
        lineterm="",
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return one_line(text, max_chars=400)

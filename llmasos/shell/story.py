"""A process's journal as a story for people: who asked what, what came of it, what the model wrote.

A pure function of the events. `text` and `markdown` are its two clothes; texts in it are not safe for a
terminal yet, which is `Output`'s work.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from llmasos.kernel.abi import Pid, Signal
from llmasos.kernel.journal.events import Event
from llmasos.kernel.journal.history import History
from llmasos.kernel.journal.holdings import GENERATE_CALL, INPUT_CALL, OUTPUT_CALL
from llmasos.shell.plain import one_line

MAX_SHOWN: Final = 240
PRINTS: Final = "prints"


@dataclass(slots=True)
class Moment:
    """Something that happened. `at_s` counts from the beginning."""

    number: int
    """Of its event in the journal, from 1: what `fork PID@N` takes."""
    at_s: float
    call: str
    """Of which call, by its name among the process's; empty where it is none's."""
    text: str
    body: str = ""
    """What the model wrote, the process printed or read; may have many lines."""


@dataclass(frozen=True, slots=True)
class Story:
    """A process's whole run."""

    title: str
    moments: tuple[Moment, ...]

    def text(self) -> str:
        """Lines for people, the times at their left."""
        width = max((len(moment.call) for moment in self.moments), default=0)
        lines = [self.title]
        for moment in self.moments:
            head = f"{moment.number:>6} {moment.at_s:>10.3f}s  {moment.call:<{width}}  "
            lines.append(f"{head}{moment.text}".rstrip())
            lines += [f"{' ' * len(head)}│ {line}" for line in moment.body.splitlines()]
        return "\n".join(lines) + "\n"

    def markdown(self) -> str:
        """The same as Markdown."""
        lines = [f"# {_escaped(self.title)}", ""]
        for moment in self.moments:
            call = f" `{moment.call}`" if moment.call else ""
            lines.append(f"- **{moment.at_s:.3f} s**{call} {_code(moment.text)}")
            if moment.body:
                lines += ["", *(f"  > {_code(line)}  " for line in moment.body.splitlines()), ""]
        return "\n".join(lines) + "\n"


def story_of(history: History) -> Story:
    """Tell a process's history."""
    teller = _Teller(history)
    for number, event in enumerate(history.events, 1):
        teller.take(number, event)
    return Story(_title(history.pid, history.spawn), tuple(teller.moments))


def _title(pid: Pid, spawn: Mapping[str, Any]) -> str:
    began = datetime.fromtimestamp(spawn["started_at"], UTC)
    called = f" ({one_line(spawn['title'], max_chars=80)})" if spawn["title"] else ""
    return (
        f"Process {pid}{called}: {spawn['app']} {spawn['version']} on {spawn['model']},"
        f" seed {spawn['seed']}, begun {began:%Y-%m-%d %H:%M:%S} UTC"
    )


class _Teller:
    """Takes events in order. One `tell_` method for each kind that is told."""

    def __init__(self, history: History) -> None:
        self.moments: list[Moment] = []
        self._began = float(history.spawn["started_at"])
        self._now = self._began
        self._names: dict[str, str] = {}
        self._asked: dict[str, Moment] = {}
        """Where each call was told of; what the model writes for it stands there too."""
        self._number = 0

    def take(self, number: int, event: Event) -> None:
        """Tell one event, where it is worth telling."""
        self._number = number
        tell = getattr(self, f"tell_{event[0]}", None)
        if tell is not None:
            tell(*event[1:])

    def _say(self, text: str, call: str = "", body: str = "") -> None:
        self.moments.append(Moment(self._number, self._now - self._began, call, text, body))

    def _see(self, at: float) -> None:
        self._now = max(self._now, float(at))

    def tell_spawn(self, spawn: Mapping[str, Any]) -> None:
        origin = spawn.get("from")
        past = f", from process {origin['pid']} at event {origin['events']}" if origin else ""
        self._say(f"begins{past}: {_short(spawn['params'])}")

    def tell_begin(
        self, call: str, name: str, args: Mapping[str, Any], _given: int, at: float
    ) -> None:
        self._see(at)
        self._names[call] = name
        last = self.moments[-1]
        if name == OUTPUT_CALL:
            if last.text != PRINTS:
                self._say(PRINTS, call)
            self.moments[-1].body += str(args.get("text", ""))
        elif name == INPUT_CALL:
            self._say("waits for a line", call)
        else:
            self._say(f"{name}({_arguments(args)})", call)
        self._asked[call] = self.moments[-1]

    def tell_tok(self, call: str, _token: int | None, text: str, *_: Any) -> None:
        self._asked[call].body += text

    def tell_done(self, call: str, result: Any, at: float) -> None:
        name = self._names.get(call, "")
        self._see(at)
        if name == OUTPUT_CALL:
            return
        if name == INPUT_CALL:
            text = "reads the end of its input" if result is None else "reads"
            if self.moments[-1] is self._asked.get(call):
                self.moments.pop()
            self._say(text, call, str(result or ""))
        else:
            self._close(call, _outcome(name, result))

    def tell_fail(self, call: str, code: str, message: str, at: float) -> None:
        self._see(at)
        self._close(call, f"fails, {code}: {one_line(message, max_chars=MAX_SHOWN)}")

    def _close(self, call: str, outcome: str) -> None:
        """What came of a call: on its own line, if nothing was told since."""
        if self.moments[-1] is self._asked.get(call):
            self.moments[-1].text += f" {outcome}"
        else:
            self._say(f"{self._names.get(call, '')} {outcome}".strip(), call)

    def tell_cancel(self, call: str, _given: int) -> None:
        self._close(call, "is given up")

    def tell_taint(self, labels: Sequence[str]) -> None:
        self._say(f"is reached by text from outside: {one_line(', '.join(labels))}")

    def tell_ask(self, call: str) -> None:
        self._say("waits for a person to allow it", call)

    def tell_verdict(self, call: str, allowed: bool, reason: str) -> None:
        why = f": {one_line(reason)}" if reason else ""
        self._say(f"is {'allowed' if allowed else 'denied'} by a person{why}", call)

    def tell_rule(self, rule: Mapping[str, Any]) -> None:
        self._say(f"may count on an answer: {rule.get('decision')} {_short(rule)}")

    def tell_plan(self, call: str, receipt: Any) -> None:
        self._say(f"is about to change the world: {_short(receipt)}", call)

    def tell_child(self, pid: int, call: str | None, _number: int) -> None:
        self._say(f"has a child, process {pid}", call or "")

    def tell_in(self, text: str | None) -> None:
        self._say("is sent the end of its input" if text is None else "is sent", "", text or "")

    def tell_sig(self, number: int) -> None:
        known = number in set(Signal)
        self._say(f"gets the signal {Signal(number).name if known else number}")

    def tell_nice(self, nice: int) -> None:
        self._say(f"has niceness {nice} now")

    def tell_front(self, is_interactive: bool) -> None:
        self._say("comes to the foreground" if is_interactive else "is in the background")

    def tell_cap(self, handle: int, line: Sequence[str], _allows: Any, call: str) -> None:
        source = f", derived from {line[-1]}" if line else ""
        self._say(f"is given the capability {handle}{source}", call)

    def tell_revoked(self, capability_ids: Sequence[str]) -> None:
        self._say(f"loses the capabilities {', '.join(capability_ids)}")

    def tell_limits(self, limits: Mapping[str, Any]) -> None:
        given = {name: value for name, value in limits.items() if value not in (None, [])}
        self._say(f"has the limits {json.dumps(given)} now")

    def tell_note(self, text: str) -> None:
        self._say("writes past the kernel", "", text)

    def tell_boot(self, at: float) -> None:
        self._see(at)
        self._say("a kernel goes on with it")

    def tell_exit(self, code: int, message: str, _signal: int | None) -> None:
        self._say(f"ends with exit code {code}{': ' if message else ''}{message}")


def _outcome(name: str, result: Any) -> str:
    if name == GENERATE_CALL and isinstance(result, Mapping):
        return (
            f"→ {len(result['token_ids'])} tokens, {result['finish']}"
            f" ({result['tokens_prompt']} before, {result['tokens_cached']} of them cached)"
        )
    return "" if result is None else f"→ {_short(result)}"


def _arguments(args: Mapping[str, Any]) -> str:
    shown = (f"{name}={_short(value)}" for name, value in args.items() if value is not None)
    return one_line(", ".join(shown), max_chars=MAX_SHOWN)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    return one_line(text, max_chars=MAX_SHOWN)


def _code(text: str) -> str:
    """Inline code, whatever is in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest or not text.strip() else f"{fence}{text}{fence}"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text)


def event_lines(events: Sequence[Event]) -> Iterator[str]:
    """Events as they stand in the journal, one JSON array a line."""
    for event in events:
        yield json.dumps(event, ensure_ascii=False, separators=(",", ":"))

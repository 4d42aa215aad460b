"""The station of the gate where policy and people decide about a call that a capability allows.

The kernel's rules (`rules`) say what becomes of it. Where they say `ask`, what a person said before is
looked up; where nothing was said, the person is asked, and the process waits as for any input: without
model time, its pages given up to whoever needs them. That it asks is on disk before anybody is asked, and
the answer before it counts, so a kernel that ends meanwhile asks again, and never makes a call that nobody
allowed.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread

from llmasos.kernel.abi import Answer, Question, QuestionKind, Remember
from llmasos.kernel.errors import ConfigError, InvalidArguments, PermissionDenied
from llmasos.kernel.journal.events import Event, plain
from llmasos.kernel.questions import Questions
from llmasos.kernel.rules import (
    ANYBODY,
    Asked,
    Decision,
    Policy,
    Rule,
    exact,
    rule_of,
    rule_values,
)
from llmasos.kernel.strands import UNNAMED

if TYPE_CHECKING:
    from llmasos.kernel.process import Process
    from llmasos.kernel.syscall import Call, Syscall

_log = logging.getLogger(__name__)
WAITS_IN: Final = "approval"
"""What `ps` shows of a process that waits for one."""
MAX_REMEMBERED: Final = 10_000
NOBODY: Final = "nobody attends to this kernel who could be asked"

Record = Callable[["Process", Event], Awaitable[None]]
"""Writes an event of a process down; returns once it is on disk."""


class Remembered:
    """Answers that hold for an app or for all, in one file of the home; in memory alone without one."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self.rules: tuple[Rule, ...] = ()
        """The latest first."""
        if file is not None:
            self.rules = _read(file)

    def add(self, rule: Rule) -> None:
        """Keep one more. Blocks for the disk. Raises `ConfigError`."""
        kept = (rule, *(each for each in self.rules if each != rule))[:MAX_REMEMBERED]
        self._write(kept)

    def remove(self, index: int) -> Rule:
        """Forget one, by its place from 0. Raises `IndexError`, `ConfigError`."""
        rule = self.rules[index]
        self._write(tuple(each for each in self.rules if each is not rule))
        return rule

    def _write(self, rules: tuple[Rule, ...]) -> None:
        if self._file is not None:
            text = json.dumps([rule_values(rule) for rule in rules], indent=1)
            _replace(self._file, text.encode())
        self.rules = rules


class Approvals:
    """Decides about the calls of one kernel's processes."""

    def __init__(
        self, policy: Policy, remembered: Remembered, questions: Questions, record: Record
    ) -> None:
        self.policy = policy
        self.remembered = remembered
        self.questions = questions
        self._record = record

    async def settle(
        self,
        process: Process,
        entry: Syscall,
        arguments: Mapping[str, Any],
        call: Call,
    ) -> None:
        """Return where the call may be made; raises `PermissionDenied` where not."""
        rules = (*process.rules, *self.policy.rules)
        if not (rules or call.taint) and self.policy.otherwise is Decision.ALLOW:
            return
        looks_at_arguments = any(rule.arguments or rule.exactly is not None for rule in rules)
        asked = asked_for(process, entry, arguments if looks_at_arguments else {}, call)
        if call.capabilities.trusts(entry.name):
            asked = replace(asked, taint=())
        decision = self.policy.decide(asked, process.rules)
        if decision is Decision.DENY:
            raise PermissionDenied(_refusal(asked, "the rules deny it"))
        if decision is Decision.ALLOW or call.is_approved:
            return
        asked = asked_for(process, entry, arguments, call)
        said = self._said(asked)
        if said is None:
            said = await self._ask(process, asked, call)
        if said is not True:
            raise PermissionDenied(_refusal(asked, said or "it was denied"))

    # --- within

    def _said(self, asked: Asked) -> bool | str | None:
        for rule in self.remembered.rules:
            if rule.matches(asked):
                return rule.decision is Decision.ALLOW or "it was denied before, and for good"
        return None

    async def _ask(self, process: Process, asked: Asked, call: Call) -> bool | str:
        if not self.questions.has_people:
            return NOBODY
        await self._note(process, call, ("ask", call.id))
        question = Question(
            id=0,
            pid=process.pid,
            app=process.app,
            kind=QuestionKind.APPROVAL,
            text=asked.syscall,
            arguments=exact(asked.arguments),
            taint=asked.taint,
            asked_at=call.runtime.now(),
        )
        with waiting_in(process, WAITS_IN):
            answer = await self.questions.ask(question)
        await self._take(process, asked, answer)
        await self._note(process, call, ("verdict", call.id, answer.allow, answer.text))
        return answer.allow or answer.text

    async def _note(self, process: Process, call: Call, event: Event) -> None:
        """Write down what becomes of a call, unless the call itself is not written down."""
        if call.id != UNNAMED:
            await self._record(process, event)

    async def _take(self, process: Process, asked: Asked, answer: Answer) -> None:
        """Keep what is to be remembered of an answer."""
        if answer.remember is Remember.NOTHING:
            return
        rule = remembered_rule(asked, answer)
        if answer.remember is Remember.SESSION:
            process.rules = (rule, *process.rules)
            await self._record(process, ("rule", rule_values(rule)))
        else:
            try:
                await anyio.to_thread.run_sync(self.remembered.add, rule)
            except ConfigError as error:  # it holds for this call all the same
                _log.warning("An answer could not be remembered: %s", error)


def remembered_rule(asked: Asked, answer: Answer) -> Rule:
    """The rule that an answer makes, no wider than the person said."""
    rule = Rule(
        Decision.ALLOW if answer.allow else Decision.DENY,
        syscall=(_literal(asked.syscall),),
        app=("*",) if answer.remember is Remember.ALWAYS else (_literal(asked.app),),
        taint=ANYBODY,
    )
    if answer.match:
        return replace(rule, arguments=dict(answer.match))
    return replace(rule, exactly=exact(asked.arguments))


def asked_for(process: Process, entry: Syscall, arguments: Mapping[str, Any], call: Call) -> Asked:
    """A call as rules see it. Raises `InvalidArguments` for arguments that cannot be written down."""
    try:
        given: Mapping[str, Any] = plain(dict(arguments))
    except (RecursionError, ValueError) as error:
        raise InvalidArguments(f"{entry.name}: the arguments are nested too deeply.") from error
    if list(given) == ["arguments"] and isinstance(given["arguments"], dict):
        given = given["arguments"]  # a mounted tool takes all of them as one
    return Asked(
        syscall=entry.name,
        arguments=given,
        app=process.app,
        effect=entry.info.effect,
        taint=call.taint,
        reaches_out=entry.is_foreign,
        root=str(call.capabilities.root),
    )


@contextmanager
def waiting_in(process: Process, name: str) -> Iterator[None]:
    """Have `ps` say what a process waits for."""
    process.waits_in.append(name)
    try:
        yield
    finally:
        process.waits_in.remove(name)


def _refusal(asked: Asked, why: str) -> str:
    what = f"{asked.syscall} is not allowed: {why.rstrip('.')}"
    if not asked.taint:
        return f"{what}."
    more = f" and {len(asked.taint) - 1} more" if len(asked.taint) > 1 else ""
    return f"{what}. This process has read text from outside ({asked.taint[0]}{more})."


def _literal(text: str) -> str:
    """A pattern that matches nothing but this."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def _read(file: Path) -> tuple[Rule, ...]:
    try:
        return tuple(map(rule_of, json.loads(file.read_bytes())))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{file} cannot be read ({error}); put it aside, and answers will be asked for again."
        ) from error


def _replace(file: Path, data: bytes) -> None:
    """Whole or not at all, for its owner's eyes alone."""
    temp = f"{file}.{secrets.token_hex(6)}.part"
    try:
        with open(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temp, file)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temp)
        raise ConfigError(f"{file} cannot be written: {error.strerror or error}.") from error

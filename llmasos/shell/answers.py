"""People's answers on their way to a kernel, and its questions on their way to people: what is asked for,
checked and told, whoever asks. Every text in a question is untrusted and made safe here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from llmasos.kernel.abi import Answer, Question, QuestionKind, Remember
from llmasos.kernel.errors import InvalidArguments
from llmasos.kernel.rules import ANYBODY, Decision, Rule
from llmasos.shell.plain import one_line, plain_text
from llmasos.shell.session import RememberedAnswer, RuleRequest

MAX_VALUE_CHARS = 300
"""Of one argument in a question; `approvals ID` shows all of it."""
MAX_SOURCES = 3
YES = frozenset({"y", "yes"})
NO = frozenset({"", "n", "no"})
REMEMBERED = {
    "p": Remember.SESSION, "process": Remember.SESSION,
    "a": Remember.APP, "app": Remember.APP,
    "e": Remember.ALWAYS, "every": Remember.ALWAYS,
}  # fmt: skip
CHOICES = "[y]es, [n]o; this very call always, by this [p]rocess, this [a]pp or [e]very process"


def rules_of(requests: Iterable[RuleRequest]) -> tuple[Rule, ...]:
    """Rules that a person gave a process. Raises `InvalidArguments`."""
    try:
        return tuple(
            Rule(Decision(each.decision), syscall=(each.syscall,), taint=_meant(each))
            for each in requests
        )
    except ValueError as error:
        raise InvalidArguments("A rule says allow, ask or deny.") from error


def _meant(request: RuleRequest) -> tuple[str, ...]:
    """Who allows something to one process knows what that process reads."""
    return ANYBODY if request.decision == Decision.ALLOW else ()


def check_answer(question: Question, answer: Answer) -> None:
    """Raise `InvalidArguments` for an answer that does not fit its question."""
    is_approval = question.kind is QuestionKind.APPROVAL
    if not is_approval and (answer.remember or answer.match):
        raise InvalidArguments("Only the approval of a syscall can be remembered.")
    if answer.match and not answer.remember:
        raise InvalidArguments("Patterns are for answers that are remembered; say for whom.")
    if unknown := sorted(answer.match.keys() - _arguments(question).keys()):
        raise InvalidArguments(f"{question.text} was not given an argument {unknown[0]!r}.")
    is_choice = question.kind is QuestionKind.TEXT and answer.allow and bool(question.choices)
    if is_choice and answer.text not in question.choices:
        raise InvalidArguments(f"Answer with one of {', '.join(question.choices)}.")


def remembered_answer(rule: Rule) -> RememberedAnswer:
    """A remembered answer for a table."""
    arguments = rule.exactly or " ".join(f"{k}={v}" for k, v in sorted(rule.arguments.items()))
    return RememberedAnswer(
        rule.decision.value, _plain(rule.syscall[0]), _plain(rule.app[0]), arguments
    )


def _plain(pattern: str) -> str:
    """A pattern that stands for one name, as that name."""
    for char in "*?[":
        pattern = pattern.replace(f"[{char}]", char)
    return pattern


def told(question: Question, *, whole: bool = False) -> str:
    """A question as people read it, safe for a terminal."""
    who = f"Process {question.pid} ({one_line(question.app, max_chars=40)})"
    if question.kind is QuestionKind.APPROVAL:
        lines = [f"{who} wants to call {one_line(question.text, max_chars=100)}:"]
        lines += [_told_argument(*pair, whole=whole) for pair in _arguments(question).items()]
    else:
        verb = "asks" if question.kind is QuestionKind.TEXT else "asks whether it may do this"
        lines = [f"{who} {verb}:", *_indented(question.text)]
        lines += [f"    - {one_line(choice)}" for choice in question.choices]
    if question.taint:
        shown = question.taint if whole else question.taint[:MAX_SOURCES]
        sources = ", ".join(one_line(each, max_chars=200) for each in shown)
        more = len(question.taint) - len(shown)
        lines.append(
            f"  It has read text from outside: {sources}{f' and {more} more' * bool(more)}."
        )
    return "\n".join(lines)


def summary(question: Question) -> str:
    """A question on one line."""
    if question.kind is not QuestionKind.APPROVAL:
        return one_line(question.text, max_chars=200)
    values = (f"{name}={_value(value)}" for name, value in _arguments(question).items())
    return one_line(f"{question.text}({', '.join(values)})", max_chars=200)


def prompt(question: Question) -> str:
    """What an answer is asked for with, on one line."""
    if question.kind is QuestionKind.APPROVAL:
        return f"Allow it? {CHOICES}: "
    return "Answer: " if question.kind is QuestionKind.TEXT else "Allow it? [y]es or [n]o: "


def understood(question: Question, line: str | None) -> Answer | None:
    """The answer that a person typed (None: the end of input, which is a no); None where it is none."""
    if line is None:
        return Answer(False)
    if question.kind is QuestionKind.TEXT:
        if question.choices and line.strip() not in question.choices:
            return None
        return Answer(True, line.strip())
    word = line.strip().lower()
    if word in YES or word in NO:
        return Answer(word in YES)
    if question.kind is QuestionKind.APPROVAL and word in REMEMBERED:
        return Answer(True, remember=REMEMBERED[word])
    return None


def _arguments(question: Question) -> Mapping[str, Any]:
    values = json.loads(question.arguments or "{}")
    return values if isinstance(values, dict) else {}


def _told_argument(name: str, value: Any, *, whole: bool) -> str:
    if isinstance(value, str) and "\n" in value:
        text = value if whole else _cut(value)
        return "\n".join([f"  {one_line(name)}:", *_indented(text)])
    text = _value(value) if not whole else json.dumps(value, ensure_ascii=False)
    return f"  {one_line(name)}: {plain_text(text)}"


def _value(value: Any) -> str:
    return _cut(json.dumps(value, ensure_ascii=False))


def _cut(text: str) -> str:
    if len(text) <= MAX_VALUE_CHARS:
        return text
    return f"{text[:MAX_VALUE_CHARS]} ... ({len(text):,} characters in all)"


def _indented(text: str) -> list[str]:
    return [f"    {line}" for line in plain_text(text).splitlines()]

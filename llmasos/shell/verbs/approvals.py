"""Verbs for what processes wait for people to say: `approvals`, `approve`, `deny`."""

from __future__ import annotations

import argparse
import time
from argparse import Namespace

from llmasos.kernel.abi import Answer, Question, QuestionKind, Remember
from llmasos.kernel.errors import UsageError
from llmasos.shell.answers import summary, told
from llmasos.shell.arguments import Parser, count
from llmasos.shell.environment import Environment
from llmasos.shell.plain import one_line
from llmasos.shell.tables import Column, Table, duration
from llmasos.shell.verbs.verb import Verb, add_json

_FLAGS = (
    ("--session", Remember.SESSION, "hold for this process, as long as it lives"),
    ("--for-app", Remember.APP, "hold for every process of its app"),
    ("--always", Remember.ALWAYS, "hold for every process"),
)


def _configure_approvals(parser: Parser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("id", nargs="?", type=count, metavar="ID", help="show one whole")
    which.add_argument(
        "--remembered", action="store_true", help="answers that hold for later calls"
    )
    which.add_argument("--forget", type=count, metavar="N", help="ask again: forget answer N")
    add_json(parser)


async def approvals(environment: Environment, args: Namespace) -> int:
    """Show what processes wait for people to answer, or what was answered for good."""
    session = await environment.sessions.running()
    output = environment.output
    if args.forget is not None:
        await session.forget_answer(args.forget)
        return 0
    if args.remembered:
        answers = await session.remembered()
        if args.json:
            output.json(answers)
            return 0
        rows = tuple(
            (str(number), each.decision, each.syscall, each.app, one_line(each.arguments))
            for number, each in enumerate(answers, 1)
        )
        columns = (Column("N", right=True), Column("SAID"), Column("SYSCALL"), Column("APP"),
                   Column("ARGUMENTS"))  # fmt: skip
        output.table(Table(columns, rows))
        return 0
    questions = await session.questions()
    if args.id is not None:
        output.line(told(_the(questions, args.id), whole=True))
    elif args.json:
        output.json(questions)
    else:
        output.table(_table(questions))
    return 0


def _the(questions: list[Question], question_id: int) -> Question:
    for question in questions:
        if question.id == question_id:
            return question
    raise UsageError(f"No question {question_id} is open; `approvals` lists those that are.")


def _table(questions: list[Question]) -> Table:
    columns = (
        Column("ID", right=True),
        Column("PID", right=True),
        Column("APP"),
        Column("WAITS", right=True, drop=2),
        Column("FROM OUTSIDE", drop=1),
        Column("ASKS"),
    )
    rows = tuple(
        (
            str(question.id),
            str(question.pid),
            one_line(question.app),
            duration(time.time() - question.asked_at),
            one_line(question.taint[0], max_chars=60) if question.taint else "-",
            _asks(question),
        )
        for question in questions
    )
    return Table(columns, rows)


def _asks(question: Question) -> str:
    if question.kind is QuestionKind.TEXT:
        return f"{summary(question)} (approve {question.id} ANSWER)"
    return summary(question)


def _configure_answer(parser: Parser) -> None:
    parser.add_argument("id", type=count, metavar="ID", help="of the question; see `approvals`")
    whom = parser.add_mutually_exclusive_group()
    for flag, remember, meaning in _FLAGS:
        whom.add_argument(flag, dest="remember", action="store_const", const=remember, help=meaning)
    parser.set_defaults(remember=Remember.NOTHING)
    parser.add_argument(
        "--match", action="append", type=_pair, default=[], metavar="NAME=PATTERN",
        help="hold for calls whose arguments match, not only for exactly this one",
    )  # fmt: skip
    parser.add_argument("text", nargs="*", metavar="TEXT", help="an answer in words, or why not")


def _pair(text: str) -> tuple[str, str]:
    name, sign, pattern = text.partition("=")
    if not name or not sign:
        raise argparse.ArgumentTypeError("must be NAME=PATTERN, such as path=notes/*")
    return name, pattern


async def approve(environment: Environment, args: Namespace) -> int:
    """Say yes, or answer in words."""
    return await _answer(environment, args, allow=True)


async def deny(environment: Environment, args: Namespace) -> int:
    """Say no, and why if you like."""
    return await _answer(environment, args, allow=False)


async def _answer(environment: Environment, args: Namespace, *, allow: bool) -> int:
    session = await environment.sessions.running()
    question = _the(await session.questions(), args.id)
    text = " ".join(args.text)
    if question.kind is QuestionKind.TEXT and allow and not text:
        raise UsageError(f"Question {args.id} wants words: `approve {args.id} ANSWER`.")
    answer = Answer(allow, text, remember=args.remember, match=dict(args.match))
    await session.answer(args.id, answer)
    return 0


VERBS = (
    Verb("approvals", "List what processes wait for you to say.", approvals, _configure_approvals),
    Verb("approve", "Allow what a process asks for.", approve, _configure_answer),
    Verb("deny", "Refuse what a process asks for.", deny, _configure_answer),
)

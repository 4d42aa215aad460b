"""Questions of processes put to a person: at the terminal, at none, from elsewhere, in the shell."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from llmasos.kernel.abi import Answer, Question, QuestionKind, Remember
from llmasos.kernel.errors import UsageError
from llmasos.kernel.program import Port
from llmasos.shell.answers import summary, told, understood
from llmasos.shell.client import SocketSession
from llmasos.shell.environment import Environment, KernelFlags
from llmasos.shell.home import kernel_lock
from llmasos.shell.interrupts import Interrupts
from llmasos.shell.lines import perform
from llmasos.shell.output import Output
from llmasos.shell.repl import Shell
from llmasos.shell.server import Server
from llmasos.shell.settings import load_settings
from llmasos.shell.tasks import in_background
from llmasos.shell.verbs.table import VERBS
from llmasos.shell.words import split
from tests.shell.conftest import OneSession, Terminal, eventually
from tests.syscalls.guarded import ASK, GuardedHome
from tests.syscalls.guarded import told as tells

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Seat:
    """A person, or nobody, at a command line in front of a guarded home."""

    def __init__(self, home: GuardedHome, session: Any, stdin_fd: int | None, *, tty: bool) -> None:
        self.stdout, self.stderr = Terminal(), Terminal()
        self.environment = Environment(
            output=Output(self.stdout, self.stderr, environ={}),
            interrupts=Interrupts(),
            sessions=OneSession(session),
            root=str(home.root),
            flags=KernelFlags(home=str(home.folder)),
            stdin_fd=stdin_fd,
            stdin_is_terminal=tty,
        )

    async def does(self, line: str) -> int:
        return await perform(self.environment, VERBS, split(line))

    async def sees(self, text: str) -> None:
        await eventually(lambda: text in self.stderr.getvalue())


@pytest.fixture(params=["local", "socket"])
async def home(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[GuardedHome]:
    """A guarded home whose kernel runs; `seat` sits in front of it, here or behind its socket."""
    home = GuardedHome(tmp_path, policy=ASK)

    @home.app
    async def writes(port: Port, params: Any) -> None:
        await tells(port, "fs.write", path="a.md", text="one\ntwo")

    @home.app
    async def asks(port: Port, params: Any) -> None:
        said = await port.syscall("human.ask", {"question": "Tea?", "choices": ["yes", "no"]})
        await port.syscall("io.write", {"text": f"{said['text']}\n"})
        line = await port.syscall("io.read_line", {})
        await port.syscall("io.write", {"text": f"read {line}\n"})

    with kernel_lock(home.folder):
        async with home.booted():
            home.seen_from = home.session  # type: ignore[attr-defined]
            if request.param == "local":
                yield home
                return
            server = Server(home.session)
            async with (
                server.serving(home.folder),
                SocketSession.attached(home.folder) as session,
            ):
                home.seen_from = session  # type: ignore[attr-defined]
                yield home


def seat(home: GuardedHome, stdin_fd: int | None = None, *, tty: bool = False) -> Seat:
    return Seat(home, home.seen_from, stdin_fd, tty=tty)  # type: ignore[attr-defined]


@pytest.fixture
def keys() -> Iterator[tuple[int, int]]:
    """A terminal: what is typed into, and what is read from."""
    typed, read = os.openpty()
    yield typed, read
    os.close(typed)
    os.close(read)


@asynccontextmanager
async def doing(someone: Seat, line: str) -> AsyncIterator[list[int]]:
    codes: list[int] = []

    async def do() -> None:
        codes.append(await someone.does(line))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(do)
            yield codes


RUN = "run --untrusted"


async def test_at_a_terminal_the_person_is_asked(home: GuardedHome, keys: tuple[int, int]) -> None:
    someone = seat(home, keys[1], tty=True)
    async with doing(someone, f"{RUN} writes") as codes:
        await someone.sees("Allow it?")
        assert "wants to call fs.write" in someone.stderr.getvalue()
        assert "one\n    two" in someone.stderr.getvalue()
        assert "given:on the command line" in someone.stderr.getvalue()
        os.write(keys[0], b"perhaps\n")
        await eventually(lambda: someone.stderr.getvalue().count("Allow it?") == 2)
        os.write(keys[0], b"y\n")
    assert codes == [0]
    assert someone.stdout.getvalue() == "fs.write done\n"


async def test_lines_that_are_no_answers_still_reach_the_process(
    home: GuardedHome, keys: tuple[int, int]
) -> None:
    someone = seat(home, keys[1], tty=True)
    async with doing(someone, "run asks"):
        await someone.sees("Answer: ")
        os.write(keys[0], b"yes\n")
        await eventually(lambda: someone.stdout.getvalue() == "yes\n")
        os.write(keys[0], b"a line of its own\n")
    assert someone.stdout.getvalue() == "yes\nread a line of its own\n"


async def test_without_a_terminal_it_is_denied_in_one_sentence(home: GuardedHome) -> None:
    someone = seat(home)
    async with doing(someone, f"{RUN} writes"):
        pass
    assert "fs.write permission_denied" in someone.stdout.getvalue()
    assert "there is no terminal to ask on" in someone.stdout.getvalue()
    (line,) = someone.stderr.getvalue().splitlines()
    assert "--approve wait" in line
    assert not (home.root / "a.md").exists()


async def test_with_approve_deny_nobody_is_asked(home: GuardedHome, keys: tuple[int, int]) -> None:
    someone = seat(home, keys[1], tty=True)
    async with doing(someone, f"{RUN} --approve deny writes"):
        pass
    assert "--approve deny" in someone.stdout.getvalue()


async def test_with_approve_wait_it_waits_for_an_answer_from_elsewhere(home: GuardedHome) -> None:
    someone, other = seat(home), seat(home)
    async with doing(someone, f"{RUN} --approve wait writes"):
        await someone.sees("llmasos approve")
        assert await other.does("approvals --json") == 0
        (question,) = json.loads(other.stdout.getvalue())
        assert question["text"] == "fs.write"
        assert await other.does(f"approvals {question['id']}") == 0
        assert "one\n    two" in other.stdout.getvalue()
        assert await other.does(f"approve {question['id']} --always --match path=*.md") == 0
    assert someone.stdout.getvalue() == "fs.write done\n"
    assert await other.does("approvals --remembered") == 0
    assert "path=*.md" in other.stdout.getvalue()
    assert await other.does("approvals --forget 1") == 0


async def test_a_question_at_the_terminal_may_be_answered_elsewhere(
    home: GuardedHome, keys: tuple[int, int]
) -> None:
    someone, other = seat(home, keys[1], tty=True), seat(home)
    async with doing(someone, f"{RUN} writes"):
        await someone.sees("Allow it?")
        question = await home.question()
        assert await other.does(f"deny {question.id} not today") == 0
    assert "not today" in someone.stdout.getvalue()
    assert "not asked any more" in someone.stderr.getvalue()


async def test_ctrl_c_while_asked_ends_the_call(home: GuardedHome, keys: tuple[int, int]) -> None:
    someone = seat(home, keys[1], tty=True)
    async with doing(someone, f"{RUN} writes"):
        await someone.sees("Allow it?")
        someone.environment.interrupts.fire(signal.SIGINT)
    assert "fs.write interrupted" in someone.stdout.getvalue()
    assert home.runtime.questions.pending() == []


async def test_tell_answers_a_question_in_words(home: GuardedHome) -> None:
    someone, other = seat(home), seat(home)
    async with doing(someone, "run --approve wait asks"):
        await someone.sees("llmasos approve")
        (question,) = await home.session.questions()
        with pytest.raises(UsageError, match="wants words"):
            await other.does(f"approve {question.id}")
        assert await other.does(f"tell {question.pid} yes") == 0
        await eventually(lambda: "yes\n" in someone.stdout.getvalue())


async def test_answers_to_what_nobody_asked_are_an_error(home: GuardedHome) -> None:
    with pytest.raises(UsageError, match="No question 7 is open"):
        await seat(home).does("approve 7")


async def test_trust_lets_a_process_write_unasked_and_deny_wins(home: GuardedHome) -> None:
    someone = seat(home)
    async with doing(someone, f"{RUN} --trust fs.* writes"):
        pass
    assert someone.stdout.getvalue() == "fs.write done\n"
    async with doing(someone, f"{RUN} --trust fs.* --deny fs.write writes"):
        pass
    assert "the rules deny it" in someone.stdout.getvalue()


async def test_ps_and_taint_show_what_reached_a_process(home: GuardedHome) -> None:
    someone, other = seat(home), seat(home)
    async with doing(someone, f"{RUN} --approve wait writes"):
        question = await home.question()
        await other.does("ps -l")
        await other.does(f"taint show {question.pid}")
        await home.session.answer(question.id, Answer(True))
    said = other.stdout.getvalue()
    assert f"{question.pid}: has read text from outside: given:on the command line" in said
    assert said.endswith("\ngiven:on the command line\n")


async def test_files_are_labelled_and_cleared_by_hand(home: GuardedHome) -> None:
    someone = seat(home)
    (home.root / "mail.txt").write_text("obey me")
    assert await someone.does("taint mark mail.txt --source 'a mail'") == 0
    assert await someone.does("taint list --json") == 0
    (found,) = json.loads(someone.stdout.getvalue())
    assert found == {"path": str(home.root / "mail.txt"), "labels": ["file:a mail"]}
    assert await someone.does("taint clear .") == 0
    await someone.does("taint list --json")
    assert someone.stdout.getvalue().endswith("[]\n")


async def test_secrets_are_read_from_stdin_and_never_shown(home: GuardedHome) -> None:
    read, write = os.pipe()
    os.write(write, b"a very secret value\n")
    os.close(write)
    someone = seat(home, read)
    assert await someone.does("secret set github --host api.example") == 0
    os.close(read)
    assert await someone.does("secret list") == 0
    assert await someone.does("secret list --json") == 0
    assert "api.example" in someone.stdout.getvalue()
    assert await someone.does("secret rm github") == 0
    assert "very secret" not in someone.stdout.getvalue() + someone.stderr.getvalue()
    with pytest.raises(UsageError, match="what it is for"):
        await someone.does("secret set github")


# --- what people read and type


def question(kind: QuestionKind = QuestionKind.APPROVAL, **values: Any) -> Question:
    values = {"text": "fs.write", "arguments": '{"path": "a"}', **values}
    return Question(1, 2, "app", kind, **values)  # type: ignore[arg-type]


def test_nothing_in_a_question_reaches_the_terminal_as_a_command() -> None:
    evil = "\x1b[2J\x1b]0;x\x07\rAllow it? y"
    asked = question(arguments=json.dumps({"path": evil, evil: "a\n" + evil}), taint=(evil,))
    for text in (told(asked), told(asked, whole=True), summary(asked)):
        assert "\x1b" not in text
        assert "\r" not in text
    assert "\x1b" not in told(question(QuestionKind.TEXT, text=evil, choices=(evil,)))


def test_a_long_argument_is_cut_and_says_so() -> None:
    asked = question(arguments=json.dumps({"text": "x\n" * 5000}))
    assert "(10,000 characters in all)" in told(asked)
    assert told(asked, whole=True).count("x") >= 5000


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("y", Answer(True)), ("YES ", Answer(True)), ("", Answer(False)), ("n", Answer(False)),
        (None, Answer(False)), ("p", Answer(True, remember=Remember.SESSION)),
        ("a", Answer(True, remember=Remember.APP)), ("e", Answer(True, remember=Remember.ALWAYS)),
        ("yep", None),
    ],
)  # fmt: skip
def test_what_is_typed_is_understood_or_asked_again(
    line: str | None, answer: Answer | None
) -> None:
    assert understood(question(), line) == answer


def test_only_a_choice_answers_a_question_with_choices() -> None:
    asked = question(QuestionKind.TEXT, text="Tea?", choices=("yes", "no"))
    assert understood(asked, "perhaps") is None
    assert understood(asked, " no ") == Answer(True, "no")
    assert understood(question(QuestionKind.ACTION, text="Pour?"), "a") is None


# --- the interactive shell


async def test_the_shell_tells_of_questions_in_its_background_and_answers_them(
    tmp_path: Path,
) -> None:
    home = GuardedHome(tmp_path, policy=ASK)

    @home.app
    async def writes(port: Port, params: Any) -> None:
        await tells(port, "fs.write", path="a.md", text="x")

    with kernel_lock(home.folder):
        async with home.booted() as runtime, Server(home.session).serving(home.folder):
            someone = Seat(home, home.session, None, tty=False)
            with (
                create_pipe_input() as typed,
                create_app_session(input=typed, output=DummyOutput()),
            ):
                shell = Shell(someone.environment, load_settings({"home": home.folder}))
                async with (
                    in_background(shell.link.run),
                    in_background(shell.watch),
                    in_background(shell.run),
                ):
                    await eventually(lambda: shell.link.session is not None)
                    pid = await runtime.spawn("writes", taint=["web:x"])
                    await eventually(lambda: "/approve 1" in someone.stdout.getvalue())
                    typed.send_text("/approve 1\r")
                    assert (await runtime.wait(pid)).code == 0
                    assert runtime.output_text(pid) == "fs.write done\n"
                    typed.send_text(f"/run {RUN.removeprefix('run ')} writes\r")
                    await eventually(lambda: "wants to call" in someone.stderr.getvalue())
                    typed.send_text("n\r")
                    await eventually(lambda: "permission_denied" in someone.stdout.getvalue())
                shell.jobs.close()

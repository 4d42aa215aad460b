"""A call that the rules ask about waits for a person, and what one said holds for that call and no other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmasos.kernel.abi import (
    Answer,
    Effect,
    Pid,
    ProcessState,
    QuestionKind,
    Remember,
    Signal,
)
from llmasos.kernel.approvals import Remembered
from llmasos.kernel.errors import ConfigError, InvalidArguments, ProcessError
from llmasos.kernel.program import Port
from llmasos.kernel.rules import Decision, Policy, Rule
from llmasos.kernel.syscall import Call, syscall
from tests.syscalls.guarded import ASK, GuardedHome, told

pytestmark = pytest.mark.anyio
PAGE = ("web:http://evil.example/",)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home(tmp_path: Path) -> GuardedHome:
    home = GuardedHome(tmp_path, policy=ASK)

    @home.app
    async def writes(port: Port, params: Any) -> None:
        for path, text in params["files"]:
            await told(port, "fs.write", path=path, text=text)

    return home


async def writing(home: GuardedHome, *files: tuple[str, str], taint: Any = PAGE) -> Pid:
    return await home.runtime.spawn("writes", {"files": files}, taint=taint)


async def ended(home: GuardedHome, pid: Pid) -> list[str]:
    await home.runtime.wait(pid)
    return home.runtime.output_text(pid).splitlines()


async def test_a_call_that_is_asked_about_waits_and_costs_nothing(home: GuardedHome) -> None:
    async with home.booted() as runtime:
        pid = await writing(home, ("a.md", "x"))
        question = await home.question()
        info = runtime.info(pid)
        assert (info.state, info.wchan) == (ProcessState.WAITING, "approval")
        assert question.kind is QuestionKind.APPROVAL
        assert (question.pid, question.app, question.text) == (pid, "writes", "fs.write")
        assert json.loads(question.arguments) == {"path": "a.md", "text": "x"}
        assert question.taint == PAGE
        steps = runtime.kernel.num_steps
        for _ in range(50):
            await anyio.sleep(0)
        assert runtime.kernel.num_steps == steps
        assert not (home.root / "a.md").exists()
        await home.says(True)
        assert await ended(home, pid) == ["fs.write done"]
        assert (home.root / "a.md").read_text() == "x"


async def test_a_denial_is_told_with_its_reason(home: GuardedHome) -> None:
    async with home.booted():
        pid = await writing(home, ("a.md", "x"))
        await home.says(False, text="not on a Sunday")
        (said,) = await ended(home, pid)
    assert said.startswith("fs.write permission_denied: fs.write is not allowed: not on a Sunday.")
    assert PAGE[0] in said
    assert not (home.root / "a.md").exists()


async def test_a_clean_process_is_not_asked_about(home: GuardedHome) -> None:
    async with home.booted():
        pid = await writing(home, ("a.md", "x"), taint=())
        assert await ended(home, pid) == ["fs.write done"]


async def test_approving_one_call_approves_no_other(home: GuardedHome) -> None:
    async with home.booted():
        pid = await writing(home, ("a.md", "x"), ("a.md", "y"), ("a.md", "x"))
        first = await home.says(True)
        for _ in range(2):
            question = await home.question(first.id)
            first = await home.says(False)
            assert first.id == question.id
        said = await ended(home, pid)
    assert [line.split()[1] for line in said] == [
        "done",
        "permission_denied:",
        "permission_denied:",
    ]


@pytest.mark.parametrize(
    ("remember", "same_process", "same_app", "other_app"),
    [
        (Remember.SESSION, True, False, False),
        (Remember.APP, True, True, False),
        (Remember.ALWAYS, True, True, True),
    ],
)
async def test_an_answer_is_remembered_for_whom_the_person_said(
    home: GuardedHome, remember: Remember, same_process: bool, same_app: bool, other_app: bool
) -> None:
    @home.app
    async def others(port: Port, params: Any) -> None:
        await told(port, "fs.write", path="a.md", text="x")

    async def is_asked(app: str) -> bool:
        pid = await home.runtime.spawn(app, {"files": [("a.md", "x")]}, taint=PAGE)
        with anyio.move_on_after(0.3):
            await home.runtime.wait(pid)
            return False
        await home.says(False)
        await home.runtime.wait(pid)
        return True

    async with home.booted():
        pid = await writing(home, ("a.md", "x"), ("a.md", "x"), ("a.md", "other"))
        await home.says(True, remember=remember)
        other = await home.question(1)
        assert json.loads(other.arguments)["text"] == "other"
        await home.says(False)
        said = await ended(home, pid)
        assert said[:2] == ["fs.write done"] * 2
        assert same_process
        assert await is_asked("writes") is not same_app
        assert await is_asked("others") is not other_app
    async with home.booted():
        assert await is_asked("writes") is not same_app, "after a reboot"
    if remember is not Remember.SESSION:
        assert os.stat(home.folder / "answers.json").st_mode & 0o777 == 0o600


async def test_a_denial_is_remembered_too_and_can_be_forgotten(home: GuardedHome) -> None:
    async with home.booted():
        pid = await writing(home, ("a.md", "x"), ("a.md", "x"))
        await home.says(False, remember=Remember.ALWAYS)
        said = await ended(home, pid)
        assert "denied before" in said[1]
        (known,) = await home.session.remembered()
        assert (known.decision, known.syscall, known.app) == ("deny", "fs.write", "*")
        with pytest.raises(ProcessError):
            await home.session.forget_answer(2)
        await home.session.forget_answer(1)
        pid = await writing(home, ("a.md", "x"))
        await home.says(True)
        assert await ended(home, pid) == ["fs.write done"]


async def test_an_answer_may_hold_for_arguments_that_match(home: GuardedHome) -> None:
    async with home.booted():
        files = ("notes/a.md", "notes/b.md", "notes/../c.md", "d.md")
        pid = await writing(home, *((path, "x") for path in files))
        await home.says(True, remember=Remember.SESSION, match={"path": "notes/*"})
        for path in files[2:]:
            assert json.loads((await home.says(False)).arguments)["path"] == path
        said = await ended(home, pid)
    assert [line.split()[1] for line in said] == ["done", "done", *["permission_denied:"] * 2]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(True, match={"path": "*"}),
        Answer(True, remember=Remember.ALWAYS, match={"pfad": "*"}),
    ],
)
async def test_answers_that_make_no_sense_are_refused(home: GuardedHome, answer: Answer) -> None:
    async with home.booted():
        pid = await writing(home, ("a.md", "x"))
        question = await home.question()
        with pytest.raises(InvalidArguments):
            await home.session.answer(question.id, answer)
        await home.says(False)
        with pytest.raises(ProcessError, match="No question"):
            await home.session.answer(question.id, Answer(True))
        await ended(home, pid)


async def test_where_nobody_attends_it_is_denied_at_once(home: GuardedHome) -> None:
    home.has_people = False
    async with home.booted():
        pid = await writing(home, ("a.md", "x"))
        assert "nobody attends" in (await ended(home, pid))[0]


async def test_an_interrupt_withdraws_the_question_and_the_call(home: GuardedHome) -> None:
    async with home.booted() as runtime:
        pid = await writing(home, ("a.md", "x"))
        question = await home.question()
        runtime.signal(pid, Signal.INT)
        assert (await ended(home, pid))[0].startswith("fs.write interrupted")
        assert runtime.questions.pending() == []
        await home.session.until_settled(question.id)
        assert not (home.root / "a.md").exists()


async def test_a_kill_withdraws_the_question(home: GuardedHome) -> None:
    async with home.booted() as runtime:
        pid = await writing(home, ("a.md", "x"))
        await home.question()
        runtime.signal(pid, Signal.KILL)
        assert (await runtime.wait(pid)).code == 137
        assert runtime.questions.pending() == []


async def test_several_calls_of_one_process_are_asked_about_at_once(home: GuardedHome) -> None:
    @home.app
    async def both(port: Port, params: Any) -> None:
        async with anyio.create_task_group() as group:
            for name in ("a.md", "b.md"):
                group.start_soon(lambda name=name: told(port, "fs.write", path=name, text="x"))

    async with home.booted() as runtime:
        pid = await runtime.spawn("both", taint=PAGE)
        await home.question(1)
        one, other = runtime.questions.pending()
        await home.session.answer(other.id, Answer(True))
        await home.session.answer(one.id, Answer(False))
        await runtime.wait(pid)
    names = [json.loads(each.arguments)["path"] for each in (one, other)]
    assert [(home.root / name).exists() for name in names] == [False, True]


# --- crashes


async def test_after_a_crash_the_question_is_asked_again(home: GuardedHome) -> None:
    async with home.booted(crashes=True):
        pid = await writing(home, ("a.md", "x"), ("b.md", "y"))
        await home.says(True)
        await home.question(1)
    async with home.booted() as runtime:
        question = await home.question()
        assert json.loads(question.arguments)["path"] == "b.md"
        assert runtime.info(pid).wchan == "approval"
        await home.says(True)
        assert await ended(home, pid) == ["fs.write done"] * 2


async def test_an_external_call_that_was_asked_about_did_not_happen(home: GuardedHome) -> None:
    sent = []

    @syscall("mail.send", effect=Effect.EXTERNAL, foreign=False)
    async def send(call: Call, text: str) -> None:
        """Send."""
        sent.append(text)

    @home.app
    async def mails(port: Port, params: Any) -> None:
        await told(port, "mail.send", text="hello")

    home.more = (send,)
    async with home.booted(crashes=True) as runtime:
        pid = await runtime.spawn("mails", taint=PAGE)
        await home.question()
    async with home.booted():
        assert sent == []
        await home.says(True)
        assert await ended(home, pid) == ["mail.send done"]
    assert sent == ["hello"]


async def test_what_was_allowed_before_a_crash_is_not_asked_again(home: GuardedHome) -> None:
    reached, go_on = anyio.Event(), [False]

    @syscall("disk.write", effect=Effect.WRITE, repeatable=True)
    async def write(call: Call) -> None:
        """Write."""
        reached.set()
        if not go_on[0]:
            await anyio.sleep_forever()

    @home.app
    async def disks(port: Port, params: Any) -> None:
        await told(port, "disk.write")

    home.more = (write,)
    async with home.booted(crashes=True) as runtime:
        pid = await runtime.spawn("disks", taint=PAGE)
        await home.says(True)
        await reached.wait()
    go_on[0] = True
    async with home.booted() as runtime:
        assert await ended(home, pid) == ["disk.write done"]
        assert runtime.questions.pending() == []


async def test_an_answer_for_the_session_survives_a_crash_and_is_not_a_branch_s(
    home: GuardedHome,
) -> None:
    @home.app
    async def twice(port: Port, params: Any) -> None:
        for _ in range(2):
            await told(port, "fs.write", path="a.md", text="x")
            await port.syscall("io.read_line", {})

    async def reads(pid: Pid) -> None:
        while home.runtime.info(pid).wchan != "io.read_line":
            await anyio.sleep(0.001)

    async with home.booted(crashes=True) as runtime:
        pid = await runtime.spawn("twice", taint=PAGE, stdin=True)
        await home.says(True, remember=Remember.SESSION)
        await reads(pid)
    async with home.booted() as runtime:
        await reads(pid)
        branch = await runtime.branch(pid)
        await reads(branch)
        for each in (pid, branch):
            await runtime.send_input(each, "go on")
        question = await home.question()
        assert question.pid == branch
        await home.says(False)
        for each in (pid, branch):
            await runtime.send_input(each, None)
        assert await ended(home, pid) == ["fs.write done"] * 2
        assert (await ended(home, branch))[1].startswith("fs.write permission_denied")


async def test_a_branch_tells_a_call_that_was_asked_about_from_one_that_may_have_happened(
    home: GuardedHome,
) -> None:
    @syscall("mail.send", effect=Effect.EXTERNAL, foreign=False)
    async def send(call: Call, text: str) -> None:
        """Send."""

    @home.app
    async def mails(port: Port, params: Any) -> None:
        await told(port, "mail.send", text="hello")

    home.more = (send,)
    async with home.booted() as runtime:
        pid = await runtime.spawn("mails", taint=PAGE)
        await home.says(True)
        assert await ended(home, pid) == ["mail.send done"]
        kinds = [event[0] for event in (await runtime.history(pid)).events]
        asked = await runtime.branch(pid, until=kinds.index("ask") + 1)
        assert (await home.question(1)).pid == asked
        await home.says(True)
        assert await ended(home, asked) == ["mail.send done"]
        allowed = await runtime.branch(pid, until=kinds.index("verdict") + 1)
        assert (await ended(home, allowed))[0].startswith("mail.send maybe_done")


async def test_what_an_app_asks_for_while_it_is_ended_is_not_asked_about_in_its_journal(
    home: GuardedHome,
) -> None:
    @home.app
    async def insists(port: Port, params: Any) -> None:
        try:
            await port.syscall("time.sleep", {"seconds": 600})
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(0.05):
                await port.syscall("io.write", {"text": "last words"})

    async with home.booted() as runtime:
        rules = (Rule(Decision.ASK, ("io.*",)),)
        pid = await runtime.spawn("insists", rules=rules)
        while runtime.info(pid).wchan != "time.sleep":
            await anyio.sleep(0.001)
        runtime.signal(pid, Signal.TERM)
        await runtime.wait(pid)
        assert "ask" not in [event[0] for event in (await runtime.history(pid)).events]
        assert runtime.questions.pending() == []


async def test_a_branch_of_a_call_that_was_allowed_asks_for_itself(home: GuardedHome) -> None:
    async with home.booted() as runtime:
        pid = await writing(home, ("a.md", "x"))
        await home.says(True)
        await ended(home, pid)
        events = (await runtime.history(pid)).events
        at = next(n for n, event in enumerate(events, 1) if event[0] == "verdict")
        branch = await runtime.branch(pid, until=at)
        assert (await home.question(1)).pid == branch
        await home.says(False)
        assert (await ended(home, branch))[0].startswith("fs.write permission_denied")


# --- rules and the person's own words


async def test_rules_of_the_home_decide_first(home: GuardedHome) -> None:
    home.policy = Policy(
        (Rule(Decision.DENY, ("fs.write",), arguments={"path": "secret/*"}),
         Rule(Decision.ASK, ("fs.write",), arguments={"path": "*.md"})),
    )  # fmt: skip
    async with home.booted():
        files = ("x/../secret/a", "a.txt", "a.md")
        pid = await writing(home, *((path, "x") for path in files), taint=())
        await home.says(True)
        said = await ended(home, pid)
    assert [line.split()[1] for line in said] == ["permission_denied:", "done", "done"]
    assert said[0].endswith("fs.write is not allowed: the rules deny it.")


async def test_a_person_is_asked_and_answers_in_words(home: GuardedHome) -> None:
    @home.app
    async def asks(port: Port, params: Any) -> None:
        result = await port.syscall("human.ask", {"question": "Tea?", "choices": ["yes", "no"]})
        approved = await port.syscall("human.approve", {"action": "Pour the tea"})
        await port.syscall("io.write", {"text": f"{result['text']} {approved}"})
        await told(port, "human.ask", question="Sugar?")

    async with home.booted(crashes=True) as runtime:
        pid = await runtime.spawn("asks")
        question = await home.question()
        assert (question.kind, question.choices) == (QuestionKind.TEXT, ("yes", "no"))
        with pytest.raises(InvalidArguments, match="one of yes, no"):
            await home.session.answer(question.id, Answer(True, "perhaps"))
        await home.says(True, text="yes")
        await home.question(1)
    async with home.booted() as runtime:
        question = await home.question()
        assert (question.kind, question.text) == (QuestionKind.ACTION, "Pour the tea")
        assert runtime.info(pid).wchan == "human.approve"
        await home.says(False, text="too hot")
        await home.says(False)
        text = "".join(await ended(home, pid))
        assert runtime.kernel.process(pid).taint == ()
    assert text.startswith("yes {'text': 'No: too hot.', 'approved': False}")
    assert text.endswith("The person does not answer.")


async def test_a_question_is_not_waited_for_longer_than_it_says(home: GuardedHome) -> None:
    @home.app
    async def asks(port: Port, params: Any) -> None:
        await told(port, "human.ask", question="Tea?", timeout_s=0.05)

    async with home.booted() as runtime:
        said = await home.outcome("asks")
        assert runtime.questions.pending() == []
        home.runtime.questions.has_people = False
        assert "nobody to ask" in await home.outcome("asks")
    assert said == "human.ask timed_out: Nobody answered within 0.05 s.\n"


def test_remembered_answers_that_are_damaged_are_told_of_not_ignored(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    file.write_text('[{"decision": "perhaps"}]')
    with pytest.raises(ConfigError, match="put it aside"):
        Remembered(file)

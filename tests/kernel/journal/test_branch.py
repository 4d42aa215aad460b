"""Branches of history: a process made of the first events of another, which then goes its own way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.kernel.abi import Effect, Pid, Signal
from llmasos.kernel.branching import Beginning
from llmasos.kernel.errors import MaybeDone, NoSuchProcess, ProcessError, SyscallError
from llmasos.kernel.journal.branch import past_of
from llmasos.kernel.program import Port
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.syscall import Call, syscall
from tests.kernel.journal.reboots import Machine, Program
from tests.kernel.journal.test_random_apps import LINES, Act, acts, begin, in_order, machine
from tests.kernel.journal.test_recovery import steps, story, write

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def ended(runtime: Runtime, pid: Pid) -> str:
    """What a process prints until its end, which must be a good one."""
    status = await runtime.wait(pid)
    assert status.code == 0, status
    assert not runtime.info(pid).note
    return runtime.output_text(pid)


async def test_a_branch_of_a_finished_process_ends_as_it_did_wherever_it_begins() -> None:
    home = Machine(num_pages=256)
    home.app(story)
    expected = await home.run("story")
    num_events = len(home.events(1))
    async with home.booted() as runtime:
        for until in range(1, num_events + 1):
            pid = await runtime.branch(Pid(1), until=until)
            assert await ended(runtime, pid) == expected
    assert home.num_processes == num_events + 1


async def test_a_branch_shares_the_pages_of_its_original() -> None:
    home = Machine(num_pages=256)
    home.app(story)
    async with home.booted() as runtime:
        pid = await runtime.spawn("story", {"about": "a long beginning " * 8})
        await ended(runtime, pid)
        original = runtime.info(pid)
        child = await runtime.branch(pid, until=len(home.events(pid)) // 2)
        await ended(runtime, child)
        branched = runtime.info(child)
        assert branched.tokens_cached > 100
        assert branched.tokens_computed < original.tokens_computed


async def test_a_branch_of_a_live_process_leaves_it_as_it_was() -> None:
    home = Machine(num_pages=256)
    home.app(story)
    expected = await Machine(num_pages=256).also(home).run("story")
    async with home.booted() as runtime:
        pid = await runtime.spawn("story", seed=1)
        await steps(runtime, 9)
        child = await runtime.branch(pid)
        assert runtime.info(child).title.startswith(f"story from {pid}@")
        assert runtime.info(child).ppid == 0
        assert await ended(runtime, child) == expected
        assert await ended(runtime, pid) == expected


async def test_a_branch_survives_a_crash_like_any_other_process() -> None:
    home = Machine(num_pages=256)
    home.app(story)
    expected = await home.run("story")
    async with home.booted(crashes=True) as runtime:
        pid = await runtime.branch(Pid(1), until=30)
        await steps(runtime, 3)
    async with home.booted() as runtime:
        assert home.recovered.running == [pid]
        assert await ended(runtime, pid) == expected


async def test_what_ended_or_stopped_a_process_is_not_part_of_its_branch() -> None:
    home = Machine(num_pages=256)
    home.app(story)
    expected = await Machine(num_pages=256).also(home).run("story")
    async with home.booted() as runtime:
        for signal in (Signal.KILL, Signal.STOP):
            pid = await runtime.spawn("story", seed=1)
            await steps(runtime, 5)
            runtime.signal(pid, signal)
            await runtime.flushed()
            assert await ended(runtime, await runtime.branch(pid)) == expected
        runtime.signal(pid, Signal.KILL)


async def test_a_branch_is_refused_where_it_makes_no_sense() -> None:
    home = Machine()
    home.app(story)
    await home.run("story")
    num_events = len(home.events(1))
    async with home.booted() as runtime:
        for until in (0, -1, num_events + 1):
            with pytest.raises(ProcessError, match=f"has the events 1 to {num_events}, and no"):
                await runtime.branch(Pid(1), until=until)
        with pytest.raises(NoSuchProcess):
            await runtime.branch(Pid(77))
        home.apps["story"] = Program("story", story, version="2")
        with pytest.raises(ProcessError, match="begun by story 1, and now that is 2"):
            await runtime.branch(Pid(1))
        assert runtime.ps() == []


async def test_an_external_call_that_was_under_way_is_told_of_and_not_made_again() -> None:
    mails: list[str] = []

    @syscall("mail.send", effect=Effect.EXTERNAL)
    async def send(call: Call, text: str) -> None:
        """Send a mail."""
        mails.append(text)

    async def mailer(port: Port, params: Mapping[str, Any]) -> None:
        for text in ("one", "two"):
            try:
                await port.syscall("mail.send", {"text": text})
                await write(port, f"{text} sent\n")
            except MaybeDone:
                await write(port, f"{text} perhaps\n")

    home = Machine(syscalls=(send,))
    home.app(mailer)
    await home.run("mailer")
    assert mails == ["one", "two"]
    begins = [
        number
        for number, event in enumerate(home.events(1), 1)
        if event[0] == "begin" and event[2] == "mail.send"
    ]
    async with home.booted() as runtime:
        first = await runtime.branch(Pid(1), until=begins[0])
        assert await ended(runtime, first) == "one perhaps\ntwo sent\n"
        second = await runtime.branch(Pid(1), until=begins[1])
        assert await ended(runtime, second) == "one sent\ntwo perhaps\n"
    assert mails == ["one", "two", "two"]


async def parent(port: Port, params: Mapping[str, Any]) -> None:
    child = await port.syscall("proc.spawn", {"app": "story"})
    await write(port, f"{child}:")
    outcome = await port.syscall("proc.wait", {"pid": child})
    await write(port, outcome["output"])
    try:
        await port.syscall("proc.kill", {"pid": child})
    except SyscallError as error:
        await write(port, str(error))


async def test_a_branch_waits_for_its_originals_child_and_may_not_signal_it() -> None:
    home = Machine(num_pages=256)
    home.app(parent)
    home.app(story)
    async with home.booted() as runtime:
        pid = await runtime.spawn("parent")
        while f"{pid + 1}:" not in runtime.output_text(pid):
            await anyio.lowlevel.checkpoint()
        child = await runtime.branch(pid)
        assert (await runtime.wait(child)).code == 0
        shown = runtime.output_text(child)
        assert shown.startswith("2:0:")
        assert shown.endswith("Process 2 is not a child of this process.")
        await runtime.wait(pid)
    async with home.booted() as runtime:  # the child is known to the journal alone
        waits = next(
            n for n, e in enumerate(home.events(1)) if e[:3] == ("begin", "2", "proc.wait")
        )
        pid = await runtime.branch(Pid(1), until=waits)
        assert (await runtime.wait(pid)).code == 0
        assert runtime.output_text(pid) == shown


async def test_a_branch_in_the_middle_of_a_spawn_starts_a_child_of_its_own() -> None:
    home = Machine(num_pages=256)
    home.app(parent)
    home.app(story)
    async with home.booted() as runtime:
        await runtime.wait(await runtime.spawn("parent"))
        spawned = next(n for n, e in enumerate(home.events(1), 1) if e[0] == "child")
        pid = await runtime.branch(Pid(1), until=spawned)
        await runtime.wait(pid)
        mine = runtime.output_text(pid).partition(":")
        assert int(mine[0]) == pid + 1
        assert mine[2].startswith(runtime.output_text(Pid(2)))
        assert home.events(pid + 1)[0][1]["seed"] == home.events(2)[0][1]["seed"]


async def test_a_past_from_another_home_does_not_take_strangers_for_its_children() -> None:
    home, elsewhere = Machine(num_pages=256), Machine(num_pages=256)
    for each in (home, elsewhere):
        each.app(parent)
        each.app(story)
    await home.run("parent")
    waits = next(n for n, e in enumerate(home.events(1)) if e[:3] == ("begin", "2", "proc.wait"))
    past = past_of(Pid(1), home.events(1), waits)
    async with elsewhere.booted() as runtime:
        for _ in range(2):
            await runtime.wait(await runtime.spawn("story", {"about": "a secret"}))
        pid = await runtime.begin_with(past, Beginning(home="another"))
        status = await runtime.wait(pid)
        assert (status.code, status.message) == (1, "Process 2 is not a child of this process.")
        assert runtime.output_text(pid) == "2:"


async def branch_and_run(what: list[Act], share: float) -> None:
    """A branch anywhere in a random app goes on without a difference to the record, and ends."""
    home = machine()
    async with home.booted() as runtime:
        await begin(runtime, what)
        await runtime.wait(Pid(1))
        await runtime.flushed()
        events = home.events(1)
        until = 1 + int(share * (len(events) - 1))
        pid = await runtime.branch(Pid(1), until=until, beginning=Beginning(title="twin"))
        for line in (*LINES, None):
            try:
                await runtime.send_input(pid, line)
            except NoSuchProcess:
                break
        await ended(runtime, pid)
        runtime.kernel.check_integrity()
        if share == 1.0:
            assert runtime.output_text(pid) == runtime.output_text(Pid(1))


@settings(max_examples=80, deadline=None)
@given(acts, st.one_of(st.just(1.0), st.floats(0, 1)))
def test_a_branch_of_a_random_app_never_leaves_its_past(what: list[Act], share: float) -> None:
    anyio.run(branch_and_run, what, share)


async def stop_and_branch(what: list[Act], num_turns: int) -> tuple[str, str]:
    """What a process prints, and what a branch of it prints that was made on the way."""
    home = machine()
    async with home.booted() as runtime:
        pid = await runtime.spawn("actor", {"acts": what}, stdin=True, seed=7)
        for line in (*LINES, None):
            try:
                await runtime.send_input(pid, line)
            except NoSuchProcess:
                break
        for _ in range(num_turns):
            await anyio.lowlevel.checkpoint()
        child = await runtime.branch(pid)
        return await ended(runtime, pid), await ended(runtime, child)


@settings(max_examples=60, deadline=None)
@given(in_order, st.integers(0, 300))
def test_a_branch_at_the_present_ends_as_its_original(what: list[Act], num_turns: int) -> None:
    original, branched = anyio.run(stop_and_branch, what, num_turns)
    assert original == branched

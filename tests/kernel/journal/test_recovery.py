"""Kernels end at bad moments; their processes come back and end as if nothing had been."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from llmasos.kernel.abi import ContextId, Effect, ExitStatus, Limits, Pid, ProcessState, Signal
from llmasos.kernel.errors import Interrupted, JournalFull, KernelBug, MaybeDone
from llmasos.kernel.journal.entries import Batch
from llmasos.kernel.journal.replay import Replay
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.program import Port
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.syscall import Call, syscall
from tests.kernel.journal.reboots import Machine, Program

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def write(port: Port, text: str) -> None:
    await port.syscall("io.write", {"text": text})


async def story(port: Port, params: Mapping[str, Any]) -> None:
    """Several generations, one after another, in two contexts."""
    await port.syscall("ctx.open", {})
    await port.syscall("ctx.append", {"context": 0, "text": params.get("about", "once")})
    for chapter in range(3):
        result = await port.syscall("llm.generate", {"context": 0, "max_tokens": 12})
        await write(port, f"{chapter}:{result.text}\n")
        other = await port.syscall("ctx.fork", {"context": 0})
        aside = await port.syscall("llm.generate", {"context": other, "max_tokens": 5})
        await write(port, f"({aside.text})")
        await port.syscall("ctx.close", {"context": other})


async def steps(runtime: Runtime, num: int) -> None:
    """Let a kernel get on by so many steps of its engine, while anything lives."""
    until = runtime.kernel.num_steps + num
    while runtime.kernel.num_steps < until and runtime.status().num_processes:
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("num_steps", [0, 1, 3, 7, 11, 13, 14, 20, 29, 36])
async def test_a_generation_goes_on_at_its_token_after_a_crash(num_steps: int) -> None:
    undisturbed = Machine()
    undisturbed.app(story)
    expected = await undisturbed.run("story")
    machine = Machine()
    machine.app(story)
    async with machine.booted(crashes=True) as runtime:
        await runtime.spawn("story")
        await steps(runtime, num_steps)
    async with machine.booted() as runtime:
        assert machine.recovered.running == [Pid(1)]
        assert (await runtime.wait(Pid(1))).code == 0
        assert runtime.output_text(Pid(1)) == expected


async def test_many_processes_survive_many_crashes() -> None:
    undisturbed = Machine(num_pages=512)
    undisturbed.app(story)
    expected = {n: await undisturbed.run("story", {"about": f"tale {n}"}) for n in range(6)}
    machine = Machine(num_pages=512)
    machine.app(story)
    async with machine.booted(crashes=True) as runtime:
        pids = {n: await runtime.spawn("story", {"about": f"tale {n}"}) for n in range(6)}
        await steps(runtime, 2)
    for _ in range(12):
        async with machine.booted(crashes=True) as runtime:
            await steps(runtime, 3)
    async with machine.booted() as runtime:
        for n, pid in pids.items():
            if pid in runtime.kernel.processes:
                await runtime.wait(pid)
                assert runtime.output_text(pid) == expected[n]


async def test_processes_of_an_orderly_end_do_not_come_back_unless_suspended() -> None:
    machine = Machine()
    machine.app(story)
    async with machine.booted() as runtime:
        await runtime.spawn("story")
    async with machine.booted() as runtime:
        assert runtime.ps() == []
        pid = await runtime.spawn("story")
        assert pid == 2
        runtime.suspend()
    async with machine.booted() as runtime:
        assert machine.recovered.running == [pid]
        assert (await runtime.wait(pid)).code == 0


async def test_children_come_back_with_their_parents_and_are_waited_for() -> None:
    machine = Machine(num_pages=256)

    async def parent(port: Port, params: Mapping[str, Any]) -> None:
        pids = [
            await port.syscall("proc.spawn", {"app": "story", "params": {"about": f"child {n}"}})
            for n in range(3)
        ]
        for pid in pids:
            outcome = await port.syscall("proc.wait", {"pid": pid})
            await write(port, f"{pid} {outcome['code']} {outcome['output']}")

    machine.app(parent)
    machine.app(story)
    expected = await Machine(num_pages=256).also(machine).run("parent")
    for num_steps in (1, 10, 30):
        crashing = Machine(num_pages=256).also(machine)
        async with crashing.booted(crashes=True) as runtime:
            await runtime.spawn("parent")
            await steps(runtime, num_steps)
        async with crashing.booted() as runtime:
            await runtime.wait(Pid(1))
            assert runtime.output_text(Pid(1)) == expected


async def test_tasks_of_an_app_that_race_go_on_from_the_order_in_which_they_were() -> None:
    machine = Machine(num_pages=256)

    async def racer(port: Port, params: Mapping[str, Any]) -> None:
        order: list[str] = []

        async def run(name: str, num_tokens: int) -> None:
            number = await port.syscall("ctx.open", {})
            await port.syscall("ctx.append", {"context": number, "text": name})
            result = await port.syscall(
                "llm.generate", {"context": number, "max_tokens": num_tokens}
            )
            order.append(f"{name}={result.text}")
            await write(port, f"{order}\n")

        async with anyio.create_task_group() as group:
            for n, name in enumerate(["anna", "bert", "cleo", "dora"]):
                group.start_soon(run, name, 4 + 3 * (n % 2))

    machine.app(racer)
    shown = await Machine(num_pages=256).also(machine).run("racer")
    expected = max(shown.splitlines(), key=len)
    for num_steps in range(1, 9):
        crashing = Machine(num_pages=256).also(machine)
        async with crashing.booted(crashes=True) as runtime:
            await runtime.spawn("racer")
            await steps(runtime, num_steps)
            before = runtime.output_text(Pid(1))
            await runtime.flushed()
        async with crashing.booted() as runtime:
            if Pid(1) in runtime.kernel.processes:
                await runtime.wait(Pid(1))
        text = "".join(crashing.history(1).holdings.output)
        assert text.startswith(before)
        longest = max(text.splitlines(), key=len)  # which of two racing tasks prints last is open
        assert sorted(longest) == sorted(expected)


async def test_a_changed_app_diverges_and_says_how() -> None:
    machine = Machine()

    async def fickle(port: Port, params: Mapping[str, Any]) -> None:
        await write(port, machine.words)
        await port.syscall("time.sleep", {"seconds": 1000})

    machine.app(fickle)
    machine.words = "before"
    async with machine.booted(crashes=True) as runtime:
        await runtime.spawn("fickle")
        while not runtime.info(Pid(1)).wchan:
            await anyio.lowlevel.checkpoint()
        await runtime.flushed()
    machine.words = "after"
    async with machine.booted() as runtime:
        while not (note := runtime.info(Pid(1)).note):
            await anyio.lowlevel.checkpoint()
        assert "io.write(text='before')" in note
        assert "now: io.write(text='after')" in note
        assert runtime.info(Pid(1)).exit is None


async def test_a_newer_version_of_an_app_is_held() -> None:
    machine = Machine()
    machine.app(story)
    async with machine.booted(crashes=True) as runtime:
        await runtime.spawn("story")
        await steps(runtime, 3)
    machine.apps["story"] = Program("story", story, version="2")
    async with machine.booted() as runtime:
        assert machine.recovered.held[Pid(1)].startswith("It was begun by story 1")
        assert runtime.info(Pid(1)).note


class World:
    """What external calls change; outlives every kernel."""

    def __init__(self) -> None:
        self.mails: list[str] = []
        self.hangs = anyio.Event()


async def test_an_external_call_cut_short_is_told_of_and_not_repeated() -> None:
    world = World()

    @syscall("mail.send", effect=Effect.EXTERNAL)
    async def send(call: Call, text: str) -> None:
        """Send a mail, and hang."""
        world.mails.append(text)
        if text == "slow":
            await anyio.sleep_forever()

    async def mailer(port: Port, params: Mapping[str, Any]) -> None:
        await port.syscall("mail.send", {"text": "fast"})
        try:
            await port.syscall("mail.send", {"text": "slow"})
        except MaybeDone as error:
            await write(port, str(error))

    machine = Machine(syscalls=(send,))
    machine.app(mailer)
    async with machine.booted(crashes=True) as runtime:
        await runtime.spawn("mailer")
        while world.mails != ["fast", "slow"]:
            await anyio.lowlevel.checkpoint()
    async with machine.booted() as runtime:
        await runtime.wait(Pid(1))
        assert "mail.send was under way" in runtime.output_text(Pid(1))
    assert world.mails == ["fast", "slow"]


async def test_a_full_disk_holds_every_process_and_loses_nothing() -> None:
    undisturbed = Machine()
    undisturbed.app(story)
    expected = await undisturbed.run("story")
    machine = Machine(store=TightStore)
    machine.app(story)
    async with machine.booted() as runtime:
        pid = await runtime.spawn("story")
        await steps(runtime, 3)
        TightStore.is_full = True
        while not runtime.status().journal_warning:
            await anyio.lowlevel.checkpoint()
        assert "processes stand still: the disk is full" in runtime.status().journal_warning
        while runtime.kernel._in_flight is not None:  # the step that was being computed
            await anyio.lowlevel.checkpoint()
        before = runtime.info(pid)
        for _ in range(200):
            await anyio.lowlevel.checkpoint()
        assert runtime.info(pid).tokens_out == before.tokens_out
        TightStore.is_full = False
        assert (await runtime.wait(pid)).code == 0
        assert runtime.output_text(pid) == expected
        assert not runtime.status().journal_warning
    assert "".join(machine.history(1).holdings.output) == expected


class TightStore(JournalStore):
    """On a disk that is full while `is_full`."""

    is_full = False

    def write(self, batch: Batch) -> None:
        if self.is_full:
            raise JournalFull("the disk is full")
        super().write(batch)


async def sleeper(port: Port, params: Mapping[str, Any]) -> None:
    """Waits for lines and repeats them; survives INT."""
    while True:
        try:
            line = await port.syscall("io.read_line", {})
        except Interrupted:
            await write(port, "ouch ")
            continue
        if line is None:
            return
        await write(port, f"{line} ")


async def until_it_reads(runtime: Runtime, pid: Pid) -> None:
    while runtime.info(pid).wchan != "io.read_line":
        await anyio.lowlevel.checkpoint()


async def test_input_and_interrupts_are_part_of_what_comes_back() -> None:
    machine = Machine()
    machine.app(sleeper)
    async with machine.booted(crashes=True) as runtime:
        pid = await runtime.spawn("sleeper", stdin=True)
        await runtime.send_input(pid, "one")
        await until_it_reads(runtime, pid)
        runtime.signal(pid, Signal.INT)
        await runtime.flushed()
    async with machine.booted(crashes=True) as runtime:
        await until_it_reads(runtime, pid)
        runtime.signal(pid, Signal.STOP)
        await runtime.send_input(pid, "two")
    async with machine.booted(crashes=True) as runtime:
        assert runtime.info(pid).state is ProcessState.STOPPED
        await runtime.send_input(pid, "three")
        runtime.signal(pid, Signal.CONT)
        await runtime.flushed()
    async with machine.booted() as runtime:
        await runtime.send_input(pid, None)
        assert (await runtime.wait(pid)).code == 0
    assert "".join(machine.history(1).holdings.output) == "one ouch two three "
    replayed = await Replay(
        machine.history(1), machine.apps["sleeper"], decode=machine.decode
    ).run()
    assert (replayed.problem, replayed.output) == ("", "one ouch two three ")


async def test_a_process_that_was_told_to_end_does_not_come_back_to_life() -> None:
    machine = Machine()
    machine.app(sleeper)
    async with machine.booted(crashes=True) as runtime:
        pid = await runtime.spawn("sleeper", stdin=True)
        await until_it_reads(runtime, pid)
        await runtime.flushed()
        runtime.kernel.record(runtime.kernel.live(pid), ("sig", int(Signal.TERM)))
        await runtime.flushed()
    async with machine.booted() as runtime:
        while runtime.info(pid).exit is None:
            await anyio.lowlevel.checkpoint()
        assert runtime.info(pid).exit == ExitStatus(143, "Ended by TERM.", Signal.TERM)


async def test_a_foreground_process_waits_for_somebody() -> None:
    machine = Machine()
    machine.app(story)
    async with machine.booted(crashes=True) as runtime:
        pid = await runtime.spawn("story", foreground=True)
        await steps(runtime, 4)
    async with machine.booted() as runtime:
        assert f"`llmasos resume {pid}`" in runtime.info(pid).note
        assert runtime.info(pid).state is ProcessState.STOPPED
        runtime.signal(pid, Signal.CONT)
        assert (await runtime.wait(pid)).code == 0
        assert not runtime.info(pid).note


async def test_the_time_that_no_kernel_ran_does_not_count_against_a_process() -> None:
    machine = Machine()
    machine.app(sleeper)
    async with machine.booted(crashes=True) as runtime:
        pid = await runtime.spawn("sleeper", stdin=True, limits=Limits(wall_s=60))
        await until_it_reads(runtime, pid)
        await runtime.flushed()
    machine.now += 3600
    async with machine.booted() as runtime:
        await until_it_reads(runtime, pid)
        await runtime.send_input(pid, None)
        assert (await runtime.wait(pid)).code == 0


async def test_a_kernel_that_stops_on_a_bug_keeps_its_processes() -> None:
    @syscall("test.bug", effect=Effect.READ)
    async def bug(call: Call) -> None:
        """Finds a broken invariant, the first time."""
        if machine.words == "broken":
            raise KernelBug("an invariant is broken")

    async def victim(port: Port, params: Mapping[str, Any]) -> None:
        await write(port, "before ")
        await port.syscall("test.bug", {})
        await write(port, "after")

    machine = Machine(syscalls=(bug,))
    machine.app(victim)
    machine.app(story)
    machine.words = "broken"

    async def boot_and_wait() -> None:
        async with machine.booted() as runtime:
            await runtime.spawn("story")
            await runtime.spawn("victim")
            await anyio.sleep_forever()

    with pytest.raises(KernelBug, match="an invariant is broken"):
        await boot_and_wait()
    machine.words = ""
    async with machine.booted() as runtime:
        assert machine.recovered.running == [Pid(1), Pid(2)]
        for pid in machine.recovered.running:
            assert (await runtime.wait(pid)).code == 0
        assert runtime.output_text(Pid(2)) == "before after"


async def test_a_stop_string_that_was_taken_out_of_a_context_stays_out_after_a_crash() -> None:
    machine = Machine()

    async def stopper(port: Port, params: Mapping[str, Any]) -> None:
        await port.syscall("ctx.open", {})
        await port.syscall("ctx.append", {"context": 0, "text": "once"})
        first = await port.syscall("llm.generate", {"context": 0, "max_tokens": 9})
        await port.syscall("ctx.truncate", {"context": 0, "num_tokens": 4})
        stop = [first.text[3:5]]
        await port.syscall("llm.generate", {"context": 0, "max_tokens": 9, "stop": stop})
        await port.syscall("time.sleep", {"seconds": 1e4})

    machine.app(stopper)
    async with machine.booted(crashes=True) as runtime:
        await runtime.spawn("stopper")
        while runtime.info(Pid(1)).wchan != "time.sleep":
            await anyio.lowlevel.checkpoint()
        await runtime.flushed()
        tokens = runtime.kernel.process(Pid(1)).contexts[ContextId(0)].tokens
        assert len(tokens) == 7
    async with machine.booted() as runtime:
        assert runtime.kernel.process(Pid(1)).contexts[ContextId(0)].tokens == tokens
        runtime.signal(Pid(1), Signal.KILL)
        await runtime.wait(Pid(1))

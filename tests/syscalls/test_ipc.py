"""ipc.*: what one process sends, another gets, once, whatever happens in between."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from llmasos.apps.proc import Proc
from llmasos.kernel.abi import Pid, Signal
from llmasos.kernel.errors import (
    Failed,
    Interrupted,
    InvalidArguments,
    LimitExceeded,
    PermissionDenied,
    SyscallError,
)
from llmasos.kernel.journal.replay import Replay
from llmasos.kernel.program import Port
from llmasos.kernel.runtime import Runtime
from llmasos.syscalls._queues import MAX_QUEUES
from llmasos.syscalls.chance import SYSCALLS as CHANCE
from llmasos.syscalls.ipc import MAX_TEXT_CHARS, ipc_syscalls
from tests.kernel.journal.reboots import Machine

pytestmark = pytest.mark.anyio

NUM = 12


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class IpcMachine(Machine):
    """A home whose kernels have `ipc.*`; each kernel's own."""

    @property
    def table(self) -> Any:
        self.syscalls = (*ipc_syscalls(), *CHANCE)
        return super().table


@pytest.fixture
def machine(tmp_path: Path) -> IpcMachine:
    folder = tmp_path / "home"
    folder.mkdir()
    made = IpcMachine(folder)
    for app in (count, double, collect, chain, idle, listen, post):
        made.app(app)
    return made


async def count(port: Port, params: Mapping[str, Any]) -> None:
    """Writes numbers to a pipe."""
    proc = Proc(port)
    writer = proc.writer(params["to"])
    for number in range(params.get("num", NUM)):
        await writer.write(f"{number}")
        await proc.print(number)


async def double(port: Port, params: Mapping[str, Any]) -> None:
    """Writes twice what it reads."""
    proc = Proc(port)
    writer = proc.writer(params["to"])
    async for text in proc.reader(params["from"]):
        await writer.write(str(2 * int(text)))


async def collect(port: Port, params: Mapping[str, Any]) -> None:
    """Prints what it reads."""
    proc = Proc(port)
    async for text in proc.reader(params["from"]):
        await proc.print(text)


async def chain(port: Port, params: Mapping[str, Any]) -> None:
    """count | double | collect"""
    proc = Proc(port)
    first, second = await proc.pipe(2), await proc.pipe(3)
    children = [
        await proc.spawn("count", {"to": first.writer.end}, ends=[first.writer]),
        await proc.spawn(
            "double",
            {"from": first.reader.end, "to": second.writer.end},
            ends=[first.reader, second.writer],
        ),
        await proc.spawn("collect", {"from": second.reader.end}, ends=[second.reader]),
    ]
    for end in (first.reader, first.writer, second.reader, second.writer):
        await end.close()
    outcomes = [await child.wait() for child in children]
    await proc.print(outcomes[-1].output, end="")


EXPECTED = "".join(f"{2 * number}\n" for number in range(NUM))


async def idle(port: Port, params: Mapping[str, Any]) -> None:
    """Does nothing for ever."""
    await port.syscall("time.sleep", {"seconds": 86_000})


async def listen(port: Port, params: Mapping[str, Any]) -> None:
    """Prints a few letters, then ends."""
    proc = Proc(port)
    for _ in range(params["num"]):
        received = await proc.mailbox.receive()
        await proc.print(f"{received.sender}: {received.text}")


async def post(port: Port, params: Mapping[str, Any]) -> None:
    """Sends letters."""
    for number in range(params["num"]):
        await Proc(port).mailbox.send(params["pid"], f"letter {number}")


def ask(machine: IpcMachine) -> tuple[Any, list[Any]]:
    """An app that does what a test tells it, and what came of that."""
    outcomes: list[Any] = []

    def teach(main: Any) -> None:
        async def told(port: Port, params: Mapping[str, Any]) -> None:
            outcomes.append(await main(Proc(port)))

        machine.app(told)

    return teach, outcomes


async def run(machine: IpcMachine, main: Any) -> Any:
    """What an app returns that a test has written."""
    teach, outcomes = ask(machine)
    teach(main)
    await machine.run("told")
    return outcomes[0]


async def test_a_chain_of_processes_passes_everything_on_in_order(machine: IpcMachine) -> None:
    assert await machine.run("chain") == EXPECTED


@pytest.mark.parametrize("num_turns", [1, 40, 120, 200, 300, 450])
async def test_a_crash_loses_nothing_and_repeats_nothing(
    machine: IpcMachine, num_turns: int
) -> None:
    async with machine.booted(crashes=True) as runtime:
        await runtime.spawn("chain")
        await turns(runtime, num_turns)
    async with machine.booted() as runtime:
        if Pid(1) in runtime.kernel.processes:
            assert (await runtime.wait(Pid(1))).code == 0
    assert "".join(machine.history(1).holdings.output) == EXPECTED


async def test_many_crashes_one_after_another_lose_nothing(machine: IpcMachine) -> None:
    async with machine.booted(crashes=True) as runtime:
        await runtime.spawn("chain")
        await turns(runtime, 50)
    for _ in range(8):
        async with machine.booted(crashes=True) as runtime:
            await turns(runtime, 90)
    async with machine.booted() as runtime:
        if Pid(1) in runtime.kernel.processes:
            await runtime.wait(Pid(1))
    assert "".join(machine.history(1).holdings.output) == EXPECTED


async def turns(runtime: Runtime, num: int) -> None:
    """Let a kernel get on by so many turns of its loop, and its threads by as much."""
    for _ in range(num):
        await anyio.to_thread.run_sync(int)
        if not runtime.status().num_processes:
            return


async def test_a_replay_of_one_process_gets_its_messages_from_its_journal(
    machine: IpcMachine,
) -> None:
    await machine.run("chain")
    before = (machine.folder.parent / "ipc.db").read_bytes()
    for pid in range(1, machine.num_processes + 1):
        history = machine.history(pid)
        program = machine.apps[history.spawn["app"]]
        replay = Replay(history, program, decode=machine.decode)
        assert (await replay.run()).problem == ""
    assert (machine.folder.parent / "ipc.db").read_bytes() == before


async def test_a_writer_waits_while_the_pipe_is_full(machine: IpcMachine) -> None:
    async with machine.booted() as runtime:

        async def main(proc: Proc) -> None:
            pipe = await proc.pipe(3)
            child = await proc.spawn("count", {"to": pipe.writer.end}, ends=[pipe.writer])
            await pipe.writer.close()
            while runtime.info(child.pid).wchan != "ipc.write" or (
                runtime.output_text(child.pid).count("\n") < 3
            ):
                await anyio.lowlevel.checkpoint()
            assert runtime.output_text(child.pid) == "0\n1\n2\n"
            await proc.print(",".join([text async for text in pipe]))

        teach, _ = ask(machine)
        teach(main)
        pid = await runtime.spawn("told")
        assert (await runtime.wait(pid)).code == 0
        assert runtime.output_text(pid) == ",".join(map(str, range(NUM))) + "\n"


async def test_a_pipe_whose_writers_all_ended_comes_to_its_end(machine: IpcMachine) -> None:
    async def main(proc: Proc) -> list[str]:
        pipe = await proc.pipe()
        child = await proc.spawn("count", {"to": pipe.writer.end, "num": 2}, ends=[pipe.writer])
        killed = await proc.spawn("idle", ends=[pipe.writer])
        await pipe.writer.close()
        await child.wait()
        await killed.kill("KILL")
        return [text async for text in pipe]

    assert await run(machine, main) == ["0", "1"]


async def test_a_pipe_that_nobody_reads_is_broken(machine: IpcMachine) -> None:
    async def main(proc: Proc) -> None:
        pipe = await proc.pipe(1)
        child = await proc.spawn("count", {"to": pipe.writer.end}, ends=[pipe.writer])
        await pipe.reader.close()
        assert "Nobody reads" in (await child.wait()).message
        with pytest.raises(Failed, match="Nobody reads"):
            await pipe.write("x")

    await run(machine, main)


async def test_only_descendants_can_be_given_an_end(machine: IpcMachine) -> None:
    async with machine.booted() as runtime:
        stranger = await runtime.spawn("idle")

        async def main(proc: Proc) -> list[str]:
            pipe = await proc.pipe()
            ends = [pipe.reader.end, pipe.writer.end]
            with pytest.raises(PermissionDenied, match="descend"):
                await proc.call("ipc.give", end=ends[0], pid=stranger)
            with pytest.raises(PermissionDenied, match="other one"):
                await proc.reader(ends[1]).read()
            with pytest.raises(PermissionDenied, match="other one"):
                await proc.writer(ends[0]).write("x")
            with pytest.raises(SyscallError, match="not given"):
                await runtime.syscall(stranger, "ipc.read", {"end": ends[0]})
            for forged in (f"read:{'0' * 32}", "read:", "write:../../x", "x" * 1000):
                with pytest.raises(SyscallError):
                    await proc.call("ipc.write", end=forged, text="x")
            return ends

        teach, outcomes = ask(machine)
        teach(main)
        pid = await runtime.spawn("told")
        assert (await runtime.wait(pid)).code == 0, runtime.info(pid).exit
        assert outcomes


async def test_letters_reach_processes_of_the_same_group_alone(machine: IpcMachine) -> None:
    async with machine.booted() as runtime:
        reader = await runtime.spawn("listen", {"num": 3}, group="office")
        inside = await runtime.spawn("post", {"pid": reader, "num": 3}, group="office")
        outside = await runtime.spawn("post", {"pid": reader, "num": 3}, group="street")
        assert "another group" in (await runtime.wait(outside)).message
        assert (await runtime.wait(inside)).code == 0
        assert (await runtime.wait(reader)).code == 0
        assert runtime.output_text(reader) == "".join(f"{inside}: letter {n}\n" for n in range(3))


async def test_what_is_published_reaches_all_that_subscribed(machine: IpcMachine) -> None:
    async def main(proc: Proc) -> Any:
        assert await proc.publish("news", "early") == 0
        first, second = await proc.subscribe("news"), await proc.subscribe("news", capacity=2)
        other = await proc.subscribe("weather")
        for number in range(4):
            assert await proc.publish("news", f"{number}") == 2
        assert await proc.publish("weather", "rain") == 1
        everything = [await first.read() for _ in range(4)]
        late = await second.receive()
        assert late is not None
        await other.close()
        assert await proc.publish("weather", "sun") == 0
        return everything, late.text, late.missed

    assert await run(machine, main) == (["0", "1", "2", "3"], "2", 2)


async def test_a_read_that_is_interrupted_or_given_up_takes_nothing(machine: IpcMachine) -> None:
    async with machine.booted() as runtime:

        async def main(proc: Proc) -> list[str | None]:
            pipe = await proc.pipe()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(interrupt, proc.pid)
                with pytest.raises(Interrupted):
                    await pipe.read()
            with anyio.move_on_after(0.01):
                await pipe.read()
            await pipe.write("kept")
            return [await pipe.read()]

        async def interrupt(pid: Pid) -> None:
            while runtime.info(pid).wchan != "ipc.read":
                await anyio.lowlevel.checkpoint()
            runtime.signal(pid, Signal.INT)

        teach, outcomes = ask(machine)
        teach(main)
        assert (await runtime.wait(await runtime.spawn("told"))).code == 0
        assert outcomes == [["kept"]]


async def test_a_killed_reader_leaves_what_it_had_not_got_to_the_others(
    machine: IpcMachine,
) -> None:
    async def main(proc: Proc) -> list[str]:
        pipe = await proc.pipe()
        child = await proc.spawn("collect", {"from": pipe.reader.end}, ends=[pipe.reader])
        await child.kill("STOP")
        await child.kill("KILL")
        await child.wait()
        await pipe.write("for somebody else")
        await pipe.writer.close()
        return [text async for text in pipe]

    assert await run(machine, main) == ["for somebody else"]


async def test_everything_is_bounded(machine: IpcMachine) -> None:
    async def main(proc: Proc) -> int:
        pipe = await proc.pipe()
        for args in (
            {"end": pipe.writer.end, "text": "x" * (MAX_TEXT_CHARS + 1)},
            {"end": pipe.writer.end, "text": 5},
            {"end": pipe.writer.end, "text": "\ud800"},
        ):
            with pytest.raises(InvalidArguments):
                await proc.call("ipc.write", **args)
        for capacity in (0, -1, 10**9):
            with pytest.raises(InvalidArguments):
                await proc.pipe(capacity)
        with pytest.raises(InvalidArguments):
            await proc.subscribe("no spaces; or '; DROP TABLE")
        for _ in range(MAX_QUEUES - 1):
            await proc.subscribe("t")
        with pytest.raises(LimitExceeded):
            await proc.subscribe("t")
        await pipe.write("still there")
        assert await pipe.read() == "still there"
        return 1

    assert await run(machine, main) == 1


async def test_chance_is_the_seeds_and_the_calls_alone(machine: IpcMachine) -> None:
    async def main(proc: Proc) -> Any:
        return [
            await proc.call("random.number"),
            await proc.call("random.integer", low=1, high=6),
            await proc.call("random.choice", options=["a", "b", "c"]),
            await proc.call("random.shuffle", items=[1, 2, 3, 4, 5]),
            await proc.call("random.bytes", size=8),
            await proc.call("random.number"),
        ]

    teach, outcomes = ask(machine)
    teach(main)
    for seed in (7, 7, 8):
        await machine.run("told", seed=seed)
    assert outcomes[0] == outcomes[1] != outcomes[2]
    assert outcomes[0][0] != outcomes[0][5]
    assert sorted(outcomes[0][3]) == [1, 2, 3, 4, 5]
    with pytest.raises(BaseException, match="swap"):
        await run(machine, lambda proc: proc.call("random.integer", low=2, high=1))


@pytest.mark.parametrize("levels", [100, 900, 50_000])
async def test_deep_arguments_are_refused_and_the_journal_goes_on(
    machine: IpcMachine, levels: int
) -> None:
    deep: Any = "x"
    for _ in range(levels):
        deep = [deep]
    long = 10 ** (10 * levels)

    async def main(proc: Proc) -> float:
        with pytest.raises(SyscallError):
            await proc.call("random.choice", options=[deep])
        with pytest.raises(SyscallError):
            await proc.call("random.integer", low=0, high=long)
        return float(await proc.call("random.number"))

    teach, outcomes = ask(machine)
    teach(main)
    await machine.run("told")
    replay = Replay(machine.history(1), machine.apps["told"], decode=machine.decode)
    assert (await replay.run()).problem == ""
    assert outcomes[0] == outcomes[1]

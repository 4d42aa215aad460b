"""What an app does while it is being ended from outside is not of its story."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from llmasos.apps.proc import Proc
from llmasos.kernel.abi import Effect, Pid, Signal
from llmasos.kernel.journal.replay import Replay
from llmasos.kernel.program import Port
from llmasos.kernel.syscall import Call, syscall
from tests.kernel.journal.reboots import Machine

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def tidy(port: Port, params: Mapping[str, Any]) -> None:
    """Closes its context whatever happens, as the SDK's contexts do."""
    proc = Proc(port)
    async with proc.context() as context:
        await context.append("once")
        async with context.stream(max_tokens=60) as pieces:
            async for piece in pieces:
                await proc.print(piece, end="")
    await proc.print(".")


async def until_tokens(runtime: Any, num: int) -> None:
    while runtime.info(Pid(1)).tokens_out < num:
        await anyio.lowlevel.checkpoint()


async def test_a_suspended_app_that_tidies_up_comes_back_where_it_was() -> None:
    undisturbed = Machine()
    undisturbed.app(tidy)
    expected = await undisturbed.run("tidy")
    machine = Machine()
    machine.app(tidy)
    async with machine.booted() as runtime:
        await runtime.spawn("tidy")
        await until_tokens(runtime, 7)
        runtime.suspend()
    kinds = [(event[0], event[2]) for event in machine.events(1) if event[0] == "begin"]
    assert ("begin", "ctx.close") not in kinds
    async with machine.booted() as runtime:
        assert (await runtime.wait(Pid(1))).code == 0
        assert runtime.output_text(Pid(1)) == expected


async def test_a_killed_apps_tidying_up_is_not_replayed() -> None:
    machine = Machine()
    machine.app(tidy)
    async with machine.booted() as runtime:
        await runtime.spawn("tidy")
        await until_tokens(runtime, 7)
        runtime.signal(Pid(1), Signal.TERM)
        status = await runtime.wait(Pid(1))
        printed = runtime.output_text(Pid(1))
    assert status.signal is Signal.TERM
    with anyio.fail_after(5):
        replay = Replay(machine.history(1), machine.apps["tidy"], decode=machine.decode)
        replayed = await replay.run()
    assert (replayed.problem, replayed.output, replayed.exit) == ("", printed, status)


async def test_an_app_that_is_being_ended_does_nothing_more_to_the_world() -> None:
    mails: list[str] = []

    @syscall("mail.send", effect=Effect.EXTERNAL)
    async def send(call: Call, text: str) -> None:
        """Send a mail."""
        mails.append(text)

    async def last_words(port: Port, params: Mapping[str, Any]) -> None:
        try:
            await port.syscall("time.sleep", {"seconds": 1000})
        finally:
            with anyio.CancelScope(shield=True):
                await port.syscall("mail.send", {"text": "goodbye"})

    machine = Machine(syscalls=(send,))
    machine.app(last_words)
    async with machine.booted() as runtime:
        await runtime.spawn("last_words")
        while not runtime.info(Pid(1)).wchan:
            await anyio.lowlevel.checkpoint()
        runtime.suspend()
    async with machine.booted() as runtime:
        assert machine.recovered.running == [Pid(1)]
        runtime.signal(Pid(1), Signal.TERM)
        status = await runtime.wait(Pid(1))
    assert status.signal is Signal.TERM
    assert mails == []

"""Adapters are part of a process's past: they come back with it, are replayed, and go into branches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import InvalidArguments
from llmasos.kernel.journal.replay import Replay
from llmasos.kernel.program import Port
from tests.kernel.journal.reboots import Machine
from tests.kernel.journal.test_branch import ended
from tests.kernel.journal.test_recovery import steps, write

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def voices(port: Port, params: Mapping[str, Any]) -> None:
    """The same prompt with one adapter, with the process's own, and with none; and a fork of each."""
    for adapter in ("tools", None, "none"):
        args = {} if adapter is None else {"adapter": adapter}
        number = await port.syscall("ctx.open", args)
        await port.syscall("ctx.append", {"context": number, "text": "the same beginning"})
        said = await port.syscall("llm.generate", {"context": number, "max_tokens": 9})
        fork = await port.syscall("ctx.fork", {"context": number})
        more = await port.syscall("llm.generate", {"context": fork, "max_tokens": 6})
        info = await port.syscall("ctx.info", {"context": fork})
        await write(port, f"{info.adapter}:{said.text}:{more.text}\n")


async def parent(port: Port, params: Mapping[str, Any]) -> None:
    """Children that inherit the adapter, that have another, and that have none."""
    for adapter in (None, "tools", "none"):
        args = {"app": "voices"} if adapter is None else {"app": "voices", "adapter": adapter}
        pid = await port.syscall("proc.spawn", args)
        outcome = await port.syscall("proc.wait", {"pid": pid})
        await write(port, outcome["output"])


def home(**adapters: str) -> Machine:
    machine = Machine(num_pages=256)
    machine.app(voices)
    machine.app(parent)
    machine.adapters.update(adapters or {"tools": "f-tools", "style": "f-style"})
    return machine


async def test_a_process_has_its_default_and_each_context_what_it_was_opened_with() -> None:
    machine = home()
    styled = (await machine.run("voices", adapter="style")).splitlines()
    plain = (await machine.run("voices")).splitlines()
    assert [line.partition(":")[0] for line in styled] == ["tools", "style", ""]
    assert [line.partition(":")[0] for line in plain] == ["tools", "", ""]
    assert styled[0] == plain[0]
    assert styled[2] == plain[1] == plain[2]
    assert len(set(styled)) == 3


async def test_children_inherit_the_default_unless_they_are_given_another() -> None:
    lines = (await home().run("parent", adapter="style")).splitlines()
    names = [line.partition(":")[0] for line in lines]
    assert names == ["tools", "style", "", "tools", "tools", "", "tools", "", ""]


@pytest.mark.parametrize("num_steps", [1, 5, 11, 14, 19, 27, 33, 41])
async def test_a_process_goes_on_with_its_adapters_after_a_crash(num_steps: int) -> None:
    expected = await home().run("parent", adapter="style")
    machine = home()
    async with machine.booted(crashes=True) as runtime:
        pid = await runtime.spawn("parent", adapter="style")
        await steps(runtime, num_steps)
    async with machine.booted() as runtime:
        assert await ended(runtime, pid) == expected


async def test_a_branch_has_the_adapters_of_its_original_wherever_it_begins() -> None:
    machine = home()
    expected = await machine.run("voices", adapter="style")
    async with machine.booted() as runtime:
        for until in range(1, len(machine.events(1)) + 1, 3):
            assert await ended(runtime, await runtime.branch(Pid(1), until=until)) == expected


async def test_a_run_with_adapters_is_replayed_without_any() -> None:
    machine = home()
    expected = await machine.run("voices", adapter="style")
    machine.adapters.clear()
    history = machine.history(1)
    replayed = await Replay(history, machine.apps["voices"], decode=machine.decode).run()
    assert (replayed.problem, replayed.output) == ("", expected)


async def test_a_process_whose_adapter_is_gone_is_held_until_it_is_back() -> None:
    expected = await home().run("voices", adapter="style")
    machine = home()
    async with machine.booted(crashes=True) as runtime:
        pid = await runtime.spawn("voices", adapter="style")
        await steps(runtime, 4)
    kept = dict(machine.adapters)
    machine.adapters.clear()
    async with machine.booted(crashes=True) as runtime:
        assert "adapter tools, which is not here" in runtime.info(pid).note
        runtime.kernel.check_integrity()
    machine.adapters.update(kept)
    async with machine.booted() as runtime:
        assert await ended(runtime, pid) == expected


async def test_an_unknown_adapter_is_refused_at_spawn_and_at_open() -> None:
    machine = home()

    async def opener(port: Port, params: Mapping[str, Any]) -> None:
        with pytest.raises(InvalidArguments, match=r"no adapter 'voice' .*there: style, tools"):
            await port.syscall("ctx.open", {"adapter": "voice"})

    machine.app(opener)
    assert await machine.run("opener") == ""
    async with machine.booted() as runtime:
        with pytest.raises(InvalidArguments, match="no adapter 'voice'"):
            await runtime.spawn("voices", adapter="voice")
        assert runtime.ps() == []


async def test_a_process_is_told_what_fits_and_which_is_its_own() -> None:
    machine = home()

    async def teller(port: Port, params: Mapping[str, Any]) -> None:
        rows = await port.syscall("llm.adapters", {})
        await write(port, " ".join(f"{row.name}{'*' * row.is_default}" for row in rows))

    machine.app(teller)
    assert await machine.run("teller") == "style tools"
    assert await machine.run("teller", adapter="tools") == "style tools*"
    assert await machine.run("teller", adapter="none") == ""

"""Conversations longer than their window, in kernels that end at bad moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio.lowlevel
import pytest

from llmasos.apps.proc import Proc
from llmasos.kernel.abi import ContextId, Pid
from llmasos.kernel.program import Port
from llmasos.kernel.runtime import Runtime
from tests.kernel.journal.reboots import Machine

pytestmark = pytest.mark.anyio
CORE = {"num_pages": 200, "context_length": 128}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def talk(port: Port, params: Mapping[str, Any]) -> None:
    """Turns and replies that fill the window a few times, also in the middle of a reply."""
    proc = Proc(port)
    async with proc.session(system="rules", window=params["window"]) as session:
        for number in range(5):
            await session.say(f"{number:12}")
            result = await session.context.generate(
                max_tokens=45, temperature=1.0, ignore_eos=True, stop=["zzz"]
            )
            info = await session.context.info()
            copy = await session.fork()
            aside = await copy.ask("aside", max_tokens=4)
            await copy.context.close()
            await proc.print(result.text, aside.text, info.num_tokens, info.num_forgotten)


async def steps(runtime: Runtime, num: int) -> None:
    until = runtime.kernel.num_steps + num
    while runtime.kernel.num_steps < until and runtime.status().num_processes:
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("window", ["slide", "summarise"])
@pytest.mark.parametrize("num_steps", [7, 20, 37, 52])
async def test_a_talk_that_slides_ends_as_if_no_kernel_had_crashed(
    window: str, num_steps: int
) -> None:
    undisturbed = Machine(**CORE)
    undisturbed.app(talk)
    expected = await undisturbed.run("talk", {"window": window})
    machine = Machine(**CORE)
    machine.app(talk)
    async with machine.booted(crashes=True) as runtime:
        pid = await runtime.spawn("talk", {"window": window})
        await steps(runtime, num_steps)
    for _ in range(300):
        async with machine.booted(crashes=True) as runtime:
            await steps(runtime, num_steps)
            status = runtime.kernel.process(pid).exit
            if status is not None:
                assert runtime.output_text(pid) == expected
        if status is not None:
            return
    raise AssertionError("it never got to its end")


async def test_a_shifted_talk_goes_on_after_a_crash_and_is_exact_then() -> None:
    machine = Machine(**CORE)
    machine.app(talk)
    async with machine.booted(crashes=True) as runtime:
        await runtime.spawn("talk", {"window": "shift"})
        contexts = runtime.kernel.process(Pid(1)).contexts
        while not (ContextId(0) in contexts and contexts[ContextId(0)].shift_salt):
            await anyio.lowlevel.checkpoint()
        await runtime.flushed()
    async with machine.booted() as runtime:
        held = runtime.kernel.process(Pid(1)).contexts[ContextId(0)]
        assert held.num_forgotten > 0
        assert not held.shift_salt
        assert (await runtime.wait(Pid(1))).code == 0

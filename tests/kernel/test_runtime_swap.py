"""Real processes through a runtime whose pool is too small, over disks of every temper."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from llmasos.kernel.abi import GroupLimits, ProcessState, Signal
from llmasos.kernel.program import Port
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore
from llmasos.kernel.swap import Swap
from llmasos.kernel.syscall import SyscallTable
from llmasos.syscalls import context, io, llm, process
from tests.kernel.machine import continuation
from tests.kernel.swapping import Disk
from tests.kernel.test_runtime import FunctionProgram, open_with, run

pytestmark = pytest.mark.anyio
NUM_PROCESSES, NUM_TURNS, TURN_TOKENS = 12, 4, 5


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def booted(swap: Swap, folder: Path, *, num_pages: int = 40) -> AsyncIterator[Runtime]:
    modules = (context, llm, process, io)
    runtime = Runtime(
        ScriptedCore(num_pages=num_pages, page_size=4),
        ByteTokenizer(),
        syscalls=SyscallTable(entry for module in modules for entry in module.SYSCALLS),
        programs={}.__getitem__,
        cache_folder=folder,
        swap=swap,
    )
    runtime.kernel.pager.costs.is_loading_forced = True
    with anyio.fail_after(60):
        async with runtime:
            yield runtime
    runtime.kernel.check_integrity()
    assert runtime.kernel.pool.num_held == 0


def talker(between: Callable[[int], None] = lambda _: None) -> FunctionProgram:
    """Talks in turns, the others' turns in between."""

    async def main(port: Port, params: Mapping[str, Any]) -> None:
        number = await open_with(port, params["prompt"])
        for turn in range(NUM_TURNS):
            generate = {"context": number, "max_tokens": TURN_TOKENS}
            result = await port.syscall("llm.generate", generate)
            await port.syscall("io.write", {"text": result.text})
            between(turn)
            await anyio.lowlevel.checkpoint()

    return FunctionProgram(main)


async def everybody_talks(runtime: Runtime, program: FunctionProgram) -> None:
    prompts = [f"{number} has a prompt of its own" for number in range(NUM_PROCESSES)]
    pids = [await runtime.spawn(program, {"prompt": prompt}) for prompt in prompts]
    for prompt, pid in zip(prompts, pids, strict=True):
        status = await runtime.wait(pid)
        assert (status.code, status.message) == (0, "")
        assert runtime.output_text(pid) == continuation(prompt, NUM_TURNS * TURN_TOKENS)


async def test_processes_that_do_not_fit_are_swapped_and_say_the_same(tmp_path: Path) -> None:
    async with booted(Swap.in_folder(tmp_path / "swap"), tmp_path) as runtime:
        await everybody_talks(runtime, talker())
        status = runtime.status()
        assert status.pages_loaded > 0
        assert status.swap_warning == ""
        loaded = sum(row.tokens_swapped_in for row in runtime.ps(all=True))
        assert loaded > 0


async def test_a_disk_that_fills_up_is_a_warning_and_everybody_finishes(tmp_path: Path) -> None:
    async with booted(Swap(Disk(capacity=1500)), tmp_path) as runtime:
        await everybody_talks(runtime, talker())
        assert "No space left" in runtime.status().swap_warning


@pytest.mark.parametrize("how", ["flip", "cut", "lose", "fail"])
async def test_a_disk_that_rots_under_them_changes_nothing_that_they_say(
    how: str, tmp_path: Path
) -> None:
    disk = Disk()

    def rot(turn: int) -> None:
        disk.read_error = OSError(5, "Input/output error") if how == "fail" and turn % 2 else None
        for name in disk.names():
            file = disk.files.get(name, bytearray())
            if how == "flip" and file:
                file[len(file) * turn // NUM_TURNS] ^= 8
            elif how == "cut":
                del file[len(file) * 3 // 4 :]
            elif how == "lose" and turn == 1:
                disk.remove(name)

    swap = Swap(disk, max_bytes=20_000)
    async with booted(swap, tmp_path) as runtime:
        await everybody_talks(runtime, talker(rot))


async def test_a_stopped_process_comes_back_from_the_disk(tmp_path: Path) -> None:
    async with booted(Swap.in_folder(tmp_path / "swap"), tmp_path, num_pages=16) as runtime:
        program = talker()
        pid = await runtime.spawn(program, {"prompt": "stopped in its first turns"})
        while not runtime.info(pid).tokens_out:
            await anyio.lowlevel.checkpoint()
        runtime.signal(pid, Signal.STOP)
        other = await runtime.spawn(program, {"prompt": "another that needs all memory there is"})
        assert (await runtime.wait(other)).code == 0
        assert runtime.info(pid).state is ProcessState.STOPPED
        assert runtime.info(pid).pages_private + runtime.info(pid).pages_shared == 0
        runtime.signal(pid, Signal.CONT)
        assert (await runtime.wait(pid)).code == 0
        said = continuation("stopped in its first turns", NUM_TURNS * TURN_TOKENS)
        assert runtime.output_text(pid) == said
        assert runtime.info(pid).tokens_swapped_in > 0


async def test_a_group_out_of_tokens_ends_its_processes_as_a_limit_does(tmp_path: Path) -> None:
    async with booted(Swap(Disk()), tmp_path) as runtime:
        runtime.set_group_limits("batch", GroupLimits(tokens_out=7, pages=12))
        code, message = await run(
            runtime, talker()._main, params={"prompt": "limited"}, group="batch"
        )
        assert (code, message) == (124, "Group batch may sample 7 tokens and has done so.")
        await everybody_talks(runtime, talker())

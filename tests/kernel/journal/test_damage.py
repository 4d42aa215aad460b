"""Bits flipped and ends torn off in a crashed home: a process ends as if undisturbed, or is told of as
damaged; what it prints is never another text than the right one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import ConfigError
from llmasos.kernel.program import Port
from llmasos.kernel.runtime import Runtime
from tests.kernel.journal.reboots import Machine

pytestmark = pytest.mark.anyio

NUM_PROCESSES = 4


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def tale(port: Port, params: Mapping[str, Any]) -> None:
    number = await port.syscall("ctx.open", {})
    await port.syscall("ctx.append", {"context": number, "text": params["about"]})
    for _ in range(6):
        result = await port.syscall("llm.generate", {"context": number, "max_tokens": 9})
        await port.syscall("io.write", {"text": result.text})
        await port.syscall("ctx.append", {"context": number, "text": "and"})


def machine(folder: Path | None = None) -> Machine:
    made = Machine(folder, num_pages=256)
    made.app(tale)
    return made


async def spawn_all(runtime: Runtime) -> None:
    for number in range(NUM_PROCESSES):
        await runtime.spawn("tale", {"about": f"tale {number}"})


async def undisturbed() -> list[str]:
    async with machine().booted() as runtime:
        await spawn_all(runtime)
        return [await _printed(runtime, Pid(pid)) for pid in range(1, NUM_PROCESSES + 1)]


async def _printed(runtime: Runtime, pid: Pid) -> str:
    assert (await runtime.wait(pid)).code == 0
    return runtime.output_text(pid)


async def crashed_home() -> Machine:
    home = machine()
    async with home.booted(crashes=True) as runtime:
        await spawn_all(runtime)
        while runtime.kernel.num_steps < 20:
            await anyio.lowlevel.checkpoint()
        await runtime.flushed()
    return home


def damage(folder: Path, draw: random.Random) -> str:
    """Flip a bit, or tear off an end, of the journal's file or its WAL."""
    files = [file for file in sorted(folder.glob("journal.db*")) if not file.name.endswith("-shm")]
    file = draw.choice([file for file in files if file.stat().st_size])
    content = bytearray(file.read_bytes())
    place = draw.randrange(len(content))
    if draw.random() < 0.4:
        file.write_bytes(content[:place])
        return f"{file.name} torn off at {place}"
    content[place] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return f"a bit of {file.name} flipped at {place}"


@pytest.mark.parametrize("seed", range(40))
async def test_damage_is_repaired_or_told_of_and_never_believed(seed: int, tmp_path: Path) -> None:
    expected, folder = await undisturbed(), tmp_path / "home"
    crashed = await crashed_home()
    shutil.copytree(crashed.folder, folder)
    draw = random.Random(seed)
    told = [damage(folder, draw) for _ in range(draw.choice((1, 1, 1, 4)))]
    home = machine(folder)
    try:
        async with home.booted() as runtime:
            for pid in range(1, NUM_PROCESSES + 1):
                await _end_or_say(home, runtime, Pid(pid), expected[pid - 1], told)
    except ConfigError as error:  # the whole file is refused
        refused = str(error)
        assert "journal" in refused, told


async def _end_or_say(
    home: Machine, runtime: Runtime, pid: Pid, expected: str, told: list[str]
) -> None:
    """It ends as undisturbed; or it is told of as damaged or held; one that is gone is warned of, except
    where the WAL's end was torn off: that is how it was a moment earlier, before the process began."""
    if pid in home.recovered.damaged or pid in home.recovered.held:
        said = {**home.recovered.damaged, **home.recovered.held}[pid]
        assert str(pid) in said or "journal" in said, (told, said)
        return
    if pid in runtime.kernel.processes:
        status = await runtime.wait(pid)
        assert status.code == 0, (told, status)
        assert runtime.output_text(pid) == expected, told
        return
    row = home.row(pid)
    if row is None:
        was_torn = any("-wal torn off" in what for what in told)
        assert was_torn or runtime.status().journal_warning, told
    else:
        assert row.is_damaged or row.ended_at is not None, (told, row)

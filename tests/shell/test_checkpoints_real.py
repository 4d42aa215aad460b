"""A process of the real model, moved between homes in the middle of a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from llmasos.kernel.abi import Pid
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.models import StoredModel
from llmasos.kernel.models.tokenizer import ModelTokenizer
from llmasos.shell.local import LocalSession
from llmasos.shell.session import SpawnRequest
from tests.shell.homes import Home

pytestmark = [pytest.mark.model, pytest.mark.anyio]
PARAMS = {
    "prompt": "The history of the lighthouse is long. " * 8,
    "max_tokens": 160,
    "ignore_eos": True,
}


@pytest.fixture
def homes(real_model: Callable[[str], StoredModel], tmp_path: Path) -> list[Home]:
    model = real_model("smollm2")
    tokenizer = ModelTokenizer.load(model.folder)

    def core() -> TorchCore:
        return TorchCore.load(
            model.folder, name=model.name, fingerprint=model.fingerprint, kv_memory_bytes=2**28
        )

    return [Home(tmp_path / name, core=core, tokenizer=tokenizer) for name in ("a", "b")]


async def spawned(session: LocalSession) -> Pid:
    return await session.spawn(SpawnRequest("complete", {**PARAMS}, seed=5, foreground=False))


async def until_it_writes(session: LocalSession, pid: Pid, num_tokens: int) -> None:
    with anyio.fail_after(60):
        while (await session.info(pid)).tokens_out < num_tokens:
            await anyio.sleep(0.002)


@pytest.mark.parametrize("flags", ["", "--pages --zstd"])
async def test_a_restored_process_writes_the_very_text_that_it_would_have_written(
    homes: list[Home], tmp_path: Path, flags: str
) -> None:
    here, there = homes
    file = tmp_path / "process.ckpt"
    async with here.booted(swap=True) as session:
        pid = await spawned(session)
        await until_it_writes(session, pid, 12)
        assert (await here.does(f"checkpoint {pid} -o {file} {flags}"))[0] == 0
        assert (await session.info(pid)).exit is None
        assert (await session.wait(pid)).code == 0
        expected = await session.output_text(pid)
    async with there.booted(swap=True) as session:
        code, out, _ = await there.does(f"restore -d {file}")
        assert code == 0
        child = Pid(int(out))
        assert (await session.wait(child)).code == 0
        assert await session.output_text(child) == expected
    assert (await there.does(f"replay {child}"))[:2] == (0, expected)


async def test_a_branch_in_the_middle_of_a_sentence_ends_it_as_the_original(
    homes: list[Home],
) -> None:
    home = homes[0]
    async with home.booted() as session:
        pid = await spawned(session)
        await until_it_writes(session, pid, 12)
        code, out, _ = await home.does(f"fork {pid}@")
        assert code == 0
        child = Pid(int(out))
        for each in (pid, child):
            assert (await session.wait(each)).code == 0
        assert await session.output_text(child) == await session.output_text(pid)
        assert (await session.info(child)).tokens_cached > 0

"""An app's own view of what it may do and use, against a running kernel."""

from pathlib import Path

import anyio
import pytest

from llmasos.apps.sdk import Grant, Limits, Narrowing, Proc, Signal, SyscallError, app
from llmasos.kernel.abi import Capabilities
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore
from llmasos.syscalls import builtin_syscalls

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@app(name="helper", summary="Tries to write two files.")
async def helper(proc: Proc) -> int:
    for path in ("a.txt", "b.txt"):
        try:
            await proc.call("fs.write", path=path, text="12345")
            await proc.print("wrote", path)
        except SyscallError as error:
            await proc.print(error.code)
    return 0


async def run(program, folder: Path, **options):
    apps = {each.info.name: each for each in (program, helper)}
    with anyio.fail_after(30):
        async with Runtime(
            ScriptedCore(),
            ByteTokenizer(),
            syscalls=builtin_syscalls(),
            programs=apps.__getitem__,
            cache_folder=folder / "cache",
            capabilities=Capabilities(root=str(folder)),
        ) as runtime:
            pid = await runtime.spawn(program.info.name, **options)
            status = await runtime.wait(pid)
            assert (status.code, status.message) == (0, "")
            runtime.kernel.check_integrity()
            return runtime.output_text(pid)


async def test_a_child_is_given_a_folder_below_and_so_many_bytes(tmp_path):
    @app(name="boss", summary="Has others work.")
    async def boss(proc: Proc) -> None:
        drafts = Grant(0, Narrowing(within="drafts"))
        child = await proc.spawn("helper", grant=[drafts], limits=Limits(bytes_written=7))
        await proc.print((await child.wait()).output)
        reader = await proc.spawn("helper", grant=[Grant(0, Narrowing(read_only=True))])
        await proc.print((await reader.wait()).output)

    (tmp_path / "drafts").mkdir()
    said = await run(boss, tmp_path)
    assert said.split("\n\n") == [
        "wrote a.txt\nlimit_exceeded", "permission_denied\npermission_denied", "",
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "drafts").iterdir()] == ["a.txt"]


async def test_what_is_derived_is_seen_sent_and_taken_back(tmp_path):
    @app(name="dealer", summary="Deals.")
    async def dealer(proc: Proc) -> None:
        handle = await proc.derive(0, Narrowing(syscalls=("fs.*",), expires_in_s=60))
        child = await proc.spawn("helper", grant=[])
        await proc.send(handle, child)
        held = await proc.capabilities()
        assert [(each.handle, each.num_derived) for each in held] == [(0, 2), (handle, 1)]
        assert held[1].allows.syscalls == ("fs.*",)
        assert await proc.revoke(handle) == 2
        assert [each.state for each in await proc.capabilities()] == ["live", "revoked"]
        await child.wait()

    await run(dealer, tmp_path)


async def test_an_app_sees_its_limits_and_waits_for_signals(tmp_path):
    @app(name="saver", summary="Saves.")
    async def saver(proc: Proc) -> None:
        (limit,) = await proc.limits()
        assert (limit.name, limit.limit, limit.left, limit.scope) == ("tokens_in", 10, 10, "own")
        async with proc.context() as context:
            await context.append("123456789")
        assert await proc.signals(wait=True) == [Signal.XTOK]
        assert await proc.signals() == []

    await run(saver, tmp_path, limits=Limits(tokens_in=10))

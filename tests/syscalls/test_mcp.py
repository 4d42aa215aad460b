"""MCP servers as syscalls: a real server's tools are called, lost ones come back."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from llmasos.kernel.abi import Effect
from llmasos.kernel.errors import Failed, InvalidArguments
from llmasos.kernel.syscall import SyscallTable
from llmasos.syscalls.mcp import MAX_RESULT_CHARS, Mounts, ServerConfig, mounted
from tests.syscalls.conftest import Caller

pytestmark = pytest.mark.anyio
SERVER = str(Path(__file__).with_name("mcp_server.py"))
STDIO = ServerConfig(command=sys.executable, args=(SERVER,))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def mounts(anyio_backend: str) -> AsyncIterator[Mounts]:
    async with mounted({"test": STDIO}) as found:
        yield found


def tool(mounts: Mounts, name: str) -> Any:
    return SyscallTable(mounts.syscalls)[f"mcp.test.{name}"]


async def test_tools_are_mounted_with_their_schemas_and_effects(mounts: Mounts) -> None:
    info = tool(mounts, "add").info
    assert info.description == "Add two numbers."
    assert set(info.parameters["properties"]) == {"a", "b"}
    assert (info.effect, info.tool) == (Effect.READ, True)
    assert tool(mounts, "fail").info.effect is Effect.EXTERNAL
    assert len(tool(mounts, "wordy").info.description) == 2000
    assert [p for p in mounts.problems if "name that cannot be used" in p]


async def test_a_tool_is_called(mounts: Mounts, caller: Caller) -> None:
    result = await caller(tool(mounts, "add"), a=2, b=3)
    assert result["text"] == "5"
    result = await caller(tool(mounts, "record"))
    assert result["structured"] == {"name": "otter", "legs": 4}


async def test_a_tools_own_error_is_told(mounts: Mounts, caller: Caller) -> None:
    with pytest.raises(Failed, match="no more fish"):
        await caller(tool(mounts, "fail"), reason="no more fish")
    with pytest.raises(Failed):
        await caller(tool(mounts, "add"), a="two", b=[])


async def test_arguments_are_bounded_before_they_are_sent(mounts: Mounts, caller: Caller) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for args in (
        {"a": 1},
        {"a": 1, "b": object()},
        {"a": 1, "b": float("nan")},
        {"a": 1, "b": deep},
    ):
        with pytest.raises(InvalidArguments):
            await caller(tool(mounts, "add"), **args)
    with pytest.raises(InvalidArguments, match="too large"):
        await caller(tool(mounts, "fail"), reason="x" * 1_000_001)


async def test_a_flood_is_cut(mounts: Mounts, caller: Caller) -> None:
    result = await caller(tool(mounts, "flood"), size=3_000_000)
    assert len(result["text"]) == MAX_RESULT_CHARS
    assert result["truncated"]


async def test_calls_run_at_the_same_time(mounts: Mounts, caller: Caller) -> None:
    texts: list[str] = []

    async def call() -> None:
        texts.append((await caller(tool(mounts, "wait"), seconds=0.3))["text"])

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(call)
    assert texts == ["at last"] * 20


async def test_a_cancelled_call_leaves_the_connection_usable(
    mounts: Mounts, caller: Caller
) -> None:
    with anyio.move_on_after(0.1) as scope:
        await caller(tool(mounts, "wait"), seconds=60)
    assert scope.cancelled_caught
    assert (await caller(tool(mounts, "add"), a=1, b=1))["text"] == "2"


async def test_a_server_that_dies_is_started_again(mounts: Mounts, caller: Caller) -> None:
    with pytest.raises(Failed, match="may have happened or not"):
        await caller(tool(mounts, "die"))
    assert (await caller(tool(mounts, "add"), a=1, b=1))["text"] == "2"


async def test_a_call_that_only_reads_is_repeated(
    mounts: Mounts, caller: Caller, tmp_path: Path
) -> None:
    result = await caller(tool(mounts, "die_once"), marker=str(tmp_path / "marker"))
    assert result["text"] == "alive"


async def test_a_server_sees_no_secret_of_the_environment(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    config = ServerConfig(command=sys.executable, args=(SERVER,), env={"GIVEN": "1"})
    async with mounted({"test": config}) as found:
        names = (await caller(tool(found, "environment")))["text"].split()
    assert "SECRET_TOKEN" not in names
    assert "GIVEN" in names


async def test_only_the_wanted_tools_are_mounted() -> None:
    config = ServerConfig(command=sys.executable, args=(SERVER,), tools=("a*", "record"))
    async with mounted({"test": config}) as found:
        assert {entry.name for entry in found.syscalls} == {"mcp.test.add", "mcp.test.record"}


@pytest.mark.parametrize(
    "config",
    [
        ServerConfig(command="/no/such/program"),
        ServerConfig(command=sys.executable, args=("-c", "print('hello')")),
        ServerConfig(command=sys.executable, args=("-c", "import sys; sys.exit(3)")),
        ServerConfig(url="http://127.0.0.1:1/mcp"),
    ],
    ids=["missing", "no server", "exits", "refused"],
)
async def test_a_server_that_cannot_be_reached_is_a_problem_not_an_error(
    config: ServerConfig,
) -> None:
    with anyio.fail_after(40):
        async with mounted({"bad": config, "test": STDIO}) as found:
            assert [p for p in found.problems if "bad" in p]
            assert "mcp.test.add" in SyscallTable(found.syscalls)


@pytest.fixture
def http_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def start_http(port: int) -> subprocess.Popen[bytes]:
    server = subprocess.Popen(
        [sys.executable, SERVER, "http", str(port)], stderr=subprocess.DEVNULL
    )
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            continue
        break
    return server


async def test_a_server_over_http_is_mounted_and_comes_back(caller: Caller, http_port: int) -> None:
    server = start_http(http_port)
    try:
        url = f"http://127.0.0.1:{http_port}/mcp"
        async with mounted({"test": ServerConfig(url=url)}) as found:
            assert (await caller(tool(found, "add"), a=2, b=3))["text"] == "5"
            server.kill()
            server.wait()
            with pytest.raises(Failed):
                await caller(tool(found, "record"))
            server = start_http(http_port)
            assert (await caller(tool(found, "add"), a=2, b=4))["text"] == "6"
    finally:
        server.kill()
        server.wait()

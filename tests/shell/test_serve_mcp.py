"""`serve mcp`: a real MCP client finds the kernel's tools and apps, and its calls are processes."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters

from llmasos.apps.builtin import load_builtin
from llmasos.kernel.abi import Capabilities, Limits
from llmasos.kernel.errors import ConfigError
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore, replies
from llmasos.shell.local import LocalSession
from llmasos.shell.mcp_server import KernelTools, server_for
from llmasos.shell.settings import load_settings
from llmasos.shell.verbs.apps import installed_apps
from llmasos.syscalls import builtin_syscalls

pytestmark = pytest.mark.anyio


@pytest.fixture
async def session(tmp_path: Path, anyio_backend: str) -> AsyncIterator[LocalSession]:
    async with Runtime(
        ScriptedCore(replies(lambda _: "Paris.")),
        ByteTokenizer(),
        syscalls=builtin_syscalls(),
        programs=load_builtin,
        cache_folder=tmp_path / "home" / "cache",
    ) as runtime:
        yield LocalSession(runtime, installed_apps)
        runtime.kernel.check_integrity()


@pytest.fixture
async def client(session: LocalSession, tmp_path: Path) -> AsyncIterator[Client]:
    async with Client(server_for(tools(session, tmp_path)), mode="legacy") as connected:
        yield connected


def tools(session: LocalSession, folder: Path, **options: Any) -> KernelTools:
    root = folder / "root"
    root.mkdir(exist_ok=True)
    given = {"patterns": ("*",), "limits": Limits(), **options}
    return KernelTools(session, capabilities=Capabilities(root=str(root)), **given)


def text(result: Any) -> str:
    return "".join(block.text for block in result.content)


async def test_tools_and_apps_are_offered(client: Client) -> None:
    found = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert {"fs.read", "search", "calc", "memory.recall", "app.agent", "app.complete"} <= set(found)
    assert not [name for name in found if name.startswith(("proc.", "ctx.", "llm.", "app.call"))]
    assert found["fs.read"].annotations.read_only_hint
    assert not found["fs.write"].annotations.read_only_hint
    assert found["fs.read"].input_schema["properties"]["path"]
    assert found["app.complete"].input_schema["required"] == ["prompt"]


async def test_a_syscall_is_made_as_a_process(
    client: Client, session: LocalSession, tmp_path: Path
) -> None:
    await client.call_tool("fs.write", {"path": "a.txt", "text": "hello"})
    assert (tmp_path / "root" / "a.txt").read_text() == "hello"
    result = await client.call_tool("fs.read", {"path": "a.txt"})
    assert text(result) == "hello"
    assert result.structured_content["total_lines"] == 1
    assert not result.is_error
    titles = [process.title for process in await session.ps(all=True)]
    assert titles == ["mcp: fs.write", "mcp: fs.read"]


async def test_an_app_is_run(client: Client) -> None:
    result = await client.call_tool("app.agent", {"task": "What is the capital of France?"})
    assert text(result) == "Paris.\n"


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("fs.read", {"path": "../secret.txt"}, "outside this process's folder"),
        ("fs.read", {"path": "gone.txt"}, "There is no"),
        ("fs.read", {"nonsense": 1}, "path"),
        ("web.fetch", {"url": "http://example.org/"}, "may not reach"),
        ("no.such.tool", {}, "no syscall"),
        ("proc.kill", {"pid": 1}, "no tool"),
        ("app.nothing", {}, "no app"),
        ("app.complete", {}, "prompt"),
        ("calc", {"expression": "9**9**9"}, ""),
    ],
)
async def test_what_fails_is_told_as_the_tools_error(
    client: Client, name: str, args: dict[str, Any], said: str
) -> None:
    result = await client.call_tool(name, args)
    assert result.is_error
    assert said in text(result)
    assert "Traceback" not in text(result)


async def test_only_chosen_tools_are_there(session: LocalSession, tmp_path: Path) -> None:
    some = tools(session, tmp_path, patterns=("calc", "app.c*"))
    assert [tool.name for tool in await some.tools()] == ["calc", "app.chat", "app.complete"]
    assert (await some.call("fs.list", {})).is_error


async def test_a_call_that_takes_too_long_is_ended(session: LocalSession, tmp_path: Path) -> None:
    short = tools(session, tmp_path, limits=Limits(wall_s=0.2))
    result = await short.call("time.sleep", {"seconds": 600})
    assert result.is_error


async def test_a_client_that_gives_up_kills_the_process(
    session: LocalSession, tmp_path: Path
) -> None:
    with anyio.move_on_after(0.2) as scope:
        await tools(session, tmp_path).call("time.sleep", {"seconds": 600})
    assert scope.cancelled_caught
    with anyio.fail_after(5):
        while [process for process in await session.ps() if process.exit is None]:
            await anyio.sleep(0.01)


def test_settings_name_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path))
    config = tmp_path / "config.toml"
    config.write_text('[mcp.servers.files]\ncommand = "serve-files"\nargs = ["--all"]\n')
    assert load_settings().mcp.servers["files"].args == ("--all",)
    config.write_text('[mcp.servers.a]\n[mcp.servers.b]\ncommand="x"\nurl="y"\ncolour="red"\n')
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert len(caught.value.problems) >= 2


@pytest.mark.model
async def test_the_command_line_serves_a_real_client(
    real_home: Path, tmp_path: Path, anyio_backend: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "models").symlink_to(real_home / "models")
    (tmp_path / "notes.md").write_text("The ferry sails at nine.")
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "llmasos", "serve", "mcp", "--home", str(home), "--root", str(tmp_path)],
        env={"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )
    async with Client(command) as connected:
        assert "fs.read" in {tool.name for tool in (await connected.list_tools()).tools}
        result = await connected.call_tool("search", {"query": "ferry"})
        assert "nine" in text(result)
        answer = await connected.call_tool(
            "app.complete", {"prompt": "The capital of France is", "max_tokens": 8}
        )
        assert "Paris" in text(answer)
    assert result.structured_content["hits"][0]["path"] == "notes.md"

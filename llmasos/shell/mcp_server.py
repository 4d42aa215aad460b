"""A kernel as an MCP server: its tool syscalls, and its apps as `app.<name>`.

Each call is a process of its own, with the capabilities that the server was started with: what may be
called, at what cost, and who sees it is decided where it is for every process. Needs the `mcp` package.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import anyio
import mcp_types as types
from mcp.server import Server

from llmasos import __version__
from llmasos.kernel.abi import AppInfo, Capabilities, Effect, Limits, Signal, SyscallInfo
from llmasos.kernel.errors import LlmosError
from llmasos.shell.session import KernelSession, SpawnRequest

APP_PREFIX = "app."
CALL = "call"
MAX_TEXT_CHARS = 200_000
_HIDDEN = ("proc.*",)
"""About a process's own children: here each call is another process."""


class KernelTools:
    """What a session's kernel offers to MCP clients. `patterns` choose among the names."""

    def __init__(
        self,
        session: KernelSession,
        *,
        patterns: Sequence[str],
        capabilities: Capabilities,
        limits: Limits,
    ) -> None:
        self._session = session
        self._patterns = tuple(patterns)
        self._capabilities = capabilities
        self._limits = limits

    async def tools(self) -> list[types.Tool]:
        """By name, syscalls first."""
        syscalls = [_syscall_tool(info) for info in await self._session.syscalls() if info.tool]
        apps = [_app_tool(info) for info in await self._session.apps() if info.name != CALL]
        return [tool for tool in (*syscalls, *apps) if self._offers(tool.name)]

    async def call(self, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """Run it as a process and give what it printed. A client that gives up kills it."""
        if not self._offers(name):
            return _failed(f"There is no tool {name[:100]!r} here.")
        try:
            pid = await self._session.spawn(self._request(name, arguments))
        except LlmosError as error:
            return _failed(str(error))
        try:
            status = await self._session.wait(pid)
            printed = (await self._session.output_text(pid))[:MAX_TEXT_CHARS]
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(2, shield=True):
                await self._session.signal(pid, Signal.KILL)
            raise
        if status.code:
            return _failed("\n".join(filter(None, (printed, status.message))) or "It failed.")
        return _succeeded(printed, is_app=name.startswith(APP_PREFIX))

    def _offers(self, name: str) -> bool:
        is_hidden = any(fnmatchcase(name, pattern) for pattern in _HIDDEN)
        return not is_hidden and any(fnmatchcase(name, pattern) for pattern in self._patterns)

    def _request(self, name: str, arguments: dict[str, Any]) -> SpawnRequest:
        app, params = CALL, {"name": name, "args": arguments}
        if name.startswith(APP_PREFIX):
            app, params = name.removeprefix(APP_PREFIX), arguments
        return SpawnRequest(
            app,
            params,
            title=f"mcp: {name}"[:80],
            capabilities=self._capabilities,
            limits=self._limits,
        )


def server_for(tools: KernelTools) -> Server[Any]:
    """An MCP server that offers them."""

    async def list_tools(_context: Any, _page: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=await tools.tools())

    async def call_tool(_context: Any, asked: types.CallToolRequestParams) -> types.CallToolResult:
        return await tools.call(asked.name, dict(asked.arguments or {}))

    return Server(
        "llmasos",
        version=__version__,
        instructions="Tools and apps of an LLMasOS kernel.",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _syscall_tool(info: SyscallInfo) -> types.Tool:
    return types.Tool(
        name=info.name,
        description=info.description,
        input_schema=info.parameters,
        annotations=types.ToolAnnotations(
            read_only_hint=info.effect in (Effect.PURE, Effect.READ),
            open_world_hint=info.effect is Effect.EXTERNAL,
        ),
    )


def _app_tool(info: AppInfo) -> types.Tool:
    schema = {"type": "object", **info.parameters}
    return types.Tool(
        name=f"{APP_PREFIX}{info.name}", description=info.summary, input_schema=schema
    )


def _succeeded(printed: str, *, is_app: bool) -> types.CallToolResult:
    """A syscall's result also as JSON, and where it has a `text` that as the text."""
    if is_app:
        return types.CallToolResult(content=[types.TextContent(type="text", text=printed)])
    try:
        result = json.loads(printed)
    except ValueError:  # cut: then as it is
        result = None
    structured = result if isinstance(result, dict) else None
    text = structured.get("text") if structured else None
    content = types.TextContent(type="text", text=text if isinstance(text, str) else printed)
    return types.CallToolResult(content=[content], structured_content=structured)


def _failed(reason: str) -> types.CallToolResult:
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=reason)], is_error=True
    )

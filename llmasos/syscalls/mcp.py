"""`mcp.<server>.<tool>`: tools of Model Context Protocol servers, mounted as syscalls.

Needs the official package (extra `mcp`), which does the protocol. Each server has a connection that a task
of its own holds; one that is lost is made again by the next call. What a server says is foreign: names,
descriptions, schemas and results are bounded, what does not fit is left out and told in `problems`.

A tool is `external` unless its server claims that it only reads. A call that was under way when the
connection went is repeated only for those; for others it fails, and says that it may have happened.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import Any, NamedTuple, TypedDict

import anyio
import mcp_types as types
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel, ConfigDict

from llmasos.kernel.abi import Effect, SyscallInfo
from llmasos.kernel.errors import Failed, InvalidArguments
from llmasos.kernel.redaction import Secret, redacted
from llmasos.kernel.syscall import Call, Syscall

CONNECT_S = 30.0
MAX_TOOLS = 200
"""Of one server."""
MAX_PAGES = 50
MAX_SCHEMA_CHARS = 20_000
MAX_DESCRIPTION_CHARS = 2_000
MAX_ARGUMENT_CHARS = 1_000_000
MAX_RESULT_CHARS = 200_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,63}")

Streams = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How to reach a server: a command that speaks on stdin and stdout, or the URL of one that runs."""

    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Added to the few variables it gets (PATH, HOME ...)."""
    cwd: str | None = None
    url: str = ""
    tools: tuple[str, ...] = ("*",)
    """Patterns of the tools to mount."""
    timeout_s: float | None = 300.0
    """What a call may take; None is without end."""
    secrets: tuple[Secret, ...] = ()
    """Those in its environment: kept out of all that it says."""


class McpResult(TypedDict):
    """What a tool said; `structured` is JSON where the server gave some, else None."""

    text: str
    structured: Any
    truncated: bool


@dataclass(frozen=True, slots=True)
class Mounts:
    """Tools that can be called now, and what was left out and why, a sentence each."""

    syscalls: tuple[Syscall, ...]
    problems: tuple[str, ...]


@asynccontextmanager
async def mounted(servers: Mapping[str, ServerConfig]) -> AsyncGenerator[Mounts]:
    """Connect to servers and keep the connections for as long as the context lasts.

    One that cannot be reached is a problem told in the result, not an error.
    """
    syscalls: list[Syscall] = []
    problems: list[str] = []
    async with anyio.create_task_group() as tasks:
        for name, config in servers.items():
            connection = Connection(name, config)
            tasks.start_soon(connection.run)
            try:
                tools = await connection.tools()
            except Failed as error:
                problems.append(redacted(str(error), config.secrets))
                continue
            for tool in tools:
                problem = _mount(connection, tool, syscalls)
                problems += [problem] if problem else []
        yield Mounts(tuple(syscalls), tuple(problems))
        tasks.cancel_scope.cancel()


@dataclass(slots=True, eq=False)
class _Link:
    """One attempt at a connection, and the connection while it lasts."""

    settled: anyio.Event = field(default_factory=anyio.Event)
    """It stands or has failed."""
    lost: anyio.Event = field(default_factory=anyio.Event)
    client: Client | None = None
    error: str = ""

    @property
    def is_over(self) -> bool:
        """Nothing more will come of it."""
        return self.lost.is_set() or (self.settled.is_set() and self.client is None)


class _Standing(NamedTuple):
    """A connection in use."""

    client: Client
    lost: anyio.Event


class Connection:
    """The connection to one server. `run` holds it; calls come from any task of the same loop."""

    def __init__(self, name: str, config: ServerConfig) -> None:
        self.name = name
        self.config = config
        self._link = _Link()
        self._link.lost.set()
        self._asked, self._asking = anyio.create_memory_object_stream[_Link](math.inf)

    async def run(self) -> None:
        """Make the connections that are asked for and hold each until it is lost."""
        async with anyio.create_task_group() as tasks:
            async for link in self._asking:
                tasks.start_soon(self._hold, link)

    async def _hold(self, link: _Link) -> None:
        try:
            async with Client(
                _noticing(self._transport(), link.lost),
                cache=None,
                client_info=types.Implementation(name="llmasos", version=version("llmasos")),
            ) as client:
                link.client = client
                link.settled.set()
                await link.lost.wait()
        except Exception as error:  # noqa: BLE001 - a foreign protocol stack raises anything
            link.error = _reason(error, self.config.secrets)
        link.lost.set()
        link.settled.set()

    async def tools(self) -> list[types.Tool]:
        """All tools that the server offers and the configuration wants. Raises `Failed`."""
        client = (await self._connected()).client
        found: list[types.Tool] = []
        cursor = None
        try:
            with anyio.fail_after(CONNECT_S):
                for _ in range(MAX_PAGES):
                    page = await client.list_tools(cursor=cursor)
                    found += page.tools
                    cursor = page.next_cursor
                    if not cursor or len(found) > MAX_TOOLS:
                        break
        except TimeoutError as error:
            raise Failed(f"The MCP server {self.name} does not list its tools.") from error
        except Exception as error:
            raise Failed(
                f"The MCP server {self.name} fails: {_reason(error, self.config.secrets)}."
            ) from error
        return [t for t in found if any(fnmatchcase(t.name, p) for p in self.config.tools)]

    async def call(
        self, tool: str, arguments: dict[str, Any], *, may_repeat: bool
    ) -> types.CallToolResult:
        """Call a tool. Raises `Failed`."""
        link = await self._connected()
        try:
            return await link.client.call_tool(tool, arguments)
        except MCPError as error:
            if error.code != types.CONNECTION_CLOSED and not link.lost.is_set():
                raise Failed(f"{self.name}: {_reason(error, self.config.secrets)}.") from error
        except Exception as error:
            link.lost.set()
            raise Failed(
                f"The MCP server {self.name} fails: {_reason(error, self.config.secrets)}."
            ) from error
        link.lost.set()
        if may_repeat:
            return await self.call(tool, arguments, may_repeat=False)
        raise Failed(
            f"The MCP server {self.name} went away during the call; it may have happened or not."
        )

    async def _connected(self) -> _Standing:
        """A connection that stands, made anew where it was lost. Raises `Failed`."""
        if self._link.is_over:
            self._link = _Link()
            self._asked.send_nowait(self._link)
        link = self._link
        with anyio.move_on_after(CONNECT_S):
            await link.settled.wait()
        if link.client is None or link.lost.is_set():
            reason = link.error or "it does not answer"
            link.lost.set()
            raise Failed(f"The MCP server {self.name} cannot be reached: {reason}.")
        return _Standing(link.client, link.lost)

    def _transport(self) -> AbstractAsyncContextManager[Streams]:
        config = self.config
        if config.url:
            return streamable_http_client(config.url)
        parameters = StdioServerParameters(
            command=config.command, args=list(config.args), env=dict(config.env), cwd=config.cwd
        )
        return _quiet_stdio(parameters)


@asynccontextmanager
async def _quiet_stdio(parameters: StdioServerParameters) -> AsyncGenerator[Streams]:
    """A server's stderr is not the kernel's."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        async with stdio_client(parameters, errlog=nowhere) as streams:
            yield streams


@asynccontextmanager
async def _noticing(
    transport: AbstractAsyncContextManager[Streams], lost: anyio.Event
) -> AsyncGenerator[Streams]:
    """The same transport; `lost` is set once nothing more can come from it."""
    async with transport as (reading, writing):
        yield _Noticing(reading, lost), writing


class _Noticing:
    """A read stream that tells of its end."""

    def __init__(self, stream: Any, lost: anyio.Event) -> None:
        self._stream = stream
        self._lost = lost

    @property
    def last_context(self) -> Any:
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        try:
            return await self._stream.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._lost.set()
            raise

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def __aenter__(self) -> _Noticing:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *reason: Any) -> Any:
        return await self._stream.__aexit__(*reason)


# --- one tool


class _AnyArguments(BaseModel):
    """The server checks its own arguments."""

    model_config = ConfigDict(extra="allow")


@dataclass(frozen=True, slots=True)
class MountedSyscall(Syscall):
    """A tool of a server. Its driver takes all arguments as one."""

    def validate(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, if they are JSON of a decent size; raises `InvalidArguments`."""
        try:
            size = len(json.dumps(dict(args), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArguments(f"{self.name}: the arguments are not JSON.") from error
        if size > MAX_ARGUMENT_CHARS:
            raise InvalidArguments(f"{self.name}: the arguments are too large.")
        missing = [n for n in self.info.parameters.get("required", ()) if n not in args]
        if missing:
            raise InvalidArguments(f"{self.name}: {missing[0]}: field required.")
        return {"arguments": dict(args)}


def _mount(connection: Connection, tool: types.Tool, into: list[Syscall]) -> str:
    """Add a tool to the syscalls; or why it is left out, one sentence."""
    name = f"mcp.{connection.name}.{tool.name}"
    if not _NAME.fullmatch(tool.name):
        return f"A tool of the MCP server {connection.name} has a name that cannot be used."
    if any(entry.name == name for entry in into):
        return f"{name} is offered twice; the first is used."
    if sum(entry.name.startswith(f"mcp.{connection.name}.") for entry in into) >= MAX_TOOLS:
        return f"{name} is left out: the server has more than {MAX_TOOLS} tools."
    schema = _schema(tool)
    if schema is None:
        return f"{name} is left out: its schema is no JSON object of a decent size."
    schema = redacted(schema, connection.config.secrets)
    into.append(_syscall(connection, tool, name, schema))
    return ""


def _schema(tool: types.Tool) -> dict[str, Any] | None:
    try:
        size = len(json.dumps(tool.input_schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return None
    required = tool.input_schema.get("required", [])
    properties = tool.input_schema.get("properties", {})
    is_sound = (
        size <= MAX_SCHEMA_CHARS
        and tool.input_schema.get("type", "object") == "object"
        and isinstance(properties, dict)
        and isinstance(required, list)
        and all(isinstance(each, str) for each in required)
    )
    return {"type": "object", "properties": {}, **tool.input_schema} if is_sound else None


def _syscall(
    connection: Connection, tool: types.Tool, name: str, schema: dict[str, Any]
) -> Syscall:
    only_reads = tool.annotations is not None and tool.annotations.read_only_hint is True

    async def call_tool(call: Call, arguments: dict[str, Any]) -> McpResult:
        call.drawn.extend(connection.config.secrets)
        result = await connection.call(tool.name, arguments, may_repeat=only_reads)
        return _result(name, result, connection.config.secrets)

    told: str = redacted(tool.description or tool.title or tool.name, connection.config.secrets)
    description = told[:MAX_DESCRIPTION_CHARS]
    info = SyscallInfo(
        name=name,
        description=description,
        parameters=schema,
        effect=Effect.READ if only_reads else Effect.EXTERNAL,
        tool=True,
    )
    timeout_s = connection.config.timeout_s
    return MountedSyscall(
        info, call_tool, _AnyArguments, True, timeout_s, only_reads, is_foreign=True
    )


def _result(name: str, result: types.CallToolResult, secrets: Sequence[Secret]) -> McpResult:
    """What a tool returned as text and JSON. Raises `Failed` if it says that it failed."""
    text = "\n".join(map(_block_text, result.content)).encode("utf-8", "replace").decode()
    text = redacted(text, secrets)  # before it is cut
    if result.is_error:
        raise Failed(f"{name}: {text[:2000] or 'the tool failed and does not say why'}")
    written, structured = _plain(result.structured_content)
    text = text or written
    return McpResult(
        text=text[:MAX_RESULT_CHARS],
        structured=structured,
        truncated=len(text) > MAX_RESULT_CHARS or structured != result.structured_content,
    )


def _plain(value: Any) -> tuple[str, Any]:
    """JSON as text and as it is; nothing where it is none, or too large."""
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return "", None
    if value is None or len(written) > MAX_RESULT_CHARS:
        return "", None
    return written, value


def _block_text(block: Any) -> str:
    """What can be read of a piece of a result."""
    if isinstance(block, types.TextContent):
        return block.text
    if isinstance(block, types.EmbeddedResource):
        text = getattr(block.resource, "text", None)
        return str(text) if text is not None else f"({block.resource.uri}: not text, left out)"
    if isinstance(block, types.ResourceLink):
        return f"({block.name}: {block.uri})"
    return f"({getattr(block, 'type', 'something')}: not text, left out)"


def _reason(error: BaseException, secrets: Sequence[Secret]) -> str:
    """The first cause in one bounded line, without secrets."""
    leaf: BaseException = error
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    text: str = redacted(" ".join(str(leaf).split()), secrets)
    return (text or type(leaf).__name__).rstrip(".")[:300]

"""A real MCP server for the tests: `python mcp_server.py [http PORT]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations

server = MCPServer("test")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def fail(reason: str) -> str:
    """Always fails."""
    raise ToolError(reason)


@server.tool()
def record() -> dict[str, Any]:
    """A structured result."""
    return {"name": "otter", "legs": 4}


@server.tool()
def flood(size: int) -> str:
    """A lot of text."""
    return "x" * size


@server.tool()
async def wait(seconds: float) -> str:
    """Answer late."""
    await anyio.sleep(seconds)
    return "at last"


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def die_once(marker: str) -> str:
    """Die unless the marker file is there."""
    if not Path(marker).exists():
        Path(marker).touch()
        os._exit(1)
    return "alive"


@server.tool()
def die() -> str:
    """Die in the middle of a call."""
    os._exit(1)


@server.tool()
def environment() -> str:
    """Names of the variables that the server sees."""
    return " ".join(sorted(os.environ))


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def token(padding: int = 0) -> str:
    """What stands in TOKEN."""
    return "x" * padding + os.environ.get("TOKEN", "")


@server.tool()
def blurt() -> str:
    """Fails, and tells what stands in TOKEN."""
    raise ToolError(os.environ.get("TOKEN", ""))


@server.tool(description="long " * 2000)
def wordy() -> str:
    return "ok"


@server.tool(name="not a good name!")
def unnamed() -> str:
    return "never"


if __name__ == "__main__":
    if sys.argv[1:2] == ["http"]:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
    else:
        server.run()

"""`serve mcp`: a kernel for programs that speak the Model Context Protocol."""

from __future__ import annotations

from argparse import Namespace

from llmasos.kernel.abi import Capabilities, Limits
from llmasos.kernel.errors import ConfigError
from llmasos.shell.arguments import Parser, seconds
from llmasos.shell.environment import Environment
from llmasos.shell.verbs.run import folder
from llmasos.shell.verbs.verb import Verb, kernel_flags


def _configure_mcp(parser: Parser) -> None:
    parser.add_argument(
        "--tools", action="append", metavar="PATTERN", help="offer these alone, such as 'fs.*'"
    )
    parser.add_argument(
        "--host", action="append", metavar="PATTERN", help="let web.fetch reach these hosts"
    )
    parser.add_argument(
        "--root", metavar="FOLDER", help="the files calls may see (default: the current folder)"
    )
    parser.add_argument("--timeout", type=seconds, metavar="TIME", help="end a call after 30s ...")


async def serve_mcp(environment: Environment, args: Namespace) -> int:
    """Offer tools and apps on stdin and stdout until stdin ends."""
    try:
        from mcp.server.stdio import stdio_server

        from llmasos.shell.mcp_server import KernelTools, server_for
    except ImportError as error:
        raise ConfigError("This needs the mcp package: pip install 'llmasos[mcp]'.") from error

    session = await environment.sessions.needed(kernel_flags(args, environment.flags))
    capabilities = Capabilities(root=folder(environment, args.root), hosts=tuple(args.host or ()))
    tools = KernelTools(
        session,
        patterns=args.tools or ("*",),
        capabilities=capabilities,
        limits=Limits(wall_s=args.timeout),
    )
    server = server_for(tools)
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())
    return 0


VERBS = (
    Verb(
        "serve mcp", "Offer tools and apps to MCP clients on stdin and stdout.", serve_mcp,
        _configure_mcp, boots=True, outside_only=True,
    ),
)  # fmt: skip

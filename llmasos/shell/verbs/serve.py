"""`serve mcp`: a kernel for programs that speak MCP; `serve metrics`: its figures for Prometheus."""

from __future__ import annotations

import argparse
from argparse import Namespace

import anyio

from llmasos.kernel.abi import Capabilities, Limits
from llmasos.kernel.errors import ConfigError
from llmasos.shell.arguments import Parser, seconds
from llmasos.shell.environment import Environment
from llmasos.shell.verbs.run import folder
from llmasos.shell.verbs.verb import Verb, kernel_flags

KERNEL_POLL_S = 1.0


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


def _configure_metrics(parser: Parser) -> None:
    parser.add_argument("--port", type=_port, default=9464, metavar="N", help="0 is any (9464)")
    parser.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="(127.0.0.1)")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


async def serve_metrics(environment: Environment, args: Namespace) -> int:
    """Answer `GET /metrics` with what the running kernel counts, until interrupted or it ends."""
    from llmasos.shell.prometheus import serving

    session = await environment.sessions.running()
    async with serving(session.metrics, bind=args.bind, port=args.port) as port:
        environment.output.note(f"Metrics at http://{args.bind}:{port}/metrics.")
        while True:
            await anyio.sleep(KERNEL_POLL_S)
            await session.status()  # KernelLost ends it


VERBS = (
    Verb(
        "serve mcp", "Offer tools and apps to MCP clients on stdin and stdout.", serve_mcp,
        _configure_mcp, boots=True, outside_only=True,
    ),
    Verb(
        "serve metrics", "Serve what the kernel counts to Prometheus.", serve_metrics,
        _configure_metrics, outside_only=True,
    ),
)  # fmt: skip

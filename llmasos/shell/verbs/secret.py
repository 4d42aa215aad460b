"""Verbs for the vault: `secret set`, `secret list`, `secret rm`. None needs a kernel."""

from __future__ import annotations

import getpass
import time
from argparse import Namespace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio.to_thread

from llmasos.kernel.errors import UsageError
from llmasos.shell.arguments import Parser
from llmasos.shell.environment import Environment
from llmasos.shell.home import home_folder
from llmasos.shell.stdin import everything
from llmasos.shell.tables import Column, Table
from llmasos.shell.verbs.verb import Verb, add_json

if TYPE_CHECKING:
    from llmasos.syscalls.vault import HomeVault, Protection

UNSEALED = (
    "Its value stands in vault.json as it is, for your eyes alone (0600). To have it sealed,"
    " `pip install 'llmasos[vault]'` and use a keyring, or set LLMASOS_VAULT_PASSPHRASE, and set it again."
)
NOT_SEALED = "none"
MAX_INPUT_CHARS = 20_000


def _vault(environment: Environment) -> HomeVault:
    from llmasos.syscalls.vault import HomeVault

    return HomeVault(home_folder(environment.flags.home))


def _configure_set(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--host", action="append", default=[], metavar="PATTERN",
        help="where web.fetch may send it, such as api.example.org",
    )  # fmt: skip
    parser.add_argument(
        "--mcp", action="append", default=[], metavar="SERVER",
        help="an MCP server whose environment may hold it",
    )  # fmt: skip


async def set_(environment: Environment, args: Namespace) -> int:
    """Keep a secret; its value is read from stdin, or asked for."""
    from llmasos.syscalls.vault import check_hosts

    hosts, servers = tuple(args.host), tuple(args.mcp)
    check_hosts(hosts)
    if not (hosts or servers):
        raise UsageError("Say what it is for: --host PATTERN or --mcp SERVER.")
    value = await _value(environment, args.name)

    def keep() -> Protection:
        vault = _vault(environment)
        return vault.set(args.name, value, hosts=hosts, servers=servers, at=time.time())

    if await anyio.to_thread.run_sync(keep) == NOT_SEALED:
        environment.output.note(UNSEALED)
    return 0


async def _value(environment: Environment, name: str) -> str:
    if environment.stdin_fd is None:
        raise UsageError("There is no input to read the secret's value from.")
    if environment.stdin_is_terminal:
        return await anyio.to_thread.run_sync(getpass.getpass, f"Value of {name}: ")
    text = await everything(environment.stdin_fd, max_chars=MAX_INPUT_CHARS)
    return text.removesuffix("\n").removesuffix("\r")


async def list_(environment: Environment, args: Namespace) -> int:
    """Show what is in the vault, all but the values."""
    infos = await anyio.to_thread.run_sync(_vault(environment).infos)
    if args.json:
        environment.output.json(infos)
        return 0
    columns = (Column("NAME"), Column("HOSTS"), Column("MCP"), Column("SEALED BY"), Column("SET"))
    rows = tuple(
        (
            each.name,
            ", ".join(each.hosts) or "-",
            ", ".join(each.servers) or "-",
            "nothing" if each.protection == NOT_SEALED else each.protection,
            f"{datetime.fromtimestamp(each.set_at, UTC):%Y-%m-%d %H:%M}",
        )
        for each in infos
    )
    environment.output.table(Table(columns, rows))
    return 0


def _configure_rm(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")


async def rm(environment: Environment, args: Namespace) -> int:
    """Forget a secret."""
    await anyio.to_thread.run_sync(_vault(environment).remove, args.name)
    return 0


VERBS = (
    Verb("secret set", "Keep a secret for web.fetch or an MCP server.", set_, _configure_set),
    Verb("secret list", "List secrets, without their values.", list_, add_json),
    Verb("secret rm", "Forget a secret.", rm, _configure_rm),
)

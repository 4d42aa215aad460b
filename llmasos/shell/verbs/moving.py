"""Verbs of the interactive shell and of scripts: `cd`, `pwd`."""

from __future__ import annotations

from argparse import Namespace

from llmasos.shell.arguments import Parser
from llmasos.shell.environment import Environment
from llmasos.shell.verbs.run import folder
from llmasos.shell.verbs.verb import Verb


def _configure_cd(parser: Parser) -> None:
    parser.add_argument("folder", nargs="?", default="~", metavar="FOLDER")


async def cd(environment: Environment, args: Namespace) -> int:
    """Change the folder that processes started from now on may see."""
    environment.root = folder(environment, args.folder)
    return 0


async def pwd(environment: Environment, args: Namespace) -> int:
    """Print that folder."""
    del args
    environment.output.line(environment.root)
    return 0


MOVING = (
    Verb("cd", "Change the folder that new processes see.", cd, _configure_cd, completes=("path",)),
    Verb("pwd", "Print that folder.", pwd),
)

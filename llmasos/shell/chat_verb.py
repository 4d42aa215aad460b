"""`/new`: begin a new conversation, with other settings if one likes."""

from __future__ import annotations

from argparse import Namespace

from llmasos.kernel.abi import WindowPolicy
from llmasos.shell.arguments import Parser, count, temperature
from llmasos.shell.chat import Chat
from llmasos.shell.environment import Environment
from llmasos.shell.verbs.verb import Verb


def _configure(parser: Parser) -> None:
    parser.add_argument("--max-tokens", type=count, metavar="N", help="tokens a reply may have")
    parser.add_argument("--temperature", type=temperature, metavar="T", help="0 is greedy")
    parser.add_argument("--seed", type=int, metavar="N", help="same seed, same text")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before all else")
    parser.add_argument(
        "--window",
        choices=[policy.value for policy in WindowPolicy],
        help="what happens when the model's window is full",
    )


def new_verb(chat: Chat) -> Verb:
    """The verb, for one shell's or script's conversation."""

    async def new(environment: Environment, args: Namespace) -> int:
        del environment
        await chat.end()
        names = ("max_tokens", "temperature", "seed", "system", "window")
        chat.params = {n: v for n in names if (v := getattr(args, n)) is not None}
        return 0

    return Verb("new", "Begin a new conversation.", new, _configure)

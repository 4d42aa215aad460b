"""Verbs that only the interactive shell has: `help`, `jobs`, `exit`, and its `new`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmasos.shell.arguments import Parser
from llmasos.shell.chat import Chat
from llmasos.shell.chat_verb import new_verb
from llmasos.shell.environment import Environment
from llmasos.shell.jobs import Job
from llmasos.shell.tables import Column, Table
from llmasos.shell.verbs.moving import MOVING
from llmasos.shell.verbs.table import VERBS, find_verb, verb_list
from llmasos.shell.verbs.verb import Verb

HELP = """\
Type text to talk to the model: one chat process answers, and remembers.
A line that begins with / is a verb; // begins a text with a slash. `&` at the end of /run and /ask
leaves them in the background. Enter sends, Esc-Enter begins another line, Tab completes.
Ctrl-C interrupts what is in the foreground, Ctrl-D leaves.
"""


@dataclass(frozen=True, slots=True)
class ShellVerbs:
    """What the verbs need of the shell."""

    jobs: Callable[[], list[Job]]
    chat: Chat
    leave: Callable[[], None]

    def all(self) -> Mapping[str, Verb]:
        """Every verb of the interactive shell, the command line's included."""
        own = (
            Verb("help", "Show this.", self._help, _configure_help, completes=("verb",)),
            Verb("jobs", "List what runs in the background.", self._jobs),
            new_verb(self.chat),
            Verb("exit", "Leave the shell.", self._exit),
        )
        shared = {name: verb for name, verb in VERBS.items() if not verb.outside_only}
        return {**shared, **{verb.name: verb for verb in (*MOVING, *own)}}

    async def _help(self, environment: Environment, args: Namespace) -> int:
        verbs = self.all()
        if args.verb:
            verb, _ = find_verb([word.removeprefix("/") for word in args.verb], verbs, program="/")
            environment.output.line(verb.parser("/").format_help().rstrip())
        else:
            environment.output.write(f"{HELP}\n{verb_list(verbs, '/')}")
        return 0

    async def _jobs(self, environment: Environment, args: Namespace) -> int:
        del args
        rows = tuple(
            (str(job.pid), "detached" if job.detached else "job", job.what) for job in self.jobs()
        )
        columns = (Column("PID", right=True), Column("KIND"), Column("WHAT"))
        environment.output.table(Table(columns, rows))
        return 0

    async def _exit(self, environment: Environment, args: Namespace) -> int:
        del environment, args
        self.leave()
        return 0


def _configure_help(parser: Parser) -> None:
    parser.add_argument("verb", nargs="*", metavar="VERB")

"""Doing one line of the interactive shell or of a script."""

from __future__ import annotations

from collections.abc import Sequence

from llmasos.kernel.errors import UsageError
from llmasos.shell.environment import Environment
from llmasos.shell.verbs.table import Verbs, find_verb

PROGRAM = "/"


async def perform(environment: Environment, verbs: Verbs, words: Sequence[str]) -> int:
    """Do the verb that these words name; `&` at their end leaves it in the background.

    Returns its exit code. Raises `UsageError`, `HelpWanted` and whatever the verb raises.
    """
    in_background = words[-1] == "&"
    verb, rest = find_verb(words[: len(words) - in_background] or [""], verbs, program=PROGRAM)
    if in_background and not verb.jobs:
        raise UsageError(f"/{verb.name} does not go to the background.")
    args = verb.parse(rest, program=PROGRAM)
    if in_background:
        args.background = True
    return await verb.run(environment, args)

"""A process replayed for a person: from its history, with the apps and syscalls that are installed here."""

from __future__ import annotations

import asyncio
import os

import anyio

from llmasos.kernel.journal.events import Event
from llmasos.kernel.journal.history import History
from llmasos.kernel.journal.replay import Replay, Replayed
from llmasos.shell.environment import Environment
from llmasos.shell.home import home_folder
from llmasos.shell.plain import one_line
from llmasos.shell.story import event_lines
from llmasos.shell.tasks import in_background


async def replayed(environment: Environment, history: History, *, step: bool) -> Replayed:
    """Replay it; with `step` its events are shown as they come, one for each Enter on a terminal.

    Raises `NoSuchApp` where its app is not here.
    """
    from llmasos.shell.installed.apps import Apps
    from llmasos.syscalls import builtin_syscalls
    from llmasos.syscalls.plugins import installed_plugins

    apps = Apps(home_folder(environment.flags.home))
    plugins = installed_plugins(builtin_syscalls())
    syscalls = builtin_syscalls(mounted=plugins.syscalls)
    program = apps.load(history.spawn["app"])
    if program.info.version != history.spawn["version"]:
        environment.output.note(
            f"It was run by {program.info.name} {history.spawn['version']}, and this is"
            f" {program.info.version}."
        )
    steps = _Steps(environment, history) if step else None
    replay = Replay(
        history,
        program,
        decode=syscalls.decode_result,
        on_given=steps.given if steps else lambda _: None,
    )
    if steps is None:
        return await replay.run()
    async with in_background(steps.go_through, replay):
        outcome = await replay.run()
    steps.show_rest()
    return outcome


class _Steps:
    """Shows a replay's events; on a terminal each waits to be asked for."""

    def __init__(self, environment: Environment, history: History) -> None:
        self._output = environment.output
        self._lines = list(event_lines(history.events))
        self._events = history.events
        self._next = 0
        self._fd = environment.stdin_fd if environment.stdin_is_terminal else None
        self._replay: Replay | None = None
        self._arrived = asyncio.Event()

    def given(self, event: Event) -> None:
        """The app is about to be given an event: show it and those before it."""
        while self._next < len(self._events):
            is_it = self._events[self._next] is event
            self._show()
            if is_it:
                break
        if self._fd is not None and self._replay is not None:
            self._replay.deliveries.is_held = True
            self._arrived.set()

    def show_rest(self) -> None:
        """Show what is left."""
        while self._next < len(self._events):
            self._show()

    def _show(self) -> None:
        text = one_line(self._lines[self._next], max_chars=self._output.width - 8)
        self._next += 1
        self._output.line(f"{self._next:>6}  {text}")

    async def go_through(self, replay: Replay) -> None:
        """Let the replay go on by one for each line that is entered; all of it at their end."""
        if self._fd is None:
            return
        self._replay = replay
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await anyio.wait_readable(self._fd)
            if not os.read(self._fd, 1024):
                self._replay = None
            replay.deliveries.is_held = False
            replay.deliveries.poke()

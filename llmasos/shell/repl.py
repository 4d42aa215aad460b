"""The interactive shell: plain text talks to a chat process, `/verb` is a verb of the command line.

While the prompt is shown, prompt_toolkit owns the terminal and Ctrl-C (which clears the line). While
a line is being done, the terminal is in its normal state and Ctrl-C goes to what is in the
foreground. Output of the background is printed above the prompt.
"""

from __future__ import annotations

import itertools
import os
from contextlib import AsyncExitStack
from dataclasses import replace

import anyio
from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal

from llmasos.kernel.abi import AppInfo, KernelStatus, ProcessInfo, Question
from llmasos.shell.answers import told
from llmasos.shell.arguments import HelpWanted
from llmasos.shell.attach import flag_values
from llmasos.shell.chat import Chat
from llmasos.shell.completion import World
from llmasos.shell.environment import Environment
from llmasos.shell.guard import as_told, telling
from llmasos.shell.home import make_home
from llmasos.shell.jobs import Job, ShellJobs
from llmasos.shell.keys import ShellCompleter, key_bindings, open_history, status_bar
from llmasos.shell.lines import PROGRAM, perform
from llmasos.shell.link import KernelLink
from llmasos.shell.models import MANIFEST, MODELS_FOLDER, ensure_model
from llmasos.shell.plain import one_line
from llmasos.shell.settings import Settings, load_settings
from llmasos.shell.shell_verbs import ShellVerbs
from llmasos.shell.tasks import in_background
from llmasos.shell.verbs.apps import installed_apps
from llmasos.shell.verbs.table import Verbs
from llmasos.shell.words import split

REFRESH_S = 0.5
"""Between looks at the kernel, for the status bar and the completion of pids."""
GREETING = "Type to talk to the model, /help for the verbs, Ctrl-D to leave."


async def interactive(environment: Environment) -> int:
    """Run the shell until its person leaves. Returns 0."""
    settings = load_settings(flag_values(environment.flags))
    make_home(settings.home)
    await ensure_model(settings, environment.output)
    async with AsyncExitStack() as stack:
        shell = Shell(environment, settings)
        stack.callback(shell.jobs.close)
        await stack.enter_async_context(in_background(shell.link.run))
        await stack.enter_async_context(in_background(shell.watch))
        return await shell.run()


class Shell:
    """One person at one terminal."""

    def __init__(self, environment: Environment, settings: Settings) -> None:
        self._settings = settings
        self.link = KernelLink(
            environment.flags,
            tell=self.tell,
            waiting=lambda: environment.output.passing(f"waiting for {settings.model} to load ..."),
        )
        self.jobs = ShellJobs(lambda: self.link.session, self.tell)
        self._environment = replace(
            environment, sessions=self.link, jobs=self.jobs, read_line=self._read_line
        )
        self._chat = Chat(self._environment, tell=self.tell)
        self._verbs: Verbs = ShellVerbs(lambda: self.jobs.running, self._chat, self._leave).all()
        self._is_leaving = False
        self._was_warned = False
        self._status: KernelStatus | None = None
        self._processes: list[ProcessInfo] = []
        self._seen: set[int] = set()
        self._apps: list[AppInfo] = installed_apps(settings.home)
        self._prompt: PromptSession[str] = PromptSession(
            "> ",
            history=open_history(settings.home),
            completer=ShellCompleter(self._world),
            complete_while_typing=False,
            key_bindings=key_bindings(),
            multiline=True,
            prompt_continuation="  ",
            bottom_toolbar=self._status_bar,
        )

    async def run(self) -> int:
        """Read lines and do them until the person leaves."""
        self._environment.output.line(GREETING)
        while not self._is_leaving:
            try:
                line = await self._prompt.prompt_async(handle_sigint=False)
            except KeyboardInterrupt:
                continue
            except EOFError:
                self._leave()
                continue
            await self._line(line.strip())
        await self._farewell()
        return 0

    async def watch(self) -> None:
        """Keep the status bar and the known pids fresh, until cancelled."""
        while True:
            before = (self._status, self._processes)
            await as_told(self._look)
            if before != (self._status, self._processes) and self._prompt.app.is_running:
                self._prompt.app.invalidate()
            await anyio.sleep(REFRESH_S)

    def tell(self, text: str) -> None:
        """Print above the prompt, if it is shown."""
        if self._prompt.app.is_running:
            run_in_terminal(lambda: self._environment.output.line(text))
        else:
            self._environment.output.line(text)

    async def _look(self) -> None:
        session = self.link.session
        if session is None:
            self._status, self._processes = None, []
            return
        self._status, self._processes = await session.status(), await session.ps()
        self._tell_questions(await session.questions())

    def _tell_questions(self, questions: list[Question]) -> None:
        """Say what the background waits for, once."""
        asked = self._environment.asked
        for question in questions:
            if question.id in asked or self._is_fresh(question):
                continue
            asked.add(question.id)
            verbs = f"/approve {question.id} or /deny {question.id}"
            self.tell(f"{told(question)}\n  {verbs}")

    def _is_fresh(self, question: Question) -> bool:
        """Whether it was open at the latest look already: what is in the foreground takes its own at once."""
        is_new = question.id not in self._seen
        self._seen.add(question.id)
        return is_new

    async def _read_line(self, text: str) -> str | None:
        """Ask the person something while no prompt is shown. Raises `KeyboardInterrupt`."""
        try:
            return await PromptSession[str](text).prompt_async(handle_sigint=False)
        except EOFError:
            return None

    async def _line(self, line: str) -> None:
        """Do one line; whatever comes of it, the shell goes on."""
        if not line:
            return
        self._was_warned = False
        with (
            anyio.CancelScope() as scope,
            self._environment.interrupts.taken_by(lambda _: scope.cancel()),
        ):
            error = await as_told(self._do, line)
            if error is not None:
                self._environment.output.error(error)
        if scope.cancelled_caught:
            self._environment.output.line("")

    async def _do(self, line: str) -> None:
        if line.startswith("/") and not line.startswith("//"):
            try:
                await perform(self._environment, self._verbs, split(line[1:]) or ["help"])
            except HelpWanted as wanted:
                self._environment.output.line(str(wanted).rstrip())
            return
        await self._chat.say(line.removeprefix("/") if line.startswith("//") else line)

    def _leave(self) -> None:
        """Leave, unless jobs would end of which the person has not been told yet."""
        ending = [job for job in self.jobs.running if not job.detached]
        self._is_leaving = self._was_warned or not ending
        if not self._is_leaving:
            self._was_warned = True
            self._environment.output.line(
                f"Still running: {_named(ending)}; leaving again ends them."
            )

    async def _farewell(self) -> None:
        """Say what goes on without the shell."""
        with telling([]):
            await self._chat.end()
            session = self.link.session
            ending = {job.pid for job in self.jobs.running if not job.detached} | {self._chat.pid}
            staying = [p for p in await session.ps() if p.pid not in ending] if session else []
            if staying:
                pids = ", ".join(str(process.pid) for process in staying)
                self._environment.output.line(
                    f"Running on without this shell: {pids} (`llmasos ps` shows them,"
                    " `llmasos down` ends them)."
                )

    def _status_bar(self) -> str:
        num_jobs = len(self.jobs.running)
        model = self._settings.model
        return status_bar(model, self._status, self.link.problem, num_jobs=num_jobs)

    def _world(self) -> World:
        models = self._settings.home / MODELS_FOLDER
        return World(
            self._verbs,
            flags=lambda name: self._verbs[name].parser(PROGRAM).flags(),
            list_folder=_list_folder,
            apps=self._apps,
            processes=self._processes,
            models=[
                name
                for name, _ in _list_folder(str(models))
                if (models / name / MANIFEST).is_file()
            ],
            pullable=_pullable,
            root=self._environment.root,
        )


def _named(jobs: list[Job]) -> str:
    return ", ".join(f"[{job.pid}] {one_line(job.what, max_chars=40)}" for job in jobs)


def _list_folder(path: str) -> list[tuple[str, bool]]:
    """Names in a folder; none where it cannot be read."""
    try:
        with os.scandir(path or ".") as entries:
            return [(entry.name, entry.is_dir()) for entry in itertools.islice(entries, 2000)]
    except OSError:
        return []


def _pullable() -> list[str]:
    from llmasos.kernel.models.catalogue import CATALOGUE

    return sorted(CATALOGUE)

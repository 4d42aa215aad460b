"""Running a parsed script: line by line, each with its time, its output kept for `/expect`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from llmasos.kernel.abi import Pid
from llmasos.shell.arguments import HelpWanted
from llmasos.shell.chat import Chat
from llmasos.shell.chat_verb import new_verb
from llmasos.shell.environment import Environment
from llmasos.shell.guard import as_told, exit_code_of
from llmasos.shell.lines import PROGRAM, perform
from llmasos.shell.plain import one_line
from llmasos.shell.script import Line, ScriptState, Step, parse, uncommented
from llmasos.shell.script_verbs import ScriptVerbs
from llmasos.shell.tables import duration
from llmasos.shell.verbs.moving import MOVING
from llmasos.shell.verbs.table import VERBS, find_verb
from llmasos.shell.words import split, substitute

NOT_IN_SCRIPTS = ("script", "top")


class ScriptRun:
    """One run of one script."""

    def __init__(
        self, environment: Environment, file: str, args: Sequence[str], *, echo: bool, times: bool
    ) -> None:
        self._name = os.path.basename(file) if file != "-" else "stdin"
        self.state = ScriptState()
        self.state.options.update(echo=echo, times=times)
        here = os.path.dirname(os.path.join(environment.root, file))
        self.state.variables.update({"0": file, "here": os.path.abspath(here), "?": "0"})
        self.state.variables.update({str(n): arg for n, arg in enumerate(args[:9], start=1)})
        self._environment = replace(environment, stdin_fd=None, jobs=_ScriptJobs(self.state))
        known = {n: v for n, v in VERBS.items() if not v.outside_only and n not in NOT_IN_SCRIPTS}
        self._chat = Chat(self._environment, tell=environment.output.note)
        own = (*ScriptVerbs(self.state, self._do).all(), new_verb(self._chat))
        self._verbs = {**known, **{verb.name: verb for verb in (*MOVING, *own)}}

    def parse(self, text: str) -> list[Line]:
        """The script's lines. Raises `UsageError` with every problem."""
        return parse(text, name=self._name, check_verb=self._check)

    def _check(self, words: Sequence[str]) -> object:
        return find_verb(words, self._verbs, program=PROGRAM)

    async def run(self, lines: Sequence[Line]) -> int:
        """Run them; the exit code of the line that ended it, or of the last."""
        code = 0
        try:
            for line in lines:
                code = await self._line(line)
                if code and (self.state.options["errexit"] or code == 130):
                    self._say_where(line, code)
                    return code
                if self.state.exit_code is not None:
                    return self.state.exit_code
        finally:
            await self._chat.forget()
        return code

    async def _line(self, line: Line) -> int:
        """One line, timed, its output kept; returns its exit code."""
        output, state = self._environment.output, self.state
        if state.options["echo"] and line.is_work:
            output.line(f"> {line.source}")
        started = time.perf_counter()
        codes: list[int] = []

        async def work() -> None:
            codes.append(await self._understand(line))

        with output.capturing(echo=line.variable is None) as said:
            error = await as_told(work)
        if error is not None:
            output.error(error)
        code = codes[0] if error is None else exit_code_of(error)
        self._remember(Step(line, time.perf_counter() - started, code), "".join(said))
        return code

    def _remember(self, step: Step, said: str) -> None:
        state = self.state
        state.steps.append(step)
        state.variables["?"] = str(step.code)
        if said:
            state.output = said
        if step.line.variable is not None:
            state.variables[step.line.variable] = said.strip()
        if state.options["times"] and step.line.is_work:
            self._environment.output.line(f"# {duration(step.seconds)}")

    async def _understand(self, line: Line) -> int:
        if line.is_verb:
            return await self._do(split(uncommented(line.text[1:]), self.state.variables))
        if line.variable is not None:
            words = split(uncommented(line.text), self.state.variables)
            self._environment.output.write(" ".join(words))
            return 0
        code = await self._chat.say(substitute(line.said, self.state.variables))
        self.state.variables["chat"] = str(self._chat.pid or "")
        return code

    async def _do(self, words: Sequence[str]) -> int:
        try:
            return await perform(self._environment, self._verbs, words)
        except HelpWanted as wanted:
            self._environment.output.line(str(wanted))
            return 0

    def _say_where(self, line: Line, code: int) -> None:
        text = one_line(line.source, max_chars=120)
        self._environment.output.note(
            f"{self._name}:{line.number}: the script ended here with exit code {code}: {text}"
        )


class _ScriptJobs:
    """What runs in the background of a script: `$!` and `/wait`."""

    def __init__(self, state: ScriptState) -> None:
        self._state = state

    def add(self, pid: Pid, what: str, *, detached: bool) -> None:
        """Remember a process."""
        del what, detached
        self._state.background.append(pid)
        self._state.variables["!"] = str(pid)

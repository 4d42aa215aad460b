"""The interactive shell, typed at through prompt_toolkit's own pipe."""

import os
import signal
from contextlib import asynccontextmanager, nullcontext

import anyio
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from llmasos.kernel.abi import KernelStatus
from llmasos.kernel.errors import ConfigError
from llmasos.shell.environment import KernelFlags
from llmasos.shell.keys import open_history, status_bar
from llmasos.shell.link import KernelLink
from llmasos.shell.repl import Shell
from llmasos.shell.settings import load_settings
from llmasos.shell.tasks import in_background
from tests.shell.conftest import eventually, served_kernel

pytestmark = pytest.mark.anyio


class Person:
    """Types into a shell and reads what it prints."""

    def __init__(self, shell, seen, keys):
        self.shell = shell
        self.seen = seen
        self._keys = keys
        self.code = None

    def types(self, text):
        self._keys.send_text(text)

    async def reads(self, text, times=1):
        await eventually(lambda: self.seen.out.count(text) >= times)

    @property
    def has_left(self):
        return self.code is not None


@asynccontextmanager
async def person(tmp_path, recorder, kernel):
    """A person in front of a shell that is attached to a served kernel."""
    seen = recorder(kernel)
    seen.environment.flags = KernelFlags(home=str(tmp_path))
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        shell = Shell(seen.environment, load_settings({"home": tmp_path}))
        someone = Person(shell, seen, keys)

        async def run():
            someone.code = await shell.run()

        async with in_background(shell.link.run), in_background(shell.watch):
            async with in_background(run):
                yield someone
            shell.jobs.close()


async def test_plain_text_talks_to_one_chat_process(tmp_path, recorder):
    async with (
        served_kernel(tmp_path) as (kernel, _),
        person(tmp_path, recorder, kernel) as someone,
    ):
        someone.types("hello\r")
        await someone.reads("reply 1\n")
        someone.types("more\x1b\rlines\r")
        await someone.reads("reply 2\n")
        someone.types("/ps\r")
        await someone.reads("chat")
        someone.types("\x04")
        await eventually(lambda: someone.has_left)
        assert someone.code == 0


async def test_pasted_lines_are_one_message(tmp_path, recorder):
    async with (
        served_kernel(tmp_path) as (kernel, _),
        person(tmp_path, recorder, kernel) as someone,
    ):
        someone.types("\x1b[200~one\ntwo\nthree\x1b[201~\r")
        await someone.reads("reply 1\n")
        (process,) = await kernel.ps()
        assert process.tokens_out == len("reply 1") + 1


async def test_an_error_is_said_and_the_shell_goes_on(tmp_path, recorder):
    async with (
        served_kernel(tmp_path) as (kernel, _),
        person(tmp_path, recorder, kernel) as someone,
    ):
        for line in (
            "/nope",
            "/kill x",
            "/kill 99",
            "/ps --nope",
            "/echo 'open",
            "/cd nowhere",
            "/top -n x",
        ):
            someone.types(line + "\r")
        someone.types("/help\r/help kill\r/run --help\rhello\r")
        await someone.reads("reply 1\n")
        assert someone.seen.err.count("\n") == 7
        assert "Ctrl-D leaves" in someone.seen.out
        assert "usage: /kill" in someone.seen.out


async def test_a_text_may_begin_with_a_slash(tmp_path, recorder):
    async with (
        served_kernel(tmp_path) as (kernel, _),
        person(tmp_path, recorder, kernel) as someone,
    ):
        someone.types("//etc is a folder\r")
        await someone.reads("reply 1\n")


async def test_jobs_run_in_the_background_and_say_when_they_are_done(tmp_path, recorder):
    async with (
        served_kernel(tmp_path) as (kernel, _),
        person(tmp_path, recorder, kernel) as someone,
    ):
        someone.types("/run count 3 &\r")
        await someone.reads("count: done")
        await someone.reads("0\n1\n2\n")
        someone.types("/run count 30 &\r")
        await someone.reads("It wrote 30 lines: /logs 2 shows them.")
        someone.types("/ask why &\r")
        await someone.reads("why|||9")
        someone.types("/run fail &\r")
        await someone.reads("fail: exit code 1 (it broke)")


async def test_leaving_is_asked_twice_where_jobs_would_end(tmp_path, recorder):
    async with (
        served_kernel(tmp_path) as (kernel, _),
        person(tmp_path, recorder, kernel) as someone,
    ):
        someone.types("/run patient &\r/run -d patient\r/jobs\r")
        await someone.reads("detached")
        someone.types("\x04")
        await someone.reads("Still running: [1] patient; leaving again ends them.")
        assert not someone.has_left
        someone.types("\x04")
        await eventually(lambda: someone.has_left)
        assert "Running on without this shell: 2 (" in someone.seen.out


async def test_ctrl_c_interrupts_what_is_in_the_foreground_and_keeps_the_shell(tmp_path, recorder):
    async with (
        served_kernel(tmp_path) as (kernel, _),
        person(tmp_path, recorder, kernel) as someone,
    ):
        someone.types("/run stubborn\r")
        await someone.reads("waiting")
        interrupts = someone.seen.environment.interrupts
        interrupts.fire(signal.SIGINT)
        await someone.reads("interrupted")
        someone.types("/run -d patient\r")
        await eventually(lambda: someone.shell.jobs.running)
        await eventually(lambda: not interrupts.is_taken)
        someone.types("/wait 2\r")
        await eventually(lambda: interrupts.is_taken)
        interrupts.fire(signal.SIGINT)
        someone.types("/pwd\r")
        await someone.reads(str(tmp_path))


async def test_ctrl_c_at_the_prompt_clears_the_line(tmp_path, recorder):
    async with (
        served_kernel(tmp_path) as (kernel, _),
        person(tmp_path, recorder, kernel) as someone,
    ):
        someone.types("/nonsense\x03/pwd\r")
        await someone.reads(str(tmp_path))
        assert someone.seen.err == ""


async def test_a_chat_that_is_killed_is_replaced_and_the_person_told(tmp_path, recorder):
    async with (
        served_kernel(tmp_path) as (kernel, _),
        person(tmp_path, recorder, kernel) as someone,
    ):
        someone.types("hello\r")
        await someone.reads("reply 1\n")
        someone.types("/kill -9 1\r/wait 1\rhello\r")
        await someone.reads("The chat had ended (Ended by KILL); this is a new one.")
        await someone.reads("reply 1\n", times=2)


async def test_a_link_that_cannot_have_a_kernel_says_why_and_tries_again_when_asked(tmp_path):
    link = KernelLink(
        KernelFlags(home=str(tmp_path), model="nope"), tell=lambda _: None, waiting=nullcontext
    )
    async with in_background(link.run):
        for _ in range(2):
            with pytest.raises(ConfigError, match="no model 'nope'"), anyio.fail_after(60):
                await link.running()
            assert link.problem is not None


def test_the_status_bar_says_how_things_stand():
    status = KernelStatus("m", "core", True, 8192, 32, 100, 90, 0, 10, 2, 1, 5, 12.34, 1.0)
    assert status_bar("m", None, None, num_jobs=0) == " loading m ... (you can type already)"
    assert "no kernel: it broke" in status_bar("m", None, ConfigError("it broke"), num_jobs=0)
    assert status_bar("m", status, None, num_jobs=1) == (
        " m  |  2 processes  |  pages 10/100  |  12.3 tok/s  |  1 job"
    )


def test_the_history_is_its_owners_and_never_costs_a_line(tmp_path):
    history = open_history(tmp_path)
    history.append_string("日本\nline two \ud800")
    assert (tmp_path / "history").stat().st_mode & 0o777 == 0o600
    assert list(open_history(tmp_path).load_history_strings()) == ["日本\nline two ?"]
    os.remove(tmp_path / "history")
    os.mkdir(tmp_path / "history")
    history.append_string("the disk is gone")
    open_history(tmp_path).append_string("kept in memory")

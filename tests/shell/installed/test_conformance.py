"""The same apps in the kernel's interpreter and in processes of their own: nobody can tell them apart."""

from __future__ import annotations

from contextlib import suppress

import anyio
import pytest

from llmasos.apps.remote.results import RESULTS
from llmasos.kernel.abi import Pid, Signal
from llmasos.kernel.errors import NoSuchProcess
from llmasos.kernel.journal.replay import Replay
from llmasos.shell.tables import process_table
from llmasos.syscalls import builtin_syscalls
from tests.kernel.journal.reboots import Machine
from tests.kernel.journal.test_random_apps import LINES
from tests.shell.installed.machines import inside_machine, outside_machine

pytestmark = pytest.mark.anyio

CASES = {
    "poet": {"topic": "rain"},
    "families": {},
    "wrong": {},
    "fails-app": {"how": "app"},
    "fails-call": {"how": "call"},
    "fails-defect": {"how": "defect"},
    "fails-group": {"how": "group"},
    "actor": {"acts": [["generate", 5], ["score", 3], ["together", [[["print", 1]], [["generate", 4]]]],
                       ["read", 2], ["child", [["generate", 3]]]]},
}  # fmt: skip
TIMED = {
    "actor-timed": {
        "acts": [["leave", 2], ["race", [[["stream", 4]], [["generate", 3]]]], ["read", 1]]
    }
}
"""What an app sees of streams depends on how quick it is: these are not compared, only replayed."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def ran(machine: Machine, case: str):
    """How a case ended, what it printed, and what it asked for: but for what it printed when, since a
    stream comes in larger pieces to an app that is slower."""
    async with machine.booted() as runtime:
        params = {**CASES, **TIMED}[case]
        pid = await runtime.spawn(case.split("-")[0], params, stdin=True, seed=3)
        with suppress(NoSuchProcess):
            for line in (*LINES, None):
                await runtime.send_input(pid, line)
        status = await runtime.wait(pid)
        told = (status, runtime.output_text(pid))
    begins = [event for event in machine.events(pid) if event[0] == "begin"]
    begins.sort(key=lambda event: [int(part) for part in event[1].split("/")])
    return (*told, [event[2:4] for event in begins if event[2] != "io.write"])


@pytest.mark.parametrize("case", CASES)
async def test_an_app_does_the_same_in_the_kernel_and_outside(case):
    inside, beyond = inside_machine(), outside_machine()
    assert await ran(inside, case) == await ran(beyond, case)
    await replay_all(inside, beyond)


@pytest.mark.parametrize("case", TIMED)
async def test_an_outside_app_whose_tasks_race_replays_either_way(case):
    inside, beyond = inside_machine(), outside_machine()
    await ran(beyond, case)
    await replay_all(inside, beyond)


async def replay_all(inside: Machine, beyond: Machine) -> None:
    for pid in range(1, beyond.num_processes + 1):
        history = beyond.history(pid)
        program = beyond.apps[history.spawn["app"]]
        replayed = await Replay(history, program, decode=beyond.decode).run()
        assert not replayed.problem, replayed
        # and what one way of running has recorded, the other way goes through again
        other = inside.apps[history.spawn["app"]]
        replayed = await Replay(history, other, decode=beyond.decode).run()
        assert not replayed.problem, replayed


async def test_what_an_app_says_of_its_work_comes_through():
    machine = outside_machine()
    async with machine.booted() as runtime:
        pid = await runtime.spawn("poet", {"topic": "rain"})
        assert (await runtime.wait(pid)).code == 7
        assert runtime.log_text(pid) == "[warning] done with rain\n"
        assert runtime.info(pid).progress == "2/4 lines"


async def test_what_an_app_prints_past_the_kernel_is_in_its_log_and_not_in_its_output():
    machine = outside_machine()
    async with machine.booted() as runtime:
        pid = await runtime.spawn("stray")
        assert (await runtime.wait(pid)).code == 0
        assert runtime.output_text(pid) == "to the kernel\n"
        assert sorted(runtime.log_text(pid).splitlines()) == ["to stderr", "to stdout"]
    assert sorted("".join(machine.history(pid).holdings.log).split("\n")) == [
        "",
        "to stderr",
        "to stdout",
    ]


async def test_a_defect_leaves_its_traceback_in_the_log():
    async with outside_machine().booted() as runtime:
        pid = await runtime.spawn("fails", {"how": "defect"})
        assert (await runtime.wait(pid)).message == "ZeroDivisionError: by nothing"
        assert "Traceback" in runtime.log_text(pid)


@pytest.mark.parametrize("make", [inside_machine, outside_machine])
async def test_int_ends_the_call_and_the_app_goes_on(make):
    async with make().booted() as runtime:
        pid = await runtime.spawn("sleeper")
        await waits_in(runtime, pid, "time.sleep")
        runtime.signal(pid, Signal.INT)
        assert (await runtime.wait(pid)).code == 0
        assert runtime.output_text(pid) == "sleeping\nwoken\ncleaned up\n"


@pytest.mark.parametrize("make", [inside_machine, outside_machine])
@pytest.mark.parametrize("signal", [Signal.TERM, Signal.KILL])
async def test_an_app_that_is_ended_may_clean_up(make, signal):
    async with make().booted() as runtime:
        pid = await runtime.spawn("sleeper")
        await waits_in(runtime, pid, "time.sleep")
        runtime.signal(pid, signal)
        assert (await runtime.wait(pid)).code == 128 + signal
        assert runtime.output_text(pid) == "sleeping\ncleaned up\n"


@pytest.mark.parametrize("make", [inside_machine, outside_machine])
async def test_a_stopped_app_is_held_at_its_next_call(make):
    async with make().booted() as runtime:
        pid = await runtime.spawn("reader", stdin=True)
        await waits_in(runtime, pid, "io.read_line")
        runtime.signal(pid, Signal.STOP)
        await runtime.send_input(pid, "hello")
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert runtime.output_text(pid) == ""
        runtime.signal(pid, Signal.CONT)
        await runtime.send_input(pid, None)
        assert (await runtime.wait(pid)).code == 0
        assert runtime.output_text(pid) == "you said hello\n"


async def test_an_outside_app_comes_back_after_a_crash_where_it_was():
    home = outside_machine()
    async with home.booted(crashes=True) as runtime:
        pid = await runtime.spawn("reader", stdin=True)
        await runtime.send_input(pid, "one")
        await waits_in(runtime, pid, "io.read_line", num_syscalls=3)
    async with home.booted(crashes=True) as runtime:
        await runtime.send_input(pid, "two")
        await waits_in(runtime, pid, "io.read_line", num_syscalls=5)
    async with home.booted() as runtime:
        await runtime.send_input(pid, None)
        assert (await runtime.wait(pid)).code == 0
        assert runtime.output_text(pid) == "you said one\nyou said two\n"


async def test_what_an_app_told_of_itself_comes_back_once():
    home = outside_machine()
    async with home.booted(crashes=True) as runtime:
        pid = await runtime.spawn("tells", stdin=True)
        await waits_in(runtime, pid, "io.read_line")
        await runtime.flushed()
    async with home.booted() as runtime:
        assert runtime.info(pid).progress == "1/3 parts"
        assert "[1/3 parts]" in process_table([runtime.info(pid)]).plain()
        await runtime.send_input(pid, None)
        assert (await runtime.wait(pid)).code == 0
        lines = sorted(runtime.log_text(pid).splitlines())
        assert lines == ["[debug] one", "[info] two", "past the kernel"]


async def test_an_outside_app_that_is_begun_inside_goes_on_outside():
    inside, beyond = inside_machine(), outside_machine()
    beyond.folder = inside.folder
    async with inside.booted(crashes=True) as runtime:
        pid = await runtime.spawn("reader", stdin=True)
        await runtime.send_input(pid, "one")
        await waits_in(runtime, pid, "io.read_line", num_syscalls=3)
    async with beyond.booted() as runtime:
        await runtime.send_input(pid, None)
        assert (await runtime.wait(pid)).code == 0
        assert runtime.output_text(pid) == "you said one\n"


async def test_racing_tasks_of_an_outside_app_survive_crashes_and_replay():
    home = outside_machine()
    async with home.booted(crashes=True) as runtime:
        await runtime.spawn("races", seed=5)
        for _ in range(3000):
            await anyio.lowlevel.checkpoint()
    async with home.booted() as runtime:
        assert not [row.note for row in runtime.ps(all=True) if row.note]
        if Pid(1) in runtime.kernel.processes:
            assert (await runtime.wait(Pid(1))).code == 0
    replayed = await Replay(home.history(1), home.apps["races"], decode=home.decode).run()
    assert not replayed.problem
    assert replayed.exit is not None


async def test_a_branch_of_an_outside_app_shares_its_past():
    home = outside_machine()
    async with home.booted() as runtime:
        pid = await runtime.spawn("poet", {"topic": "rain"}, seed=3)
        await runtime.wait(pid)
        text = runtime.output_text(pid)
        branch = await runtime.branch(pid, until=len(home.events(pid)) // 2)
        assert (await runtime.wait(branch)).code == 7
        assert runtime.output_text(branch).split("\n")[0] == text.split("\n")[0]


def test_every_result_that_is_a_record_is_known_to_the_app_side():
    from pydantic import TypeAdapter

    for name, entry in builtin_syscalls().items():
        adapter = entry._result
        if name in RESULTS:
            assert adapter is not None
            assert TypeAdapter(RESULTS[name]).json_schema() == adapter.json_schema(), name
        elif adapter is not None:
            kinds = str(adapter.core_schema)
            assert "'dataclass'" not in kinds, name
            assert "'enum'" not in kinds, name


async def waits_in(runtime, pid, name, *, num_syscalls=0):
    with anyio.fail_after(20):
        while True:
            info = runtime.info(pid)
            if info.wchan == name and info.num_syscalls >= num_syscalls:
                return
            await anyio.sleep(0.005)

"""Apps that crash, hang, flood, lie and take what they can: each ends alone, and is told why."""

from __future__ import annotations

import os
import subprocess
import sys

import anyio
import anyio.to_thread
import psutil
import pytest

from llmasos.kernel.abi import AppInfo, Effect, Pid, Signal
from llmasos.kernel.errors import AppError
from llmasos.kernel.syscall import Call, syscall
from llmasos.shell.installed.launch import MAX_PROCESSES, Executable, Launcher
from llmasos.shell.installed.program import OutsideProgram, manifest_of
from tests.kernel.journal.reboots import Machine
from tests.shell.installed import apps, hostile
from tests.shell.installed.machines import REPOSITORY, UNCONFINED, outside

pytestmark = pytest.mark.anyio

CONFINED = Launcher()
needs_bubblewrap = pytest.mark.skipif(
    not CONFINED.is_confining, reason="bubblewrap is missing or may make no namespaces"
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@syscall("large", effect=Effect.PURE)
async def large(call: Call) -> str:
    """A megabyte."""
    return "x" * 2**20


def machine(launcher: Launcher) -> Machine:
    made = Machine(num_pages=1024, syscalls=(large,))
    made.apps.update({entry.info.name: entry for entry in apps.ALL})
    made.apps.update(
        {entry.info.name: outside(entry, launcher, hostile.__name__) for entry in hostile.ALL}
    )
    made.apps["poet-outside"] = outside(apps.poet, launcher)
    return made


async def ended(runtime, name, *, params=None):
    pid = await runtime.spawn(name, params or {})
    status = await runtime.wait(pid)
    return status, runtime.output_text(pid), runtime.log_text(pid)


ENDINGS = {
    "garbage": (1, "The app sent something that is no JSON"),
    "exits": (1, "The app's process ended with exit code 3 before it had finished."),
    "floods": (1, "The app was ended: it wrote more than 16 MiB past the kernel."),
    "closes": (1, "The app closed its connection before it had finished."),
    "huge": (1, "The app sent a message of more than 8 MiB."),
    "crashes": (1, "The app's process was ended by SIGSEGV before it had finished."),
    "recurses": (1, "RecursionError: maximum recursion depth exceeded"),
    "repeats": (1, "The app does not read what it is given."),
}


@pytest.mark.parametrize("name", ENDINGS)
async def test_an_app_that_breaks_is_ended_and_told_why(name):
    code, message = ENDINGS[name]
    async with machine(UNCONFINED).booted() as runtime:
        status, output, _ = await ended(runtime, name)
        assert status.code == code
        assert status.message.startswith(message)
        assert output in ("", "begins\n")


@pytest.mark.parametrize("name", ["busy", "ignores"])
@pytest.mark.parametrize("signal", [Signal.TERM, Signal.KILL])
async def test_an_app_that_hangs_is_ended_when_it_is_told_to(name, signal):
    async with machine(UNCONFINED).booted() as runtime:
        pid = await runtime.spawn(name)
        await has_printed(runtime, pid)
        runtime.signal(pid, signal)
        assert (await runtime.wait(pid)).code == 128 + signal
    assert not processes_of("llmasos.apps.remote")


async def test_a_flood_is_kept_only_in_part():
    async with machine(UNCONFINED).booted() as runtime:
        _, _, log = await ended(runtime, "floods")
        assert len(log) < 70_000
        assert log.endswith("[what it wrote from here on is not kept]\n")


@needs_bubblewrap
async def test_an_app_that_takes_all_memory_gets_no_more_than_its_own():
    async with machine(CONFINED).booted() as runtime:
        status, _, _ = await ended(runtime, "hog")
        assert (status.code, status.message) == (1, "MemoryError: ")


@needs_bubblewrap
async def test_an_app_can_have_only_so_many_processes_and_they_end_with_it():
    async with machine(CONFINED).booted() as runtime:
        pid = await runtime.spawn("forks")
        await has_printed(runtime, pid)
        assert 0 < int(runtime.output_text(pid)) < MAX_PROCESSES
        runtime.signal(pid, Signal.KILL)
        assert (await runtime.wait(pid)).code == 128 + Signal.KILL
    assert not processes_of("llmasos.apps.remote")


@needs_bubblewrap
async def test_an_app_cannot_be_another_or_see_what_is_not_its_own(tmp_path):
    async with machine(CONFINED).booted() as runtime:
        other = await runtime.spawn("ignores")
        await has_printed(runtime, other)
        (tmp_path / "secret").write_text("x")
        params = {"secret": str(tmp_path / "secret")}
        status, output, _ = await ended(runtime, "forges", params=params)
        assert output == "[]\n"
        assert status.message == "The app named a call '7', which is not the next one there."
        assert runtime.info(other).exit is None


def program(code: str, *, hello_s: float = 60.0) -> OutsideProgram:
    executable = Executable((sys.executable, "-I", "-S", "-c", code))
    info = AppInfo("raw", "1", "", (), {})
    return OutsideProgram(info, executable, UNCONFINED, hello_s=hello_s)


async def test_a_process_that_says_nothing_is_ended():
    async with machine(UNCONFINED).booted() as runtime:
        pid = await runtime.spawn(program("import time; time.sleep(600)", hello_s=0.2))
        status = await runtime.wait(pid)
        assert status.message == "The app's process said nothing within 0.2 s."


@pytest.mark.parametrize(
    ("hello", "message"),
    [
        ("{'kind': 'hello', 'protocol': 1, 'token': 'guessed'}", "did not show the token"),
        ("{'kind': 'hello', 'protocol': 99, 'token': os.environ['LLMASOS_TOKEN']}", "version 99"),
        ("{'kind': 'exit', 'code': 0}", "did not show the token"),
    ],
)
async def test_a_process_must_begin_as_the_protocol_says(hello, message):
    code = (
        "import json, os, socket, time; s = socket.socket(fileno=int(os.environ['LLMASOS_FD']));"
        f"s.sendall(json.dumps({hello}).encode() + b'\\n'); time.sleep(600)"
    )
    async with machine(UNCONFINED).booted() as runtime:
        pid = await runtime.spawn(program(code))
        assert message in (await runtime.wait(pid)).message


@pytest.mark.parametrize(
    "call",
    [
        {"kind": "call", "id": "1", "name": "io.write", "args": {"text": "x"}},
        {"kind": "call", "id": "../0", "name": "io.write", "args": {"text": "x"}},
        {"kind": "call", "id": "00", "name": "io.write", "args": {"text": "x"}},
        {"kind": "call", "id": 0, "name": "io.write", "args": {}},
        {"kind": "call", "id": "0", "name": "io.write", "args": []},
        {"kind": "call", "id": "0", "args": {}},
        {"kind": "exit", "code": "0"},
        {"kind": "exit", "code": 4711},
        {"kind": "fail"},
        {"kind": "manifest"},
        {"kind": 5},
        {"kind": "hello"},
        [],
    ],
)
async def test_a_message_that_is_not_as_it_should_be_ends_the_app(call):
    code = (
        "import json, os, socket, time; s = socket.socket(fileno=int(os.environ['LLMASOS_FD']));"
        "hello = {'kind': 'hello', 'protocol': 1, 'token': os.environ['LLMASOS_TOKEN']};"
        f"s.sendall(json.dumps(hello).encode() + b'\\n' + json.dumps({call!r}).encode() + b'\\n');"
        "time.sleep(600)"
    )
    async with machine(UNCONFINED).booted() as runtime:
        pid = await runtime.spawn(program(code))
        status = await runtime.wait(pid)
        assert status.code == 1
        assert status.message.startswith("The app ")
        assert runtime.output_text(pid) == ""


async def test_a_command_that_is_not_there_is_one_sentence():
    gone = OutsideProgram(
        AppInfo("gone", "1", "", (), {}), Executable(("/no/such/python",)), UNCONFINED
    )
    async with machine(UNCONFINED).booted() as runtime:
        status = await runtime.wait(await runtime.spawn(gone))
        assert (status.code, status.message.count(".")) == (1, 1)


async def test_an_app_that_does_not_tell_its_manifest_is_not_waited_for():
    code = (
        "import json, os, socket, time; s = socket.socket(fileno=int(os.environ['LLMASOS_FD']));"
        "hello = {'kind': 'hello', 'protocol': 1, 'token': os.environ['LLMASOS_TOKEN']};"
        "s.sendall(json.dumps(hello).encode() + b'\\n'); time.sleep(600)"
    )
    executable = Executable((sys.executable, "-I", "-S", "-c", code))
    with pytest.raises(AppError, match="did not tell its manifest"):
        await manifest_of(executable, UNCONFINED, within_s=0.5)


@needs_bubblewrap
async def test_no_hostile_app_disturbs_what_others_write():
    alone = await outputs(machine(CONFINED), [])
    among = await outputs(machine(CONFINED), [entry.info.name for entry in hostile.ALL])
    assert among == alone
    assert not processes_of("llmasos.apps.remote")


VICTIMS = (("poet", {"topic": "rain"}), ("poet-outside", {"topic": "tea"}), ("families", {}))


async def outputs(made: Machine, hostiles: list[str]) -> list[str]:
    """What honest processes write while hostile ones do their worst."""
    async with made.booted(patience_s=60) as runtime:
        bad = [await runtime.spawn(name) for name in hostiles]
        good = [await runtime.spawn(name, params, seed=9) for name, params in VICTIMS]
        statuses = [(await runtime.wait(pid)).code for pid in good]
        assert statuses == [7, 7, 0]
        texts = [runtime.output_text(pid) for pid in good]
        for pid in bad:
            if runtime.info(pid).exit is None:
                runtime.signal(pid, Signal.KILL)
            assert (await runtime.wait(pid)).code != 0
        return texts


async def has_printed(runtime, pid: Pid) -> None:
    with anyio.fail_after(20):
        while not runtime.output_text(pid) and runtime.info(pid).exit is None:
            await anyio.sleep(0.01)


def processes_of(word: str) -> list[str]:
    """This test's own processes of that kind that are still there."""
    return [
        str(process)
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE
        and any(word in arg for arg in process.cmdline())
    ]


KERNEL = """
import sys

import anyio

from tests.shell.installed.test_hostile import CONFINED, UNCONFINED, has_printed, machine


async def main() -> None:
    async with machine(UNCONFINED if sys.argv[1] == "unconfined" else CONFINED).booted() as runtime:
        pid = await runtime.spawn("ignores")
        await has_printed(runtime, pid)
        print("ready", flush=True)
        await anyio.sleep_forever()


anyio.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends children with their parent")
@pytest.mark.parametrize("how", ["unconfined", pytest.param("confined", marks=needs_bubblewrap)])
async def test_an_app_that_hangs_ends_with_a_kernel_that_is_killed(how):
    kernel = subprocess.Popen(
        [sys.executable, "-c", KERNEL, how],
        env={**os.environ, "PYTHONPATH": REPOSITORY},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert kernel.stdout is not None
    assert await anyio.to_thread.run_sync(kernel.stdout.readline) == "ready\n"
    descendants = psutil.Process(kernel.pid).children(recursive=True)
    assert descendants
    kernel.kill()
    kernel.wait()
    _, alive = await anyio.to_thread.run_sync(lambda: psutil.wait_procs(descendants, timeout=20))
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []

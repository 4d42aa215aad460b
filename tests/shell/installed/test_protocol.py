"""The protocol as others speak it: an app without our SDK, in Python's standard library and in JavaScript."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from llmasos.apps.proc import Proc
from llmasos.apps.remote.wire import BadMessage, decode, encode
from llmasos.kernel.abi import AppInfo, Score
from llmasos.kernel.journal.replay import Replay
from llmasos.shell.installed.launch import Executable
from llmasos.shell.installed.program import OutsideProgram
from tests.kernel.journal.reboots import Machine
from tests.shell.installed.machines import UNCONFINED

pytestmark = pytest.mark.anyio
HERE = Path(__file__).parent
CLIENTS = {
    "python": (sys.executable, "-I", "-S", str(HERE / "client.py")),
    "node": (shutil.which("node"), str(HERE / "client.js")),
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def same(port, params) -> int:
    """What the clients do, by our SDK in the kernel's interpreter."""
    proc = Proc(port)
    context = await proc.call("ctx.open")
    await proc.call("ctx.append", context=context, text=params["prompt"])
    reply = await proc.call("llm.generate", context=context, max_tokens=6)
    await proc.print(reply.finish, reply.text)
    try:
        await proc.call("ctx.info", context=99)
    except Exception as error:  # noqa: BLE001 - whatever it is, its code is shown
        await proc.print(error.code)
    return 5


@pytest.mark.parametrize("language", CLIENTS)
async def test_an_app_in_any_language_is_a_process_like_others(language):
    if CLIENTS[language][0] is None:
        pytest.skip(f"{language} is not here")
    home = Machine()
    info = AppInfo("same", "1", "", (), {})
    home.apps["foreign"] = OutsideProgram(info, Executable(CLIENTS[language]), UNCONFINED)
    home.app(same)
    async with home.booted() as runtime:
        pids = [
            await runtime.spawn(name, {"prompt": "tell"}, seed=1) for name in ("foreign", "same")
        ]
        statuses = [await runtime.wait(pid) for pid in pids]
        assert [status.code for status in statuses] == [5, 5], statuses
        texts = [runtime.output_text(pid) for pid in pids]
        assert texts[0] == texts[1]
        assert texts[0].endswith("invalid_arguments\n")
    for program in ("foreign", "same"):
        replayed = await Replay(home.history(1), home.apps[program], decode=home.decode).run()
        assert not replayed.problem


def test_every_message_is_a_line_of_plain_ascii():
    text = "é 漢字 \n \u2028 \ud800 \x00"
    message = {
        "kind": "call",
        "args": {"text": text, "score": Score("a", float("-inf"), (float("nan"),))},
    }
    line = encode(message)
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert decode(line)["args"]["text"] == text
    assert decode(line)["args"]["score"]["logprob"] == "-Infinity"
    assert decode(encode({"kind": "x", "n": float("nan")}))["n"] == "NaN"


@pytest.mark.parametrize(
    "line",
    [b"", b"x", b"[]", b"{}", b'{"kind": 1}', b"[" * 100_000, b"1" * 10_000, b"\xff", b"null"],
)
def test_what_is_no_message_is_refused(line):
    with pytest.raises(BadMessage):
        decode(line)


async def test_the_sdk_side_ends_with_a_kernel_that_is_gone():
    import socket
    import subprocess

    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "llmasos.apps.remote", "tests.shell.installed.apps:sleeper"]
    process = subprocess.Popen(
        command,
        pass_fds=(theirs.fileno(),),
        env={
            "LLMASOS_FD": str(theirs.fileno()),
            "LLMASOS_TOKEN": "x",
            "PYTHONPATH": str(HERE.parents[2]),
        },
    )
    theirs.close()
    assert b"hello" in await anyio.to_thread.run_sync(ours.recv, 1000)
    ours.close()
    assert process.wait(20) == 137


def test_run_by_hand_it_says_what_it_is_for():
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "llmasos.apps.remote"],
        env={"PYTHONPATH": str(HERE.parents[2])}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "llmasos run APP" in done.stderr

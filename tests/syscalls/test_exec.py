"""exec.*: programs run, say what they say, and reach nothing that is not theirs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from llmasos.kernel.abi import Chunk
from llmasos.kernel.errors import Failed, InvalidArguments
from llmasos.kernel.syscall import Call
from llmasos.syscalls.exec import MAX_TEXT_CHARS, exec_syscalls
from llmasos.syscalls.sandbox import MAX_OUTPUT_BYTES, MAX_PROCESSES, Sandbox
from tests.syscalls.conftest import Caller

pytestmark = pytest.mark.anyio

STRICT = Sandbox()
WEAK = Sandbox(allow_weak=True, bubblewrap=None)
needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bubblewrap here")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[pytest.param(STRICT, marks=needs_bubblewrap), WEAK], ids=["bwrap", "weak"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    chosen: Sandbox = request.param
    return Sandbox(allow_weak=True, bubblewrap="bwrap" if chosen is STRICT else None)


async def python(caller: Caller, sandbox: Sandbox, code: str, **args: Any) -> Any:
    return await caller(exec_syscalls(sandbox)[0], code=code, **args)


async def shell(caller: Caller, sandbox: Sandbox, command: str, **args: Any) -> Any:
    return await caller(exec_syscalls(sandbox)[1], command=command, **args)


async def test_a_program_prints_its_result(caller: Caller, sandbox: Sandbox) -> None:
    result = await python(caller, sandbox, "print(sum(range(10)))")
    assert (result["text"], result["exit_code"], result["stderr"]) == ("45\n", 0, "")
    result = await python(caller, sandbox, "print(input()[::-1])", stdin="desserts\n")
    assert result["stdout"] == "stressed\n"
    result = await shell(caller, sandbox, "echo a; echo b >&2; exit 3")
    assert (result["stdout"], result["stderr"], result["exit_code"]) == ("a\n", "b\n", 3)
    assert "(exit code 3)" in result["text"]
    assert (await shell(caller, sandbox, ":"))["text"] == "(it printed nothing)\n"


async def test_an_error_is_told_as_the_program_tells_it(caller: Caller, sandbox: Sandbox) -> None:
    result = await python(caller, sandbox, "1/0")
    assert "ZeroDivisionError" in result["text"]
    assert result["exit_code"] == 1


async def test_text_that_is_odd_does_no_harm(caller: Caller, sandbox: Sandbox) -> None:
    result = await python(caller, sandbox, "print('é退')")
    assert result["stdout"] == "é退\n"
    for text in ({"code": "'\ud800'"}, {"code": "1", "stdin": "\ud800"}):
        with pytest.raises(InvalidArguments):
            await python(caller, sandbox, **text)
    result = await shell(caller, sandbox, "printf '\\377\\0x'")
    assert result["stdout"] == "\ufffd\0x"
    assert (await shell(caller, sandbox, "a\0b"))["exit_code"] in (0, 126, 127)


async def test_a_run_ends_at_its_deadline_with_what_it_said(
    caller: Caller, sandbox: Sandbox
) -> None:
    result = await shell(caller, sandbox, "echo begun; sleep 1000", timeout_s=0.5)
    assert result["stdout"] == "begun\n"
    assert result["ended_for"] == "it took more than 0.5 s"
    assert marked("sleep 1000") == []


async def test_what_a_program_leaves_running_ends_with_it(caller: Caller, sandbox: Sandbox) -> None:
    result = await shell(caller, sandbox, "sleep 1001 & echo done")
    assert (result["stdout"], result["ended_for"]) == ("done\n", "")
    assert marked("sleep 1001") == []


async def test_a_cancelled_run_is_killed_first(caller: Caller, sandbox: Sandbox) -> None:
    with anyio.move_on_after(0.5) as scope:
        await shell(caller, sandbox, "trap '' TERM; sleep 1002; sleep 1002", timeout_s=60)
    assert scope.cancelled_caught
    assert marked("sleep 1002") == []


def marked(words: str) -> list[int]:
    """Processes on this machine that have these words in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if line.startswith(words):
            found.append(process.pid)
    return found


async def test_output_streams_and_is_bounded(caller: Caller, sandbox: Sandbox) -> None:
    pieces: list[Chunk] = []
    call = caller.call()
    streaming = Call(call.pid, call.capabilities, call.runtime, pieces.append)
    entry = exec_syscalls(sandbox)[1]
    arguments = entry.validate({"command": "yes streaming"})
    result = await entry.function(streaming, **arguments)
    assert result["ended_for"] == f"it wrote more than {MAX_OUTPUT_BYTES} bytes"
    assert result["truncated"]
    assert len(result["stdout"]) < MAX_TEXT_CHARS + 100
    assert 0 < sum(len(piece.text) for piece in pieces) <= MAX_OUTPUT_BYTES


async def test_a_programs_environment_is_empty(
    caller: Caller, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    assert "hunter2" not in (await shell(caller, sandbox, "env; cat /proc/self/environ"))["text"]


async def test_no_descriptor_of_the_kernel_is_open_in_a_program(
    caller: Caller, sandbox: Sandbox, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")
    fd = os.open(secret, os.O_RDONLY)
    os.set_inheritable(fd, True)
    try:
        code = "import os\nfor f in range(3, 200):\n try: print(os.pread(f, 99, 0))\n except OSError: 0"
        assert "hunter2" not in (await python(caller, sandbox, code))["text"]
    finally:
        os.close(fd)


async def test_a_run_leaves_no_file_behind(caller: Caller, sandbox: Sandbox) -> None:
    result = await shell(caller, sandbox, "pwd; echo x > here; mkdir -p a/b; cat here")
    folder = Path(result["stdout"].splitlines()[0])
    assert result["stdout"].endswith("x\n")
    assert not folder.exists()


@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(4 << 30)",
        "open('big', 'wb').write(b'x' * (100 << 20))",
        "fs = [open('/dev/null') for _ in range(10000)]",
        "import resource as r; r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY));"
        "x = bytearray(4 << 30)",
    ],
    ids=["memory", "file size", "open files", "limits cannot be raised"],
)
async def test_limits_hold(caller: Caller, sandbox: Sandbox, code: str) -> None:
    if "setrlimit" in code and os.geteuid() == 0 and sandbox._bubblewrap is None:
        pytest.skip("root without bubblewrap may raise its limits")
    result = await python(caller, sandbox, code)
    assert result["exit_code"] != 0


async def test_processor_time_is_bounded(caller: Caller, sandbox: Sandbox) -> None:
    result = await python(caller, sandbox, "while True: pass", timeout_s=0.5)
    assert result["ended_for"]


async def test_too_many_processes_end_the_run(caller: Caller, sandbox: Sandbox) -> None:
    code = (
        "import os, time\n"
        "for _ in range(400):\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(1003)\n"
        "time.sleep(1003)\n"
    )
    result = await python(caller, sandbox, code, timeout_s=20)
    assert "processes" in result["ended_for"] or "BlockingIOError" in result["stderr"]
    assert result["exit_code"] != 0


@needs_bubblewrap
async def test_the_operating_system_refuses_more_processes_also_as_root(caller: Caller) -> None:
    code = (
        "import os, time\n"
        "num = 0\n"
        "try:\n"
        "    while num < 200:\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(1005)\n"
        "        num += 1\n"
        "except BlockingIOError:\n"
        "    print(num)\n"
    )
    result = await python(caller, STRICT, code, timeout_s=20)
    assert 0 < int(result["stdout"]) < MAX_PROCESSES
    assert result["sandbox"] == "bubblewrap"
    assert marked("sleep 1005") == []


@needs_bubblewrap
async def test_runs_do_not_share_a_users_processes(caller: Caller) -> None:
    code = (
        "import os, time\n"
        "for _ in range(40):\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(1006)\n"
        "time.sleep(1)\n"
        "print('all')\n"
    )
    said: list[str] = []

    async def run() -> None:
        said.append((await python(caller, STRICT, code, timeout_s=20))["stdout"])

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(run)
    assert said == ["all\n"] * 3


async def test_memory_of_many_processes_is_bounded_in_all(caller: Caller, sandbox: Sandbox) -> None:
    code = (
        "import os, time\n"
        "for _ in range(8):\n"
        "    if os.fork() == 0:\n"
        "        x = bytearray(b'x') * (200 << 20)\n"
        "        time.sleep(1004)\n"
        "time.sleep(1004)\n"
    )
    result = await python(caller, sandbox, code, timeout_s=20)
    assert "MiB" in result["ended_for"]


ESCAPES = {
    "read a file of the machine": "cat /etc/passwd /etc/shadow /root/.bashrc",
    "read the caller's folder": "cat {root}/secret.txt",
    "read through /proc": "cat /proc/1/root{root}/secret.txt /proc/*/root{root}/secret.txt",
    "read through a link": "ln -s {root}/secret.txt l; cat l",
    "write to the caller's folder": "echo evil > {root}/evil.txt; echo evil > {root}/secret.txt",
    "write to the system": "echo evil > /usr/bin/evil; touch /etc/evil; rm -rf /usr/bin/env",
    "write its own script": "echo evil > /scratch/main.sh",
    "mount": "mount -t tmpfs none /mnt; mount --bind {root} /scratch; umount /usr",
    "nest a user namespace": "unshare -Ur cat {root}/secret.txt",
    "become root": "su -c 'cat {root}/secret.txt'; sudo cat {root}/secret.txt",
    "signal the kernel": "kill -9 {pid}; kill -9 -1",
    "trace the kernel": "cat /proc/{pid}/mem /proc/{pid}/environ /proc/{pid}/maps",
    "reach the network": "exec 3<>/dev/tcp/1.1.1.1/80; getent hosts example.org",
    "find devices": "ls /dev/sda /dev/vda /dev/mem /dev/kmsg; cat /dev/vda | head -c 10",
    "leave by chroot": "chroot /proc/1/root cat {root}/secret.txt",
    "set-uid": "cp /bin/sh s; chmod 4755 s; ./s -p -c 'cat {root}/secret.txt'",
}


@needs_bubblewrap
@pytest.mark.parametrize("attempt", ESCAPES)
async def test_no_program_leaves_the_sandbox(caller: Caller, attempt: str) -> None:
    caller.write("secret.txt", "hunter2")
    before = sorted(os.listdir(caller.root.parent))
    command = ESCAPES[attempt].format(root=caller.root, pid=os.getpid())
    result = await shell(caller, STRICT, command)
    assert "hunter2" not in result["text"]
    assert "root:x:0" not in result["text"]
    assert result["stderr"] or result["exit_code"]
    assert (caller.root / "secret.txt").read_text() == "hunter2"
    assert os.listdir(caller.root) == ["secret.txt"]
    assert sorted(os.listdir(caller.root.parent)) == before


@needs_bubblewrap
async def test_only_loopback_is_there_and_the_kernels_sockets_are_not(caller: Caller) -> None:
    code = (
        "import socket\n"
        "print([name for _, name in socket.if_nameindex()])\n"
        "for place in ('1.1.1.1', '127.0.0.1', '169.254.169.254'):\n"
        "    try: socket.create_connection((place, {port}), 1); print('reached')\n"
        "    except OSError: pass\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "try: s.connect('\\0llmasos-test'); print('reached')\n"
        "except OSError: pass\n"
    )
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        result = await python(caller, STRICT, code.replace("{port}", str(port)))
    assert result["stdout"] == "['lo']\n"


@needs_bubblewrap
async def test_the_scratch_folder_and_its_neighbours_are_bounded(caller: Caller) -> None:
    command = (
        "for f in a b c; do head -c 60000000 /dev/zero > $f || echo full; done;"
        " head -c 200000000 /dev/zero > /dev/shm/x || echo full; touch /x || echo full"
    )
    result = await shell(caller, STRICT, command)
    assert result["stdout"].count("full") == 3


async def test_without_bubblewrap_nothing_runs_unless_that_is_allowed(caller: Caller) -> None:
    with pytest.raises(Failed, match="exec_sandbox"):
        await shell(caller, Sandbox(bubblewrap=None), "echo hello")
    with pytest.raises(Failed, match="exec_sandbox"):
        await shell(caller, Sandbox(bubblewrap="false"), "echo hello")


async def test_the_result_names_what_confined_it(caller: Caller) -> None:
    assert (await shell(caller, WEAK, ":"))["sandbox"].startswith("limits")


async def test_many_runs_at_once_all_end(caller: Caller, sandbox: Sandbox) -> None:
    results: list[str] = []

    async def run(number: int) -> None:
        results.append((await shell(caller, sandbox, f"echo {number}"))["stdout"])

    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(run, number)
    assert sorted(results) == sorted(f"{number}\n" for number in range(12))


@pytest.mark.parametrize("args", [{"timeout_s": 0}, {"timeout_s": 1e9}, {"stdin": 5}, {"code": 5}])
async def test_arguments_out_of_bounds_are_refused(caller: Caller, args: dict[str, Any]) -> None:
    with pytest.raises(InvalidArguments):
        await python(caller, WEAK, **{"code": "1", **args})

"""Attacks through a running kernel: each fails with a clear error, and others are served meanwhile.

Paths that lead outside are in `test_escapes`, whole drivers' own attacks in their tests; here is what
one process may try by syscalls, with a bystander at work beside it.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmasos.apps.builtin import load_builtin
from llmasos.apps.sdk import App, Proc, app
from llmasos.kernel.abi import Capabilities
from llmasos.kernel.errors import SyscallError
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore, replies
from llmasos.syscalls import builtin_syscalls

pytestmark = pytest.mark.anyio
SECRET = "hunter2-the-secret"
needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bubblewrap here")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def deep(levels: int = 50_000) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = {"x": value}
    return value


def bomb() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b" " * (150 * 2**20))
    return target.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root full of traps, and a secret beside it."""
    folder = tmp_path_factory.mktemp("attacked")
    root = folder / "root"
    root.mkdir()
    (folder / "secret.txt").write_text(SECRET)
    (root / "notes.md").write_text("harmless " + "a" * 5000)
    (root / "bang.txt").write_text("a" * 5000 + "!")
    (root / "out").symlink_to("..")
    (root / "bomb.docx").write_bytes(bomb())
    return folder


@pytest.fixture(scope="module")
async def runtime(folder: Path, anyio_backend: str) -> AsyncIterator[Runtime]:
    async with Runtime(
        ScriptedCore(replies(lambda _: "no")),
        ByteTokenizer(),
        syscalls=builtin_syscalls(),
        programs=load_builtin,
        cache_folder=folder / "home" / "cache",
        capabilities=Capabilities(root=str(folder / "root"), hosts=("*",)),
    ) as running:
        yield running
        running.kernel.check_integrity()


def attacker(name: str, args: dict[str, Any]) -> App:
    @app(name="attacker", summary="Tries one thing.")
    async def attack(proc: Proc) -> int:
        try:
            result = await proc.port.syscall(name, args)
        except SyscallError as error:
            await proc.print(f"{error.code}: {error}")
            return 3
        await proc.print(repr(result))
        return 0

    return attack


@app(name="bystander", summary="Works beside an attack.")
async def bystander(proc: Proc) -> None:
    for number in range(5):
        await proc.call("fs.write", path=f"b/{number}.txt", text=f"bystander {number}")
        read = await proc.call("fs.read", path=f"b/{number}.txt")
        assert read["text"] == f"bystander {number}"
    assert (await proc.call("calc", expression="6*7"))["text"].endswith("42")
    await proc.call("memory.remember", text="the bystander was here")


async def outcome(
    runtime: Runtime, name: str, args: dict[str, Any], capabilities: Capabilities | None = None
) -> tuple[int, str]:
    """How an attack ended and what it saw, with a bystander that must come through it."""
    pid = await runtime.spawn(attacker(name, args), capabilities=capabilities)
    other = await runtime.spawn(bystander)
    with anyio.fail_after(100):
        ended = await runtime.wait(other)
        status = await runtime.wait(pid)
    assert ended.code == 0, ended
    return status.code, runtime.output_text(pid)


def url(address: str) -> tuple[str, dict[str, Any]]:
    return "web.fetch", {"url": address}


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "history outside": ("fs.history", {"path": "../secret.txt"}),
    "history through a link": ("fs.history", {"path": "out/secret.txt"}),
    "history of /": ("fs.history", {"path": "/"}),
    "restore from outside": ("fs.restore", {"path": "../secret.txt"}),
    "restore to outside": ("fs.restore", {"path": "notes.md", "to": "../evil.txt"}),
    "restore through a link": ("fs.restore", {"path": "notes.md", "to": "out/evil.txt"}),
    "restore a version that is none": ("fs.restore", {"path": "notes.md", "version": 10**30}),
    "restore version 0": ("fs.restore", {"path": "notes.md", "version": 0}),
    "restore by a string": ("fs.restore", {"path": "notes.md", "version": "1; DROP TABLE"}),
    "append through a link": ("fs.append", {"path": "out/secret.txt", "text": "x"}),
    "a path of a megabyte": ("fs.read", {"path": "a/" * 500_000}),
    "an argument too many": ("fs.read", {"path": "notes.md", "root": "/"}),
    "another root": ("fs.read", {"path": "secret.txt", "call": {"root": "/"}}),
    "deep JSON as a path": ("fs.read", {"path": deep()}),
    "deep JSON as parameters": ("proc.spawn", {"app": "call", "params": deep()}),
    "deep JSON as a query": ("search", {"query": deep()}),
    "huge query": ("search", {"query": "x" * 1_000_000}),
    "query of nothing": ("memory.recall", {"query": "*** --- ()"}),
    "memory of a scope that is none": ("memory.remember", {"text": "x", "scope": "kernel"}),
    "memory of another owner": ("memory.remember", {"text": "x", "owner": "1@0"}),
    "memory that is huge": ("memory.remember", {"text": "x" * 20_001}),
    "memory of nothing": ("memory.remember", {"text": "\n \t"}),
    "forget what is not one's own": ("memory.forget", {"id": 1}),
    "forget number -1": ("memory.forget", {"id": -1}),
    "forget beyond integers": ("memory.forget", {"id": 2**80}),
    "recall without end": ("memory.recall", {"query": "x", "limit": 10**9}),
    "loopback": url("http://127.0.0.1/"),
    "loopback by name": url("http://localhost/"),
    "loopback by number": url("http://2130706433/"),
    "loopback in octal": url("http://0177.0.0.1/"),
    "loopback in hex": url("http://0x7f.0.0.1/"),
    "loopback in short": url("http://127.1/"),
    "loopback over IPv6": url("http://[::1]/"),
    "loopback mapped": url("http://[::ffff:127.0.0.1]/"),
    "loopback over NAT64": url("http://[64:ff9b::7f00:1]/"),
    "nowhere": url("http://0.0.0.0/"),
    "a private network": url("http://10.0.0.1/"),
    "a home network": url("http://192.168.0.1/admin"),
    "cloud metadata": url("http://169.254.169.254/latest/meta-data/"),
    "cloud metadata over IPv6": url("http://[fd00:ec2::254]/"),
    "another cloud's metadata": url("http://100.100.100.200/"),
    "a host's own service": url("http://168.63.129.16/"),
    "multicast": url("http://224.0.0.1/"),
    "a file": url("file:///etc/passwd"),
    "a gopher": url("gopher://127.0.0.1:6379/_FLUSHALL"),
    "a user name": url("http://example.org@127.0.0.1/"),
    "a backslash": url("http://example.org\\@127.0.0.1/"),
    "a header": url("http://example.org/\r\nHost: evil"),
    "a URL of a megabyte": url("http://example.org/" + "a" * 1_000_000),
    "code that is huge": ("exec.python", {"code": "x" * 300_000}),
    "time without end": ("exec.shell", {"command": "true", "timeout_s": 1e12}),
    "time that is no number": ("exec.shell", {"command": "true", "timeout_s": float("nan")}),
    "a glob that backtracks": ("fs.glob", {"pattern": "a*" * 400}),
    "a glob that climbs": ("fs.glob", {"pattern": "../../*"}),
    "calc bomb": ("calc", {"expression": "9**9**9**9"}),
    "calc without end": ("calc", {"expression": "(" * 100_000}),
    "a signal to the kernel": ("proc.kill", {"pid": 0}),
    "a signal to a neighbour": ("proc.kill", {"pid": 2}),
    "wait for a neighbour": ("proc.wait", {"pid": 2}),
    "a regular expression that explodes": ("fs.grep", {"text": "(a+)+$", "is_regex": True}),
    "an expression by recursion": ("fs.grep", {"text": "(a|a(?R)?)+$", "is_regex": True}),
    "a back reference that explodes": ("fs.grep", {"text": r"(a*)*\1*$", "is_regex": True}),
    "an expression that is none": ("fs.grep", {"text": "(" * 400, "is_regex": True}),
    "a count beyond integers": ("fs.grep", {"text": "a{" + "9" * 400 + "}", "is_regex": True}),
    "grep files outside": ("fs.grep", {"text": "x", "files": "../*"}),
    "a pipe that was never made": ("ipc.read", {"end": "read:" + "0" * 32}),
    "a pipe by a guess": ("ipc.write", {"end": "write:%", "text": "x"}),
    "a pipe by SQL": ("ipc.read", {"end": "read:' OR 1=1 --"}),
    "a pipe as a path": ("ipc.write", {"end": "write:../../journal.db", "text": "x"}),
    "a pipe without bound": ("ipc.pipe", {"capacity": 10**12}),
    "a letter without bound": ("ipc.send", {"pid": 1, "text": "x" * 1_000_000}),
    "a letter to the kernel": ("ipc.send", {"pid": 0, "text": "x"}),
    "a letter to nobody": ("ipc.send", {"pid": -(10**30), "text": "x"}),
    "giving what one has not": ("ipc.give", {"end": "read:" + "0" * 32, "pid": 1}),
    "a topic of another group": ("ipc.publish", {"topic": "other:news", "text": "x"}),
    "a topic by a pattern": ("ipc.subscribe", {"topic": "%"}),
    "chance without bound": ("random.bytes", {"size": 10**12}),
    "a choice of nothing": ("random.choice", {"options": []}),
    "a number beyond all": ("random.integer", {"low": 0, "high": 10**400}),
    "a number from nothing": ("random.integer", {"low": 2, "high": 1}),
    "sleeping for ever": ("time.sleep", {"seconds": float("inf")}),
    "a deep choice": ("random.choice", {"options": [deep()]}),
    "a syscall that is none": ("fs.__class__", {}),
    "a name with a pattern": ("fs.*", {"path": "notes.md"}),
}
"""What must end in a clear error."""

HARMLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "a regular expression that backtracks": ("fs.grep", {"text": "(a+)+$"}),
    "a nested one": ("fs.grep", {"text": "((a|aa)+)+b{1000}{1000}"}),
    "a zip bomb to index": ("search", {"query": "harmless bomb"}),
    "full-text syntax": ("search", {"query": '" OR path MATCH "x" NEAR(* --'}),
    "full-text syntax in memory": ("memory.recall", {"query": "x') OR 1=1; DROP TABLE memories"}),
    "all that changed": ("fs.history", {"path": "."}),
    "everybody's memories": ("memory.list", {"limit": 500}),
}
"""What may have a result, that must tell nothing."""

IN_THE_SANDBOX = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory": "x = []\nwhile True: x.append(bytearray(10 << 20))",
    "disk": "f = open('x', 'wb')\nwhile True: f.write(b'x' * (1 << 20))",
    "output": "while True: print('x' * 1000)",
    "read": "print(open({secret!r}).read())",
    "write": "open({secret!r}, 'a').write('evil')",
    "walk": "import os\nfor p, d, f in os.walk('/'):\n    if 'secret.txt' in f: print(p)",
    "network": "import socket\nsocket.create_connection(('1.1.1.1', 80), 2)",
    "signal": "import os\nos.kill({pid}, 9)",
    "outlive": "import os\nif os.fork() == 0:\n    os.setsid()\n    import time\n    time.sleep(1005)",
    "native": "import ctypes\nctypes.string_at(0)",
}


@pytest.mark.parametrize("attempt", REFUSED)
async def test_attempts_end_in_a_clear_error(runtime: Runtime, folder: Path, attempt: str) -> None:
    name, args = REFUSED[attempt]
    code, said = await outcome(runtime, name, args)
    assert code == 3, said
    assert SECRET not in said
    assert "Traceback" not in said
    assert len(said) < 1500
    assert (folder / "secret.txt").read_text() == SECRET


@pytest.mark.parametrize("attempt", HARMLESS)
async def test_attempts_find_nothing(runtime: Runtime, folder: Path, attempt: str) -> None:
    name, args = HARMLESS[attempt]
    _, said = await outcome(runtime, name, args)
    assert SECRET not in said
    assert (folder / "secret.txt").read_text() == SECRET


@needs_bubblewrap
@pytest.mark.parametrize("attempt", IN_THE_SANDBOX)
async def test_code_gets_nowhere(runtime: Runtime, folder: Path, attempt: str) -> None:
    secret = folder / "secret.txt"
    code = IN_THE_SANDBOX[attempt].format(secret=str(secret), pid=os.getpid())
    _, said = await outcome(runtime, "exec.python", {"code": code, "timeout_s": 3})
    assert SECRET not in said
    assert str(folder) not in said.replace(str(secret), "")
    assert secret.read_text() == SECRET
    assert "'exit_code': 0" not in said or attempt in ("walk", "outlive")


async def test_a_process_without_the_right_may_call_nothing(runtime: Runtime) -> None:
    narrow = Capabilities(syscalls=("io.*", "proc.*"), root=runtime.capabilities.root)
    for name, args in (
        ("exec.python", {"code": "1"}),
        ("memory.recall", {"query": "x"}),
        ("web.fetch", {"url": "http://1.1.1.1/"}),
        ("fs.restore", {"path": "notes.md"}),
    ):
        code, said = await outcome(runtime, name, args, narrow)
        assert (code, said.split(":")[0]) == (3, "permission_denied")


async def test_a_child_cannot_be_given_what_its_parent_lacks(runtime: Runtime) -> None:
    narrow = Capabilities(syscalls=("io.*", "proc.*"), root=runtime.capabilities.root)

    @app(name="parent", summary="Sends a child.")
    async def parent(proc: Proc) -> None:
        call = {"name": "fs.read", "args": {"path": "notes.md"}}
        child = await proc.spawn("call", call, syscalls=["*", "fs.read"])
        await proc.print(json.dumps((await child.wait()).message))

    pid = await runtime.spawn(parent, capabilities=narrow)
    await runtime.wait(pid)
    assert "may not call fs.read" in runtime.output_text(pid)


async def test_hosts_are_nobodys_unless_granted(runtime: Runtime) -> None:
    plain = Capabilities(root=runtime.capabilities.root)
    code, said = await outcome(runtime, "web.fetch", {"url": "http://1.1.1.1/"}, plain)
    assert code == 3
    assert "needs a capability" in said


@needs_bubblewrap
async def test_a_process_that_is_killed_takes_its_program_with_it(runtime: Runtime) -> None:
    from llmasos.kernel.abi import Signal
    from tests.syscalls.test_exec import marked

    pid = await runtime.spawn(attacker("exec.shell", {"command": "sleep 1006", "timeout_s": 60}))
    with anyio.fail_after(20):
        while not marked("sleep 1006"):
            await anyio.sleep(0.02)
        runtime.signal(pid, Signal.KILL)
        await runtime.wait(pid)
        while marked("sleep 1006"):
            await anyio.sleep(0.02)

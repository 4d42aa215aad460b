"""Capabilities of running processes: passed on, taken back, attacked, and there again after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from llmasos.kernel import authority
from llmasos.kernel.abi import Capabilities, Effect, Grant, Narrowing, Pid
from llmasos.kernel.capabilities import infos
from llmasos.kernel.errors import PermissionDenied, SyscallError
from llmasos.kernel.gate import Verdict
from llmasos.kernel.journal.branch import past_of
from llmasos.kernel.journal.history import History
from llmasos.kernel.journal.replay import Replay
from llmasos.kernel.program import Port
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.strands import UNNAMED, CallId
from llmasos.kernel.syscall import Call, syscall
from llmasos.syscalls import capability
from tests.kernel.journal.reboots import Machine

pytestmark = pytest.mark.anyio
LESS = {"syscalls": ["io.*"]}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Door:
    """A syscall that waits until it is let go."""

    def __init__(self) -> None:
        self.num_waiting = 0
        self.is_open = asyncio.Event()

        @syscall("test.door", effect=Effect.WRITE, deadline_s=None, repeatable=True)
        async def door(call: Call) -> str:
            """Wait."""
            self.num_waiting += 1
            await self.is_open.wait()
            return "through"

        self.syscall = door


def machine_with(door: Door | None = None) -> Machine:
    extra = (door.syscall,) if door else ()
    return Machine(syscalls=(*capability.SYSCALLS, *extra))


async def says(port: Port, text: str) -> None:
    await port.syscall("io.write", {"text": text})


async def refused(port: Port, name: str, **args: Any) -> str:
    """How a call is refused, which it must be."""
    with pytest.raises(SyscallError) as caught:
        await port.syscall(name, args)
    return f"{caught.value.code}: {caught.value}"


async def reader(port: Port, params: Mapping[str, Any]) -> None:
    """Says what becomes of a call for each line that it is sent."""
    while await port.syscall("io.read_line", {}) is not None:
        try:
            await port.syscall("proc.list", {})
            await says(port, "y")
        except PermissionDenied as error:
            await says(port, "n" if "any more" in str(error) else "-")


async def idle(port: Port, params: Mapping[str, Any]) -> None:
    """Lives until its input ends."""
    while await port.syscall("io.read_line", {}) is not None:
        pass


async def printed(runtime: Runtime, pid: Pid, num_chars: int) -> str:
    while len(runtime.output_text(pid)) < num_chars:
        await anyio.lowlevel.checkpoint()
    return runtime.output_text(pid)


async def asked(runtime: Runtime, pid: Pid) -> str:
    """What a reader says to one more line."""
    num_before = len(runtime.output_text(pid))
    await runtime.send_input(pid, "go")
    return (await printed(runtime, pid, num_before + 1))[num_before:]


def home() -> Machine:
    machine = machine_with()
    for main in (reader, idle):
        machine.app(main)
    return machine


async def test_a_child_holds_what_it_is_granted_and_nothing_else() -> None:
    async def parent(port: Port, params: Mapping[str, Any]) -> None:
        grant = [{"handle": 0, "narrowed": LESS}]
        child = await port.syscall("proc.spawn", {"app": "child", "grant": grant})
        result = await port.syscall("proc.wait", {"pid": child})
        assert (result["code"], result["output"]) == (0, "done")
        none = await port.syscall("proc.spawn", {"app": "child", "grant": []})
        assert (
            "may not call io.write" in (await port.syscall("proc.wait", {"pid": none}))["message"]
        )

    async def child(port: Port, params: Mapping[str, Any]) -> None:
        await says(port, "done")
        assert "permission_denied" in await refused(port, "ctx.open")
        assert "permission_denied" in await refused(port, "cap.list")

    machine = machine_with()
    machine.app(parent)
    machine.app(child)
    await machine.run("parent")


async def test_handles_can_be_neither_forged_nor_replayed() -> None:
    async def thief(port: Port, params: Mapping[str, Any]) -> None:
        for handle in (1, 2, 7, 10**9):
            assert "holds no capability" in await refused(port, "cap.derive", handle=handle)
        for handle in (-1, "0:0", 2.5, None, [0], "1"):
            outcome = await refused(port, "cap.derive", handle=handle)
            assert outcome.startswith(("invalid_arguments", "permission_denied"))
        derived = await port.syscall("cap.derive", {"handle": 0})
        assert await port.syscall("cap.revoke", {"handle": derived}) == 1
        assert "revoked" in await refused(port, "cap.derive", handle=derived)
        again = await port.syscall("cap.derive", {"handle": 0})
        assert again == derived + 1
        held = {each.handle: each.state for each in await port.syscall("cap.list", {})}
        assert held == {0: "live", derived: "revoked", again: "live"}

    machine = machine_with()
    machine.app(thief)
    async with machine.booted() as runtime:
        other = await runtime.spawn("thief")  # its handles are no help to the second
        assert (await runtime.wait(other)).code == 0
        assert (await runtime.wait(await runtime.spawn("thief"))).code == 0


async def test_only_what_descends_from_a_process_can_be_given_anything() -> None:
    async def giver(port: Port, params: Mapping[str, Any]) -> None:
        for pid in (port.pid, 1, 999):
            assert "not a child" in await refused(port, "cap.send", handle=0, pid=pid)

    machine = home()
    machine.app(giver)
    async with machine.booted() as runtime:
        other = await runtime.spawn("idle", stdin=True)
        status = await runtime.wait(await runtime.spawn("giver"))
        assert (status.code, status.message) == (0, "")
        assert len(infos(runtime.kernel.process(other), 0)) == 1


async def family(runtime: Runtime) -> tuple[Pid, Pid, Pid]:
    """A process, its child and grandchild, all readers of lines."""
    top = await runtime.spawn("idle", stdin=True)
    grants = [Grant(0, Narrowing(syscalls=("io.*", "proc.*", "cap.*")))]
    between = await runtime.spawn("idle", ppid=top, stdin=True, grants=grants)
    return top, between, await runtime.spawn("reader", ppid=between, stdin=True)


async def test_what_is_revoked_is_gone_for_all_who_have_it_from_there() -> None:
    async with home().booted() as runtime:
        top, between, reading = await family(runtime)
        forked = await runtime.fork(reading)
        assert [await asked(runtime, pid) for pid in (reading, forked)] == ["y", "y"]
        assert authority.revoke(runtime.kernel, between, 0) == 3
        # its input comes through a syscall too, so it ends
        assert "any more: its capability was revoked" in await end_of(runtime, reading)
        assert "any more" in await end_of(runtime, forked)
        assert runtime.kernel.process(top).handles[0].is_live(runtime.now())


async def end_of(runtime: Runtime, pid: Pid) -> str:
    await runtime.send_input(pid, "go")
    return (await runtime.wait(pid)).message


async def test_a_capability_that_was_sent_helps_until_it_is_taken_back() -> None:
    async with home().booted() as runtime:
        top = await runtime.spawn("idle", stdin=True)
        grants = [Grant(0, Narrowing(syscalls=("io.*",)))]
        child = await runtime.spawn("reader", ppid=top, stdin=True, grants=grants)
        kernel, now = runtime.kernel, runtime.now()
        assert await asked(runtime, child) == "-"
        mine = authority.derive(kernel, top, 0, Narrowing(("proc.list",)), now, UNNAMED)
        authority.send(kernel, top, mine, child, Narrowing(), now, UNNAMED)
        assert (await asked(runtime, child))[-1] == "y"
        assert authority.revoke(kernel, top, mine) == 2
        assert (await asked(runtime, child))[-1] == "n"
        kernel.check_integrity()


async def test_a_capability_expires() -> None:
    async with (machine := home()).booted() as runtime:
        top = await runtime.spawn("idle", stdin=True)
        both = [
            Grant(0, Narrowing(syscalls=("io.*",))),
            Grant(0, Narrowing(syscalls=("proc.*",), expires_in_s=60)),
        ]
        child = await runtime.spawn("reader", ppid=top, stdin=True, grants=both)
        assert await asked(runtime, child) == "y"
        machine.now += 61
        assert await asked(runtime, child) == "n"


async def test_a_call_under_way_goes_on_when_its_capability_is_revoked() -> None:
    door = Door()

    async def walker(port: Port, params: Mapping[str, Any]) -> None:
        await says(port, await port.syscall("test.door", {}))
        await port.syscall("test.door", {})

    machine = machine_with(door)
    machine.app(walker)
    machine.app(idle)
    async with machine.booted() as runtime:
        top = await runtime.spawn("idle", stdin=True)
        grants = [Grant(0, Narrowing(("io.*",))), Grant(0, Narrowing(("test.*",)))]
        pid = await runtime.spawn("walker", ppid=top, grants=grants)
        while not door.num_waiting:
            await anyio.lowlevel.checkpoint()
        authority.revoke(runtime.kernel, pid, 1)
        door.is_open.set()
        status = await runtime.wait(pid)
        assert runtime.output_text(pid) == "through"
        assert status.message == (
            "This process may not call test.door any more: its capability was revoked."
        )


async def test_a_tracer_sees_every_verdict_and_the_capability_behind_it() -> None:
    async def caller(port: Port, params: Mapping[str, Any]) -> None:
        await says(port, "x")
        await refused(port, "ctx.open")

    machine = machine_with()
    machine.app(caller)
    seen: list[tuple[str, int | None, str]] = []

    def watch(_process: Any, entry: Any, _call: Any, verdict: Verdict) -> None:
        seen.append((entry.name, verdict.handle, str(verdict.refusal or "")))

    async with machine.booted() as runtime:
        runtime.gate.on_verdict = watch
        pid = await runtime.spawn("caller", capabilities=Capabilities(("io.*",)))
        assert (await runtime.wait(pid)).code == 0
    assert seen == [
        ("io.write", 0, ""),
        ("ctx.open", None, "This process may not call ctx.open."),
    ]


# --- what the journal keeps


async def test_what_was_granted_and_revoked_is_so_after_a_crash() -> None:
    machine = home()
    async with machine.booted(crashes=True) as runtime:
        top, between, reading = await family(runtime)
        spare = authority.derive(
            runtime.kernel, between, 0, Narrowing(("proc.*",)), runtime.now(), UNNAMED
        )
        authority.send(runtime.kernel, between, spare, reading, Narrowing(), runtime.now(), UNNAMED)
        authority.revoke(runtime.kernel, between, spare)
        before = {pid: infos(runtime.kernel.process(pid), 0) for pid in (top, between, reading)}
        await runtime.flushed()
    async with machine.booted(crashes=True) as runtime:
        after = {pid: infos(runtime.kernel.process(pid), 0) for pid in (top, between, reading)}
        assert after == before
        assert await asked(runtime, reading) == "y"
        await runtime.send_input(between, None)
        assert (await runtime.wait(between)).code == 0
    async with machine.booted() as runtime:  # who stood between them has ended
        assert runtime.kernel.process(between).exit is not None
        assert await asked(runtime, reading) == "y"
        assert authority.revoke(runtime.kernel, top, 0) >= 2
        assert "revoked" in await end_of(runtime, reading)


async def test_an_app_that_deals_in_capabilities_is_replayed_and_comes_back() -> None:
    async def dealer(port: Port, params: Mapping[str, Any]) -> None:
        mine = await port.syscall("cap.derive", {"handle": 0, "narrowed": LESS})
        await says(port, str(mine))
        await port.syscall("io.read_line", {})
        await says(port, str(await port.syscall("cap.derive", {"handle": mine})))
        await says(port, str(await port.syscall("cap.revoke", {"handle": mine})))
        await says(port, str(len(await port.syscall("cap.list", {}))))

    machine = machine_with()
    machine.app(dealer)
    async with machine.booted(crashes=True) as runtime:
        pid = await runtime.spawn("dealer", stdin=True)
        assert await printed(runtime, pid, 1) == "1"
        await runtime.flushed()
    async with machine.booted() as runtime:
        await runtime.send_input(pid, "go")
        assert (await runtime.wait(pid)).code == 0
        assert runtime.output_text(pid) == "1223"
    replayed = await Replay(
        machine.history(pid), machine.apps["dealer"], decode=machine.decode
    ).run()
    assert (replayed.problem, replayed.output) == ("", "1223")


async def test_a_capability_is_derived_once_however_often_a_kernel_ends_under_the_call() -> None:
    async with (machine := home()).booted(crashes=True) as runtime:
        pid = await runtime.spawn("idle", stdin=True)
        args = (pid, 0, Narrowing(), runtime.now(), CallId("7"))
        handle = authority.derive(runtime.kernel, *args)
        await runtime.flushed()
    async with machine.booted() as runtime:
        assert authority.derive(runtime.kernel, *args) == handle
        assert len(runtime.kernel.process(pid).handles) == 2


async def test_a_branch_from_before_a_revocation_brings_nothing_back() -> None:
    async with home().booted() as runtime:
        top = await runtime.spawn("idle", stdin=True)
        grants = [Grant(0, Narrowing(("io.*",))), Grant(0, Narrowing(("proc.*",)))]
        reading = await runtime.spawn("reader", ppid=top, stdin=True, grants=grants)
        assert await asked(runtime, reading) == "y"
        num_events = len((await runtime.history(reading)).events)
        early = await runtime.branch(reading, until=num_events)
        authority.revoke(runtime.kernel, reading, 1)
        late = await runtime.branch(reading, until=num_events)
        for pid in (reading, early, late):
            assert (await asked(runtime, pid))[-1] in "n-"
        runtime.kernel.check_integrity()


async def test_a_journal_of_before_there_were_handles_is_understood() -> None:
    async with (machine := home()).booted() as runtime:
        pid = await runtime.spawn("idle")
        await runtime.wait(pid)
    events = machine.events(pid)
    spawn = {key: value for key, value in events[0][1].items() if key != "handles"}
    spawn["capabilities"] = {"syscalls": ["fs.*"], "root": "/r", "hosts": []}
    spawn["limits"] = {"wall_s": None, "tokens_out": 5}
    history = History(pid, [("spawn", spawn), *events[1:]])
    assert history.holdings.handles == {0: ([], spawn["capabilities"])}
    beginning = past_of(pid, history.events).beginning(spawn, 0.0, is_foreign=False)
    assert beginning[0][1]["handles"] == [[0, [f"{pid}:0"], spawn["capabilities"]]]

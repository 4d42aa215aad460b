"""Limits of running processes: what ends them, what they are told, and what a restart does not forgive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio.lowlevel
import pytest

from llmasos.kernel.abi import CallLimit, GroupLimits, LimitInfo, Limits, Pid, Signal
from llmasos.kernel.errors import LimitExceeded
from llmasos.kernel.journal.replay import Replay
from llmasos.kernel.program import Port
from llmasos.kernel.runtime import Runtime
from tests.kernel.journal.reboots import Machine
from tests.kernel.journal.test_authority import idle, printed, says

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def writer(port: Port, params: Mapping[str, Any]) -> None:
    """Generates for each line that it is sent, as many tokens as the line says."""
    context = await port.syscall("ctx.open", {})
    await port.syscall("ctx.append", {"context": context, "text": "w"})
    while (line := await port.syscall("io.read_line", {})) is not None:
        await port.syscall("llm.generate", {"context": context, "max_tokens": int(line)})
        await says(port, ".")


async def listener(port: Port, params: Mapping[str, Any]) -> None:
    """Spends a budget, and says which signals it is told of."""
    context = await port.syscall("ctx.open", {})
    await port.syscall("ctx.append", {"context": context, "text": "w"})
    assert await port.syscall("proc.signals", {}) == []
    for _ in range(3):
        await port.syscall("llm.generate", {"context": context, "max_tokens": 6})
        await says(port, f"{await port.syscall('proc.signals', {})}")
    await port.syscall("io.read_line", {})
    await says(port, f"{await port.syscall('proc.signals', {'wait': True})}")


def home() -> Machine:
    machine = Machine()
    for main in (writer, listener, idle):
        machine.app(main)
    return machine


async def write(runtime: Runtime, pid: Pid, num_tokens: int) -> None:
    num_before = len(runtime.output_text(pid))
    await runtime.send_input(pid, str(num_tokens))
    await printed(runtime, pid, num_before + 1)


async def overdraw(runtime: Runtime, pid: Pid) -> tuple[int, str]:
    """How a process ends that wants more than it may."""
    await runtime.send_input(pid, "100")
    status = await runtime.wait(pid)
    return status.code, status.message


def of(rows: list[LimitInfo], name: str, scope: str = "own") -> tuple[float, float]:
    return next((row.limit, row.used) for row in rows if (row.name, row.scope) == (name, scope))


async def test_the_exit_says_which_limit_was_reached() -> None:
    async with home().booted() as runtime:
        pid = await runtime.spawn("writer", limits=Limits(tokens_out=8), stdin=True)
        assert await overdraw(runtime, pid) == (
            124, "Process 1 may sample 8 tokens and has done so.",
        )  # fmt: skip
        assert runtime.info(pid).tokens_out == 8


async def test_calls_that_are_one_too_many_are_refused_at_the_gate() -> None:
    async def caller(port: Port, params: Mapping[str, Any]) -> None:
        for _ in range(3):
            await port.syscall("proc.self", {})
        with pytest.raises(LimitExceeded):
            await port.syscall("proc.self", {})
        await port.syscall("io.write", {"text": "and on"})
        await port.syscall("proc.list", {})

    machine = home()
    machine.app(caller)
    async with machine.booted() as runtime:
        limits = Limits(calls=(CallLimit("proc.*", 3),))
        pid = await runtime.spawn("caller", limits=limits)
        status = await runtime.wait(pid)
        assert (status.code, runtime.output_text(pid)) == (124, "and on")
        assert status.message == "Process 1 may call proc.* 3 times and has done so."


async def test_an_app_is_told_once_that_its_budget_is_nearly_spent_and_of_other_signals() -> None:
    machine = home()
    async with machine.booted(crashes=True) as runtime:
        pid = await runtime.spawn("listener", limits=Limits(tokens_out=19), stdin=True)
        await printed(runtime, pid, len("[][]['XTOK']"))
        runtime.signal(pid, Signal.USR1)
        runtime.signal(pid, Signal.ALRM)
        await runtime.flushed()
    async with machine.booted() as runtime:  # signals wait over a crash
        await runtime.send_input(pid, "go")
        assert (await runtime.wait(pid)).code == 0
        assert runtime.output_text(pid) == "[][]['XTOK']['USR1', 'ALRM']"
    replayed = await Replay(
        machine.history(pid), machine.apps["listener"], decode=machine.decode
    ).run()
    assert replayed.problem == ""


async def test_a_child_and_its_time_end_no_later_than_its_parent() -> None:
    async with home().booted() as runtime:
        pid = await runtime.spawn("idle", limits=Limits(wall_s=50), stdin=True)
        child = await runtime.spawn("idle", ppid=pid, limits=Limits(wall_s=500), stdin=True)
        forked = await runtime.fork(child)
        for each in (child, forked):
            limits = runtime.kernel.process(each).limits
            assert limits.wall_s is not None
            assert 40 < limits.wall_s <= 50


async def test_only_time_that_is_left_ends_a_process_whose_limit_was_changed() -> None:
    async with home().booted() as runtime:
        pid = await runtime.spawn("idle", limits=Limits(wall_s=500), stdin=True)
        runtime.budgets.change(pid, Limits(wall_s=0.001))
        assert (await runtime.wait(pid)).code == 124
        other = await runtime.spawn("idle", limits=Limits(wall_s=500), stdin=True)
        runtime.budgets.change(other, Limits(), ["wall_s"])
        assert runtime.budgets.rows(other) == []


async def test_the_operator_may_give_more_and_it_is_kept() -> None:
    machine = home()
    async with machine.booted(crashes=True) as runtime:
        pid = await runtime.spawn("writer", limits=Limits(tokens_out=5), stdin=True)
        await write(runtime, pid, 5)
        runtime.budgets.change(pid, Limits(tokens_out=9))
        await write(runtime, pid, 2)
        await runtime.flushed()
    async with machine.booted() as runtime:
        assert of(runtime.budgets.rows(pid), "tokens_out") == (9, 7)
        assert (await overdraw(runtime, pid))[0] == 124
        assert runtime.info(pid).tokens_out == 9


@pytest.mark.parametrize("num_crashes", [1, 3])
async def test_a_restart_forgives_nothing_that_relatives_used(num_crashes: int) -> None:
    machine = home()
    async with machine.booted(crashes=True) as runtime:
        top = await runtime.spawn("idle", limits=Limits(tokens_out=30), stdin=True)
        limits = Limits(tokens_out=18)
        between = await runtime.spawn("writer", ppid=top, limits=limits, stdin=True)
        below = await runtime.spawn("writer", ppid=between, stdin=True)
        ended = await runtime.spawn("writer", ppid=between, stdin=True)
        for pid, num_tokens in ((between, 3), (below, 4), (ended, 5)):
            await write(runtime, pid, num_tokens)
        for pid in (ended, between):  # who stays is below nobody who lives but the first
            await runtime.send_input(pid, None)
            await runtime.wait(pid)
        await runtime.flushed()
    for _ in range(num_crashes - 1):
        async with machine.booted(crashes=True) as runtime:
            await runtime.flushed()
    async with machine.booted() as runtime:
        assert of(runtime.budgets.rows(top), "tokens_out") == (30, 12)
        assert of(runtime.budgets.rows(below), "tokens_out", f"process {between}") == (18, 12)
        code, message = await overdraw(runtime, below)
        assert (code, message) == (
            124, f"Process {between} may sample 18 tokens and has done so.",
        )  # fmt: skip
        assert of(runtime.budgets.rows(top), "tokens_out") == (30, 18)


async def test_what_a_family_used_is_forgotten_with_its_last_member() -> None:
    machine = home()
    async with machine.booted() as runtime:
        top = await runtime.spawn("idle", limits=Limits(tokens_out=30), stdin=True)
        child = await runtime.spawn("writer", ppid=top, stdin=True)
        for pid in (top, child):
            await runtime.send_input(pid, None)
            await runtime.wait(pid)
        await runtime.flushed()
        journal = runtime._journal
        assert journal is not None
        assert journal.accounts() == {}


async def test_what_a_group_may_use_and_has_used_survives_a_restart() -> None:
    machine = home()
    async with machine.booted(crashes=True) as runtime:
        runtime.set_group_limits("batch", GroupLimits(tokens_out=20, pages=50))
        runtime.set_group_weight("batch", 300)
        ended = await runtime.spawn("writer", group="batch/x", stdin=True)
        living = await runtime.spawn("writer", group="batch", stdin=True)
        await write(runtime, ended, 6)
        await write(runtime, living, 7)
        await runtime.send_input(ended, None)
        await runtime.wait(ended)
        await runtime.flushed()
    async with machine.booted() as runtime:
        batch = next(info for info in runtime.groups() if info.path == "batch")
        assert (batch.weight, batch.tokens_out) == (300, 13)
        assert batch.limits == GroupLimits(tokens_out=20, pages=50)
        assert await overdraw(runtime, living) == (
            124, "Group batch may sample 20 tokens and has done so.",
        )  # fmt: skip
        assert runtime.info(living).tokens_out == 14


async def test_time_of_the_model_counts_over_restarts() -> None:
    machine = home()
    async with machine.booted(crashes=True) as runtime:
        pid = await runtime.spawn("writer", limits=Limits(model_s=1000), stdin=True)
        await write(runtime, pid, 20)
        _, used = of(runtime.budgets.rows(pid), "model_s")
        await runtime.flushed()
    async with machine.booted() as runtime:
        assert of(runtime.budgets.rows(pid), "model_s") == (1000, used)
        assert used > 0


async def test_a_branch_has_used_what_its_past_did() -> None:
    async with home().booted() as runtime:
        pid = await runtime.spawn("writer", limits=Limits(tokens_out=10), stdin=True)
        await write(runtime, pid, 6)
        branch = await runtime.branch(pid)
        assert of(runtime.budgets.rows(branch), "tokens_out") == (10, 6)
        while not runtime.output_text(branch):
            await anyio.lowlevel.checkpoint()
        assert (await overdraw(runtime, branch))[0] == 124
        assert runtime.info(branch).tokens_out == 10

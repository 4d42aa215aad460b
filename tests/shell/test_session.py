"""Every kind of session: a kernel here, and the same kernel over a socket."""

from contextlib import aclosing

import anyio
import pytest

from llmasos.kernel.abi import Capabilities, Limits, ProcessState, Signal
from llmasos.kernel.errors import InvalidArguments, NoSuchApp, NoSuchProcess
from llmasos.shell.session import SpawnRequest

pytestmark = pytest.mark.anyio


def request(app, **options):
    options.setdefault("capabilities", Capabilities(root="/"))
    params = options.pop("params", {})
    return SpawnRequest(app, params, **options)


async def collected(items):
    async with aclosing(items) as stream:
        return [item async for item in stream]


async def test_a_process_is_spawned_watched_and_awaited(session):
    pid = await session.spawn(request("count", params={"upto": 3}, title="three"))
    assert "".join(await collected(session.output(pid))) == "0\n1\n2\n"
    assert (await session.wait(pid)).code == 0
    assert (await session.info(pid)).title == "three"
    assert await session.output_text(pid) == "0\n1\n2\n"
    assert await session.ps() == []
    assert [process.pid for process in await session.ps(all=True)] == [pid]


async def test_generation_goes_through_the_model(session):
    pid = await session.spawn(request("chat", params={"first": "hi"}))
    assert (await session.wait(pid)).code == 0
    assert await session.output_text(pid) == "reply 1\n"
    assert (await session.info(pid)).tokens_out > 0


async def test_a_dialogue_tells_when_the_process_wants_a_line(session):
    pid = await session.spawn(request("echo", stdin=True))
    said = []
    async with aclosing(session.dialogue(pid)) as items:
        async for item in items:
            said.append(item)
            if item is None and len(said) == 1:
                await session.send_input(pid, "one\ntwo")
            elif item is None:
                await session.send_input(pid, None)
    assert said[0] is None
    assert "".join(item or "" for item in said) == "you said one\ntwo\n"
    assert said.count(None) == 2


async def test_signals_stop_continue_and_end_a_process(session):
    pid = await session.spawn(request("patient"))
    await session.signal(pid, Signal.STOP)
    assert (await session.info(pid)).state is ProcessState.STOPPED
    await session.signal(pid, Signal.CONT)
    await session.renice(pid, 7)
    assert (await session.info(pid)).nice == 7
    await session.signal(pid, Signal.TERM)
    status = await session.wait(pid)
    assert (status.code, status.signal) == (143, Signal.TERM)


async def test_a_fork_goes_on_with_the_parents_conversation(session):
    parent = await session.spawn(request("chat", params={"first": "hi"}, stdin=True))
    async with aclosing(session.dialogue(parent)) as items:
        async for item in items:
            if item is None:
                break
    child = await session.fork(parent, title="twin")
    await session.send_input(child, "more")
    await session.send_input(child, None)
    assert (await session.wait(child)).code == 0
    assert await session.output_text(child) == "reply 2\n"
    assert (await session.info(child)).title == "twin"
    await session.signal(parent, Signal.KILL)


async def test_limits_reach_the_kernel(session):
    pid = await session.spawn(request("patient", limits=Limits(wall_s=0.02)))
    assert (await session.wait(pid)).code == 124


async def test_errors_keep_their_type_and_their_words(session):
    with pytest.raises(NoSuchProcess, match="There is no process 99"):
        await session.info(99)
    with pytest.raises(NoSuchApp, match="nope"):
        await session.spawn(request("nope"))
    with pytest.raises(InvalidArguments, match="upto"):
        await session.spawn(request("count", params={"upto": "many"}))
    pid = await session.spawn(request("count", params={"upto": 0}))
    await session.wait(pid)
    with pytest.raises(NoSuchProcess, match="has exited"):
        await session.send_input(pid, "too late")


async def test_the_machine_its_apps_and_syscalls_are_described(session):
    assert (await session.status()).model == "scripted"
    assert [app.name for app in await session.apps()][:2] == ["agent", "chat"]
    names = [entry.name for entry in await session.syscalls()]
    assert names == sorted(names)
    assert "llm.generate" in names


async def test_a_flood_of_output_arrives_whole_and_in_order(session):
    pid = await session.spawn(request("count", params={"upto": 300, "size": 2000}))
    text = "".join(await collected(session.output(pid)))
    assert text == "".join(str(number) * 2000 + "\n" for number in range(300))


async def test_two_may_wait_for_the_same_process(session):
    pid = await session.spawn(request("patient"))
    codes = []

    async def wait():
        codes.append((await session.wait(pid)).code)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        await session.signal(pid, Signal.KILL)
    assert codes == [137, 137]


async def test_text_of_any_kind_survives(session):
    text = 'quotes " \\ \x00 日本 \U0001f600 \ud800'
    pid = await session.spawn(request("echo", params={"prefix": ""}, stdin=True))
    await session.send_input(pid, text)
    await session.send_input(pid, None)
    await session.wait(pid)
    assert await session.output_text(pid) == text + "\n"

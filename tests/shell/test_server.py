"""The socket: who may come, who vanishes, and what is sent over it."""

import json
import os
import stat
from contextlib import aclosing, suppress

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.kernel.abi import Capabilities, Signal
from llmasos.kernel.errors import ConfigError, HomeBusy, KernelLost, NoKernel
from llmasos.shell.client import SocketSession
from llmasos.shell.home import SOCKET_NAME, is_locked, kernel_lock, kernel_pid, socket_path
from llmasos.shell.protocol import PROTOCOL, Channel
from llmasos.shell.session import SpawnRequest
from tests.shell.conftest import eventually, served_kernel

pytestmark = pytest.mark.anyio


def spawn(app, **options):
    return SpawnRequest(
        app, options.pop("params", {}), capabilities=Capabilities(root="/"), **options
    )


async def raw(home):
    with socket_path(home) as path:
        return await Channel.connect(path)


async def answer_to(home, line):
    """What the server answers to one line that is sent as it is."""
    channel = await raw(home)
    try:
        hello = await channel.receive()
        assert hello["protocol"] == PROTOCOL
        channel._writer.write(line + b"\n")
        return await channel.receive()
    finally:
        await channel.aclose()


async def test_only_the_owner_can_open_the_socket(tmp_path):
    async with served_kernel(tmp_path):
        assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o600
    assert not (tmp_path / SOCKET_NAME).exists()


async def test_a_socket_that_a_dead_kernel_left_is_no_kernel_and_no_obstacle(tmp_path):
    with socket_path(tmp_path) as path:
        listener = await anyio.create_unix_listener(path)
        await listener.aclose()
    assert (tmp_path / SOCKET_NAME).exists()
    with pytest.raises(NoKernel, match="llmasos up -d"):
        async with SocketSession.attached(tmp_path):
            pass
    async with served_kernel(tmp_path), SocketSession.attached(tmp_path) as session:
        assert (await session.status()).model == "scripted"


async def test_a_home_with_a_very_long_path_works(tmp_path):
    home = tmp_path / ("x" * 120)
    home.mkdir()
    async with served_kernel(home), SocketSession.attached(home) as session:
        assert await session.ps() == []
    assert not (home / SOCKET_NAME).exists()


async def test_a_home_has_one_kernel(tmp_path):
    assert not is_locked(tmp_path)
    with kernel_lock(tmp_path):
        assert kernel_pid(tmp_path) == os.getpid()
        assert is_locked(tmp_path)
        with (
            pytest.raises(HomeBusy, match=f"pid {os.getpid()}.*llmasos down"),
            kernel_lock(tmp_path),
        ):
            pass
    assert kernel_pid(tmp_path) is None
    assert not is_locked(tmp_path)
    with kernel_lock(tmp_path):
        pass


async def test_a_client_that_vanishes_takes_its_foreground_processes_with_it(tmp_path):
    async with served_kernel(tmp_path) as (kernel, _):
        async with SocketSession.attached(tmp_path) as session:
            mine = await session.spawn(spawn("patient"))
            detached = await session.spawn(spawn("patient", foreground=False))
            twin = await session.fork(mine)
        assert (await kernel.wait(mine)).signal is Signal.TERM
        assert (await kernel.wait(twin)).signal is Signal.TERM
        assert (await kernel.info(detached)).exit is None
        await kernel.signal(detached, Signal.KILL)


async def test_one_client_does_not_end_the_processes_of_another(tmp_path):
    async with served_kernel(tmp_path), SocketSession.attached(tmp_path) as first:
        mine = await first.spawn(spawn("patient"))
        async with SocketSession.attached(tmp_path) as second:
            theirs = await second.spawn(spawn("patient"))
            assert {process.pid for process in await first.ps()} == {mine, theirs}
        assert (await first.wait(theirs)).code == 143
        assert (await first.info(mine)).exit is None


async def test_a_client_that_does_not_read_holds_up_nobody(tmp_path):
    async with served_kernel(tmp_path), SocketSession.attached(tmp_path) as session:
        pid = await session.spawn(spawn("count", params={"upto": 200, "size": 20_000}))
        async with aclosing(session.output(pid)) as output:
            await anext(output)  # and then no more: the socket's buffer fills
            with anyio.fail_after(5):
                assert (await session.wait(pid)).code == 0
                assert len(await session.output_text(pid)) > 3_000_000


async def test_a_kernel_that_goes_away_is_told_to_whoever_is_attached(tmp_path):
    async with SocketStack(tmp_path) as (kernel, session):
        pid = await session.spawn(spawn("patient"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_expect_loss, session, pid)
            await eventually(lambda: True)
            await kernel.leave()
        with anyio.fail_after(5):
            await session.lost.wait()
        with pytest.raises(KernelLost, match="went away"):
            await session.ps()


async def _expect_loss(session, pid):
    # Its process is killed first where the kernel has the time for it.
    with suppress(KernelLost):
        assert (await session.wait(pid)).code in (137, 143)


class SocketStack:
    """A served kernel that can leave before its client does."""

    def __init__(self, home):
        self._home = home
        self._end = anyio.Event()
        self._gone = anyio.Event()

    async def _serve(self, *, task_status):
        async with served_kernel(self._home):
            task_status.started()
            await self._end.wait()
        self._gone.set()

    async def leave(self):
        self._end.set()
        await self._gone.wait()

    async def __aenter__(self):
        self._tasks = await anyio.create_task_group().__aenter__()
        await self._tasks.start(self._serve)
        self._attached = SocketSession.attached(self._home)
        return self, await self._attached.__aenter__()

    async def __aexit__(self, *failure):
        await self._attached.__aexit__(*failure)
        self._end.set()
        await self._tasks.__aexit__(*failure)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"not json", "not JSON"),
        (b"[1]", "not an object"),
        (b'{"protocol": 1, "verb": "nope", "args": {}}', "no verb 'nope'"),
        (b'{"protocol": 1, "verb": "_foreground", "args": {}}', "no verb"),
        (b'{"protocol": 1, "verb": "ps", "args": []}', "args must be"),
        (b'{"protocol": 1, "verb": "wait", "args": {}}', "wait takes pid"),
        (b'{"protocol": 1, "verb": "wait", "args": {"pid": "x"}}', "must be a int"),
        (b'{"protocol": 1, "verb": "spawn", "args": {"request": {"app": "count"}}}', "session"),
        (b'{"protocol": 99, "verb": "ps", "args": {}}', "speaks protocol 1"),
        (b"[" * 100_000, "not JSON"),
    ],
)
async def test_a_bad_request_is_answered_with_what_is_wrong(tmp_path, line, words):
    async with served_kernel(tmp_path):
        answer = await answer_to(tmp_path, line)
        assert words in answer["error"]["problems"][0]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200).filter(lambda data: b"\n" not in data))
def test_no_request_brings_the_kernel_down(tmp_path_factory, data):
    async def check():
        home = tmp_path_factory.mktemp("home")
        async with served_kernel(home) as (kernel, _):
            assert "error" in await answer_to(home, data)
            assert (await kernel.status()).model == "scripted"

    anyio.run(check)


async def test_a_request_that_is_too_long_is_refused_on_this_side(tmp_path):
    async with served_kernel(tmp_path), SocketSession.attached(tmp_path) as session:
        with pytest.raises(Exception, match="more than a kernel takes"):
            await session.spawn(spawn("echo", params={"prefix": "x" * (70 << 20)}))
        assert await session.ps() == []


async def test_another_programs_socket_is_told_apart(tmp_path):
    with socket_path(tmp_path) as path:
        listener = await anyio.create_unix_listener(path)

    async def speak(stream):
        await stream.send(json.dumps({"llmasos": "9.0", "protocol": 9, "pid": 1}).encode() + b"\n")
        await stream.aclose()

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, speak)
        with pytest.raises(ConfigError, match=r"LLMasOS 9\.0 and speaks another protocol"):
            async with SocketSession.attached(tmp_path):
                pass
        tasks.cancel_scope.cancel()


async def test_a_kernel_for_its_clients_ends_when_nobody_needs_it(tmp_path):
    async with served_kernel(tmp_path) as (kernel, server):
        ended = anyio.Event()

        async def watch():
            await server.until_unneeded(lambda: kernel.kept, lambda: False)
            ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            async with SocketSession.attached(tmp_path) as session:
                pid = await session.spawn(spawn("patient", foreground=False))
            with anyio.move_on_after(1.5):
                await ended.wait()
            assert not ended.is_set(), "a detached process needs its kernel"
            await kernel.signal(pid, Signal.KILL)
            await kernel.keep()
            with anyio.move_on_after(1.5):
                await ended.wait()
            assert not ended.is_set(), "it was told to stay"
            kernel.kept = False
            with anyio.fail_after(10):
                await ended.wait()
            with pytest.raises(NoKernel):
                async with SocketSession.attached(tmp_path):
                    pass


async def test_a_kernel_whose_starter_died_waits_for_no_client(tmp_path):
    async with served_kernel(tmp_path) as (_, server):
        with anyio.fail_after(10):
            await server.until_unneeded(lambda: False, lambda: True)

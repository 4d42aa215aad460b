"""`ipc.*`: pipes, mailboxes and topics, by which processes tell each other things.

An end of a pipe is a word such as `read:5f0c...`: who made the pipe has both, and a process that descends
from one that has an end gets it by being told the word. What the queues hold is on disk (`_queues`), so it
outlives the kernel; a process that is replayed gets its messages from its own journal and touches no queue.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any, TypedDict, TypeVar

import anyio.to_thread
from pydantic import Field

from llmasos.kernel.abi import Effect, Pid
from llmasos.kernel.errors import (
    Failed,
    InvalidArguments,
    LimitExceeded,
    NoSuchProcess,
    PermissionDenied,
)
from llmasos.kernel.process import Process
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.strands import UNNAMED
from llmasos.kernel.syscall import Call, Syscall, syscall
from llmasos.syscalls._queues import MAX_WAITING, Kind, Message, Mode, Queues, Refusal, queues
from llmasos.syscalls.memory import process_owner

FILE = "ipc.db"
MAX_TEXT_CHARS = 65_536
MAX_CAPACITY = 1024
MAILBOX_CAPACITY = 256

Result = TypeVar("Result")
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
End = Annotated[str, Field(max_length=100, pattern=r"^(read|write):[0-9a-f]{32}$")]
Topic = Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_./-]+$")]
Capacity = Annotated[int, Field(ge=1, le=MAX_CAPACITY)]


class PipeResult(TypedDict):
    """The words for both ends of a pipe."""

    read: str
    write: str


class Received(TypedDict):
    """A message, or the end: `sender` is a pid, `missed` how many were dropped before this one."""

    text: str
    sender: int
    missed: int
    is_end: bool


class Exchange:
    """The queues of one kernel, and who waits at them. Belongs to the kernel's event loop."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None
        self._turn = asyncio.Lock()
        self._changed: dict[str, asyncio.Event] = {}
        self._num_waiting: dict[Pid, int] = {}
        self._must_sweep = True
        self._under_way: set[asyncio.Task[Any]] = set()

    def attach(self, runtime: Runtime) -> None:
        """Be told of the ends of that kernel's processes."""
        if self._runtime is None:
            self._runtime = runtime
            runtime.on_population.append(self._population_changed)

    async def do(self, call: Call, work: Callable[[Queues], Result]) -> Result:
        """Work on the queues in a thread; goes on if the caller is cancelled. Raises `SyscallError`."""
        return await asyncio.shield(self.start(self._do(call.runtime, work)))

    def start(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Have something done whoever goes on waiting for it."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # told to the caller, if there is one yet

    async def take(self, call: Call, queue: str, key: str) -> Message | Refusal:
        """Take a message for a call; if that is given up meanwhile, the message goes back. Whatever has
        reached its sender from outside by now reaches the caller."""
        owner = process_owner(call.runtime.kernel.live(call.pid))
        taking = self.start(self._do(call.runtime, lambda queues: queues.take(queue, key, owner)))
        try:
            taken = await asyncio.shield(taking)
            if isinstance(taken, Message):
                call.came_from(await call.runtime.taint_of(Pid(taken.sender)))
            return taken
        except asyncio.CancelledError:
            taking.add_done_callback(partial(self._put_back, call.runtime, key))
            raise

    def _put_back(self, runtime: Runtime, key: str, _taking: asyncio.Task[Any]) -> None:
        """Not where the kernel ends: then the call is made again, with the same key."""
        if not runtime.is_ending:
            self.start(self._return(runtime, key))

    async def _return(self, runtime: Runtime, key: str) -> None:
        queue = await self._do(runtime, lambda queues: queues.put_back(key))
        self.changed(queue)

    async def until_done(
        self, call: Call, queue: str, attempt: Callable[[], Coroutine[Any, Any, Result | None]]
    ) -> Result:
        """Try until something comes of it, each time that the queue has changed."""
        waiting = self._num_waiting.get(call.pid, 0)
        if waiting >= MAX_WAITING:
            raise LimitExceeded(f"A process waits in at most {MAX_WAITING} ipc calls at a time.")
        self._num_waiting[call.pid] = waiting + 1
        try:
            while True:
                changed = self._changed.setdefault(queue, asyncio.Event())
                result = await attempt()
                if result is not None:
                    return result
                await changed.wait()
        finally:
            self._num_waiting[call.pid] -= 1
            if not self._num_waiting[call.pid]:
                del self._num_waiting[call.pid]

    def changed(self, *ids: str) -> None:
        """Wake who waits at these queues."""
        for id in ids:
            if (event := self._changed.pop(id, None)) is not None:
                event.set()

    def _population_changed(self) -> None:
        self._must_sweep = True
        self.changed(*self._changed)

    async def _do(self, runtime: Runtime, work: Callable[[Queues], Result]) -> Result:
        async with self._turn:
            live = self._live(runtime) if self._must_sweep else None
            self._must_sweep = self._must_sweep and live is None
            file = runtime.cache_folder.parent / FILE
            return await anyio.to_thread.run_sync(_work, file, live, work)

    def _live(self, runtime: Runtime) -> set[str] | None:
        """Owners that have not ended; None while that cannot be told."""
        if runtime.is_recovering or runtime.is_ending:
            return None
        processes = runtime.kernel.processes.values()
        return {process_owner(process) for process in processes if process.exit is None}


def _work(file: Any, live: set[str] | None, work: Callable[[Queues], Result]) -> Result:
    with queues(file) as opened:
        if live is not None:
            opened.keep_only(live)
        return work(opened)


def ipc_syscalls() -> tuple[Syscall, ...]:
    """`ipc.*` of one kernel."""
    exchange = Exchange()
    return (*_pipe_syscalls(exchange), *_mailbox_syscalls(exchange), *_topic_syscalls(exchange))


def _pipe_syscalls(exchange: Exchange) -> tuple[Syscall, ...]:
    @syscall("ipc.pipe", effect=Effect.WRITE, tool=False, repeatable=True)
    async def pipe(call: Call, capacity: Capacity = 64) -> PipeResult:
        """Make a pipe that holds so many messages; returns the words for its two ends."""
        exchange.attach(call.runtime)
        id, owner = _new_id(call), process_owner(_caller(call))
        await exchange.do(call, lambda q: q.make(id, Kind.PIPE, owner, capacity=capacity))
        return PipeResult(read=f"read:{id}", write=f"write:{id}")

    @syscall("ipc.give", effect=Effect.WRITE, tool=False, repeatable=True)
    async def give(call: Call, end: End, pid: int) -> None:
        """Let a process that descends from this one have an end of a pipe too."""
        exchange.attach(call.runtime)
        if not call.runtime.kernel.is_descendant(Pid(pid), call.pid):
            raise PermissionDenied(f"Process {pid} does not descend from this process.")
        owner = process_owner(_live(call, pid))
        id, mode = await _opened(exchange, call, end)
        await exchange.do(call, lambda q: q.give(id, owner, mode))

    @syscall("ipc.close", effect=Effect.WRITE, tool=False, repeatable=True)
    async def close(call: Call, end: End) -> None:
        """Give an end of a pipe, or a subscription, back."""
        exchange.attach(call.runtime)
        mode, _, id = end.partition(":")
        owner = process_owner(_caller(call))
        await exchange.do(call, lambda q: q.close(id, owner, Mode(mode)))
        exchange.changed(id)

    @syscall("ipc.write", effect=Effect.WRITE, tool=False, deadline_s=None, repeatable=True)
    async def write(call: Call, end: End, text: Text) -> None:
        """Write a text to a pipe; waits while the pipe is full."""
        exchange.attach(call.runtime)
        id, mode = await _opened(exchange, call, end)
        if mode is not Mode.WRITE:
            raise PermissionDenied("That is the end to read from; write to the other one.")
        await _put(exchange, call, id, text, "Nobody reads from that pipe any more.")

    @syscall("ipc.read", effect=Effect.WRITE, tool=False, deadline_s=None, repeatable=True)
    async def read(call: Call, end: End) -> Received:
        """Read the next text from a pipe or a subscription; waits for one, and tells the end."""
        exchange.attach(call.runtime)
        id, mode = await _opened(exchange, call, end)
        if mode is not Mode.READ:
            raise PermissionDenied("That is the end to write to; read from the other one.")
        return await _take(exchange, call, id)

    return (pipe, give, close, write, read)


def _mailbox_syscalls(exchange: Exchange) -> tuple[Syscall, ...]:
    @syscall("ipc.send", effect=Effect.WRITE, tool=False, deadline_s=None, repeatable=True)
    async def send(call: Call, pid: int, text: Text) -> None:
        """Put a text into another process's mailbox; waits while that is full."""
        exchange.attach(call.runtime)
        other = _addressee(call, pid)
        id, owner = _mailbox(other), process_owner(other)
        await exchange.do(
            call, lambda q: q.make(id, Kind.MAILBOX, owner, capacity=MAILBOX_CAPACITY)
        )
        await _put(exchange, call, id, text, f"Process {pid} has ended.")

    @syscall("ipc.receive", effect=Effect.WRITE, tool=False, deadline_s=None, repeatable=True)
    async def receive(call: Call) -> Received:
        """Take the next text out of this process's own mailbox; waits for one."""
        exchange.attach(call.runtime)
        me = _caller(call)
        id, owner = _mailbox(me), process_owner(me)
        await exchange.do(
            call, lambda q: q.make(id, Kind.MAILBOX, owner, capacity=MAILBOX_CAPACITY)
        )
        return await _take(exchange, call, id)

    return (send, receive)


def _topic_syscalls(exchange: Exchange) -> tuple[Syscall, ...]:
    @syscall("ipc.subscribe", effect=Effect.WRITE, tool=False, repeatable=True)
    async def subscribe(call: Call, topic: Topic, capacity: Capacity = 64) -> str:
        """Get what is published on a topic from now on; returns the end to read it from."""
        exchange.attach(call.runtime)
        me, id = _caller(call), _new_id(call)
        owner, name = process_owner(me), _topic(me, topic)
        await exchange.do(
            call, lambda q: q.make(id, Kind.TOPIC, owner, capacity=capacity, topic=name)
        )
        return f"read:{id}"

    @syscall("ipc.publish", effect=Effect.WRITE, tool=False, repeatable=True)
    async def publish(call: Call, topic: Topic, text: Text) -> int:
        """Publish a text on a topic of this process's group; returns how many subscriptions got it."""
        exchange.attach(call.runtime)
        me, key = _caller(call), _key(call)
        owner, name = process_owner(me), _topic(me, topic)
        reached = await exchange.do(
            call, lambda q: (q.publish(name, key, owner, me.pid, text), q.num_reached(key))
        )
        exchange.changed(*reached[0])
        return reached[1]

    return (subscribe, publish)


async def _put(exchange: Exchange, call: Call, id: str, text: str, broken: str) -> None:
    key, owner = _key(call), process_owner(_caller(call))

    async def attempt() -> bool | None:
        refusal = await exchange.do(call, lambda q: q.put(id, key, owner, call.pid, text))
        if refusal is Refusal.ENDED:
            raise Failed(broken)
        return True if refusal is None else None

    await exchange.until_done(call, id, attempt)
    exchange.changed(id)


async def _take(exchange: Exchange, call: Call, id: str) -> Received:
    key = _key(call)

    async def attempt() -> Received | None:
        taken = await exchange.take(call, id, key)
        if taken is Refusal.ENDED:
            return Received(text="", sender=0, missed=0, is_end=True)
        if isinstance(taken, Refusal):
            return None
        return Received(text=taken.text, sender=taken.sender, missed=taken.missed, is_end=False)

    received = await exchange.until_done(call, id, attempt)
    exchange.changed(id)
    return received


async def _opened(exchange: Exchange, call: Call, end: str) -> tuple[str, Mode]:
    """A queue and the mode of an end that this process has, or gets since an ancestor of it has it."""
    word, _, id = end.partition(":")
    mode, owner = Mode(word), process_owner(_caller(call))
    holders = await exchange.do(call, lambda q: q.holders(id, mode))
    if owner in holders:
        return id, mode
    if not holders & _ancestors(call):
        raise PermissionDenied("This process was not given that end of a pipe, or has closed it.")
    await exchange.do(call, lambda q: q.give(id, owner, mode))
    return id, mode


def _ancestors(call: Call) -> set[str]:
    processes = call.runtime.kernel.processes
    found: set[str] = set()
    pid = _caller(call).ppid
    while pid in processes:
        found.add(process_owner(processes[pid]))
        pid = processes[pid].ppid
    return found


def _caller(call: Call) -> Process:
    return call.runtime.kernel.live(call.pid)


def _live(call: Call, pid: int) -> Process:
    try:
        return call.runtime.kernel.live(Pid(pid))
    except NoSuchProcess as error:
        raise InvalidArguments(str(error)) from error


def _addressee(call: Call, pid: int) -> Process:
    """A process that this one may write to: of its group, or its relative in a straight line."""
    kernel, me, other = call.runtime.kernel, _caller(call), _live(call, pid)
    is_kin = kernel.is_descendant(other.pid, me.pid) or kernel.is_descendant(me.pid, other.pid)
    if other.group is not me.group and not is_kin:
        raise PermissionDenied(f"Process {pid} is of another group; only its own can write to it.")
    return other


def _mailbox(process: Process) -> str:
    return f"mailbox of {process_owner(process)}"


def _topic(process: Process, topic: str) -> str:
    return f"{process.group.path}:{topic}"


def _key(call: Call) -> str:
    """Names this call, when it is made again too. Without a journal none ever is."""
    return secrets.token_hex(16) if call.id == UNNAMED else call.idempotency_key


def _new_id(call: Call) -> str:
    return hashlib.sha256(f"queue {_key(call)}".encode()).hexdigest()[:32]

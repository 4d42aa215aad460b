"""The path of a syscall: the one place that names, journals, has admitted (`gate`), times and accounts.

With a journal a call goes through these stations; without one only through the middle:

    begin journaled -> admitted by the gate -> (before a write or an external call: on disk) ->
    driven under a deadline -> result or error journaled -> (unless it is pure: on disk) -> given to the app

What an app asks for while it is being ended from outside is not journaled, since it is not run again, and
therefore done only where it changes nothing beyond the process.

A call that was under way when a kernel ended comes here again, with what is known of it: a pure or a read
call is made anew, a generation goes on at its token, and one that changes the world only if its driver can
tell what became of it; otherwise the app gets `MaybeDone`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from llmasos.kernel.abi import Chunk, Effect, Pid
from llmasos.kernel.audit import Audit
from llmasos.kernel.debug import debug
from llmasos.kernel.delivery import unwinding
from llmasos.kernel.errors import (
    Failed,
    Interrupted,
    KernelBug,
    LlmosError,
    MaybeDone,
    TimedOut,
    code_of,
)
from llmasos.kernel.gate import Gate
from llmasos.kernel.jobs import Job
from llmasos.kernel.journal.events import Event
from llmasos.kernel.journal.history import OpenCall, token_event
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.process import Process
from llmasos.kernel.recordable import refuse_unrecordable
from llmasos.kernel.redaction import Secret, redacted, scrubbed
from llmasos.kernel.strands import UNNAMED, CallId, next_call
from llmasos.kernel.syscall import Call, Syscall
from llmasos.kernel.tasks import Frame, Task
from llmasos.kernel.workers import Workers

if TYPE_CHECKING:
    from llmasos.kernel.runtime import Runtime

MAX_DRIVERS = 64
"""Blocking drivers that run at the same time."""


@dataclass(frozen=True, slots=True)
class _Request:
    """One call on its way."""

    process: Process
    task: Task
    name: str
    args: Mapping[str, Any]
    call_id: CallId
    on_chunk: Callable[[Chunk], None] | None
    given: int = 0
    """Things that the app had been given when it asked."""
    under_way: OpenCall | None = None
    """What is known of it, where it was under way when an earlier kernel ended."""


class Dispatcher:
    """Serves the syscalls of every process of one runtime."""

    def __init__(
        self,
        runtime: Runtime,
        tasks: MutableMapping[Pid, Task],
        journal: Journal | None,
        audit: Audit | None = None,
    ) -> None:
        self._runtime = runtime
        self._kernel = runtime.kernel
        self._tasks = tasks
        self._journal = journal
        self._audit = audit
        self._trace = runtime.trace
        self._drivers = Workers(MAX_DRIVERS, name="llmasos-driver")
        self.gate = Gate(runtime.kernel.ledger, runtime.now, runtime.approvals)

    @property
    def num_waiting(self) -> int:
        """Blocking drivers that wait for a thread."""
        return self._drivers.num_waiting

    def close(self) -> None:
        """Let go of the threads, once every process has ended."""
        self._drivers.close()

    async def syscall(
        self,
        pid: Pid,
        name: str,
        args: Mapping[str, Any],
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Any:
        """Do what a process asks for. Raises `SyscallError`; an unforeseen failure of a driver
        comes as `Failed`."""
        refuse_unrecordable(args)
        process = self._kernel.live(pid)
        task = self._tasks[pid]
        is_unwinding = task.is_dying or self._runtime.is_ending
        if is_unwinding:
            await anyio.lowlevel.checkpoint_if_cancelled()  # it ends here, unless it is shielded
            if self._runtime.effect_of(name) is not Effect.PURE:
                raise Interrupted(f"The process is being ended; {name} is not done any more.")
        if self._journal is None or is_unwinding:
            is_told = self._journal is None and self._trace.is_heard
            call_id = next_call() if is_told else UNNAMED
            request = _Request(process, task, name, args, call_id, on_chunk)
            result = await (self._perform_told(request) if is_told else self._perform(request))
            await _while_stopped(process, task)
            return result
        call_id, under_way, given = next_call(), None, task.deliveries.num_given
        if (feed := task.feed) is not None:
            await _while_stopped(process, task)
            answer = await feed.answer(call_id, name, args, on_chunk)
            if answer.is_recorded:
                return answer.result
            under_way, given = answer.under_way, answer.given
        request = _Request(process, task, name, args, call_id, on_chunk, given, under_way)
        return await self._perform_recorded(request, self._journal)

    # --- within: without a journal, but with somebody who listens

    async def _perform_told(self, request: _Request) -> Any:
        """Tell what a journal would have told."""
        pid, call_id, tell = request.process.pid, request.call_id, self._trace.tell
        tell(pid, ("begin", call_id, request.name, request.args, 0, self._runtime.now()))
        try:
            result = await self._perform(request)
        except LlmosError as error:
            tell(pid, ("fail", call_id, code_of(error), str(error), self._runtime.now()))
            raise
        except asyncio.CancelledError:
            tell(pid, ("cancel", call_id, 0))
            raise
        tell(pid, ("done", call_id, result, self._runtime.now()))
        return result

    def _stream_told(self, request: _Request) -> Callable[[Chunk], None]:
        def stream(chunk: Chunk) -> None:
            self._trace.tell(request.process.pid, token_event(request.call_id, chunk))
            if request.on_chunk is not None:
                request.on_chunk(chunk)

        return stream

    # --- within: with a journal

    async def _perform_recorded(self, request: _Request, journal: Journal) -> Any:
        process, deliveries = request.process, request.task.deliveries
        if request.under_way is None:
            begin = ("begin", request.call_id, request.name, request.args, request.given)
            journal.record(process.pid, (*begin, self._runtime.now()))
            deliveries.num_calls += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            self._hand_over(request, journal, await self._outcome(request), answer)
            return await answer
        except asyncio.CancelledError:
            if not answer.done() or answer.cancelled():
                deliveries.num_calls -= 1
                answer.cancel()
            self.give_up(process, request.task, request.call_id)
            raise

    def give_up(self, process: Process, task: Task, call_id: CallId) -> None:
        """The app has abandoned a call, unless the process as a whole is ending."""
        if self._journal is None or task.is_dying or self._runtime.is_ending:
            return
        if process.exit is None:
            self._journal.record(process.pid, ("cancel", call_id, task.deliveries.num_given))

    async def _outcome(self, request: _Request) -> Any:
        """The result, or the error as a value."""
        try:
            return await self._perform(request)
        except KernelBug:
            raise
        except LlmosError as error:
            return error

    def _hand_over(
        self,
        request: _Request,
        journal: Journal,
        outcome: Any,
        answer: asyncio.Future[Any],
    ) -> None:
        deliveries, now = request.task.deliveries, self._runtime.now()
        event: Event = ("done", request.call_id, outcome, now)
        if is_error := isinstance(outcome, LlmosError):
            event = ("fail", request.call_id, code_of(outcome), str(outcome), now)
        if request.process.is_timed:
            usage = request.process.usage
            journal.record(request.process.pid, ("used", usage.model_s, usage.page_s))
        journal.record(request.process.pid, event)

        def give() -> None:
            if answer.done():
                return
            deliveries.num_calls -= 1
            if is_error:
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        deliveries.put(give, journal.result_ticket(self._runtime.effect_of(request.name)))

    def _stream(self, request: _Request, journal: Journal) -> Callable[[Chunk], None]:
        """Takes a call's chunks: journals each, and has it given to the app in its turn."""
        process, deliveries, on_chunk = request.process, request.task.deliveries, request.on_chunk
        is_first = True

        def stream(chunk: Chunk) -> None:
            nonlocal is_first
            journal.record(process.pid, token_event(request.call_id, chunk))
            ticket = journal.piece_ticket(urgent=is_first or process.is_interactive)
            deliveries.put(functools.partial(on_chunk, chunk) if on_chunk else None, ticket)
            is_first = False

        return stream

    # --- within: with or without

    async def _perform(self, request: _Request) -> Any:
        process, task = request.process, request.task
        if request.under_way is None:
            self._kernel.ledger.count_call(process, request.name)
        await _while_stopped(process, task)
        if task.has_pending_int:
            task.has_pending_int = False
            raise Interrupted("The process was interrupted.")
        entry = self._runtime.syscalls[request.name]
        arguments = entry.validate(request.args)
        if _may_have_happened(request, entry):
            raise MaybeDone(
                f"{request.name} was under way where the kernel ended, or where this process branched"
                " off; whether it happened is not known."
            )
        call = self._call(request)
        with self._frame(request, call):
            try:
                call = await self.gate.admit(process, entry, arguments, call)
                await self._before_the_world_changes(request, entry)
                return await self._drive(entry, call, arguments)
            finally:
                self._kernel.taint(process, call.sources)

    def _call(self, request: _Request) -> Call:
        process, under_way = request.process, request.under_way
        on_chunk, jobs = request.on_chunk, list[Job]()
        sources, drawn = list[str](), list[Secret]()
        planner: Callable[[Any], None] | None = None
        if self._journal is not None:
            on_chunk = self._stream(request, self._journal)
            plan = functools.partial(self._plan, request, jobs, self._journal)
            planner = _from_thread(plan)
        elif request.call_id != UNNAMED:
            on_chunk = self._stream_told(request)
        return Call(
            process.pid,
            process.capabilities,
            self._runtime,
            self._guarded(process, sources, drawn, on_chunk),
            jobs,
            id=request.call_id,
            begun_at=under_way.action.at if under_way else self._runtime.now(),
            idempotency_key=self._idempotency_key(process.pid, request.call_id),
            chunks=tuple(under_way.chunks) if under_way else (),
            receipt=under_way.receipts[-1] if under_way and under_way.receipts else None,
            planner=planner,
            taint=process.taint,
            sources=sources,
            drawn=drawn,
            is_approved=under_way is not None and under_way.is_approved,
            charger=self._charger(request),
        )

    def _guarded(
        self,
        process: Process,
        sources: list[str],
        drawn: list[Secret],
        on_chunk: Callable[[Chunk], None] | None,
    ) -> Callable[[Chunk], None] | None:
        """The same, with the process labelled before it is given a chunk from outside; no secret is in it."""
        if on_chunk is None:
            return None

        def labelled(chunk: Chunk) -> None:
            if sources:
                self._kernel.taint(process, sources)
            on_chunk(replace(chunk, text=redacted(chunk.text, drawn)) if drawn else chunk)

        return labelled

    def _charger(self, request: _Request) -> Callable[[int], None]:
        charge = functools.partial(self._runtime.charge_bytes, request.process.pid, request.call_id)
        return _called_from_thread(charge)

    def _idempotency_key(self, pid: Pid, call_id: CallId) -> str:
        """The same for every try of one call, and for no other call anywhere."""
        home = self._journal.store.home_id if self._journal is not None else str(id(self))
        return hashlib.sha256(f"{home}/{pid}/{call_id}".encode()).hexdigest()[:32]

    async def _before_the_world_changes(self, request: _Request, entry: Syscall) -> None:
        """Have the journal and the audit log know of it, both at once."""
        if entry.info.effect in (Effect.WRITE, Effect.EXTERNAL):
            tickets = [kept.ticket() for kept in (self._journal, self._audit) if kept is not None]
            for ticket in tickets:
                await ticket.wait()

    async def _plan(
        self, request: _Request, jobs: list[Job], journal: Journal, receipt: Any
    ) -> None:
        """Have on disk what a call is about to do, unless nobody waits for the call any more."""
        if not any(frame.jobs is jobs for frame in request.task.frames):
            raise Interrupted("The call was given up before it had changed anything.")
        journal.record(request.process.pid, ("plan", request.call_id, receipt))
        await journal.ticket().wait()

    async def _drive(self, entry: Syscall, call: Call, arguments: dict[str, Any]) -> Any:
        if entry.is_foreign:
            call.came_from((entry.name,))
        try:
            return _redacted_of(call, await self._run(entry, call, arguments))
        except LlmosError as error:
            if (clean := scrubbed(error, call.drawn)) is error:
                raise
            raise clean from None

    async def _run(self, entry: Syscall, call: Call, arguments: dict[str, Any]) -> Any:
        try:
            with anyio.fail_after(entry.deadline_s):
                if entry.is_async:
                    work = entry.function(call, **arguments)
                    return await unwinding(work, self._tasks[call.pid].deliveries)
                run = functools.partial(entry.function, call, **arguments)
                return await self._drivers.run(run)
        except TimeoutError as error:
            raise TimedOut(f"{entry.name} took longer than {entry.deadline_s} s.") from error
        except LlmosError:
            raise
        except Exception as error:
            if not call.drawn:  # its text could hold a secret
                debug(error)
            raise Failed(f"{entry.name} failed: {type(error).__name__}: {error}") from error

    @contextlib.contextmanager
    def _frame(self, request: _Request, call: Call) -> Iterator[None]:
        """Mark that a process is in a syscall, so that INT can end it and `ps` can name it."""
        process, task, name = request.process, request.task, request.name
        with anyio.CancelScope() as scope:
            frame = Frame(scope, call.jobs)
            task.frames.append(frame)
            began = process.waits_since = self._runtime.now()
            process.waits_in.append(name)
            try:
                yield
            finally:
                task.frames.remove(frame)
                process.waits_in.remove(name)
                self._kernel.pager.waits.record(name, self._runtime.now() - began)
        if frame.is_interrupted:
            if scope.cancelled_caught:
                raise Interrupted(f"{name} was interrupted.")
            task.has_pending_int = True


def _redacted_of(call: Call, result: Any) -> Any:
    """A result without the secrets that its driver used."""
    return redacted(result, call.drawn) if call.drawn else result


def _may_have_happened(request: _Request, entry: Syscall) -> bool:
    """Whether an earlier kernel may have done what cannot be done again."""
    under_way = request.under_way
    return under_way is not None and not (entry.is_repeatable or under_way.is_asked_about)


def _from_thread(work: Callable[[Any], Coroutine[Any, Any, None]]) -> Callable[[Any], None]:
    """The same, done on this event loop, for a worker thread that waits for it."""
    loop, home = asyncio.get_running_loop(), threading.get_ident()

    def do(value: Any) -> None:
        if threading.get_ident() == home:
            raise KernelBug("a driver on the event loop uses what is for worker threads")
        asyncio.run_coroutine_threadsafe(work(value), loop).result()

    return do


def _called_from_thread(work: Callable[[int], None]) -> Callable[[int], None]:
    """The same for what needs not wait."""

    async def called(value: int) -> None:
        work(value)

    return _from_thread(called)


async def _while_stopped(process: Process, task: Task) -> None:
    while process.stopped:
        await task.resumed.wait()

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from llmasos.kernel.abi import (
    AppInfo,
    Capabilities,
    Chunk,
    ContextInfo,
    Effect,
    FinishReason,
    Limits,
    Pid,
    ProcessState,
    Signal,
)
from llmasos.kernel.core import StepPlan, StepResult
from llmasos.kernel.errors import (
    AppError,
    Failed,
    Interrupted,
    InvalidArguments,
    KernelBug,
    NoSuchProcess,
    NoSuchSyscall,
    PermissionDenied,
    TimedOut,
)
from llmasos.kernel.program import Port, Program
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore, queue
from llmasos.kernel.syscall import Call, Syscall, SyscallTable, syscall
from llmasos.syscalls import context, io, llm, process
from tests.kernel.machine import continuation

pytestmark = pytest.mark.anyio
Main = Callable[[Port, Mapping[str, Any]], Awaitable[int | None]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class FunctionProgram:
    """A test's own function as a program."""

    def __init__(self, main: Main) -> None:
        self.info = AppInfo(main.__name__, "0", "", (), {})
        self._main = main

    def check(self, params: Mapping[str, Any]) -> None:
        if "forbidden" in params:
            raise InvalidArguments("no such parameter")

    async def run(self, port: Port, params: Mapping[str, Any]) -> int:
        return await self._main(port, params) or 0


@syscall("test.slow", effect=Effect.READ, deadline_s=0.05)
async def slow(call: Call) -> None:
    """Never ends by itself."""
    await anyio.sleep_forever()


@syscall("test.wait", effect=Effect.READ, deadline_s=None)
async def wait_forever(call: Call) -> None:
    """Never ends by itself and has no deadline."""
    await anyio.sleep_forever()


@syscall("test.broken", effect=Effect.READ)
def broken(call: Call) -> None:
    """Has a defect."""
    raise ZeroDivisionError("oops")


@syscall("test.bug", effect=Effect.READ)
async def bug(call: Call) -> None:
    """Finds a broken invariant."""
    raise KernelBug("an invariant is broken")


EXTRA: tuple[Syscall, ...] = (slow, wait_forever, broken, bug)


@asynccontextmanager
async def booted(
    core: ScriptedCore | None = None, programs: Mapping[str, Program] | None = None
) -> AsyncIterator[Runtime]:
    modules = (context, llm, process, io)
    table = SyscallTable([*(entry for m in modules for entry in m.SYSCALLS), *EXTRA])
    runtime = Runtime(
        core or ScriptedCore(),
        ByteTokenizer(),
        syscalls=table,
        programs=(programs or {}).__getitem__,
        cache_folder=Path(gettempdir()),
    )
    with anyio.fail_after(20):
        async with runtime:
            yield runtime
    runtime.kernel.check_integrity()
    assert runtime.kernel.pool.num_held == 0


async def run(runtime: Runtime, main: Main, **options: Any) -> tuple[int, str]:
    pid = await runtime.spawn(FunctionProgram(main), **options)
    status = await runtime.wait(pid)
    return status.code, status.message


async def open_with(port: Port, text: str) -> int:
    number: int = await port.syscall("ctx.open", {})
    await port.syscall("ctx.append", {"context": number, "text": text})
    return number


async def test_processes_generate_together_and_print() -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> None:
        number = await open_with(port, params["prompt"])
        result = await port.syscall("llm.generate", {"context": number, "max_tokens": 8})
        await port.syscall("io.write", {"text": result.text})

    async with booted() as runtime:
        program = FunctionProgram(main)
        pids = [await runtime.spawn(program, {"prompt": f"process {n}"}) for n in range(8)]
        for number, pid in enumerate(pids):
            assert (await runtime.wait(pid)).code == 0
            assert runtime.output_text(pid) == continuation(f"process {number}", 8)
            pieces = [piece async for piece in runtime.output(pid)]
            assert "".join(pieces) == runtime.output_text(pid)


async def test_a_generation_streams_its_chunks_in_order() -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> None:
        chunks: list[Chunk] = []
        number = await open_with(port, "stream")
        result = await port.syscall(
            "llm.generate", {"context": number, "max_tokens": 50}, chunks.append
        )
        assert "".join(chunk.text for chunk in chunks) == result.text

    async with booted() as runtime:
        assert await run(runtime, main) == (0, "")


async def test_int_ends_a_generation_and_the_app_goes_on() -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> int:
        number = await open_with(port, "on and on")
        result = await port.syscall("llm.generate", {"context": number, "max_tokens": 900})
        return 0 if result.finish is FinishReason.INTERRUPTED else 1

    async with booted(ScriptedCore(num_pages=512)) as runtime:
        pid = await runtime.spawn(FunctionProgram(main))
        while runtime.info(pid).tokens_out < 5:
            await anyio.lowlevel.checkpoint()
        runtime.signal(pid, Signal.INT)
        assert (await runtime.wait(pid)).code == 0


async def test_int_during_another_syscall_raises_interrupted_and_exits_130() -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> None:
        await port.syscall("test.wait", {})

    async with booted() as runtime:
        pid = await runtime.spawn(FunctionProgram(main))
        await until(runtime, pid, ProcessState.WAITING)
        assert runtime.info(pid).wchan == "test.wait"
        runtime.signal(pid, Signal.INT)
        status = await runtime.wait(pid)
        assert (status.code, status.signal) == (130, Signal.INT)


async def test_an_app_can_survive_int() -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> int:
        try:
            await port.syscall("test.wait", {})
        except Interrupted:
            return 7
        return 1

    async with booted() as runtime:
        pid = await runtime.spawn(FunctionProgram(main))
        await until(runtime, pid, ProcessState.WAITING)
        runtime.signal(pid, Signal.INT)
        assert (await runtime.wait(pid)).code == 7


@pytest.mark.parametrize(("signal", "code"), [(Signal.TERM, 143), (Signal.KILL, 137)])
async def test_term_and_kill_end_a_process_in_the_middle_of_a_generation(
    signal: Signal, code: int
) -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> None:
        number = await open_with(port, "long")
        await port.syscall("llm.generate", {"context": number, "max_tokens": 900})

    async with booted(ScriptedCore(num_pages=512)) as runtime:
        pid = await runtime.spawn(FunctionProgram(main))
        while runtime.info(pid).tokens_out < 3:
            await anyio.lowlevel.checkpoint()
        runtime.signal(pid, signal)
        assert (await runtime.wait(pid)).code == code
        with pytest.raises(NoSuchProcess):
            runtime.signal(pid, signal)


async def test_stop_parks_a_process_and_cont_lets_it_finish() -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> None:
        number = await open_with(port, "park me")
        result = await port.syscall("llm.generate", {"context": number, "max_tokens": 40})
        await port.syscall("io.write", {"text": result.text})

    async with booted() as runtime:
        pid = await runtime.spawn(FunctionProgram(main))
        while runtime.info(pid).tokens_out < 3:
            await anyio.lowlevel.checkpoint()
        runtime.signal(pid, Signal.STOP)
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        parked = runtime.info(pid)
        assert parked.state is ProcessState.STOPPED
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert runtime.info(pid).tokens_out - parked.tokens_out <= 1
        runtime.signal(pid, Signal.CONT)
        assert (await runtime.wait(pid)).code == 0
        assert runtime.output_text(pid) == continuation("park me", 40)


async def test_a_deadline_and_a_wall_limit_exit_124() -> None:
    async def too_slow(port: Port, params: Mapping[str, Any]) -> None:
        await port.syscall("test.slow", {})

    async def forever(port: Port, params: Mapping[str, Any]) -> None:
        await port.syscall("test.wait", {})

    async with booted() as runtime:
        assert (await run(runtime, too_slow))[0] == 124
        code, message = await run(runtime, forever, limits=Limits(wall_s=0.05))
        assert (code, message) == (124, "Ran longer than 0.05 s.")


@pytest.mark.parametrize(
    ("name", "args", "error"),
    [
        ("no.such", {}, NoSuchSyscall),
        ("ctx.append", {"context": "x", "bogus": 1}, InvalidArguments),
        ("ctx.append", {"context": 9, "text": "a"}, InvalidArguments),
        ("test.broken", {}, Failed),
        ("test.slow", {}, TimedOut),
        ("proc.wait", {"pid": 1}, PermissionDenied),
        ("proc.wait", {"pid": 99}, PermissionDenied),
    ],
)
async def test_a_bad_syscall_is_an_error_to_its_caller_alone(
    name: str, args: dict[str, Any], error: type[Exception]
) -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> None:
        with pytest.raises(error):
            await port.syscall(name, args)

    async with booted() as runtime:
        assert await run(runtime, main) == (0, "")


async def test_a_process_may_call_only_what_its_capabilities_name() -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> None:
        await port.syscall("ctx.open", {})
        with pytest.raises(PermissionDenied):
            await port.syscall("io.write", {"text": "no"})

    async with booted() as runtime:
        limited = Capabilities(syscalls=("ctx.*",))
        assert await run(runtime, main, capabilities=limited) == (0, "")


async def test_a_child_never_gets_more_than_its_parent_has() -> None:
    async def child(port: Port, params: Mapping[str, Any]) -> None:
        with pytest.raises(PermissionDenied):
            await port.syscall("test.broken", {})
        await port.syscall("io.write", {"text": "fine"})

    async def parent(port: Port, params: Mapping[str, Any]) -> None:
        pid = await port.syscall("proc.spawn", {"app": "child", "syscalls": ["*"]})
        outcome = await port.syscall("proc.wait", {"pid": pid})
        assert outcome == {"code": 0, "message": "", "output": "fine"}

    async with booted(programs={"child": FunctionProgram(child)}) as runtime:
        mine = Capabilities(syscalls=("proc.*", "io.*"))
        assert await run(runtime, parent, capabilities=mine) == (0, "")


async def test_a_forked_process_goes_on_from_its_parents_context() -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> None:
        inherited: list[ContextInfo] = await port.syscall("ctx.list", {})
        if inherited:
            result = await port.syscall("llm.generate", {"context": 0, "max_tokens": 5})
            await port.syscall("io.write", {"text": result.text})
            return
        await open_with(port, "shared by parent and child")
        await port.syscall("llm.prefill", {"context": 0})
        children = [await port.syscall("proc.fork", {}) for _ in range(3)]
        for pid in children:
            outcome = await port.syscall("proc.wait", {"pid": pid})
            assert outcome["output"] == continuation("shared by parent and child", 5)

    async with booted() as runtime:
        assert await run(runtime, main) == (0, "")
        assert runtime.kernel.num_tokens_computed < 2 * len("shared by parent and child")


async def test_candidates_are_scored_and_the_context_stays_as_it_was() -> None:
    likely = continuation("the answer is ", 5)

    async def main(port: Port, params: Mapping[str, Any]) -> None:
        number = await open_with(port, "the answer is ")
        scores = await port.syscall("llm.score", {"context": number, "candidates": ["no", likely]})
        assert scores[1].mean_logprob > scores[0].mean_logprob
        infos = await port.syscall("ctx.list", {})
        assert [info.num_tokens for info in infos] == [14]

    async with booted() as runtime:
        assert await run(runtime, main) == (0, "")


async def test_a_chat_keeps_its_turns_in_one_context() -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> None:
        await port.syscall("ctx.open", {})
        for question, answer in (("hi", "Hello."), ("bye", "Goodbye.")):
            turn = {"context": 0, "messages": [{"role": "user", "content": question}]}
            await port.syscall("ctx.chat", turn)
            result = await port.syscall("llm.generate", {"context": 0})
            assert (result.text, result.finish) == (answer, FinishReason.STOP)

    async with booted(ScriptedCore(queue(["Hello.", "Goodbye."]))) as runtime:
        assert await run(runtime, main) == (0, "")


async def test_stdin_comes_line_by_line_and_ends() -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> None:
        while (line := await port.syscall("io.read_line", {})) is not None:
            await port.syscall("io.write", {"text": f"<{line}>"})

    async with booted() as runtime:
        pid = await runtime.spawn(FunctionProgram(main), stdin=True)
        for line in ("one", "zwei ☕", None):
            await runtime.send_input(pid, line)
        await runtime.wait(pid)
        assert runtime.output_text(pid) == "<one><zwei ☕>"
        assert await run(runtime, main) == (0, "")


async def test_an_apps_defect_ends_that_app_with_one_line() -> None:
    async def defective(port: Port, params: Mapping[str, Any]) -> None:
        raise KeyError("missing")

    async def sorry(port: Port, params: Mapping[str, Any]) -> None:
        raise AppError("The knowledge base is empty.")

    async with booted() as runtime:
        assert await run(runtime, defective) == (1, "KeyError: 'missing'")
        assert await run(runtime, sorry) == (1, "The knowledge base is empty.")


async def test_wrong_parameters_are_refused_before_anything_starts() -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> None: ...

    async with booted() as runtime:
        with pytest.raises(InvalidArguments):
            await runtime.spawn(FunctionProgram(main), {"forbidden": 1})
        assert runtime.ps(all=True) == []


async def test_a_kernel_bug_stops_the_kernel_loudly() -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> None:
        await port.syscall("test.bug", {})

    async def boot_and_wait() -> None:
        async with booted() as runtime:
            await runtime.spawn(FunctionProgram(main))
            await anyio.sleep_forever()

    with pytest.raises(KernelBug, match="an invariant is broken"):
        await boot_and_wait()


async def test_leaving_kills_what_is_left() -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> None:
        await port.syscall("test.wait", {})

    async with booted() as runtime:
        pid = await runtime.spawn(FunctionProgram(main))
        await until(runtime, pid, ProcessState.WAITING)
    assert runtime.info(pid).exit is not None


async def test_a_users_own_error_leaves_the_runtime_as_it_is() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with booted():
            raise ValueError("mine")


class FragileCore(ScriptedCore):
    """Fails whole steps while `is_broken`."""

    is_broken = True

    def execute(self, plan: StepPlan) -> StepResult:
        if self.is_broken:
            raise RuntimeError("the device is gone\nwith many details")
        return super().execute(plan)


async def test_a_core_that_fails_fails_its_processes_and_serves_the_next() -> None:
    async def main(port: Port, params: Mapping[str, Any]) -> None:
        number = await open_with(port, "hello")
        await port.syscall("llm.generate", {"context": number, "max_tokens": 2})

    core = FragileCore()
    async with booted(core) as runtime:
        assert await run(runtime, main) == (1, "The model driver failed: the device is gone.")
        core.is_broken = False
        assert await run(runtime, main) == (0, "")


async def test_the_loop_serves_syscalls_while_the_engine_computes() -> None:
    class SlowCore(ScriptedCore):
        def execute(self, plan: StepPlan) -> StepResult:
            time.sleep(0.02)
            return super().execute(plan)

    async def talker(port: Port, params: Mapping[str, Any]) -> None:
        number = await open_with(port, "slowly")
        await port.syscall("llm.generate", {"context": number, "max_tokens": 10})

    async def caller(port: Port, params: Mapping[str, Any]) -> None:
        for _ in range(200):
            await port.syscall("ctx.list", {})

    async with booted(SlowCore()) as runtime:
        talking = await runtime.spawn(FunctionProgram(talker))
        assert await run(runtime, caller) == (0, "")
        assert runtime.info(talking).exit is None


async def until(runtime: Runtime, pid: Pid, state: ProcessState) -> None:
    while runtime.info(pid).state is not state:
        await anyio.lowlevel.checkpoint()

"""What happens to a full context, through a running kernel: the policies, and what a journal is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.apps.sdk import ContextHandle, Proc, app
from llmasos.kernel.abi import FinishReason, Grammar, GrammarKind, Message, Pid, Signal
from llmasos.kernel.context import Context
from llmasos.kernel.errors import ContextTooLong, InvalidArguments
from llmasos.kernel.kernel import KernelOptions
from llmasos.kernel.process import Process
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ROLES, ByteTokenizer, ScriptedCore, hashed, replies
from llmasos.kernel.syscall import SyscallTable
from llmasos.syscalls import context, io, llm, process
from llmasos.syscalls.summary import ASK, HEADING

pytestmark = pytest.mark.anyio
WINDOW = 128
TOKENIZER = ByteTokenizer()
RULES = Message("system", "rules")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class ListArchive:
    """An archive in memory."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def remember(self, text: str, source: str) -> None:
        self.texts.append(f"{source}: {text}")

    def recall(self, query: str, limit: int) -> Sequence[str]:
        return [text for text in self.texts if query in text][:limit]


class Redo:
    """Contexts made again from what a journal is told."""

    def __init__(self) -> None:
        self.held: dict[int, dict[str, Any]] = {}

    def take(self, _process: Process, event: tuple[Any, ...]) -> None:
        kind, number, *rest = json.loads(json.dumps(event))
        if kind == "open":
            self.held[number] = new_record(rest[0])
        elif kind == "fork":
            source = self.held[rest[0]]
            self.held[number] = json.loads(json.dumps(source)) | {"stream": rest[1]}
        elif kind == "close":
            del self.held[number]
        elif kind != "numbers":
            self._change(self.held[number], kind, rest)

    def _change(self, record: dict[str, Any], kind: str, rest: list[Any]) -> None:
        if kind == "append":
            record["tokens"] += rest[0]
        elif kind == "cut":
            del record["tokens"][rest[0] :]
            if rest[0] <= record["shift"][1]:
                record["shift"] = ["", 0]
        elif kind == "say":
            record["turns"][rest[0] :] = rest[1]
            record["reply_start"] = rest[2]
        elif kind == "starts":
            record["starts"][rest[0] :] = rest[1]
        else:
            record[kind] = rest

    def check(self, owner: Process) -> None:
        seen = {c.context_id: record_of(c) for c in owner.contexts.values() if not c.is_scratch}
        assert seen == self.held


def new_record(stream: int) -> dict[str, Any]:
    empty: dict[str, Any] = {"tokens": [], "turns": [], "starts": [], "reply_start": None}
    return {"stream": stream, "window": ["error"], "forgot": [0], "shift": ["", 0], **empty}


def record_of(held: Context) -> dict[str, Any]:
    return {
        "stream": held.stream,
        "window": [held.window.value],
        "forgot": [held.num_forgotten],
        "shift": [held.shift_salt, held.shifted_from],
        "tokens": held.tokens,
        "turns": [[turn.role, turn.content] for turn in held.messages],
        "starts": held.starts,
        "reply_start": held.reply_start,
    }


@asynccontextmanager
async def booted(core: ScriptedCore | None = None, **options: Any) -> AsyncIterator[Runtime]:
    modules = (context, llm, process, io)
    archives: dict[Pid, ListArchive] = {}
    runtime = Runtime(
        core or ScriptedCore(context_length=WINDOW, num_pages=200),
        TOKENIZER,
        syscalls=SyscallTable(entry for module in modules for entry in module.SYSCALLS),
        programs={}.__getitem__,
        cache_folder=Path(gettempdir()),
        options=KernelOptions(step_tokens=32),
        **({"archives": lambda pid: archives.setdefault(pid, ListArchive())} | options),
    )
    with anyio.fail_after(60):
        async with runtime:
            yield runtime
    runtime.kernel.check_integrity()
    assert runtime.kernel.pool.num_held == 0


async def run(main: Callable[[Proc], Awaitable[Any]], **options: Any) -> None:
    async with booted(**options) as runtime:
        status = await runtime.wait(await runtime.spawn(app(name="test", summary="")(main)))
        assert status.code == 0, status.message


def kernel_context(runtime: Runtime, handle: ContextHandle, pid: Pid) -> Context:
    assert handle._id is not None
    return runtime.kernel.processes[pid].contexts[handle._id]


# --- one policy at a time


async def test_without_a_policy_a_full_window_is_an_error_as_ever() -> None:
    async def main(proc: Proc) -> None:
        async with proc.session(system="rules") as session:
            reply = await session.ask("x" * 60, max_tokens=500)
            assert reply.finish is FinishReason.WINDOW
            with pytest.raises(ContextTooLong):
                await session.say("more")
            info = await session.context.info()
            assert (info.num_tokens, info.num_forgotten) == (WINDOW, 0)

    await run(main)


async def test_sliding_drops_the_oldest_exchange_and_keeps_the_system_prompt() -> None:
    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="slide") as session:
            for number in range(20):
                await session.say(f"{number:20}")
                info = await session.context.info()
                assert info.num_tokens <= WINDOW
                assert info.is_exact
                await session.context.generate(max_tokens=10)
            assert info.num_forgotten > 10 * WINDOW // 4

    await run(main)


async def test_a_reply_goes_on_through_a_slide_and_is_what_it_would_have_been() -> None:
    """Every token but the first of the reply comes from the shortened context."""

    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="slide") as session:
            await session.say("a" * 70)
            await session.context.generate(max_tokens=10)
            await session.say("b" * 10)
            before = (await session.context.info()).num_tokens
            pieces: list[str] = []
            async with session.context.stream(max_tokens=80, ignore_eos=True) as stream:
                async for piece in stream:
                    pieces.append(piece)
            result = stream.result
            assert result.finish is FinishReason.LENGTH
            assert len(result.token_ids) == 80
            assert "".join(pieces) == result.text
            assert result.tokens_prompt == before
            turns = [RULES, Message("user", "b" * 10)]
            prompt = TOKENIZER.render_chat(turns, reply=True)
            seen = [*prompt, *result.token_ids]
            num_before = WINDOW - before
            for position in range(len(prompt) + num_before + 1, len(seen)):
                assert hashed(seen[:position]) == seen[position]

    await run(main)


async def test_a_reply_that_alone_fills_the_window_ends_there() -> None:
    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="slide") as session:
            result = await session.ask("short", max_tokens=500, ignore_eos=True)
            assert result.finish is FinishReason.WINDOW
            assert (await session.context.info()).num_tokens == WINDOW
            again = await session.ask("next", max_tokens=3)
            assert again.finish is FinishReason.LENGTH

    await run(main)


async def test_a_line_that_never_fits_changes_nothing() -> None:
    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="slide") as session:
            await session.ask("hello", max_tokens=5)
            before = await session.context.info()
            with pytest.raises(ContextTooLong):
                await session.say("x" * WINDOW)
            assert await session.context.info() == before

    await run(main)


async def test_plain_text_goes_on_for_ever() -> None:
    async def main(proc: Proc) -> None:
        async with proc.context(window="slide") as text:
            await text.append("once upon a time ")
            for _ in range(6):
                await text.append("and then ")
                result = await text.generate(max_tokens=60)
                assert result.finish is FinishReason.LENGTH
            info = await text.info()
            assert info.num_tokens + info.num_forgotten == 17 + 6 * 69

    await run(main)


async def test_what_goes_is_archived_for_the_process() -> None:
    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="archive") as session:
            await session.say("my name is Ada", reply=False)
            for number in range(9):
                await session.say(f"{number:20}", reply=False)

    async with booted() as runtime:
        pid = await runtime.spawn(app(name="test", summary="")(main))
        await runtime.wait(pid)
        assert runtime.archives is not None
        found = runtime.archives(pid).recall("Ada", 5)
        assert len(found) == 1
        assert found[0].startswith("context 0: user: my name is Ada")
        assert not runtime.archives(Pid(99)).recall("Ada", 5)


async def test_a_kernel_without_an_archive_refuses_that_policy() -> None:
    async def main(proc: Proc) -> None:
        with pytest.raises(InvalidArguments, match="no archive"):
            await proc.context(window="archive").open()
        with pytest.raises(InvalidArguments, match="window"):
            await proc.call("ctx.open", window="wide")

    await run(main, archives=None)


def answer(prompt: str) -> str:
    """A summary where one is asked for, else a few words."""
    asked = prompt.rpartition("<user>")[2]
    return "Ada likes tea." if ASK in asked else "Fine, then."


async def test_what_goes_is_summarised_in_its_place() -> None:
    core = ScriptedCore(replies(answer), context_length=1024, num_pages=600)

    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="summarise") as session:
            for number in range(14):
                await session.ask(f"{number:100}")
            info = await session.context.info()
            assert info.num_forgotten > 0
            held = kernel_context(runtime, session.context, proc.pid)
            assert [turn.role for turn in held.messages[:3]] == ["system", "user", "user"]
            assert held.messages[1].content == f"{HEADING} Ada likes tea."
            said = TOKENIZER.decode(held.tokens[held.reply_start :])
            messages = [*held.messages, Message("assistant", said)]
            assert held.tokens == TOKENIZER.render_chat(messages, reply=False)
            assert len(runtime.kernel.processes[proc.pid].contexts) == 1

    async with booted(core) as runtime:
        status = await runtime.wait(await runtime.spawn(app(name="test", summary="")(main)))
        assert status.code == 0, status.message


async def test_an_interrupt_while_summarising_ends_the_reply_with_what_it_has() -> None:
    def rambling(prompt: str) -> str:
        return "so " * 500

    core = ScriptedCore(replies(rambling), context_length=1024, num_pages=600)

    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="summarise") as session:
            await session.ask("x" * 500, max_tokens=5)
            await session.say("y")
            before = await session.context.info()
            result = await session.context.generate(max_tokens=900)
            assert result.finish is FinishReason.INTERRUPTED
            assert result.text.startswith("so so")
            after = await session.context.info()
            assert after.num_forgotten == 0
            assert after.num_tokens == before.num_tokens + len(result.token_ids) == 1024
            await session.context.truncate(5)  # it is free again

    async with booted(core) as runtime:
        pid = await runtime.spawn(app(name="test", summary="")(main))
        contexts = runtime.kernel.processes[pid].contexts
        while not any(each.is_scratch for each in contexts.values()):
            await anyio.lowlevel.checkpoint()
        runtime.signal(pid, Signal.INT)
        status = await runtime.wait(pid)
        assert status.code == 0, status.message


async def test_killing_a_process_while_its_window_is_summarised_frees_everything() -> None:
    core = ScriptedCore(replies(lambda _: "so " * 500), context_length=1024, num_pages=600)

    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="summarise") as session:
            await session.ask("x" * 500, max_tokens=5)
            await session.ask("y", max_tokens=900)

    async with booted(core) as runtime:
        pid = await runtime.spawn(app(name="test", summary="")(main))
        contexts = runtime.kernel.processes[pid].contexts
        while not any(each.is_scratch for each in contexts.values()):
            await anyio.lowlevel.checkpoint()
        runtime.signal(pid, Signal.KILL)
        assert (await runtime.wait(pid)).code == 137


async def test_nobody_else_may_change_a_context_while_room_is_made_in_it() -> None:
    core = ScriptedCore(replies(lambda _: "so " * 500), context_length=1024, num_pages=600)

    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="summarise") as session:
            await session.ask("x" * 500, max_tokens=5)
            await session.say("y")
            refused = []

            async def meddle() -> None:
                contexts = runtime.kernel.processes[proc.pid].contexts
                while not any(each.is_scratch for each in contexts.values()):
                    await anyio.lowlevel.checkpoint()
                for call in (
                    session.context.truncate(0),
                    session.say("z"),
                    session.context.close(),
                ):
                    with pytest.raises(InvalidArguments, match="is being computed"):
                        await call
                    refused.append(call)

            async with anyio.create_task_group() as group:
                group.start_soon(meddle)
                result = await session.context.generate(max_tokens=700)
            assert len(refused) == 3
            assert result.finish is FinishReason.LENGTH

    async with booted(core) as runtime:
        status = await runtime.wait(await runtime.spawn(app(name="test", summary="")(main)))
        assert status.code == 0, status.message


async def test_a_grammar_goes_on_through_a_slide() -> None:
    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="slide") as session:
            await session.ask("a" * 80, max_tokens=5)
            await session.say("b")
            result = await session.context.generate(
                max_tokens=100, grammar=Grammar(GrammarKind.REGEX, "(ab){40}c"), logprobs=0
            )
            assert result.text == "ab" * 40 + "c"
            assert result.finish is FinishReason.STOP
            assert len(result.logprobs) == len(result.token_ids)

    await run(main)


async def test_a_stop_string_found_after_a_slide_is_cut_from_the_right_place() -> None:
    core = ScriptedCore(replies(lambda _: "." * 60 + "END"), context_length=WINDOW, num_pages=200)

    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="slide") as session:
            await session.ask("a" * 60, max_tokens=5)
            result = await session.ask("b", max_tokens=100, stop=["END"])
            assert result.text == "." * 60
            info = await session.context.info()
            turns = [RULES, Message("user", "b")]
            assert info.num_tokens == len(TOKENIZER.render_chat(turns, reply=True)) + 60

    await run(main, core=core)


# --- any conversation


OPS = st.lists(
    st.one_of(
        st.tuples(st.just("user"), st.integers(0, 50)),
        st.tuples(st.just("tool"), st.integers(0, 30)),
        st.tuples(st.just("reply"), st.integers(1, 90)),
        st.tuples(st.just("append"), st.integers(0, 20)),
        st.tuples(st.just("fork"), st.just(0)),
    ),
    max_size=25,
)


class Talk:
    """Does random things to a chat and compares it with a plain model after each."""

    def __init__(self, runtime: Runtime, proc: Proc, window: str) -> None:
        self._runtime = runtime
        self._proc = proc
        self._window = window
        self._handle = proc.context(window=window)
        self._redo = Redo()
        self._said: list[str] = []
        """Every turn's mark, in order; a mark stands at the beginning of its content."""
        self._latest_user: str | None = None
        runtime.kernel.record = self._redo.take

    @property
    def _held(self) -> Context:
        return kernel_context(self._runtime, self._handle, self._proc.pid)

    @property
    def num_forgotten(self) -> int:
        return self._held.num_forgotten

    async def begin(self) -> None:
        await self._handle.chat([RULES], reply=False)

    async def do(self, name: str, size: int) -> None:
        before = record_of(self._held)
        try:
            await getattr(self, f"_{name}")(size)
        except ContextTooLong:
            assert record_of(self._held) == before
        self._redo.check(self._runtime.kernel.processes[self._proc.pid])
        self._runtime.kernel.check_integrity()
        self._check()
        await self._check_next_token()

    async def _user(self, size: int) -> None:
        await self._turn("user", size)

    async def _tool(self, size: int) -> None:
        if self._held.reply_start is None:  # a result has a call
            await self._turn("assistant", 3)
        await self._turn("tool", size)

    async def _turn(self, role: str, size: int) -> None:
        mark = f"{len(self._said):03}"
        await self._handle.chat([Message(role, mark + "." * size)], reply=role != "assistant")
        self._said.append(mark)
        if role == "user":
            self._latest_user = mark

    async def _reply(self, size: int) -> None:
        number = self._held.context_id
        if self._held.reply_start is None:
            return

        def on_chunk(chunk: Any) -> None:
            self._redo.held[number]["tokens"] += chunk.token_ids

        arguments = {"max_tokens": size, "ignore_eos": True}
        await self._handle.generate_into(on_chunk, arguments)

    async def _append(self, size: int) -> None:
        if self._held.reply_start is not None:  # put into the assistant's mouth
            await self._handle.append("," * size)

    async def _fork(self, _size: int) -> None:
        other = await self._handle.fork()
        mine = record_of(self._held)
        theirs = record_of(kernel_context(self._runtime, other, self._proc.pid))
        assert mine | {"stream": 0} == theirs | {"stream": 0}
        await self._handle.close()
        self._handle = other

    def _check(self) -> None:
        held = self._held
        assert len(held.tokens) <= WINDOW
        assert held.window == self._window
        assert held.messages[0] == RULES
        tokens = TOKENIZER.render_chat(held.messages, reply=held.reply_start is not None)
        if held.reply_start is not None:
            assert held.reply_start == len(tokens)
            tokens += held.tokens[held.reply_start :]
        assert held.tokens == tokens
        marks = {ROLES[name] for name in ROLES}
        starts = [i for i, token in enumerate(held.tokens) if token in marks]
        assert held.starts == ([] if held.window == "error" else starts)
        self._check_pairs(held)

    def _check_pairs(self, held: Context) -> None:
        """A result follows what it followed; the latest user turn is there."""
        for before, turn in pairwise(held.messages):
            if turn.role == "tool":
                assert before.role in ("assistant", "tool")
                if before.content[:3] in self._said:
                    assert self._said.index(before.content[:3]) + 1 == int(turn.content[:3])
        users = [turn.content[:3] for turn in held.messages if turn.role == "user"]
        assert self._latest_user is None or self._latest_user in users

    async def _check_next_token(self) -> None:
        """The pages hold what a fresh prefill of these tokens would."""
        if len(self._held.tokens) < WINDOW:
            copy = await self._handle.fork()
            tokens = list(self._held.tokens)
            result = await copy.generate(max_tokens=1, ignore_eos=True)
            assert result.token_ids == (hashed(tokens),)
            await copy.close()


@pytest.mark.parametrize("window", ["error", "slide", "shift", "archive", "summarise"])
def test_any_conversation_holds_to_its_policy(window: str) -> None:
    forgotten: list[int] = []

    @settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
    @given(OPS)
    def check(ops: list[tuple[str, int]]) -> None:
        async def main(proc: Proc) -> None:
            talk = Talk(runtimes[0], proc, window)
            await talk.begin()
            for name, size in ops:
                await talk.do(name, size)
            forgotten.append(talk.num_forgotten)

        runtimes: list[Runtime] = []

        async def whole() -> None:
            async with booted() as runtime:
                runtimes.append(runtime)
                status = await runtime.wait(await runtime.spawn(app(name="talk", summary="")(main)))
                assert status.code == 0, status.message

        asyncio.run(whole())

    check()
    assert any(forgotten) == (window != "error")

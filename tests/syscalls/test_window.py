"""What happens to a full context, through a running kernel."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from llmasos.apps.sdk import Proc, app
from llmasos.kernel.abi import FinishReason, Grammar, GrammarKind, Message, Signal
from llmasos.kernel.core import KVShift
from llmasos.kernel.errors import ContextTooLong, InvalidArguments
from llmasos.kernel.scripted import ScriptedCore, hashed, replies
from llmasos.syscalls.archive import archives_in
from llmasos.syscalls.summary import ASK, HEADING
from tests.syscalls.windows import RULES, TOKENIZER, WINDOW, booted, kernel_context, run

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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
        found = runtime.archives(runtime.kernel.process(pid)).recall("Ada", 5)
        assert list(found) == ["context 0: user: my name is Ada"]


async def test_what_was_archived_is_found_by_memory_recall(tmp_path: Path) -> None:
    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="archive") as session:
            await session.say("my name is Ada", reply=False)
            for number in range(9):
                await session.say(f"{number:20}", reply=False)
        found = await proc.call("memory.recall", query="What is my name?", scope="process")
        assert [each["text"] for each in found["memories"]] == ["user: my name is Ada"]
        assert found["memories"][0]["source"] == "context 0"

    await run(
        main, archives=archives_in(tmp_path / "cache", now=time.time), cache=tmp_path / "cache"
    )


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


async def test_shifting_computes_nothing_again_and_shares_nothing_with_exact_contexts() -> None:
    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="shift") as session:
            await session.ask("a" * 60, max_tokens=5)
            await session.say("b" * 20)
            await session.context.generate(max_tokens=60, ignore_eos=True)
            info, usage = await session.context.info(), await proc.info()
            assert info.num_forgotten > 0
            assert not info.is_exact
            assert usage.tokens_computed == info.num_computed + info.num_forgotten
            held = kernel_context(runtime, session.context, proc.pid)
            copy = await session.context.fork()
            assert not (await copy.info()).is_exact
            runtime.kernel.pool.drop_cache()  # pages of what was dropped, as exact as any
            async with proc.context() as fresh:
                await fresh.append_tokens(held.tokens)
                await fresh.prefill()
                shared = (await proc.info()).tokens_cached
                assert shared == held.shifted_from // runtime.kernel.info.page_size * 4
                assert (await fresh.info()).is_exact
            await session.context.truncate(held.shifted_from)
            assert (await session.context.info()).is_exact

    async with booted() as runtime:
        status = await runtime.wait(await runtime.spawn(app(name="test", summary="")(main)))
        assert status.code == 0, status.message


async def test_a_shifted_context_that_lost_its_pages_is_computed_again() -> None:
    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="shift") as session:
            await session.ask("a" * 60, max_tokens=5)
            await session.ask("b" * 20, max_tokens=60, ignore_eos=True)
            held = kernel_context(runtime, session.context, proc.pid)
            held.drop_pages()
            runtime.kernel.pool.drop_cache()
            tokens = list(held.tokens)
            reply = await session.context.generate(max_tokens=1, ignore_eos=True)
            assert reply.token_ids == (hashed(tokens),)
            assert not (await session.context.info()).is_exact

    async with booted() as runtime:
        status = await runtime.wait(await runtime.spawn(app(name="test", summary="")(main)))
        assert status.code == 0, status.message


async def test_without_pages_for_a_shift_the_rest_is_computed_again() -> None:
    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="shift") as session:
            await session.ask("a" * 60, max_tokens=5)
            result = await session.ask("b" * 20, max_tokens=60, ignore_eos=True)
            assert result.finish is FinishReason.LENGTH
            info = await session.context.info()
            assert info.num_forgotten > 0
            assert info.is_exact

    await run(main, core=ScriptedCore(context_length=WINDOW, num_pages=WINDOW // 4))


async def test_a_core_that_cannot_shift_says_so() -> None:
    async def main(proc: Proc) -> None:
        with pytest.raises(InvalidArguments, match="cannot shift its keys; use the window slide"):
            await proc.context(window="shift").open()

    core = ScriptedCore(context_length=WINDOW)
    core.info = replace(core.info, can_shift=False)
    await run(main, core=core)


async def test_a_driver_that_fails_to_shift_leaves_a_slide() -> None:
    class Broken(ScriptedCore):
        def shift(self, shift: KVShift) -> None:
            raise RuntimeError("no such luck")

    async def main(proc: Proc) -> None:
        async with proc.session(system="rules", window="shift") as session:
            await session.ask("a" * 60, max_tokens=5)
            await session.ask("b" * 20, max_tokens=60, ignore_eos=True)
            info = await session.context.info()
            assert info.num_forgotten > 0
            assert info.is_exact

    await run(main, core=Broken(context_length=WINDOW, num_pages=200))

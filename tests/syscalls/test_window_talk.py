"""Any conversation, under any policy, against a plain model of what it must be."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.apps.sdk import Proc, app
from llmasos.kernel.abi import Message
from llmasos.kernel.context import Context
from llmasos.kernel.errors import ContextTooLong
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ROLES, hashed
from tests.syscalls.windows import RULES, TOKENIZER, WINDOW, Redo, booted, held, kernel_context

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
        before = held(self._held)
        try:
            await getattr(self, f"_{name}")(size)
        except ContextTooLong:
            assert held(self._held) == before
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
            self._redo.holdings.contexts[number].tokens += chunk.token_ids

        arguments = {"max_tokens": size, "ignore_eos": True}
        await self._handle.generate_into(on_chunk, arguments)

    async def _append(self, size: int) -> None:
        if self._held.reply_start is not None:  # put into the assistant's mouth
            await self._handle.append("," * size)

    async def _fork(self, _size: int) -> None:
        other = await self._handle.fork()
        mine = held(self._held)
        theirs = held(kernel_context(self._runtime, other, self._proc.pid))
        assert replace(mine, stream=theirs.stream) == theirs
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

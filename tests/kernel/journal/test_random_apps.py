"""Random apps, crashed at random moments any number of times, end as they do undisturbed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmasos.apps.proc import Proc
from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import InvalidArguments, NoSuchProcess
from llmasos.kernel.journal.history import History
from llmasos.kernel.journal.replay import Replay
from llmasos.kernel.program import Port
from tests.kernel.journal.reboots import Machine

Act = tuple[Any, ...]

simple = st.one_of(
    st.tuples(st.just("generate"), st.integers(1, 9)),
    st.tuples(st.just("stream"), st.integers(1, 9)),
    st.tuples(st.just("read"), st.integers(1, 3)),
    st.tuples(st.just("score"), st.integers(1, 4)),
    st.tuples(st.just("print"), st.integers(0, 9)),
    st.tuples(st.just("wrong"), st.integers(0, 9)),
)
acts: st.SearchStrategy[list[Act]] = st.recursive(
    st.lists(simple, min_size=1, max_size=4),
    lambda inner: st.lists(
        st.one_of(
            simple,
            st.tuples(st.just("together"), st.lists(inner, min_size=1, max_size=3)),
            st.tuples(st.just("race"), st.lists(inner, min_size=2, max_size=3)),
            st.tuples(st.just("child"), inner),
            st.tuples(st.just("leave"), st.integers(1, 4)),
        ),
        min_size=1,
        max_size=3,
    ),
    max_leaves=8,
)


in_order = st.lists(
    st.one_of(
        simple.filter(lambda act: act[0] != "stream"),
        st.tuples(
            st.just("child"),
            st.lists(simple.filter(lambda act: act[0] != "stream"), max_size=2),
        ),
    ),
    min_size=1,
    max_size=6,
)
"""Without streams, which come in larger pieces to an app that is slower."""


async def actor(port: Port, params: Mapping[str, Any]) -> None:
    await perform(Proc(port), params["acts"], "root")


async def perform(proc: Proc, acts: Sequence[Act], name: str) -> None:
    for number, (kind, what) in enumerate(acts):
        await PERFORM[kind](proc, what, f"{name}.{number}")


async def _generate(proc: Proc, max_tokens: int, name: str) -> None:
    result = await proc.generate(name, max_tokens=max_tokens, temperature=1.0, logprobs=1)
    await proc.print(name, result.text, result.logprobs[-1].logprob)


async def _stream(proc: Proc, max_tokens: int, name: str) -> None:
    async with proc.context() as context:
        await context.append(name)
        async with context.stream(max_tokens=max_tokens) as pieces:
            async for piece in pieces:
                await proc.print(f"[{piece}]", end="")


async def _leave(proc: Proc, num_pieces: int, name: str) -> None:
    """Leave a stream early."""
    async with proc.context() as context:
        await context.append(name)
        async with context.stream(max_tokens=20) as pieces:
            async for piece in pieces:
                await proc.print(piece, end="")
                if (num_pieces := num_pieces - 1) == 0:
                    break
        await proc.print((await context.info()).num_tokens > 0)


async def _read(proc: Proc, num_lines: int, name: str) -> None:
    for _ in range(num_lines):
        await proc.print(name, await proc.read_line())


async def _score(proc: Proc, num_candidates: int, name: str) -> None:
    async with proc.context() as context:
        await context.append(name)
        scores = await context.score([f"{name}{n}" for n in range(num_candidates)])
        await proc.print([score.logprob for score in scores])


async def _print(proc: Proc, what: int, name: str) -> None:
    await proc.print(name, what)


async def _wrong(proc: Proc, what: int, name: str) -> None:
    try:
        await proc.call("ctx.info", context=900 + what)
    except InvalidArguments as error:
        await proc.print(type(error).__name__, error)


async def _together(proc: Proc, what: Sequence[Sequence[Act]], name: str) -> None:
    async with anyio.create_task_group() as group:
        for number, acts in enumerate(what):
            group.start_soon(perform, proc, acts, f"{name}/{number}")


async def _race(proc: Proc, what: Sequence[Sequence[Act]], name: str) -> None:
    """The first to finish ends the others."""
    async with anyio.create_task_group() as group:

        async def run(acts: Sequence[Act], number: int) -> None:
            await perform(proc, acts, f"{name}/{number}")
            await proc.print(name, "won by", number)
            group.cancel_scope.cancel()

        for number, acts in enumerate(what):
            group.start_soon(run, acts, number)


async def _child(proc: Proc, acts: Sequence[Act], name: str) -> None:
    child = await proc.spawn("actor", {"acts": acts})
    outcome = await child.wait()
    await proc.print(name, outcome)


PERFORM: Mapping[str, Callable[[Proc, Any, str], Awaitable[None]]] = {
    "generate": _generate,
    "stream": _stream,
    "leave": _leave,
    "read": _read,
    "score": _score,
    "print": _print,
    "wrong": _wrong,
    "together": _together,
    "race": _race,
    "child": _child,
}

LINES = [f"line {n}" for n in range(4)]


def machine() -> Machine:
    made = Machine(num_pages=1024)
    made.app(actor)
    return made


async def begin(runtime: Any, what: Sequence[Act]) -> None:
    pid = await runtime.spawn("actor", {"acts": what}, stdin=True, seed=7)
    with suppress(NoSuchProcess):  # it may not want them
        for line in (*LINES, None):
            await runtime.send_input(pid, line)


async def undisturbed(what: Sequence[Act]) -> str:
    async with machine().booted() as runtime:
        await begin(runtime, what)
        assert (await runtime.wait(Pid(1))).code == 0
        return str(runtime.output_text(Pid(1)))


async def disturbed(home: Machine, what: Sequence[Act], crashes: Sequence[int]) -> str:
    """What it printed in the end; nothing must ever differ from the journal."""
    async with home.booted(crashes=True) as runtime:
        await begin(runtime, what)
    for num_turns in crashes:
        async with home.booted(crashes=True) as runtime:
            for _ in range(num_turns):
                await anyio.lowlevel.checkpoint()
            assert not [process.note for process in runtime.ps(all=True) if process.note]
    shown: str | None = None
    async with home.booted() as runtime:
        if Pid(1) in runtime.kernel.processes:
            status = await runtime.wait(Pid(1))
            assert status.code == 0, status
            shown = runtime.output_text(Pid(1))
    recorded = output_of(home.history(1))
    assert shown in (None, recorded)
    return recorded


def output_of(history: History) -> str:
    return "".join(history.holdings.output)


async def replay_all(home: Machine) -> None:
    """Every process that there was, from its journal alone."""
    for pid in range(1, home.num_processes + 1):
        history = home.history(pid)
        replayed = await Replay(history, home.apps["actor"], decode=home.decode).run()
        assert not replayed.problem, (pid, replayed)
        assert replayed.output == output_of(history)
        assert replayed.exit is not None


@settings(max_examples=60, deadline=None)
@given(in_order, st.lists(st.integers(0, 400), max_size=5))
def test_an_app_that_does_one_thing_after_another_ends_as_if_nothing_had_been(
    what: list[Act], crashes: list[int]
) -> None:
    expected = anyio.run(undisturbed, what)
    assert anyio.run(disturbed, machine(), what, crashes) == expected


LEFT_STREAMS: list[Act] = [
    ("race", [[("leave", 1), ("print", 4)], [("leave", 1), ("print", 4)]]),
    ("leave", 1),
    ("leave", 1),
]
"""What a stream that is left waits for is the engine's, and not in the journal."""


@settings(max_examples=60, deadline=None)
@given(acts, st.lists(st.integers(0, 400), max_size=5))
@example(LEFT_STREAMS, [204, 0])
def test_an_app_whose_tasks_race_never_leaves_its_journal_and_replays(
    what: list[Act], crashes: list[int]
) -> None:
    home = machine()
    anyio.run(disturbed, home, what, crashes)
    anyio.run(replay_all, home)

"""What an app is given: one thing at a time, and nothing while it is still busy with the last."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from llmasos.kernel.delivery import SETTLING_TURNS, Deliveries, Turns, unwinding

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def deliveries() -> Deliveries:
    made = Deliveries(Turns())
    made.num_calls = 1
    return made


async def many_turns() -> None:
    for _ in range(3 * SETTLING_TURNS):
        await asyncio.sleep(0)


async def test_news_reach_the_last_of_many_tasks_before_the_next_thing_is_given() -> None:
    app, passed_on = deliveries(), [asyncio.Event() for _ in range(40)]

    async def pass_on(number: int) -> None:
        await passed_on[number].wait()
        passed_on[number + 1].set()

    tasks = [asyncio.create_task(pass_on(number)) for number in range(39)]
    await asyncio.sleep(0)
    had_arrived = []
    app.put(passed_on[0].set)
    app.put(lambda: had_arrived.append(passed_on[-1].is_set()))
    await many_turns()
    assert had_arrived == [True]
    await asyncio.gather(*tasks)


async def test_others_that_never_rest_hold_up_nobody_for_good() -> None:
    async def restless() -> None:
        while True:
            await asyncio.sleep(0)

    task, app, given = asyncio.create_task(restless()), deliveries(), list[int]()
    app.put(lambda: given.append(1))
    app.put(lambda: given.append(2))
    await many_turns()
    assert given == [1, 2]
    task.cancel()


async def test_nothing_is_given_while_a_call_that_was_given_up_unwinds() -> None:
    app, over, seen = deliveries(), asyncio.Event(), list[str]()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await over.wait()  # what the engine has under way, say

    async def call() -> None:
        try:
            await unwinding(work(), app)
        finally:
            seen.append("goes on")

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    app.put(lambda: seen.append("is given the next thing"))
    await many_turns()
    assert seen == []
    over.set()
    with suppress(asyncio.CancelledError):
        await task
    assert seen == ["goes on"]
    await many_turns()
    assert seen == ["goes on", "is given the next thing"]


async def test_work_that_is_not_cancelled_gives_its_result_or_its_error() -> None:
    app = deliveries()

    async def doubles(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    assert await unwinding(doubles(21), app) == 42
    with pytest.raises(ValueError, match="no"):
        await unwinding(fails(), app)
    assert app.num_unwinding == 0

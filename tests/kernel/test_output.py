from __future__ import annotations

import asyncio

import pytest

from llmasos.kernel.output import GAP, Output

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_late_reader_gets_everything_and_the_end() -> None:
    output = Output()
    for piece in ("one ", "two ", "three"):
        output.write(piece)
    output.close()
    output.write("too late")
    assert "".join([piece async for piece in output.read()]) == "one two three"


async def test_a_live_reader_gets_each_piece_once() -> None:
    output = Output()

    async def collect() -> str:
        return "".join([piece async for piece in output.read()])

    reader = asyncio.create_task(collect())
    for number in range(100):
        output.write(f"{number},")
        await asyncio.sleep(0)
    output.close()
    assert await reader == "".join(f"{number}," for number in range(100))


async def test_old_text_is_dropped_and_the_reader_is_told() -> None:
    output = Output(max_chars=100)
    reader = output.read()
    output.write("start")
    assert await anext(reader) == "start"
    for number in range(100):
        output.write(f"{number:09d},")
    assert len(output.text) <= 100 + len(GAP)
    assert await anext(reader) == GAP
    assert (await anext(reader)).endswith("000000099,")


async def test_one_piece_larger_than_the_bound_is_kept() -> None:
    output = Output(max_chars=10)
    output.write("x" * 50)
    assert output.text == "x" * 50

"""The test kit's kernel, used as its documentation says."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from llmasos.apps.sdk import Limits, Proc, app
from llmasos.kernel.abi import Limits as AbiLimits
from llmasos.shell.testing import scripted_kernel

pytestmark = pytest.mark.anyio


class Topic(BaseModel):
    topic: str


class City(BaseModel):
    name: str


@app(name="haiku", summary="Writes a line.", limits=Limits(tokens_out=500), models=["smollm2"])
async def haiku(proc: Proc, params: Topic) -> None:
    async with proc.session() as session:
        await proc.print((await session.ask(params.topic, max_tokens=60)).text)
    await proc.memory.remember(f"wrote about {params.topic}")
    await proc.print([memory.text for memory in await proc.memory.list(scope="app")])
    async with proc.session() as session:
        await session.say("Which city?")
        await proc.print(await session.context.generate(as_type=City, max_tokens=60))
    await proc.print(await proc.choose("It is", ["a", "b"]) in ("a", "b"))
    scores = await proc.score("It is", ["a", "b"])
    await proc.print([score.text for score in scores])
    await proc.progress(1, text="all done")
    await proc.log("it went well")


def reply(prompt: str) -> str:
    return '{"name": "Oslo"}' if "city" in prompt else "The sea is wide."


async def test_an_app_runs_in_a_whole_kernel_on_a_scripted_model(tmp_path):
    async with scripted_kernel([haiku], tmp_path, reply=reply) as kernel:
        pid = await kernel.spawn("haiku", {"topic": "the sea"})
        status = await kernel.wait(pid)
        assert status.code == 0, status
        assert kernel.output_text(pid) == (
            "The sea is wide.\n['wrote about the sea']\nname='Oslo'\nTrue\n['a', 'b']\n"
        )
        assert kernel.log_text(pid) == "[info] it went well\n"
        assert kernel.info(pid).progress == "1 all done"


async def test_an_apps_own_limits_hold_where_its_starter_sets_none(tmp_path):
    async with scripted_kernel([haiku], tmp_path, reply=reply) as kernel:
        pid = await kernel.spawn("haiku", {"topic": "x"})
        assert kernel.kernel.process(pid).limits == AbiLimits(tokens_out=500)
        pid = await kernel.spawn("haiku", {"topic": "x"}, limits=AbiLimits(tokens_out=7, wall_s=60))
        assert kernel.kernel.process(pid).limits == AbiLimits(tokens_out=7, wall_s=60)


@pytest.mark.parametrize("name", ["Haiku", "two words", "", "-x", "x/y", "../x"])
def test_an_apps_name_is_one_word(name):
    with pytest.raises(ValueError, match="no name for an app"):
        app(name=name, summary="")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"

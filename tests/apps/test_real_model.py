"""The built-in apps on the real default model, through a real kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import BaseModel

from llmasos.apps.builtin import load_builtin
from llmasos.apps.sdk import Proc, app
from llmasos.kernel.abi import Capabilities, Signal
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.models import StoredModel
from llmasos.kernel.models.tokenizer import ModelTokenizer
from llmasos.kernel.runtime import Runtime
from llmasos.syscalls import builtin_syscalls

pytestmark = [pytest.mark.model, pytest.mark.anyio]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def runtime(
    real_model: Callable[[str], StoredModel],
    tmp_path_factory: pytest.TempPathFactory,
    anyio_backend: str,
) -> AsyncIterator[Runtime]:
    model = real_model("smollm2")
    root = tmp_path_factory.mktemp("root")
    (root / "ferry.md").write_text("The ferry sails at 9. The crossing takes two hours.\n")
    core = TorchCore.load(
        model.folder,
        name=model.name,
        fingerprint=model.fingerprint,
        kv_memory_bytes=2**29,
    )
    async with Runtime(
        core,
        ModelTokenizer.load(model.folder),
        syscalls=builtin_syscalls(),
        programs=load_builtin,
        cache_folder=tmp_path_factory.mktemp("cache"),
        capabilities=Capabilities(root=str(root)),
    ) as running:
        yield running
        running.kernel.check_integrity()


async def run(runtime: Runtime, name: str, lines: tuple[str, ...] = (), **params: Any) -> str:
    pid = await runtime.spawn(name, params, stdin=True)
    for line in (*lines, None):
        await runtime.send_input(pid, line)
    status = await runtime.wait(pid)
    assert status.code == 0, status
    return runtime.output_text(pid)


async def test_the_capital_of_france_is_paris(runtime: Runtime) -> None:
    task = "What is the capital of France?"
    assert "Paris" in await run(runtime, "agent", task=task, max_tokens=32)
    assert "Paris" in await run(runtime, "agent", task=task, tools=["*"], max_tokens=32)
    assert "Paris" in await run(runtime, "chat", lines=(task,), max_tokens=32)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("What is 37 * 43?", "37 * 43 = 1591"),
        ("What files are here?", "ferry.md"),
        ("Show me ferry.md", "The ferry sails at 9. The crossing takes two hours.\n"),
        ("Search for the crossing", "takes two hours"),
        ("According to ferry.md, when does the ferry sail?", "The ferry sails at 9.\n"),
    ],
)
async def test_the_agent_takes_the_tool_that_is_wanted(
    runtime: Runtime, task: str, said: str
) -> None:
    assert said in await run(runtime, "agent", task=task, tools=["*"], quiet=True, max_tokens=32)


async def test_complete_goes_on_to_its_limit(runtime: Runtime) -> None:
    pid = await runtime.spawn("complete", {"prompt": "One", "max_tokens": 7, "ignore_eos": True})
    await runtime.wait(pid)
    assert runtime.info(pid).tokens_out == 7


async def test_an_interrupt_ends_the_reply_and_not_the_chat(runtime: Runtime) -> None:
    first = "Write a very long story about a dragon."
    pid = await runtime.spawn("chat", {"first": first, "max_tokens": 2000}, stdin=True)
    async for _ in runtime.output(pid):
        break
    runtime.signal(pid, Signal.INT)
    await runtime.send_input(pid, "What is the capital of France?")
    await runtime.send_input(pid, None)
    assert (await runtime.wait(pid)).code == 0
    assert "[interrupted]" in runtime.output_text(pid)
    assert "Paris" in runtime.output_text(pid)


class City(BaseModel):
    city: str
    is_capital: bool


async def test_a_reply_comes_as_a_type(runtime: Runtime) -> None:
    made: list[City] = []

    @app(name="typed", summary="")
    async def typed(proc: Proc) -> None:
        made.append(await proc.generate("Paris as JSON: ", as_type=City, max_tokens=100))

    await runtime.wait(await runtime.spawn(typed))
    assert isinstance(made[0], City)

"""Windows on the real default model: slides are exact, and conversations never end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from llmasos.apps.builtin import load_builtin
from llmasos.apps.chat import FULL
from llmasos.apps.sdk import Generation, Proc, Session, app
from llmasos.kernel.abi import FinishReason, WindowPolicy
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.models import StoredModel
from llmasos.kernel.models.tokenizer import ModelTokenizer
from llmasos.kernel.runtime import Runtime
from llmasos.syscalls import builtin_syscalls
from tests.syscalls.windows import ListArchive, kernel_context

pytestmark = [pytest.mark.model, pytest.mark.anyio]
WINDOW = 256
POLICIES = [policy for policy in WindowPolicy if policy is not WindowPolicy.ERROR]
FACTS = ("rivers", "mountains", "bridges", "islands", "forests", "deserts", "harbours", "lakes")


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
    core = TorchCore.load(
        model.folder,
        name=model.name,
        fingerprint=model.fingerprint,
        kv_memory_bytes=2**28,
        max_context=WINDOW,
    )
    archive = ListArchive()
    async with Runtime(
        core,
        ModelTokenizer.load(model.folder),
        syscalls=builtin_syscalls(),
        programs=load_builtin,
        cache_folder=tmp_path_factory.mktemp("cache"),
        archives=lambda _: archive,
    ) as running:
        yield running
        running.kernel.check_integrity()
        assert running.kernel.pool.num_held == 0


async def talk(session: Session) -> None:
    """Say so much that the window is full several times over."""
    for thing in FACTS[:5]:
        await session.ask(f"Tell me about the {thing} of Europe.", max_tokens=60)


async def reply(session: Session) -> Generation:
    return await session.context.generate(max_tokens=12, logprobs=5, ignore_eos=True)


async def test_after_slides_the_logits_are_those_of_a_fresh_context(runtime: Runtime) -> None:
    replies: list[Generation] = []

    async def main(proc: Proc) -> None:
        async with proc.session(system="Be brief.", window="slide") as session:
            await talk(session)
            await session.say("What is the capital of France?")
            held = kernel_context(runtime, session.context, proc.pid)
            assert held.num_forgotten > WINDOW // 2
            tokens = list(held.tokens)
            assert tokens == runtime.tokenizer.render_chat(held.messages, reply=True)
            replies.append(await reply(session))
        runtime.kernel.pool.drop_cache()
        async with proc.context() as fresh:
            await fresh.append_tokens(tokens)
            replies.append(await reply(Session(fresh)))

    status = await runtime.wait(await runtime.spawn(app(name="test", summary="")(main)))
    assert status.code == 0, status.message
    assert replies[0].token_ids == replies[1].token_ids
    assert replies[0].logprobs == replies[1].logprobs


@pytest.mark.parametrize("window", POLICIES)
async def test_a_conversation_of_many_windows_goes_on_and_still_answers(
    runtime: Runtime, window: WindowPolicy
) -> None:
    params = {"window": window, "system": "Be brief.", "max_tokens": 60}
    pid = await runtime.spawn("chat", params, stdin=True)
    for thing in (*FACTS, *FACTS[:2]):
        await runtime.send_input(pid, f"Tell me about the {thing} of Europe.")
    await runtime.send_input(pid, "What is the capital of France?")
    await runtime.send_input(pid, None)
    status = await runtime.wait(pid)
    assert status.code == 0, status.message
    said = runtime.output_text(pid)
    assert said.count(FULL[window]) >= 3
    assert "Paris" in said.splitlines()[-1] or "Paris" in said.splitlines()[-2]
    info = runtime.info(pid)
    assert info.tokens_out > 2 * WINDOW


@pytest.mark.parametrize("window", [WindowPolicy.SHIFT, WindowPolicy.SUMMARISE])
async def test_a_reply_longer_than_what_is_left_goes_on(
    runtime: Runtime, window: WindowPolicy
) -> None:
    async def main(proc: Proc) -> None:
        async with proc.session(window=window) as session:
            await session.ask("Tell me about the sea.", max_tokens=120, ignore_eos=True)
            result = await session.ask("Go on.", max_tokens=200, ignore_eos=True)
            assert result.finish is FinishReason.LENGTH
            assert (await session.context.info()).is_exact == (window != "shift")

    status = await runtime.wait(await runtime.spawn(app(name="test", summary="")(main)))
    assert status.code == 0, status.message

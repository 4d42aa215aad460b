"""The registry, and the two plain apps."""

import pytest

from llmasos.apps.builtin import builtin_apps, load_builtin
from llmasos.apps.chat import FULL, INTERRUPTED, TOO_LONG, chat
from llmasos.apps.complete import complete
from llmasos.apps.testing import ScriptedPort, generation, run_app
from llmasos.kernel.abi import ContextId, ContextInfo, FinishReason, WindowPolicy
from llmasos.kernel.errors import ContextTooLong, Interrupted, InvalidArguments, NoSuchApp

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_each_app_is_found_by_its_name():
    assert {"agent", "call", "chat", "complete", "recommender", "support"} == set(builtin_apps())
    assert all(load_builtin(name).info.name == name for name in builtin_apps())


def test_an_unknown_app_is_answered_with_those_there_are_and_a_close_one():
    with pytest.raises(
        NoSuchApp, match=r"agent, call, chat, complete, recommender, support. Did you mean chat\?"
    ):
        load_builtin("Chta")
    with pytest.raises(NoSuchApp, match=r"support\.$"):
        load_builtin("zzz")


async def test_complete_prints_the_continuation():
    port = ScriptedPort({"llm.generate": [" upon a time"]})
    assert await run_app(complete, port, {"prompt": "Once", "ignore_eos": True}) == 0
    assert port.output == " upon a time\n"
    assert port.calls_to("ctx.append")[0]["text"] == "Once"
    assert port.calls_to("llm.generate")[0]["ignore_eos"] is True


async def test_complete_can_be_quiet():
    port = ScriptedPort({"llm.generate": ["text"]})
    await run_app(complete, port, {"prompt": "Once", "quiet": True})
    assert port.output == ""


@pytest.mark.parametrize("bad", [{}, {"prompt": "x", "max_tokens": 0}, {"prompt": "x", "top_p": 0}])
def test_complete_refuses_bad_parameters(bad):
    with pytest.raises(InvalidArguments, match=r"^complete: "):
        complete.check(bad)


async def test_chat_answers_each_line_until_the_end_of_input():
    port = ScriptedPort({"llm.generate": ["Hello.", "Well."]}, stdin=["Hi\n", "  ", "How are you?"])
    assert await run_app(chat, port, {"system": "Be kind."}) == 0
    assert port.output == "Hello.\nWell.\n"
    (text,) = port.contexts.values()
    assert text.count("system: Be kind.") == 1
    assert "user: Hi\nassistant: Hello." in text


async def test_an_interrupted_reply_ends_and_the_conversation_goes_on():
    cut = generation("I was", FinishReason.INTERRUPTED)
    port = ScriptedPort({"llm.generate": [cut, "Sure."]}, stdin=["Tell me", "Go on"])
    assert await run_app(chat, port) == 0
    assert port.output == f"I was {INTERRUPTED}\nSure.\n"


async def test_an_interrupt_while_reading_or_elsewhere_does_not_end_the_chat():
    stop = Interrupted("stop")
    port = ScriptedPort(
        {"io.read_line": [stop, "Hi", "Again", None], "llm.generate": [stop, "Hello."]}
    )
    assert await run_app(chat, port) == 0
    assert port.output == f"{INTERRUPTED}\nHello.\n"


async def test_a_forked_chat_goes_on_with_what_it_inherited():
    port = ScriptedPort(
        {"llm.generate": ["Ann."]},
        stdin=["What is my name?"],
        inherited=["\nuser: I am Ann\nassistant: Hi"],
    )
    await run_app(chat, port, {"system": "Be kind.", "first": "said before the fork"})
    (text,) = port.contexts.values()
    assert "I am Ann" in text
    assert "Be kind." not in text
    assert "before the fork" not in text


async def test_a_full_window_is_told_in_one_line_by_what_its_policy_did():
    def info(num_forgotten):
        return ContextInfo(ContextId(0), 9, 9, 1, 8192, WindowPolicy.SUMMARISE, num_forgotten)

    infos = [info(0), info(0), info(40), info(40), info(40), info(70)]
    port = ScriptedPort(
        {"llm.generate": ["A.", "B.", "C."], "ctx.info": infos}, stdin=["One", "Two", "Three"]
    )
    await run_app(chat, port, {"window": "summarise"})
    told = FULL[WindowPolicy.SUMMARISE]
    assert port.output == f"A.\n{told}\nB.\nC.\n{told}\n"
    assert port.calls_to("ctx.open") == [{"window": "summarise"}]


async def test_a_chat_slides_unless_told_otherwise():
    port = ScriptedPort({"llm.generate": ["A."]}, stdin=["One"])
    await run_app(chat, port)
    assert port.calls_to("ctx.open") == [{"window": "slide"}]
    with pytest.raises(InvalidArguments, match="window"):
        chat.check({"window": "wide"})


async def test_a_line_that_never_fits_leaves_the_conversation_as_it_was():
    def chat_turn(context, messages, reply):
        if len(messages[-1]["content"]) > 1000:
            raise ContextTooLong("too long")
        return port._ctx_chat(context, messages, reply)

    port = ScriptedPort(
        {"llm.generate": ["Hello.", "Yes."], "ctx.chat": [chat_turn] * 9},
        stdin=["Hi", "x" * 5000, "Still there?"],
    )
    await run_app(chat, port)
    assert port.output == f"Hello.\n{TOO_LONG}\nYes.\n"
    (text,) = port.contexts.values()
    assert "user: Hi\nassistant: Hello." in text

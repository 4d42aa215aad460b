"""The SDK against the test kit."""

import anyio
import pytest
from pydantic import BaseModel

from llmasos.apps import sdk
from llmasos.apps.sdk import AppError, Message, Proc, Session, app, gather
from llmasos.apps.testing import ScriptedPort, generation, run_app
from llmasos.kernel.abi import FinishReason, Sampling
from llmasos.kernel.errors import ContextTooLong, Failed, InvalidArguments
from llmasos.kernel.program import Program

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Params(BaseModel):
    topic: str
    lines: int = 3


@app(name="poet", summary="Writes.", syscalls=["fs.*"], version="1.2.3")
async def poet(proc: Proc, params: Params) -> int:
    await proc.print(params.topic, params.lines)
    return 7


@app(name="idle", summary="Does nothing.")
async def idle(proc: Proc) -> None:
    pass


class City(BaseModel):
    name: str
    people: int


async def test_an_app_is_a_program_with_a_manifest():
    program: Program = poet
    assert (program.info.name, program.info.version) == ("poet", "1.2.3")
    assert program.info.syscalls == ("fs.*",)
    assert set(program.info.parameters["properties"]) == {"topic", "lines"}


async def test_the_exit_code_is_what_main_returns_or_zero():
    port = ScriptedPort()
    assert await run_app(poet, port, {"topic": "rain"}) == 7
    assert port.output == "rain 3\n"
    assert await run_app(idle, port) == 0


async def test_check_names_every_problem_at_once():
    with pytest.raises(InvalidArguments, match=r"poet: topic: .*; lines: .*"):
        poet.check({"lines": "many"})


async def test_parameters_for_an_app_without_any_are_refused_by_name():
    with pytest.raises(InvalidArguments, match="colour: no such parameter"):
        idle.check({"colour": "red"})


@pytest.mark.parametrize("params", [{"topic": 1}, {}])
async def test_run_checks_too(params):
    with pytest.raises(InvalidArguments):
        await poet.run(ScriptedPort(), params)


def test_main_must_have_a_shape_that_can_be_run():
    with pytest.raises(TypeError, match="async def"):
        app(name="x", summary="")(lambda proc: None)
    with pytest.raises(TypeError, match="pydantic model"):

        @app(name="x", summary="")
        async def main(proc: Proc, params: dict) -> None: ...


async def test_a_context_opens_at_first_use_and_closes_at_the_end():
    port = ScriptedPort({"llm.generate": ["four"]})
    async with Proc(port).context() as context:
        assert await context.append("two and two is") == 4
        assert (await context.generate(max_tokens=5)).text == "four"
    assert port.closed == [0]
    await context.close()
    assert port.closed == [0]
    with pytest.raises(RuntimeError, match="closed"):
        await context.append("more")


async def test_a_context_is_opened_once_by_concurrent_users():
    port = ScriptedPort()
    context = Proc(port).context()
    await gather([context.info, context.info, context.info])
    assert len(port.calls_to("ctx.open")) == 1


async def test_temperature_and_seed_are_short_for_a_sampling():
    port = ScriptedPort({"llm.generate": ["a", "b"]})
    proc = Proc(port)
    await proc.generate("x", temperature=0.5, seed=3, stop=("\n",))
    await proc.generate("x", sampling=Sampling(top_k=4))
    first, second = port.calls_to("llm.generate")
    assert first["sampling"] == Sampling(temperature=0.5, seed=3)
    assert first["stop"] == ["\n"]
    assert second["sampling"] == Sampling(top_k=4)


async def test_generating_into_a_type_sends_its_schema_and_validates():
    port = ScriptedPort({"llm.generate": ['{"name": "Oslo", "people": 700000}']})
    city = await Proc(port).generate("Oslo as JSON: ", as_type=City)
    assert city == City(name="Oslo", people=700000)
    assert '"people"' in port.calls_to("llm.generate")[0]["grammar"].source


async def test_a_typed_reply_that_was_cut_off_says_so():
    port = ScriptedPort({"llm.generate": [generation('{"na', FinishReason.LENGTH)]})
    with pytest.raises(Failed, match="raise max_tokens"):
        await Proc(port).generate("", as_type=City)
    assert port.closed == [0]


async def test_choose_takes_the_likeliest():
    port = ScriptedPort({"llm.score": [[-3.0, -1.0, -2.0]]})
    assert await Proc(port).choose("It is", ["a", "b", "c"]) == "b"
    with pytest.raises(ValueError, match="nothing to choose"):
        await Proc(port).choose("It is", [])


async def test_a_session_sends_each_turn_once():
    port = ScriptedPort({"llm.generate": ["Hi.", "Bye."]})
    async with Proc(port).session(system="Be short.") as session:
        await session.ask("Hello")
        await session.ask("Farewell")
        assert port.contexts[0].count("Be short.") == 1
        assert port.contexts[0].endswith("assistant: Hi.\nuser: Farewell\nassistant: Bye.")


async def test_a_turn_that_failed_leaves_the_system_prompt_to_be_said():
    port = ScriptedPort({"ctx.chat": [ContextTooLong("too long")], "llm.generate": ["Hi."]})
    session = Proc(port).session(system="Be short.")
    with pytest.raises(ContextTooLong):
        await session.ask("x" * 100)
    await session.ask("Hello")
    assert "system: Be short." in port.contexts[0]


async def test_a_fork_of_a_session_goes_its_own_way():
    port = ScriptedPort({"llm.generate": ["one", "two"]})
    session = Proc(port).session()
    await session.say("Hello")
    twin = await session.fork()
    await session.context.generate()
    await twin.context.generate()
    assert port.contexts[0].endswith("one")
    assert port.contexts[1].endswith("two")


async def test_a_stream_gives_the_pieces_in_order_and_then_the_result():
    port = ScriptedPort({"llm.generate": ["one two three four"]})
    async with Proc(port).session().stream("Count") as reply:
        pieces = [piece async for piece in reply]
    assert "".join(pieces) == "one two three four" == reply.result.text
    assert len(pieces) > 1


async def test_what_a_slow_consumer_missed_comes_as_one_piece():
    port = ScriptedPort({"llm.generate": ["one two three four"]})
    async with Proc(port).context().stream() as reply:
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert [piece async for piece in reply] == ["one two three four"]


async def test_leaving_a_stream_early_cancels_the_generation():
    ended = []
    begun = anyio.Event()

    async def endless(**_):
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    port = ScriptedPort({"llm.generate": [endless]})
    async with Proc(port).context().stream():
        await begun.wait()
    assert ended == [True]


async def test_a_failure_of_the_generation_reaches_the_reader_as_itself():
    port = ScriptedPort({"llm.generate": [Failed("The core broke.")]})
    async with Proc(port).context().stream() as reply:
        with pytest.raises(Failed, match="core broke"):
            await anext(reply)


async def test_an_error_in_the_body_of_a_stream_is_not_wrapped():
    port = ScriptedPort({"llm.generate": ["one two"]})
    with pytest.raises(AppError, match="enough"):
        async with Proc(port).context().stream():
            raise AppError("enough")


async def test_a_stream_within_a_cancelled_scope_ends_with_it():
    port = ScriptedPort({"llm.generate": [lambda **_: anyio.sleep_forever()]})
    with anyio.move_on_after(0.01) as scope:
        async with Proc(port).context().stream() as reply:
            async for _ in reply:
                pass
    assert scope.cancelled_caught


async def test_a_stream_must_be_entered_and_has_no_result_before_its_end():
    stream = Proc(ScriptedPort()).context().stream()
    with pytest.raises(RuntimeError, match="async with"):
        await anext(stream)
    with pytest.raises(RuntimeError, match="pieces"):
        _ = stream.result


async def test_children_are_spawned_waited_for_and_killed():
    outcome = {"code": 3, "message": "no", "output": "text"}
    port = ScriptedPort(
        {"proc.spawn": [9], "proc.fork": [10], "proc.wait": [outcome], "proc.kill": [None]}
    )
    child = await Proc(port).spawn("chat", {"system": "x"}, syscalls=["io.*"])
    assert (await child.wait()).output == "text"
    assert port.calls_to("proc.spawn")[0]["syscalls"] == ["io.*"]
    twin = await Proc(port).fork()
    await twin.kill("KILL")
    assert port.calls_to("proc.kill") == [{"pid": 10, "signal": "KILL"}]


async def test_a_fork_finds_the_contexts_it_inherited():
    port = ScriptedPort({"llm.generate": ["yes"]}, inherited=["\nuser: Hi\nassistant: Hello"])
    (context,) = await Proc(port).inherited()
    await Session(context).ask("Are you there?")
    assert port.contexts[0].endswith("Hello\nuser: Are you there?\nassistant: yes")


async def test_earlier_turns_can_be_recalled():
    port = ScriptedPort()
    session = Proc(port).session(system="S")
    await session.recall([Message("user", "a"), Message("assistant", "b")])
    assert port.contexts[0] == "\nsystem: S\nuser: a\nassistant: b"


async def test_gather_keeps_the_order_and_raises_the_first_error_bare():
    async def value(number):
        await anyio.lowlevel.checkpoint()
        return number

    async def fail():
        raise Failed("one of them")

    assert await gather([lambda: value(1), lambda: value(2)]) == [1, 2]
    with pytest.raises(Failed):
        await gather([lambda: value(1), fail])


async def test_a_call_that_nobody_scripted_fails_the_test():
    with pytest.raises(AssertionError, match="calc"):
        await Proc(ScriptedPort()).call("calc", expression="1")


async def test_replies_that_were_not_wanted_are_told():
    port = ScriptedPort({"calc": ["1", "2"]})
    await Proc(port).call("calc")
    assert port.unused == {"calc": ["2"]}


def test_the_public_names_are_these():
    assert sorted(sdk.__all__) == sdk.__all__
    assert {"app", "Proc", "Session", "ContextHandle", "gather"} <= set(sdk.__all__)


async def test_an_adapter_is_named_where_a_context_is_opened_and_only_if_there_is_one():
    port = ScriptedPort({"llm.generate": ["Yes."], "llm.score": [[-1, -2], [-1, -2]]})
    proc = Proc(port)
    await proc.generate("Is it?", adapter="tools", max_tokens=3)
    await proc.choose("Is it?", ["yes", "no"], adapter="none")
    await proc.score("Is it?", ["yes", "no"])
    async with proc.session(adapter="tools", window="slide"):
        pass
    assert port.calls_to("ctx.open") == [
        {"adapter": "tools"},
        {"adapter": "none"},
        {},
        {"window": "slide", "adapter": "tools"},
    ]


async def test_an_app_finds_out_which_adapters_there_are_and_starts_others_with_one():
    port = ScriptedPort({"proc.spawn": [7, 8]})
    proc = Proc(port)
    assert await proc.adapters() == []
    await proc.spawn("poet", adapter="tools")
    await proc.spawn("poet")
    with_one, without = port.calls_to("proc.spawn")
    assert with_one["adapter"] == "tools"
    assert "adapter" not in without

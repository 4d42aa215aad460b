"""The agent's loop and both policies against the test kit: scores and replies are scripted."""

import json

import pytest

from llmasos.apps.agent.app import agent
from llmasos.apps.agent.arguments import required_only, walk
from llmasos.apps.agent.hints import ANSWER, hint_for, offered
from llmasos.apps.agent.passages import split_passages
from llmasos.apps.agent.scored import rank
from llmasos.apps.agent.transcript import ToolCall, one_line, read_result
from llmasos.apps.sdk import AppError, Proc
from llmasos.apps.testing import WINDOW, ScriptedPort, generation, run_app
from llmasos.kernel.abi import Effect, FinishReason, SyscallInfo
from llmasos.kernel.errors import (
    ContextTooLong,
    Failed,
    Interrupted,
    InvalidArguments,
    PermissionDenied,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def tool(name, effect=Effect.READ, description="A tool.", **properties):
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
    }
    return SyscallInfo(name, description, parameters, effect, True)


TOOLS = [
    tool("calc", expression="string"),
    tool("fs.read", path="string"),
    tool("fs.list"),
    tool("search", query="string"),
    tool("time.now"),
    tool("fs.write", Effect.WRITE, path="string", text="string"),
    tool("weather", description="Tell the weather.", city="string"),
]
LISTED = {
    "text": "sub/\nnotes.txt (9 B)\n",
    "entries": [{"name": "sub", "kind": "folder"}, {"name": "notes.txt", "kind": "file"}],
}
EMPTY = {"text": "(empty folder)\n", "entries": []}


class Model:
    """Scores a request by the list it stands in: `kinds` are the best ones, in order."""

    def __init__(self, *kinds):
        self.kinds = kinds
        self.port = None

    def __call__(self, context, candidates):
        prompt = self.port.contexts[context]
        for rank_, kind in enumerate(self.kinds):
            if f"for the tool {kind}:" in prompt or prompt.startswith(f"Text: {kind}"):
                return [-10.0 - rank_] * len(candidates)
        return [-30.0] * len(candidates)


def port_for(*kinds, replies=None, tools=TOOLS):
    model = Model(*kinds)
    port = ScriptedPort({"llm.score": [model] * 200, **(replies or {})}, tools=tools)
    model.port = port
    return port


async def run(port, task, **params):
    code = await run_app(agent, port, {"task": task, "tools": ["*"], **params})
    assert code == 0
    return port.output


async def test_without_tools_it_answers_in_the_models_words():
    port = ScriptedPort({"llm.generate": ["Paris."]})
    assert await run(port, "What is the capital of France?", tools=[]) == "Paris.\n"
    assert not port.calls_to("llm.score")


async def test_the_context_comes_before_the_request():
    port = ScriptedPort({"llm.generate": ["Short."]})
    await run(port, "Summarise this", tools=[], context="A long text")
    turns = port.calls_to("ctx.chat")[-1]["messages"]
    assert turns[-1]["content"] == "A long text\n\nSummarise this"


async def test_a_sum_is_calculated_and_never_retold():
    port = port_for("calc", replies={"calc": [{"text": "1591"}]})
    output = await run(port, "What is 37 * 43?")
    assert output == '→ calc(expression="37 * 43")\n← 1591\n37 * 43 = 1591\n'
    assert not port.calls_to("llm.generate")


async def test_quiet_prints_the_answer_alone():
    port = port_for("calc", replies={"calc": [{"text": "1591"}]})
    assert await run(port, "What is 37 * 43?", quiet=True) == "37 * 43 = 1591\n"


async def test_a_word_problem_is_read_by_the_model_in_the_requests_numbers():
    replies = {"llm.generate": [" 24 * 13\n"], "calc": [{"text": "312"}]}
    port = port_for("calc", replies=replies)
    output = await run(port, "A box holds 24 bottles. How many are in 13 boxes?")
    assert output.endswith("24 * 13 = 312\n")
    assert "(24|13)" in port.calls_to("llm.generate")[0]["grammar"].source


async def test_a_tool_without_anything_to_fill_its_arguments_is_passed_over():
    port = port_for("calc", ANSWER, replies={"llm.generate": ["I cannot say."]})
    assert await run(port, "How many stars are there?") == "I cannot say.\n"


async def test_the_time_is_told_as_the_clock_tells_it():
    port = port_for("time.now", replies={"time.now": [{"text": "Monday, 2026-11-23"}]})
    assert (await run(port, "What day is it?")).endswith("It is Monday, 2026-11-23.\n")


async def test_an_unknown_place_is_repaired_by_the_local_time():
    replies = {"time.now": [InvalidArguments("There is no zone."), {"text": "Monday"}]}
    output = await run(port_for("time.now", replies=replies), "What time is it in Narnia?")
    assert "← error: There is no zone." in output
    assert output.endswith("It is Monday.\n")


async def test_a_file_is_shown_as_it_is():
    replies = {"fs.list": [LISTED, EMPTY], "fs.read": [{"text": "a\nb\n"}]}
    port = port_for("fs.read", "show", replies=replies)
    output = await run(port, "Show me notes.txt")
    assert output == '→ fs.read(path="notes.txt")\n← a ⏎ b\na\nb\n'


async def test_a_question_is_answered_with_the_passage():
    replies = {"fs.list": [LISTED, EMPTY], "fs.read": [{"text": "item,count\nhammer,2\nsaw,1\n"}]}
    port = port_for("fs.read", "ask", "saw", replies=replies)
    output = await run(port, "According to notes.txt, how many saws are there?", quiet=True)
    assert output == "notes.txt says:\nitem,count\nsaw,1\n"


async def test_a_missing_file_is_told_and_other_tools_are_tried():
    replies = {
        "fs.list": [EMPTY] * 5,
        "fs.read": [Failed("There is no file gone.txt.")],
        "search": [{"text": "Nothing found."}],
    }
    port = port_for("fs.read", "search", replies=replies)
    output = await run(port, "Show me gone.txt")
    assert "← error: There is no file gone.txt." in output
    assert output.endswith("There is no file gone.txt.\nNothing found.\n")


async def test_when_nothing_worked_the_reason_is_the_answer():
    replies = {"calc": [Failed("Nothing can be divided by zero.")]}
    output = await run(port_for("calc", replies=replies), "What is 7 / 0?", quiet=True)
    assert output == "That did not work: Nothing can be divided by zero.\n"


async def test_a_file_is_never_written_unless_the_request_says_so():
    replies = {"llm.generate": ["I cannot."] * 3, "fs.list": [EMPTY] * 9}
    port = port_for("fs.write", replies=replies)
    await run(port, "Delete notes.txt")
    assert not port.calls_to("fs.write")


async def test_writing_is_no_way_out_of_a_failed_call():
    replies = {"fs.list": [EMPTY] * 9, "fs.read": [Failed("There is no write.txt.")]}
    port = port_for("fs.read", "fs.write", replies=replies)
    output = await run(port, "Show what they write in write.txt", quiet=True)
    assert output == "That did not work: There is no write.txt.\n"


async def test_a_text_is_written_where_that_is_asked():
    port = port_for("fs.write", replies={"fs.write": [{"text": "Wrote a.txt."}]})
    assert (await run(port, "Write hello to a.txt", quiet=True)) == "Wrote a.txt.\n"
    assert port.calls_to("fs.write") == [{"path": "a.txt", "text": "hello\n"}]


async def test_a_summary_is_in_the_models_words():
    replies = {
        "fs.list": [LISTED, EMPTY],
        "fs.read": [{"text": "One.\nTwo.\n"}],
        "llm.generate": ["Numbers."],
    }
    port = port_for("fs.read", "sum up", replies=replies)
    assert (await run(port, "Summarise notes.txt", quiet=True)) == "Numbers.\n"


async def test_a_rounded_result_is_not_called_equal():
    port = port_for("calc", replies={"calc": [{"text": "≈ 0.333"}]})
    assert (await run(port, "1 / 3", quiet=True)) == "1 / 3 ≈ 0.333\n"


async def test_rounds_are_bounded():
    replies = {"time.now": [Failed("no")] * 9}
    port = port_for("time.now", replies=replies)
    await run(port, "What time is it in Narnia?", max_rounds=1)
    assert len(port.calls_to("time.now")) == 1


async def test_an_unknown_tool_gets_arguments_under_its_schema():
    replies = {"llm.generate": ['{"city": "Oslo"}', "It rains."], "weather": ["rain"]}
    port = port_for("weather", "ask", replies=replies)
    output = await run(port, "Do I need an umbrella?")
    assert '→ weather(city="Oslo")' in output
    assert "rain" in output.splitlines()[-1]


async def test_arguments_that_were_cut_off_make_no_call():
    cut = generation('{"city": "Os', FinishReason.LENGTH)
    port = port_for("weather", replies={"llm.generate": [cut, "No idea."]})
    assert await run(port, "Umbrella?") == "No idea.\n"


async def test_a_tool_that_was_taken_away_is_an_error_fed_back():
    port = port_for("calc", replies={"calc": [PermissionDenied("This process may not.")]})
    assert (await run(port, "What is 1 + 1?")).endswith(
        "That did not work: This process may not.\n"
    )


async def test_an_interrupt_ends_the_agent():
    port = port_for("calc", replies={"calc": [Interrupted("stop")]})
    with pytest.raises(Interrupted):
        await run(port, "What is 1 + 1?")


async def test_a_pattern_that_fits_no_tool_names_the_ones_there_are():
    with pytest.raises(AppError, match=r"'clac'; this process may use: calc, fs.read"):
        await run(port_for("calc"), "What is 1 + 1?", tools=["clac"])


@pytest.mark.parametrize("bad", [{}, {"task": "  "}, {"task": "x", "policy": "luck"}])
def test_a_bad_request_is_refused(bad):
    with pytest.raises(InvalidArguments, match="agent: "):
        agent.check(bad)


async def test_material_beyond_the_window_is_clipped_and_that_is_said():
    def chat(context, messages, reply):
        if len(messages[-1]["content"]) > WINDOW:
            raise ContextTooLong("too long")
        return port._ctx_chat(context, messages, reply)

    port = ScriptedPort({"ctx.chat": [chat] * 40, "llm.generate": ["Much."]})
    output = await run(port, "Summarise", tools=[], context="word " * 100_000)
    assert output.startswith("[Only the beginning fitted")
    assert "of 500,000 characters.]" in port.calls_to("ctx.chat")[-1]["messages"][-1]["content"]


async def test_a_request_that_never_fits_says_what_to_do():
    port = ScriptedPort({"ctx.chat": [ContextTooLong("too long")] * 40})
    with pytest.raises(AppError, match="shorten it"):
        await run(port, "x" * 9000, tools=[])


def call(name, **args):
    return [f'{{"tool": "{name}", "arguments": ', json.dumps(args)]


async def test_the_schema_policy_calls_until_the_model_answers():
    replies = {
        "llm.generate": [*call("weather", city="Oslo"), '{"answer": true}', "It rains in Oslo."],
        "weather": ["rain"],
    }
    port = ScriptedPort(replies, tools=TOOLS)
    output = await run(port, "Umbrella in Oslo?", policy="schema")
    assert output == '→ weather(city="Oslo")\n← rain\nIt rains in Oslo.\n'
    (text,) = port.contexts.values()
    assert 'weather(city="Oslo") returned:\nrain' in text


async def test_the_schema_policy_is_told_of_errors_and_can_repair():
    replies = {
        "llm.generate": [
            *call("calc", expression="1 +"),
            *call("calc", expression="1 + 1"),
            '{"answer": true}',
            "Two.",
        ],
        "calc": [InvalidArguments("Something is missing."), {"text": "2"}],
    }
    port = ScriptedPort(replies, tools=TOOLS)
    assert (await run(port, "1 + 1", policy="schema", quiet=True)) == "Two.\n"
    assert "failed:\nSomething is missing." in next(iter(port.contexts.values()))


async def test_a_call_repeated_word_for_word_ends_the_rounds():
    same = call("calc", expression="1")
    port = ScriptedPort(
        {"llm.generate": [*same, *same, "One."], "calc": [{"text": "1"}]}, tools=TOOLS
    )
    assert (await run(port, "1", policy="schema", quiet=True)) == "One.\n"
    assert len(port.calls_to("calc")) == 1


def test_what_changes_something_must_lead():
    tools = {entry.name: entry for entry in TOOLS}
    assert rank({"fs.write": -10.0, ANSWER: -11.0}, tools)[0] == ANSWER
    assert rank({"fs.write": -10.0, ANSWER: -13.0}, tools)[0] == "fs.write"
    assert rank({"calc": -10.0, ANSWER: -19.0}, tools) == ["calc"]


def test_a_tool_that_another_covers_is_not_offered():
    names = [entry.name for entry in offered([tool("fs.grep"), tool("search")])]
    assert names == ["search"]
    assert offered([tool("fs.grep")])
    assert hint_for(tool("x", description="Do this.\nMore.")).examples == ("Do this",)


async def test_the_walk_stops_where_it_may_not_list():
    port = ScriptedPort({"fs.list": [LISTED, PermissionDenied("no")]})
    assert await walk(Proc(port)) == (["notes.txt"], ["sub"])


def test_optional_arguments_are_left_out():
    schema = {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"]}
    assert set(required_only(schema)["properties"]) == {"a"}
    assert required_only({"type": "object", "properties": {}})["properties"] == {}


def test_results_read_as_text():
    assert read_result({"text": "a\n", "note": "Cut."}) == "a\nCut."
    assert read_result(["ä", 1]) == '["ä", 1]'
    assert read_result("plain") == "plain"
    assert one_line("a\n\n b ") == "a ⏎ b"
    assert one_line("x" * 1000).endswith("… (1,000 characters)")
    assert str(ToolCall("f", {"a": 'q"'})) == 'f(a="q\\"")'


def test_passages_are_sentences_and_lines_without_headings():
    assert split_passages("# T\nOne. Two!\n\n- three\n---\n") == ["One.", "Two!", "- three"]
    assert [len(part) for part in split_passages("x" * 900)] == [400, 400, 100]

"""The agent of `benchmarks.journal_peers` as a graph of two nodes, kept by LangGraph's SQLite checkpointer.

Set up as LangGraph's page on durable execution says: a checkpointer, a thread, side effects in tasks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.func import task
from langgraph.graph import END, START, MessagesState, StateGraph

from benchmarks.journal_world import AFTER, QUESTION, REPLIED, REPLY, TOOLS, World


def run(world: World, durability: str, threads: Sequence[str], rounds: int) -> None:
    """Run the agent in each thread; goes on with one that had begun."""
    saver, graph = _graph(world, rounds)
    for thread in threads:
        config = {"configurable": {"thread_id": thread}, "recursion_limit": 10 * rounds + 25}
        has_begun = saver.get_tuple(config) is not None
        start = None if has_begun else {"messages": [HumanMessage(QUESTION)]}
        graph.invoke(start, config, durability=durability)
    saver.conn.close()


def _graph(world: World, rounds: int) -> tuple[Any, Any]:
    script = list(TOOLS) * rounds

    def model(state: MessagesState) -> dict[str, Any]:
        num_calls = sum(isinstance(message, ToolMessage) for message in state["messages"])
        if num_calls:
            world.die(AFTER, script[num_calls - 1])
        world.note(REPLIED)
        calls = []
        if num_calls < len(script):
            calls = [{"name": script[num_calls], "args": {}, "id": f"call-{num_calls}"}]
        return {"messages": [AIMessage(REPLY, tool_calls=calls)]}

    @task
    def use(name: str) -> str:
        return world.use(name)

    def tools(state: MessagesState) -> dict[str, Any]:
        [call] = state["messages"][-1].tool_calls
        return {"messages": [ToolMessage(use(call["name"]).result(), tool_call_id=call["id"])]}

    def after_model(state: MessagesState) -> str:
        return "tools" if state["messages"][-1].tool_calls else END

    builder = StateGraph(MessagesState)
    builder.add_node("model", model)
    builder.add_node("tools", tools)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", after_model, ["tools", END])
    builder.add_edge("tools", "model")
    saver = SqliteSaver(sqlite3.connect(world.folder / "langgraph.db", check_same_thread=False))
    return saver, builder.compile(checkpointer=saver)

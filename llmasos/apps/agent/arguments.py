"""Arguments of tool calls, filled so that a small model can go wrong as little as possible.

For the tools that it knows, what can be copied from the request is copied, names are chosen among those
that exist, and the model decides only what is left. For any other tool it writes JSON under the tool's
schema, of which optional arguments are left out: it would invent them.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from llmasos.apps.agent import expression, names
from llmasos.apps.agent.transcript import Transcript
from llmasos.apps.sdk import Proc, SyscallError, json_grammar, regex_grammar
from llmasos.kernel.abi import FinishReason, SyscallInfo

MAX_FOLDERS = 50
MAX_FILES = 2000
MAX_ARGUMENT_TOKENS = 400

Arguments = dict[str, Any]

EXPRESSIONS = (
    ("What is 100 minus 37?", "100 - 37"),
    ("How much is 25% of 80?", "25 / 100 * 80"),
    ("Add 14, 19 and 33", "14 + 19 + 33"),
    ("A ticket costs 9 euros. What do 5 tickets cost?", "5 * 9"),
    ("I had 50 apples and gave away 18. How many are left?", "50 - 18"),
    ("Share 96 sweets between 8 children", "96 / 8"),
    ("Anna is 40 and Ben is 28. How much older is Anna?", "40 - 28"),
    ("A train goes 90 km an hour for 4 hours. How far does it go?", "90 * 4"),
    ("I paid 4.50, 2.25 and 10 euros. What is the total?", "4.50 + 2.25 + 10"),
    ("Tom saves 15 euros a week. How much does he have after 12 weeks?", "15 * 12"),
    ("She has 12 red and 15 blue pens. How many in all?", "12 + 15"),
    ("A jar holds 60 beans and 22 are eaten. How many remain?", "60 - 22"),
    ("6 pens cost 18 euros. What does one pen cost?", "18 / 6"),
)


async def fill(proc: Proc, tool: SyscallInfo, transcript: Transcript) -> Arguments | None:
    """Arguments for a call of this tool, or None where the request has nothing to fill them with."""
    filler = _FILLERS.get(tool.name)
    if filler is not None:
        return await filler(proc, transcript)
    return await _by_schema(proc, tool, transcript)


async def _calc(proc: Proc, transcript: Transcript) -> Arguments | None:
    found = expression.find_expression(transcript.task)
    if found is None:
        found = await _understood(proc, transcript.task)
    return None if found is None else {"expression": found}


async def _understood(proc: Proc, request: str) -> str | None:
    """The model's reading of a word problem, in the request's own numbers."""
    numbers = expression.numbers_in(expression.normalise(request))
    if not numbers:
        return None
    shots = "".join(f"Question: {asked}\nExpression: {told}\n" for asked, told in EXPRESSIONS)
    question = " ".join(request.split())
    reply = await proc.generate(
        f"{shots}Question: {question}\nExpression:",
        grammar=regex_grammar(expression.number_grammar(numbers)),
        max_tokens=80,
    )
    return reply.text.strip() if reply.finish is FinishReason.STOP else None


async def _read(proc: Proc, transcript: Transcript) -> Arguments | None:
    files, _ = await walk(proc)
    tried = {step.call.args.get("path") for step in transcript.steps}
    path = names.closest_file(transcript.task, [path for path in files if path not in tried])
    return None if path is None or path in tried else {"path": path}


async def _list(proc: Proc, transcript: Transcript) -> Arguments | None:
    _, folders = await walk(proc)
    return {"path": names.closest_folder(transcript.task, folders)}


async def _search(_: Proc, transcript: Transcript) -> Arguments | None:
    return {"query": names.query_words(transcript.task)}


async def _grep(_: Proc, transcript: Transcript) -> Arguments | None:
    return {"text": names.query_words(transcript.task)}


async def _remove(_: Proc, transcript: Transcript) -> Arguments | None:
    paths = names.mentioned_paths(transcript.task)
    return {"path": paths[0]} if len(paths) == 1 else None


async def _move(_: Proc, transcript: Transcript) -> Arguments | None:
    paths = names.mentioned_paths(transcript.task)
    return {"path": paths[0], "to": paths[1]} if len(paths) == 2 else None


async def _write(proc: Proc, transcript: Transcript) -> Arguments | None:
    paths = names.mentioned_paths(transcript.task)
    if not paths:
        return None
    path = paths[-1]
    literal = names.literal_text(transcript.task, path)
    if literal is None and transcript.context:
        literal = transcript.context
    if literal is None:
        literal = await _composed(proc, names.without_path(transcript.task, path))
    return {"path": path, "text": literal.rstrip("\n") + "\n"}


async def _composed(proc: Proc, task: str) -> str:
    async with proc.session() as session:
        return (await session.ask(task, max_tokens=MAX_ARGUMENT_TOKENS)).text.strip()


async def _time(_: Proc, transcript: Transcript) -> Arguments | None:
    place = names.named_place(transcript.task)
    return {"timezone": place} if place and not transcript.steps else {}


async def _by_schema(proc: Proc, tool: SyscallInfo, transcript: Transcript) -> Arguments | None:
    schema = required_only(tool.parameters)
    if not schema["properties"]:
        return {}
    wanted = "\n".join(
        f"- {name}: {part.get('description', part.get('type', 'any'))}"
        for name, part in schema["properties"].items()
    )
    last = transcript.last
    trouble = f"\nThe last try, {last.call}, failed: {last.text}" if last and last.failed else ""
    reply = await proc.generate(
        f"The tool {tool.name}: {tool.description}\nIts arguments:\n{wanted}\n{trouble}"
        f"Request: {transcript.task}\nArguments as JSON:\n",
        grammar=json_grammar(schema),
        max_tokens=MAX_ARGUMENT_TOKENS,
    )
    if reply.finish is not FinishReason.STOP:
        return None
    arguments: Arguments = json.loads(reply.text)
    return arguments


def required_only(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's schema without its optional arguments, closed to any others."""
    required = schema.get("required", [])
    properties = {name: schema["properties"][name] for name in required}
    return {**schema, "properties": properties, "additionalProperties": False}


async def walk(proc: Proc) -> tuple[list[str], list[str]]:
    """Files and folders below the root, nearest first, through `fs.list`; bounded.

    Where the process may not list, there are none to choose among.
    """
    files: list[str] = []
    folders: list[str] = []
    queue = ["."]
    for folder in queue:
        try:
            listed = await proc.call("fs.list", path=folder)
        except SyscallError:
            continue
        for entry in listed["entries"]:
            path = entry["name"] if folder == "." else f"{folder}/{entry['name']}"
            if entry["kind"] == "file":
                files.append(path)
            elif entry["kind"] == "folder":
                folders.append(path)
                queue.append(path)
        if len(queue) > MAX_FOLDERS or len(files) > MAX_FILES:
            break
    return files, folders


_FILLERS: Mapping[str, Callable[[Proc, Transcript], Awaitable[Arguments | None]]] = {
    "calc": _calc,
    "fs.read": _read,
    "fs.list": _list,
    "fs.grep": _grep,
    "fs.write": _write,
    "fs.append": _write,
    "fs.remove": _remove,
    "fs.move": _move,
    "search": _search,
    "time.now": _time,
}

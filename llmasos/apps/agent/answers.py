"""Answers of the scored policy: a result shown, a passage quoted, or the model's own words."""

from __future__ import annotations

from collections.abc import Callable

from llmasos.apps.agent.classify import Classifier
from llmasos.apps.agent.fitting import clip, say_fitting
from llmasos.apps.agent.hints import ASK, READING, SHOW
from llmasos.apps.agent.passages import find_passages
from llmasos.apps.agent.policy import Write
from llmasos.apps.agent.sayings import Sayings
from llmasos.apps.agent.transcript import Step, Transcript
from llmasos.apps.sdk import Proc

MAX_SHOWN_CHARS = 20_000
CLIPPED = "[Only the beginning fitted the model's window.]\n"

_SELF_EXPLAINING = (
    "calc time.now search fs.list fs.glob fs.grep fs.write fs.append fs.remove fs.move"
)
SELF_EXPLAINING = frozenset(_SELF_EXPLAINING.split())
"""Tools whose result is the answer."""


def present(step: Step) -> str:
    """A result as a sentence for a person, word for word what the tool said."""
    text = clip(step.text.rstrip(), MAX_SHOWN_CHARS)
    if step.call.tool == "calc" and "=" not in text:
        equals = "" if text.startswith("≈") else "= "
        return f"{step.call.args['expression']} {equals}{text}"
    if step.call.tool == "time.now":
        return f"It is {text}."
    if step.call.tool == "fs.list":
        return f"{_counted(step)}:\n{text}"
    return text


async def answer_plainly(
    proc: Proc, transcript: Transcript, sayings: Sayings, write: Write
) -> None:
    """The model's own words on the request and the text that came with it."""

    def build(material: str) -> str:
        return f"{material}\n\n{transcript.task}" if material else transcript.task

    await _in_own_words(proc, build, transcript.context, sayings, write)


async def answer_reading(
    proc: Proc, transcript: Transcript, sayings: Sayings, write: Write
) -> None:
    """An answer from what was read: all of it, the passage asked for, or a summary."""
    step = transcript.results[-1]
    source = str(step.call.args.get("path", step.call.tool))
    scores = await Classifier(proc, READING).scores(transcript.task)
    kind = max(scores, key=lambda name: scores[name])
    if kind == SHOW or not step.text.strip():
        await write(clip(step.text.rstrip(), MAX_SHOWN_CHARS) or f"{source} is empty.")
    elif kind == ASK:
        await write(await _quoted(proc, step.text, transcript.task, source))
    else:
        await _in_own_words(proc, _summary_of(source, transcript.task), step.text, sayings, write)


async def _quoted(proc: Proc, text: str, question: str, source: str) -> str:
    passages = await find_passages(proc, text, question)
    if not passages:
        return text.rstrip()
    header = _table_header(text)
    lines = [header, *passages] if header and header not in passages else passages
    return f"{source} says:\n" + "\n".join(lines)


def _table_header(text: str) -> str | None:
    """The first line of a text that looks like a table; its rows mean nothing without it."""
    first, _, rest = text.partition("\n")
    second = rest.partition("\n")[0]
    for mark in ("\t", ",", ";", "|"):
        if first.count(mark) and first.count(mark) == second.count(mark):
            return first.strip()
    return None


def _summary_of(source: str, task: str) -> Callable[[str], str]:
    def build(material: str) -> str:
        return f"{source}:\n\n{material}\n\nUse only the text above. {task}"

    return build


async def _in_own_words(
    proc: Proc, build: Callable[[str], str], material: str, sayings: Sayings, write: Write
) -> None:
    async with proc.session(system=sayings.system) as session:
        if await say_fitting(session, build, material, reserve=sayings.max_tokens):
            await write(CLIPPED)
        options = {"max_tokens": sayings.max_tokens, "sampling": sayings.sampling}
        async with session.context.stream(**options) as pieces:  # type: ignore[arg-type]
            async for piece in pieces:
                await write(piece)


def _counted(step: Step) -> str:
    entries = step.data["entries"] if isinstance(step.data, dict) else []
    num_folders = sum(entry["kind"] == "folder" for entry in entries)
    num_files = len(entries) - num_folders
    where = step.call.args.get("path", ".")
    place = "here" if where == "." else f"in {where}"
    return f"{_plural(num_files, 'file')} and {_plural(num_folders, 'folder')} {place}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

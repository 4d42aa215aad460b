"""The `support` app: what it can be asked to do. Each is in a module that is loaded when it is wanted."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmasos.apps.sdk import Proc, app

if TYPE_CHECKING:
    from llmasos.apps.support.desk import Desk
    from llmasos.apps.support.dialogue import Dialogue, Setting
    from llmasos.apps.support.records import Transcript


class Params(BaseModel):
    """A desk, and either one customer's conversation (the default), many, an evaluation, or the figures."""

    model_config = ConfigDict(extra="forbid")

    base: Annotated[str, Field(description="The folder that has support.yaml")] = "."
    customer: Annotated[
        str, Field(pattern=r"^[\w.@-]{1,60}$", description="Whose orders and history it may see")
    ] = "guest"
    said: Annotated[
        list[str], Field(description="The customer's texts; default: lines of standard input")
    ] = Field(default_factory=list)
    wording: Annotated[
        Literal["quote", "model"],
        Field(
            description="quote: passages as they stand; model: in its own words, where borne out"
        ),
    ] = "quote"
    records: Annotated[
        str | None, Field(description="Folder for transcripts and figures; default: none are kept")
    ] = None
    chats: Annotated[
        str | None,
        Field(description="JSONL of `customer` and `turns`: many at once, a process each"),
    ] = None
    eval: Annotated[str | None, Field(description="JSONL of cases to measure the desk on")] = None
    trials: Annotated[int, Field(ge=1, le=20, description="Of each case, in other spellings")] = 4
    figures: Annotated[bool, Field(description="Print what `records` says so far")] = False
    today: Annotated[dt.date | None, Field(description="The day that checks count from")] = None


@app(
    name="support",
    summary="Customer service over a knowledge base and business flows.",
    syscalls=("fs.*", "memory.*", "table.*", "embed", "time.now"),
)
async def support(proc: Proc, params: Params) -> None:
    """Do the one thing that the parameters ask for."""
    from llmasos.apps.support import crowd, evaluation, records
    from llmasos.apps.support.desk import Desk

    if params.figures:
        await records.print_figures(proc, params.records or f"{params.base}/records")
    elif params.eval is not None:
        await evaluation.evaluate(proc, params)
    elif params.chats is not None:
        await crowd.serve(proc, params)
    else:
        await converse(proc, await Desk.load(proc, params.base), params)


async def converse(proc: Proc, desk: Desk, params: Params) -> None:
    """One customer, from the greeting to the rating."""
    from llmasos.apps.support import records
    from llmasos.apps.support.dialogue import Dialogue

    setting = await setting_for(proc, desk, params)
    known = await records.recall(proc, params.customer) if params.records else None
    language = known.language if known and known.language else ""
    dialogue, transcript = Dialogue(proc, desk, setting, language), records.Transcript()
    await _talk(proc, dialogue, transcript, params)
    stars = await _rating(proc, dialogue, params)
    if dialogue.is_handed_over:
        await proc.print(f"\nHand-over:\n{records.summary_of(dialogue, transcript)}", end="")
        if known and known.history:
            await proc.print("Before:\n" + "".join(f"- {text}\n" for text in known.history), end="")
    if params.records:
        await records.keep(proc, params.records, dialogue, transcript, stars)
        await records.remember(proc, dialogue, stars)


async def setting_for(proc: Proc, desk: Desk, params: Params) -> Setting:
    """The conversation's setting; a forked child has the model's opening from its parent."""
    from llmasos.apps.support.dialogue import Setting
    from llmasos.apps.support.wording import open_wording

    wording = None
    if params.wording == "model":
        inherited = await proc.inherited()
        wording = inherited[0] if inherited else proc.context()
        if not inherited:
            await open_wording(wording, desk.config.name)
    return Setting(params.base, params.customer, today=params.today, wording=wording)


async def _talk(proc: Proc, dialogue: Dialogue, transcript: Transcript, params: Params) -> None:
    waiting = list(params.said)
    while not dialogue.is_handed_over:
        line = (waiting.pop(0) if waiting else None) if params.said else await proc.read_line()
        if line is None:
            return
        if not line.strip():
            continue
        transcript.add("customer", line)
        for text in await dialogue.take(line):
            transcript.add("desk", text)
            await proc.print(text)


async def _rating(proc: Proc, dialogue: Dialogue, params: Params) -> int | None:
    """What the customer thinks of it, where records are kept and somebody is there to ask."""
    if not params.records or params.said:
        return None
    from llmasos.apps.support.sayings import say

    await proc.print(say("rate", dialogue.language))
    answer = (await proc.read_line() or "").strip()
    return int(answer) if answer in ("1", "2", "3", "4", "5") else None

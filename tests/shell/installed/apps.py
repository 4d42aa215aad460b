"""Apps that are run in the kernel's interpreter and in processes of their own alike."""

from __future__ import annotations

import sys

import anyio
from pydantic import BaseModel

from llmasos.apps.sdk import AppError, Proc, Session, app, gather
from llmasos.kernel.errors import Interrupted, InvalidArguments, SyscallError
from tests.kernel.journal.test_random_apps import perform


class Actions(BaseModel):
    acts: list
    name: str = "root"


@app(name="actor", summary="Does what it is told, of all that the random apps do.")
async def actor(proc: Proc, params: Actions) -> None:
    await perform(proc, [tuple(act) for act in params.acts], "root")


class Topic(BaseModel):
    topic: str
    lines: int = 2


@app(name="poet", summary="Streams, forks and scores.", version="1.2")
async def poet(proc: Proc, params: Topic) -> int:
    async with proc.session(system="Be short.") as session:
        async with session.stream(f"About {params.topic}", max_tokens=8) as pieces:
            async for piece in pieces:
                await proc.print(piece, end="")
        twin = await session.fork()
        texts = await gather([lambda: session.ask("One?"), lambda: twin.ask("Two?")])
        await proc.print([text.text for text in texts])
        scores = await twin.context.score(["a", "bc"])
        await proc.print([(s.text, s.logprob, s.token_logprobs) for s in scores])
        await proc.print(await session.context.info())
    await proc.log("done with", params.topic, level="warning")
    await proc.progress(params.lines, 4, "lines")
    return 7


@app(name="families", summary="Spawns, forks, waits and kills.")
async def families(proc: Proc) -> None:
    if inherited := await proc.inherited():
        reply = await Session(inherited[0]).ask("And you?", max_tokens=4)
        await proc.print("fork says", reply.text)
        return
    child = await proc.spawn("poet", {"topic": "tea"}, title="a child")
    await proc.print(await child.wait())
    async with proc.session() as session:
        await session.ask("Hello", max_tokens=4)
        twin = await proc.fork()
        await proc.print(await twin.wait())
    sleeper = await proc.spawn("sleeper")
    await sleeper.kill()
    await proc.print((await sleeper.wait()).code)


@app(name="sleeper", summary="Sleeps until it is woken.")
async def sleeper(proc: Proc) -> None:
    try:
        await proc.print("sleeping")
        await proc.call("time.sleep", seconds=600)
    except Interrupted:
        await proc.print("woken")
    finally:
        with anyio.CancelScope(shield=True):
            await proc.print("cleaned up")


class Failure(BaseModel):
    how: str


@app(name="fails", summary="Ends badly.")
async def fails(proc: Proc, params: Failure) -> None:
    match params.how:
        case "app":
            raise AppError("I cannot go on.")
        case "call":
            await proc.call("ctx.info", context=99)
        case "defect":
            raise ZeroDivisionError("by nothing")
        case "group":
            async with anyio.create_task_group() as group:
                group.start_soon(proc.call, "ctx.info")


@app(name="races", summary="The first to answer ends the other.")
async def races(proc: Proc) -> None:
    for number in range(3):
        async with proc.context() as one, proc.context() as two:
            await one.append(f"one {number}")
            await two.append(f"two {number}")
            async with anyio.create_task_group() as group:

                async def run(context, name, group=group):
                    async with context.stream(max_tokens=6) as pieces:
                        async for piece in pieces:
                            await proc.print(name, piece)
                    group.cancel_scope.cancel()

                group.start_soon(run, one, "one")
                group.start_soon(run, two, "two")
            await proc.print((await one.info()).num_tokens > 0, await two.append("more"))


@app(name="reader", summary="Says each line again.")
async def reader(proc: Proc) -> None:
    while (line := await proc.read_line()) is not None:
        await proc.print("you said", line)


@app(name="stray", summary="Prints past the kernel.")
async def stray(proc: Proc) -> None:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    await proc.print("to the kernel")


@app(name="tells", summary="Tells how far it is, and waits.")
async def tells(proc: Proc) -> None:
    print("past the kernel")
    await proc.log("one", level="debug")
    await proc.progress(1, 3, "parts")
    await proc.read_line()
    await proc.log("two")


@app(name="wrong", summary="Makes calls that fail.")
async def wrong(proc: Proc) -> None:
    for name, args in (("ctx.info", {"context": 5}), ("no.such", {}), ("ctx.open", {"x": 1})):
        try:
            await proc.call(name, **args)
        except SyscallError as error:
            await proc.print(type(error).__name__, error, isinstance(error, InvalidArguments))
    await proc.print("\ud800 é 漢字 🙂")


ALL = (actor, poet, families, sleeper, fails, races, reader, stray, tells, wrong)

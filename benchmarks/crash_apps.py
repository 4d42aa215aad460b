"""What runs while `benchmarks.crash` kills its kernel: twelve slots of work, and calls whose effects count.

Every process has a folder of its own and is known by its title, `slot.generation`. What it does, prints
and writes is a function of that and of the benchmark's seed alone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from llmasos.apps.app import App
from llmasos.apps.builtin import builtin_apps
from llmasos.apps.sdk import Child, Proc, app, gather
from llmasos.kernel.abi import Effect, Sampling
from llmasos.kernel.errors import MaybeDone
from llmasos.kernel.program import Program
from llmasos.kernel.sampling import derive_seed
from llmasos.kernel.syscall import Call, Syscall, syscall

NUM_SLOTS = 12
LEDGER = "ledger.txt"
EFFECT_S = 0.003
"""How long the outside world takes, before a change and after it."""
SUBJECTS = ("rivers", "bridges", "clocks", "harbours", "gardens", "maps", "bread", "lighthouses")


# --- calls whose effects are counted


def world(path: Path) -> tuple[Syscall, ...]:
    """`world.post` adds a line to a file that no kernel owns; `ledger.add` writes, and keeps receipts."""

    @syscall("world.post", effect=Effect.EXTERNAL)
    def post(call: Call, text: str) -> str:
        """Tell the world something."""
        line = json.dumps({"key": call.idempotency_key, "text": text}) + "\n"
        time.sleep(EFFECT_S)
        _append(path, line)
        time.sleep(EFFECT_S)
        return f"posted {len(text)} characters"

    @syscall("ledger.add", effect=Effect.WRITE, repeatable=True)
    def add(call: Call, text: str) -> int:
        """Add a line to the ledger, once, however often a crash makes it be tried."""
        ledger = call.root / LEDGER
        size = call.receipt
        if size is None:
            size = ledger.stat().st_size if ledger.exists() else 0
            call.intend(size)
        else:
            os.truncate(ledger, size) if ledger.exists() else None
        time.sleep(EFFECT_S)
        _append(ledger, text + "\n")
        time.sleep(EFFECT_S)
        return int(size)

    return post, add


def _append(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


# --- apps


class Work(BaseModel):
    """How much to do, and about what."""

    about: str
    rounds: int


@app(name="clerk", summary="Reads, searches, reckons, writes.", syscalls=("*",))
async def clerk(proc: Proc, params: Work) -> None:
    """Every tool in turn; a write of which a crash left nothing known is looked at, and made up for."""
    lines = []
    for number in range(params.rounds):
        note = await proc.call("fs.read", path="notes.md", start_line=number % 8 + 1, max_lines=1)
        total = await proc.call("calc", expression=f"{number} * 17 + {len(note['text'])}")
        found = await proc.call("search", query=f"{params.about} {number}", limit=2)
        prompt = f"{note['text']}{found['text']}Total: {total['text']}. A sentence about this:"
        reply = await proc.generate(
            prompt, max_tokens=20, ignore_eos=True, sampling=Sampling(temperature=0.8)
        )
        lines.append(f"{number}. {reply.text!r}")
        await _keep(proc, "log.md", lines[-1])
        await proc.print(lines[-1])
    await _write(proc, "report.md", "\n".join(lines))


async def _keep(proc: Proc, path: str, line: str) -> None:
    try:
        await proc.call("fs.append", path=path, text=line + "\n")
    except MaybeDone:
        there = [entry["name"] for entry in (await proc.call("fs.list"))["entries"]]
        text = (await proc.call("fs.read", path=path))["text"] if path in there else ""
        if line not in text.split("\n"):
            await _keep(proc, path, line)


async def _write(proc: Proc, path: str, text: str) -> None:
    try:
        await proc.call("fs.write", path=path, text=text)
    except MaybeDone:  # to write the same again changes nothing
        await _write(proc, path, text)


@app(name="poster", summary="Tells the world.", syscalls=("*",))
async def poster(proc: Proc, params: Work) -> None:
    """Effects that cannot be taken back; what may have happened is not tried again."""
    async with proc.context() as context:
        await context.append(f"Ten short facts about {params.about}.\n")
        for number in range(params.rounds):
            await context.append(f"Fact {number + 1}:")
            fact = await context.generate(
                max_tokens=12, ignore_eos=True, sampling=Sampling(temperature=0.9)
            )
            await proc.call("ledger.add", text=f"{number}: {fact.text!r}")
            await proc.print(fact.text)
            try:
                await proc.call("world.post", text=f"{params.about}/{number}: {fact.text}")
            except MaybeDone:
                continue


@app(name="family", summary="A parent and its children.", syscalls=("*",))
async def family(proc: Proc, params: Work) -> None:
    """Two children at a time, one after another waited for."""
    for number in range(params.rounds):
        children = [await _child(proc, params.about, number, twin) for twin in range(2)]
        for child in children:
            outcome = await child.wait()
            await proc.print(number, outcome.code, outcome.output, end="")


async def _child(proc: Proc, about: str, number: int, twin: int) -> Child:
    prompt = f"Chapter {number + 1}, part {twin + 1}, on {about}:"
    params = {"prompt": prompt, "max_tokens": 24, "ignore_eos": True, "temperature": 0.8}
    return await proc.spawn("complete", params)


@app(name="crew", summary="Several tasks at once.", syscalls=("*",))
async def crew(proc: Proc, params: Work) -> None:
    """Four tasks race; what each does depends on itself alone, the order of their lines does not."""

    async def member(number: int) -> int:
        async with proc.context() as context:
            await context.append(f"Member {number} writes about {params.about}.\n")
            for part in range(params.rounds):
                reply = await context.generate(max_tokens=10 + number, ignore_eos=True)
                await proc.print(f"{number}.{part}: {reply.text!r}")
                await proc.call("ledger.add" if number == 0 else "fs.list", **_args(number, part))
        return number

    await proc.print(sum(await gather([partial(member, number) for number in range(4)])))


def _args(number: int, part: int) -> dict[str, Any]:
    return {"text": f"part {part}"} if number == 0 else {"path": "."}


_APPS = {entry.info.name: entry for entry in (clerk, poster, family, crew)}
RACING = frozenset({"crew"})
"""Apps whose output depends on which of their tasks was quicker."""


def load(name: str) -> Program:
    """A bundled app, or one of these; raises `KeyError`."""
    apps: Mapping[str, App] = {**builtin_apps(), **_APPS}
    return apps[name]


# --- who runs


@dataclass(frozen=True, slots=True)
class Spec:
    """One process."""

    title: str
    app: str
    params: Mapping[str, Any]
    seed: int
    lines: Sequence[str] = ()
    """What its user says; where there is any, the end of input follows."""
    files: Mapping[str, str] = field(default_factory=dict)


def spec_of(slot: int, generation: int, seed: int) -> Spec:
    """The process of a slot's generation."""
    own = derive_seed(seed, slot * 10_000 + generation)
    about = SUBJECTS[own % len(SUBJECTS)]
    kind, params = _KINDS[slot](about, own)
    lines = _lines(about, own) if kind == "chat" else ()
    return Spec(f"{slot}.{generation}", kind, params, own, lines, _files(about, own))


Kind = tuple[str, Mapping[str, Any]]


def _agent(about: str, own: int) -> Kind:
    tasks = (
        f"Read notes.md and say what it tells of {about}.",
        f"What is {own % 97} * {own % 89} + {own % 13}?",
        f"Search for what is said about {about}.",
        f"Say something about {about} in five sentences.",
    )
    params = {"task": tasks[own // 8 % 4], "max_tokens": 90, "temperature": 0.7}
    return "agent", {**params, "tools": ["fs.read", "search", "calc"]}


def _chat(_about: str, own: int) -> Kind:
    return "chat", {"max_tokens": 40, "temperature": 0.7 if own % 2 else 0.0}


def _complete(about: str, own: int) -> Kind:
    prompt = f"Draft {own % 1000}. A long story about {about} begins:"
    return "complete", {"prompt": prompt, "max_tokens": 180, "ignore_eos": True, "temperature": 0.9}


def _worker(name: str, rounds: int, about: str, own: int) -> Kind:
    return name, {"about": f"{about} {own % 1000}", "rounds": rounds}


_KINDS = (
    _agent, _agent, _chat, _chat, _complete, _complete,
    partial(_worker, "family", 4), partial(_worker, "crew", 4),
    partial(_worker, "clerk", 7), partial(_worker, "clerk", 7),
    partial(_worker, "poster", 8), partial(_worker, "poster", 8),
)  # fmt: skip


def _lines(about: str, own: int) -> tuple[str, ...]:
    return (
        f"Tell me about {about}.",
        f"And what has that to do with the number {own % 100}?",
        "Say it shorter.",
        "Thank you. One more thing?",
    )


def _files(about: str, own: int) -> dict[str, str]:
    notes = [f"Note {number}: {about} and {own % (number + 50)}." for number in range(8)]
    more = [f"# {subject}\n\nAll about {subject}, told briefly.\n" for subject in SUBJECTS]
    return {"notes.md": "\n".join(notes) + "\n", "more.md": "\n".join(more)}

"""`revise`: suggestions for a document, accepted one by one, all at once, or as a patch to look at.

The document itself is never touched unless that was asked for, and then `fs.*` keeps what it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmasos.apps.sdk import Proc
from llmasos.apps.writer.checks import Suggestion, check
from llmasos.apps.writer.files import beside, read_document, write_text
from llmasos.apps.writer.measures import measure, table
from llmasos.apps.writer.patch import apply, compatible, unified
from llmasos.apps.writer.profiles import Profile, profile_named
from llmasos.apps.writer.rewording import reword
from llmasos.kernel.errors import AppError

if TYPE_CHECKING:
    from llmasos.apps.writer.app import Params

ANSWERS = "[y]es, [n]o, [a]ll that follow, [q]uit?"
SHOWN = 300


async def revise(proc: Proc, params: Params, path: str) -> None:
    """Suggest, ask, write what was accepted."""
    text = await read_document(proc, path)
    profile = await profile_named(proc, params.style or "plain", params.profiles)
    out = path if params.in_place else params.out or beside(path, "revised")
    if out == path and not params.in_place:
        raise AppError(f"{path} is the document itself; write to it with in_place=true.")
    suggestions = check(text, profile)
    if params.rewordings:
        suggestions = await reword(proc, suggestions, profile, params.rewordings)
    await proc.print(_count(path, suggestions))
    accepted = await _accepted(proc, suggestions, params.accept)
    await _finish(proc, params, path, out, text, accepted, profile)


async def _accepted(proc: Proc, suggestions: Sequence[Suggestion], accept: str) -> list[Suggestion]:
    """Those that change something and were said yes to."""
    if accept == "none":
        for each in suggestions:
            await proc.print(shown(each))
        return []
    if accept == "all":
        for each in (each for each in suggestions if each.new is None):
            await proc.print(shown(each))
        return compatible(suggestions)
    return await _dialogue(proc, suggestions)


async def _dialogue(proc: Proc, suggestions: Sequence[Suggestion]) -> list[Suggestion]:
    accepted: list[Suggestion] = []
    is_all = False
    for each in suggestions:
        if accepted and each.start < accepted[-1].end:
            continue  # its words are gone
        await proc.print(shown(each))
        if each.new is None:
            continue
        answer = "y" if is_all else await _answer(proc)
        is_all = is_all or answer == "a"
        if answer == "q":
            break
        if answer in ("y", "a"):
            accepted.append(each)
    return accepted


async def _answer(proc: Proc) -> str:
    """One of the four letters; the end of input quits."""
    while True:
        await proc.print(ANSWERS, end=" ")
        line = await proc.read_line()
        if line is None:
            await proc.print()
            return "q"
        letter = line.strip().lower()[:1]
        if letter in ("y", "n", "a", "q"):
            return letter


def shown(each: Suggestion) -> str:
    """A suggestion as a diff with its reason."""
    lines = [f"line {each.line}, {each.rule}: {each.reason}", f"- {_cut(each.old)}"]
    if each.new is not None:
        lines.append(f"+ {_cut(each.new)}" if each.new else "+ (left out)")
    return "\n".join(lines)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _count(path: str, suggestions: Sequence[Suggestion]) -> str:
    if not suggestions:
        return f"{path}: nothing to suggest."
    rules = Counter(each.rule for each in suggestions)
    told = ", ".join(f"{count} {rule}" for rule, count in rules.most_common())
    return f"{path}: {len(suggestions)} suggestions ({told})."


async def _finish(
    proc: Proc,
    params: Params,
    path: str,
    out: str,
    text: str,
    accepted: list[Suggestion],
    profile: Profile,
) -> None:
    if not accepted:
        await proc.print("Nothing was accepted, nothing is written.")
        return
    new = apply(text, accepted)
    if params.patch:
        await write_text(proc, params.patch, unified(path, text, new, accepted))
        await proc.print(
            f"Wrote {params.patch}; `patch -p1 < {params.patch}` or `git apply` makes the changes."
        )
    if not params.patch or params.out or params.in_place:
        await write_text(proc, out, new)
        kept = "; `fs.history` has what it was" if params.in_place else f"; {path} is as it was"
        await proc.print(f"Wrote {out} with {len(accepted)} changes{kept}.")
    await proc.print(table({"before": measure(text), "after": measure(new)}, profile.wanted))

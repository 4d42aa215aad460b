"""The model's rewording of sentences that were flagged, taken only where it measures better.

It must keep the sentence's numbers, names and meaning, say nothing new, and be shorter or easier to read; a
passive must be gone. The pieces go through the window one by one, each a fork of the same few examples, so a
document may be of any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from llmasos.apps.sdk import ContextHandle, Message, Proc, gather
from llmasos.apps.writer.checks import Suggestion
from llmasos.apps.writer.drafting import states
from llmasos.apps.writer.meaning import vectors_of
from llmasos.apps.writer.measures import PASSIVE, syllables
from llmasos.apps.writer.profiles import Profile
from llmasos.apps.writer.text import opaque, plain, sentences, words
from llmasos.kernel.errors import ContextTooLong

AT_ONCE = 12
MAX_TOKENS = 120
MIN_ALIKE = 0.8
SLACK = 4
"""More than a draft may change: here somebody looks at each."""
EASIER = 5.0
"""Points of Flesch."""
REWORDED = ("passive", "long sentence")
SYSTEM = (
    "You are an editor. Rewrite the sentence so that it is shorter and clearer. {voice} Keep every number,"
    " name and fact. Answer with the new sentence alone."
)
SHOTS = (
    ("The decision to close the road was made by the council because of the fact that it had been damaged by"
     " the flood.", "The council closed the road because the flood had damaged it."),
    ("It is the case that the new timetable, which was published in May, has 40 trains more than the one that"
     " was in use before it.", "The new timetable, published in May, has 40 more trains than the old one."),
)  # fmt: skip


async def reword(
    proc: Proc, suggestions: Sequence[Suggestion], profile: Profile, limit: int
) -> list[Suggestion]:
    """The same suggestions; up to `limit` of those about whole sentences have the model's words, and the
    reason says by how much they are better."""
    wanted = [at for at, each in enumerate(suggestions) if each.rule in REWORDED and not each.new]
    wanted = [at for at in wanted if not opaque(suggestions[at].old)]
    wanted = sorted(wanted, key=lambda at: (-len(suggestions[at].old), at))[:limit]
    result = list(suggestions)
    if not wanted:
        return result
    async with proc.context() as opening:
        turns = [Message("system", SYSTEM.format(voice=profile.voice))]
        for old, new in SHOTS:
            turns += [Message("user", old), Message("assistant", new)]
        await opening.chat(turns, reply=False)
        await opening.prefill()
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            made = await gather([partial(_reworded, proc, opening, result[at]) for at in part])
            for at, each in zip(part, made, strict=True):
                result[at] = each
    return result


async def _reworded(proc: Proc, opening: ContextHandle, each: Suggestion) -> Suggestion:
    old = plain(each.old)
    try:
        async with await opening.fork() as context:
            await context.chat([Message("user", old)])
            reply = await context.generate(max_tokens=MAX_TOKENS)
    except ContextTooLong:
        return each
    new = " ".join(reply.text.split()).strip('"“”')
    why = gain(old, new, must_be_active=each.rule == "passive")
    if why is None:
        return each
    one, other = await vectors_of(proc, [old, new])
    if float(one @ other) < MIN_ALIKE:
        return each
    return replace(each, new=new, reason=f"{each.reason}; {why}")


def gain(old: str, new: str, *, must_be_active: bool = False) -> str | None:
    """What a rewording is better by; None where it is not, or loses or adds something."""
    if not states(new, old, slack=SLACK) or _named(new) != _named(old):
        return None
    if new.strip() == old.strip():
        return None
    if must_be_active and PASSIVE.search(new):
        return None
    before, after = len(words(old)), len(words(new))
    easier = ease(new) - ease(old)
    if after < before:
        return f"{before} words become {after}"
    if after == before and must_be_active:
        return "active, in as many words"
    if easier >= EASIER and after <= 1.1 * before:
        return f"Flesch rises by {easier:.0f}"
    return None


def ease(text: str) -> float:
    """Flesch's reading ease."""
    spoken = words(text)
    if not spoken:
        return 0.0
    count = max(1, len(sentences(text)))
    return 206.835 - 1.015 * len(spoken) / count - 84.6 * sum(map(syllables, spoken)) / len(spoken)


def _named(text: str) -> set[str]:
    """All words with a capital, at the beginning of sentences too, but for the commonest."""
    common = {
        "The",
        "A",
        "An",
        "In",
        "On",
        "At",
        "It",
        "This",
        "After",
        "Before",
        "When",
        "By",
        "For",
    }
    return {word for word in words(text) if word[:1].isupper()} - common

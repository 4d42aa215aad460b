"""Styles: what a text of a kind measures, built in or learnt from the user's samples, kept as JSON."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmasos.apps.sdk import Proc, SyscallError
from llmasos.apps.writer.files import read_document
from llmasos.apps.writer.measures import measure
from llmasos.apps.writer.text import terms, words
from llmasos.kernel.errors import AppError

LEARNT = (
    "sentence_words", "longest_tenth", "lix", "flesch", "variety", "passive", "personal", "contractions",
    "hedges", "exclaims",
)  # fmt: skip
MIN_WORDS = 100
MAX_VOCABULARY = 40
MARGIN = 0.15
"""A learnt range is at least this much wider than its mean on both sides: a few samples show no limits."""


LEAST = {"passive": 5.0, "exclaims": 5.0, "personal": 1.0, "contractions": 0.5, "hedges": 0.5}
"""What a learnt range has to each side in any case."""


class Profile(BaseModel):
    """A style. `wanted` are ranges of measures."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[\w-]{1,40}$")]
    about: str = ""
    voice: str = "Write plainly."
    """What the model is told."""
    wanted: dict[str, tuple[float, float]] = Field(default_factory=dict)
    max_sentence_words: Annotated[int, Field(ge=8, le=80)] = 30
    allows_contractions: bool = True
    flags_passive: bool = True
    spelling: Literal["british", "american", ""] = ""
    vocabulary: list[str] = Field(default_factory=list)
    """Words that the samples use more than others do, commonest first."""
    num_samples: int = 0


_BUILT_IN = (
    Profile(
        name="plain", about="for everybody", voice="Write plainly, in short sentences.",
        wanted={"sentence_words": (9, 20), "lix": (25, 45), "flesch": (50, 80), "passive": (0, 25)},
    ),
    Profile(
        name="news", about="reports: facts first, nobody addressed",
        voice="Write like a newspaper: facts first, short sentences, no opinion.",
        wanted={"sentence_words": (12, 22), "lix": (30, 50), "flesch": (45, 70), "personal": (0, 1),
                "exclaims": (0, 2), "passive": (0, 25)},
        max_sentence_words=28, allows_contractions=False,
    ),
    Profile(
        name="technical", about="documentation: exact, the same word for the same thing",
        voice="Write like documentation: exact and plain.",
        wanted={"sentence_words": (8, 20), "lix": (30, 52), "variety": (0.5, 0.75), "passive": (0, 30),
                "exclaims": (0, 2)},
        max_sentence_words=26, allows_contractions=False,
    ),
    Profile(
        name="academic", about="papers: formal, careful, longer sentences",
        voice="Write formally, as in a scholarly article.",
        wanted={"sentence_words": (16, 30), "lix": (45, 70), "flesch": (10, 50), "contractions": (0, 0.1),
                "personal": (0, 2), "exclaims": (0, 1)},
        max_sentence_words=40, allows_contractions=False, flags_passive=False,
    ),
    Profile(
        name="friendly", about="letters and blogs: the reader is addressed",
        voice="Write in a warm and friendly way.",
        wanted={"sentence_words": (8, 17), "lix": (18, 38), "flesch": (60, 95), "passive": (0, 12)},
        max_sentence_words=22,
    ),
)  # fmt: skip
BUILT_IN = {profile.name: profile for profile in _BUILT_IN}


async def profile_named(proc: Proc, name: str, folder: str) -> Profile:
    """A built-in profile, one learnt into the folder, or the JSON file of this name. Raises `AppError`."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = name if name.endswith(".json") else f"{folder}/{name}.json"
    try:
        text = (await proc.call("fs.read", path=path, max_lines=20_000))["text"]
    except SyscallError as error:
        close = get_close_matches(name, BUILT_IN, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise AppError(
            f"There is no style {name!r}; there are {', '.join(BUILT_IN)}, and those that"
            f" `profile learn` wrote to {folder}.{hint}"
        ) from error
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise AppError(f"{path} is no profile: {where}: {problem['msg']}.") from error


async def learn(proc: Proc, name: str, paths: Sequence[str], folder: str) -> Profile:
    """Measure samples and keep what they have in common as a profile. Raises `AppError`."""
    if name in BUILT_IN:
        raise AppError(f"{name} is a built-in style; choose another name.")
    texts = [await read_document(proc, path) for path in paths]
    if sum(len(words(text)) for text in texts) < MIN_WORDS:
        raise AppError(f"The samples have fewer than {MIN_WORDS} words; give more, or longer ones.")
    try:
        profile = learnt(name, texts)
    except ValidationError as error:
        raise AppError(f"{name!r} is no name for a style: letters, digits, - and _.") from error
    text = json.dumps(profile.model_dump(), indent=2, ensure_ascii=False)
    await proc.call("fs.write", path=f"{folder}/{name}.json", text=text + "\n")
    return profile


def learnt(name: str, texts: Sequence[str]) -> Profile:
    """The profile of some samples."""
    figures = [measure(text) for text in texts]
    wanted = {}
    for measured in LEARNT:
        values = [each[measured] for each in figures if measured in each]
        if values:
            wanted[measured] = _range(values, LEAST.get(measured, 0.0))
    contracted = wanted.get("contractions", (0.0, 1.0))[1]
    passive = wanted.get("passive", (0.0, 0.0))[1]
    longest = max(each.get("longest_tenth", 30) for each in figures)
    return Profile(
        name=name,
        about=f"learnt from {len(texts)} sample{'s' * (len(texts) != 1)}",
        voice=_voice(wanted),
        wanted=wanted,
        max_sentence_words=min(80, max(12, round(1.2 * longest))),
        allows_contractions=contracted > 0.2,
        flags_passive=passive < 35,
        spelling=_spelling(" ".join(texts)),
        vocabulary=_vocabulary(texts),
        num_samples=len(texts),
    )


def _range(values: Sequence[float], least: float) -> tuple[float, float]:
    """Two deviations to each side, but never less than a margin, and nothing below 0 that never was."""
    mean = statistics.fmean(values)
    spread = max(2 * statistics.pstdev(values), MARGIN * abs(mean), least)
    low = mean - spread
    return round(max(low, 0.0) if min(values) >= 0 else low, 2), round(mean + spread, 2)


def _voice(wanted: Mapping[str, tuple[float, float]]) -> str:
    """What to tell the model of a learnt style."""
    low, high = wanted.get("sentence_words", (12.0, 20.0))
    told = ["Write in short sentences." if (low + high) / 2 < 15 else "Write in full sentences."]
    if wanted.get("personal", (0.0, 0.0))[1] > 3:
        told.append("Address the reader.")
    if wanted.get("lix", (0.0, 40.0))[1] > 52:
        told.append("Be formal.")
    return " ".join(told)


def _spelling(text: str) -> Literal["british", "american", ""]:
    from llmasos.apps.writer.wordlists import AMERICAN, BRITISH

    small = [word.lower() for word in words(text)]
    british, american = (sum(word in known for word in small) for known in (BRITISH, AMERICAN))
    if british == american:
        return ""
    return "british" if british > american else "american"


def _vocabulary(texts: Sequence[str]) -> list[str]:
    counts = Counter(word for text in texts for word in _telling(text))
    return [word for word, count in counts.most_common(MAX_VOCABULARY) if count > 1]


def _telling(text: str) -> list[str]:
    return [word.lower() for word in words(text) if len(word) > 3 and terms(word)]

"""What can be measured of a text's style. Pure; the same text gives the same figures.

`lix` (Björnsson 1968) needs no syllables and works in every language written with spaces; `flesch` (Flesch
1948) and the shares of passives and contractions are for English. `variety` is the moving-average
type-token ratio (Covington and McFall 2010), which does not fall with a text's length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llmasos.apps.writer.text import is_english, plain, sentences, words

WINDOW = 100
LONG_WORD = 7
LABELS = {
    "words": "words",
    "sentences": "sentences",
    "sentence_words": "words a sentence",
    "longest_tenth": "words in the longest tenth of sentences",
    "lix": "LIX (under 30 easy, over 50 hard)",
    "flesch": "Flesch reading ease (over 60 plain)",
    "variety": "vocabulary variety (0 to 1)",
    "word_chars": "letters a word",
    "passive": "sentences in the passive (%)",
    "personal": "I, we and you (% of words)",
    "contractions": "contractions (per 100 words)",
    "hedges": "hedges such as perhaps (per 100 words)",
    "exclaims": "exclamations and questions (% of sentences)",
}
_PERSONAL_TEXT = "i we you me us my our your mine ours yours myself ourselves yourself"
_PERSONAL = frozenset(_PERSONAL_TEXT.split())
_HEDGES_TEXT = (
    "perhaps maybe possibly probably seems seem appears appear likely might could somewhat rather"
    " fairly apparently presumably arguably"
)
_HEDGES = frozenset(_HEDGES_TEXT.split())
_CONTRACTION = re.compile(
    r"(?:n['’]t|['’](?:re|ve|ll|m|d))$|^(?:it|that|there|he|she|what)['’]s$", re.I
)
_IRREGULAR = (
    "begun bought broken brought built caught chosen cut done drawn driven eaten fallen felt found given"
    " gone grown heard held hidden kept known laid led left lent lost made meant met paid put read run said"
    " seen sent set shown shut sold spent spoken stolen taken taught thought thrown told understood won worn"
    " written"
)
PASSIVE = re.compile(
    r"\b(?:am|is|are|was|were|be|been|being)\s+(?:\w+ly\s+|not\s+)?(?:\w{2,}ed|"
    + "|".join(_IRREGULAR.split()) + r")\b(?!\s+(?:to be|about))",
    re.I,
)  # fmt: skip


def measure(text: str) -> dict[str, float]:
    """All figures by name; those that are for English alone are missing in other texts."""
    found = [plain(s.text) for s in sentences(text)]
    spoken = [word for sentence in found for word in words(sentence)]
    if not spoken:
        return {"words": 0.0, "sentences": 0.0}
    lengths = sorted(len(words(sentence)) for sentence in found)
    mean = len(spoken) / len(found)
    long_words = sum(len(word) >= LONG_WORD for word in spoken)
    figures = {
        "words": float(len(spoken)),
        "sentences": float(len(found)),
        "sentence_words": mean,
        "longest_tenth": float(lengths[int(0.9 * (len(lengths) - 1))]),
        "lix": mean + 100 * long_words / len(spoken),
        "variety": variety(spoken),
        "word_chars": sum(map(len, spoken)) / len(spoken),
        "exclaims": 100 * sum(s.rstrip("\"'”’)").endswith(("!", "?")) for s in found) / len(found),
    }
    if is_english(" ".join(found)):
        figures |= _english(found, spoken, mean)
    return {name: round(figures[name], 2) for name in LABELS if name in figures}


def _english(found: Sequence[str], spoken: Sequence[str], mean: float) -> dict[str, float]:
    small = [word.lower() for word in spoken]
    count = len(spoken)
    return {
        "flesch": 206.835 - 1.015 * mean - 84.6 * sum(map(syllables, small)) / count,
        "passive": 100 * sum(bool(PASSIVE.search(sentence)) for sentence in found) / len(found),
        "personal": 100 * sum(word in _PERSONAL for word in small) / count,
        "contractions": 100 * sum(bool(_CONTRACTION.search(word)) for word in small) / count,
        "hedges": 100 * sum(word in _HEDGES for word in small) / count,
    }


def variety(spoken: Sequence[str]) -> float:
    """Different words in a window of a hundred, as a share, averaged over all windows."""
    small = [word.lower() for word in spoken]
    size = min(WINDOW, len(small))
    counts: dict[str, int] = {}
    total, windows = 0.0, len(small) - size + 1
    for at, word in enumerate(small):
        counts[word] = counts.get(word, 0) + 1
        if at >= size:
            old = small[at - size]
            counts[old] -= 1
            if not counts[old]:
                del counts[old]
        if at >= size - 1:
            total += len(counts) / size
    return total / windows


def syllables(word: str) -> int:
    """Of an English word: groups of vowels, a silent e not counted."""
    count = len(re.findall(r"[aeiouyàáâäèéêëìíîïòóôöùúûü]+", word))
    if word.endswith("e") and not word.endswith(("le", "ee")) and count > 1:
        count -= 1
    if word.endswith("ed") and not word.endswith(("ted", "ded")) and count > 1:
        count -= 1
    return max(count, 1)


def table(
    columns: Mapping[str, Mapping[str, float]], wanted: Mapping[str, tuple[float, float]]
) -> str:
    """Figures of several texts side by side, with the range that a profile wants."""
    names = [name for name in LABELS if any(name in figures for figures in columns.values())]
    heads = ["", *columns, *(["wanted"] if wanted else [])]
    rows = [[LABELS[name], *(_cell(c.get(name)) for c in columns.values())] for name in names]
    if wanted:
        for name, row in zip(names, rows, strict=True):
            row.append(_range(wanted.get(name), [c.get(name) for c in columns.values()][-1]))
    widths = [max(len(row[at]) for row in [heads, *rows]) for at in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [heads, *rows]
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _range(wanted: tuple[float, float] | None, value: float | None) -> str:
    if wanted is None:
        return ""
    low, high = wanted
    verdict = "" if value is None or low <= value <= high else " (no)"
    return f"{low:.3g} to {high:.3g}{verdict}"

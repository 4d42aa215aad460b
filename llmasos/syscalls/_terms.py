"""Text and questions made comparable: one case, no accents, Chinese and Japanese cut into pairs.

SQLite's FTS5 then splits at what is neither letter nor digit and takes English endings off (porter). It
cannot cut scripts that write no spaces, so their runs go in as single characters and as neighbouring
pairs, and a question's runs are looked for as pairs: any two-character word is found.
"""

from __future__ import annotations

import re
import unicodedata

import regex

MAX_TERMS = 48

_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー々"
_RUN = regex.compile(rf"[{_SPACELESS}]+")
_WORD = regex.compile(rf"[{_SPACELESS}]+|[\p{{L}}\p{{N}}\p{{M}}--{_SPACELESS}]+", regex.V1)
_LATIN = re.compile(r"[A-Za-z]+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_POSSESSIVE = re.compile(r"(?<=\w)['’]s\b")
_ACCENT = re.compile(r"[\u0300-\u036f]+")
_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"}
)

_STOPWORDS = """
    a about all also am an and any are as at be been but by can could did do does doing for from
    get had has have having he her here him his how i if in into is it its itself just know let like
    me more my no not of on one or our out please say says she should so some such tell than that the
    their them then there these they this those to too us was we were what when where which who whom
    whose why will with would you your
"""
STOPWORDS = frozenset(_STOPWORDS.split())
"""Words that every text has and no question is about."""


def folded(text: str) -> str:
    """The text in one case and without accents on Latin, Greek and Cyrillic letters."""
    if text.isascii():
        return text.lower()
    plain = _ACCENT.sub("", unicodedata.normalize("NFKD", text.casefold()))
    return unicodedata.normalize("NFC", plain).translate(_LETTERS)


def indexable(text: str) -> str:
    """What goes into the full-text index for a text."""
    if "'s" in text or "’s" in text:
        text = _POSSESSIVE.sub("", text)
    plain = folded(f"{text} {_camel_parts(text)}")
    return plain if plain.isascii() else _RUN.sub(_pieces, plain)


def _camel_parts(text: str) -> str:
    """The words inside names such as refundPeriod, which also stay as they are."""
    words = set(_LATIN.findall(text))
    humped = (word for word in words if not (word.islower() or word.istitle() or word.isupper()))
    return " ".join(_HUMP.sub(" ", word) for word in sorted(humped))


def _pieces(match: regex.Match[str]) -> str:
    run = match[0]
    return f" {' '.join(run)} {' '.join(_pairs(run))} "


def _pairs(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(len(run) - 1)]


def query_terms(query: str) -> list[str]:
    """The distinct terms of a question that are worth looking for; empty if it has no word at all."""
    terms: dict[str, None] = {}
    for word in _WORD.findall(folded(_POSSESSIVE.sub("", query))):
        is_run = _RUN.fullmatch(word) and len(word) > 1
        terms.update(dict.fromkeys(_pairs(word) if is_run else [word]))
    telling = [term for term in terms if term not in STOPWORDS]
    return (telling or list(terms))[:MAX_TERMS]


def match_any(terms: list[str]) -> str:
    """An FTS5 query for any of the terms.

    Terms hold letters, digits and marks only, and are quoted: none can be read as syntax.
    """
    return " OR ".join(f'"{term}"' for term in terms)


def match_beginnings(terms: list[str]) -> str:
    """An FTS5 query for words that begin much as one of the terms does."""
    return " OR ".join(f'"{term[: max(3, len(term) - 2)]}"*' for term in terms)

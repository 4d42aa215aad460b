"""Which file, which folder, which words a request means: pure functions over names and text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import PurePosixPath

MIN_OVERLAP = 0.5
"""Of a name's words, how many the request must have for the name to be meant."""

_PATH = re.compile(
    r"(?<![\w/.])(?:[\w.@~-]+/)*[\w@~-][\w.@~-]*\.\w{1,8}\b|(?:[\w.@~-]+/)+[\w.@~-]*"
)
_QUOTED = re.compile(r"[\"“”„«»`]([^\"“”„«»`]+)[\"“”„«»`]|(?<!\w)['‘]([^'‘’]+)['’](?!\w)")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

_FUNCTION_WORDS_TEXT = """
    a about all am an and any anything are at be been by can could did do does every everything for
    from give had has have here how i i'd i'm if in information inside into is it its let like
    looking looks me my of on or our please said say says so some something that the their them
    there these they this those through to up us was we were what what's when where where's whether
    which who will with within would write written wrote you your talk talks talking tell know need
    want phrase word words term terms keyword topic text texts piece kind sort
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_TEXT.split())
_SEARCH_WORDS_TEXT = """
    search find look check locate list show see mention mentions mentioned mentioning reference
    references refer refers contain contains containing grep file files document documents doc docs
    folder folders directory note notes entry entries occurrence occurrences appear appears
"""
_SEARCH_WORDS = frozenset(_SEARCH_WORDS_TEXT.split())
_FOLDER_WORDS = r"(?:folder|directory|dir)"


def mentioned_paths(request: str) -> list[str]:
    """Whatever in the request is spelt like a path: with a suffix or a slash."""
    return [path.strip("/") for path in _PATH.findall(request) if not _is_number(path)]


def closest_file(request: str, paths: Sequence[str]) -> str | None:
    """The file that a request means: spelt out, nearly spelt out, or named by its words."""
    spelt = mentioned_paths(request)
    for wanted in spelt:
        if found := _spelt_out(wanted, paths):
            return found
    if spelt:
        return _nearly(spelt[0], paths) or spelt[0]
    ranked = sorted(paths, key=lambda path: -_overlap(request, path))
    if ranked and _overlap(request, ranked[0]) >= MIN_OVERLAP:
        return ranked[0]
    return None


def closest_folder(request: str, folders: Sequence[str]) -> str:
    """The folder that a request means; the whole folder (".") where it names none."""
    lowered = {folder.lower(): folder for folder in folders}
    for wanted in [*mentioned_paths(request), *_quoted_texts(request)]:
        if wanted.lower() in lowered:
            return lowered[wanted.lower()]
    named = [folder for folder in folders if _overlap(request, folder) == 1.0]
    if named:
        return max(named, key=len)
    return _unknown_folder(request, lowered) or "."


def query_words(request: str) -> str:
    """What to search for: the quoted part, or the words that carry meaning, in order."""
    if quoted := _quoted_texts(request):
        return quoted[0]
    words = _WORD.findall(request)
    kept = [word for word in words if word.lower() not in _FUNCTION_WORDS | _SEARCH_WORDS]
    kept = kept or [word for word in words if word.lower() not in _FUNCTION_WORDS]
    return " ".join(kept or words) or request.strip()


def rank_by_words(question: str, passages: Sequence[str]) -> list[int]:
    """Indices of passages, the ones that share most words with the question first; stable."""
    wanted = _content(question)
    shared = [len(wanted & _content(passage)) for passage in passages]
    return sorted(range(len(passages)), key=lambda index: -shared[index])


def stem(word: str) -> str:
    """A word without its plural or verbal ending: crude, but the same on both sides."""
    word = word.lower()
    for ending in ("ing", "ies", "es", "ed", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _quoted_texts(request: str) -> list[str]:
    return [(double or single).strip() for double, single in _QUOTED.findall(request)]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[\d./-]+", text) is not None


def _spelt_out(wanted: str, paths: Sequence[str]) -> str | None:
    wanted = wanted.lower().removeprefix("./")
    whole = [path for path in paths if path.lower() == wanted]
    tails = [path for path in paths if path.lower().endswith("/" + wanted)]
    return next(iter([*whole, *sorted(tails, key=len)]), None)


def _nearly(wanted: str, paths: Sequence[str]) -> str | None:
    """A name with a slip of the finger in it, or another suffix."""

    def likeness(path: str) -> float:
        names = [(path, wanted), (PurePosixPath(path).name, PurePosixPath(wanted).name)]
        return max(SequenceMatcher(None, a.lower(), b.lower()).ratio() for a, b in names)

    best = max(paths, key=likeness, default=None)
    return best if best is not None and likeness(best) >= 0.8 else None


def _overlap(request: str, path: str) -> float:
    """How much of a name's words the request has; the file's own name counts before its folders'."""
    asked = {stem(word) for word in re.findall(r"[^\W_]+", request)}
    asked |= {left + right for left in asked for right in asked if f"{left} {right}" in request}
    *folders, name = PurePosixPath(path).parts or ("",)
    own = {stem(word) for word in re.findall(r"[^\W_]+", PurePosixPath(name).stem)}
    if not own:
        return 0.0
    share = len(own & asked) / len(own)
    above = {stem(word) for folder in folders for word in re.findall(r"[^\W_]+", folder)}
    return share + 0.1 * len(above & asked) if share else 0.0


def _unknown_folder(request: str, known: dict[str, str]) -> str | None:
    """A folder named as one that is not there: asking for it gets an error that says so."""
    after = re.findall(rf"{_FOLDER_WORDS}\s+(?:called\s+|named\s+)?([\w./-]+)", request, re.I)
    before = re.findall(rf"([\w./-]+)\s+{_FOLDER_WORDS}\b", request, re.I)
    for name in [*after, *before]:
        if name.lower() in known:
            return known[name.lower()]
    return None


def _content(text: str) -> set[str]:
    return {stem(word) for word in _WORD.findall(text) if word.lower() not in _FUNCTION_WORDS}


def literal_text(request: str, path: str) -> str | None:
    """The text that a request to write gives word for word, or None where it must be composed."""
    rest = without_path(request, path)
    if quoted := _quoted_texts(rest):
        return quoted[0]
    if match := re.search(
        r"\b(?:with|containing|saying|that says)\s+(?:the\s+)?(?:word|words|text|line|content)s?\s+(.+)",
        rest,
        re.I | re.S,
    ):
        return match[1].strip(" :")
    match = re.match(
        r"\s*(?:please\s+)?(?:write|save|add|append|put|store)\s+(.+)", rest, re.I | re.S
    )
    if match and not re.match(r"(?:an?|the|some|this|that|it|my)\b", match[1], re.I):
        return match[1].strip(" .:")
    return None


def without_path(request: str, path: str) -> str:
    """A request to write without the words that say where to."""
    file = r"(?:(?:the|an?)\s+)?(?:end of\s+)?(?:new\s+)?(?:file\s+)?(?:called\s+|named\s+)?"
    place = rf"\s*\b(?:in|into|to|as|at)?\s*{file}{re.escape(path)}"
    return re.sub(place, "", request, count=1, flags=re.I).strip()


def named_place(request: str) -> str | None:
    """The city or zone in "what time is it in New York": capitalised words after `in`."""
    match = re.search(r"\b(?:in|at) ((?:[A-Z][\w/]*)(?: [A-Z]\w*)*)", request)
    return match[1] if match else None


def has_verb(request: str, verbs: str) -> bool:
    """Whether a request has one of these words, a file's name and quoted text not counting."""
    plain = _QUOTED.sub(" ", _PATH.sub(" ", request.lower()))
    return not set(verbs.split()).isdisjoint(_WORD.findall(plain))

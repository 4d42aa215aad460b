"""The arithmetic in a request: pure functions from words to an expression.

What can be copied is copied ("37 * 43"), common phrases are translated ("15% of 240"), and for word
problems `number_grammar` holds the model to the request's own numbers, so that it can only choose the
operation. Numbers use a point for decimals; commas between groups of three digits are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llmasos.apps.options import quote

NUMBER = r"\d+(?:\.\d+)?"
_N = f"({NUMBER})"
_FUNCTION = r"\b(?:sqrt|abs|round|floor|ceil|min|max|log|log2|log10|ln|exp|sin|cos|tan|pi)\b"
_RUN = re.compile(rf"(?:{_FUNCTION}|(?<=% )of\b|[\d.,+\-*/%() ])+")
_OPERATION = re.compile(rf"[\d)]%?\s*(?:\*\*|[-+*/%])\s*[-(\w]|{_FUNCTION}\(|% of ")

_UNITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUES = (
    {word: value for value, word in enumerate(_UNITS.split())}
    | {word: 10 * tens for tens, word in enumerate(_TENS.split(), start=2)}
    | {"hundred": 100, "dozen": 12}
)

_REWRITES: tuple[tuple[str, str], ...] = (
    (r"(?<=\d),(?=\d{3}\b)", ""),
    (r"[×·]|(?<=\d)\s*x\s*(?=\d)", " * "),
    (r"[÷]|(?<=\d)\s*:\s*(?=\d)", " / "),
    (r"[−–]", "-"),
    (r"\s*(?:per ?cent)\b", "%"),
    (
        r"\b(?:divided by|split by|geteilt durch|divisé par|dividido (?:por|entre))\b|(?<=\d) over (?=\d)",
        "/",
    ),
    (r"\b(?:multiplied by|times|mal|fois)\b", "*"),
    (r"\bplus\b|(?<=\d) added to (?=\d)", "+"),
    (r"\bminus\b", "-"),
    (r"\b(?:raised )?to the (?:power|exponent)(?: of)?\b", "**"),
    (r"\bmod(?:ulo)?\b", "%"),
    (r"\^", "**"),
    (rf"{_N}\s*(?:squared\b|²)", r"(\1 ** 2)"),
    (rf"{_N}\s*(?:cubed\b|³)", r"(\1 ** 3)"),
    (rf"(?:\b(?:the )?square root of|√)\s*{_N}", r"sqrt(\1)"),
    (rf"\b(?:the )?cube root of\s*{_N}", r"(\1 ** (1 / 3))"),
    (rf"{_N}\s*% of\s*{_N}", r"(\1% of \2)"),
    (rf"\bhalf (?:of )?{_N}", r"(\1 / 2)"),
    (rf"\b(?:twice|double) {_N}", r"(2 * \1)"),
)

_PHRASES: tuple[tuple[str, Callable[[list[str]], str]], ...] = (
    (rf"\bsubtract {_N} from {_N}", lambda n: f"{n[1]} - {n[0]}"),
    (rf"\btake {_N} (?:away )?from {_N}", lambda n: f"{n[1]} - {n[0]}"),
    (rf"\btake {_N} away from {_N}", lambda n: f"{n[1]} - {n[0]}"),
    (rf"\bmultipl\w+ {_N} (?:by|with|and) {_N}", lambda n: f"{n[0]} * {n[1]}"),
    (rf"\bdivid\w+ {_N} (?:by|among|between) {_N}", lambda n: f"{n[0]} / {n[1]}"),
    (rf"\bproduct of {_N} and {_N}", lambda n: f"{n[0]} * {n[1]}"),
    (rf"\bquotient of {_N} and {_N}", lambda n: f"{n[0]} / {n[1]}"),
    (rf"\bdifference (?:between|of) {_N} and {_N}", lambda n: f"{n[0]} - {n[1]}"),
)
_SUM = re.compile(r"\b(?:add|sum|total)\b")
_MEAN = re.compile(r"\b(?:average|mean) of\b")


def find_expression(request: str) -> str | None:
    """An expression that the request states outright, or None where it must be understood."""
    text = normalise(request)
    for pattern, build in _PHRASES:
        if match := re.search(pattern, text):
            return build(list(match.groups()))
    numbers = numbers_in(text)
    if len(numbers) > 1 and not _OPERATION.search(text):
        if _MEAN.search(text):
            return f"({' + '.join(numbers)}) / {len(numbers)}"
        if _SUM.search(text):
            return " + ".join(numbers)
    return _longest_span(text)


def normalise(request: str) -> str:
    """The request in lower case, number words as digits and words for operators as operators."""
    text = re.sub(r"\b(?:an?|one) (?=hundred|dozen)", "", request.lower())
    text = re.sub(r"\b[a-z]+(?:-[a-z]+)?\b", _digits, text)
    for pattern, replacement in _REWRITES:
        text = re.sub(pattern, replacement, text)
    return text


def numbers_in(text: str) -> list[str]:
    """Its numbers, in order."""
    return re.findall(rf"(?<![\w.]){NUMBER}", text)


def number_grammar(numbers: list[str]) -> str:
    """A regular expression for expressions that use only these numbers, each once at most or so."""
    number = "(" + "|".join(quote(text) for text in dict.fromkeys(numbers)) + ")"
    term = rf"(sqrt\({number}\)|{number} \/ 100|{number})"
    operator = r"(\+|-|\*|\/)"
    least = 1 if len(numbers) > 1 else 0
    return rf" {term}( {operator} {term}){{{least},{max(len(numbers) - 1, least)}}}\n"


def _longest_span(text: str) -> str | None:
    spans = [_balanced(run) for run in _RUN.findall(text)]
    best = max(filter(_OPERATION.search, spans), key=len, default=None)
    return best if best is None else _tidy(best)


def _balanced(run: str) -> str:
    """A run of arithmetic without the brackets and signs that belong to the sentence round it."""
    opened: list[int] = []
    stray: set[int] = set()
    for index, char in enumerate(run):
        if char == "(":
            opened.append(index)
        elif char == ")":
            if opened:
                opened.pop()
            else:
                stray.add(index)
    stray.update(opened)
    kept = "".join(char for index, char in enumerate(run) if index not in stray)
    return kept.strip(" ,.").rstrip("+-*/ ,.").lstrip("+*/%,. ")


def _tidy(span: str) -> str:
    span = re.sub(r"\s+", " ", span)
    if re.fullmatch(r"\([^()]*\)", span):
        return span[1:-1]
    return span


def _digits(match: re.Match[str]) -> str:
    first, _, second = match[0].partition("-")
    if first in _VALUES and (not second or second in _VALUES):
        return str(_VALUES[first] + _VALUES.get(second, 0))
    return match[0]

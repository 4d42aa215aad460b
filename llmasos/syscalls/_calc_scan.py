"""From arithmetic as people write it to tokens: signs, digits and words of many kinds made one.

How the doubtful cases are read: a comma inside a function's brackets separates its values, elsewhere it
groups thousands; `x` between values is a multiplication; one kind of currency sign changes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from llmasos.kernel.errors import InvalidArguments, LimitExceeded

MAX_EXPONENT = 5_000
"""Of a number written with an exponent, such as 1e300."""


@dataclass(frozen=True, slots=True)
class Token:
    """A number, a name or an operator."""

    kind: str
    """`number`, `name`, `operator` or `end`."""
    text: str
    value: Fraction = Fraction(0)


_LEAD = re.compile(
    r"\A(?:(?:what(?:'s| is)|how much is|calculate|compute|evaluate|the (?:result|value) of)\b\s*)+"
)
_WORDS = (
    (r"to the power of", "^"),
    (r"(?:multiplied by|times)", "*"),
    (r"divided by", "/"),
    (r"plus", "+"),
    (r"minus", "-"),
    (r"mod(?:ulo)?(?!\s*\()", " mod "),
    (r"per ?cent", "%"),
    (r"squared", "^2"),
    (r"cubed", "^3"),
    (r"the square root of", "√"),
    (r"square root of", "√"),
    (r"half of", "0.5*"),
    (r"degrees?(?!\s*\()", " deg "),
    (r"of", " of "),
)
_WORD_PATTERNS = tuple((re.compile(rf"\b{words}(?![a-z])"), sign) for words, sign in _WORDS)
_SIGNS = str.maketrans(
    {"×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "∕": "/", "−": "-", "–": "-", "’": "'"}
    | {"π": "pi", "°": " deg ", "≤": "<=", "≥": ">=", "≠": "!=", "\u202f": "\u00a0"}
    | {"\u2009": "\u00a0", "[": "(", "]": ")", "{": "(", "}": ")"}
)
_SUPERSCRIPT = re.compile(r"⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_PLAIN_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_CURRENCY = "$€£¥₹"

_DIGITS = re.compile(r"\d+")
_GROUPED = re.compile(r"\d{1,3}(?:(?P<by>[,'_\u00a0])\d{3})(?:(?P=by)\d{3})*(?!\d)")
_LAKHS = re.compile(r"\d{1,2}(?:,\d{2})*,\d{3}(?!\d)")
_FRACTION = re.compile(r"\.\d*")
_EXPONENT = re.compile(r"e([+-]?\d+)(?![a-z\d.])")
_NAME = re.compile(r"[a-z]+(?:\d+(?=\s*\())?")
_OPERATOR = re.compile(r"\*\*|//|<=|>=|==|!=|<>|[-+*/%^()!,;<>=√]")
_HEX = re.compile(r"0x[\da-f]")


def scan(expression: str) -> list[Token]:
    """The tokens of an expression, the last one of kind `end`."""
    return _Scanner(_tidied(expression)).tokens()


def _tidied(expression: str) -> str:
    """Lower case, one way to write each sign, words for operators replaced, chatter removed."""
    text = "".join(map(_plain_char, expression)).lower().translate(_SIGNS)
    text = _SUPERSCRIPT.sub(lambda match: f"^({match[0].translate(_PLAIN_DIGITS)})", text)
    text = _LEAD.sub("", text.strip()).rstrip("?= \t\r\n")
    if len(set(text) & set(_CURRENCY)) == 1:  # one currency changes nothing, two would
        text = text.translate(dict.fromkeys(map(ord, _CURRENCY), " "))
    for pattern, sign in _WORD_PATTERNS:
        text = pattern.sub(sign, text)
    if not text.strip():
        raise InvalidArguments("Give something to calculate, like 12 * (3 + 4).")
    return text


def _plain_char(char: str) -> str:
    """ASCII for full-width characters and for the digits of any script."""
    if char.isascii():
        return char
    if "\uff01" <= char <= "\uff5e":
        return chr(ord(char) - 0xFEE0)
    digit = unicodedata.decimal(char, None)
    return char if digit is None else str(digit)


class _Scanner:
    """Cuts the text into tokens."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._brackets: list[bool] = []
        """For each open bracket, whether it is a function's."""
        self._tokens: list[Token] = []

    def tokens(self) -> list[Token]:
        """All of them, an `end` at the end."""
        while self._at < len(self._text):
            char = self._text[self._at]
            if char.isspace():
                self._at += 1
            elif char.isdigit() or char == "." or _vulgar(char):
                self._number()
            elif not self._name() and not self._operator():
                raise InvalidArguments(f"{char!r} is not part of arithmetic; leave it out.")
        return [*self._tokens, Token("end", "the end")]

    def _number(self) -> None:
        if _HEX.match(self._text, self._at):
            raise InvalidArguments("0x may be hexadecimal or zero times; write 0 * instead.")
        digits = self._whole()
        fraction = self._take(_FRACTION)
        if digits + fraction in (".", ""):
            value = self._vulgar_fraction()
        else:
            value = Fraction(f"{digits or 0}{fraction if fraction != '.' else ''}")
            value = value * self._power_of_ten() + self._vulgar_fraction()
        if self._tokens and self._tokens[-1].kind == "number":
            raise InvalidArguments(f"There is no operator before {digits}{fraction}; add one.")
        self._tokens.append(Token("number", f"{digits}{fraction}", value))

    def _whole(self) -> str:
        """The digits before the point; a comma groups them except between a function's values."""
        is_argument = bool(self._brackets) and self._brackets[-1]
        for pattern in (_GROUPED, _LAKHS):
            match = pattern.match(self._text, self._at)
            if match and not (is_argument and "," in match[0]):
                self._at = match.end()
                return re.sub(r"\D", "", match[0])
        return self._take(_DIGITS)

    def _power_of_ten(self) -> Fraction:
        match = _EXPONENT.match(self._text, self._at)
        if not match:
            return Fraction(1)
        self._at = match.end()
        if len(match[1]) > 6 or abs(int(match[1])) > MAX_EXPONENT:
            raise LimitExceeded(f"Exponents go from -{MAX_EXPONENT} to {MAX_EXPONENT}.")
        return Fraction(10) ** int(match[1])

    def _vulgar_fraction(self) -> Fraction:
        """The ½ of 3½, or zero."""
        value = _vulgar(self._text[self._at : self._at + 1])
        self._at += value is not None
        return value or Fraction(0)

    def _name(self) -> bool:
        match = _NAME.match(self._text, self._at)
        if not match:
            return False
        name = match[0]
        self._at = match.end()
        is_operator = name in _WORD_OPERATORS
        kind = "operator" if is_operator else "name"
        self._tokens.append(Token(kind, _WORD_OPERATORS.get(name, name)))
        return True

    def _operator(self) -> bool:
        text = self._take(_OPERATOR)
        if text == "(":
            self._brackets.append(self._opens_arguments())
        elif text == ")" and self._brackets:
            self._brackets.pop()
        if text:
            self._tokens.append(Token("operator", _SAME.get(text, text)))
        return bool(text)

    def _opens_arguments(self) -> bool:
        """Whether a bracket opened here holds a function's values, itself or as a list in them."""
        before = self._tokens[-1] if self._tokens else None
        if before is not None and before.kind == "name":
            return before.text not in CONSTANTS
        in_arguments = bool(self._brackets) and self._brackets[-1]
        return in_arguments and before is not None and before.text == "("

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return match[0] if match else ""


CONSTANTS = frozenset({"pi", "e", "tau", "deg"})
_WORD_OPERATORS = {"x": "*", "of": "*", "mod": "mod"}
_SAME = {"**": "^", "<>": "!=", "==": "=", ";": ","}


def _vulgar(char: str) -> Fraction | None:
    """The value of a character like ½."""
    parts = unicodedata.normalize("NFKC", char).split("\u2044") if char else []
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        return None
    return Fraction(int(parts[0]), int(parts[1]))

"""From the tokens of an expression to a tree, by precedence climbing (a Pratt parser).

Nothing is ever handed to Python's own evaluator. Bounds on length and nesting come first, so that no
input costs more than its reading. `%` is modulo when a value follows it and per cent otherwise; `-2^2`
is -4; two values side by side are multiplied, two numbers are an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from llmasos.kernel.errors import InvalidArguments, LimitExceeded
from llmasos.syscalls._calc_scan import CONSTANTS, Token, scan

MAX_CHARS = 4_000
MAX_NESTING = 60


@dataclass(frozen=True, slots=True)
class Number:
    """An exact literal."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Name:
    """A constant."""

    name: str


@dataclass(frozen=True, slots=True)
class Negated:
    """Unary minus."""

    operand: Node


@dataclass(frozen=True, slots=True)
class Percent:
    """Hundredths; added or subtracted, they are hundredths of what stands on the left."""

    operand: Node


@dataclass(frozen=True, slots=True)
class Binary:
    """`operator` is one of + - * / // % ^."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Apply:
    """A function and its values."""

    name: str
    values: tuple[Node, ...]


Node = Number | Name | Negated | Percent | Binary | Apply


@dataclass(frozen=True, slots=True)
class Comparison:
    """A chain such as `1 < 2 <= 3`; without operators, just a value."""

    values: tuple[Node, ...]
    operators: tuple[str, ...]


LIST = "list"
"""The name under which values in brackets of their own, as in mean([1, 2]), are applied."""


def parse(expression: str) -> Comparison:
    """The tree of an expression; raises `InvalidArguments` or `LimitExceeded`."""
    if len(expression) > MAX_CHARS:
        raise LimitExceeded(f"The expression is longer than {MAX_CHARS} characters; split it.")
    return _Parser(scan(expression)).comparison()


_STARTS_VALUE = ("(", "√")
_COMPARE = ("<", "<=", ">", ">=", "=", "!=")
_STRENGTHS = {"+": 20, "-": 20, "*": 30, "/": 30, "//": 30, "%": 30, "mod": 30, "^": 50}
_UNARY = 40
_MEANS = {"mod": "%"}


class _Parser:
    """Precedence climbing over the tokens."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    def comparison(self) -> Comparison:
        """The whole expression."""
        values = [self._expression(0)]
        operators = []
        while self._next.text in _COMPARE:
            operators.append(self._advance().text)
            values.append(self._expression(0))
        if self._next.kind != "end":
            raise self._complaint()
        return Comparison(tuple(values), tuple(operators))

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _advance(self) -> Token:
        self._at += 1
        return self._tokens[self._at - 1]

    def _expression(self, strength: int) -> Node:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise LimitExceeded(f"The expression is nested more than {MAX_NESTING} deep.")
        left = self._postfixed(self._operand())
        while (operator := self._infix()) and (binds := _STRENGTHS[operator]) > strength:
            if self._next.kind == "operator" and self._next.text not in _STARTS_VALUE:
                self._at += 1
            right = self._expression(binds - (operator == "^"))
            left = Binary(_MEANS.get(operator, operator), left, right)
        self._depth -= 1
        return left

    def _infix(self) -> str:
        """The operator that joins what was read to what comes; `*` between 2 and (3); or none."""
        if self._starts_value(self._next):
            return "" if self._next.kind == "number" else "*"
        return self._next.text if self._next.text in _STRENGTHS else ""

    @staticmethod
    def _starts_value(token: Token) -> bool:
        return token.kind in ("number", "name") or token.text in _STARTS_VALUE

    def _operand(self) -> Node:
        token = self._advance()
        if token.kind == "number":
            return Number(token.value)
        if token.kind == "name":
            return self._named(token.text)
        if token.text == "(":
            values = self._until_closed()
            return values[0] if len(values) == 1 else Apply(LIST, values)
        if token.text == "√":
            return Apply("sqrt", (self._expression(_STRENGTHS["^"]),))
        if token.text in ("+", "-"):
            operand = self._expression(_UNARY)
            return Negated(operand) if token.text == "-" else operand
        self._at -= 1
        raise self._complaint()

    def _postfixed(self, value: Node) -> Node:
        while True:
            if self._next.text == "!":
                value = Apply("factorial", (value,))
            elif self._next.text == "%" and not self._starts_value(self._tokens[self._at + 1]):
                value = Percent(value)
            else:
                return value
            self._at += 1

    def _named(self, name: str) -> Node:
        if name in CONSTANTS:
            return Name(name)
        if self._next.text != "(":
            raise InvalidArguments(
                f"{name[:40]!r} is not known; use numbers, pi, e and functions such as sqrt(16)."
            )
        self._at += 1
        return Apply(name, self._until_closed())

    def _until_closed(self) -> tuple[Node, ...]:
        """The values up to a closing bracket, which is taken too."""
        values = [self._expression(0)]
        while self._next.text == ",":
            self._at += 1
            values.append(self._expression(0))
        if self._next.text != ")":
            raise self._complaint()
        self._at += 1
        return tuple(values)

    def _complaint(self) -> InvalidArguments:
        """What is wrong with the next token."""
        token = self._next
        if token.kind == "end":
            is_open = sum((t.text == "(") - (t.text == ")") for t in self._tokens) > 0
            problem = "A bracket is not closed" if is_open else "Something is missing at the end"
        elif token.text == ",":
            problem = "A comma is out of place; write 1,234.5 or 1234.5"
        elif token.text == ")":
            problem = "A bracket is closed that holds nothing or was not opened"
        elif token.kind == "number":
            problem = f"There is no operator before {token.text[:40]}"
        else:
            problem = f"{token.text[:40]!r} is out of place"
        return InvalidArguments(f"{problem}; check the expression.")

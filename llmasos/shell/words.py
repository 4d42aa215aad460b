"""A line of the shell to words: quotes, escapes and, in scripts, variables.

    'as it is'   "with $variables and \\" escapes"   or\\ escaped   $name ${name} $? $! $1 $$

A variable's value stays one word, whatever is in it. An unset variable is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from llmasos.kernel.errors import UsageError

_VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*|[0-9]|[?!])|\{([A-Za-z_]\w*|[0-9]|[?!])\})", re.A)


def split(line: str, variables: Mapping[str, str] | None = None) -> list[str]:
    """The words of a line; `variables` None leaves `$` alone. Raises `UsageError`."""
    words: list[str] = []
    word: list[str] | None = None  # None between words, so that '' is a word and nothing is not
    position = 0
    while position < len(line):
        char = line[position]
        if char.isspace():
            if word is not None:
                words.append("".join(word))
            word = None
            position += 1
            continue
        text, position = _part(line, position, variables)
        word = [*(word or ()), text]
    return words if word is None else [*words, "".join(word)]


def _part(line: str, position: int, variables: Mapping[str, str] | None) -> tuple[str, int]:
    """The next part of a word: a quoted text, an escaped character, a variable or a character."""
    char = line[position]
    if char == "'":
        end = line.find("'", position + 1)
        if end < 0:
            raise UsageError("A ' is never closed.")
        return line[position + 1 : end], end + 1
    if char == '"':
        return _double_quoted(line, position + 1, variables)
    if char == "\\" and position + 1 < len(line):
        return line[position + 1], position + 2
    if char == "$" and variables is not None:
        return _variable(line, position, variables)
    return char, position + 1


def _double_quoted(
    line: str, position: int, variables: Mapping[str, str] | None
) -> tuple[str, int]:
    parts: list[str] = []
    while position < len(line):
        char = line[position]
        if char == '"':
            return "".join(parts), position + 1
        if char == "\\" and line[position + 1 : position + 2] in ('"', "\\", "$"):
            parts.append(line[position + 1])
            position += 2
        elif char == "$" and variables is not None:
            text, position = _variable(line, position, variables)
            parts.append(text)
        else:
            parts.append(char)
            position += 1
    raise UsageError('A " is never closed.')


def _variable(line: str, position: int, variables: Mapping[str, str]) -> tuple[str, int]:
    match = _VARIABLE.match(line, position)
    if match is None:  # a lone $, as in "5 $"
        return "$", position + 1
    if match[1]:
        return "$", match.end()
    name = match[2] or match[3]
    if name not in variables:
        raise UsageError(f"${name} is not set.")
    return variables[name], match.end()


def substitute(text: str, variables: Mapping[str, str]) -> str:
    """A text with its variables filled in and nothing else changed. Raises `UsageError`."""
    parts: list[str] = []
    position = 0
    while (start := text.find("$", position)) >= 0:
        parts.append(text[position:start])
        value, position = _variable(text, start, variables)
        parts.append(value)
    return "".join([*parts, text[position:]])

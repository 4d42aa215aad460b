"""Making untrusted text safe for a terminal.

A model's text, a file's name or an app's error may hold escape sequences that move the cursor,
retitle the window or type into the terminal's own input. Covered: ESC sequences (CSI, OSC, DCS and
the rest, also cut in two by streaming), C0 and C1 controls but newline and tab, carriage returns,
the two directional overrides, lone surrogates. Not covered: characters that merely look alike.
"""

from __future__ import annotations

import re

_TEXT = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f-\x9f\u202d\u202e\ud800-\udfff]+")
_ESC = "\x1b"
_CSI = "\x9b"
_STRING_STARTS = "PX]^_"  # after ESC: DCS, SOS, OSC, PM, APC
_C1_STRING_STARTS = "\x90\x98\x9d\x9e\x9f"
_BELL = "\x07"
_C1_STRING_END = "\x9c"
MAX_SEQUENCE = 4096
"""An escape sequence longer than this was none: text after it must not stay hidden."""


class TerminalFilter:
    """Strips what a terminal would obey from text that comes in pieces."""

    def __init__(self) -> None:
        self._inside = ""
        self._length = 0

    def feed(self, text: str) -> str:
        """The safe part of the next piece."""
        kept: list[str] = []
        position = 0
        while position < len(text):
            if not self._inside and (match := _TEXT.match(text, position)):
                kept.append(match[0])
                position = match.end()
                continue
            kept.append(self._take(text[position]))
            position += 1
        return "".join(kept)

    def _take(self, char: str) -> str:
        """One control character, or one character of an escape sequence; what of it is shown."""
        if char == "\n":  # a line's end ends any sequence: nothing hides the next line
            self._inside = ""
            return char
        if not self._inside:
            self._begin(char)
            return ""
        self._length += 1
        if self._length > MAX_SEQUENCE or char in "\x18\x1a":
            self._inside = ""
        elif char == _ESC:  # ends a string, or starts over
            self._begin(char)
        elif self._inside == "escape":
            self._after_escape(char)
        elif (self._inside == "csi" and "\x40" <= char <= "\x7e") or (
            self._inside == "string" and char in (_BELL, _C1_STRING_END)
        ):
            self._inside = ""
        return ""

    def _begin(self, char: str) -> None:
        self._length = 0
        if char == _ESC:
            self._inside = "escape"
        elif char == _CSI:
            self._inside = "csi"
        elif char in _C1_STRING_STARTS:
            self._inside = "string"

    def _after_escape(self, char: str) -> None:
        if char == "[":
            self._inside = "csi"
        elif char in _STRING_STARTS:
            self._inside = "string"
        elif not "\x20" <= char <= "\x2f":  # intermediate bytes go on; anything else is the end
            self._inside = ""


def plain_text(text: str) -> str:
    """A whole text, made safe."""
    return TerminalFilter().feed(text)


def one_line(text: str, *, max_chars: int = 500) -> str:
    """Safe and on a single line, for a table's cell or an error."""
    flat = " ".join(plain_text(text.replace("\t", " ")).split())
    return flat if len(flat) <= max_chars else flat[: max_chars - 1] + "…"

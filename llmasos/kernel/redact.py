"""Arguments for people to read: short, on one line, and without what is secret by its name.

Covered: values whose name says that they are secret (`password`, `api_key`, `Authorization` ...), at any
depth that is shown, and credentials in URLs and after `Bearer`. Not covered: a secret under an innocent name.
Costs no more for huge values than for small ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, is_dataclass
from enum import Enum
from typing import Any, Final

REDACTED: Final = "<redacted>"
MAX_CHARS: Final = 160
MAX_ITEMS: Final = 8
MAX_DEPTH: Final = 4
MAX_ARGUMENTS: Final = 32

_SECRET: Final = re.compile(
    r"(^|[_\-\s.])(pass(word|wd|phrase)?|secret|token|api[_\-]?key|apikey|(proxy-)?authorization|auth"
    r"|credentials?|private[_\-]?key|(set-)?cookie|session[_\-]?id)s?$",
    re.IGNORECASE,
)
_CREDENTIALS: Final = re.compile(
    r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=\-]{6,}|(\b[a-z][a-z0-9+.\-]{1,15}://)[^\s/@]{1,256}@"
    r"|([?&](?:api_?key|token|access_token|secret|password|sig(?:nature)?)=)[^&\s]+"
)
_HIDDEN: Final = re.compile(r"[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def short_arguments(args: Mapping[str, Any], *, max_chars: int = MAX_CHARS) -> dict[str, str]:
    """Each argument as JSON of at most so many characters; those that are None are left out."""
    given = {name: value for name, value in args.items() if value is not None}
    shown = {
        _printable(str(name)[:MAX_CHARS]): short(value, name=str(name), max_chars=max_chars)
        for name, value in list(given.items())[:MAX_ARGUMENTS]
    }
    if len(given) > MAX_ARGUMENTS:
        shown["..."] = f"{len(given) - MAX_ARGUMENTS} more"
    return shown


def short(value: Any, *, name: str = "", max_chars: int = MAX_CHARS) -> str:
    """A value as JSON, cut; `name` says whether it may be shown at all."""
    if _is_secret(name, value):
        return REDACTED
    text = json.dumps(
        _cut(value, max_chars, MAX_DEPTH), ensure_ascii=False, separators=(",", ":"), default=repr
    )
    flat = _printable(text)
    return flat if len(flat) <= max_chars else f"{flat[: max_chars - 1]}…"


def _is_secret(name: str, value: Any) -> bool:
    """By its name; numbers (`max_tokens`) and what is empty are none."""
    if value in (None, "") or isinstance(value, (bool, int, float)):
        return False
    is_numbers = isinstance(value, (list, tuple)) and all(isinstance(each, int) for each in value)
    return not is_numbers and _SECRET.search(name) is not None


def _printable(text: str) -> str:
    """JSON has escaped the C0 controls; the others that a terminal or an eye would obey follow."""
    safe = _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return "".join(each if each >= " " else f"\\u{ord(each):04x}" for each in safe)


def _cut(value: Any, max_chars: int, depth: int) -> Any:
    """The beginning of a value, of JSON's types."""
    if isinstance(value, str):
        return _without_credentials(str(value)[: max_chars * 2])
    if value is None or isinstance(value, (bool, int, float)):
        return _number(value)
    if isinstance(value, Enum):
        return _cut(value.value, max_chars, depth)
    if depth == 0:
        return "…"
    if is_dataclass(value) and not isinstance(value, type):
        return _cut(asdict(value), max_chars, depth)
    if isinstance(value, Mapping):
        items = list(value.items())[:MAX_ITEMS]
        return {
            str(key)[:max_chars]: _named(str(key), each, max_chars, depth) for key, each in items
        }
    if isinstance(value, (Sequence, Set)) and not isinstance(value, (bytes, bytearray)):
        return [_cut(each, max_chars, depth - 1) for each in list(value)[:MAX_ITEMS]]
    return f"<{type(value).__name__}>"


def _named(name: str, value: Any, max_chars: int, depth: int) -> Any:
    if _is_secret(name, value):
        return REDACTED
    return _cut(value, max_chars, depth - 1)


def _number(value: Any) -> Any:
    is_huge = isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 512
    return "<a huge number>" if is_huge else value


def _without_credentials(text: str) -> str:
    def hide(match: re.Match[str]) -> str:
        kept = match[1] or match[2] or match[3]
        return f"{kept}{REDACTED}{'@' if match[2] else ''}"

    return _CREDENTIALS.sub(hide, text)

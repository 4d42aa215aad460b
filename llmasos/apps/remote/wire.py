"""Messages of the app protocol: JSON objects, one a line, in plain ASCII; see `docs/app-protocol.md`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_jsonable_python

PROTOCOL = 1
"""The version of what the messages mean."""
MAX_MESSAGE_BYTES = 8 * 2**20
"""Of one message to the kernel, its line end included."""

FD = "LLMASOS_FD"
"""The environment variable that names the descriptor of the app's socket."""
TOKEN = "LLMASOS_TOKEN"
"""The environment variable that holds what only this process was told."""

Message = dict[str, Any]


class BadMessage(ValueError):
    """A line that is no message."""


def encode(message: Mapping[str, Any]) -> bytes:
    """A message as a line. Numbers that JSON does not have become the texts NaN, Infinity, -Infinity."""
    try:
        text = _encoder.encode(message)
    except ValueError:
        text = _encoder.encode(_finite(to_jsonable_python(message, fallback=repr)))
    return text.encode("ascii") + b"\n"


def decode(line: bytes) -> Message:
    """A line's message. Raises `BadMessage`."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"is no JSON ({type(error).__name__})") from error
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise BadMessage("is no JSON object with a kind")
    return message


_encoder = json.JSONEncoder(
    separators=(",", ":"),
    allow_nan=False,
    default=lambda value: _finite(to_jsonable_python(value, fallback=repr)),
)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value

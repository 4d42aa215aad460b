"""Keeping secrets out of what processes are given: where a value stands in a result, its name stands instead.

Covered: the value itself, and as URLs, HTML, JSON, Python, base64 (also in the middle of something longer)
and hex spell it. Not covered: a value that comes back in pieces, or that was changed in any other way.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote, quote_plus

from llmasos.kernel.abi import Capabilities
from llmasos.kernel.errors import LlmosError, code_of, error_of

MIN_CHARS = 8
"""A shorter value would be found where it is not."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that nothing but the driver which uses it may see."""

    name: str
    value: str = field(repr=False)


class Vault(Protocol):
    """Where secrets are kept."""

    def for_url(self, name: str, url: str, holder: Capabilities) -> Secret:
        """A secret for a request to a URL by a process that holds this. Raises `SyscallError`."""
        ...


def redacted(value: Any, secrets: Iterable[Secret]) -> Any:
    """The same value of JSON's types with names in the place of secrets."""
    known = [(spelling, f"[secret:{each.name}]") for each in secrets for spelling in _spelled(each)]
    known.sort(key=lambda pair: -len(pair[0]))
    return _without(value, known)


def scrubbed(error: LlmosError, secrets: Iterable[Secret]) -> LlmosError:
    """The same error without secrets in its message."""
    text = redacted(str(error), secrets)
    return error if text == str(error) else error_of(code_of(error), text)


def _without(value: Any, known: list[tuple[str, str]]) -> Any:
    if isinstance(value, str):
        for spelling, name in known:
            value = value.replace(spelling, name)
        return value
    if isinstance(value, Mapping):
        return {_without(key, known): _without(item, known) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_without(item, known) for item in value)
    return value


def _spelled(secret: Secret) -> set[str]:
    value, data = secret.value, secret.value.encode()
    found = {
        value,
        quote(value, safe=""),
        quote(value),
        quote_plus(value),
        html.escape(value),
        html.escape(value, quote=False),
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
        data.hex(),
        data.hex().upper(),
    }
    for offset in range(3):
        found |= _in_base64(data, offset)
    return {spelling for spelling in found if len(spelling) >= MIN_CHARS}


def _in_base64(data: bytes, offset: int) -> set[str]:
    """The letters that stand for all of these bytes, so many behind a border of three."""
    whole = base64.b64encode(b"\0" * offset + data).decode()
    start, end = -(-offset * 8 // 6), (offset + len(data)) * 8 // 6
    inner = whole[start:end]
    return {inner, inner.replace("+", "-").replace("/", "_")}

"""Records to JSON and back, for the kernel's socket and for `--json`. No pydantic: it is quick.

`decode` is strict: what comes over the socket is outside input. It knows the types that the ABI
uses (plain values, enums, NewTypes, optionals, tuples, mappings, frozen dataclasses) and no more.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from llmasos.kernel.errors import LlmosError

T = TypeVar("T")


class BadMessage(LlmosError):
    """A message that does not have the shape it should have."""


def encode(value: Any) -> Any:
    """Plain JSON data: dataclasses become objects, tuples lists, enums their values."""
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)):
        return [encode(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not go over the wire")


def decode(kind: type[T], data: Any) -> T:
    """A value of `kind` from plain JSON data. Raises `BadMessage`."""
    return cast("T", _decode(kind, data, kind.__name__ if isinstance(kind, type) else "value"))


def _decode(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    if isinstance(kind, typing.NewType):
        return _decode(kind.__supertype__, data, where)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_optional(kind, data, where)
    if origin is not None:
        return _decode_container(origin, typing.get_args(kind), data, where)
    if is_dataclass(kind):
        return _decode_record(cast("type[Any]", kind), data, where)
    if issubclass(kind, enum.Enum):
        return _decode_enum(kind, data, where)
    return _decode_plain(kind, data, where)


def _decode_optional(kind: Any, data: Any, where: str) -> Any:
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    if data is None:
        return None
    return _decode(options[0], data, where)


def _decode_container(origin: Any, args: tuple[Any, ...], data: Any, where: str) -> Any:
    if origin in (tuple, list):
        if not isinstance(data, list):
            raise BadMessage(f"{where} must be a list.")
        return origin(_decode(args[0], item, where) for item in data)
    if not isinstance(data, dict):
        raise BadMessage(f"{where} must be an object.")
    return {key: _decode(args[1], item, f"{where}.{key}") for key, item in data.items()}


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode_record(kind: type[Any], data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise BadMessage(f"{where} must be an object.")
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(set(data) - set(known)):
        raise BadMessage(f"{where} has no field {unknown[0]}.")
    required = (n for n, f in known.items() if f.default is f.default_factory is MISSING)
    if missing := [name for name in required if name not in data]:
        raise BadMessage(f"{where} needs a field {missing[0]}.")
    hints = _hints(cast("Any", kind))
    return kind(
        **{name: _decode(hints[name], item, f"{where}.{name}") for name, item in data.items()}
    )


def _decode_enum(kind: type[enum.Enum], data: Any, where: str) -> enum.Enum:
    try:
        return kind(data)
    except ValueError:
        raise BadMessage(f"{where} cannot be {data!r}.") from None


def _decode_plain(kind: type[Any], data: Any, where: str) -> Any:
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise BadMessage(f"{where} must be a {kind.__name__}, not {type(data).__name__}.")
    return data

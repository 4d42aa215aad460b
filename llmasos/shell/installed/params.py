"""A first look at an app's parameters, by the JSON schema in its manifest; the app checks the rest itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmasos.kernel.abi import AppInfo
from llmasos.kernel.errors import InvalidArguments

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,),
    "array": (list, tuple), "object": (dict,), "null": (type(None),),
}  # fmt: skip


def check_params(info: AppInfo, params: Mapping[str, Any]) -> None:
    """Raise `InvalidArguments` naming every parameter that is missing, unknown or of another type."""
    properties = info.parameters.get("properties", {})
    problems = [
        f"{name}: field required"
        for name in info.parameters.get("required", ())
        if name not in params
    ]
    known = ", ".join(properties) or "none"
    for name, value in params.items():
        if name not in properties:
            if info.parameters.get("additionalProperties") is False:
                problems.append(f"{name}: no such parameter (there are: {known})")
        elif not _fits(value, properties[name]):
            problems.append(f"{name}: must be {_wanted(properties[name])}")
    if problems:
        raise InvalidArguments(f"{info.name}: {'; '.join(problems)}.")


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value is of a type that the schema names; True where it names none plainly."""
    names = _names(schema)
    if not names:
        return True
    if isinstance(value, bool):
        return "boolean" in names
    if isinstance(value, float) and value.is_integer() and "integer" in names:
        return True
    return any(isinstance(value, _TYPES[name]) for name in names)


def _names(schema: Mapping[str, Any]) -> set[str]:
    options = schema.get("anyOf", [schema])
    names = {option.get("type") for option in options}
    return names if names <= _TYPES.keys() else set()


def _wanted(schema: Mapping[str, Any]) -> str:
    return " or ".join(sorted(_names(schema)))

"""Words of a command line to an app's parameters, by the app's own JSON schema.

    llmasos run summarise notes.md --max-tokens 60 style=short
                          ^ the first parameter  ^ by name, either way

Words without a name fill the parameters that must be given, in order, then a list. A value is read
as its parameter's type: a number, `true`/`false`, JSON for objects, JSON or a single item for lists,
otherwise the text. What the values must be is the app's to check.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmasos.kernel.abi import AppInfo
from llmasos.kernel.errors import UsageError
from llmasos.shell.arguments import did_you_mean

Schema = Mapping[str, Any]


def parse_params(app: AppInfo, words: Sequence[str]) -> dict[str, Any]:
    """The app's parameters. Raises `UsageError` for a word that it has no parameter for."""
    properties: Mapping[str, Schema] = app.parameters.get("properties", {})
    params: dict[str, Any] = {}
    positional: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            positional.extend(rest)
            break
        name, equals, value = word.removeprefix("--").partition("=")
        known = _property(name, properties)
        if word.startswith("--"):
            if known is None:
                raise UsageError(_unknown(app, name, properties))
            text = value if equals else _value_of_flag(app, name, properties[known], rest)
            _set(params, known, text, properties[known])
        elif equals and known is not None:
            _set(params, known, value, properties[known])
        else:
            positional.append(word)
    _fill(app, params, positional, properties)
    return params


def _property(name: str, properties: Mapping[str, Schema]) -> str | None:
    spelt = name.replace("-", "_")
    return next((known for known in (name, spelt) if known in properties), None)


def _value_of_flag(app: AppInfo, name: str, schema: Schema, rest: list[str]) -> str:
    if "boolean" in _types(schema) and not (rest and rest[0] in ("true", "false")):
        return "true"
    if not rest:
        raise UsageError(f"--{name} of app {app.name} needs a value.")
    return rest.pop(0)


def _fill(
    app: AppInfo, params: dict[str, Any], positional: list[str], properties: Mapping[str, Schema]
) -> None:
    """Give unnamed words to required parameters that are still open, then to a list."""
    required = [name for name in properties if name in app.parameters.get("required", ())]
    lists = [name for name in properties if "array" in _types(properties[name])]
    for name in dict.fromkeys([*required, *lists]):
        if not positional:
            return
        if name in params:
            continue
        schema = properties[name]
        if "array" in _types(schema):
            while positional:
                _set(params, name, positional.pop(0), schema)
        else:
            _set(params, name, positional.pop(0), schema)
    if positional:
        raise UsageError(
            f"App {app.name} has no parameter for {positional[0]!r}; it takes"
            f" {', '.join(properties) or 'none'} (quote a text that has spaces)."
        )


def _set(params: dict[str, Any], name: str, text: str, schema: Schema) -> None:
    value = value_of(text, schema)
    if "array" in _types(schema) and not isinstance(value, list):
        params.setdefault(name, []).append(value)
    else:
        params[name] = value


def value_of(text: str, schema: Schema) -> Any:
    """A text as its parameter's type wants it; where it cannot be that, the text itself."""
    types = _types(schema)
    if "string" in types or not types:
        return text
    try:
        value = json.loads(text, parse_constant=str)  # NaN is JSON to Python alone
    except (ValueError, RecursionError):
        value = text
    if "array" in types and not isinstance(value, list):
        return value_of(text, schema.get("items", {}))
    return value


def _types(schema: Schema) -> set[str]:
    """The JSON types that a schema names, null left out; empty where it is not plain."""
    options: Sequence[Schema] = schema.get("anyOf", (schema,))
    return {str(option["type"]) for option in options if option.get("type", "null") != "null"}


def _unknown(app: AppInfo, name: str, properties: Mapping[str, Schema]) -> str:
    known = ", ".join(properties) or "none"
    return (
        f"App {app.name} has no parameter {name!r}{did_you_mean(name, properties)}; it takes"
        f" {known} (flags of `run` itself come before the app's name)."
    )

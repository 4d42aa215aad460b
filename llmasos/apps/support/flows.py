"""Business flows as they are declared in YAML, and what can be wrong with a declaration.

A flow fills its slots, then takes its steps in order: find a row, check it, ask for confirmation, change
it, say something. It is followed by `flow_run`; nothing in it is decided by a model's free text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = str | dict[str, str]
"""What is said: one text, or one for each language."""
Scalar = str | int | float | bool | None


class Strict(BaseModel):
    """A part of the configuration: an unknown key is an error, not a silence."""

    model_config = ConfigDict(extra="forbid")


class Slot(Strict):
    """What a flow must know: a pattern to find, one of some choices, or a text of the customer's."""

    ask: Text
    pattern: str | None = None
    choices: dict[str, list[str]] | None = None
    """Value to examples of how customers say it."""
    text: bool = False
    must: str | None = None
    """What a text has to match, such as `\\d` for an address."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if sum((self.pattern is not None, self.choices is not None, self.text)) != 1:
            raise ValueError("a slot has one of pattern, choices, text")
        for expression in (self.pattern, self.must):
            try:
                re.compile(expression or "")
            except re.error as error:
                raise ValueError(f"{expression!r} is no regular expression ({error})") from error
        return self


class Check(Strict):
    """A condition on the row that was found."""

    field: str
    among: list[Scalar] | None = None
    within_days: Annotated[int, Field(ge=0)] | None = None
    otherwise: Text

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if (self.among is None) == (self.within_days is None):
            raise ValueError("a check has one of among, within_days")
        return self


class Step(Strict):
    """One step; exactly one of its keys is given (`missing` belongs to `find`)."""

    find: dict[str, Scalar] | None = None
    """Columns and their values; `$slot` is a slot's."""
    missing: Text | None = None
    check: Check | None = None
    confirm: Text | None = None
    update: dict[str, Scalar] | None = None
    say: Text | None = None
    hand_over: Text | None = None

    @property
    def kind(self) -> str:
        """Which of them."""
        kinds = ("find", "check", "confirm", "update", "say", "hand_over")
        return next((kind for kind in kinds if getattr(self, kind) is not None), "")

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        kinds = ("find", "check", "confirm", "update", "say", "hand_over")
        if sum(getattr(self, kind) is not None for kind in kinds) != 1:
            raise ValueError(f"a step has one of {', '.join(kinds)}")
        if (self.missing is not None) != (self.find is not None):
            raise ValueError("`missing` says what to tell where `find` finds nothing")
        return self


class Flow(Strict):
    """A business flow."""

    about: str
    examples: Annotated[list[str], Field(min_length=2)]
    slots: dict[str, Slot] = Field(default_factory=dict)
    steps: Annotated[list[Step], Field(min_length=1)]


def problems_of(name: str, flow: Flow) -> Iterator[str]:
    """Every contradiction in a flow: an order in which it cannot be followed, or should not be."""
    yield from _unknown_names(name, flow)
    is_found = is_confirmed = False
    checks: list[Check] = []
    for number, step in enumerate(flow.steps, 1):
        where = f"flow {name}, step {number}"
        if step.kind in ("check", "update") and not is_found:
            yield f"{where}: {step.kind} needs a row, and no find comes before it"
        if step.kind == "update" and not is_confirmed:
            yield f"{where}: update without a confirm before it"
        if step.check is not None:
            yield from (f"{where}: {problem}" for problem in _against(step.check, checks))
            checks.append(step.check)
        if step.kind == "hand_over" and number < len(flow.steps):
            yield f"{where}: nothing can follow a hand_over"
        is_found = is_found or step.kind == "find"
        is_confirmed = step.kind == "confirm" or (is_confirmed and step.kind != "update")


def _against(check: Check, earlier: list[Check]) -> Iterator[str]:
    for other in earlier:
        if other.field != check.field or other.among is None or check.among is None:
            continue
        if not set(map(str, other.among)) & set(map(str, check.among)):
            yield f"no row can pass: {check.field} was checked to be among {other.among} before"


def _unknown_names(name: str, flow: Flow) -> Iterator[str]:
    for number, step in enumerate(flow.steps, 1):
        for value in (*(step.find or {}).values(), *(step.update or {}).values()):
            if isinstance(value, str) and value[:1] == "$" and value[1:] not in flow.slots:
                yield f"flow {name}, step {number}: there is no slot {value[1:]!r}"


def same_examples(flows: dict[str, Flow]) -> Iterator[str]:
    """Examples that two flows claim."""
    owner: dict[str, str] = {}
    for name, flow in flows.items():
        for example in flow.examples:
            other = owner.setdefault(example.casefold().strip(), name)
            if other != name:
                yield f"flows {other} and {name} both claim the example {example!r}"


def said(text: Text, language: str) -> str:
    """A text in a language, else in the first it has."""
    if isinstance(text, str):
        return text
    return text.get(language) or next(iter(text.values()))


def filled(text: str, values: dict[str, Any]) -> str:
    """`{name}` replaced by values; a name that is not there stays as it is."""
    return re.sub(
        r"\{(\w+)\}", lambda m: str(values[m[1]]) if values.get(m[1]) is not None else m[0], text
    )

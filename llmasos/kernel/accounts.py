"""An account: what one process or group may use and has used, with everything below it. Holds no policy of
when it is asked; that is `limits`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from llmasos.kernel.abi import (
    Budget,
    CallLimit,
    GroupLimits,
    LimitInfo,
    Limits,
    Pid,
    matches,
)
from llmasos.kernel.errors import InvalidArguments, LimitExceeded

WARNED_AT = 0.9
"""Of a budget: then XTOK is signalled."""
BUDGETS = ("tokens_out", "tokens_in", "model_s", "page_s", "cost")
"""Those of which it is."""
_SLACK = 1e-9
"""Sums of prices are off by less."""


@dataclass(slots=True)
class Used:
    """What was used."""

    tokens_out: int = 0
    tokens_in: int = 0
    tokens_computed: int = 0
    model_s: float = 0.0
    page_s: float = 0.0
    bytes_written: int = 0
    cost: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)

    def add(self, other: Used) -> None:
        """Add what somebody else used."""
        self.tokens_out += other.tokens_out
        self.tokens_in += other.tokens_in
        self.tokens_computed += other.tokens_computed
        self.model_s += other.model_s
        self.page_s += other.page_s
        self.bytes_written += other.bytes_written
        self.cost += other.cost
        self.calls.update(other.calls)

    def values(self) -> dict[str, Any]:
        """As JSON has it; tokens that were computed are no budget and count for one kernel alone."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**own, "calls": dict(self.calls), "tokens_computed": 0}

    def num_calls(self, pattern: str) -> int:
        """Calls of the syscalls that a pattern stands for."""
        return sum(count for name, count in self.calls.items() if matches(name, pattern))


@dataclass(frozen=True, slots=True)
class Prices:
    """Of a token, in money."""

    token_in: float = 0.0
    token_out: float = 0.0


@dataclass(slots=True, eq=False)
class Account:
    """What one process or group may use, and has used, with everything below it."""

    title: str
    """What errors call it."""
    parent: Account | None = None
    limits: Budget = field(default_factory=Budget)
    pid: Pid | None = None
    """Whose it is; None for a group's."""
    used: Used = field(default_factory=Used)
    ended: Used = field(default_factory=Used)
    """Of that, what processes that have ended used."""
    warned: set[str] = field(default_factory=set)
    """Budgets of which XTOK was signalled."""
    num_below: int = 0
    """Live processes that descend from it, or are in the group."""
    num_children: int = 0
    """Live children of the process."""
    is_live: bool = True
    """False once the process has ended."""
    is_saved: bool = False

    def upwards(self) -> Iterator[Account]:
        """It and all that it is below."""
        account: Account | None = self
        while account is not None:
            yield account
            account = account.parent

    def over(self, what: str) -> LimitExceeded:
        """The error of whoever wants more."""
        return LimitExceeded(f"{self.title} may {what} and has done so.")

    def exhausted(self, prices: Prices, *, draws: bool) -> LimitExceeded | None:
        """The error of whoever wants more of the model, and to sample if it `draws`; None where it may."""
        limits, used = self.limits, self.used
        if draws and limits.tokens_out is not None and used.tokens_out >= limits.tokens_out:
            return self.over(f"sample {limits.tokens_out} tokens")
        if draws and limits.cost is not None and self._costs_too_much(prices.token_out):
            return self.over(f"spend {limits.cost:g} on tokens")
        if limits.model_s is not None and used.model_s >= limits.model_s:
            return self.over(f"use the model for {limits.model_s:g} s")
        if self.has_held_pages:
            return self.over(f"hold pages for {limits.page_s:g} page-seconds")
        return None

    @property
    def has_held_pages(self) -> bool:
        """Whether pages were held for as long as they may be."""
        limit = self.limits.page_s
        return limit is not None and self.used.page_s >= limit

    def may_draw(self, num_tokens: int, prices: Prices) -> bool:
        """Whether so many tokens may be sampled yet."""
        limit = self.limits.tokens_out
        if limit is not None and self.used.tokens_out + num_tokens > limit:
            return False
        return not self._costs_too_much(num_tokens * prices.token_out)

    def refuse(
        self, prices: Prices, *, tokens_in: int = 0, bytes_written: int = 0
    ) -> LimitExceeded | None:
        """The error of whoever wants so much more; None where he may have it."""
        limits, used = self.limits, self.used
        if limits.tokens_in is not None and used.tokens_in + tokens_in > limits.tokens_in:
            return LimitExceeded(
                f"{self.title} may take in {limits.tokens_in} tokens and these are more."
            )
        most = limits.bytes_written
        if most is not None and used.bytes_written + bytes_written > most:
            return LimitExceeded(f"{self.title} may write {most} bytes and this is more.")
        if limits.cost is not None and self._costs_too_much(tokens_in * prices.token_in):
            return LimitExceeded(f"{self.title} may spend {limits.cost:g} on tokens: it is spent.")
        return None

    def refuse_call(self, name: str) -> LimitExceeded | None:
        """The error of a call that was counted already; None where it is not one too many."""
        for limit in self.limits.calls:
            if matches(name, limit.pattern) and self.used.num_calls(limit.pattern) > limit.most:
                return self.over(f"call {limit.pattern} {limit.most} times")
        return None

    def refuse_child(self, *, is_parent: bool) -> LimitExceeded | None:
        """The error of one more process below it; None where there may be one."""
        limits = self.limits
        if self.pid is None:
            return None  # a group counts for itself
        if limits.processes is not None and self.num_below >= limits.processes:
            return LimitExceeded(
                f"{self.title} may have {limits.processes} processes below it and has them."
            )
        most = limits.children if isinstance(limits, Limits) else None
        if is_parent and most is not None and self.num_children >= most:
            return LimitExceeded(f"{self.title} may have {most} children and has them.")
        return None

    def newly_short(self) -> bool:
        """Whether a budget has come to where XTOK is due, which is then noted."""
        short = {name for name in BUDGETS if self.is_short(name)} - self.warned
        self.warned |= short
        return bool(short)

    def rows(self, scope: str) -> Iterator[LimitInfo]:
        """Every limit that it sets, and what is used of it; live processes and time are not known here."""
        for name in (*BUDGETS, "bytes_written"):
            if (limit := getattr(self.limits, name)) is not None:
                yield LimitInfo(name, limit, getattr(self.used, name), scope)
        for each in self.limits.calls:
            yield LimitInfo(
                f"calls {each.pattern}", each.most, self.used.num_calls(each.pattern), scope
            )
        if self.limits.processes is not None and self.pid is not None:
            yield LimitInfo("processes", self.limits.processes, self.num_below, scope)
        if isinstance(self.limits, Limits) and self.limits.children is not None:
            yield LimitInfo("children", self.limits.children, self.num_children, scope)

    def saved(self) -> dict[str, Any]:
        """A row that survives a restart."""
        parent = self.parent.pid if self.parent else None
        return {"parent": parent, "limits": asdict(self.limits), "ended": self.ended.values()}

    def _costs_too_much(self, more: float) -> bool:
        limit = self.limits.cost
        return limit is not None and self.used.cost + more > limit + _SLACK

    def is_short(self, name: str) -> bool:
        """Whether XTOK is due for a budget."""
        limit = getattr(self.limits, name)
        return limit is not None and getattr(self.used, name) >= WARNED_AT * limit


def check_limits(limits: Budget) -> None:
    """Raise `InvalidArguments` for a limit that is none: each is a number from 0 up."""
    given = [getattr(limits, each.name) for each in fields(limits) if each.name != "calls"]
    given += [each.most for each in limits.calls]
    if not all(value >= 0 and math.isfinite(value) for value in given if value is not None):
        raise InvalidArguments("Limits are numbers from 0 up.")


def limits_of(values: Mapping[str, Any]) -> Limits:
    """A process's limits as a journal has them. Raises `TypeError` for what is none."""
    return Limits(**{**values, "calls": _call_limits(values)})


def group_limits_of(values: Mapping[str, Any]) -> GroupLimits:
    """The same of a group."""
    return GroupLimits(**{**values, "calls": _call_limits(values)})


def used_of(values: Mapping[str, Any]) -> Used:
    """What was used, as a row has it."""
    known = {each.name for each in fields(Used)}
    given = {name: value for name, value in values.items() if name in known}
    return Used(**{**given, "calls": Counter(given.get("calls", {}))})


def _call_limits(values: Mapping[str, Any]) -> tuple[CallLimit, ...]:
    return tuple(CallLimit(**each) for each in values.get("calls", ()))

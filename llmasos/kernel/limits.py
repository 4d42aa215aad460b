"""What processes and groups may use, and what they have used: one accounting for both.

Every process has an account, below the account of the process that started it, for good: it stays there
when its parent has ended, and when it is detached. Every group has one below the group above it. What a
process uses counts against its own account, all above that, and its group's; so a budget is shared by all
that descend from whoever has it, and starting children gains nothing. An account stays until nobody below
it lives.

At 90 % of a budget of tokens, time or money whoever has it, and whoever is using it, is signalled XTOK,
once. At 100 % it is over: `exhausted` and `may_draw` are asked before every step, `refuse` before anything
else that counts.

What live processes use is in their own journals. What their relatives that have ended used is in the rows
that `saved` and `restore` turn accounts into and back, so a restart forgives nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from llmasos.kernel.process import Process

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
        short = {name for name in BUDGETS if self._is_short(name)} - self.warned
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

    def _is_short(self, name: str) -> bool:
        limit = getattr(self.limits, name)
        return limit is not None and getattr(self.used, name) >= WARNED_AT * limit


Saved = Mapping[str, Any]
SaveAccount = Callable[[str, Saved | None], None]
"""Takes the name of an account and its row, or None where it is over."""


def _forget(_name: str, _row: Saved | None) -> None:
    """What becomes of rows where no journal is kept."""


class Ledger:
    """The accounts of every process of one kernel."""

    def __init__(self, prices: Prices) -> None:
        self.prices = prices
        self.save: SaveAccount = _forget
        self.on_short: Callable[[Pid], None] = lambda _: None
        """Told of processes that XTOK is due for."""
        self._accounts: dict[Pid, Account] = {}
        self._rows: Mapping[Pid, Saved] = {}
        self._starters: Mapping[Pid, Pid] = {}

    def open(self, pid: Pid, ppid: Pid, limits: Limits) -> Account:
        """The account of a new process. Raises `LimitExceeded` where there may be no more, and
        `InvalidArguments` for limits that are none."""
        check_limits(limits)
        parent = self._accounts.get(ppid)
        for account in parent.upwards() if parent else ():
            if (error := account.refuse_child(is_parent=account is parent)) is not None:
                raise error
        self._accounts[pid] = account = Account(f"Process {pid}", parent, limits, pid)
        self._enter(account)
        return account

    def charge(self, process: Process, used: Used) -> None:
        """Add to what a process, everything above it, and its group have used."""
        for account in process.accounts():
            account.used.add(used)
            if account.newly_short():
                self.on_short(process.pid)
                if account.pid not in (None, process.pid) and account.is_live:
                    self.on_short(account.pid)

    def charge_tokens_in(self, process: Process, num_tokens: int) -> None:
        """Tokens were appended."""
        process.usage.tokens_in += num_tokens
        cost = num_tokens * self.prices.token_in
        self.charge(process, Used(tokens_in=num_tokens, cost=cost))

    def count_call(self, process: Process, name: str) -> None:
        """A process asks for something."""
        process.usage.num_syscalls += 1
        process.usage.calls[name] += 1
        for account in process.accounts():
            account.used.calls[name] += 1

    def charge_bytes(self, process: Process, num_bytes: int) -> None:
        """A process writes. Raises `LimitExceeded`: then it must not."""
        self.refuse(process, bytes_written=num_bytes)
        process.usage.bytes_written += num_bytes
        self.charge(process, Used(bytes_written=num_bytes))

    def refuse(self, process: Process, **wanted: int) -> None:
        """Raise `LimitExceeded` where a process may not have so much more; see `Account.refuse`."""
        for account in process.accounts():
            if (error := account.refuse(self.prices, **wanted)) is not None:
                raise error

    def refuse_call(self, process: Process, name: str) -> None:
        """Raise `LimitExceeded` where a call, counted already, is one too many."""
        for account in process.accounts():
            if (error := account.refuse_call(name)) is not None:
                raise error

    def exhausted(self, process: Process, *, draws: bool) -> LimitExceeded | None:
        """The error of its model work; None where it may have more."""
        for account in process.accounts():
            if (error := account.exhausted(self.prices, draws=draws)) is not None:
                return error
        return None

    def may_draw(self, process: Process, drawing: Counter[Account]) -> bool:
        """Whether it may sample one more token in a step in which so many are drawn already."""
        return all(
            account.may_draw(drawing[account] + 1, self.prices) for account in process.accounts()
        )

    def close(self, process: Process) -> None:
        """A process has ended: what it used is kept for all above it. Everybody is told once, here."""
        own = own_use(process, self.prices)
        for account in process.accounts():
            account.ended.add(own)
        mine = process.account
        mine.is_live = False
        if mine.parent is not None:
            mine.parent.num_children -= 1
        for account in list(mine.upwards())[1:]:
            account.num_below -= 1
        for account in list(mine.upwards()):
            self._settle(account)

    def set_limits(self, process: Process, limits: Limits) -> None:
        """Give a process other limits; what it has used stays used."""
        process.limits = process.account.limits = limits
        process.account.warned = {
            name for name in process.account.warned if process.account._is_short(name)
        }
        self._settle(process.account)

    # --- after a restart

    def remember(self, rows: Mapping[Pid, Saved], starters: Mapping[Pid, Pid]) -> None:
        """Take in the rows of an earlier kernel's accounts, and who started those that come back."""
        self._rows = rows
        self._starters = starters

    def restore(self, process: Process, *, was_warned: bool) -> Account:
        """The account of a process that comes back, below that of the one which started it."""
        account = self._known(process.pid)
        account.limits, account.is_live = process.limits, True
        process.account = account
        self._enter(account)
        for each in process.accounts():
            each.used.add(own_use(process, self.prices))
            if was_warned:
                each.newly_short()
        return account

    def _known(self, pid: Pid) -> Account:
        """An account that others are below; its process may have ended, or come back later."""
        if pid not in self._accounts:
            row = self._rows.get(pid, {})
            limits = limits_of(row.get("limits", {}))
            account = Account(f"Process {pid}", None, limits, pid, is_live=False)
            ended = used_of(row.get("ended", {}))
            account.ended.add(ended)
            account.used.add(ended)
            account.is_saved = bool(row)
            self._accounts[pid] = account
            above = row.get("parent", self._starters.get(pid))
            if above in self._rows or above in self._starters:
                account.parent = self._known(Pid(above))
        return self._accounts[pid]

    # --- within

    def _enter(self, account: Account) -> None:
        if account.parent is not None:
            account.parent.num_children += 1
        for above in list(account.upwards())[1:]:
            above.num_below += 1

    def _settle(self, account: Account) -> None:
        """Save an account that somebody will need, forget one that nobody does."""
        if account.pid is None:
            return
        name = f"process {account.pid}"
        if not account.is_live and account.num_below == 0:
            self._accounts.pop(account.pid, None)
            if account.is_saved:
                self.save(name, None)
        elif not account.is_live or account.limits != Limits():
            account.is_saved = True
            self.save(name, account.saved())


def limit_rows(process: Process, ran_s: float) -> list[LimitInfo]:
    """Every limit that a process is under, its own first."""
    rows = list(process.account.rows("own"))
    if process.limits.wall_s is not None:
        rows.append(LimitInfo("wall_s", process.limits.wall_s, ran_s, "own"))
    for account in list(process.accounts())[1:]:
        scope = account.title[:1].lower() + account.title[1:]
        rows += account.rows(scope)
    for group in process.group.upwards():
        rows += group.rows()
    return rows


def check_limits(limits: Budget) -> None:
    """Raise `InvalidArguments` for a limit that is none: each is a number from 0 up."""
    given = [getattr(limits, each.name) for each in fields(limits) if each.name != "calls"]
    given += [each.most for each in limits.calls]
    if not all(value >= 0 and math.isfinite(value) for value in given if value is not None):
        raise InvalidArguments("Limits are numbers from 0 up.")


def changed(limits: Limits, given: Limits, lifted: Sequence[str]) -> Limits:
    """Limits with those that are given, and without those that are lifted. Raises `InvalidArguments`."""
    names = {each.name for each in fields(Limits)}
    if unknown := set(lifted) - names:
        raise InvalidArguments(f"There is no limit {min(unknown)!r}.")
    values: dict[str, Any] = {name: () if name == "calls" else None for name in lifted}
    new = {name: getattr(given, name) for name in names}
    values |= {name: value for name, value in new.items() if value not in (None, ())}
    return replace(limits, **values)


def own_use(process: Process, prices: Prices) -> Used:
    """What a process itself has used."""
    usage = process.usage
    cost = usage.tokens_in * prices.token_in + usage.tokens_out * prices.token_out
    return Used(
        tokens_out=usage.tokens_out,
        tokens_in=usage.tokens_in,
        model_s=usage.model_s,
        page_s=usage.page_s,
        bytes_written=usage.bytes_written,
        cost=cost,
        calls=Counter(usage.calls),
    )


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

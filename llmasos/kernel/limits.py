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

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from llmasos.kernel.abi import (
    LimitInfo,
    Limits,
    Pid,
)
from llmasos.kernel.accounts import Account, Prices, Used, check_limits, limits_of, used_of
from llmasos.kernel.errors import InvalidArguments, LimitExceeded

if TYPE_CHECKING:
    from llmasos.kernel.process import Process

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
            name for name in process.account.warned if process.account.is_short(name)
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

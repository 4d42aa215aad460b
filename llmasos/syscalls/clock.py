"""`time.*`: what time it is, and waiting. The clock is the runtime's, so a replay sees the same one."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from difflib import get_close_matches
from typing import Annotated, TypedDict
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import Field

from llmasos.kernel.abi import Effect
from llmasos.kernel.errors import Failed, InvalidArguments
from llmasos.kernel.syscall import Call, syscall

MAX_SLEEP_S = 86_400.0

_OFFSET = re.compile(r"(?:UTC|GMT)?([+-])(\d{1,2})(?::?([0-5]\d))?")


class NowResult(TypedDict):
    """A moment as a clock on the wall of that time zone shows it."""

    text: str
    iso: str
    date: str
    time: str
    weekday: str
    timezone: str
    unix: float


@syscall("time.now", effect=Effect.READ)
def now(
    call: Call,
    timezone: Annotated[str, Field(description="local, UTC or like Europe/Paris")] = "local",
) -> NowResult:
    """Tell the date and the time now."""
    unix = call.runtime.now()
    name, zone = _zone(timezone)
    try:
        moment = datetime.fromtimestamp(unix, UTC).astimezone(zone)
    except (OverflowError, ValueError, OSError) as error:
        raise Failed("The clock of this machine shows no possible date; set it.") from error
    weekday = _WEEKDAYS[moment.weekday()]
    date, time = f"{moment:%Y-%m-%d}", f"{moment:%H:%M:%S}"
    return NowResult(
        text=f"{weekday}, {date} {time} ({name}, UTC{moment:%z})",
        iso=moment.isoformat(timespec="seconds"),
        date=date,
        time=time,
        weekday=weekday,
        timezone=name,
        unix=unix,
    )


_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
"""Not from strftime, whose names follow the machine's language."""


def _zone(asked: str) -> tuple[str, tzinfo | None]:
    """A zone by its name, its city's, or its distance from UTC; None is the machine's own."""
    name = asked.strip()
    if name.lower() in ("", "local", "here"):
        return "local", None
    if name.upper() in ("UTC", "GMT", "Z"):
        return "UTC", UTC
    offset = _OFFSET.fullmatch(name.upper().replace(" ", ""))
    if offset:
        return _fixed(*offset.groups())
    try:
        return name, ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return _by_city(name)


def _fixed(sign: str, hours: str, minutes: str | None) -> tuple[str, tzinfo]:
    distance = timedelta(hours=int(hours), minutes=int(minutes or 0))
    if distance > timedelta(hours=14):
        raise InvalidArguments("No time zone is more than 14 hours from UTC.")
    zone = timezone(-distance if sign == "-" else distance)
    return str(zone), zone


def _by_city(name: str) -> tuple[str, tzinfo]:
    wanted = name.lower().replace(" ", "_")
    cities = {zone.rpartition("/")[2].lower(): zone for zone in sorted(available_timezones())}
    cities |= {zone.lower(): zone for zone in available_timezones()}
    if wanted in cities:
        return cities[wanted], ZoneInfo(cities[wanted])
    close = get_close_matches(wanted[:100], cities, n=2)
    hint = " or ".join(cities[city] for city in close) or "UTC or Europe/Paris"
    raise InvalidArguments(f"There is no time zone {name[:60]!r}; try {hint}.")


@syscall("time.sleep", effect=Effect.PURE, deadline_s=None, tool=False)
async def sleep(
    call: Call,
    seconds: Annotated[float, Field(ge=0, le=MAX_SLEEP_S, description="How long to wait")],
) -> None:
    """Wait for some seconds."""
    await asyncio.sleep(call.begun_at + seconds - call.runtime.now())


SYSCALLS = (now, sleep)

"""The clock: the runtime's time, on the wall of any zone."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.kernel.errors import Failed, InvalidArguments, SyscallError
from llmasos.syscalls import clock
from tests.syscalls.conftest import Caller

NOON = 1_795_348_800.0
"""2026-11-22 12:00 UTC, a Sunday."""


@pytest.fixture
def at_noon(caller: Caller) -> Caller:
    caller.runtime.now = lambda: NOON
    return caller


@pytest.mark.parametrize(
    ("zone", "name", "iso"),
    [
        ("UTC", "UTC", "2026-11-22T12:00:00+00:00"),
        ("utc", "UTC", "2026-11-22T12:00:00+00:00"),
        ("Europe/Paris", "Europe/Paris", "2026-11-22T13:00:00+01:00"),
        ("europe/paris", "Europe/Paris", "2026-11-22T13:00:00+01:00"),
        ("Tokyo", "Asia/Tokyo", "2026-11-22T21:00:00+09:00"),
        ("new york", "America/New_York", "2026-11-22T07:00:00-05:00"),
        ("Asia/Kathmandu", "Asia/Kathmandu", "2026-11-22T17:45:00+05:45"),
        ("UTC+5:30", "UTC+05:30", "2026-11-22T17:30:00+05:30"),
        ("-03", "UTC-03:00", "2026-11-22T09:00:00-03:00"),
    ],
)
def test_a_zone_is_named_by_region_city_or_offset(
    at_noon: Caller, zone: str, name: str, iso: str
) -> None:
    result = at_noon(clock.now, timezone=zone)
    assert (result["timezone"], result["iso"], result["unix"]) == (name, iso, NOON)


def test_the_text_has_weekday_date_and_time(at_noon: Caller) -> None:
    result = at_noon(clock.now, timezone="UTC")
    assert result["text"] == "Sunday, 2026-11-22 12:00:00 (UTC, UTC+0000)"
    assert (result["weekday"], result["date"], result["time"]) == (
        "Sunday",
        "2026-11-22",
        "12:00:00",
    )
    assert at_noon(clock.now)["timezone"] == "local"


@pytest.mark.parametrize(
    "zone", ["Europe/Pariss", "../../etc/passwd", "/etc/passwd", "Europe", "a\0b"]
)
def test_an_unknown_zone_names_a_known_one(at_noon: Caller, zone: str) -> None:
    with pytest.raises(InvalidArguments, match="try "):
        at_noon(clock.now, timezone=zone)
    with pytest.raises(InvalidArguments, match="14 hours"):
        at_noon(clock.now, timezone="+25")


def test_an_impossible_clock_is_a_clear_error(caller: Caller) -> None:
    caller.runtime.now = lambda: 1e30
    with pytest.raises(Failed, match="clock"):
        caller(clock.now)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(zone=st.one_of(st.text(max_size=30), st.from_regex(r"(UTC)?[+-]\d\d:?\d\d")))
def test_any_zone_gives_a_time_or_a_syscall_error(caller: Caller, zone: str) -> None:
    caller.runtime.now = lambda: NOON
    with suppress(SyscallError):
        caller(clock.now, timezone=zone)


def test_sleeping_is_bounded_and_not_offered_to_models(caller: Caller) -> None:
    asyncio.run(caller(clock.sleep, seconds=0))
    for seconds in (-1, clock.MAX_SLEEP_S + 1, float("nan"), float("inf")):
        with pytest.raises(InvalidArguments):
            caller(clock.sleep, seconds=seconds)
    assert not clock.sleep.info.tool

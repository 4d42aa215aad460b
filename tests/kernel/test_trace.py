"""The hub, subscriptions that are too slow, worker threads, and what is shown of arguments."""

import asyncio
import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.abi import Pid
from llmasos.kernel.metrics import Histogram
from llmasos.kernel.redact import REDACTED, short, short_arguments
from llmasos.kernel.trace import Subscription, Trace, event_of
from llmasos.kernel.workers import Workers

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_nobody_listens_until_somebody_does():
    trace, heard = Trace(), []

    def listener(pid, event, text):
        heard.append((pid, event))

    assert not trace.is_heard
    trace.listen(listener)
    assert trace.is_heard
    trace.tell(Pid(1), ("sig", 2))
    trace.leave(listener)
    assert not trace.is_heard
    assert heard == [(1, ("sig", 2))]


async def read(subscription):
    return [event_of(line) async for batch in subscription.batches() for line in batch.splitlines()]


async def test_a_reader_that_is_too_slow_is_told_how_many_events_it_lacks_and_where():
    trace = Trace()
    with Subscription(trace, {Pid(1): True}, max_queued=3) as subscription:
        for number in range(10):
            trace.tell(Pid(1), ("cancel", str(number), 0))
        trace.tell(Pid(1), ("exit", 0, "", None))
        events = await read(subscription)
    assert [event[1] for _, event in events[:3]] == ["0", "1", "2"]
    assert events[3:] == [(0, ("dropped", 8))]


async def test_huge_events_fill_a_queue_by_their_bytes():
    trace = Trace()
    with Subscription(trace, {Pid(1): True}, max_bytes=1000) as subscription:
        for number in range(5):
            trace.tell(Pid(1), ("done", str(number), "x" * 900, 1.0))
        trace.tell(Pid(1), ("exit", 0, "", None))
        events = await read(subscription)
    assert [event[0] for _, event in events] == ["done", "done", "dropped"]


async def test_children_are_followed_only_where_that_is_asked():
    for follow, expected in ((False, {1}), (True, {1, 2, 3})):
        trace = Trace()
        with Subscription(trace, {Pid(1): True}, follow=follow) as subscription:
            trace.tell(Pid(2), ("spawn", {"ppid": 1}))
            trace.tell(Pid(3), ("spawn", {"ppid": 2}))
            trace.tell(Pid(4), ("spawn", {"ppid": 0}))
            for pid in (4, 3, 2, 1):
                trace.tell(Pid(pid), ("exit", 0, "", None))
            assert {pid for pid, _ in await read(subscription)} == expected


def test_secrets_are_not_shown_by_name_at_any_depth_nor_in_urls():
    args = {
        "password": "hunter2",
        "headers": {"Authorization": "Bearer abc", "Accept": "text/html"},
        "url": "https://ada:hunter2@example.org/?api_key=hunter2&q=wheels",
        "text": "send Bearer hunter2hunter2 along",
        "max_tokens": 9,
        "tokens": [1, 2],
        "none": None,
    }
    shown = short_arguments(args)
    assert "hunter2" not in json.dumps(shown)
    assert "abc" not in shown["headers"]
    assert shown["password"] == REDACTED
    assert "text/html" in shown["headers"]
    assert "q=wheels" in shown["url"]
    assert (shown["max_tokens"], shown["tokens"]) == ("9", "[1,2]")
    assert "none" not in shown


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=20,
)


@given(values)
def test_whatever_an_argument_is_it_is_shown_short_and_on_one_printable_line(value):
    text = short(value, max_chars=60)
    assert len(text) <= 60 or text in (REDACTED,) or "\\u" in text
    assert not any(ord(char) < 32 or 0x7F <= ord(char) <= 0x9F for char in text)
    text.encode("utf-8")


def test_a_huge_argument_costs_no_more_than_a_small_one_to_show():
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert len(short({"a": "x" * 50_000_000, "b": deep, "c": 10**5000})) <= 160


async def test_workers_give_results_errors_and_take_turns():
    workers = Workers(2, name="test")
    running, most = 0, 0
    lock, both = threading.Lock(), threading.Barrier(2)

    def work():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait()
        with lock:
            running -= 1
        return 7

    def fails():
        raise StopIteration

    assert await asyncio.gather(*(workers.run(work) for _ in range(20))) == [7] * 20
    assert most == 2
    with pytest.raises(RuntimeError, match="StopIteration"):
        await workers.run(fails)
    workers.close()


async def test_a_driver_that_hangs_holds_up_nobody_once_its_caller_has_gone():
    workers = Workers(1, name="test")
    release = threading.Event()
    hung = asyncio.create_task(workers.run(release.wait))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(workers.run(lambda: 1))
    given_up = asyncio.create_task(workers.run(lambda: 2))
    await asyncio.sleep(0)
    assert workers.num_waiting == 2
    given_up.cancel()
    hung.cancel()
    assert await waiting == 1
    assert await workers.run(lambda: 3) == 3
    assert workers.num_waiting == 0
    release.set()
    workers.close()


def test_a_histogram_counts_each_observation_in_the_bucket_that_ends_at_or_above_it():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 1]
    assert (histogram.count, histogram.total) == (4, 12.0)

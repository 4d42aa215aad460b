"""The recommender through real kernels: real reasons, events at once, forgotten users gone."""

from __future__ import annotations

import numpy as np
import pytest

from llmasos.apps.recommender.data import Data, Event, Item
from llmasos.apps.recommender.evaluation import average_precision, interval, ndcg, split
from llmasos.apps.recommender.models import LEARNT, STRATEGIES, counts_of, fit, row_of
from llmasos.apps.recommender.ranking import Taste, recommend
from tests.apps.machine import AppMachine, until_said

pytestmark = pytest.mark.anyio

ITEMS = "item,title,tags,text\n" + "".join(
    f"{kind[0]}{n},{kind.title()} {n},{kind},about {kind}\n"
    for kind in ("crime", "space", "poetry")
    for n in range(6)
)
EVENTS = "user,item,time\n" + "".join(
    f"{kind}-{reader},{kind[0]}{n},2026-01-{1 + reader + n:02}\n"
    for kind in ("crime", "space")
    for reader in range(6)
    for n in range(6)
    if n != reader
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def shop(machine: AppMachine) -> AppMachine:
    machine.write({"items.csv": ITEMS, "events.csv": EVENTS})
    return machine


def data() -> Data:
    items = {
        f"i{n}": Item(f"i{n}", f"Item {n}", ("even" if n % 2 == 0 else "odd",)) for n in range(10)
    }
    events = [
        Event(f"u{user}", f"i{item}", float(100 * item + user))
        for user in range(12)
        for item in range(10)
        if item % 2 == user % 2 and (item + user) % 5
    ]
    return Data(items, events)


@pytest.mark.parametrize("name", STRATEGIES)
def test_shares_are_of_the_users_own_items_and_add_up_to_the_score(name: str) -> None:
    if name in LEARNT:
        pytest.importorskip("implicit")
    facts = data()
    strategy = fit(name, facts, np.eye(10))
    row = row_of(facts, facts.history("u0"))
    shares = strategy.shares(row, 4)
    assert not shares[row == 0].any()
    if name != "popular":
        assert shares.sum() == pytest.approx(strategy.scores(row)[4])


@pytest.mark.parametrize("name", ["als", "knn"])
def test_what_is_alike_is_recommended_and_what_was_seen_is_not(name: str) -> None:
    pytest.importorskip("implicit")
    facts = data()
    history = facts.history("u0")
    picks = recommend(
        facts, fit(name, facts, None), history, counts_of(facts), count=3, taste=Taste()
    )
    assert int(picks[0].item[1:]) % 2 == 0
    assert {pick.item for pick in picks}.isdisjoint({event.item for event in history})
    assert {item for item, _ in picks[0].because} <= {event.item for event in history}


def test_a_bad_rating_counts_against() -> None:
    facts = data()
    row = row_of(facts, [Event("u", "i0", 0, 5), Event("u", "i1", 0, 1)])
    assert (row[0], row[1]) == (1.0, -1.0)


def test_the_split_judges_on_what_came_later_and_was_new() -> None:
    facts = data()
    past, later = split(facts)
    latest = max(event.time for event in past.events)
    for user, items in later.items():
        assert items.isdisjoint({event.item for event in past.history(user)})
        assert all(e.time >= latest for e in facts.events if e.user == user and e.item in items)


def test_measures_of_known_lists() -> None:
    assert ndcg([True, False], 1) == 1.0
    assert 0 < ndcg([False, True], 1) < 1
    assert average_precision([True, False, True], 2) == pytest.approx((1 + 2 / 3) / 2)
    low, high = interval(np.array([0.0, 1.0] * 50))
    assert low < 0.5 < high


async def test_a_new_event_counts_at_once_and_after_a_restart(shop: AppMachine) -> None:
    pytest.importorskip("implicit")
    _, said = await shop.run(
        "recommender", "recommend new", "event new s0", "event new s1", "recommend new", count=3
    )
    before, after = said.split("Noted: new and Space 1.\n")
    assert "Nothing is known of new yet" in before
    assert "Space 0" in after
    assert "1. s" in after
    _, again = await shop.run("recommender", user="new", count=3)
    assert again == after
    assert "[Space 0 5" in again


async def test_the_strategy_is_switched_while_running(shop: AppMachine) -> None:
    _, said = await shop.run(
        "recommender", "strategy content", "recommend crime-0", "strategy magic", "dance"
    )
    assert "Strategy content.\n1. c0: " in said
    assert "There is no strategy 'magic'; there are als, bpr, knn, content, popular." in said
    assert "Say one of: recommend USER" in said


async def test_a_forgotten_user_is_in_no_file_of_the_shop_nor_in_earlier_versions(
    shop: AppMachine,
) -> None:
    code, said = await shop.run(
        "recommender", "event crime-0 s0", "event crime-0 s1", "forget crime-0",
        "recommend crime-0", strategy="popular",
    )  # fmt: skip
    assert code == 0
    assert "Forgot 7 events of crime-0." in said
    assert "Nothing is known of crime-0 yet" in said
    for file in [*shop.root.rglob("*"), *(shop.home / "versions").rglob("*")]:
        assert not file.is_file() or b"crime-0," not in file.read_bytes(), file
    assert "crime-1," in (shop.root / "events.csv").read_text()


async def test_a_crash_between_events_loses_and_doubles_none(shop: AppMachine) -> None:
    async with shop.booted(crashes=True) as runtime:
        pid = await runtime.spawn("recommender", {"strategy": "content"}, stdin=True)
        await runtime.send_input(pid, "event ann s0")
        await until_said(runtime, pid, "Space 0.")
    async with shop.booted() as runtime:
        assert shop.recovered.running == [pid]
        await runtime.send_input(pid, "event ann s1")
        await runtime.send_input(pid, "recommend ann")
        await runtime.send_input(pid, None)
        assert (await runtime.wait(pid)).code == 0
        said = runtime.output_text(pid)
    rows = (shop.root / "new-events.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows] == [["user", "item"], ["ann", "s0"], ["ann", "s1"]]
    replayed = await shop.replay("recommender", pid)
    assert (replayed.problem, replayed.output) == ("", said)


async def test_an_evaluation_has_popularity_and_chance_beside_it(shop: AppMachine) -> None:
    pytest.importorskip("implicit")
    code, said = await shop.run("recommender", eval=True)
    assert code == 0
    assert [f"| {name} |" in said for name in (*STRATEGIES, "random")] == [True] * 6


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "There is no"),
        ({"items.csv": "item\na\n"}, "items.csv, line 1: the column title is missing."),
        (
            {"items.csv": "item,title\na,A\nb,B,C\n"},
            "items.csv, line 3: 3 cells where the header has 2.",
        ),
        ({"items.csv": "item,title\na,A\na,B\n"}, "items.csv, line 3: item 'a' is there twice."),
        ({"items.csv": "item,title\n"}, "items.csv has no item."),
        (
            {"events.csv": "user,item,time\nu,zzz,1\n"},
            "events.csv, line 2: there is no item 'zzz'.",
        ),
        ({"events.csv": "user,item,time\nu,c1,soon\n"}, "events.csv, line 2: 'soon' is not a time"),
        ({"events.csv": 'user,item,time\n"u,c1,1\n'}, "events.csv, line 2: this is no CSV"),
        ({"events.csv": "user,item,time\n"}, "events.csv has no event"),
    ],
)
async def test_bad_files_are_one_sentence_with_the_line(
    machine: AppMachine, files: dict[str, str], sentence: str
) -> None:
    if files:
        machine.write({"items.csv": ITEMS, "events.csv": EVENTS, **files})
    code, said = await machine.run("recommender", user="u")
    assert (code, sentence in said) == (1, True), said

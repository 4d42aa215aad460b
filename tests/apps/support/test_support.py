"""The support app through real kernels: what it does to the order table, and to nobody else's orders."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.apps.machine import AppMachine, until_said

pytestmark = pytest.mark.anyio
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "support"
TODAY = "2026-11-25"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def desk(machine: AppMachine) -> AppMachine:
    shutil.copytree(EXAMPLE, machine.root, dirs_exist_ok=True)
    config = (machine.root / "support.yaml").read_text()
    (machine.root / "support.yaml").write_text(config.replace("[en, es, de]", "[en]", 1))
    return machine


def status_of(desk: AppMachine, order: str) -> tuple[str, str | None]:
    with closing(sqlite3.connect(desk.root / "orders.db")) as connection:
        row = connection.execute("SELECT status, note FROM orders WHERE order_id = ?", (order,))
        found: tuple[str, str | None] = row.fetchone()
        return found


ASKED = "I want my money back for FB-1002, it is broken"


async def test_a_refund_is_made_after_a_plain_yes(desk: AppMachine) -> None:
    code, said = await desk.run("support", ASKED, "yes", customer="ana", today=TODAY)
    assert code == 0
    assert "Shall I request a refund of 49.90 euros for Dynamo lamp (reason: damaged)?" in said
    assert status_of(desk, "FB-1002") == ("refund requested", "damaged")


@pytest.mark.parametrize("answer", ["no", "what is a yes?", "yes but not now", "", "never mind"])
async def test_nothing_is_done_without_a_plain_yes(desk: AppMachine, answer: str) -> None:
    await desk.run("support", ASKED, answer, customer="ana", today=TODAY)
    assert status_of(desk, "FB-1002") == ("delivered", None)


async def test_nobody_acts_on_anybody_elses_order(desk: AppMachine) -> None:
    _, said = await desk.run("support", ASKED, "yes", customer="ben", today=TODAY)
    assert "I find no order FB-1002 of yours." in said
    assert status_of(desk, "FB-1002") == ("delivered", None)


async def test_a_refund_too_late_is_refused_before_anything_else_is_asked(desk: AppMachine) -> None:
    _, said = await desk.run(
        "support", "I want my money back for FB-1004", customer="ben", today=TODAY
    )
    assert said == "Order FB-1004 was delivered on 2026-08-15; the 30 days for a refund are over.\n"


async def test_an_answer_cites_its_source_and_the_unknown_is_handed_over(desk: AppMachine) -> None:
    _, said = await desk.run("support", "When are you open?", "zebra quantum violin tomography")
    assert "On Mondays" in said
    assert "[faq.md, line 3]" in said
    assert "rather not guess" in said
    assert "- Why: nothing in the base answers it" in said


async def test_a_conversation_goes_on_after_a_crash_and_acts_once(desk: AppMachine) -> None:
    async with desk.booted(crashes=True) as runtime:
        pid = await runtime.spawn("support", {"customer": "ana", "today": TODAY}, stdin=True)
        await runtime.send_input(pid, ASKED)
        await until_said(runtime, pid, "Shall I request")
    assert status_of(desk, "FB-1002") == ("delivered", None)
    async with desk.booted(crashes=True) as runtime:
        assert desk.recovered.running == [pid]
        await runtime.send_input(pid, "yes")
        await until_said(runtime, pid, "Done.")
    async with desk.booted() as runtime:
        await runtime.send_input(pid, None)
        assert (await runtime.wait(pid)).code == 0
        said = runtime.output_text(pid)
    assert said.count("Done. You get 49.90 euros") == 1
    assert status_of(desk, "FB-1002") == ("refund requested", "damaged")
    replayed = await desk.replay("support", pid)
    assert (replayed.problem, replayed.output) == ("", said)


async def test_many_customers_are_served_by_forks(desk: AppMachine) -> None:
    chats = [
        {"customer": "ana", "turns": ["Where is my order FB-1001?"]},
        {"customer": "ben", "turns": ["Where is my order FB-1001?"]},
    ]
    desk.write({"chats.jsonl": "".join(json.dumps(chat) + "\n" for chat in chats)})
    code, said = await desk.run("support", chats="chats.jsonl", wording="model", today=TODAY)
    assert code == 0
    assert "--- ana\nOrder FB-1001, Heron, size M: shipped.\n" in said
    assert "--- ben\nI find no order FB-1001 of yours.\n" in said


async def test_a_customer_is_remembered_and_only_by_their_own_name(desk: AppMachine) -> None:
    for customer in ("ana", "anastasia"):
        await desk.run(
            "support", "When are you open?", "Can I talk to a human?", "5",
            customer=customer, records="records",
        )  # fmt: skip
    _, said = await desk.run("support", "Can I talk to a human?", customer="ana", records="records")
    assert said.count("Customer ana wrote en; about when-are-you-open; handed over") == 1
    assert "anastasia" not in said
    _, figures = await desk.run("support", figures=True, records="records")
    assert (
        "conversations 3\nsettled without a person 0%\nsatisfaction 5.0 of 5 (2 answers)" in figures
    )


async def test_an_evaluation_leaves_the_order_table_as_it_was(desk: AppMachine) -> None:
    cases = [
        {"customer": "ana", "turns": [ASKED, "yes"], "expect": {"flow": "refund", "orders": {
            "FB-1002": {"status": "refund requested", "note": "damaged"}}}},
        {"turns": ["When are you open?"], "expect": {"answers": ["where-is-the-shop"]}},
    ]  # fmt: skip
    desk.write({"cases.jsonl": "".join(json.dumps(case) + "\n" for case in cases)})
    code, said = await desk.run("support", eval="cases.jsonl", trials=2, today=TODAY)
    assert code == 0
    assert "failed line 2, trial 0: answers ['when-are-you-open']" in said
    assert "accuracy 50.0% (2 of 4)" in said
    assert "pass^2 50%" in said
    assert "order table right where it was to change 100.0% (2 of 2)" in said
    assert status_of(desk, "FB-1002") == ("delivered", None)
    assert not list(desk.root.glob(".support-trial*"))


FLOW = """
name: Shop
orders: {file: orders.db, table: orders}
flows:
  f:
    about: x
    examples: [one, two]
    steps:
"""


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "There is no 'support.yaml'"),
        ({"support.yaml": "name: [\n"}, "support.yaml, line 2: this is no YAML"),
        ({"support.yaml": "nam: x\n"}, "support.yaml: name: Field required; nam: Extra inputs"),
        ({"support.yaml": "name: Shop\n"}, "the base is empty"),
        (
            {"support.yaml": "name: Shop\nfaq: [a.csv]\n", "a.csv": "question,answer\na,b\nc,d,e\n"},
            "a.csv, line 3: 3 cells where the header has 2; quote a text that has commas.",
        ),
        (
            {"support.yaml": "name: Shop\nfaq: [a.jsonl]\n", "a.jsonl": '{"question": "a"}\n'},
            "a.jsonl, line 1: an entry needs a question and an answer.",
        ),
        (
            {"support.yaml": "name: Shop\nfaq: [a.md]\n", "a.md": "# T\n\n## Why?\n\n## B\nC\n"},
            "a.md, line 3: the question 'Why?' has no answer.",
        ),
        (
            {"support.yaml": FLOW + "      - find: {id: $order}\n        missing: none\n"},
            "flow f, step 1: there is no slot 'order'.",
        ),
        (
            {"support.yaml": FLOW + "      - update: {status: gone}\n"},
            "flow f, step 1: update needs a row, and no find comes before it; flow f, step 1: update"
            " without a confirm before it.",
        ),
        (
            {"support.yaml": FLOW + "      - find: {id: 1}\n        missing: none\n"
             "      - check: {field: s, among: [paid], otherwise: x}\n"
             "      - check: {field: s, among: [sent], otherwise: y}\n"},
            "step 3: no row can pass: s was checked to be among ['paid'] before.",
        ),
    ],
)  # fmt: skip
async def test_a_bad_base_is_one_clear_sentence(
    machine: AppMachine, files: dict[str, str], sentence: str
) -> None:
    machine.write(files)
    code, said = await machine.run("support", "hello")
    assert code == 1
    assert sentence in said
    assert "Traceback" not in said


async def test_a_bad_case_is_named_by_its_line(desk: AppMachine) -> None:
    desk.write({"cases.jsonl": '{"turns": ["a"], "expect": {}}\n{"turns": "b", "expect": {}}\n'})
    code, said = await desk.run("support", eval="cases.jsonl")
    assert (code, said.startswith("cases.jsonl, line 2: turns: ")) == (1, True)

"""The writer through real kernels, with a core that is a script: what it writes, and what it never does."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from llmasos.apps.writer.text import plain, sentences
from llmasos.kernel.abi import Pid
from tests.apps.machine import AppMachine, until_said

pytestmark = pytest.mark.anyio
EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "writer"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def desk(machine: AppMachine) -> AppMachine:
    shutil.copytree(EXAMPLES, machine.root, dirs_exist_ok=True)
    return machine


async def test_an_article_is_written_by_forked_sections_and_cites_lines_that_say_it(
    desk: AppMachine,
) -> None:
    code, told = await desk.run("writer", words=["brief.md"], out="article.md")
    assert code == 0, told
    text = (desk.root / "article.md").read_text()
    assert text.startswith("# The restored tide mill at Sandle Creek\n")
    assert text.count("\n## ") == 8
    cited = re.findall(r"^\[\^(\d+)\]: (\S+), lines? (\d+)(?:-(\d+))?$", text, re.MULTILINE)
    assert [int(number) for number, *_ in cited] == list(range(1, len(cited) + 1))
    for sentence in sentences(text):
        [number] = re.findall(r"\[\^(\d+)\]$", sentence.text)
        _, path, first, last = cited[int(number) - 1]
        lines = (desk.root / path).read_text().splitlines()[int(first) - 1 : int(last or first)]
        # the script's replies are refused, so that the sources' own words stand
        assert plain(sentence.text) in " ".join(lines)
    assert "In the model's own words: 0 of" in told


async def test_sections_written_at_once_or_one_after_another_are_the_same(desk: AppMachine) -> None:
    for at_once in (1, 13):
        await desk.run("writer", words=["brief.md"], out=f"{at_once}.md", at_once=at_once)
    assert (desk.root / "1.md").read_text() == (desk.root / "13.md").read_text()


async def test_the_sections_share_the_pages_of_the_brief(desk: AppMachine) -> None:
    async with desk.booted() as runtime:
        pid = await runtime.spawn("writer", {"words": ["brief.md"], "out": "a.md"})
        assert (await runtime.wait(pid)).code == 0
        infos = [runtime.info(Pid(number)) for number in range(pid + 1, pid + 10)]
    assert all(info.title.startswith("section ") for info in infos)
    assert runtime.info(pid).tokens_computed > 700  # the brief, once
    assert all(info.tokens_computed <= info.tokens_in + info.tokens_out for info in infos)


async def test_a_draft_goes_on_after_a_crash_and_is_the_same(desk: AppMachine) -> None:
    params = {"words": ["brief.md"], "out": "article.md"}
    async with desk.booted(crashes=True) as runtime:
        pid = await runtime.spawn("writer", params)
        await until_said(runtime, pid, "facts found")
    async with desk.booted() as runtime:
        assert (await runtime.wait(pid)).code == 0
    written = (desk.root / "article.md").read_text()
    await desk.run("writer", words=["brief.md"], out="again.md")
    assert (desk.root / "again.md").read_text() == written
    replayed = await desk.replay("writer", pid)
    assert replayed.problem == ""
    assert "Wrote article.md" in replayed.output


async def test_a_section_too_long_for_one_process_is_handed_over_whole(desk: AppMachine) -> None:
    draw = random.Random(7)

    def made() -> str:
        return " ".join("".join(draw.choices("abcdefgilmnorstu", k=7)) for _ in range(6))

    facts = "".join(f"The gate of the mill {made()} and {made()} here.\n\n" for _ in range(90))
    desk.write({"many/a.md": f"# Gates\n\n{facts}"})
    desk.write({"long.md": "topic: the gate of the mill\nlength: 1000\nsources: many\n\n- Gates\n"})
    code, told = await desk.run("writer", words=["long.md"], out="a.md", wording="quote")
    assert code == 0, told
    said = [plain(sentence.text) for sentence in sentences((desk.root / "a.md").read_text())]
    assert len(said) > 2 * 25, told
    assert len(set(said)) == len(said)
    assert all(sentence in facts for sentence in said)


@pytest.mark.parametrize("ending", ["html", "docx"])
async def test_articles_come_as_html_and_docx(desk: AppMachine, ending: str) -> None:
    code, told = await desk.run("writer", words=["brief.md"], out=f"a.{ending}", wording="quote")
    assert code == 0, told
    if ending == "html":
        text = (desk.root / "a.html").read_text()
        assert text.count("<h2>") == 8
        assert 'href="#note-1"' in text
        return
    docx = pytest.importorskip("docx")
    document = docx.Document(desk.root / "a.docx")
    heads = [p.text for p in document.paragraphs if p.style.name == "Heading 1"]
    assert heads[0] == "History of the mill"
    assert heads[-1] == "Sources"


async def test_a_source_cannot_put_markup_into_a_page(desk: AppMachine) -> None:
    desk.write(
        {
            "sources/x.md": "# Mill\n\nThe tide mill has <script>alert(1)</script> on its gate wall.\n"
        }
    )
    await desk.run(
        "writer", topic="gate wall of the mill", sources="sources", out="a.html", length=60
    )
    text = (desk.root / "a.html").read_text()
    assert "&lt;script&gt;" in text
    assert "<script>" not in text


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"words": ["empty.md"]}, "empty.md is empty"),
        ({"words": ["none.md"]}, "There is no none.md|none.md"),
        ({"words": ["binary.md"]}, "not text"),
        ({"words": ["big.md"]}, "big.md has 10.0 MB"),
        ({}, "There is no brief"),
        ({"topic": "The mill"}, "Name the folder of the sources"),
        ({"topic": "The mill", "sources": "nowhere"}, "nowhere"),
        ({"topic": "The mill", "sources": "void"}, "no files in void"),
        ({"topic": "zebra quantum violin", "sources": "sources"}, "Nothing in sources is about"),
        (
            {"topic": "The mill", "sources": "sources", "out": "a.pdf"},
            "written as .md, .html or .docx",
        ),
        ({"topic": "The mill", "sources": "sources", "style": "newz"}, "Did you mean news"),
        ({"words": ["revise"]}, "Name the file to revise"),
        ({"words": ["revise", "draft.md"], "out": "draft.md"}, "in_place=true"),
        ({"words": ["profile"]}, "profile learn NAME"),
        ({"words": ["profile", "learn", "x", "short.md"]}, "fewer than 100 words"),
        ({"words": ["profile", "learn", "news", "draft.md"]}, "built-in"),
        ({"words": ["evaluate", "short.md"], "style": "x"}, ""),
    ],
)
async def test_bad_input_is_one_clear_sentence(
    desk: AppMachine, params: dict[str, object], told: str
) -> None:
    desk.write({"empty.md": " \n", "short.md": "Ein Satz — 水。\n", "big.md": "word " * 2_000_000})
    (desk.root / "binary.md").write_bytes(bytes(range(256)) * 20)
    (desk.root / "void").mkdir()
    code, message = await desk.run("writer", **params)
    assert code == (1 if told else 0), message
    assert re.search(told, message)
    assert "Traceback" not in message


async def test_a_revision_is_asked_for_change_by_change_and_leaves_the_original(
    desk: AppMachine,
) -> None:
    before = (desk.root / "draft.md").read_text()
    code, told = await desk.run(
        "writer", "what?", "n", "y", "q", words=["revise", "draft.md"], style="news", rewordings=0
    )
    assert code == 0, told
    assert "line 3, " in told
    new = (desk.root / "draft.revised.md").read_text()
    assert new != before
    assert (desk.root / "draft.md").read_text() == before
    assert "with 1 changes; draft.md is as it was" in told
    assert "before" in told


async def test_at_the_end_of_input_nothing_is_accepted(desk: AppMachine) -> None:
    _, told = await desk.run("writer", words=["revise", "draft.md"], rewordings=0)
    assert told.endswith("Nothing was accepted, nothing is written.\n")
    assert not (desk.root / "draft.revised.md").exists()


async def test_in_place_keeps_what_the_document_was(desk: AppMachine) -> None:
    before = (desk.root / "draft.md").read_text()
    params = {"words": ["revise", "draft.md"], "in_place": True, "accept": "all", "rewordings": 0}
    code, told = await desk.run("writer", **params)
    assert code == 0, told
    assert (desk.root / "draft.md").read_text() != before
    async with desk.booted() as runtime:
        params = {"name": "fs.restore", "args": {"path": "draft.md", "to": "old.md"}}
        pid = await runtime.spawn("call", params)
        assert (await runtime.wait(pid)).code == 0
    assert (desk.root / "old.md").read_text() == before


async def test_ten_thousand_words_are_revised_piece_by_piece(desk: AppMachine) -> None:
    parts = [
        f"Paragraph {n} says that the mill number {n} was closed by miller {n} in order to be safe.\n\n"
        for n in range(600)
    ]
    desk.write({"long.md": "".join(parts)})
    code, told = await desk.run(
        "writer", words=["revise", "long.md"], accept="all", rewordings=8, patch="long.patch"
    )
    assert code == 0, told
    assert "600 wordy" in told
    assert (desk.root / "long.patch").read_text().count("\n+Paragraph") >= 500
    assert not (desk.root / "long.revised.md").exists()


async def test_a_style_is_learnt_shown_and_measured_against(desk: AppMachine) -> None:
    samples = ["samples/one.md", "samples/two.md"]
    code, told = await desk.run("writer", words=["profile", "learn", "ours", *samples])
    assert code == 0, told
    kept = json.loads((desk.root / "styles" / "ours.json").read_text())
    assert kept["num_samples"] == 2
    code, told = await desk.run("writer", words=["measure", "samples/one.md"], style="ours")
    assert "(no)" not in told
    code, told = await desk.run(
        "writer", words=["measure", "samples/one.md", "sources/money.md"], style="ours"
    )
    assert "(no)" in told


async def test_another_language_is_quoted_and_told(desk: AppMachine) -> None:
    german = "# Die Mühle\n\nDie alte Mühle am Bach mahlt seit 1768 das Korn der Stadt.\n"
    desk.write({"quellen/a.md": german})
    code, told = await desk.run(
        "writer", topic="Die alte Mühle", sources="quellen", language="de", length=60, out="a.md"
    )
    assert code == 0, told
    assert "in de the sources are quoted" in told
    assert "mahlt seit 1768 das Korn" in (desk.root / "a.md").read_text()


async def test_an_evaluation_tells_grounded_from_invented(desk: AppMachine) -> None:
    await desk.run("writer", words=["brief.md"], out="a.md", wording="quote")
    _, told = await desk.run("writer", words=["evaluate", "a.md"], length=700)
    assert "cited passage supports 100%" in told
    assert "earlier one says 0%" in told
    text = (desk.root / "a.md").read_text()
    lied = text.replace(
        "built in 1768 by the brothers Amos and Jethro Pell", "sold to Venus in 1900"
    )
    desk.write({"lie.md": lied})
    _, told = await desk.run("writer", words=["evaluate", "lie.md"])
    assert "cited passage supports 100%" not in told

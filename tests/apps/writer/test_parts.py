"""The writer's parts that need no kernel: sentences, measures, checks, patches, what a fact bears out."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.apps.writer.brief import brief_of
from llmasos.apps.writer.checks import check, split
from llmasos.apps.writer.drafting import is_copied, states
from llmasos.apps.writer.measures import measure, variety
from llmasos.apps.writer.patch import apply, compatible, unified
from llmasos.apps.writer.profiles import BUILT_IN, learnt
from llmasos.apps.writer.research import facts_of
from llmasos.apps.writer.rewording import gain
from llmasos.apps.writer.text import blocks, plain, sentences, words
from llmasos.kernel.errors import AppError

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "writer"
PLAIN, NEWS = BUILT_IN["plain"], BUILT_IN["news"]


def said(text: str) -> list[str]:
    return [sentence.text for sentence in sentences(text)]


def test_sentences_end_where_they_end() -> None:
    text = 'Dr. Vane pays 3.5 euros, e.g. for tea. Why?  "So." Then J. Pell\nleft.\n\nNew one'
    assert said(text) == [
        "Dr. Vane pays 3.5 euros, e.g. for tea.", "Why?", "\"So.\"", "Then J. Pell\nleft.", "New one",
    ]  # fmt: skip
    assert said("今日は晴れ。明日は雨。") == ["今日は晴れ。", "明日は雨。"]


@given(st.text(alphabet="ab .!?\n#-`|é\r世"))
def test_every_sentence_is_where_it_says(text: str) -> None:
    for sentence in sentences(text):
        assert text[sentence.start : sentence.end] == sentence.text
        assert text.count("\n", 0, sentence.start) + 1 == sentence.line
    spans = [(block.start, block.end) for block in blocks(text)]
    assert spans == sorted(spans)


def test_code_tables_notes_and_front_matter_are_no_prose() -> None:
    text = "---\ntitle: In order to\n---\n```\nx = 1. Y.\n```\n| a | b |\n> Quoted.\n"
    text += "\n[^1]: a.md, line 1\n- An item.\n"
    assert said(text) == ["An item."]
    assert plain("**Bold** and `code`, [a link](http://x.y).[^2]") == "Bold and code, a link."


def test_measures_know_easy_from_hard() -> None:
    easy = measure(
        "The cat sat on the mat. It was in the sun. The dog ran to the gate at noon. " * 5
    )
    hard = measure(
        "Notwithstanding considerable institutional opposition, the implementation of comprehensive"
        " administrative modernisation was eventually accomplished by the responsible authorities in that"
        " particular jurisdiction. " * 5
    )
    assert easy["flesch"] > 90 > 20 > hard["flesch"]
    assert easy["lix"] < 25 < 60 < hard["lix"]
    assert hard["passive"] == 100
    assert easy["passive"] == 0
    assert measure("")["words"] == 0
    german = measure("Die Mühle steht am Bach und mahlt Korn für die Stadt. " * 3)
    assert "flesch" not in german
    assert german["lix"] > 0


@given(st.lists(st.sampled_from(["mill", "tide", "wheel", "gate"]), min_size=1, max_size=300))
def test_variety_is_the_mean_over_windows(spoken: list[str]) -> None:
    size = min(100, len(spoken))
    windows = [spoken[at : at + size] for at in range(len(spoken) - size + 1)]
    mean = sum(len(set(window)) / size for window in windows) / len(windows)
    assert variety(spoken) == pytest.approx(mean)


def test_a_profile_learnt_from_samples_fits_them_and_not_another_voice() -> None:
    samples = [(EXAMPLES / "samples" / name).read_text() for name in ("one.md", "two.md")]
    profile = learnt("ours", samples)
    for text in samples:
        figures = measure(text)
        assert all(low <= figures[k] <= high for k, (low, high) in profile.wanted.items())
    assert profile.allows_contractions
    other = measure((EXAMPLES / "sources" / "restoration.md").read_text())
    outside = [k for k, (low, high) in profile.wanted.items() if not low <= other[k] <= high]
    assert "personal" in outside
    assert "contractions" in outside


def rules(text: str, profile=NEWS) -> dict[str, list[tuple[str, str | None]]]:
    found: dict[str, list[tuple[str, str | None]]] = {}
    for each in check(text, profile):
        assert text[each.start : each.end] == each.old
        assert each.reason
        found.setdefault(each.rule, []).append((each.old, each.new))
    return found


def test_the_example_draft_has_its_faults_found() -> None:
    found = rules((EXAMPLES / "draft.md").read_text())
    assert ("the the", "the") in found["doubled word"]
    assert ("Due to the fact that", "Because") in found["wordy"]
    assert not any(old.startswith("It is important") for old, _ in found["wordy"])  # "and that"
    assert ("flavor", "flavour") in found["spelling"] or ("colour", "color") in found["spelling"]
    assert ("bake-house", "bakehouse") in found["term"]
    assert ("can't", "cannot") in {(o.lower(), n) for o, n in found["contraction"]}
    assert ("really", "") in found["filler"]
    assert any(old.startswith("The storm in March") for old, _ in found["said before"])
    assert len(found["long sentence"]) >= 2
    assert len(found["passive"]) >= 3


def test_code_and_clean_text_are_left_alone() -> None:
    clean = "The mill stands on oak piles. Its wheel turns twice a day. Visitors come by bus.\n"
    assert check(clean, PLAIN) == []
    assert check("```\nin order to go the the end of it\n```\n", PLAIN) == []
    assert "wordy" not in rules(
        "We see that it is the `in order to` of the text that is to be kept."
    )
    assert check("Das ist der der Fehler, den man sieht.", PLAIN)[0].rule == "doubled word"


def test_words_that_go_leave_one_space() -> None:
    text = "The mill is really old. It should be noted that it runs. We run it in order to bake.\n"
    new = apply(text, compatible(check(text, PLAIN)))
    assert new == "The mill is old. It runs. We run it to bake.\n"


def test_a_semicolon_splits_a_sentence_only_between_whole_ones() -> None:
    assert split("The mill was closed; and the gates had to be mended.") == (
        "The mill was closed. The gates had to be mended."
    )
    assert split("We saw one; two; three.") is None


@pytest.mark.parametrize("end", ["\n", "", "\n\n"])
@pytest.mark.parametrize("tool", ["git", "patch"])
def test_the_patch_makes_exactly_the_accepted_changes(tmp_path: Path, tool: str, end: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not here")
    text = (EXAMPLES / "draft.md").read_text().rstrip("\n") + end
    (tmp_path / "draft.md").write_text(text)
    accepted = compatible(check(text, NEWS))
    new = apply(text, accepted)
    (tmp_path / "d.patch").write_text(unified("draft.md", text, new, accepted))
    assert "wordy" in (tmp_path / "d.patch").read_text()
    command = ["git", "apply", "d.patch"] if tool == "git" else ["patch", "-p1", "-i", "d.patch"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "draft.md").read_text() == new
    assert new != text


@given(st.text(alphabet="the in order to very tea. \n", max_size=200))
def test_changes_never_touch_what_lies_between_them(text: str) -> None:
    accepted = compatible(check(text, PLAIN))
    new = apply(text, accepted)
    assert (new == text) == (not accepted)
    assert len(words(new)) <= len(words(text))


FACT = "Divers removed 3,000 cubic metres of silt from the pond in May."


@pytest.mark.parametrize(
    "reply",
    [
        "In May divers removed 3,000 cubic metres of silt from the pond.",
        "In May, 3,000 cubic metres of silt were removed from the pond by divers.",
    ],
)
def test_a_fact_bears_out_its_own_rewording(reply: str) -> None:
    assert states(reply, FACT)
    assert not is_copied(reply, "Another fact about a lake and its boats in the summer.")


@pytest.mark.parametrize(
    "reply",
    [
        "Divers removed 300 cubic metres of silt from the pond in May.",
        "Divers removed silt from the pond in May.",
        "Divers did not remove 3,000 cubic metres of silt from the pond in May.",
        "Divers removed 3,000 cubic metres of silt from the pond in June.",
        "Divers remove 3,000 cubic metres of silt from the pond in May.",
        "Ruth and divers removed 3,000 cubic metres of silt from the pond in May",
        "The silt of the pond is 3,000 cubic metres deep and divers like it in May.",
        "",
    ],
)
def test_what_a_fact_does_not_say_is_refused(reply: str) -> None:
    assert not states(reply, FACT)


def test_a_second_denial_is_no_rewording() -> None:
    fact = "The mill sells what it does not need to the harbour office."
    assert not states("The mill does not sell what it does not need to the harbour office.", fact)
    assert states("To the harbour office the mill sells what it does not need.", fact)


def test_a_rewording_must_be_better_by_measure() -> None:
    old = "The gates were repaired by Ruth Calloway in a period of 2 weeks."
    assert gain(old, "Ruth Calloway repaired the gates in 2 weeks.", must_be_active=True)
    assert (
        gain(old, "The gates were repaired by Ruth Calloway in 2 weeks.", must_be_active=True)
        is None
    )
    assert gain(old, "Ruth Calloway repaired the gates in 3 weeks.") is None
    assert gain(old, "Calloway repaired the gates in 2 weeks.") is None
    assert gain(old, old) is None


def test_facts_carry_their_lines_and_what_leans_on_them() -> None:
    text = "# Wheel\n\nThe wheel is made of oak\nand iron. It turns twice a day."
    text += " Visitors see it on most days.\n"
    hit = {"start_line": 1, "end_line": 9, "heading": "Wheel", "score": 1.0}
    first, second = facts_of(text, "a.md", [hit])
    assert first.text == "The wheel is made of oak and iron. It turns twice a day."
    assert first.where == "a.md, lines 3-4"
    assert second.where == "a.md, line 4"
    text = "The work cost 2 million euros. The fund paid half of this sum in May."
    [fact] = facts_of(text, "a.md", [hit])
    assert fact.text == text
    assert facts_of("It turns. They said so yesterday at noon.", "a.md", [{**hit}]) == []


def test_a_brief_is_read_from_its_lines_and_parameters_win() -> None:
    text = "---\ntopic: The mill\nlength: 1,200 words\n---\nFor the town.\n\n- History\n- Birds.\n"
    brief = brief_of("b.md", text, {"style": "news"})
    assert (brief.topic, brief.length, brief.style) == ("The mill", 1200, "news")
    assert brief.points == ("History", "Birds")
    assert brief.notes == "For the town."
    assert brief_of("", "", {"topic": "Ärger mit 水"}).num_sections == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "There is no brief"),
        ("topic: ???", "says nothing"),
        ("topic: x\nlength: long", "b.md, line 2: length is 'long'"),
        ("topic: x\nlength: 9", "60 to 5,000"),
    ],
)
def test_a_bad_brief_is_one_sentence(text: str, told: str) -> None:
    with pytest.raises(AppError, match=told):
        brief_of("b.md" if text else "", text, {})

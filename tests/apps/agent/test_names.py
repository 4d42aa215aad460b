"""Which file, folder or words a request means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.apps.agent import names

FILES = ["README.md", "notes.txt", "log-2.txt", "music/jazz songs.md", "trips/rome.md", "Wäsche.md"]
FOLDERS = ["music", "trips", "trips/old"]


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        ("Show me notes.txt", "notes.txt"),
        ("show me NOTES.TXT!", "notes.txt"),
        ("open rome.md", "trips/rome.md"),
        ("What does ./trips/rome.md say?", "trips/rome.md"),
        ("open note.txt", "notes.txt"),
        ("read the readme", "README.md"),
        ("read my jazz songs", "music/jazz songs.md"),
        ("the Rome trip", "trips/rome.md"),
        ("Wie ist die Wäsche?", "Wäsche.md"),
        ("open missing-thing.csv", "missing-thing.csv"),
        ("What is the capital of France?", None),
    ],
)
def test_a_file_is_found_by_name_by_a_slip_or_by_its_words(request_, path):
    assert names.closest_file(request_, FILES) == path


@pytest.mark.parametrize(
    ("request_", "folder"),
    [
        ("What files are here?", "."),
        ("List the folder music", "music"),
        ("what is in trips/old/", "trips/old"),
        ("show the Music directory", "music"),
        ("list the current folder", "."),
        ("list my trips", "trips"),
    ],
)
def test_a_folder_is_found_or_it_is_the_whole(request_, folder):
    assert names.closest_folder(request_, FOLDERS) == folder


@pytest.mark.parametrize(
    ("request_", "query"),
    [
        ("Search for whales", "whales"),
        ("Which file mentions the blue bridge?", "blue bridge"),
        ('Find "the end of" in my files', "the end of"),
        ("Where did I write about the piano's keys?", "piano's keys"),
        ("find the file", "find file"),
        ("the", "the"),
        ("搜索 鲸鱼", "搜索 鲸鱼"),
    ],
)
def test_the_words_to_search_for_are_the_ones_with_meaning(request_, query):
    assert names.query_words(request_) == query


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ("Write hello world to a.txt", "hello world"),
        ("Save 'one two' as a.txt", "one two"),
        ("Create a file called a.txt with the words one and two", "one and two"),
        ("Add milk to the end of a.txt", "milk"),
        ("Write a poem about rain to a.txt", None),
    ],
)
def test_a_text_to_write_is_taken_word_for_word_where_it_is_given(request_, text):
    assert names.literal_text(request_, "a.txt") == text


def test_a_place_is_named_by_capitals():
    assert names.named_place("What time is it in New York?") == "New York"
    assert names.named_place("What time is it?") is None


@given(st.text(max_size=100))
def test_any_request_is_taken(text):
    names.closest_file(text, FILES)
    names.closest_folder(text, FOLDERS)
    names.named_place(text)
    names.literal_text(text, "a.txt")
    assert names.query_words(text) or not text.strip()

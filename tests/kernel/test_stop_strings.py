from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.stop_strings import StopStrings

TEXT = st.text(alphabet="abc\n", max_size=30)


def stream(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    scanner = StopStrings(stops)
    shown = "".join(scanner.push(piece) for piece in pieces)
    return shown + scanner.flush(), scanner.hit


def test_nothing_is_held_back_without_stop_strings() -> None:
    assert StopStrings(["", ""]).push("text") == "text"


def test_a_false_start_is_shown_once_it_is_clear() -> None:
    scanner = StopStrings(["\nUser:"])
    assert scanner.push("hello\nUs") == "hello"
    assert scanner.push("e it") == "\nUse it"


@given(st.lists(TEXT, max_size=8), st.lists(TEXT.filter(bool), min_size=1, max_size=3))
def test_any_cut_shows_exactly_the_text_before_the_first_stop(
    pieces: list[str], stops: list[str]
) -> None:
    text = "".join(pieces)
    shown, hit = stream(stops, pieces)
    assert hit == any(stop in text for stop in stops)
    assert text.startswith(shown)
    if hit:
        assert not any(stop in shown for stop in stops)
        ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
        assert len(shown) <= max(ends)
    else:
        assert shown == text

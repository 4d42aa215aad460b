from __future__ import annotations

import pytest

from llmasos.apps.support.evaluation import wilson
from llmasos.apps.support.matching import best_threshold
from llmasos.apps.support.sayings import is_cancel, yes_or_no
from llmasos.apps.support.wording import is_borne_out

PASSAGE = "You have 30 days to return a bicycle. Helmets cannot be returned."


@pytest.mark.parametrize(
    ("text", "means"),
    [("Yes", True), ("ok, do it", True), ("sí", True), ("no thanks", False), ("Nein, danke", False),
     ("what is a yes", None), ("yes?", None), ("yes but not this one", None), ("maybe", None)],
)  # fmt: skip
def test_only_a_plain_yes_is_a_yes(text: str, means: bool | None) -> None:
    assert yes_or_no(text) is means


def test_to_cancel_an_order_is_not_to_cancel_the_conversation() -> None:
    assert is_cancel("never mind, leave it")
    assert not is_cancel("please cancel my order FB-1001")


@pytest.mark.parametrize(
    ("sentence", "holds"),
    [("You have 30 days to return a bicycle.", True), ("You have 60 days to return it.", False),
     ("Ask Maria to return a bicycle.", False), ("You cannot return a bicycle", False),
     ("Weather permitting, our friendly staff dance.", False)],
)  # fmt: skip
def test_the_models_words_must_be_the_passages(sentence: str, holds: bool) -> None:
    assert is_borne_out(sentence, PASSAGE, "How long do I have?") is holds


def test_a_threshold_divides_what_can_be_divided() -> None:
    told = [(0.9, True), (0.8, True), (0.3, False), (0.2, False)]
    cut, accuracy = best_threshold(told)
    assert 0.3 < cut < 0.8
    assert accuracy == 1.0
    assert best_threshold([(0.9, True)])[1] == 0.0


def test_an_interval_contains_its_share() -> None:
    low, high = wilson(8, 10)
    assert 0 <= low < 0.8 < high <= 1

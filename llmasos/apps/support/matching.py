"""What a customer's text is about: the nearest of the desk's texts, or, below a fitted threshold, nothing.

A desk's texts are the questions and passages of its base and the examples of its flows; each has a label.
A text's score for a label is its best cosine among that label's texts, plus what the words they share are
worth. The threshold is fitted on the user's examples, each left out in turn. Pure numpy.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llmasos.apps.vectors import Vectors

WORDS_WORTH = 0.25
"""Of all of a question's weighty words standing in a text, in cosines."""
PASSAGE_WORTH = 0.9
"""A passage is longer than a question: its likeness tells a little less than that of a question."""
NOTHING = ""
"""The label of examples that nothing here answers."""
_STOP_WORDS = (
    "a an and are at be can could do does for from get have how i in is it me my of on or our please so that"
    " the there this to was we what when where which who will with would you your"
)
_STOP = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True, slots=True)
class Form:
    """One text and what it stands for."""

    label: str
    text: str
    is_passage: bool = False
    language: str = "en"
    is_example: bool = False
    """One of the user's, which the threshold is fitted on."""


@dataclass(frozen=True, slots=True)
class Match:
    """A label and how near it is."""

    label: str
    score: float
    text: str
    """The form that was nearest."""


def terms(text: str) -> list[str]:
    """Words that tell something, without plural endings."""
    words = re.findall(r"[^\W_]+", text.lower())
    return [
        word[:-1] if len(word) > 3 and word.endswith("s") else word
        for word in words
        if word not in _STOP
    ]


class Matcher:
    """Labels by likeness, under one embedding model."""

    def __init__(self, forms: Sequence[Form], vectors: Vectors) -> None:
        """`vectors` has a row for each form."""
        self._forms = list(forms)
        self._mean = vectors.mean(axis=0) if len(vectors) else vectors.sum(axis=0)
        self._vectors = self._centred(vectors)
        self._terms = [set(terms(form.text)) for form in forms]
        counts = Counter(term for found in self._terms for term in found)
        size = len(self._forms) + 1
        self._weights = {term: math.log(size / count) for term, count in counts.items()}
        self._unseen = math.log(size)
        self._worth = np.array([PASSAGE_WORTH if f.is_passage else 1.0 for f in forms])
        self.threshold, self.fitted_accuracy = self._fit(vectors)

    def rank(self, text: str, vector: Vectors, *, without: int | None = None) -> list[Match]:
        """Each label's nearest form, best first; `without` leaves one form out."""
        if not self._forms:
            return []
        scores = self._scores(text, self._centred(vector))
        if without is not None:
            scores[without] = -1.0
        best: dict[str, Match] = {}
        for index in np.argsort(-scores, kind="stable"):
            form = self._forms[index]
            if form.label not in best:
                best[form.label] = Match(form.label, float(scores[index]), form.text)
        return list(best.values())

    def questions(self, label: str, limit: int = 8) -> list[str]:
        """The short texts of a label, for a model to read."""
        return [f.text for f in self._forms if f.label == label and not f.is_passage][:limit]

    def alike(self, rows: Vectors, vector: Vectors) -> Vectors:
        """Cosines of other texts' rows with a text, on the scale of this desk."""
        cosines: Vectors = self._centred(rows) @ self._centred(vector)
        return cosines

    def _centred(self, vectors: Vectors) -> Vectors:
        """Without what all the desk's texts have in common, and of length one again: some models' vectors
        all point much the same way."""
        moved = vectors - self._mean
        result: Vectors = moved / np.maximum(np.linalg.norm(moved, axis=-1, keepdims=True), 1e-6)
        return result

    def _scores(self, text: str, vector: Vectors) -> Vectors:
        asked = terms(text)
        weights = [self._weights.get(term, self._unseen) for term in asked]
        total = sum(weights) or 1.0
        shared = np.array(
            [
                sum(w for term, w in zip(asked, weights, strict=True) if term in found) / total
                for found in self._terms
            ]
        )
        scores: Vectors = (self._vectors @ vector) * self._worth + WORDS_WORTH * shared
        return scores

    def _fit(self, vectors: Vectors) -> tuple[float, float]:
        """The threshold with the most examples on their right side, and that share of them."""
        told: list[tuple[float, bool]] = []
        for index, form in enumerate(self._forms):
            if not form.is_example:
                continue
            ranked = self.rank(form.text, vectors[index], without=index)
            known = [match for match in ranked if match.label != NOTHING]
            if known:
                told.append((known[0].score, form.label != NOTHING))
        return best_threshold(told)


DEFAULT_THRESHOLD = 0.55
"""Where there are no examples of both kinds to fit one on."""


WRONG_COSTS = 2.0
"""An answer to what was not asked, in hand-overs of what could have been answered."""


def best_threshold(told: Sequence[tuple[float, bool]]) -> tuple[float, float]:
    """The score that best divides true from false, and the balanced accuracy there.

    Half way between two scores, and of equally good ones the middle one."""
    num_yes = sum(is_yes for _, is_yes in told)
    num_no = len(told) - num_yes
    if not num_yes or not num_no:
        return DEFAULT_THRESHOLD, 0.0
    scores = sorted({score for score, _ in told})
    cuts = [scores[0] - 0.01, *((a + b) / 2 for a, b in pairwise(scores))]

    def shares(cut: float) -> tuple[float, float]:
        kept = sum(is_yes for score, is_yes in told if score >= cut)
        left = sum(not is_yes for score, is_yes in told if score < cut)
        return kept / num_yes, left / num_no

    def worth(cut: float) -> float:
        known, unknown = shares(cut)
        return known + WRONG_COSTS * unknown

    best = max(map(worth, cuts))
    tied = [cut for cut in cuts if worth(cut) == best]
    chosen = tied[len(tied) // 2]
    return chosen, sum(shares(chosen)) / 2

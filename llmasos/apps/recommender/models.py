"""Strategies: from a user's history to a score for every item, with what each past item added to it.

`als`, `bpr` and `knn` are fitted by the library implicit, in one thread, so that a fit is repeatable. A user
is a weighted row of items, folded in when asked about, so a new event counts at once; what items have to do
with each other is learnt at the next fit. A row's share in a score is exact for `knn`, `content` and `als`
(its fold-in is linear in the row once the row's weights are known); `bpr` scores by the cosines of its items.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmasos.apps.recommender.data import Data, Event
from llmasos.kernel.errors import AppError

Array = NDArray[np.float64]
FACTORS = 32
REGULARISATION = 0.05
ALPHA = 10.0
"""How much more an event counts than none (Hu, Koren, Volinsky 2008)."""
NEIGHBOURS = 50
SEED = 7
LEARNT = ("als", "bpr", "knn")
STRATEGIES = (*LEARNT, "content", "popular")


class Strategy(Protocol):
    """Scores items for a row of the items' weights."""

    def scores(self, row: Array) -> Array:
        """For each item."""
        ...

    def shares(self, row: Array, item: int) -> Array:
        """What each item of the row added to one item's score."""
        ...


class Linear:
    """Scores are row @ matrix: `knn` and `content`."""

    def __init__(self, matrix: Array) -> None:
        """`matrix[i, j]`: what item i says for item j."""
        self._matrix = matrix

    def scores(self, row: Array) -> Array:
        """See `Strategy`."""
        result: Array = row @ self._matrix
        return result

    def shares(self, row: Array, item: int) -> Array:
        """See `Strategy`."""
        result: Array = row * self._matrix[:, item]
        return result


class Factors:
    """`als` folded in: the user's factors solve the least squares of the row they are given."""

    def __init__(self, item_factors: Array) -> None:
        self._items = item_factors
        self._gram = item_factors.T @ item_factors

    def scores(self, row: Array) -> Array:
        """See `Strategy`."""
        return np.asarray(self._items @ self._solved(row).sum(axis=1))

    def shares(self, row: Array, item: int) -> Array:
        """See `Strategy`; they add up to the score."""
        result = np.zeros(len(row))
        result[np.flatnonzero(row)] = self._items[item] @ self._solved(row)
        return result

    def _solved(self, row: Array) -> Array:
        """A column for each item of the row: its part of the user's factors."""
        seen = np.flatnonzero(row)
        own = self._items[seen]
        weights = ALPHA * np.abs(row[seen])
        left = self._gram + own.T @ (weights[:, None] * own) + REGULARISATION * np.eye(own.shape[1])
        right = own.T * ((1 + weights) * (row[seen] > 0))
        return np.asarray(np.linalg.solve(left, right), dtype=np.float64)


class Popularity:
    """The same for everybody."""

    def __init__(self, counts: Array) -> None:
        self._scores = np.log1p(counts)

    def scores(self, row: Array) -> Array:
        """See `Strategy`."""
        return self._scores

    def shares(self, row: Array, item: int) -> Array:
        """None of the user's own."""
        return np.zeros(len(row))


def row_of(data: Data, history: Sequence[Event]) -> Array:
    """A history as weights: a rating of three or less of five, or a value below zero, counts against."""
    row = np.zeros(len(data.item_ids))
    has_ratings = any(event.value > 1 for event in history)
    for event in history:
        row[data.index[event.item]] = (event.value - 3) / 2 if has_ratings else event.value
    return row


def fit(name: str, data: Data, vectors: Array | None) -> Strategy:
    """Fit a strategy. Blocks: for a worker thread. Raises `AppError` where its library is missing."""
    if name == "popular":
        return Popularity(counts_of(data))
    if name == "content":
        if vectors is None:
            raise AppError("Strategy content needs vectors: `llmasos model pull minilm`.")
        alike = np.clip(vectors @ vectors.T, 0, None) ** 3  # near ones count, far ones hardly
        np.fill_diagonal(alike, 0)
        return Linear(alike)
    return _learnt(name, data)


def counts_of(data: Data) -> Array:
    """Users that each item had."""
    pairs = {(event.user, data.index[event.item]) for event in data.events}
    return np.bincount([item for _, item in pairs], minlength=len(data.item_ids)).astype(float)


def _learnt(name: str, data: Data) -> Strategy:
    library = _library(name)
    from threadpoolctl import threadpool_limits  # implicit brings it

    matrix = matrix_of(data)
    fitted = library()
    weighted = matrix * ALPHA if name == "als" else matrix
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it converts between its own sparse formats
        fitted.fit(weighted, show_progress=False)
    if name == "als":
        return Factors(np.asarray(fitted.item_factors, dtype=np.float64))
    if name == "knn":
        alike = fitted.similarity.toarray().astype(np.float64)
        np.fill_diagonal(alike, 0)
        return Linear(alike)
    factors = np.asarray(fitted.item_factors, dtype=np.float64)
    factors /= np.maximum(np.linalg.norm(factors, axis=1, keepdims=True), 1e-9)
    alike = np.clip(factors @ factors.T, 0, None)
    np.fill_diagonal(alike, 0)
    return Linear(alike)


def matrix_of(data: Data) -> Any:
    """Users by items, sparse; what counts against an item is left out."""
    from scipy.sparse import csr_matrix

    users = data.users
    by_user: dict[str, list[Event]] = {user: [] for user in users}
    for event in data.events:
        by_user[event.user].append(event)
    rows = [np.clip(row_of(data, by_user[user]), 0, None) for user in users]
    return csr_matrix(np.array(rows, dtype=np.float32).reshape(len(users), len(data.item_ids)))


def _library(name: str) -> Callable[[], Any]:
    try:
        from implicit.als import AlternatingLeastSquares
        from implicit.bpr import BayesianPersonalizedRanking
        from implicit.nearest_neighbours import CosineRecommender
    except ImportError as error:
        raise AppError(
            f"Strategy {name} needs `pip install 'llmasos[recommender]'`; content and popular do not."
        ) from error
    made: dict[str, Callable[[], Any]] = {
        "als": lambda: AlternatingLeastSquares(
            factors=FACTORS,
            regularization=REGULARISATION,
            iterations=15,
            random_state=SEED,
            num_threads=1,
        ),
        "bpr": lambda: BayesianPersonalizedRanking(
            factors=FACTORS, iterations=60, random_state=SEED, num_threads=1
        ),
        "knn": lambda: CosineRecommender(K=NEIGHBOURS, num_threads=1),
    }
    return made[name]

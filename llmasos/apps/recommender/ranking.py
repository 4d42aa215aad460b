"""From scores to a list: what was seen last counts more, popularity and sameness are held back, one place is
for trying things out.

Pure numpy. The place for trying out is LinUCB (Li et al. 2010) over an item's tags, with what the user did as
the reward: it needs no random numbers, so a replay recommends the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmasos.apps.recommender.data import Data, Event
from llmasos.apps.recommender.models import Array, Strategy, row_of

RECENT = 5
RECENT_WEIGHT = 0.3
"""Of the latest items' own score, beside the whole history's."""
UCB_WIDTH = 0.6


@dataclass(frozen=True, slots=True)
class Taste:
    """How a list is to be."""

    diversity: float = 0.2
    """0: by score alone; 1: each as unlike those before as can be."""
    novelty: float = 0.1
    """How much popular items are held back."""
    explore: bool = True


@dataclass(frozen=True, slots=True)
class Pick:
    """A recommended item, and why: the shares of the user's own items that spoke for it, largest first."""

    item: str
    score: float
    because: tuple[tuple[str, float], ...]
    tags: tuple[str, ...]
    """Those that it has in common with the items that spoke for it."""
    is_trial: bool = False


def recommend(
    data: Data,
    strategy: Strategy,
    history: Sequence[Event],
    counts: Array,
    *,
    count: int,
    taste: Taste,
    vectors: Array | None = None,
) -> list[Pick]:
    """The best unseen items for a history, which may be empty. At most `count`."""
    row = row_of(data, history)
    scores = _relevance(data, strategy, history, row, counts, taste)
    seen = {data.index[event.item] for event in history}
    candidates = [at for at in np.argsort(-scores, kind="stable") if at not in seen]
    num_safe = count - (taste.explore and count > 1 and bool(history))
    chosen = _diverse(candidates[: 5 * count], scores, num_safe, taste.diversity, vectors)
    picks = [_pick(data, strategy, row, at, scores) for at in chosen]
    if len(chosen) < count:
        rest = [at for at in candidates[: 20 * count] if at not in chosen]
        trial = _trial(data, history, rest)
        picks += [_pick(data, strategy, row, at, scores, is_trial=True) for at in trial]
    return picks


def _relevance(
    data: Data,
    strategy: Strategy,
    history: Sequence[Event],
    row: Array,
    counts: Array,
    taste: Taste,
) -> Array:
    if not history:
        return _scaled(np.log1p(counts))
    scores = _scaled(strategy.scores(row))
    recent = row_of(data, history[-RECENT:])
    scores = scores + RECENT_WEIGHT * _scaled(strategy.scores(recent))
    result: Array = scores - taste.novelty * _scaled(np.log1p(counts))
    return result


def _scaled(values: Array) -> Array:
    span = float(values.max() - values.min())
    result: Array = (values - values.min()) / span if span > 0 else np.zeros_like(values)
    return result


def _diverse(
    candidates: Sequence[int], scores: Array, count: int, diversity: float, vectors: Array | None
) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein 1998)."""
    chosen: list[int] = []
    left = list(candidates)
    while left and len(chosen) < count:
        penalty = np.zeros(len(left))
        if chosen and vectors is not None:
            penalty = (vectors[left] @ vectors[chosen].T).max(axis=1)
        worth = scores[left] * (1 - diversity) - penalty * diversity
        chosen.append(left.pop(int(np.argmax(worth))))
    return chosen


def _trial(data: Data, history: Sequence[Event], rest: Sequence[int]) -> list[int]:
    """The item whose tags promise most, at the upper end of what is not known about them."""
    tags = sorted({tag for item in data.items.values() for tag in item.tags})
    if not rest or not tags:
        return list(rest[:1])
    places = {tag: at for at, tag in enumerate(tags)}
    precision, reward = np.eye(len(tags)), np.zeros(len(tags))
    for event in history:
        x = _features(data, data.index[event.item], places)
        precision += np.outer(x, x)
        reward += x * max(-1.0, min(1.0, event.value))
    inverse = np.linalg.inv(precision)
    belief = inverse @ reward
    rows = np.array([_features(data, at, places) for at in rest])
    bounds = rows @ belief + UCB_WIDTH * np.sqrt(np.einsum("ij,jk,ik->i", rows, inverse, rows))
    return [rest[int(np.argmax(bounds))]]


def _features(data: Data, at: int, places: dict[str, int]) -> Array:
    row = np.zeros(len(places))
    for tag in data.items[data.item_ids[at]].tags:
        row[places[tag]] = 1.0
    return row / max(1.0, float(np.linalg.norm(row)))


def _pick(
    data: Data, strategy: Strategy, row: Array, at: int, scores: Array, *, is_trial: bool = False
) -> Pick:
    shares = np.clip(strategy.shares(row, at), 0, None)
    total = float(shares.sum())
    best = [int(i) for i in np.argsort(-shares, kind="stable")[:3] if shares[i] > 0.05 * total > 0]
    because = tuple((data.item_ids[i], float(shares[i] / total)) for i in best)
    own = data.items[data.item_ids[at]].tags
    tags = {tag for item, _ in because for tag in data.items[item].tags}
    common = tuple(tag for tag in own if tag in tags)
    return Pick(data.item_ids[at], float(scores[at]), because, common, is_trial)

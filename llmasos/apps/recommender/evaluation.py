"""Offline evaluation: strategies are fitted on what came before a moment and judged on what came after.

For each user with a past and new items later: nDCG, recall and average precision of the first ten, with 95 %
intervals by bootstrap over users; over all lists: the share of items that are ever shown (coverage) and how
unlike a list's items are (diversity). Popularity and chance are judged beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmasos.apps.recommender.data import Data
from llmasos.apps.recommender.models import Array, Strategy, counts_of, fit
from llmasos.apps.recommender.ranking import Taste, recommend

COUNT = 10
TRAIN_SHARE = 0.8
NUM_BOOTSTRAPS = 500
PLAIN = Taste(diversity=0.0, novelty=0.0, explore=False)


@dataclass(frozen=True, slots=True)
class Figures:
    """One strategy's."""

    name: str
    ndcg: Array
    """Of each user."""
    recall: Array
    precision: Array
    coverage: float
    diversity: float


def split(data: Data, share: float = TRAIN_SHARE) -> tuple[Data, dict[str, set[str]]]:
    """The past, and what each of its users turned to afterwards that was new to them."""
    cut = int(len(data.events) * share)
    past = Data(data.items, data.events[:cut])
    seen: dict[str, set[str]] = {}
    for event in past.events:
        seen.setdefault(event.user, set()).add(event.item)
    later: dict[str, set[str]] = {}
    for event in data.events[cut:]:
        if event.user in seen and event.item not in seen[event.user]:
            later.setdefault(event.user, set()).add(event.item)
    return past, later


def evaluate(
    data: Data, names: Sequence[str], vectors: Array | None, taste: Taste
) -> list[Figures]:
    """Figures of the strategies, and of `random`. Blocks: for a worker thread."""
    past, later = split(data)
    results = []
    for name in names:
        strategy = fit(name, past, vectors)
        own = PLAIN if name == "popular" else taste
        lists = {user: _list(past, strategy, user, own, vectors) for user in later}
        results.append(judge(name, lists, later, data, vectors))
    return [*results, judge("random", _random_lists(past, later), later, data, vectors)]


def _list(
    past: Data, strategy: Strategy, user: str, taste: Taste, vectors: Array | None
) -> list[str]:
    picks = recommend(
        past,
        strategy,
        past.history(user),
        counts_of(past),
        count=COUNT,
        taste=taste,
        vectors=vectors,
    )
    return [pick.item for pick in picks]


def _random_lists(past: Data, later: dict[str, set[str]]) -> dict[str, list[str]]:
    draw = np.random.default_rng(0)
    lists = {}
    for user in later:
        seen = {event.item for event in past.history(user)}
        unseen = [item for item in past.item_ids if item not in seen]
        chosen = draw.permutation(len(unseen))[:COUNT]
        lists[user] = [unseen[at] for at in chosen]
    return lists


def judge(
    name: str,
    lists: dict[str, list[str]],
    later: dict[str, set[str]],
    data: Data,
    vectors: Array | None,
) -> Figures:
    """Compare lists with what users turned to."""
    hits = {user: [item in later[user] for item in lists[user]] for user in later}
    shown = {item for items in lists.values() for item in items}
    return Figures(
        name,
        np.array([ndcg(hits[user], len(later[user])) for user in later]),
        np.array([sum(hits[user]) / len(later[user]) for user in later]),
        np.array([average_precision(hits[user], len(later[user])) for user in later]),
        len(shown) / len(data.items),
        _diversity(lists, data, vectors),
    )


def ndcg(hits: Sequence[bool], num_relevant: int) -> float:
    """Discounted gain against the best that was possible."""
    gain = sum(hit / math.log2(rank + 2) for rank, hit in enumerate(hits))
    best = sum(1 / math.log2(rank + 2) for rank in range(min(num_relevant, len(hits))))
    return gain / best if best else 0.0


def average_precision(hits: Sequence[bool], num_relevant: int) -> float:
    """Mean of the precision at each hit."""
    total, num_hits = 0.0, 0
    for rank, hit in enumerate(hits, 1):
        num_hits += hit
        total += hit * num_hits / rank
    return total / min(num_relevant, len(hits)) if hits else 0.0


def _diversity(lists: dict[str, list[str]], data: Data, vectors: Array | None) -> float:
    """1 minus the mean cosine of a list's pairs; 0 without vectors."""
    if vectors is None:
        return 0.0
    values = []
    for items in lists.values():
        rows = vectors[[data.index[item] for item in items]]
        size = len(rows)
        if size > 1:
            values.append(1 - ((rows @ rows.T).sum() - size) / (size * (size - 1)))
    return float(np.mean(values)) if values else 0.0


def interval(values: Array) -> tuple[float, float]:
    """The 95 % interval of a mean, by bootstrap."""
    draw = np.random.default_rng(1)
    means = values[draw.integers(0, len(values), (NUM_BOOTSTRAPS, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def table(results: Sequence[Figures]) -> list[str]:
    """The figures as Markdown."""
    lines = [
        "| strategy | nDCG@10 | recall@10 | MAP@10 | coverage | diversity |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        cells = [_cell(values) for values in (result.ndcg, result.recall, result.precision)]
        ends = f"{result.coverage:.0%} | {result.diversity:.2f}"
        lines.append(f"| {result.name} | {' | '.join(cells)} | {ends} |")
    return lines


def _cell(values: Array) -> str:
    low, high = interval(values)
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"

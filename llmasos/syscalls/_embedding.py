"""The embedding model that syscalls rank by, where the home's store has it, and ranking by it.

Without it they rank by words alone and say so. Vectors are compared exactly: every one is looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.errors import ConfigError
from llmasos.kernel.models import ModelStore
from llmasos.kernel.models.embedder import Embedder, TextEmbedder

MODEL = "minilm"
MIN_COSINE = 0.25
"""Less alike than this, a text is not about the query. Of this project's documents the best for
questions about other things had 0.1 to 0.2, answers to questions 0.3 to 0.6."""
FUSION_RANK = 60.0
"""Reciprocal rank fusion's constant (Cormack, Clarke, Buettcher 2009)."""


def embedder_of(cache_folder: Path) -> TextEmbedder | None:
    """The embedder of the home that a cache folder belongs to; None where its store has none.

    One a home and process, so that the weights are loaded once.
    """
    models = cache_folder.parent / "models"
    manifest = models / MODEL / "manifest.json"
    try:
        return _opened(models, manifest.stat().st_mtime_ns)
    except (OSError, ConfigError):
        return None


@functools.lru_cache(maxsize=4)
def _opened(models: Path, stamp: int) -> Embedder:
    """`stamp` tells a model from the one that it replaced."""
    del stamp
    return Embedder(ModelStore(models).open(MODEL))


def as_blob(vector: NDArray[np.float32]) -> bytes:
    """A vector as it lies in a database."""
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def nearest(
    query: NDArray[np.float32], ids: Sequence[int], blobs: Sequence[bytes], limit: int
) -> list[tuple[int, float]]:
    """Ids and cosines of the vectors most like `query`, best first, none below `MIN_COSINE`."""
    if not ids:
        return []
    vectors = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(ids), -1)
    cosines = vectors @ query
    order = np.argsort(-cosines, kind="stable")[:limit]
    return [(ids[at], float(cosines[at])) for at in order if cosines[at] >= MIN_COSINE]


def fused(*rankings: Iterable[int]) -> list[tuple[int, float]]:
    """Ids by reciprocal rank fusion of several rankings, best first, each with its score."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + 1 / (FUSION_RANK + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))

"""What apps compute with vectors: the `embed` syscall's results, and logistic regression on them.

Plain numpy, deterministic: the same vectors give the same numbers at a replay.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmasos.apps.sdk import Proc

Vectors = NDArray[np.float32]
FIT_STEPS = 400
LEARNING_RATE = 2.0
BATCH = 1024


async def embed(
    proc: Proc, texts: Sequence[str], *, model: str = "minilm", query: bool = False
) -> Vectors:
    """A row of length one for each text. Raises `Failed` where the model is not at hand."""
    rows: list[str] = []
    for start in range(0, len(texts), BATCH):
        part = list(texts[start : start + BATCH])
        rows += (await proc.call("embed", texts=part, model=model, query=query))["vectors"]
    if not rows:
        return np.zeros((0, 1), dtype=np.float32)
    return np.stack([np.frombuffer(base64.b64decode(row), "<f2") for row in rows]).astype(
        np.float32
    )


@dataclass(frozen=True, slots=True)
class Logistic:
    """p(yes | x) = sigmoid(weights . x + bias)."""

    weights: Vectors
    bias: float

    def probabilities(self, rows: Vectors) -> NDArray[np.float64]:
        """Of each row."""
        return _sigmoid(rows.astype(np.float64) @ self.weights + self.bias)


def fit_logistic(rows: Vectors, is_yes: Sequence[bool], *, decay: float = 0.003) -> Logistic:
    """The regression with an L2 penalty of `decay`, by full gradient steps from zero."""
    x, y = rows.astype(np.float64), np.asarray(is_yes, dtype=np.float64)
    weights, bias = np.zeros(x.shape[1]), 0.0
    for _ in range(FIT_STEPS):
        error = _sigmoid(x @ weights + bias) - y
        weights -= LEARNING_RATE * (x.T @ error / len(y) + decay * weights)
        bias -= LEARNING_RATE * float(error.mean())
    return Logistic(weights.astype(np.float32), bias)


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(values, -40, 40)))
    return result

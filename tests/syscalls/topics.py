"""An embedding model whose idea of meaning is a short list of words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TOPICS = {"car": 0, "automobile": 0, "vehicle": 0, "cat": 1, "kitten": 1, "pet": 1}


class TopicEmbedder:
    """Words that mean the same point the same way; every other text points elsewhere."""

    def __init__(self, fingerprint: str = "topics") -> None:
        self.fingerprint = fingerprint
        self.num_embedded = 0

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.num_embedded += len(texts)
        rows = np.zeros((len(texts), 3), dtype=np.float32)
        for row, text in enumerate(texts):
            words = text.lower().replace(".", " ").split()
            rows[row, next((TOPICS[word] for word in words if word in TOPICS), 2)] = 1
        return rows

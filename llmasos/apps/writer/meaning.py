"""How alike texts are: by the `embed` syscall where the home has its model, else by their words."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from llmasos.apps.sdk import Proc
from llmasos.apps.vectors import Vectors, embed
from llmasos.apps.writer.text import terms
from llmasos.kernel.errors import Failed

SIZE = 1024


async def vectors_of(proc: Proc, texts: Sequence[str]) -> Vectors:
    """A row of length one for each text; their products tell how alike they are."""
    if not texts:
        return np.zeros((0, SIZE), dtype=np.float32)
    try:
        return await embed(proc, [text[:20_000] for text in texts])
    except Failed:
        return np.stack([_counted(text) for text in texts])


def _counted(text: str) -> Vectors:
    """Words as directions."""
    row = np.full(SIZE, 1e-4, dtype=np.float32)
    for term in terms(text):
        row[zlib.crc32(term.encode()) % SIZE] += 1
    length: np.float32 = np.linalg.norm(row)
    result: Vectors = row / length
    return result

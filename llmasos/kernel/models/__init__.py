"""Models on disk and their tokenizers: where they come from, whether they are whole, their words."""

from llmasos.kernel.models.records import (
    ModelInfo,
    ModelKind,
    OnProgress,
    PullProgress,
    PullStage,
    StoredModel,
)
from llmasos.kernel.models.store import ModelStore
from llmasos.kernel.models.tokenizer import ModelTokenizer

__all__ = [
    "ModelInfo",
    "ModelKind",
    "ModelStore",
    "ModelTokenizer",
    "OnProgress",
    "PullProgress",
    "PullStage",
    "StoredModel",
]

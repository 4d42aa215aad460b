"""Texts as vectors: a BERT encoder of the store (such as `minilm`) in plain torch, on the processor.

Mean over a text's tokens, normalised to length one, as sentence-transformers does for these models, so
that a dot product is the cosine. Texts are cut at the model's window. Computes in float32; torch and the
weights are loaded at the first use. Not here: other encoder families, and any search among vectors.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from llmasos.kernel.errors import ConfigError, ModelCorrupt
from llmasos.kernel.models.records import ModelKind, StoredModel
from llmasos.kernel.models.tokenizer import parse_backend
from llmasos.kernel.models.tokenizer_files import read_json

if TYPE_CHECKING:
    import torch

MAX_BATCH_TEXTS: Final = 32
MAX_TEXT_CHARS: Final = 20_000
"""Longer texts are cut before they are tokenised; no window holds as much."""
_SEQUENCE_CONFIG: Final = "sentence_bert_config.json"


class TextEmbedder(Protocol):
    """Turns texts into vectors of length one."""

    @property
    def fingerprint(self) -> str:
        """Vectors with different ones cannot be compared."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A row for each text. Blocks."""
        ...


class Embedder:
    """A `TextEmbedder` from the store. Thread-safe: one thread at a time computes."""

    def __init__(self, model: StoredModel) -> None:
        """Reads nothing yet. Raises `ConfigError` for a model that is no BERT encoder."""
        if model.kind is not ModelKind.ENCODER or model.info.architecture != "BertModel":
            raise ConfigError(f"{model.name} is not a BERT encoder, so it cannot embed texts.")
        self._model = model
        self._lock = threading.Lock()
        self._bert: _Bert | None = None

    @property
    def fingerprint(self) -> str:
        """The model's own."""
        return self._model.fingerprint

    @property
    def dimensions(self) -> int:
        """Numbers in a vector."""
        return int(self._model.config["hidden_size"])

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of the texts, `[n, dimensions]`, each of length one.

        Blocks; the first call also for the loading of torch and the weights. Raises `ModelCorrupt`.
        """
        result = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        if not len(texts):
            return result
        with self._lock:
            if self._bert is None:
                self._bert = _Bert.load(self._model)
            tokens = self._bert.tokenize(texts)
            by_length = sorted(range(len(texts)), key=lambda at: len(tokens[at]))
            for start in range(0, len(texts), MAX_BATCH_TEXTS):  # alike in length: little padding
                batch = by_length[start : start + MAX_BATCH_TEXTS]
                result[batch] = self._bert.embed([tokens[at] for at in batch])
        return result


class _Bert:
    """The loaded weights and the forward pass."""

    def __init__(
        self,
        weights: dict[str, torch.Tensor],
        config: dict[str, Any],
        tokenizer: Tokenizer,
        num_layers: int,
    ) -> None:
        self._weights = weights
        self._num_heads = int(config["num_attention_heads"])
        self._eps = float(config["layer_norm_eps"])
        self._pad_id = int(config.get("pad_token_id") or 0)
        self._num_layers = num_layers
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, model: StoredModel) -> _Bert:
        """Read a model's files; raises `ModelCorrupt`."""
        from safetensors.torch import load_file

        config = dict(model.config)
        if config.get("hidden_act") != "gelu" or (
            config.get("position_embedding_type", "absolute") != "absolute"
        ):
            raise ModelCorrupt(f"{model.name} is a BERT of a kind that cannot be run here.")
        weights: dict[str, torch.Tensor] = {}
        for file in model.weights:
            weights |= {
                name.removeprefix("bert."): w.float() for name, w in load_file(file).items()
            }
        bert = cls(weights, config, _tokenizer(model.folder, config), config["num_hidden_layers"])
        missing = [name for name in bert._names() if name not in weights]
        if missing:
            raise ModelCorrupt(f"{model.name} lacks the weights {missing[0]}.")
        return bert

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, cut at the window."""
        cut = [text[:MAX_TEXT_CHARS].encode("utf-8", "replace").decode() for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch(cut)]

    def embed(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """One batch."""
        import torch

        width = max(map(len, tokens))
        ids = torch.full((len(tokens), width), self._pad_id, dtype=torch.long)
        for row, sequence in enumerate(tokens):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        lengths = torch.tensor([len(sequence) for sequence in tokens])
        mask = torch.arange(width)[None, :] < lengths[:, None]
        with torch.inference_mode():
            states = self._forward(ids, mask) * mask[:, :, None]
            mean = states.sum(dim=1) / lengths[:, None]
            vectors: NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Hidden states `[batch, width, hidden]` of token ids `[batch, width]`."""
        w = self._weights
        states = (
            w["embeddings.word_embeddings.weight"][ids]
            + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
            + w["embeddings.token_type_embeddings.weight"][0]
        )
        states = self._norm(states, "embeddings.LayerNorm")
        for layer in range(self._num_layers):
            states = self._layer(states, mask[:, None, None, :], f"encoder.layer.{layer}")
        return states

    def _layer(self, states: torch.Tensor, mask: torch.Tensor, name: str) -> torch.Tensor:
        from torch.nn import functional

        batch, width, hidden = states.shape
        shape = (batch, width, self._num_heads, hidden // self._num_heads)
        q, k, v = (
            self._linear(states, f"{name}.attention.self.{part}").view(shape).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed = mixed.transpose(1, 2).reshape(batch, width, hidden)
        mixed = self._linear(mixed, f"{name}.attention.output.dense")
        states = self._norm(states + mixed, f"{name}.attention.output.LayerNorm")
        wide = functional.gelu(self._linear(states, f"{name}.intermediate.dense"))
        narrow = self._linear(wide, f"{name}.output.dense")
        return self._norm(states + narrow, f"{name}.output.LayerNorm")

    def _linear(self, states: torch.Tensor, name: str) -> torch.Tensor:
        from torch.nn import functional

        return functional.linear(
            states, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        )

    def _norm(self, states: torch.Tensor, name: str) -> torch.Tensor:
        from torch.nn import functional

        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(states, weight.shape, weight, bias, self._eps)

    def _names(self) -> list[str]:
        """Every tensor that a forward pass reads."""
        embeddings = ("word_embeddings.weight", "position_embeddings.weight")
        tables = [f"embeddings.{name}" for name in (*embeddings, "token_type_embeddings.weight")]
        parts = (
            *("attention.self.query", "attention.self.key", "attention.self.value"),
            *("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense"),
            *("output.dense", "output.LayerNorm"),
        )
        layers = [
            f"encoder.layer.{n}.{part}" for n in range(self._num_layers) for part in parts
        ] + ["embeddings.LayerNorm"]
        return tables + [f"{part}.{end}" for part in layers for end in ("weight", "bias")]


def _tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    window = int(config["max_position_embeddings"])
    if (folder / _SEQUENCE_CONFIG).exists():
        window = min(
            window, int(read_json(folder / _SEQUENCE_CONFIG).get("max_seq_length", window))
        )
    try:
        source = (folder / "tokenizer.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelCorrupt(f"The tokenizer in {folder} cannot be read: {error}.") from error
    tokenizer = parse_backend(source, folder.name)
    tokenizer.enable_truncation(window)
    return tokenizer

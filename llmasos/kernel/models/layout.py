"""What is in a model folder of the usual Hugging Face kind: which files count, what they say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmasos.kernel.errors import PullFailed
from llmasos.kernel.models.records import ModelKind
from llmasos.kernel.models.tokenizer_files import read_json
from llmasos.kernel.models.weights import read_safetensors_facts

INDEX: Final = "model.safetensors.index.json"
KEPT_FILES: Final = (
    *("config.json", "generation_config.json", INDEX),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("tokenizer.model", "spiece.model", "modules.json", "sentence_bert_config.json"),
    *("config_sentence_transformers.json", "1_Pooling/config.json"),
    *("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "README.md"),
)
"""What the store keeps beside the weights, where it is there."""

_ENCODER_NAME: Final = re.compile(r"(?<!LMHead)Model$|ForMaskedLM$")
_WINDOW_NAMES: Final = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")
_DEFAULT_WINDOW: Final = 2048


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a folder says of its model."""

    kind: ModelKind
    architecture: str
    parameters: int
    dtype: str
    context_length: int
    vocab_size: int
    notes: tuple[str, ...]


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold the weights; raises `PullFailed` if there are none to use."""
    if (folder / INDEX).exists():
        named = read_json(folder / INDEX).get("weight_map", {}).values()
        return _there(folder, sorted({Path(str(name)).name for name in named}))
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if "model.safetensors" in files or len(files) == 1:
        return ["model.safetensors"] if "model.safetensors" in files else files
    if files:
        raise PullFailed(f"{folder} has several safetensors files and no {INDEX} to tell them by.")
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise PullFailed(
            f"{folder} has its weights as Python pickles only, which can run code when read; "
            "convert them to safetensors."
        )
    raise PullFailed(f"{folder} holds no weights (*.safetensors).")


def _there(folder: Path, names: list[str]) -> list[str]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise PullFailed(f"{folder} lacks {missing[0] if missing else 'the weights it lists'}.")
    return names


def read_facts(folder: Path) -> ModelFacts:
    """A finished folder's facts; raises `PullFailed` for a model that cannot be run here, and
    `ModelCorrupt` for files that cannot be read."""
    config = read_json(folder / "config.json")
    text_config = {**config, **_nested(config)}
    weights = read_safetensors_facts(folder / name for name in weight_files(folder))
    window = next((text_config[name] for name in _WINDOW_NAMES if text_config.get(name)), None)
    note = f"Its configuration states no window; {_DEFAULT_WINDOW} tokens are assumed."
    return ModelFacts(
        kind=kind_of(folder, config),
        architecture=_architecture(config),
        parameters=weights.parameters,
        dtype=weights.dtype,
        context_length=int(window or _DEFAULT_WINDOW),
        vocab_size=int(text_config.get("vocab_size") or 0),
        notes=() if window else (note,),
    )


def kind_of(folder: Path, config: Mapping[str, Any]) -> ModelKind:
    """Whether a model writes or embeds; raises `PullFailed` if it does neither."""
    if not config.get("model_type"):
        raise PullFailed(f"{folder} is not a model: its config.json is missing or names no type.")
    architecture = _architecture(config)
    if (folder / "modules.json").exists() or _ENCODER_NAME.search(architecture):
        return ModelKind.ENCODER
    if config.get("is_encoder_decoder"):
        raise PullFailed(
            f"{architecture} is an encoder-decoder model; decoders and text encoders run here."
        )
    return ModelKind.DECODER


def license_of(folder: Path) -> str:
    """What the model card's header names; "unknown" if it names none."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    header = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)", header[1], re.MULTILINE) if header else None
    return found[1].strip("'\"") if found else "unknown"


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures") or [config.get("model_type", "unknown")]
    return str(named[0])


def _nested(config: Mapping[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, dict) else {}

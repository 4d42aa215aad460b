"""LoRA adapters as peft writes them: what a folder says, and whether it fits a model. No weight is read.

A module's product W x becomes W x + s B A x, with A [r, in] and B [out, r] (Hu et al., "LoRA: Low-Rank
Adaptation of Large Language Models", 2021); s is alpha / r, or alpha / sqrt(r) where the config says rslora
(Kalajdzievski, 2023). Whatever else peft can do to a model is refused: a part that is left out, or misread,
would look like a bad adapter.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmasos.kernel.errors import ConfigError, ModelCorrupt, PullFailed
from llmasos.kernel.models.layout import weight_files
from llmasos.kernel.models.manifest import sha256_of
from llmasos.kernel.models.weights import Shape, read_shapes

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_HEADS: Final = ("lm_head", "embed_out")

_WITHOUT_EFFECT: Final = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
        *("task_type", "exclude_modules", "init_lora_weights", "layers_pattern", "target_modules"),
        *("layers_to_transform", "lora_dropout", "loftq_config", "eva_config", "corda_config"),
        *("lora_ga_config", "ensure_weight_tying", "qalora_group_size", "runtime_config"),
        *("megatron_config", "megatron_core"),
    }
)
"""Keys that say nothing of what is computed: how it was trained. The tensors tell what it targets."""


class _Config(BaseModel):
    """The keys of adapter_config.json that say what is computed."""

    model_config = ConfigDict(extra="allow")

    peft_type: str
    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0, allow_inf_nan=False)
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class LoraModule:
    """What is added to one linear module of the model."""

    path: str
    """The module's name in the model: `model.layers.0.self_attn.q_proj`."""
    rank: int
    num_inputs: int
    num_outputs: int
    scale: float

    @property
    def down(self) -> str:
        """Name of A [rank, inputs] in the weights file."""
        return f"{_PREFIX}{self.path}{_DOWN}"

    @property
    def up(self) -> str:
        """Name of B [outputs, rank]."""
        return f"{_PREFIX}{self.path}{_UP}"


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter's folder, understood."""

    folder: Path
    modules: tuple[LoraModule, ...]
    is_transposed: bool
    """Whether the model stores the weights that it targets as [in, out], as GPT-2 does."""
    base: str
    """What the config calls the model that it was trained on; may be empty."""

    @property
    def parameters(self) -> int:
        """Numbers in A and B of every module."""
        return sum(each.rank * (each.num_inputs + each.num_outputs) for each in self.modules)

    @property
    def ranks(self) -> str:
        """For people: `8`, or `4 to 16`."""
        ranks = sorted({each.rank for each in self.modules})
        return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Raise `ConfigError` unless every module is one of the model whose tensors these are."""
        for module in self.modules:
            found = _weight_of(module.path, shapes)
            if found is None:
                raise _refusal(self.folder, f"the model has no module {module.path}")
            wanted = (module.num_outputs, module.num_inputs)
            if found != (wanted[::-1] if self.is_transposed else wanted):
                raise _refusal(
                    self.folder,
                    f"its {module.path} is {_times(wanted)}, the model's {_times(found)}",
                )


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_lora(folder: Path) -> Lora:
    """Understand an adapter's folder. Raises `ConfigError` with what is wrong with it, in one sentence."""
    config = _read_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise _refusal(folder, f"it has no {WEIGHTS}")
    try:
        shapes = read_shapes(path)
    except ModelCorrupt as error:
        raise _refusal(folder, str(error).rstrip(".")) from error
    modules = tuple(_module(folder, config, name, shapes) for name in _paths(folder, shapes))
    base = (config.model_extra or {}).get("base_model_name_or_path")
    return Lora(folder, modules, config.fan_in_fan_out, base if isinstance(base, str) else "")


def model_shapes(folder: Path) -> dict[str, Shape]:
    """Every tensor of a stored model, from the headers alone. Raises `ConfigError`."""
    try:
        files = [folder / name for name in weight_files(folder)]
    except PullFailed as error:
        raise ModelCorrupt(str(error)) from error
    return {name: shape for file in files for name, shape in read_shapes(file).items()}


def fingerprint_of(folder: Path) -> str:
    """Names what an adapter does: its weights and its config. Blocks; raises `OSError`."""
    digests = {name: sha256_of(folder / name) for name in (CONFIG, WEIGHTS)}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _read_config(folder: Path) -> _Config:
    try:
        config = _Config.model_validate_json((folder / CONFIG).read_bytes())
    except OSError as error:
        raise _refusal(folder, f"{CONFIG} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise _refusal(folder, f"{CONFIG} says no good {where or 'thing'}") from error
    if config.peft_type != "LORA":
        raise _refusal(folder, f"it is {config.peft_type}, and only LoRA runs here")
    if config.bias != "none":
        raise _refusal(folder, f"it changes biases (bias = {config.bias})")
    extra = config.model_extra or {}
    for key in sorted(extra.keys() - _WITHOUT_EFFECT):
        if extra[key] not in (None, False, [], {}):
            raise _refusal(folder, f"it uses {_WORDS.get(key, key)}")
    return config


_WORDS: Final = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules of its own (modules_to_save)",
    "lora_bias": "biases of its own (lora_bias)",
    "trainable_token_indices": "embeddings of its own (trainable_token_indices)",
}


def _paths(folder: Path, shapes: Mapping[str, Shape]) -> list[str]:
    """The modules that have both tensors; refuses any tensor of another kind."""
    paths: dict[str, None] = {}
    for name in shapes:
        stem = name.removeprefix(_PREFIX)
        path = stem.removesuffix(_DOWN).removesuffix(_UP)
        if stem == name or path == stem:
            raise _refusal(folder, f"it holds {name}, which is neither A nor B of a linear module")
        paths[path] = None
    for path in paths:
        for suffix in (_DOWN, _UP):
            if f"{_PREFIX}{path}{suffix}" not in shapes:
                raise _refusal(folder, f"{path} has only one of its two tensors")
        if path.rpartition(".")[2] in _HEADS:
            raise _refusal(folder, f"it targets {path}, and the head cannot have an adapter here")
    if not paths:
        raise _refusal(folder, "it holds no tensors")
    return list(paths)


def _module(folder: Path, config: _Config, path: str, shapes: Mapping[str, Shape]) -> LoraModule:
    rank = _by_pattern(config.rank_pattern, path, config.r)
    alpha = _by_pattern(config.alpha_pattern, path, config.lora_alpha)
    down, up = shapes[f"{_PREFIX}{path}{_DOWN}"], shapes[f"{_PREFIX}{path}{_UP}"]
    if len(down) != 2 or len(up) != 2 or (down[0], up[1]) != (rank, rank):
        raise _refusal(
            folder, f"{path} has A {_times(down)} and B {_times(up)}, which is not rank {rank:g}"
        )
    scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    return LoraModule(path, down[0], down[1], up[0], scale)


def _by_pattern(pattern: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """peft's rule: the first key that matches the end of the module's name."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def _weight_of(path: str, shapes: Mapping[str, Shape]) -> Shape | None:
    """Files of a bare body leave the first part of its modules' names out."""
    name = f"{path}.weight"
    return shapes.get(name) or shapes.get(name.partition(".")[2])


def _times(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _refusal(folder: Path, reason: str) -> ConfigError:
    return ConfigError(f"The adapter in {folder} cannot be used: {reason}.")

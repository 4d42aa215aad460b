"""LoRA adapters small enough to make in a test, in the files that peft writes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "inference_mode": True,
}


def write_adapter(
    folder: Path,
    model: Path,
    *,
    targets: Iterable[str] = LLAMA_TARGETS,
    seed: int = 0,
    strength: float = 0.3,
    ranks: dict[str, int] | None = None,
    dtype: torch.dtype = torch.float32,
    tensors: dict[str, torch.Tensor] | None = None,
    **config: Any,
) -> Path:
    """A random adapter for every module of the model with one of these last names; `ranks` are by name."""
    settings = CONFIG | {"target_modules": sorted(targets)} | config
    if ranks:
        settings["rank_pattern"] = ranks
    chance = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {}
    for name, weight in sorted(load_file(model / "model.safetensors").items()):
        path = name.removesuffix(".weight")
        last = path.rpartition(".")[2]
        if path == name or last not in set(targets):
            continue
        outputs, inputs = weight.shape[::-1] if settings["fan_in_fan_out"] else weight.shape
        rank = (ranks or {}).get(last, settings["r"])
        down = torch.randn(rank, inputs, generator=chance) * inputs**-0.5
        up = torch.randn(outputs, rank, generator=chance) * strength
        made[f"base_model.model.{path}.lora_A.weight"] = down.to(dtype)
        made[f"base_model.model.{path}.lora_B.weight"] = up.to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(made | (tensors or {}), folder / "adapter_model.safetensors", {"format": "pt"})
    return folder

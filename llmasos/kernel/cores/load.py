"""A model folder, opened: config.json and safetensors, checked, without importing transformers.

Tensors come as views of the mapped files, so opening costs nothing and a tensor that is never read
is never in memory. What the numbers mean is `llama`'s and `modules`' business; who put them there
is the model store's.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from llmasos.kernel.errors import ConfigError, ModelCorrupt, ModelNotFound

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""What a core may compute in, by the name that settings use."""


class Checkpoint:
    """The config and the tensors of one model folder."""

    def __init__(self, folder: Path) -> None:
        """Open without reading weights. Raises ModelNotFound, or ModelCorrupt naming the file."""
        if not folder.is_dir():
            raise ModelNotFound(f"There is no model folder {folder}; pull the model first.")
        self.folder = folder
        self.config: Mapping[str, Any] = _read_object(folder / CONFIG)
        self._files = {name: _open(folder / name) for name in _weight_files(folder)}
        self._file_of = {name: file for file in self._files.values() for name in file.keys()}  # noqa: SIM118

    @property
    def names(self) -> frozenset[str]:
        """Every tensor in the folder."""
        return frozenset(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header alone."""
        return tuple(self._file_of[name].get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as a view of the mapped file, in the file's dtype; it outlives this object."""
        try:
            tensor: torch.Tensor = self._file_of[name].get_tensor(name)
        except SafetensorError as error:
            raise ModelCorrupt(_corrupt(self.folder, f"tensor {name} ({error})")) from error
        if not tensor.is_floating_point():
            raise ModelCorrupt(_corrupt(self.folder, f"tensor {name}, of {tensor.dtype}"))
        return tensor


def _weight_files(folder: Path) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        raise ModelCorrupt(_corrupt(folder, f"{WEIGHTS}, which is missing"))
    files = _read_object(folder / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ModelCorrupt(_corrupt(folder, WEIGHTS_INDEX))
    return sorted(set(files.values()))


def _open(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelCorrupt(_corrupt(path.parent, f"{path.name} ({error})")) from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelCorrupt(_corrupt(path.parent, f"{path.name} ({error})")) from error
    if not isinstance(content, dict):
        raise ModelCorrupt(_corrupt(path.parent, f"{path.name}, which holds no object"))
    return content


def _corrupt(folder: Path, what: str) -> str:
    return f"The model in {folder} cannot be read: {what}; remove it and pull it again."


INT8 = "int8"
"""The setting for weights in int8; everything else is as with `auto`."""


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype that `auto`, `bf16`, `fp32` or `int8` stands for here.

    `auto` is bf16 where the processor multiplies it natively: elsewhere bf16 is emulated, slower
    than fp32 and no more precise. Raises ConfigError on any other word.
    """
    if wanted in DTYPES:
        return DTYPES[wanted]
    if wanted not in ("auto", INT8):
        raise ConfigError(f"There is no dtype {wanted!r}; use auto, {', '.join(DTYPES)} or {INT8}.")
    return torch.bfloat16 if _has_native_bf16(device) else torch.float32


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if platform.machine().lower() in ("aarch64", "arm64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

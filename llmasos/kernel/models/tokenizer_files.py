"""Reading a tokenizer's files as the Hugging Face ecosystem lays them out; no tokenising here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmasos.kernel.errors import ModelCorrupt

_NAMES: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a model's folder says about its tokenizer."""

    name: str
    tokenizer_json: str
    specials: dict[str, str]
    """Role (`bos_token` ...) to the token's spelling."""
    chat_template: str | None
    stop_ids: frozenset[int]
    """The tokens that the model's own settings end a generation at."""
    vocab_size: int | None
    """Logits the model gives; None where its configuration does not say."""
    add_bos: bool | None
    """Whether a text begins with `bos_token`; None leaves it to the tokenizer's post-processing."""


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Everything a `ModelTokenizer` needs; raises `ModelCorrupt` if a file is missing or broken."""
    settings = read_json(folder / "tokenizer_config.json")
    config = read_json(folder / "config.json")
    add_bos = settings.get("add_bos_token")
    return TokenizerFiles(
        name=folder.name,
        tokenizer_json=_read_text(folder / "tokenizer.json"),
        specials=_specials(read_json(folder / "special_tokens_map.json") | settings),
        chat_template=_chat_template(folder, settings),
        stop_ids=_stop_ids(read_json(folder / "generation_config.json"), config),
        vocab_size=_text_setting(config, "vocab_size"),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, empty if there is no such file; raises `ModelCorrupt`."""
    if not path.exists():
        return {}
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ModelCorrupt(f"{path.name} of {path.parent.name} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ModelCorrupt(f"{path.name} of {path.parent.name} is not a JSON object.")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = f"{path.name} of {path.parent.name} cannot be read: {error}."
        raise ModelCorrupt(reason) from error


def _specials(settings: dict[str, Any]) -> dict[str, str]:
    specials = {}
    for name in _NAMES:
        value = settings.get(name)
        spelling = value.get("content") if isinstance(value, dict) else value
        if isinstance(spelling, str) and spelling:
            specials[name] = spelling
    return specials


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """A file of its own wins over the settings' entry, as it does in transformers."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return _read_text(file)
    value = read_json(folder / "chat_template.json").get("chat_template")
    value = value or settings.get("chat_template")
    if isinstance(value, list):
        named = {entry["name"]: entry["template"] for entry in value}
        value = named.get("default") or next(iter(named.values()), None)
    return value if isinstance(value, str) and value.strip() else None


def _stop_ids(*settings: dict[str, Any]) -> frozenset[int]:
    found: set[int] = set()
    for setting in settings:
        value = _text_setting(setting, "eos_token_id")
        found.update(value if isinstance(value, list) else [value] if value is not None else [])
    return frozenset(found)


def _text_setting(config: dict[str, Any], name: str) -> Any:
    """A setting of the language model, which in a multi-modal configuration is nested."""
    nested = config.get("text_config")
    value = config.get(name)
    return nested.get(name) if value is None and isinstance(nested, dict) else value

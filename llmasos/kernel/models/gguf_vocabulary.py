"""Pre-tokenizers that a GGUF file names and transformers' reader does not know.

A vocabulary's merges were learned on text that was split in a certain way, and text must be split
the same way again. A GGUF file gives only llama.cpp's name for it (`tokenizer.ggml.pre`; the list is
in llama.cpp's llama-vocab.cpp). Where transformers does not know the name it splits as GPT-2 does,
which for SmolLM2 joins digits that the model only ever saw one by one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

_DIGITS_THEN_GPT2: Final = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
_AS_GPT2: Final = frozenset(
    {"", "default", "gpt-2", "gpt2", "olmo", "phi-2", "mpt", "jais", "jina-es", "jina-de"}
)


def set_pre_tokenizer(file: Path, name: str) -> bool:
    """Make a converted `tokenizer.json` split text the way `name` says.

    Returns whether the result is known to be right; False where GPT-2's way had to stand in.
    """
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if not _splits_as_gpt2(content.get("pre_tokenizer")):
        return True
    if name not in _DIGITS_THEN_GPT2:
        return name in _AS_GPT2
    digits = {"type": "Digits", "individual_digits": True}
    both = [digits, content["pre_tokenizer"]]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": both}
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return True


def _splits_as_gpt2(pre_tokenizer: dict[str, Any] | None) -> bool:
    if pre_tokenizer is None or pre_tokenizer["type"] != "ByteLevel":
        return False
    return bool(pre_tokenizer.get("use_regex", True))

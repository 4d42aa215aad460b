"""Tiny random models of many architectures, saved as the model store would, and their own logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

VOCAB_SIZE = 131
CONTEXT = 256

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_SLIDING = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}

FAST: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, one K/V head each": ("Llama", {"num_key_value_heads": 4}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("Llama", {"head_dim": 32}),
    "llama, llama3 rope": ("Llama", {"rope_parameters": _LLAMA3_ROPE}),
    "llama, linear rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, sliding": ("Mistral", {"sliding_window": 24}),
    "qwen2": ("Qwen2", {}),
    "qwen2, sliding": ("Qwen2", _SLIDING),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3, sliding, biased": ("Qwen3", {"head_dim": 32, "attention_bias": True} | _SLIDING),
}
"""What the fast path runs: class prefix, and what differs from the common config."""

GENERIC: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2",
        {"vocab_size": VOCAB_SIZE, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT},
    ),
    "gpt2, scaled by layer": (
        "GPT2",
        {"vocab_size": VOCAB_SIZE, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}
        | {"scale_attn_by_inverse_layer_idx": True},
    ),
    "phi": ("Phi", {"partial_rotary_factor": 0.5}),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 256, "sliding_window": 24, "query_pre_attn_scalar": 256}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gemma2, soft caps": (
        "Gemma2",
        {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16}
        | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0},
    ),
    "llama, yarn rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "granite, scaled logits": ("Granite", {"logits_scaling": 3.0, "residual_multiplier": 0.5}),
    "cohere, parallel": ("Cohere", {"logit_scale": 2.0}),
    "opt": (
        "OPT",
        {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 3}
        | {"num_attention_heads": 4, "max_position_embeddings": CONTEXT}
        | {"word_embed_proj_dim": 64},
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
}
"""What only the generic path runs."""

_WITHOUT_COMMON = ("GPT2", "OPT")


def make_model(kind: str, *, seed: int = 0, **overrides: Any) -> Any:
    """A model of a kind in `FAST` or `GENERIC`, with weights large enough to tell tokens apart."""
    prefix, own = (FAST | GENERIC)[kind]
    keywords = own if prefix in _WITHOUT_COMMON else _COMMON | own
    config = getattr(transformers, f"{prefix}Config")(**(keywords | overrides))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    return model


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def reference(model: Any) -> Callable[[Sequence[int]], torch.Tensor]:
    """Logits of a whole sequence by transformers' contiguous attention."""
    model.set_attn_implementation("eager")

    def logits(tokens: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            ids = torch.tensor([tokens])
            result: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
        return result

    return logits

"""What the fast path makes of a model's config: a spec, or the reason why it cannot run the model.

It serves a model only if it knows every key of its config and every tensor of its files, and each
key whose default differs between families is spelt out: what it guessed, it would get silently
wrong. The rest goes the generic way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llmasos.kernel.cores.load import Checkpoint
from llmasos.kernel.cores.rope import rope_obstacle
from llmasos.kernel.errors import ModelCorrupt

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM = "model.norm.weight"
LAYERS = "model.layers"

_FULL, _SLIDING = "full_attention", "sliding_attention"
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_NEEDED = frozenset(
    {
        "architectures",
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
    }
)
_NEEDED_BY = {
    "llama": frozenset[str](),
    "mistral": frozenset({"sliding_window", "num_key_value_heads"}),
    "qwen2": frozenset({"num_key_value_heads"}),
    "qwen3": frozenset({"num_key_value_heads", "head_dim"}),
}
"""Keys whose default, where they are left out, is not the one assumed here."""
_UNDERSTOOD = frozenset(
    {
        "num_key_value_heads",
        "head_dim",
        "tie_word_embeddings",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
    }
)
_UNDERSTOOD_BY = {
    "llama": frozenset({"attention_bias", "mlp_bias"}),
    "mistral": frozenset[str](),
    "qwen2": frozenset(
        {
            "use_sliding_window",
            "sliding_window",
            "max_window_layers",
            "layer_types",
        }
    ),
    "qwen3": frozenset(
        {
            "use_sliding_window",
            "sliding_window",
            "max_window_layers",
            "layer_types",
            "attention_bias",
        }
    ),
}
_WITHOUT_EFFECT = frozenset(
    {
        "_name_or_path",
        "_model_name_or_path",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    }
)
"""Keys that say nothing of how logits are computed from tokens."""
_ONE_VALUE: Mapping[str, Any] = {
    "add_cross_attention": False,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "rope_interleaved": False,
}
"""Keys that may stand there as long as they say what is assumed anyway."""
_STALE_BUFFER = ".rotary_emb.inv_freq"
"""Old files hold these; they are computed from the config."""


@dataclass(frozen=True, slots=True)
class LlamaSpec:
    """A config, resolved."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    windows: tuple[int | None, ...]
    """A layer's sliding window, or None for all of the past. One a layer."""
    bias: frozenset[str]
    """Projections that have one."""
    has_head: bool
    """Whether the head has weights of its own instead of the embedding's."""

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> LlamaSpec:
        """From a checkpoint that has no `obstacle` in its config."""
        config = checkpoint.config
        num_heads = config["num_attention_heads"]
        return cls(
            model_type=config["model_type"],
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
            norm_eps=config["rms_norm_eps"],
            context_length=config["max_position_embeddings"],
            windows=_windows(config),
            bias=_biased(config),
            has_head=HEAD in checkpoint.names and not config.get("tie_word_embeddings"),
        )

    @property
    def has_odd_width(self) -> bool:
        """Whether some product's input does not come in pairs."""
        return any(width % 2 for width in (self.hidden_size, self.intermediate_size, self.head_dim))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the model has, and its shape."""
        hidden = self.hidden_size
        shapes = {EMBEDDING: (self.vocab_size, hidden), NORM: (hidden,)}
        if self.has_head:
            shapes[HEAD] = (self.vocab_size, hidden)
        for index in range(len(self.windows)):
            for name, shape in self._layer_shapes().items():
                shapes[f"{LAYERS}.{index}.{name}"] = shape
        return shapes

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner, dim = self.hidden_size, self.intermediate_size, self.head_dim
        q, kv = self.num_heads * dim, self.num_kv_heads * dim
        products = {
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes: dict[str, tuple[int, ...]] = {f"{n}.weight": s for n, s in products.items()}
        shapes |= {f"{name}.bias": products[name][:1] for name in self.bias}
        shapes |= {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        if self.model_type == "qwen3":
            shapes |= {"self_attn.q_norm.weight": (dim,), "self_attn.k_norm.weight": (dim,)}
        return shapes


def adaptable_modules(spec: LlamaSpec) -> dict[str, tuple[int, int]]:
    """[outputs, inputs] of every product of every layer, by its module's name."""
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in spec.tensor_shapes().items()
        if name.startswith(f"{LAYERS}.") and len(shape) == 2
    }


def _biased(config: Mapping[str, Any]) -> frozenset[str]:
    attention = {f"self_attn.{name}_proj" for name in "qkvo"}
    mlp = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    if config["model_type"] == "qwen2":
        return frozenset(attention - {"self_attn.o_proj"})
    biased = attention if config.get("attention_bias") else set()
    return frozenset(biased | mlp if config.get("mlp_bias") else biased)


def _windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    num_layers: int = config["num_hidden_layers"]
    window: int | None = config.get("sliding_window")
    if config["model_type"] == "mistral":
        return (window,) * num_layers
    if not config.get("use_sliding_window"):
        return (None,) * num_layers
    return tuple(window if kind == _SLIDING else None for kind in _layer_types(config))


def _layer_types(config: Mapping[str, Any]) -> list[str]:
    first = config.get("max_window_layers", 0)
    num_layers = config["num_hidden_layers"]
    given: list[str] | None = config.get("layer_types")
    return given or [_SLIDING if index >= first else _FULL for index in range(num_layers)]


def obstacle_to(checkpoint: Checkpoint) -> str | None:
    """Why the fast path cannot run a model, as a clause, or None if it can.

    Raises ModelCorrupt where it could, but tensors are missing or have the wrong shape.
    """
    if found := _config_obstacle(checkpoint.config):
        return found
    shapes = LlamaSpec.read(checkpoint).tensor_shapes()
    _check_shapes(checkpoint, shapes)
    unknown = {n for n in checkpoint.names - shapes.keys() if not n.endswith(_STALE_BUFFER)}
    if HEAD in unknown and torch.equal(*map(checkpoint.tensor, (HEAD, EMBEDDING))):
        unknown.discard(HEAD)
    return f"its files hold {min(unknown)}, which it does not know" if unknown else None


def _config_obstacle(config: Mapping[str, Any]) -> str | None:
    kind = config.get("model_type")
    if kind not in _ARCHITECTURES or config.get("architectures") != [_ARCHITECTURES[kind]]:
        return f"{config.get('architectures') or kind} is not in the Llama family"
    if missing := (_NEEDED | _NEEDED_BY[kind]) - config.keys():
        return f"its config does not say {min(missing)}"
    known = _NEEDED | _NEEDED_BY[kind] | _UNDERSTOOD | _UNDERSTOOD_BY[kind] | _WITHOUT_EFFECT
    for key in sorted(config.keys() - known):
        if key not in _ONE_VALUE or config[key] not in (_ONE_VALUE[key], None):
            return f"its config says {key} = {config[key]!r}"
    if config["hidden_act"] not in ("silu", "swish"):
        return f"its activation is {config['hidden_act']}"
    return _size_obstacle(config) or _window_obstacle(config) or rope_obstacle(config)


def _size_obstacle(config: Mapping[str, Any]) -> str | None:
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    if heads % (kv_heads or heads):
        return f"its {heads} heads do not divide into {kv_heads} groups"
    if not config.get("head_dim") and config["hidden_size"] % heads:
        return f"its width {config['hidden_size']} does not divide into {heads} heads"
    return None


def _window_obstacle(config: Mapping[str, Any]) -> str | None:
    if config["model_type"] not in ("qwen2", "qwen3"):
        return None
    needed = {"sliding_window", "max_window_layers"}
    if config.get("use_sliding_window") and not needed <= config.keys():
        return "its config does not say which layers have a sliding window"
    kinds = config.get("layer_types") or [_FULL] * config["num_hidden_layers"]
    if set(kinds) - {_FULL, _SLIDING} or len(kinds) != config["num_hidden_layers"]:
        return f"its layers are {kinds}"
    if _SLIDING in kinds and not (config.get("use_sliding_window") and config["sliding_window"]):
        return "its sliding layers have no window"
    return None


def _check_shapes(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    missing = shapes.keys() - checkpoint.names
    wrong = {name for name in shapes.keys() - missing if checkpoint.shape(name) != shapes[name]}
    if missing or wrong:
        raise ModelCorrupt(
            f"The model in {checkpoint.folder} has tensors missing or of the wrong shape "
            f"({', '.join(sorted(missing | wrong)[:3])}); remove it and pull it again."
        )

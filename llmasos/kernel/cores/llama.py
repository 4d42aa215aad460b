"""The fast path: the Llama family as plain functions over packed weights.

Llama (SmolLM among them), Mistral, Qwen2 and Qwen3, with default, linear and llama3 rotary
embeddings; `llama_config` says what exactly. It reads config.json and safetensors itself:
transformers costs seconds to import and 5 ms a step in modules. Parity with transformers is a test.

Memory: each weight once, packed. The embedding table stays in the mapped file and costs only the
rows looked up; a tied head is packed from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from llmasos.kernel.cores import linear
from llmasos.kernel.cores.adapters import AdapterRows, AdapterWeights
from llmasos.kernel.cores.decoder import DecoderShape
from llmasos.kernel.cores.linear import Linear, rows_of
from llmasos.kernel.cores.llama_config import (
    EMBEDDING,
    HEAD,
    LAYERS,
    NORM,
    LlamaSpec,
    adaptable_modules,
)
from llmasos.kernel.cores.load import Checkpoint
from llmasos.kernel.cores.low_rank import (
    LowRankProduct,
    LowRankStep,
    TorchAdapter,
    silu_by_rows,
)
from llmasos.kernel.cores.paged_kv import AttentionPlan, PagedKV
from llmasos.kernel.cores.rope import RopeTable, inverse_frequencies, rotate


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm: torch.Tensor
    qkv: Linear
    qk_norm: torch.Tensor | None
    """[num_heads + num_kv_heads, head_dim], where queries and keys are normalised (Qwen3)."""
    output: Linear
    mlp_norm: torch.Tensor
    gate: Linear
    up: Linear
    down: Linear
    window: int | None


class LlamaDecoder:
    """A model of the Llama family; implements `decoder.Decoder`."""

    min_rows = 2

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> None:
        """Read and pack the weights; blocks. The checkpoint has no `obstacle`."""
        self._spec = spec = LlamaSpec.read(checkpoint)
        self.path = f"fast {spec.model_type}"
        self.dtype = dtype
        self.device = device
        self.shape = decoder_shape(spec)
        self._scale = spec.head_dim**-0.5
        frequencies = inverse_frequencies(checkpoint.config, spec.head_dim)
        self.frequencies = frequencies
        self._rope = RopeTable(frequencies, dtype=dtype, device=device)
        weights = Weights(checkpoint, dtype, device)
        self._embedding = (
            embedding_table(checkpoint) if device.type == "cpu" else weights[EMBEDDING]
        )
        self._layers = tuple(
            _read_layer(spec, weights, index, window) for index, window in enumerate(spec.windows)
        )
        self._norm = weights[NORM]
        self._head = linear.pack(weights[HEAD if spec.has_head else EMBEDDING])

    @property
    def adaptable(self) -> Mapping[str, tuple[int, int]]:
        """See `AdaptingDecoder`."""
        return adaptable_modules(self._spec)

    def pack_adapter(self, weights: AdapterWeights) -> TorchAdapter:
        """See `AdaptingDecoder`."""
        return TorchAdapter(weights, dtype=self.dtype, device=self.device)

    def hidden(
        self, plan: AttentionPlan, kv: PagedKV, adapters: AdapterRows | None = None
    ) -> torch.Tensor:
        """[N, hidden], before the last norm."""
        hidden = F.embedding(plan.tokens, self._embedding).to(self.dtype)
        angles = self._rope.at(plan.positions)
        step = LowRankStep(adapters, self.device)
        for index, layer in enumerate(self._layers):
            hidden = self._attention(index, layer, hidden, angles, plan, kv, step)
            hidden = self._mlp(index, layer, hidden, step)
        return hidden

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, vocab_size] logits, float32."""
        return self._head.in_fp32(self._normalised(hidden, self._norm))

    def _attention(
        self,
        index: int,
        layer: _Layer,
        hidden: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        plan: AttentionPlan,
        kv: PagedKV,
        step: LowRankStep,
    ) -> torch.Tensor:
        spec, names = self._spec, f"{LAYERS}.{index}.self_attn"
        normalised = self._normalised(hidden, layer.input_norm)
        heads = layer.qkv(normalised)
        widths = [spec.num_heads * spec.head_dim, *[spec.num_kv_heads * spec.head_dim] * 2]
        for name, part in zip("qkv", torch.split(heads, widths, dim=1), strict=True):
            step.add(f"{names}.{name}_proj", normalised, part)
        heads = heads.view(len(heads), -1, spec.head_dim)
        qk, v = torch.split(heads, [spec.num_heads + spec.num_kv_heads, spec.num_kv_heads], dim=1)
        if layer.qk_norm is not None:
            qk = F.rms_norm(qk, (spec.head_dim,), None, spec.norm_eps) * layer.qk_norm
        q, k = torch.split(rotate(qk, *angles), [spec.num_heads, spec.num_kv_heads], dim=1)
        attended = kv.attend(index, q, k, v, plan, scale=self._scale, sliding_window=layer.window)
        outcome = layer.output.plus(attended.flatten(1), hidden)
        step.add(f"{names}.o_proj", attended.flatten(1), outcome)
        return outcome

    def _mlp(
        self, index: int, layer: _Layer, hidden: torch.Tensor, step: LowRankStep
    ) -> torch.Tensor:
        names = f"{LAYERS}.{index}.mlp"
        normalised = self._normalised(hidden, layer.mlp_norm)
        inner = layer.up.times(normalised, layer.gate.silu(normalised))
        for modules, rows in step.changes:
            inner.index_copy_(0, rows, _gated(layer, names, modules, normalised[rows]))
        outcome = layer.down.plus(inner, hidden)
        step.add(f"{names}.down_proj", inner, outcome)
        return outcome

    def _normalised(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden, weight.shape, weight, self._spec.norm_eps)


def _gated(
    layer: _Layer, names: str, modules: Mapping[str, LowRankProduct], x: torch.Tensor
) -> torch.Tensor:
    """silu(gate) * up of rows that an adapter changes, apart: the fused product has no place for it."""
    gate, up = rows_of(layer.gate, x), rows_of(layer.up, x)
    if (change := modules.get(f"{names}.gate_proj")) is not None:
        gate = gate + change(x)
    if (change := modules.get(f"{names}.up_proj")) is not None:
        up = up + change(x)
    return silu_by_rows(gate) * up


def embedding_table(checkpoint: Checkpoint) -> torch.Tensor:
    """The embedding as it is in the file: to convert it would be to read all of it.

    A mapping of its own, because a mapping stays as long as one tensor does, and with it every page
    that was read: all the weights, if it were the one that they are packed from.
    """
    return Checkpoint(checkpoint.folder).tensor(EMBEDDING)


def decoder_shape(spec: LlamaSpec) -> DecoderShape:
    """What a core must know of a spec."""
    num_layers = len(spec.windows)
    return DecoderShape(
        num_kv_heads=(spec.num_kv_heads,) * num_layers,
        head_dim=(spec.head_dim,) * num_layers,
        vocab_size=spec.vocab_size,
        context_length=spec.context_length,
    )


@dataclass(frozen=True, slots=True)
class Weights:
    """A checkpoint's tensors in the dtype and on the device they are wanted."""

    checkpoint: Checkpoint
    dtype: torch.dtype
    device: torch.device

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.checkpoint.tensor(name).to(self.device, self.dtype)


def _read_layer(spec: LlamaSpec, weights: Weights, index: int, window: int | None) -> _Layer:
    prefix = f"{LAYERS}.{index}"

    def packed(*projections: str) -> Linear:
        names = [f"{prefix}.{name}" for name in projections]
        weight = torch.cat([weights[f"{name}.weight"] for name in names])
        if projections[0] not in spec.bias:
            return linear.pack(weight)
        return linear.pack(weight, torch.cat([weights[f"{name}.bias"] for name in names]))

    return _Layer(
        # Small tensors are copied: a view would keep a page of the file mapped, and be slower.
        input_norm=weights[f"{prefix}.input_layernorm.weight"].clone(),
        qkv=packed("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        qk_norm=_qk_norm(spec, weights, prefix) if spec.model_type == "qwen3" else None,
        output=packed("self_attn.o_proj"),
        mlp_norm=weights[f"{prefix}.post_attention_layernorm.weight"].clone(),
        gate=packed("mlp.gate_proj"),
        up=packed("mlp.up_proj"),
        down=packed("mlp.down_proj"),
        window=window,
    )


def _qk_norm(spec: LlamaSpec, weights: Weights, prefix: str) -> torch.Tensor:
    """One norm weight for queries and keys, head by head, so that one product serves both."""
    q = weights[f"{prefix}.self_attn.q_norm.weight"].expand(spec.num_heads, -1)
    k = weights[f"{prefix}.self_attn.k_norm.weight"].expand(spec.num_kv_heads, -1)
    return torch.cat((q, k))

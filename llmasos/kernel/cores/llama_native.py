"""The fast path's fast half: a Llama whose layers are one call of the C extension a step.

The same models as `llama`, whose functional form serves where the extension, or its products for
the processor at hand, are missing. Between layers activations are float32; a row's bits depend on
nothing but the row, a single one too.

Memory: each weight once, packed; the embedding table stays in the mapped file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from llmasos.kernel.cores.adapters import AdapterRows, AdapterWeights
from llmasos.kernel.cores.llama import Weights, decoder_shape, embedding_table
from llmasos.kernel.cores.llama_config import (
    EMBEDDING,
    HEAD,
    LAYERS,
    NORM,
    LlamaSpec,
    adaptable_modules,
)
from llmasos.kernel.cores.load import Checkpoint
from llmasos.kernel.cores.native.lora import MODULES, NativeAdapter
from llmasos.kernel.cores.native.products import (
    NativeLayer,
    NativeModel,
    NativeWeights,
    WeightMemory,
)
from llmasos.kernel.cores.paged_kv import AttentionPlan, PagedKV
from llmasos.kernel.cores.rope import RopeTable, inverse_frequencies

GROUP, HEAD_GROUP = 128, 32
"""Weights of a row that share a scale as int8. The head's have the last word, and need the finer one."""


class NativeLlamaDecoder:
    """A model of the Llama family in C; implements `decoder.Decoder`."""

    min_rows = 1

    def __init__(
        self, checkpoint: Checkpoint, *, dtype: torch.dtype, instruction_set: str, int8: bool
    ) -> None:
        """Read and pack the weights; blocks. The checkpoint has no `obstacle`; `int8` rounds every
        product's weights, of the head too."""
        self._spec = spec = LlamaSpec.read(checkpoint)
        self.path = f"fast {spec.model_type} in C" + (", int8 weights" if int8 else "")
        self.dtype = dtype
        self.device = torch.device("cpu")
        self.shape = decoder_shape(spec)
        reader = _Reader(checkpoint, spec, dtype, instruction_set, int8)
        self.frequencies = inverse_frequencies(checkpoint.config, spec.head_dim)
        self._rope = RopeTable(self.frequencies, dtype=torch.float32, device=self.device)
        self._embedding = embedding_table(checkpoint)
        self._model = NativeModel(
            [reader.layer(index, window) for index, window in enumerate(spec.windows)],
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            eps=spec.norm_eps,
            scale=spec.head_dim**-0.5,
        )
        self._norm = reader.floats(NORM)
        self._head = reader.packed(HEAD if spec.has_head else EMBEDDING, group=HEAD_GROUP)

    @property
    def adaptable(self) -> Mapping[str, tuple[int, int]]:
        """See `AdaptingDecoder`."""
        return adaptable_modules(self._spec)

    def pack_adapter(self, weights: AdapterWeights) -> NativeAdapter:
        """See `AdaptingDecoder`."""
        prefixes = [f"{LAYERS}.{index}" for index in range(len(self._spec.windows))]
        shapes = {name: self.adaptable[f"{prefixes[0]}.{name}"] for name in MODULES}
        return NativeAdapter(weights, prefixes=prefixes, shapes=shapes, dtype=self.dtype)

    def hidden(
        self, plan: AttentionPlan, kv: PagedKV, adapters: AdapterRows | None = None
    ) -> torch.Tensor:
        """float32 [N, hidden], before the last norm."""
        kv.check_plan(plan)
        hidden = F.embedding(plan.tokens, self._embedding).to(self.dtype).float().contiguous()
        angles = self._rope.rows(plan.positions)
        self._model.decode(kv.native_pool, hidden, angles, plan, adapters)
        return hidden

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [R, vocab_size] logits."""
        return self._head.product(hidden, norm=self._norm, eps=self._spec.norm_eps)


class _Reader:
    """Tensors of a checkpoint, packed."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: LlamaSpec,
        dtype: torch.dtype,
        instruction_set: str,
        int8: bool,
    ) -> None:
        # Rounded to int8 from what the files hold, not from what bf16 leaves of it.
        self._weights = Weights(checkpoint, torch.float32 if int8 else dtype, torch.device("cpu"))
        self._dtype = dtype
        self._spec = spec
        self._instruction_set = instruction_set
        self._int8 = int8
        self._memory = WeightMemory()

    def floats(self, name: str) -> torch.Tensor:
        """A small tensor in float32, as the model's dtype has it."""
        return self._weights[name].float().clone()

    def packed(
        self, *names: str, biases: bool = False, gated: bool = False, group: int = GROUP
    ) -> NativeWeights:
        """Matrices one below another. Names have no suffix where there are biases. `group` is for int8."""
        weight = torch.cat([self._weights[name] for name in names])
        bias = None
        if biases:
            stems = [name.removesuffix(".weight") for name in names]
            bias = torch.cat([self._weights[f"{stem}.bias"] for stem in stems])
        return NativeWeights(
            self._instruction_set,
            weight,
            bias,
            memory=self._memory,
            dtype=self._dtype,
            int8_group=group if self._int8 else 0,
            gated=gated,
        )

    def layer(self, index: int, window: int | None) -> NativeLayer:
        """One layer."""
        prefix = f"{LAYERS}.{index}"

        def packed(*projections: str, gated: bool = False) -> NativeWeights:
            names = [f"{prefix}.{name}.weight" for name in projections]
            return self.packed(*names, biases=projections[0] in self._spec.bias, gated=gated)

        return NativeLayer(
            input_norm=self.floats(f"{prefix}.input_layernorm.weight"),
            qkv=packed("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            qk_norms=self._qk_norms(prefix),
            output=packed("self_attn.o_proj"),
            mlp_norm=self.floats(f"{prefix}.post_attention_layernorm.weight"),
            gate_up=packed("mlp.gate_proj", "mlp.up_proj", gated=True),
            down=packed("mlp.down_proj"),
            window=window,
        )

    def _qk_norms(self, prefix: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        if self._spec.model_type != "qwen3":
            return None
        names = (f"{prefix}.self_attn.{name}_norm.weight" for name in "qk")
        q_norm, k_norm = map(self.floats, names)
        return q_norm, k_norm

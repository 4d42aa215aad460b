"""The generic path: any decoder that transformers knows, its own modules over our pages.

The attention of a transformers model is an interface that one can register with. Ours takes the flat
batch as one sequence, `[1, N]` tokens with explicit positions, and finds the pages by the module's
`layer_idx`; every linear layer is packed. Nothing else of the model is touched.

That a model really attends through us, and means by it what we do, is not taken on trust: `modules_probe`
asks it what it calls, and a few tokens in chunks over pages must give what the model's own code gives.
A model that fails is refused. Not covered: sliding windows longer than the probe's tokens are compared
by their declared length, not by result.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from llmasos.kernel.cores import linear
from llmasos.kernel.cores.adapters import AdapterRows, AdapterWeights
from llmasos.kernel.cores.decoder import DecoderShape
from llmasos.kernel.cores.load import Checkpoint
from llmasos.kernel.cores.low_rank import LowRankStep, TorchAdapter
from llmasos.kernel.cores.modules_probe import (
    Probe,
    check_against_own,
    own_logits,
    probe,
    probe_tokens,
)
from llmasos.kernel.cores.paged_kv import AttentionPlan, PagedKV
from llmasos.kernel.errors import ConfigError, KernelBug, ModelCorrupt

PAGED = "llmasos"
"""Our attention's name with transformers. No mask is registered with it, so none is made."""

_LIBRARY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What foreign model code raises when it is fed what it does not expect."""


@dataclass(slots=True)
class _Step:
    """One forward pass, as the attention needs to know it."""

    plan: AttentionPlan
    kv: PagedKV
    layers: list[int] = field(default_factory=list)
    """Layers that attended so far."""
    low_rank: LowRankStep | None = None
    """What its adapters do."""


_STEP: ContextVar[_Step] = ContextVar("llmasos paged step")


def paged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_without_effect: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: q, k, v are [1, heads, N, head_dim]; gives [1, N, heads, head_dim].

    Other keywords are known to be without effect: `modules_probe` saw to it.
    """
    step = _STEP.get()
    layer: int = module.layer_idx  # type: ignore[assignment]
    step.layers.append(layer)
    q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    attended = step.kv.attend(
        layer, q, k, v, step.plan, scale=scale, sliding_window=sliding_window, softcap=softcap
    )
    return attended.unsqueeze(0), None


class ModulesDecoder:
    """A transformers model; implements `decoder.Decoder`."""

    min_rows = 2

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> None:
        """Load, probe and pack; blocks. Raises ConfigError on a model that cannot run over pages."""
        _refuse_by_config(checkpoint)
        with _quiet():
            model = _load(checkpoint, dtype, device)
        self.path = f"generic {type(model).__name__}"
        self.dtype = dtype
        self.device = device
        try:
            self._prepare(model)
        except _LIBRARY_ERRORS as error:
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(
                _refusal(self.path, f"its code failed over pages ({reason})")
            ) from error

    def _prepare(self, model: Any) -> None:
        tokens = probe_tokens(model.config.vocab_size, _longest_position(model.config))
        own = own_logits(model, tokens)
        found = probe(model, tokens, _longest_position(model.config))
        context_length = _context_length(model.config)
        self.shape = DecoderShape(
            num_kv_heads=found.num_kv_heads,
            head_dim=found.head_dim,
            vocab_size=own.shape[-1],
            context_length=context_length,
        )
        AttentionInterface.register(PAGED, paged_attention)
        model.set_attn_implementation(PAGED)
        self._body = _pack(found.body, found.body_name)
        self._head = _pack(_HeadAlone(model, found), "")
        check_against_own(self, tokens, own)

    @property
    def adaptable(self) -> Mapping[str, tuple[int, int]]:
        """See `AdaptingDecoder`: the linear modules that are given every row of a batch, in order."""
        linears = (each for each in self._body.modules() if isinstance(each, _PackedModule))
        return {
            each.path: (each.out_features, each.in_features) for each in linears if each.sees_rows
        }

    def pack_adapter(self, weights: AdapterWeights) -> TorchAdapter:
        """See `AdaptingDecoder`."""
        return TorchAdapter(weights, dtype=self.dtype, device=self.device)

    def hidden(
        self, plan: AttentionPlan, kv: PagedKV, adapters: AdapterRows | None = None
    ) -> torch.Tensor:
        """[N, hidden]: what the model's body gives its head."""
        step = _Step(plan, kv, low_rank=LowRankStep(adapters, self.device))
        token = _STEP.set(step)
        try:
            output = self._body(
                input_ids=plan.tokens.unsqueeze(0),
                position_ids=plan.positions.unsqueeze(0),
                use_cache=False,
            )
        finally:
            _STEP.reset(token)
        if sorted(step.layers) != list(range(self.shape.num_layers)):
            raise KernelBug(f"{self.path} attended in layers {step.layers}")
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, vocab_size] logits, whatever the model does to them (soft caps, scales)."""
        logits: torch.Tensor = self._head(hidden)
        return logits


def _refuse_by_config(checkpoint: Checkpoint) -> None:
    """What can be told without loading, for a better sentence than a failed probe's."""
    config = checkpoint.config
    architecture = (config.get("architectures") or ["a model without architecture"])[0]
    reasons = {
        "it has an encoder": config.get("is_encoder_decoder"),
        "it takes more than text": any(
            config.get(key) for key in ("vision_config", "audio_config", "text_config")
        ),
        "it is quantised": config.get("quantization_config"),
        "it brings code of its own": config.get("auto_map"),
        "it is no causal language model": not architecture.endswith(("ForCausalLM", "LMHeadModel")),
    }
    problems = [reason for reason, applies in reasons.items() if applies]
    if problems:
        raise ConfigError(_refusal(architecture, " and ".join(problems)))


def _refusal(architecture: str, reason: str) -> str:
    return f"{architecture} cannot run here: {reason}; choose a decoder-only text model."


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice on the kernel's terminal."""
    logging: Any = transformers_logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Any:
    try:
        loader: Any = AutoModelForCausalLM
        model, report = loader.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except _LIBRARY_ERRORS as error:
        architecture = str(checkpoint.config.get("architectures"))
        raise ConfigError(_refusal(architecture, f"transformers says: {error}")) from error
    # transformers fills a gap with random numbers and a warning.
    gaps = [str(name) for kind in ("missing_keys", "mismatched_keys") for name in report[kind]]
    if gaps:
        raise ModelCorrupt(
            f"The model in {checkpoint.folder} has tensors missing or of the wrong shape "
            f"({', '.join(sorted(gaps)[:3])}); remove it and pull it again."
        )
    return model.to(device).eval().requires_grad_(False)


def _longest_position(config: Any) -> int:
    """What the config says, or more than anybody asks for."""
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) else sys.maxsize


def _context_length(config: Any) -> int:
    """Positions that the model can tell apart, and whose embedding does not depend on the others."""
    length = _longest_position(config)
    if not 2 <= length < sys.maxsize:
        raise ConfigError(
            _refusal(str(config.model_type), "its config does not say how long its context is")
        )
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        # Past this length all of a batch's positions change when one of them does.
        if parameters.get("rope_type") == "longrope":
            length = min(length, parameters["original_max_position_embeddings"])
    return length


class _HeadAlone(nn.Module):
    """A causal model whose body is replaced by a stand-in that gives the hidden states it is told.

    So a head runs by itself, with all that its own class does around it, on chosen rows.
    """

    def __init__(self, model: Any, found: Probe) -> None:
        super().__init__()
        self.body = _GivenHidden(found.output_type)
        model.set_submodule(found.body_name, self.body)
        self.causal_lm = model

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, vocab_size] logits of [R, hidden] states."""
        self.body.hidden = hidden.unsqueeze(0)
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        logits: torch.Tensor = self.causal_lm(input_ids=ids, use_cache=False).logits[0]
        self.body.hidden = None
        return logits


class _GivenHidden(nn.Module):
    def __init__(self, output_type: type[Any]) -> None:
        super().__init__()
        self.output_type = output_type
        self.hidden: torch.Tensor | None = None

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """The body's output record around the given states."""
        return self.output_type(last_hidden_state=self.hidden)


_Module = TypeVar("_Module", bound=nn.Module)


def _pack(model: _Module, path: str) -> _Module:
    """Pack every linear layer in place, letting go of its weight as soon as it is packed. `path` is the
    name of `model`, empty for what adapters have no part in."""
    for above, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            known_as = ".".join(filter(None, (path, above, name))) if path else ""
            if type(child) is nn.Linear:
                setattr(module, name, _PackedModule(child.weight, child.bias, known_as))
            elif type(child) is Conv1D:
                setattr(module, name, _PackedModule(child.weight.t(), child.bias, known_as))
    return model


class _PackedModule(nn.Module):
    """A `Linear` in a module's place."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, path: str) -> None:
        super().__init__()
        self.path = path
        self.sees_rows = False
        """Whether what it was given were the rows of a batch, all the times that it was asked."""
        self._was_asked = False
        self.out_features, self.in_features = weight.shape
        self._product = linear.pack_product(weight, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`; a single row runs as two (`linear` says why)."""
        rows = x.reshape(-1, self.in_features)
        product = linear.rows_of(self._product, rows)
        if (step := _STEP.get(None)) is not None and self.path:
            self._adapt(step, rows, product)
        return product.view(*x.shape[:-1], self.out_features)

    def _adapt(self, step: _Step, rows: torch.Tensor, product: torch.Tensor) -> None:
        are_rows = len(rows) == step.plan.num_tokens
        self.sees_rows = are_rows and (self.sees_rows or not self._was_asked)
        self._was_asked = True
        if step.low_rank is not None and are_rows:
            step.low_rank.add(self.path, rows, product)

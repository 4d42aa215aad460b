"""Asking a transformers model what it wants of attention, before trusting it with ours.

Three questions, over a few tokens: what its own code gives (`own_logits`); what it calls the
attention with, in which layers, under which mask (`probe`); and whether it gives the same over
pages, in chunks, beside another sequence (`check_against_own`). Anything that our attention does
not do is a refusal with its name in it: a wrong answer would look like a bad model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from llmasos.kernel.core import PageId, SequenceSlice
from llmasos.kernel.cores.decoder import Decoder, paged_kv_for
from llmasos.kernel.cores.paged_kv import AttentionPlan
from llmasos.kernel.errors import ConfigError

PROBE = "llmasos_probe"

_NUM_TOKENS = 24
_PAGE_SIZE = 16
_LONGEST_MASK = 2**17
"""Positions at which a mask is asked what it shows; a longer window counts as none."""

_WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "dropout",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "position_ids",
        "return_dict",
        "scaling",
        "sliding_window",
        "softcap",
        "use_cache",
    }
)
"""Keywords that the paged attention heeds, or that it may ignore."""

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Relative error of the median position. Rounding stays far below, another meaning far above."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a model turned out to be."""

    num_kv_heads: tuple[int, ...]
    head_dim: tuple[int, ...]
    body: nn.Module
    """The decoder under the causal model's head, which `body_name` names in it."""
    body_name: str
    output_type: type[Any]
    """Of the record that the body returns."""


@dataclass(slots=True)
class _Call:
    layer: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None
    mask_window: int | None
    causal: bool
    unknown: tuple[str, ...]


@dataclass(slots=True)
class _Notes:
    context_length: int
    calls: list[_Call] = field(default_factory=list)
    masks_causal: bool = True


_NOTES: ContextVar[_Notes] = ContextVar("llmasos probe notes")


def probe_tokens(vocab_size: int, context_length: int) -> list[int]:
    """A few tokens to ask with."""
    return [(7919 * index + 13) % vocab_size for index in range(min(_NUM_TOKENS, context_length))]


def own_logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """[tokens, vocab] by the model's own attention, all at once."""
    model.set_attn_implementation("eager")
    logits: torch.Tensor = _run(model, tokens).logits[0]
    return logits


def probe(model: Any, tokens: Sequence[int], context_length: int) -> Probe:
    """Run the model over an attention that only takes notes. Raises ConfigError on a refusal."""
    AttentionInterface.register(PROBE, _note_attention)
    AttentionMaskInterface.register(PROBE, _note_mask)
    model.set_attn_implementation(PROBE)
    body = model.get_decoder()
    names = [name for name, module in model.named_modules() if module is body and name]
    if not names:
        raise _refusal(model, "its head cannot be told from its body")
    outputs: list[Any] = []
    hook = body.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    token = _NOTES.set(notes := _Notes(context_length))
    try:
        _run(model, tokens)
    finally:
        _NOTES.reset(token)
        hook.remove()
    if problem := _problem(notes, model.config.num_hidden_layers):
        raise _refusal(model, problem)
    calls = sorted(notes.calls, key=lambda call: call.layer)
    return Probe(
        num_kv_heads=tuple(call.num_kv_heads for call in calls),
        head_dim=tuple(call.key_dim for call in calls),
        body=body,
        body_name=names[0],
        output_type=type(outputs[0]),
    )


def _run(model: Any, tokens: Sequence[int]) -> Any:
    ids = torch.tensor([tokens], device=model.device)
    positions = torch.arange(len(tokens), device=model.device).unsqueeze(0)
    return model(input_ids=ids, position_ids=positions, use_cache=False)


def _refusal(model: Any, reason: str) -> ConfigError:
    return ConfigError(
        f"{type(model).__name__} cannot run here: {reason}; choose another decoder-only text model."
    )


def _note_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    notes = _NOTES.get()
    causal = getattr(module, "is_causal", True) and keywords.get("is_causal") is not False
    wanted = {name for name, value in keywords.items() if value is not None and value is not False}
    notes.calls.append(
        _Call(
            layer=getattr(module, "layer_idx", -1),
            num_kv_heads=key.shape[1],
            key_dim=key.shape[-1],
            value_dim=value.shape[-1],
            window=_shorter(keywords.get("sliding_window"), notes.context_length),
            # The mask was filled with its own window.
            mask_window=None if attention_mask is None else int(attention_mask.max()) or None,
            causal=bool(causal),
            unknown=tuple(sorted(wanted - _WITHOUT_EFFECT)),
        )
    )
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None


def _shorter(window: int | None, context_length: int) -> int | None:
    return window if window is not None and window < min(context_length, _LONGEST_MASK) else None


def _note_mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., torch.Tensor],
    device: torch.device | str = "cpu",
    **_without_effect: Any,
) -> torch.Tensor:
    """A mask made of the number that says what the mask would be: its window, or 0 for none."""
    notes = _NOTES.get()
    length = min(notes.context_length, _LONGEST_MASK)
    window = int(_visible(mask_function, length - 1, length, device).sum())
    for query in (0, 1, length // 3, length // 2, length - 1):
        keys = torch.arange(length, device=device)
        expected = (keys <= query) & (keys > query - window)
        notes.masks_causal &= torch.equal(_visible(mask_function, query, length, device), expected)
    shown = float(window) if window < length else 0.0
    return torch.full((1, 1, q_length, kv_length), shown, dtype=torch.float64, device=device)


def _visible(
    mask_function: Callable[..., torch.Tensor], query: int, length: int, device: torch.device | str
) -> torch.Tensor:
    zero = torch.tensor(0, device=device)
    keys = torch.arange(length, device=device)
    return torch.as_tensor(
        mask_function(zero, zero, torch.tensor(query, device=device), keys)
    ).expand(length)


def _problem(notes: _Notes, num_layers: int) -> str | None:
    calls = notes.calls
    if not calls:
        return "it does not attend through transformers' attention interface"
    if sorted(call.layer for call in calls) != list(range(num_layers)):
        return f"only {len(calls)} of its {num_layers} layers attend, or some more than once"
    if not notes.masks_causal or not all(call.causal for call in calls):
        return "its attention is not causal, or not over a plain window"
    if any(call.key_dim != call.value_dim for call in calls):
        return "its keys and values differ in size"
    if any(call.window != call.mask_window for call in calls):
        return "its attention does not say which window it has"
    if unknown := sorted({name for call in calls for name in call.unknown}):
        return f"its attention wants {', '.join(unknown)}"
    return None


def check_against_own(decoder: Decoder, tokens: Sequence[int], own: torch.Tensor) -> None:
    """Compare the packed, paged decoder with `own_logits`. Raises ConfigError where they differ."""
    kv = paged_kv_for(decoder, num_pages=5, page_size=_PAGE_SIZE, num_threads=None)
    other = list(reversed(tokens))
    table, other_table = (PageId(3), PageId(1)), (PageId(2), PageId(4))
    middle, parts = len(tokens) // 3, []
    for start, end, stop in ((0, middle, 2), (middle, len(tokens), 1)):
        mine = SequenceSlice(tokens[start:end], start, table)
        beside = SequenceSlice(other[:stop], 0, other_table)
        plan = AttentionPlan.from_slices((beside, mine), _PAGE_SIZE, device=decoder.device)
        parts.append(decoder.hidden(plan, kv)[stop:])
    error = _relative_error(decoder.head(torch.cat(parts)), own)
    if not error < _TOLERANCE[decoder.dtype]:
        raise ConfigError(
            f"This model cannot run here: over pages, {decoder.path} gives logits {error:.1%} away "
            "from its own; choose another decoder-only text model."
        )


def _relative_error(logits: torch.Tensor, own: torch.Tensor) -> float:
    """Of the median position: a router that changes its mind on a near-tie moves one, not all."""
    own, logits = own.float(), logits.float()
    spread = (own - own.mean(-1, keepdim=True)).norm(dim=-1).clamp_min(1e-30)
    return float(((logits - own).norm(dim=-1) / spread).median())

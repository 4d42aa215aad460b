"""Rotary position embeddings for the fast path: frequencies, and tables of cosines and sines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_KEYS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
}
_ALSO = frozenset({"rope_type", "type", "rope_theta"})
_OPTIONAL = {"llama3": frozenset({"original_max_position_embeddings"})}


def rope_obstacle(config: Mapping[str, Any]) -> str | None:
    """Why a config's rotary embedding is not one of those known here, or None if it is."""
    parameters = _parameters(config)
    kind = _kind(parameters)
    if kind not in _KEYS:
        return f"its rotary embedding is of type {kind}"
    if parameters.get("rope_theta") is None or not _KEYS[kind] <= parameters.keys():
        return f"its config leaves parameters of its {kind} rotary embedding out"
    unknown = parameters.keys() - _KEYS[kind] - _ALSO - _OPTIONAL.get(kind, frozenset())
    stray = {key for key in unknown if (key, parameters[key]) != ("partial_rotary_factor", 1.0)}
    return f"its rotary embedding has a {min(stray)}" if stray else None


def _parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """New configs have them in one place, old ones in two."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {"rope_theta": config.get("rope_theta"), **given}


def _kind(parameters: Mapping[str, Any]) -> str:
    return str(parameters.get("rope_type") or parameters.get("type") or "default")


def inverse_frequencies(config: Mapping[str, Any], head_dim: int) -> torch.Tensor:
    """float32 [head_dim / 2] radians per position, for a config without `rope_obstacle`."""
    parameters = _parameters(config)
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain: torch.Tensor = 1.0 / (float(parameters["rope_theta"]) ** exponents)
    match _kind(parameters):
        case "linear":
            return plain / float(parameters["factor"])
        case "llama3":
            context = parameters.get("original_max_position_embeddings")
            return _llama3(plain, parameters, context or config["max_position_embeddings"])
    return plain


def _llama3(plain: torch.Tensor, parameters: Mapping[str, Any], context: int) -> torch.Tensor:
    """Long waves stretched by `factor`, short ones kept, a ramp between (Llama 3.1)."""
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    turns = context / (2 * math.pi / plain)
    ramp = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - ramp) * plain / float(parameters["factor"]) + ramp * plain


class RopeTable:
    """Cosines and signed sines of every position up to the largest seen; grows by doubling.

    A row depends on its position alone, not on how large the table was when it was made: angles
    are float32 products, as everywhere, but their cosines are taken in float64, whose vector and
    scalar routines agree once rounded.
    """

    def __init__(
        self, frequencies: torch.Tensor, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._frequencies = frequencies.numpy()
        self._dtype = dtype
        self._device = device
        self._rows = torch.empty(0, 2, 2 * len(frequencies), dtype=dtype, device=device)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [N, 1, head_dim], the sines of the first half negated."""
        cos, sin = self.rows(positions).unbind(1)
        return cos.unsqueeze(1), sin.unsqueeze(1)

    def rows(self, positions: torch.Tensor) -> torch.Tensor:
        """The same as one contiguous [N, 2, head_dim]."""
        self._reach(int(positions.max()) + 1)
        return self._rows[positions]

    def _reach(self, num_positions: int) -> None:
        have = len(self._rows)
        if num_positions > have:
            more = self._compute(have, max(num_positions, 2 * have, 1024))
            self._rows = torch.cat((self._rows, more))

    def _compute(self, start: int, end: int) -> torch.Tensor:
        positions = np.arange(start, end, dtype=np.float32)
        angles = np.multiply.outer(positions, self._frequencies).astype(np.float64)
        cos, sin = np.cos(angles), np.sin(angles)
        rows = np.stack((np.hstack((cos, cos)), np.hstack((-sin, sin))), axis=1)
        return torch.from_numpy(rows).to(torch.float32).to(self._device, self._dtype)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads [N, H, head_dim] turned by their positions' angles; cos and sin from `RopeTable.at`."""
    swapped = torch.roll(heads, heads.shape[-1] // 2, -1)
    return (heads * cos).addcmul_(swapped, sin)

"""How the agent's own words are to be made: the system turn and the sampling."""

from __future__ import annotations

from dataclasses import dataclass

from llmasos.kernel.abi import Sampling


@dataclass(frozen=True, slots=True)
class Sayings:
    """What every turn that the model writes has in common."""

    system: str | None
    max_tokens: int
    sampling: Sampling

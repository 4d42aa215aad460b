"""How large a step may be so that it ends in time: a cost model of the core, learnt from its steps.

A step costs what its single tokens (replies going on) cost together, plus so much for each token of a
prompt. Both are running averages, so they follow the number of replies, the length of contexts and the
machine. A function of the elapsed times alone: the same times, the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmasos.kernel.core import StepPlan

SMOOTHING = 0.2
"""Weight of the newest step in an average."""
MAX_JUMP = 4.0
"""One step may look at most this many times dearer than was thought: a stall is no cost."""


@dataclass(slots=True)
class _Average:
    """A running average that one outlier cannot carry away."""

    value: float = 0.0
    """0 while nothing is known."""

    def add(self, sample: float) -> None:
        if not self.value:
            self.value = sample
        else:
            self.value += SMOOTHING * (min(sample, MAX_JUMP * self.value) - self.value)


class Pace:
    """Prompt tokens that fit into a step of `target_s` seconds."""

    def __init__(self, *, target_s: float) -> None:
        self._target_s = target_s
        self._replies_s = _Average()
        self._prompt_token_s = _Average()

    def observe(self, step: StepPlan, elapsed_s: float) -> None:
        """Learn from a step that was computed."""
        num_prompt_tokens = sum(len(piece.tokens) for piece in step.slices if len(piece.tokens) > 1)
        if num_prompt_tokens == 0:
            self._replies_s.add(elapsed_s)
            return
        rest = elapsed_s - min(self._replies_s.value, elapsed_s * 0.9)
        self._prompt_token_s.add(rest / num_prompt_tokens)

    def prompt_tokens(self, *, at_least: int, at_most: int) -> int:
        """Tokens of prompts for the next step; `at_most` while nothing is known."""
        token_s = self._prompt_token_s.value
        if not token_s:
            return at_most
        left_s = max(self._target_s - (self._replies_s.value), 0.0)
        return max(min(int(left_s / token_s), at_most), at_least)

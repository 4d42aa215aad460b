"""What computing and moving cost here, learnt while running, and how long tools take. No policy.

Plain arithmetic over what it is told: the same measurements give the same estimates.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

ATTENDED_PER_TOKEN = 1500
"""Attending to so many positions costs what the rest of a token does (`benchmarks.core_cost` measures
it): what depends on it is how much dearer a late page is than an early one, not what a step costs."""
_KEEP = 0.98
"""Share of the weight that a measurement keeps when the next one arrives."""
_NUM_DURATIONS = 64


@dataclass(slots=True)
class Line:
    """Seconds as a + b * n, fitted to measurements of which recent ones count more.

    `prior` is b until something has been measured.
    """

    prior: float
    _weight: float = 0.0
    _n: float = 0.0
    _s: float = 0.0
    _nn: float = 0.0
    _ns: float = 0.0

    def observe(self, n: float, seconds: float) -> None:
        """Take in one measurement."""
        if n <= 0 or not math.isfinite(seconds) or seconds < 0:
            return
        self._weight = self._weight * _KEEP + 1
        self._n = self._n * _KEEP + n
        self._s = self._s * _KEEP + seconds
        self._nn = self._nn * _KEEP + n * n
        self._ns = self._ns * _KEEP + n * seconds

    def doubt(self) -> None:
        """Think it a little cheaper than it looked, so that what is never tried is tried again."""
        self._s *= _KEEP
        self._ns *= _KEEP

    @property
    def fixed_s(self) -> float:
        """Seconds that even the smallest takes."""
        if not self._n:
            return 0.0
        return max((self._s - self.each_s * self._n) / self._weight, 0.0)

    @property
    def each_s(self) -> float:
        """Seconds that one more takes."""
        if not self._n:
            return self.prior
        spread = self._weight * self._nn - self._n * self._n
        if spread < 1e-6 * self._weight * self._nn:  # all of one size: nothing to tell a from b
            return self._s / self._n
        slope = (self._weight * self._ns - self._n * self._s) / spread
        return min(max(slope, 0.0), self._s / self._n)

    def seconds(self, n: int, times: int = 1) -> float:
        """The estimate for `n` in so many goes."""
        return self.fixed_s * times + self.each_s * n


def work(num_tokens: int, start: int = 0) -> float:
    """What computing positions costs, in tokens that attend to nothing."""
    return num_tokens * (1 + (start + num_tokens / 2) / ATTENDED_PER_TOKEN)


@dataclass(slots=True)
class Costs:
    """Bringing positions back: computing them, or loading their pages."""

    step_tokens: int
    page_size: int
    compute: Line = field(default_factory=lambda: Line(prior=1e-3))
    """By the `work` of a step."""
    load: Line = field(default_factory=lambda: Line(prior=1e-3))
    is_loading_forced: bool = False
    """Load whatever is stored, however little; for measuring."""

    def compute_s(self, num_tokens: int, start: int = 0) -> float:
        """Seconds that computing positions from `start` on takes longer. They ride in a step that is
        needed anyway, but for what fills steps of its own."""
        num_steps = max(-(-num_tokens // self.step_tokens) - 1, 0)
        return self.compute.fixed_s * num_steps + self.compute.each_s * work(num_tokens, start)

    def load_s(self, num_tokens: int) -> float:
        """Seconds to load the pages of positions."""
        return self.load.seconds(-(-num_tokens // self.page_size))

    def page_s(self, start: int, *, can_load: bool) -> float:
        """Seconds to have one page of many back, the one that begins at `start`, the cheaper way."""
        computed = self.compute_s(self.page_size, start)
        return min(self.load.each_s, computed) if can_load else computed

    def is_loading_cheaper(self, num_tokens: int, start: int = 0) -> bool:
        """Whether to load these positions and not compute them."""
        return self.is_loading_forced or self._pays(num_tokens, start)

    def _pays(self, num_tokens: int, start: int = 0) -> bool:
        return self.load_s(num_tokens) < self.compute_s(num_tokens, start)

    def return_s(self, num_tokens: int, *, can_load: bool) -> float:
        """Seconds to have positions back once they were given up, the cheaper way."""
        computed = self.compute_s(num_tokens)
        return min(self.load_s(num_tokens), computed) if can_load else computed

    @property
    def crossover_tokens(self) -> int | None:
        """The fewest positions that are loaded rather than computed; None if it never pays."""
        sizes = (2**power for power in range(17))
        upper = next((size for size in sizes if self._pays(size)), None)
        if upper is None:
            return None
        lower = upper // 2 + 1
        return next(n for n in range(lower, upper + 1) if self._pays(n))

    @property
    def loads_per_step(self) -> int:
        """Pages that load in about the time of a full step, so that nobody waits much longer."""
        step_s = self.compute.seconds(self.step_tokens)
        each_s = self.load.each_s
        return max(int(step_s / each_s), 1) if each_s > 0 else self.step_tokens


@dataclass(slots=True)
class WaitTimes:
    """How long syscalls take, by name: what a waiting process may be expected to wait still."""

    unknown_s: float = 1.0
    """Expected of a syscall that was never seen to end."""
    _durations: dict[str, deque[float]] = field(default_factory=dict)

    def record(self, name: str, seconds: float) -> None:
        """A syscall ended after so long."""
        known = self._durations.setdefault(name, deque(maxlen=_NUM_DURATIONS))
        known.append(max(seconds, 0.0))

    def quantile(self, name: str, share: float) -> float:
        """The duration that this share of the recent ones stayed within."""
        known = sorted(self._durations.get(name, ()))
        return known[min(int(share * len(known)), len(known) - 1)] if known else self.unknown_s

    def remaining_s(self, name: str, elapsed_s: float) -> float:
        """The median of what was left to those that took longer than this.

        Where none did, as long again as it has waited already.
        """
        left = sorted(s - elapsed_s for s in self._durations.get(name, ()) if s > elapsed_s)
        return left[len(left) // 2] if left else max(elapsed_s, self.unknown_s)

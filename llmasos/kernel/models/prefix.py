"""Spaces that a tokenizer puts in front of a text by itself: taken out, and known by rule.

A SentencePiece tokenizer of the older kind reads "word" as " word". Appended to a context that would
add a space to the text, so the tokenizer is told not to, and whoever starts a text (a rendered
chat) asks this rule for the space that the model was trained with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from tokenizers import Tokenizer, normalizers, pre_tokenizers


@dataclass(frozen=True, slots=True)
class SpacePrefix:
    """When the tokenizer would have put a space in front of a run of text."""

    at_start: bool = False
    """In front of a text's first run; a run is what stands between control tokens."""
    at_every_run: bool = False
    unless_space: bool = False
    """Not where the run begins with a space already."""

    def apply(self, run: str, *, is_first: bool) -> str:
        """The run as the tokenizer would have read it."""
        wanted = self.at_every_run or (self.at_start and is_first)
        if not wanted or not run or (self.unless_space and run.startswith((" ", "▁"))):
            return run
        return f" {run}"


def take_space_prefix(backend: Tokenizer) -> SpacePrefix:
    """Make `backend` add no space, and say when it did. Mutates `backend`."""
    if _drop_prepend(backend):
        return SpacePrefix(at_start=True, at_every_run=True)
    for step in _steps(backend.pre_tokenizer):
        if isinstance(step, pre_tokenizers.Metaspace) and step.prepend_scheme != "never":
            every = step.prepend_scheme == "always"
            step.prepend_scheme = "never"
            return SpacePrefix(at_start=True, at_every_run=every, unless_space=True)
        if isinstance(step, pre_tokenizers.ByteLevel) and step.add_prefix_space:
            step.add_prefix_space = False
            return SpacePrefix(at_start=True, at_every_run=True, unless_space=True)
    return SpacePrefix()


def _drop_prepend(backend: Tokenizer) -> bool:
    steps = _steps(backend.normalizer)
    kept = [step for step in steps if not isinstance(step, normalizers.Prepend)]
    if len(kept) == len(steps):
        return False
    backend.normalizer = normalizers.Sequence(kept)
    return True


def _steps(component: Any) -> list[Any]:
    """The parts of a sequence, which can be iterated over though its type does not say so."""
    if isinstance(component, (normalizers.Sequence, pre_tokenizers.Sequence)):
        return [*cast("Iterable[Any]", component)]
    return [] if component is None else [component]

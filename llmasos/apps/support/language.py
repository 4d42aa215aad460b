"""Which of the desk's languages a customer writes. Short texts say little, so they keep the one before."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

MIN_LETTERS = 10
MIN_PROBABILITY = 0.8


class Detector:
    """Among a few languages; without the package py3langid always the first."""

    def __init__(self, languages: Sequence[str]) -> None:
        self._languages = list(languages)
        self._identifier = _identifier(tuple(languages)) if len(languages) > 1 else None

    @property
    def works(self) -> bool:
        """Whether it can tell languages apart."""
        return self._identifier is not None

    def detect(self, text: str, before: str) -> str:
        """The language of a text, or `before` where it is too short or too doubtful."""
        words = " ".join(re.findall(r"[^\W\d_]+", text))
        if self._identifier is None or len(words) < MIN_LETTERS:
            return before
        language, probability = self._identifier.classify(words)
        return str(language) if probability >= MIN_PROBABILITY else before


@functools.lru_cache(maxsize=8)
def _identifier(languages: tuple[str, ...]) -> Any | None:
    """Loaded once a process: it takes a tenth of a second, and is a function of its arguments."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(languages))
    return identifier

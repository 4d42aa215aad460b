"""Prompts of an exact number of tokens that share no beginning, the same for every side.

Words drawn at random from the model's own vocabulary: what a prompt says does not matter to a clock,
since every side writes a fixed number of tokens after it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llmasos.kernel.tokenizer import Tokenizer

NUM_WORDS = 3000
MANY = 16
"""Processes of the largest case."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, and the tokens that any tokenizer call makes of it."""

    text: str
    token_ids: tuple[int, ...]


class PromptMaker:
    """Draws prompts for one tokenizer. The same seed draws the same prompts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._words = _whole_words(tokenizer)

    def draw(self, lengths: Sequence[int], *, seed: str) -> list[Prompt]:
        """One prompt per length. No two begin with the same word, so no prefix is ever shared."""
        generator = random.Random(seed)
        first_words = generator.sample(self._words, len(lengths))
        return [
            self._prompt(first + "".join(generator.choices(self._words, k=length - 1)), length)
            for first, length in zip(first_words, lengths, strict=True)
        ]

    def draw_sharing(self, num_shared: int, num_own: int, count: int, *, seed: str) -> list[Prompt]:
        """So many prompts with one beginning, each with some tokens of its own after it."""
        (common,) = self.draw([num_shared], seed=seed)
        tails = self.draw([num_own] * count, seed=f"{seed}/tails")
        return [self._prompt(common.text + tail.text, num_shared + num_own) for tail in tails]

    def _prompt(self, text: str, length: int) -> Prompt:
        token_ids = tuple(self._tokenizer.encode(text))
        if len(token_ids) != length:
            raise SystemExit(
                f"This tokenizer joins words ({len(token_ids)} tokens for {length} words); "
                "benchmark another model."
            )
        return Prompt(text, token_ids)


def _whole_words(tokenizer: Tokenizer) -> list[str]:
    """Words, each with the space before it, that are one token wherever they stand."""
    words: list[str] = []
    for token_id in range(tokenizer.vocab_size):
        text = tokenizer.decode([token_id])
        if re.fullmatch(r" [a-z]{3,9}", text) and tokenizer.encode(text) == [token_id]:
            words.append(text)
            if len(words) == NUM_WORDS:
                break
    if len(words) < 100:
        raise SystemExit("This model's vocabulary has no words with a space before them.")
    return words


def equal_lengths(num_prompts: int) -> list[int]:
    """Twenty-five tokens each: short questions."""
    return [25] * num_prompts


def mixed_lengths(num_prompts: int) -> list[int]:
    """From 100 to 1500 tokens in `MANY` even steps, in no order; fewer prompts take some of them,
    spread as evenly, and one alone that of the middle."""
    steps = [round(100 + 1400 * index / (MANY - 1)) for index in range(MANY)]
    if num_prompts == 1:
        return [steps[MANY // 2]]
    lengths = [steps[round((MANY - 1) * index / (num_prompts - 1))] for index in range(num_prompts)]
    random.Random(num_prompts).shuffle(lengths)
    return lengths

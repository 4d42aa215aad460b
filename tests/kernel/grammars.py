"""What the tests of grammars share: a small real vocabulary, and ways to go through a grammar."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest
from llguidance import LLTokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from llmasos.kernel.abi import Grammar, GrammarKind
from llmasos.kernel.grammar import (
    Matcher,
    compile_grammar,
)
from llmasos.kernel.scripted import ByteTokenizer

CORPUS = [
    'The quick brown fox: {"name": "fs.read", "arguments": {"path": "notes.md"}} and back.',
    '[{"a": 1, "b": [true, false, null]}, -12.5e+3] 0123456789 Paris London Grüße 東京 🙂',
]


class BpeTokenizer:
    """A small byte-level BPE with two ends of a turn, and one token more than whole mask words."""

    END, TURN, LAST = "<|end|>", "<|turn|>", "<|last|>"

    def __init__(self, *, believed_ends: Sequence[str] | None = None) -> None:
        self._backend = train_bpe()
        self._believed_ends = believed_ends or (self.END, self.LAST)

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size()

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset({self.token_id(self.END), self.token_id(self.LAST)})

    def token_id(self, name: str) -> int:
        return self._backend.token_to_id(name)

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._backend.decode(token_ids, skip_special_tokens=True)

    def grammar_tokenizer(self) -> LLTokenizer:
        return self._grammar_tokenizer

    @cached_property
    def _grammar_tokenizer(self) -> LLTokenizer:
        ends = [self.token_id(name) for name in self._believed_ends]
        return LLTokenizer(self._backend.to_str(), eos_token=ends)


@cache
def train_bpe() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=352,
        special_tokens=[BpeTokenizer.END, BpeTokenizer.TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 20, trainer)
    backend.add_special_tokens([BpeTokenizer.LAST])
    return backend


BPE = BpeTokenizer()
BYTES = ByteTokenizer()
TOKENIZERS = pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=["bpe", "bytes"])


def schema(source: object) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(source))


def regex(source: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, source)


def choice(*texts: str) -> Grammar:
    return Grammar(GrammarKind.CHOICE, json.dumps(texts))


def lark(source: str) -> Grammar:
    return Grammar(GrammarKind.LARK, source)


def allowed(matcher: Matcher) -> set[int]:
    bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def accepts(grammar: Grammar, text: str, tokenizer: Any = BYTES) -> bool:
    """Whether the text is one of the grammar's, found by feeding it token by token."""
    matcher = compile_grammar(grammar, tokenizer)
    for token_id in tokenizer.encode(text):
        if token_id not in allowed(matcher):
            return False
        matcher.accept(token_id)
    return matcher.is_accepting


@cache
def ways_out(tokenizer: Any) -> frozenset[int]:
    """Tokens that end a string, a list, an object or the text."""
    texts = {token_id: tokenizer.decode([token_id]) for token_id in range(tokenizer.vocab_size)}
    closing = {token_id for token_id, text in texts.items() if text and text[0] in '",}]'}
    return tokenizer.eos_ids | closing


def walk(matcher: Matcher, tokenizer: Any, *, seed: int, max_tokens: int = 2000) -> str:
    """A random text of the grammar: any allowed token, with a liking for those that lead out."""
    rng, token_ids, leading_out = random.Random(seed), [], ways_out(tokenizer)
    while not matcher.is_finished:
        assert len(token_ids) < max_tokens, tokenizer.decode(token_ids)
        candidates = allowed(matcher)
        assert candidates, tokenizer.decode(token_ids)
        if rng.random() < 0.4:
            candidates = candidates & leading_out or candidates
        token_id = rng.choice(sorted(candidates))
        matcher.accept(token_id)
        if token_id not in tokenizer.eos_ids:
            token_ids.append(token_id)
    return tokenizer.decode(token_ids)


def take_any_tokens(matcher: Matcher, tokenizer: Any, *, count: int) -> None:
    """Go on, without ending, for as long as there is something to go on with."""
    rng = random.Random(0)
    for _ in range(count):
        candidates = allowed(matcher) - tokenizer.eos_ids
        if not candidates:
            return
        matcher.accept(rng.choice(sorted(candidates)))

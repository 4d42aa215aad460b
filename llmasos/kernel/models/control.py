"""Control tokens: finding the ones a template wrote, and keeping the ones a user wrote from acting.

A control token is an added token that opens or closes something: a turn, a text, a tool call. The
search is done by the `tokenizers` library itself on a vocabulary of nothing but control tokens, so
that longest match and stripping of neighbouring spaces are exactly those of the full tokenizer,
whatever their number (Gemma has 6,249).

Covered: a control token spelt out in a text, in whole or in a part that its surroundings complete.
Not covered: words that only look like markup to the model ("[INST]" where it is ordinary text).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Final

from tokenizers import AddedToken, Tokenizer, models

from llmasos.kernel.errors import InvalidArguments

_MARKS: Final = range(0xF0000, 0x10FFFE)
"""Private-use characters, one of which marks a broken-up control token."""


class ControlTokens:
    """The control tokens of one vocabulary. Immutable once made; safe to share."""

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        """Tokens of a single character are left out: they are text, not markup."""
        tokens = {i: token for i, token in tokens.items() if len(token.content.strip()) > 1}
        self.ids = frozenset(tokens)
        self._id_of = {token.content: token_id for token_id, token in tokens.items()}
        self._starts = frozenset(text[0] for text in self._id_of)
        self._finder = Tokenizer(models.BPE())
        self._finder.add_special_tokens([_whole(token) for token in tokens.values()])
        self._found_ids = {
            index: self._id_of[token.content]
            for index, token in self._finder.get_added_tokens_decoder().items()
        }
        self._heads: frozenset[str] | None = None
        self._tails: frozenset[str] | None = None

    def find(self, text: str) -> list[tuple[int, int, int]]:
        """(start, end, token id) of each control token spelt out, from left to right."""
        if not any(start in text for start in self._starts):
            return []
        found = self._finder.encode(text)
        spans = zip(found.offsets, found.ids, strict=True)
        return [(start, end, self._found_ids[index]) for (start, end), index in spans]

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The text as (run of ordinary text, control token that follows it or None at the end)."""
        position = 0
        for start, end, token_id in self.find(text):
            yield text[position:start], token_id
            position = end
        yield text[position:], None

    def defuse(self, text: str, mark: str) -> str:
        """The text with `mark` inside every control token it spells, and wherever its end or its
        beginning could become one together with what a template puts next to it."""
        while found := self.find(text):
            text = _insert(text, [_first_char(text, start, end) for start, end, _ in found], mark)
        core = text.strip()
        if not core:
            return text
        begin = text.index(core)
        end = begin + len(core)
        joins_after = [end] if self._could_begin(core) else []
        joins_before = [begin] if self._could_end(core) else []
        return _insert(text, joins_before + joins_after, mark)

    def _could_begin(self, core: str) -> bool:
        """Whether a suffix of the text is a proper prefix of a control token."""
        if self._heads is None:
            self._heads = frozenset(t[:n] for t in self._id_of for n in range(1, len(t)))
        longest = max(map(len, self._heads), default=0)
        return any(core[-n:] in self._heads for n in range(1, min(longest, len(core)) + 1))

    def _could_end(self, core: str) -> bool:
        """Whether a prefix of the text is a proper suffix of a control token."""
        if self._tails is None:
            self._tails = frozenset(t[n:] for t in self._id_of for n in range(1, len(t)))
        longest = max(map(len, self._tails), default=0)
        return any(core[:n] in self._tails for n in range(1, min(longest, len(core)) + 1))


def unused_mark(texts: Sequence[str]) -> str:
    """A character that is in none of the texts; raises `InvalidArguments` if they hold them all."""
    used = frozenset(chain.from_iterable(map(_private_characters, texts)))
    for code in _MARKS:
        if chr(code) not in used:
            return chr(code)
    raise InvalidArguments("The conversation uses every private-use character there is.")


def _private_characters(text: str) -> frozenset[str]:
    if text.isascii():
        return frozenset()
    return frozenset(char for char in frozenset(text) if ord(char) in _MARKS)


def _whole(token: AddedToken) -> AddedToken:
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=False,
        special=True,
    )


def _first_char(text: str, start: int, end: int) -> int:
    """Just past the first character of a match that may begin with stripped white space."""
    spelling = text[start:end]
    return start + len(spelling) - len(spelling.lstrip()) + 1


def _insert(text: str, positions: Sequence[int], mark: str) -> str:
    if not positions:
        return text
    cuts = [0, *positions, len(text)]
    return mark.join(text[a:b] for a, b in pairwise(cuts))

"""Token ids to bytes to text: what each token contributes, and a decoder that streams.

Every token stands for a fixed byte string (possibly a part of a character), so that text can be
produced token by token in constant time, and the text of a whole equals the joined text of its
parts. Nothing is stripped: a token that begins with a space keeps it, since tokens mostly
continue a text that is there already. What never became a valid character comes out as U+FFFD.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from llmasos.kernel.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenizers import Tokenizer

_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes as printable characters: character to byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return alphabet


class PieceTable:
    """The bytes of every token of one vocabulary. Filled as it is asked; safe to share."""

    def __init__(self, backend: Tokenizer, *, hidden: Iterable[int]) -> None:
        """`hidden` are the control tokens that decoding leaves out."""
        self._backend = backend
        self._hidden = frozenset(hidden)
        self._spell = _speller(_decoder_spec(backend))
        self._added = {i: t.content for i, t in backend.get_added_tokens_decoder().items()}
        self._known: dict[int, bytes] = {}

    def piece(self, token_id: int) -> bytes:
        """The bytes of a token, a control token's spelling included; none for an unused id."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._read(token_id)
        return known

    def visible(self, token_id: int) -> bytes:
        """The bytes of a token; none for a control token."""
        return b"" if token_id in self._hidden else self.piece(token_id)

    def decode(self, token_ids: Sequence[int], *, special: bool) -> str:
        """Text of some tokens; control tokens are left out unless `special`."""
        piece = self.piece if special else self.visible
        return b"".join(map(piece, token_ids)).decode("utf-8", "replace")

    def _read(self, token_id: int) -> bytes:
        if token_id in self._hidden and token_id in self._added:
            return self._added[token_id].encode()
        token = self._backend.id_to_token(token_id) if token_id >= 0 else None
        return b"" if token is None else self._spell(token)


class StreamingDetokenizer:
    """Turns one generation's tokens into text as they come; keeps an unfinished character back."""

    def __init__(self, pieces: PieceTable) -> None:
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes: whole characters only, possibly none."""
        return self._utf8.decode(self._pieces.visible(token_id))

    def flush(self) -> str:
        """What is left at the end; bytes that never became a character come as U+FFFD."""
        return self._utf8.decode(b"", final=True)


def _decoder_spec(backend: Tokenizer) -> list[dict[str, Any]]:
    decoder = backend.decoder
    if decoder is None:
        return []
    spec = json.loads(decoder.__getstate__())
    steps: list[dict[str, Any]] = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    return steps


def _speller(steps: list[dict[str, Any]]) -> Callable[[str], bytes]:
    """How this vocabulary writes text; raises `ConfigError` for a scheme not known here."""
    kinds = {step["type"] for step in steps}
    unknown = kinds - _SPELLINGS
    if unknown:
        raise ConfigError(f"The tokenizer's {min(unknown)} decoder is not supported.")
    if "ByteLevel" in kinds:
        return _byte_level_speller()
    if "WordPiece" in kinds:
        return _wordpiece_speller(next(step for step in steps if step["type"] == "WordPiece"))
    return _sentencepiece_speller(steps)


_SPELLINGS: Final = frozenset(
    {"ByteLevel", "WordPiece", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}
)


def _byte_level_speller() -> Callable[[str], bytes]:
    alphabet = byte_alphabet()

    def spell(token: str) -> bytes:
        if all(char in alphabet for char in token):
            return bytes(alphabet[char] for char in token)
        return token.encode()

    return spell


def _wordpiece_speller(step: dict[str, Any]) -> Callable[[str], bytes]:
    prefix = step.get("prefix", "##")

    def spell(token: str) -> bytes:
        return (token.removeprefix(prefix) if token.startswith(prefix) else f" {token}").encode()

    return spell


def _sentencepiece_speller(steps: list[dict[str, Any]]) -> Callable[[str], bytes]:
    swaps = [swap for step in steps if (swap := _swap(step)) is not None]
    has_bytes = any(step["type"] == "ByteFallback" for step in steps)

    def spell(token: str) -> bytes:
        if has_bytes and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in swaps:
            token = token.replace(old, new)
        return token.encode()

    return spell


def _swap(step: dict[str, Any]) -> tuple[str, str] | None:
    if step["type"] == "Metaspace":
        return step.get("replacement", "▁"), " "
    if step["type"] == "Replace" and "String" in step["pattern"]:
        return step["pattern"]["String"], step["content"]
    return None

"""What the kernel needs of a tokenizer. Implementations: `models.ModelTokenizer`, `ByteTokenizer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from llmasos.kernel.abi import Message


class Detokenizer(Protocol):
    """Turns one generation's tokens into text as they come."""

    def push(self, token_id: int) -> str:
        """The text that this token completes: whole characters only, possibly none."""
        ...

    def flush(self) -> str:
        """What is left at the end; bytes that never became a character come as U+FFFD."""
        ...


class Tokenizer(Protocol):
    """Text to tokens and back for one model. Thread-safe for reading."""

    @property
    def vocab_size(self) -> int:
        """Token ids go from 0 to one less than this."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a turn or a text."""
        ...

    @property
    def bos_ids(self) -> tuple[int, ...]:
        """What an empty context must begin with; often nothing."""
        ...

    @property
    def chat_stop_strings(self) -> tuple[str, ...]:
        """Texts that end a reply of a model without end-of-turn tokens; often none."""
        ...

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of a text, adding none. With `special`, control tokens spelt out in the text are
        recognised; without, they are ordinary characters (so user text cannot forge a turn)."""
        ...

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Text of some tokens; control tokens are left out unless `special`."""
        ...

    def detokenizer(self) -> Detokenizer:
        """A fresh one, for one generation."""
        ...

    def render_chat(self, messages: Sequence[Message], *, reply: bool) -> list[int]:
        """The whole conversation as tokens; with `reply`, up to where the assistant speaks next.

        Message contents are never parsed for control tokens.
        """
        ...

    def grammar_tokenizer(self) -> Any:
        """The `llguidance.LLTokenizer` of this vocabulary, made once (may take a while)."""
        ...

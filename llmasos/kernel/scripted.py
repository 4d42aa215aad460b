"""A core and a tokenizer for testing kernel logic: exact, instant, and suspicious.

`ScriptedCore` keeps in each page slot the token that was computed there and reads the whole prefix
back through the page table it is given. So a page that was freed too early, shared wrongly or
copied late changes its answers, just as it would change a model's; K/V of one adapter that are read
with another are a `KernelBug`; and it checks each plan against the protocol's promises. It is part of
the product (apps are tested with it) and never shown as it.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.abi import Message
from llmasos.kernel.core import (
    CoreInfo,
    KVShift,
    PageId,
    SampleSpec,
    SequenceSlice,
    SliceResult,
    StepPlan,
    StepResult,
)
from llmasos.kernel.errors import KernelBug

Script = Callable[[Sequence[int]], int]
"""The token that follows a whole prefix. Must be pure."""

END = 256
_MARK = 1024
"""A slot holds a token plus so many times its adapter's mark; -1 where nothing was computed."""
ROLES = {"system": 257, "user": 258, "assistant": 259, "tool": 260}


class ByteDetokenizer:
    """Bytes to whole characters."""

    def __init__(self) -> None:
        self._pending = b""

    def push(self, token_id: int) -> str:
        """See `Detokenizer.push`."""
        if token_id > 255:
            return ""
        self._pending += bytes([token_id])
        try:
            text = self._pending.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return ""
            text = self._pending.decode(errors="replace")
        self._pending = b""
        return text

    def flush(self) -> str:
        """See `Detokenizer.flush`."""
        text, self._pending = self._pending.decode(errors="replace"), b""
        return text


class ByteTokenizer:
    """One token a byte, and a control token for each role and for the end of a turn."""

    vocab_size = 261
    eos_ids = frozenset({END})
    bos_ids: tuple[int, ...] = ()
    chat_stop_strings: tuple[str, ...] = ()

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """UTF-8 bytes; there is no spelling for control tokens."""
        return list(text.encode("utf-8", "surrogatepass"))

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Text of the bytes; control tokens as `<name>` if `special`."""
        names = {END: "<end>", **{number: f"<{role}>" for role, number in ROLES.items()}}
        data = b"".join(
            bytes([token]) if token < 256 else names[token].encode() if special else b""
            for token in token_ids
        )
        return data.decode(errors="replace")

    def detokenizer(self) -> ByteDetokenizer:
        """A fresh one."""
        return ByteDetokenizer()

    def render_chat(self, messages: Sequence[Message], *, reply: bool) -> list[int]:
        """Role token, content, END for each turn."""
        tokens: list[int] = []
        for message in messages:
            tokens += [ROLES[message.role], *self.encode(message.content), END]
        return [*tokens, ROLES["assistant"]] if reply else tokens

    def grammar_tokenizer(self) -> Any:
        """An llguidance tokenizer over the same 261 tokens."""
        return self._grammar_tokenizer

    @cached_property
    def _grammar_tokenizer(self) -> Any:
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(_ByteVocabulary(self)))


class _ByteVocabulary:
    """The attributes that llguidance's `TokenizerWrapper` reads."""

    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self.eos_token_id = END
        self.bos_token_id = None
        self.special_token_ids = [END, *ROLES.values()]
        self.tokens = [bytes([number]) for number in range(256)]
        self.tokens += [b"<end>", *(f"<{role}>".encode() for role in ROLES)]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


def hashed(prefix: Sequence[int]) -> int:
    """The default script: a printable byte that depends on every token of the prefix."""
    digest = hashlib.blake2b(json.dumps(list(prefix)).encode(), digest_size=4).digest()
    return 97 + int.from_bytes(digest, "little") % 26


def replies(answer: Callable[[str], str]) -> Script:
    """A script that gives `answer(prompt)` after each assistant mark, byte by byte, then END."""
    tokenizer = ByteTokenizer()

    def script(prefix: Sequence[int]) -> int:
        marks = [i for i, token in enumerate(prefix) if token == ROLES["assistant"]]
        start = marks[-1] + 1 if marks else 0
        reply = tokenizer.encode(answer(tokenizer.decode(prefix[:start], special=True)))
        said = len(prefix) - start
        return reply[said] if said < len(reply) else END

    return script


def queue(texts: Iterable[str]) -> Script:
    """A script that gives the n-th text after the n-th assistant mark of a context."""
    texts = list(texts)

    def answer(prompt: str) -> str:
        turn = prompt.count("<assistant>") - 1
        return texts[turn] if turn < len(texts) else ""

    return replies(answer)


def adapted(script: Script, adapter: str) -> Script:
    """What a script says with an adapter: something else, that depends on which it is."""
    mark = 97 + zlib.crc32(adapter.encode()) % 26
    return lambda prefix: script((mark, *prefix))


class ScriptedCore:
    """A `Core` that answers by a script and checks every plan it is handed."""

    def __init__(
        self,
        script: Script = hashed,
        *,
        num_pages: int = 64,
        page_size: int = 4,
        context_length: int = 1024,
        fingerprint: str = "scripted",
        has_views: bool = False,
    ) -> None:
        """`has_views`: pages are put back where they lie, as on the CPU, and not by `write_page`."""
        self._has_views = has_views
        self.info = CoreInfo(
            model="scripted",
            fingerprint=fingerprint,
            vocab_size=ByteTokenizer.vocab_size,
            context_length=context_length,
            page_size=page_size,
            bytes_per_page=page_size * 8,
            num_pages=num_pages,
            exact=True,
            description="a script, for tests",
            can_shift=True,
        )
        self.script = script
        self.num_tokens = 0
        self.fails: Callable[[SequenceSlice], str | None] = lambda _: None
        """Test hook: the error of a slice, or None."""
        self._adapters = {"": 0}
        """By fingerprint, what K/V computed with each are marked with."""
        self._slots = np.full((num_pages, page_size), -1, dtype=np.int64)

    def execute(self, plan: StepPlan) -> StepResult:
        """See `Core.execute`; raises `KernelBug` for a plan that breaks the protocol."""
        for source, destination in plan.copies:
            self._slots[destination] = self._slots[source]
        _check_no_page_written_twice(plan, self.info.page_size)
        for piece in plan.slices:
            self._write(piece)
        self.num_tokens += plan.num_tokens
        return StepResult(tuple(self._answer(piece) for piece in plan.slices))

    def shift(self, shift: KVShift) -> None:
        """See `ShiftingCore.shift`; raises `KernelBug` where what is read was never computed."""
        size = self.info.page_size
        moved: list[tuple[PageId, int, int]] = []
        for run in shift.runs:
            for offset in range(run.count):
                page, slot = divmod(run.source + offset, size)
                token = int(self._slots[shift.source_ids[page], slot])
                page, slot = divmod(run.target + offset, size)
                moved.append((shift.target_ids[page], slot, token))
        if any(token < 0 for _, _, token in moved):
            raise KernelBug("a position is shifted that was never computed")
        for page_id, slot, token in moved:
            self._slots[page_id, slot] = token

    def add_adapter(self, adapter: str, folder: Path) -> None:
        """See `AdaptingCore.add_adapter`; there is nothing to read."""
        self._adapters[adapter] = zlib.crc32(adapter.encode()) | 1

    def close(self) -> None:
        """Nothing to give back."""

    def read_page(self, page_id: PageId) -> bytes:
        """See `Core.read_page`."""
        return bytes(self._slots[page_id].data)

    def write_page(self, page_id: PageId, content: bytes | bytearray | memoryview) -> None:
        """See `Core.write_page`; raises `KernelBug` unless it is a page's worth."""
        if len(content) != self.info.bytes_per_page:
            raise KernelBug(f"a page of {len(content)} bytes was to be put back")
        self._slots[page_id] = np.frombuffer(content, dtype=np.int64)

    def page_view(self, page_id: PageId) -> memoryview | None:
        """See `Core.page_view`."""
        return memoryview(self._slots[page_id]).cast("B") if self._has_views else None

    def _write(self, piece: SequenceSlice) -> None:
        if not piece.tokens or len(piece.page_ids) * self.info.page_size < piece.end:
            raise KernelBug("a slice is empty or its page table does not cover it")
        if piece.end > self.info.context_length:
            raise KernelBug("a slice runs past the context length")
        for position, token in enumerate(piece.tokens, piece.start):
            page, slot = divmod(position, self.info.page_size)
            self._slots[piece.page_ids[page], slot] = token + _MARK * self._mark_of(piece)

    def _mark_of(self, piece: SequenceSlice) -> int:
        if piece.adapter not in self._adapters:
            raise KernelBug(f"a slice names the adapter {piece.adapter}, which nobody made known")
        return self._adapters[piece.adapter]

    def _answer(self, piece: SequenceSlice) -> SliceResult:
        if (error := self.fails(piece)) is not None:
            return SliceResult(error=error)
        table = self._slots[list(piece.page_ids)].reshape(-1)
        marks, prefix = np.divmod(table[: piece.end], _MARK)
        if (marks < 0).any():
            raise KernelBug("a slice reads a position that was never computed")
        if (marks != self._mark_of(piece)).any():
            raise KernelBug("a slice reads K/V that another adapter computed")
        return self._said(piece, prefix.tolist())

    def _said(self, piece: SequenceSlice, prefix: list[int]) -> SliceResult:
        script = adapted(self.script, piece.adapter) if piece.adapter else self.script
        first = piece.end - len(piece.targets)
        logprobs = tuple(
            _logprob(script, prefix[: first + i + 1], target)
            for i, target in enumerate(piece.targets)
        )
        result = SliceResult(target_logprobs=logprobs)
        if piece.sample is None:
            return result
        token_id = _allowed(script(prefix), piece.sample)
        if piece.sample.num_logprobs is None:
            return replace(result, token_id=token_id)
        return replace(result, token_id=token_id, logprob=_logprob(script, prefix, token_id))


def _logprob(script: Script, prefix: Sequence[int], target: int) -> float:
    return -0.125 if script(prefix) == target else -8.0


def _allowed(token_id: int, spec: SampleSpec) -> int:
    if spec.allowed is None or _bit(spec.allowed, token_id):
        return token_id
    return next(i for i in range(32 * len(spec.allowed)) if _bit(spec.allowed, i))


def _bit(mask: NDArray[np.int32], token_id: int) -> bool:
    return bool((int(mask[token_id // 32]) >> (token_id % 32)) & 1)


def _check_no_page_written_twice(plan: StepPlan, page_size: int) -> None:
    written: dict[PageId, int] = {}
    for number, piece in enumerate(plan.slices):
        for page_id in piece.page_ids[piece.start // page_size : -(-piece.end // page_size)]:
            if written.setdefault(page_id, number) != number:
                raise KernelBug(f"page {page_id} is written by two slices")
    for number, piece in enumerate(plan.slices):
        for page_id in piece.page_ids:
            if written.get(page_id, number) != number:
                raise KernelBug(f"page {page_id} is written while it is shared")

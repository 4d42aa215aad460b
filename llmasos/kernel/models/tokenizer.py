"""The tokenizer of a stored model, without transformers and without torch (boot is short of time).

`tokenizers` does the encoding, `pieces` the decoding, `chat` the writing down of conversations and
`control` keeps control tokens apart from text. Texts are encoded exactly: no space is put in front,
no control token is recognised unless asked for, so the text of a context is the joined text of what
was appended to it. For text without control tokens the result is that of transformers, except where
an older SentencePiece tokenizer would have put a space in front (see `prefix`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from llmasos.kernel.abi import Message
from llmasos.kernel.errors import ModelCorrupt
from llmasos.kernel.models.chat import Chat, PlainChat, TemplateChat, check_roles
from llmasos.kernel.models.control import ControlTokens, unused_mark
from llmasos.kernel.models.pieces import PieceTable, StreamingDetokenizer
from llmasos.kernel.models.prefix import take_space_prefix
from llmasos.kernel.models.tokenizer_files import TokenizerFiles, read_tokenizer_files

_MARKUP = ("<", "[", "{", "|")
_REASONING = frozenset({"<think>", "</think>"})
"""Markup that assistants' contents carry and templates look for; it opens no turn."""
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")


class ModelTokenizer:
    """Text to tokens and back for one model. Thread-safe: nothing changes after loading but caches,
    and encoding releases the interpreter's lock."""

    def __init__(
        self, files: TokenizerFiles, *, now: Callable[[], datetime] = datetime.now
    ) -> None:
        """`now` is asked only by chat templates that write the date."""
        self._files = files
        self._now = now
        self._backend = parse_backend(files.tokenizer_json, files.name)
        self._lock = threading.Lock()
        self._grammar_tokenizer: Any = None
        self._bos_ids = _bos_ids(self._backend, files)
        special = _special_tokens(self._backend, files)
        self._control = ControlTokens(special | _template_markup(self._backend, files))
        self._pieces = PieceTable(self._backend, hidden=special)
        _read_controls_as_text(self._backend, self._control, files)
        self._prefix = take_space_prefix(self._backend)

    @classmethod
    def load(cls, folder: Path, *, now: Callable[[], datetime] = datetime.now) -> ModelTokenizer:
        """Read the tokenizer of a stored model; raises `ModelCorrupt` if it cannot be read."""
        return cls(read_tokenizer_files(folder), now=now)

    @property
    def vocab_size(self) -> int:
        """Logits the model gives; a few ids at the end may stand for no token."""
        return self._files.vocab_size or self._backend.get_vocab_size()

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a turn or a text: the model's own list, what its template writes after
        an assistant's turn, and the control tokens that every model family means by an end."""
        after = (token for _, token in self._control.split(self._chat.after_reply))
        turn_end = next((token for token in after if token is not None), None)
        named = [self._files.specials.get("eos_token", ""), *_ENDS]
        ends = {turn_end, *map(self._backend.token_to_id, named)} & self._control.ids
        return self._files.stop_ids.union(token for token in ends if token is not None)

    @property
    def bos_ids(self) -> tuple[int, ...]:
        """What an empty context must begin with; `render_chat` writes it itself where needed."""
        return self._bos_ids

    @property
    def chat_stop_strings(self) -> tuple[str, ...]:
        """Texts that end a reply of a model without a chat template; else none."""
        return self._chat.stop_strings

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of a text, adding none. With `special`, control tokens spelt out in the text are
        recognised; without, they are ordinary characters. Unpaired surrogates become U+FFFD."""
        text = _well_formed(text)
        if not special:
            return self._encode_plain(text)
        token_ids: list[int] = []
        for run, control in self._control.split(text):
            token_ids += self._encode_plain(run)
            if control is not None:
                token_ids.append(control)
        return token_ids

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Text of some tokens; control tokens are left out unless `special`."""
        return self._pieces.decode(token_ids, special=special)

    def detokenizer(self) -> StreamingDetokenizer:
        """A fresh decoder for one generation."""
        return StreamingDetokenizer(self._pieces)

    def render_chat(self, messages: Sequence[Message], *, reply: bool) -> list[int]:
        """The whole conversation as tokens; with `reply`, up to where the assistant speaks next.

        Control tokens come from the template alone: one spelt out in a message's content is broken
        up before the template sees it and encoded as ordinary characters. Where no content spells
        one, the tokens are those of transformers' `apply_chat_template`. Raises `InvalidArguments`
        for an unknown role and for a conversation that the template refuses.
        """
        check_roles(messages)
        contents = [_well_formed(message.content) for message in messages]
        mark = unused_mark([*contents, self._files.chat_template or ""])
        safe = [
            replace(message, content=self._control.defuse(content, mark))
            for message, content in zip(messages, contents, strict=True)
        ]
        pieces = self._chat.render(safe, reply=reply)
        token_ids: list[int] = [] if self._files.chat_template else [*self._bos_ids]
        for index, piece in enumerate(pieces):
            token_ids += self._encode_rendered(piece, mark, is_first=index == 0)
        return token_ids

    def grammar_tokenizer(self) -> Any:
        """The `llguidance.LLTokenizer` of this vocabulary, made once (about half a second)."""
        with self._lock:
            if self._grammar_tokenizer is None:
                self._grammar_tokenizer = self._make_grammar_tokenizer()
            return self._grammar_tokenizer

    def _make_grammar_tokenizer(self) -> Any:
        from llguidance import LLTokenizer

        stops = sorted(self.eos_ids)
        return LLTokenizer(
            self._files.tokenizer_json,
            n_vocab=self.vocab_size,
            eos_token=stops or None,
        )

    def _encode_rendered(self, text: str, mark: str, *, is_first: bool) -> list[int]:
        token_ids: list[int] = []
        for run, control in self._control.split(text):
            run = self._prefix.apply(run.replace(mark, ""), is_first=is_first and not token_ids)
            token_ids += self._encode_plain(run)
            if control is not None:
                token_ids.append(control)
        return token_ids

    def _encode_plain(self, text: str) -> list[int]:
        """Tokens of ordinary text; a control token that the vocabulary lists among its words and
        so comes out after all is encoded in two halves, as often as it takes."""
        if not text:
            return []
        token_ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if self._control.ids.isdisjoint(token_ids):
            return token_ids
        return [part for token_id in token_ids for part in self._without_control(token_id)]

    def _without_control(self, token_id: int) -> list[int]:
        if token_id not in self._control.ids:
            return [token_id]
        spelling = self._pieces.piece(token_id).decode("utf-8", "replace")
        middle = len(spelling) // 2
        return self._encode_plain(spelling[:middle]) + self._encode_plain(spelling[middle:])

    @cached_property
    def _chat(self) -> Chat:
        if not self._files.chat_template:
            return PlainChat()
        return TemplateChat(self._files.chat_template, self._files.specials, now=self._now)


def parse_backend(tokenizer_json: str, name: str) -> Tokenizer:
    """The library's tokenizer of a `tokenizer.json`; raises `ModelCorrupt`."""
    try:
        backend = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises nothing finer
        raise ModelCorrupt(f"The tokenizer of {name} cannot be read: {error}.") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _bos_ids(backend: Tokenizer, files: TokenizerFiles) -> tuple[int, ...]:
    """What the tokenizer's own post-processing puts first, unless the settings overrule it."""
    if files.add_bos is False:
        return ()
    probe = backend.encode("a", add_special_tokens=True)
    marked = zip(probe.ids, probe.special_tokens_mask, strict=True)
    leading = tuple(token_id for token_id, _ in takewhile(lambda pair: pair[1], marked))
    named = backend.token_to_id(files.specials.get("bos_token", ""))
    return (named,) if not leading and files.add_bos and named is not None else leading


def _special_tokens(backend: Tokenizer, files: TokenizerFiles) -> dict[int, AddedToken]:
    """Tokens that are no text: marked special, or named as begin, end, padding and the like."""
    added = backend.get_added_tokens_decoder()
    special = {i: token for i, token in added.items() if token.special}
    for literal in files.specials.values():
        token_id = backend.token_to_id(literal)
        if token_id is not None and token_id not in special and len(literal) > 1:
            special[token_id] = added.get(token_id) or AddedToken(literal, normalized=False)
    return _embedded(special, files)


def _template_markup(backend: Tokenizer, files: TokenizerFiles) -> dict[int, AddedToken]:
    """Tokens that count as text but that the chat template structures a conversation with."""
    template = files.chat_template or ""
    added = backend.get_added_tokens_decoder()
    return _embedded(
        {
            token_id: token
            for token_id, token in added.items()
            if token.content in template
            and token.content.startswith(_MARKUP)
            and token.content not in _REASONING
        },
        files,
    )


def _embedded(tokens: Mapping[int, AddedToken], files: TokenizerFiles) -> dict[int, AddedToken]:
    """Those that the model has an embedding for; the others must never be produced."""
    size = files.vocab_size
    return {i: token for i, token in tokens.items() if size is None or i < size}


def _read_controls_as_text(
    backend: Tokenizer, control: ControlTokens, files: TokenizerFiles
) -> None:
    """Make `backend` take control tokens, and tokens without an embedding, for ordinary text."""
    added = backend.get_added_tokens_decoder()
    size = files.vocab_size
    missing = {i for i in added if size is not None and i >= size}
    open_ids = [i for i in control.ids | missing if i not in added or not added[i].special]
    literals = filter(None, map(backend.id_to_token, open_ids))
    special = [AddedToken(literal, normalized=False, special=True) for literal in literals]
    backend.add_special_tokens(special)
    backend.encode_special_tokens = True


def _well_formed(text: str) -> str:
    """The text with surrogate pairs joined and unpaired ones replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text

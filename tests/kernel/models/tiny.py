"""Tokenizers and models small enough to make in a test, of every kind that is out there."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from llmasos.kernel.models import ModelTokenizer

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Every role as it is, nothing trimmed."""

STRICT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}{{ raise_exception('no such role') }}"
    "{% endif %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)
"""As Gemma's: users and assistants only, in turn, contents trimmed."""

TEXT = [
    "The capital of France is Paris. the quick brown fox jumps over the lazy dog 0123456789",
    "user assistant system tool\nYou are a helpful assistant named Tiny.\n\nHello there, world!",
    "<b>markup</b> [INST] and | pipes | don't can't we'll  two spaces\ttab ünïcödé 日本語 🙂",
] * 3


def byte_level(*specials: str, markup: tuple[str, ...] = ()) -> Tokenizer:
    """GPT-2's kind: bytes spelt as characters."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in markup])
    return backend


def byte_fallback(*specials: str) -> Tokenizer:
    """Gemma's kind: spaces as lower blocks, bytes where a character has no token."""
    words = ["▁", "▁▁", *"abcdefghijklmnopqrstuvwxyz<>|_!,.é日本", "th", "▁th", "▁the", "he"]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e"), ("h", "e"), ("▁", "▁")]
    backend = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token=None))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    if "<bos>" in vocab:
        bos = ("<bos>", vocab["<bos>"])
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[bos]
        )
    return backend


def unigram(*specials: str, scheme: str = "first") -> Tokenizer:
    """T5's and the old Llama's kind: a space in front of the text, control tokens among words."""
    letters = [(char, -5.0) for char in "▁abcdefghijklmnopqrstuvwxyz<>/|_ "]
    pieces = [("<unk>", -20.0), *((s, 0.0) for s in specials), ("▁hello", -1.0), ("hello", -2.0)]
    backend = Tokenizer(models.Unigram([*pieces, *letters], unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    return backend


def wordpiece() -> Tokenizer:
    """BERT's kind, for sentence encoders."""
    words = ["[UNK]", "[CLS]", "[SEP]", "hello", "world", "##s", "##ing", "read", "!"]
    backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return backend


def digits_apart(backend: Tokenizer) -> Tokenizer:
    """The same, with text split as Qwen splits it."""
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend


def write_tokenizer(
    folder: Path,
    backend: Tokenizer,
    *,
    template: str | None = None,
    settings: dict[str, object] | None = None,
    config: dict[str, object] | None = None,
) -> Path:
    """A folder with the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings or {}))
    size = {"vocab_size": backend.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps({**size, **(config or {})}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def load(folder: Path, backend: Tokenizer, **files: object) -> ModelTokenizer:
    """The same, opened."""
    return ModelTokenizer.load(write_tokenizer(folder, backend, **files))  # type: ignore[arg-type]

"""What a file's bytes are: text in which encoding, or a binary of which kind.

Unicode is recognised by its byte-order mark or by decoding; older encodings are guessed from how
common the characters would be, and a guess is said to be one. Looks at a sample, never at all.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass

SAMPLE_BYTES = 65_536

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "utf-32-le"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32", "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16", "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16", "utf-16-be"),
)
"""Byte-order marks, the codec that takes the mark too, and the one for what follows it."""
_MAGIC = (
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a sound, video or WebP file"),
    (b"PK\x03\x04", "a ZIP archive or Office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a Windows program"),
    (b"GGUF", "a model file"),
)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\b\x1b"))
_MAX_CONTROL_SHARE = 0.02
_MAX_BROKEN_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Encoding:
    """A Python codec's name, and whether it is only a guess."""

    codec: str
    is_guess: bool = False


def detect(sample: bytes) -> Encoding | None:
    """The encoding of a text that begins so; None when it is not text."""
    for mark, codec, _ in _MARKS:
        if sample.startswith(mark):
            return Encoding(codec)
    if _is_magic(sample):
        return None
    if b"\0" in sample:
        return _utf16_without_mark(sample)
    num_controls = len(sample) - len(sample.translate(None, _CONTROLS))
    if num_controls > _MAX_CONTROL_SHARE * len(sample):
        return None
    if _is_utf8(sample):
        return Encoding("utf-8")
    return Encoding(_guess(sample), is_guess=True)


def split_mark(data: bytes) -> tuple[bytes, str]:
    """The byte-order mark that a text begins with and the codec of the rest; both empty if none."""
    for mark, _, codec in _MARKS:
        if data.startswith(mark):
            return mark, codec
    return b"", ""


def binary_kind(sample: bytes) -> str:
    """What a file that is not text seems to be, with its article."""
    return next((kind for magic, kind in _MAGIC if sample.startswith(magic)), "a binary file")


def _is_magic(sample: bytes) -> bool:
    if not any(sample.startswith(magic) for magic, _ in _MAGIC):
        return False
    return not sample.isascii() or b"\0" in sample or sample.startswith(b"%PDF")


def _utf16_without_mark(sample: bytes) -> Encoding | None:
    """UTF-16 in a mostly Latin script: every other byte is zero and no other is."""
    low, high = sample[0::2], sample[1::2]
    for codec, full, empty in (("utf-16-le", low, high), ("utf-16-be", high, low)):
        if not full.count(0) and empty.count(0) > 0.7 * len(empty):
            return Encoding(codec, is_guess=True)
    return None


def _is_utf8(sample: bytes) -> bool:
    """Whether it decodes, but for few damaged places and a last character cut by the sample."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(sample, final=len(sample) < SAMPLE_BYTES)
    num_broken = text.count("\ufffd") - sample.count("\ufffd".encode())
    num_wide = len(text) - len(text.encode("ascii", "ignore")) if num_broken else 0
    return num_broken <= _MAX_BROKEN_SHARE * num_wide


def _guess(sample: bytes) -> str:
    return next((codec for codec, fits in _LEGACY if fits(_decoded(sample, codec))), "cp1252")


def _decoded(sample: bytes, codec: str) -> str:
    """The sample's text, or nothing when it does not decode (its cut end apart)."""
    try:
        return codecs.getincrementaldecoder(codec)("strict").decode(sample)
    except UnicodeDecodeError:
        return ""


def _in_rows(codec: str, first: int, last: int) -> Callable[[str], bool]:
    """Whether a character's lead byte is where `codec` keeps the common ones."""

    def is_common(char: str) -> bool:
        encoded = char.encode(codec, "ignore")
        return bool(encoded) and first <= encoded[0] <= last

    return is_common


def _is_kana(char: str) -> bool:
    return "\u3040" <= char <= "\u30ff"


def _is_hangul(char: str) -> bool:
    return "\uac00" <= char <= "\ud7a3" or char in "\u3000\u3001\u3002"


def _is_cyrillic(char: str) -> bool:
    return "\u0410" <= char <= "\u044f" or char in "\u0401\u0451\u2014\u00ab\u00bb\u2116"


def _mostly(is_common: Callable[[str], bool], share: float) -> Callable[[str], bool]:
    """Whether that share of a text's non-ASCII characters is common in the script."""

    def fits(text: str) -> bool:
        wide = [char for char in text if char > "\x7f"]
        return bool(wide) and sum(map(is_common, wide)) >= share * len(wide)

    return fits


def _is_russian(text: str) -> bool:
    """Single bytes fit any text with accents: here hardly any letter may be a Latin one."""
    letters = [char for char in text if char.isalpha()]
    return sum(map(_is_cyrillic, letters)) > 0.6 * len(letters)


_LEGACY: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("shift_jis", _mostly(_is_kana, 0.3)),
    ("euc_jp", _mostly(_is_kana, 0.3)),
    ("euc_kr", _mostly(_is_hangul, 0.9)),
    ("gb18030", _mostly(_in_rows("gb2312", 0xA1, 0xD7), 0.85)),
    ("cp1251", _is_russian),
    ("big5", _mostly(_in_rows("big5", 0xA1, 0xC6), 0.9)),
)
"""Codecs in the order they are tried, each with what a text in it looks like."""

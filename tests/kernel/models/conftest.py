from __future__ import annotations

from pathlib import Path

import pytest

from llmasos.kernel.models import ModelStore, ModelTokenizer
from llmasos.kernel.models.worker import InlineWorker
from tests.kernel.models import artefacts, tiny

CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="session")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    """A byte-level tokenizer with a ChatML template."""
    return tiny.load(
        tmp_path_factory.mktemp("chatml"),
        tiny.byte_level(*CHATML_SPECIALS),
        template=tiny.CHATML,
        settings={"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"},
    )


@pytest.fixture(scope="session")
def gemma_like(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    """A byte-fallback tokenizer whose template knows users and assistants only."""
    return tiny.load(
        tmp_path_factory.mktemp("gemma"),
        tiny.byte_fallback("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        template=tiny.STRICT,
        settings={"eos_token": "<eos>", "bos_token": {"content": "<bos>"}},
    )


@pytest.fixture(scope="session")
def old_llama_like(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    """A Unigram tokenizer that puts a space in front, its control tokens among its words."""
    return tiny.load(
        tmp_path_factory.mktemp("unigram"),
        tiny.unigram("<s>", "</s>"),
        settings={"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True},
    )


@pytest.fixture(params=["chatml", "gemma_like"])
def exact(request: pytest.FixtureRequest) -> ModelTokenizer:
    """Each tokenizer that can spell any text."""
    tokenizer: ModelTokenizer = request.getfixturevalue(request.param)
    return tokenizer


@pytest.fixture(params=["chatml", "gemma_like", "old_llama_like"])
def any_kind(request: pytest.FixtureRequest) -> ModelTokenizer:
    """Each kind of tokenizer."""
    tokenizer: ModelTokenizer = request.getfixturevalue(request.param)
    return tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a tiny Llama. Not to be written to."""
    return artefacts.llama_folder(tmp_path_factory.mktemp("source") / "Tiny-Llama")


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with a tiny quantised Llama. Not to be written to."""
    return artefacts.gguf_file(tmp_path_factory.mktemp("source") / "Tiny.Q4_1.gguf")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """An empty store that converts in this process."""
    return ModelStore(tmp_path / "models", worker=InlineWorker())

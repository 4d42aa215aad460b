"""Adapters in the model store, and the shelf that says which of them fit a model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmasos.kernel.errors import ConfigError, ModelCorrupt, ModelNotFound
from llmasos.kernel.models import ModelInfo, ModelKind, ModelStore
from llmasos.kernel.models.adapter_files import fits, shipped_adapters, shipped_info
from llmasos.kernel.models.adapter_shelf import ModelAdapters
from llmasos.kernel.models.lora import fingerprint_of, model_shapes, read_lora
from llmasos.kernel.models.worker import InlineWorker
from tests.kernel.adapters import write_adapter
from tests.kernel.models import artefacts


@pytest.fixture
def stocked(store: ModelStore, llama: Path) -> ModelStore:
    """A store with the model `tiny`."""
    store.pull(str(llama), name="tiny")
    return store


@pytest.fixture
def adapter(tmp_path: Path, llama: Path) -> Path:
    return write_adapter(tmp_path / "tools", llama)


def test_an_adapter_is_a_model_of_the_store_that_knows_its_base(
    stocked: ModelStore, adapter: Path
) -> None:
    info = stocked.add_adapter(adapter, name="tools", base="tiny")
    base = stocked.info("tiny")
    assert (info.kind, info.base, info.base_fingerprint) == (
        ModelKind.ADAPTER,
        "tiny",
        base.fingerprint,
    )
    assert info.architecture == "LoRA, rank 4"
    assert info.fingerprint == fingerprint_of(adapter)
    assert [each.name for each in stocked.list()] == ["tiny", "tools"]
    stocked.verify("tools")
    assert stocked.open("tools").folder == stocked.folder / "tools"
    stocked.remove("tools")
    assert [each.name for each in stocked.list()] == ["tiny"]


def test_pull_takes_a_folder_with_an_adapter_for_one(stocked: ModelStore, adapter: Path) -> None:
    info = stocked.pull(str(adapter), base="tiny")
    assert (info.name, info.kind) == ("tools", ModelKind.ADAPTER)
    assert stocked.pull(str(adapter)) == info


def test_pull_finds_the_base_that_the_adapter_names(
    stocked: ModelStore, tmp_path: Path, llama: Path
) -> None:
    named = write_adapter(
        tmp_path / "a", llama, base_model_name_or_path=str(stocked.folder / "tiny")
    )
    assert stocked.pull(str(named)).base == "tiny"
    recipe = write_adapter(tmp_path / "b", llama)
    (recipe / "recipe.json").write_text(json.dumps({"base": "tiny", "summary": "For tools."}))
    info = stocked.pull(str(recipe))
    assert (info.base, info.notes) == ("tiny", ("For tools.",))
    nameless = write_adapter(tmp_path / "c", llama)
    with pytest.raises(ConfigError, match="name it with --base"):
        stocked.pull(str(nameless))
    with pytest.raises(ConfigError, match="only an adapter has a base"):
        stocked.pull(str(llama), name="again", base="tiny")


def test_a_name_that_is_taken_is_not_overwritten_unless_by_an_adapters_new_version(
    stocked: ModelStore, adapter: Path, tmp_path: Path, llama: Path
) -> None:
    first = stocked.add_adapter(adapter, name="tools", base="tiny")
    newer = write_adapter(tmp_path / "newer", llama, seed=1)
    with pytest.raises(ConfigError, match="in the store already"):
        stocked.add_adapter(newer, name="tools", base="tiny")
    second = stocked.add_adapter(newer, name="tools", base="tiny", replace=True)
    assert second.fingerprint != first.fingerprint
    with pytest.raises(ConfigError, match="in the store already"):
        stocked.add_adapter(adapter, name="tiny", base="tiny", replace=True)
    with pytest.raises(ConfigError, match="bare model"):
        stocked.add_adapter(adapter, name="none", base="tiny")
    with pytest.raises(ModelNotFound):
        stocked.add_adapter(adapter, name="x", base="nothing")
    assert [each.name for each in stocked.list()] == ["tiny", "tools"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"peft_type": "IA3"}, "only LoRA"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"something_of_tomorrow": 1}, "something_of_tomorrow"),
        ({"r": 0}, "says no good r"),
        ({"lora_alpha": "much"}, "says no good lora_alpha"),
        ({"lora_alpha": float("nan")}, "says no good"),
        ({"rank_pattern": {"q_proj": 7}}, "not rank 7"),
        ({"fan_in_fan_out": True}, "the model's"),
    ],
)
def test_what_is_no_plain_lora_is_refused_in_one_sentence(
    change: dict[str, Any], problem: str, stocked: ModelStore, tmp_path: Path, llama: Path
) -> None:
    folder = write_adapter(tmp_path / "odd", llama)
    config = json.loads((folder / "adapter_config.json").read_text()) | change
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=problem) as caught:
        stocked.add_adapter(folder, name="odd", base="tiny")
    assert "\n" not in str(caught.value)
    assert [each.name for each in stocked.list()] == ["tiny"]


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"base_model.model.model.layers.9.mlp.up_proj": ((4, 32), (64, 4))}, "no module"),
        ({"base_model.model.model.layers.0.mlp.up_proj": ((4, 30), (64, 4))}, "64 x 30"),
        ({"base_model.model.model.layers.0.mlp.up_proj": ((4, 32), (60, 4))}, "60 x 32"),
        ({"base_model.model.model.layers.0.mlp.up_proj": ((5, 32), (64, 5))}, "not rank 4"),
        ({"base_model.model.lm_head": ((4, 32), (300, 4))}, "head cannot"),
        ({"base_model.model.model.embed_tokens": ((4, 300), None)}, "only one"),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_refused(
    tensors: dict[str, Any], problem: str, stocked: ModelStore, tmp_path: Path, llama: Path
) -> None:
    extra = {}
    for path, (down, up) in tensors.items():
        extra[f"{path}.lora_A.weight"] = torch.zeros(down)
        if up is not None:
            extra[f"{path}.lora_B.weight"] = torch.zeros(up)
    folder = write_adapter(tmp_path / "odd", llama, tensors=extra)
    with pytest.raises(ConfigError, match=problem):
        stocked.add_adapter(folder, name="odd", base="tiny")


def test_other_tensors_missing_files_and_torn_ones_are_refused(
    stocked: ModelStore, tmp_path: Path, llama: Path
) -> None:
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"
    folder = write_adapter(tmp_path / "odd", llama, tensors={name: torch.zeros(4)})
    with pytest.raises(ConfigError, match="neither A nor B"):
        read_lora(folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ConfigError, match="truncated"):
        read_lora(folder)
    weights.unlink()
    with pytest.raises(ConfigError, match="has no adapter_model"):
        stocked.add_adapter(folder, name="odd", base="tiny")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_lora(tmp_path / "nowhere")


def test_scales_are_alpha_over_r_or_over_its_root(tmp_path: Path, llama: Path) -> None:
    plain = read_lora(write_adapter(tmp_path / "a", llama, lora_alpha=12))
    assert {module.scale for module in plain.modules} == {3.0}
    root = read_lora(write_adapter(tmp_path / "b", llama, lora_alpha=12, use_rslora=True))
    assert {module.scale for module in root.modules} == {6.0}
    mixed = read_lora(
        write_adapter(
            tmp_path / "c", llama, ranks={"q_proj": 2}, alpha_pattern={"layers.0.mlp.up_proj": 40}
        )
    )
    scales = {module.path: (module.rank, module.scale) for module in mixed.modules}
    assert scales["model.layers.1.self_attn.q_proj"] == (2, 4.0)
    assert scales["model.layers.0.mlp.up_proj"] == (4, 10.0)
    assert scales["model.layers.1.mlp.up_proj"] == (4, 2.0)
    assert mixed.ranks == "2 to 4"
    mixed.check(model_shapes(llama))


# ---------------------------------------------------------------- the shelf


def test_the_shelf_offers_what_fits_the_model_and_says_whose_the_others_are(
    stocked: ModelStore, adapter: Path, tmp_path: Path
) -> None:
    other = artefacts.llama_folder(tmp_path / "other", tied=False)
    stocked.pull(str(other), name="other")
    stocked.add_adapter(adapter, name="tools", base="tiny")
    stocked.add_adapter(write_adapter(tmp_path / "x", other), name="style", base="other")
    shelf = ModelAdapters(stocked, stocked.info("tiny"), shipped=tmp_path / "none")
    assert [each.name for each in shelf.all()] == ["tools"]
    found = shelf.find("tools")
    assert found is not None
    assert found.folder == stocked.folder / "tools"
    assert shelf.find("nothing") is None
    with pytest.raises(ConfigError, match="style is for other, and this kernel's model is tiny"):
        shelf.find("style")


def test_the_shelf_notices_a_new_version_and_a_damaged_one(
    stocked: ModelStore, adapter: Path, tmp_path: Path, llama: Path
) -> None:
    stocked.add_adapter(adapter, name="tools", base="tiny")
    shelf = ModelAdapters(stocked, stocked.info("tiny"), shipped=tmp_path / "none")
    first = shelf.find("tools")
    newer = write_adapter(tmp_path / "newer", llama, seed=1)
    stocked.add_adapter(newer, name="tools", base="tiny", replace=True)
    second = shelf.find("tools")
    assert first is not None
    assert second is not None
    assert first.fingerprint != second.fingerprint
    weights = stocked.folder / "tools" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    fresh = ModelAdapters(stocked, stocked.info("tiny"), shipped=tmp_path / "none")
    with pytest.raises(ModelCorrupt, match="recorded hash"):
        fresh.find("tools")
    assert fresh.all() == []


def shipped_in(folder: Path, adapter: Path, **recipe: str) -> Path:
    shutil.copytree(adapter, folder / adapter.name)
    (folder / adapter.name / "recipe.json").write_text(json.dumps(recipe))
    return folder


def test_a_shipped_adapter_is_found_by_name_unless_the_store_has_one_of_that_name(
    stocked: ModelStore, adapter: Path, tmp_path: Path, llama: Path
) -> None:
    base = stocked.info("tiny")
    shipped = shipped_in(
        tmp_path / "shipped", adapter, base="tiny", base_fingerprint=base.fingerprint, summary="S."
    )
    shelf = ModelAdapters(stocked, base, shipped=shipped)
    assert [(each.name, each.summary) for each in shelf.all()] == [("tools", "S.")]
    found = shelf.find("tools")
    assert found is not None
    assert found.fingerprint == fingerprint_of(adapter)
    own = write_adapter(tmp_path / "own", llama, seed=1)
    info = stocked.add_adapter(own, name="tools", base="tiny")
    found = shelf.find("tools")
    assert found is not None
    assert found.fingerprint == info.fingerprint


def test_an_adapter_fits_its_bases_package_whatever_versions_have_converted_it() -> None:
    model = ModelInfo(
        "m", ModelKind.DECODER, "", 1, "", 1, 1, 1, "pypi:model==1", "", "as converted here", 0.0
    )
    adapter = replace(model, kind=ModelKind.ADAPTER, base_fingerprint="as converted there")
    assert fits(replace(adapter, base_source="pypi:model==1"), model)
    assert not fits(replace(adapter, base_source="pypi:model==2"), model)
    assert not fits(replace(adapter, base_source="folder:/m"), replace(model, source="folder:/m"))
    assert fits(replace(adapter, base_fingerprint=model.fingerprint), model)


def test_every_adapter_that_is_shipped_can_be_read() -> None:
    for name, folder in shipped_adapters().items():
        info = shipped_info(folder)
        assert (info.name, info.kind) == (name, ModelKind.ADAPTER)
        assert info.base
        assert info.base_source.startswith("pypi:")


def test_nothing_but_the_adapter_is_left_in_the_stores_folder(
    stocked: ModelStore, adapter: Path, tmp_path: Path
) -> None:
    full = ModelStore(stocked.folder, worker=InlineWorker())
    (adapter / "README.md").mkdir()  # not a file: it is left out
    assert full.add_adapter(adapter, name="tools", base="tiny").problem == ""
    left = {path.name for path in stocked.folder.iterdir() if path.name != ".locks"}
    assert left - {".downloads"} == {"tiny", "tools"}

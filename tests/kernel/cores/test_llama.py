"""The fast path's judgement: what it takes on, what it leaves to the generic path, and its parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from llmasos.kernel.cores.linear import PackedLinear, PlainLinear, pack
from llmasos.kernel.cores.llama_config import LlamaSpec, obstacle_to
from llmasos.kernel.cores.load import Checkpoint, choose_dtype
from llmasos.kernel.cores.rope import RopeTable, inverse_frequencies, rotate
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.errors import ConfigError, ModelCorrupt
from tests.kernel.cores.tiny_decoders import FAST, make_model, save

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kinds = ("llama", "llama, tied", "mistral", "qwen2", "qwen3")
    return {kind: save(make_model(kind), tmp_path_factory.mktemp("fast")) for kind in kinds}


def edited(
    folder: Path,
    target: Path,
    *,
    without: tuple[str, ...] = (),
    tensors: dict[str, torch.Tensor] | None = None,
    **changes: Any,
) -> Checkpoint:
    """A copy with other config keys or more tensors."""
    config = json.loads((folder / "config.json").read_text()) | changes
    for key in without:
        del config[key]
    (target / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors") | (tensors or {})
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return Checkpoint(target)


# ---------------------------------------------------------------- what it takes on


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}),
        ("llama", {"model_type": "smollm3"}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"sliding_window": 24}),
        ("llama", {"layer_types": ["full_attention"] * 3}),
        ("llama", {"is_causal": False}),
        ("llama", {"a_key_of_tomorrow": 1}),
        ("llama", {"partial_rotary_factor": 0.5}),
        ("llama", {"rope_interleaved": True}),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}),
        ("llama", {"num_attention_heads": 3, "head_dim": None}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}),
        ("llama", {"rope_parameters": {"rope_type": "default"}}),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        ("mistral", {"layer_types": ["full_attention"] * 3}),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention", "full_attention"]}),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}),
        ("qwen2", {"layer_types": ["full_attention"]}),
        ("qwen3", {"layer_types": ["sliding_attention"] * 3, "use_sliding_window": True}
         | {"sliding_window": None}),
    ],
)  # fmt: skip
def test_a_config_that_says_anything_else_is_left_to_the_generic_path(
    kind: str, change: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    assert obstacle_to(edited(folders[kind], tmp_path, **change)) is not None


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("llama", "hidden_act"),
        ("llama", "rms_norm_eps"),
        ("llama", "max_position_embeddings"),
        ("llama", "architectures"),
        ("llama", "rope_parameters"),
        ("mistral", "sliding_window"),
        ("mistral", "num_key_value_heads"),
        ("qwen2", "num_key_value_heads"),
        ("qwen3", "head_dim"),
    ],
)
def test_a_key_left_out_is_not_guessed(
    kind: str, key: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    assert obstacle_to(edited(folders[kind], tmp_path, without=(key,))) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": 2, "head_dim": None},
        {"rope_interleaved": False, "is_llama_config": True, "unk_token_id": 0},
        {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": None},
        {"attention_bias": None, "pretraining_tp": 2, "torch_dtype": "float16"},
    ],
)
def test_keys_without_effect_and_old_spellings_do_not_matter(
    change: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    assert obstacle_to(edited(folders["llama"], tmp_path, **change)) is None


def test_an_unknown_tensor_is_left_to_the_generic_path(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    tensors = {"model.layers.0.self_attn.sinks": torch.zeros(4)}
    found = obstacle_to(edited(folders["llama"], tmp_path, tensors=tensors))
    assert "sinks" in str(found)


def test_old_files_frequencies_and_a_head_saved_though_tied_do_not_matter(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    embedding = load_file(folders["llama, tied"] / "model.safetensors")["model.embed_tokens.weight"]
    tensors = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        "lm_head.weight": embedding.clone(),
    }
    checkpoint = edited(folders["llama, tied"], tmp_path, tensors=tensors)
    assert obstacle_to(checkpoint) is None
    assert not LlamaSpec.read(checkpoint).has_head


def test_a_head_that_contradicts_being_tied_is_left_to_the_generic_path(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    tensors = {"lm_head.weight": torch.zeros(131, 64)}
    found = obstacle_to(edited(folders["llama, tied"], tmp_path, tensors=tensors))
    assert "lm_head" in str(found)


def test_a_tensor_of_the_wrong_shape_is_a_corrupt_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    tensors = {"model.norm.weight": torch.zeros(63)}
    with pytest.raises(ModelCorrupt, match=r"model\.norm\.weight"):
        obstacle_to(edited(folders["llama"], tmp_path, tensors=tensors))


def test_a_tensor_that_is_not_of_floats_is_a_corrupt_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    tensors = {"model.norm.weight": torch.zeros(64, dtype=torch.int8)}
    edited(folders["llama"], tmp_path, tensors=tensors)
    with pytest.raises(ModelCorrupt, match="int8"):
        TorchCore.load(tmp_path, name="m", fingerprint="f", kv_memory_bytes=2**22, threads=1)


def test_asking_for_the_fast_path_where_it_does_not_do_says_why(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    edited(folders["llama"], tmp_path, hidden_act="gelu")
    with pytest.raises(ConfigError, match="gelu"):
        TorchCore.load(tmp_path, name="m", fingerprint="f", path="fast", threads=1)


@pytest.mark.parametrize("kind", FAST)
def test_every_tensor_of_a_model_is_one_that_its_spec_names(kind: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(save(make_model(kind), tmp_path))
    assert obstacle_to(checkpoint) is None
    assert LlamaSpec.read(checkpoint).tensor_shapes().keys() == checkpoint.names


# ---------------------------------------------------------------- rotary embeddings

ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    | {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
]


@pytest.mark.parametrize("parameters", ROPES, ids=lambda rope: rope["rope_type"])
def test_rotation_is_transformers_own_at_near_and_far_positions(parameters: dict[str, Any]) -> None:
    size = {"head_dim": 64, "max_position_embeddings": 131072}
    config = transformers.LlamaConfig(rope_parameters=dict(parameters), **size)
    positions = torch.tensor([0, 1, 77, 8191, 100_000])
    heads = torch.randn(5, 3, 64, generator=torch.Generator().manual_seed(0))
    cos, sin = LlamaRotaryEmbedding(config)(heads, positions[None])
    own, _ = apply_rotary_pos_emb(
        heads.transpose(0, 1)[None], heads.transpose(0, 1)[None], cos, sin
    )
    frequencies = inverse_frequencies({"rope_parameters": parameters} | size, 64)
    table = RopeTable(frequencies, dtype=torch.float32, device=CPU)
    ours = rotate(heads, *table.at(positions))
    torch.testing.assert_close(ours, own[0].transpose(0, 1), rtol=0, atol=2e-6)


def test_a_grown_rope_table_has_the_rows_of_one_made_whole() -> None:
    frequencies = inverse_frequencies({"rope_parameters": ROPES[0]}, 32)
    grown, whole = (RopeTable(frequencies, dtype=torch.float32, device=CPU) for _ in range(2))
    positions = torch.tensor([0, 5, 1023, 1024, 1500, 4999])
    for reach in (3, 1023, 1024, 1030, 2500, 4999):
        grown.at(torch.tensor([reach]))
    whole.at(torch.tensor([9000]))
    assert all(map(torch.equal, grown.at(positions), whole.at(positions)))


# ---------------------------------------------------------------- linear layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_a_packed_linear_computes_what_a_plain_one_does(dtype: torch.dtype, biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 96, generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype) if biased else None
    x = torch.randn(5, 96, generator=generator).to(dtype)
    other = torch.randn(5, 48, generator=generator).to(dtype)
    packed, plain = pack(weight, bias), PlainLinear(weight, bias)
    assert isinstance(packed, PackedLinear)
    tolerance = (
        {"rtol": 2e-2, "atol": 2e-1} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-4}
    )
    product = F.linear(x, weight, bias)
    for linear in (packed, plain):
        torch.testing.assert_close(linear(x), product, **tolerance)
        torch.testing.assert_close(linear.silu(x), F.silu(product), **tolerance)
        torch.testing.assert_close(linear.times(x, other), product * other, **tolerance)
        torch.testing.assert_close(linear.plus(x, other), product + other, **tolerance)


def test_packing_leaves_arguments_and_operands_alone() -> None:
    weight, x, other = torch.randn(8, 4), torch.randn(3, 4), torch.randn(3, 8)
    before = [tensor.clone() for tensor in (weight, x, other)]
    linear = pack(weight)
    linear.plus(x, other)
    linear.times(x, other)
    assert all(map(torch.equal, before, (weight, x, other)))


# ---------------------------------------------------------------- choosing


def test_auto_dtype_is_one_of_the_two_and_names_are_taken_literally() -> None:
    assert choose_dtype("auto", CPU) in (torch.bfloat16, torch.float32)
    assert choose_dtype("bf16", CPU) == torch.bfloat16
    assert choose_dtype("fp32", CPU) == torch.float32

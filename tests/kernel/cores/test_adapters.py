"""Adapters in the cores: peft's logits on every path, and law 6 with several of them in one batch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from llmasos.kernel.core import AdaptingCore, PageId, SequenceSlice, StepPlan
from llmasos.kernel.cores import adapters
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.errors import ConfigError, KernelBug
from llmasos.kernel.models import StoredModel
from tests.kernel.adapters import LLAMA_TARGETS, write_adapter
from tests.kernel.cores.driver import Driver, alone
from tests.kernel.cores.tiny_decoders import GENERIC, make_model, reference, save

CHUNKS = (1, 1, 1, 2, 3, 7, 16, 31, 64, 200)
TOLERANCE = 1e-4
"""What the bare model has against transformers, in fp32."""

REALISTIC = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 3,
    "max_position_embeddings": 1024,
    "vocab_size": 1031,
}

TARGETS: dict[str, tuple[Sequence[str], dict[str, Any]]] = {
    "gpt2": (("c_attn", "c_proj", "c_fc"), {"fan_in_fan_out": True}),
    "phi": (("q_proj", "v_proj", "dense", "fc1", "fc2"), {}),
    "opt": (("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"), {}),
}
"""Modules that architectures name differently."""


def load(folder: Path, **keywords: Any) -> TorchCore:
    settings = {"name": "tiny", "fingerprint": "f", "kv_memory_bytes": 64 * 2**20, "page_size": 16}
    return TorchCore.load(folder, **(settings | {"dtype": "fp32", "threads": 1} | keywords))


def peft_logits(model: Any, folder: Path) -> Callable[[Sequence[int]], torch.Tensor]:
    peft = pytest.importorskip("peft")
    return reference(peft.PeftModel.from_pretrained(model, folder).eval().base_model.model)


def drive(core: TorchCore, adapters: Sequence[str], *, seed: int) -> Driver:
    """Contexts of several lengths with these adapters by turns, all at once."""
    driver = Driver(core, seed=seed, chunks=CHUNKS)
    for index, length in enumerate((5, 33, 100, 120, 60, 17)):
        driver.spawn(length, adapters[index % len(adapters)])
    while driver.step():
        driver.fork_sometimes(30)
    return driver


def assert_peft_parity(model: Any, model_folder: Path, adapter: Path, **keywords: Any) -> None:
    core = load(model_folder, **keywords)
    core.add_adapter("a", adapter)
    driver = drive(core, ("", "a"), seed=1)
    bare = reference(model)
    expected = {"": {}, "a": {}}
    for context in driver.contexts:
        expected[context.adapter][id(context)] = None
    for context in driver.contexts:
        if not context.adapter:
            expected[""][id(context)] = bare(context.tokens)
    adapted = peft_logits(model, adapter)  # changes the model
    for context in driver.contexts:
        if context.adapter:
            expected["a"][id(context)] = adapted(context.tokens)
    for context in driver.contexts:
        own = expected[context.adapter][id(context)][context.inherited :]
        torch.testing.assert_close(context.logits, own, rtol=0, atol=TOLERANCE)
    differing = bare_difference(core, driver)
    assert differing > 100 * TOLERANCE


def bare_difference(core: TorchCore, driver: Driver) -> float:
    """How much the adapter changes: a test that compares equal things proves nothing."""
    context = next(each for each in driver.contexts if each.adapter)
    return float((alone(core, context.tokens) - alone(core, context.tokens, "a")).abs().max())


FAST_KINDS = ("llama", "llama, tied", "llama, biased", "llama, wide heads", "mistral, sliding")
FAST_KINDS += ("qwen2", "qwen3", "qwen3, sliding, biased")


@pytest.mark.parametrize("kind", FAST_KINDS)
def test_the_native_path_gives_pefts_logits_beside_the_bare_models(
    kind: str, tmp_path: Path
) -> None:
    model = make_model(kind)
    folder = save(model, tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter", folder)
    assert_peft_parity(model, folder, adapter, path="fast")


@pytest.mark.parametrize("kind", ["llama, biased", "qwen3, sliding, biased"])
def test_the_torch_path_gives_pefts_logits_beside_the_bare_models(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMASOS_ATTENTION", "torch")
    model = make_model(kind)
    folder = save(model, tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter", folder)
    assert_peft_parity(model, folder, adapter, path="fast")


@pytest.mark.parametrize("kind", ["llama", "qwen3", *(k for k in GENERIC if k != "mixtral")])
def test_the_generic_path_gives_pefts_logits_beside_the_bare_models(
    kind: str, tmp_path: Path
) -> None:
    model = make_model(kind)
    folder = save(model, tmp_path / "model")
    targets, config = TARGETS.get(kind.partition(",")[0], (LLAMA_TARGETS, {}))
    adapter = write_adapter(tmp_path / "adapter", folder, targets=targets, **config)
    assert_peft_parity(model, folder, adapter, path="generic")


@pytest.mark.parametrize(
    "config",
    [
        {"targets": ("q_proj", "v_proj")},
        {"targets": ("up_proj",)},
        {"targets": ("gate_proj", "o_proj")},
        {"targets": ("down_proj", "k_proj"), "r": 1},
        {"r": 3, "lora_alpha": 5, "use_rslora": True},
        {"r": 17, "ranks": {"v_proj": 2, "gate_proj": 5}, "alpha_pattern": {"q_proj": 1}},
        {"r": 64, "strength": 0.1, "dtype": torch.float16},
    ],
)
@pytest.mark.parametrize("path", ["fast", "generic"])
def test_any_rank_scale_and_choice_of_modules_is_pefts(
    path: str, config: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model("llama, tied", hidden_size=72, intermediate_size=100)
    folder = save(model, tmp_path / "model")
    assert_peft_parity(model, folder, write_adapter(tmp_path / "a", folder, **config), path=path)


# ---------------------------------------------------------------- law 6


def with_two(core: TorchCore, folder: Path, into: Path) -> None:
    core.add_adapter("a", write_adapter(into / "a", folder, r=8))
    core.add_adapter("b", write_adapter(into / "b", folder, r=5, seed=1, targets=LLAMA_TARGETS[:5]))


def assert_exact(core: TorchCore, *, seed: int) -> None:
    driver = drive(core, ("a", "", "b"), seed=seed)
    for context in driver.contexts:
        by_itself = alone(core, context.tokens, context.adapter)[context.inherited :]
        assert torch.equal(context.logits, by_itself)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("seed", range(3))
def test_no_logit_bit_depends_on_which_adapters_share_the_batch(
    dtype: str, seed: int, tmp_path: Path
) -> None:
    folder = save(make_model("llama, tied", **REALISTIC), tmp_path / "model")
    core = load(folder, dtype=dtype, threads=2)
    if not core.info.exact:
        pytest.skip("this processor's core does not declare itself exact")
    with_two(core, folder, tmp_path)
    assert_exact(core, seed=seed)


@pytest.mark.parametrize("kind", ["gpt2", "gemma3", "qwen3", "phi"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_generic_core_that_declares_itself_exact_is_with_adapters_too(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    folder = save(make_model(kind), tmp_path / "model")
    core = load(folder, path="generic", dtype=dtype)
    if not core.info.exact:
        pytest.skip("this processor's core does not declare itself exact")
    targets, config = TARGETS.get(kind, (LLAMA_TARGETS, {}))
    for seed, name in enumerate("ab"):
        into = tmp_path / name
        core.add_adapter(name, write_adapter(into, folder, targets=targets, seed=seed, **config))
    assert_exact(core, seed=2)


def test_the_torch_path_over_native_attention_is_exact_with_adapters_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMASOS_ATTENTION", "generic")  # bf16 on it has no products in C
    folder = save(make_model("llama, tied", **REALISTIC), tmp_path / "model")
    core = load(folder, dtype="bf16", threads=2, path="fast")
    assert "in C" not in core.info.description
    if not core.info.exact:
        pytest.skip("this processor's core does not declare itself exact")
    with_two(core, folder, tmp_path)
    assert_exact(core, seed=3)


def test_the_bare_models_rows_are_what_they_are_without_any_adapter(tmp_path: Path) -> None:
    folder = save(make_model("llama, tied", **REALISTIC), tmp_path / "model")
    adapting, plain = (load(folder, dtype="bf16", threads=2) for _ in range(2))
    with_two(adapting, folder, tmp_path)
    driver = drive(adapting, ("", "a", "b"), seed=4)
    for context in driver.contexts:
        if not context.adapter:
            expected = alone(plain, context.tokens)[context.inherited :]
            assert torch.equal(context.logits, expected)


def test_no_bit_depends_on_the_number_of_threads(tmp_path: Path) -> None:
    folder = save(make_model("llama, tied", **REALISTIC), tmp_path / "model")
    cores = [load(folder, dtype="bf16", threads=threads) for threads in (1, 2)]
    for core in cores:
        with_two(core, folder, tmp_path)
    tokens = [(31 * index) % 1031 for index in range(300)]
    one, two = (alone(core, tokens, "a") for core in cores)
    assert torch.equal(one, two)


@pytest.mark.parametrize("path", ["avx512", "avx2", "generic"])
def test_every_instruction_set_gives_about_the_same_and_is_exact(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(make_model("llama, tied", hidden_size=72), tmp_path / "model")
    best = load(folder)
    monkeypatch.setenv("LLMASOS_ATTENTION", path)
    try:
        core = load(folder)
    except ConfigError:
        pytest.skip(f"{path} does not run here")
    for each in (best, core):
        with_two(each, folder, tmp_path)
    tokens = [(7 * index) % 131 for index in range(90)]
    for name in ("a", "b"):
        torch.testing.assert_close(
            alone(core, tokens, name), alone(best, tokens, name), rtol=0, atol=TOLERANCE
        )
    assert_exact(core, seed=6)


# ---------------------------------------------------------------- what a core holds


def test_an_adapter_that_had_to_make_room_is_laid_out_again_though_its_files_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(make_model("llama, tied"), tmp_path / "model")
    monkeypatch.setattr(adapters.AdapterCache.__init__, "__kwdefaults__", {"max_bytes": 1})
    core = load(folder)
    assert isinstance(core, AdaptingCore)
    with_two(core, folder, tmp_path)
    tokens = [(7 * index) % 131 for index in range(40)]
    first = {name: alone(core, tokens, name) for name in ("a", "b")}
    for name in first:
        shutil.rmtree(tmp_path / name)
    for name in ("a", "b", "a"):
        assert torch.equal(alone(core, tokens, name), first[name])


def test_what_does_not_fit_the_model_is_refused_when_it_is_made_known(tmp_path: Path) -> None:
    folder = save(make_model("llama, tied"), tmp_path / "model")
    other = save(make_model("llama, tied", hidden_size=72), tmp_path / "other")
    deeper = save(make_model("llama, tied", num_hidden_layers=4), tmp_path / "deeper")
    core = load(folder)
    with pytest.raises(ConfigError, match="does not fit this model's"):
        core.add_adapter("a", write_adapter(tmp_path / "a", other))
    with pytest.raises(ConfigError, match="cannot be done here"):
        core.add_adapter("a", write_adapter(tmp_path / "b", deeper))
    with pytest.raises(ConfigError, match="cannot be read"):
        core.add_adapter("a", tmp_path / "nowhere")
    with pytest.raises(KernelBug, match="nobody made known"):
        core.logits(StepPlan((SequenceSlice((1,), 0, (PageId(0),), adapter="a"),)))


def test_experts_that_see_only_some_rows_cannot_be_adapted(tmp_path: Path) -> None:
    folder = save(make_model("mixtral"), tmp_path / "model")
    core = load(folder)
    adapter = write_adapter(tmp_path / "a", folder, targets=("q_proj", "v_proj"))
    core.add_adapter("a", adapter)
    tokens = [(7 * index) % 131 for index in range(20)]
    assert not torch.equal(alone(core, tokens), alone(core, tokens, "a"))


@pytest.mark.model
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["bf16", "int8", "fp32"])
def test_no_logit_bit_of_smollm2_depends_on_which_adapters_share_the_batch(
    dtype: str, tmp_path: Path, real_model: Callable[[str], StoredModel]
) -> None:
    folder = real_model("smollm2").folder
    core = load(folder, dtype=dtype, threads=2, kv_memory_bytes=256 * 2**20)
    if not core.info.exact:
        pytest.skip("this processor's core does not declare itself exact")
    for seed, name in enumerate("ab"):
        core.add_adapter(name, write_adapter(tmp_path / name, folder, seed=seed, strength=0.05))
    for seed in range(8):
        assert_exact(core, seed=seed)

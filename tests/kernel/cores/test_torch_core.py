"""`TorchCore`: plans in, results out, and what it refuses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmasos.kernel.abi import Sampling
from llmasos.kernel.core import (
    PageId,
    SampleSpec,
    SequenceSlice,
    StepPlan,
    StepResult,
)
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.errors import ConfigError, KernelBug, ModelCorrupt, ModelNotFound
from tests.kernel.cores.driver import alone
from tests.kernel.cores.tiny_decoders import CONTEXT, VOCAB_SIZE, make_model, save

TOKENS = [(17 * index + 3) % VOCAB_SIZE for index in range(40)]
PAGES = tuple(PageId(page) for page in (4, 2, 7))
GREEDY = SampleSpec(Sampling(), uniform=0.5, num_logprobs=3)


def load(folder: Path, **keywords: Any) -> TorchCore:
    settings = {"name": "tiny", "fingerprint": "f", "kv_memory_bytes": 4 * 2**20, "page_size": 16}
    return TorchCore.load(folder, **(settings | {"dtype": "fp32", "threads": 1} | keywords))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_model("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def core(folder: Path) -> TorchCore:
    return load(folder)


def edit_config(folder: Path, target: Path, **changes: Any) -> Path:
    target.mkdir()
    config = json.loads((folder / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").hardlink_to(folder / "model.safetensors")
    return target


# ---------------------------------------------------------------- executing plans


def test_info_says_what_was_loaded(core: TorchCore) -> None:
    info = core.info
    assert (info.model, info.vocab_size, info.context_length) == ("tiny", VOCAB_SIZE, CONTEXT)
    assert info.bytes_per_page >= 3 * 2 * 2 * 16 * 16 * 4
    assert info.num_pages == 4 * 2**20 // info.bytes_per_page
    assert info.fingerprint.startswith("f-")


def test_a_sampled_slice_gets_the_likeliest_token_and_its_logprobs(core: TorchCore) -> None:
    logprobs = alone(core, TOKENS)[-1].log_softmax(-1)
    (result,) = core.execute(StepPlan((SequenceSlice(TOKENS, 0, PAGES, GREEDY),))).slices
    assert result.token_id == int(logprobs.argmax())
    assert result.logprob == pytest.approx(float(logprobs.max()), abs=1e-5)
    assert [token for token, _ in result.top_logprobs] == logprobs.topk(3).indices.tolist()


def test_a_chunk_of_a_longer_prompt_gives_an_empty_result(core: TorchCore) -> None:
    (result,) = core.execute(StepPlan((SequenceSlice(TOKENS[:20], 0, PAGES),))).slices
    assert (result.token_id, result.target_logprobs, result.error) == (None, (), None)


def test_targets_get_their_log_probability_after_each_position(core: TorchCore) -> None:
    logprobs = alone(core, TOKENS).log_softmax(-1)
    piece = SequenceSlice(TOKENS, 0, PAGES, targets=(9, 8, 7))
    (result,) = core.execute(StepPlan((piece,))).slices
    expected = [float(logprobs[row, token]) for row, token in ((-3, 9), (-2, 8), (-1, 7))]
    assert result.target_logprobs == pytest.approx(expected, abs=1e-5)
    assert result.token_id is None


def test_a_batch_answers_in_the_plans_order_whatever_each_slice_asks(core: TorchCore) -> None:
    pieces = (
        SequenceSlice(TOKENS[:10], 0, (PageId(1),)),
        SequenceSlice(TOKENS[:7], 0, (PageId(2),), GREEDY),
        SequenceSlice(TOKENS[5:9], 0, (PageId(3),), GREEDY, targets=TOKENS[6:10]),
        SequenceSlice(TOKENS[1:2], 0, (PageId(5),), targets=(3,)),
    )
    together = core.execute(StepPlan(pieces)).slices
    one_by_one = [core.execute(StepPlan((piece,))).slices[0] for piece in pieces]
    assert list(together) == one_by_one


def test_scoring_more_rows_than_fit_at_once_gives_every_target_its_own(tmp_path: Path) -> None:
    vocab_size = 2**17  # logits of 255 positions take twice what is made at a time
    model = make_model("llama", vocab_size=vocab_size, hidden_size=32, tie_word_embeddings=True)
    core = load(save(model, tmp_path))
    tokens = [(29 * index) % vocab_size for index in range(CONTEXT)]
    pages = tuple(PageId(page) for page in range(16))
    piece = SequenceSlice(tokens[:-1], 0, pages, targets=tokens[1:])
    (result,) = core.execute(StepPlan((piece,))).slices
    logprobs = alone(core, tokens[:-1]).log_softmax(-1)
    expected = logprobs.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(result.target_logprobs), expected, rtol=0, atol=1e-4)


def test_page_copies_come_before_the_slices(core: TorchCore) -> None:
    core.execute(StepPlan((SequenceSlice(TOKENS[:10], 0, (PageId(0),)),)))
    forked = SequenceSlice(TOKENS[10:12], 10, (PageId(9),), GREEDY)
    (result,) = core.execute(StepPlan((forked,), copies=((PageId(0), PageId(9)),))).slices
    whole = SequenceSlice(TOKENS[:12], 0, (PageId(3),), GREEDY)
    assert result.token_id == core.execute(StepPlan((whole,))).slices[0].token_id


def test_a_plan_of_copies_alone_is_carried_out(core: TorchCore) -> None:
    core.execute(StepPlan((SequenceSlice(TOKENS[:16], 0, (PageId(0),)),)))
    assert core.execute(StepPlan((), copies=((PageId(0), PageId(6)),))) == StepResult(())
    moved = SequenceSlice(TOKENS[16:20], 16, (PageId(6), PageId(7)), GREEDY)
    whole = SequenceSlice(TOKENS[:20], 0, (PageId(0), PageId(1)), GREEDY)
    assert core.execute(StepPlan((moved,))) == core.execute(StepPlan((whole,)))


def test_a_core_runs_on_another_thread_with_the_threads_it_was_given(core: TorchCore) -> None:
    seen: list[object] = []
    plan = StepPlan((SequenceSlice(TOKENS, 0, PAGES, GREEDY),))

    def engine() -> None:
        torch.set_num_threads(2)
        seen.extend(
            (core.execute(plan), torch.get_num_threads(), torch.is_inference_mode_enabled())
        )

    thread = threading.Thread(target=engine)
    thread.start()
    thread.join()
    assert seen == [core.execute(plan), 1, False]


def test_logits_that_are_not_finite_fail_their_slice_and_no_other(tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = math.nan
    core = load(save(model, tmp_path))
    poisoned = SequenceSlice([5, 6], 0, (PageId(0),), GREEDY)
    scored = SequenceSlice([5, 6], 0, (PageId(1),), targets=(1,))
    sound = SequenceSlice([6, 7], 0, (PageId(2),), GREEDY, targets=(1,))
    bad, worse, good = core.execute(StepPlan((poisoned, scored, sound))).slices
    assert bad.token_id is None
    assert "not finite" in str(bad.error)
    assert "not finite" in str(worse.error)
    assert (good.error, len(good.target_logprobs)) == (None, 1)


# ---------------------------------------------------------------- plans that no kernel should make

SOUND = SequenceSlice(TOKENS[:4], 0, PAGES)


@pytest.mark.parametrize(
    "piece",
    [
        replace(SOUND, tokens=(0, VOCAB_SIZE)),
        replace(SOUND, tokens=(0, -1)),
        replace(SOUND, tokens=()),
        replace(SOUND, page_ids=(PageId(10**6),)),
        replace(SOUND, page_ids=(PageId(-1),)),
        replace(SOUND, page_ids=()),
        replace(SOUND, start=-1),
        replace(SOUND, start=CONTEXT - 3, page_ids=tuple(map(PageId, range(17)))),
        replace(SOUND, targets=(1, 2, 3, 4, 5)),
        replace(SOUND, targets=(VOCAB_SIZE,)),
        replace(SOUND, targets=(-1,)),
    ],
    ids=str,
)
def test_an_unsound_slice_is_a_kernel_bug(core: TorchCore, piece: SequenceSlice) -> None:
    with pytest.raises(KernelBug):
        core.execute(StepPlan((piece,)))


def test_the_cores_own_page_is_not_to_be_had(core: TorchCore) -> None:
    own = PageId(core.info.num_pages)
    with pytest.raises(KernelBug):
        core.execute(StepPlan((replace(SOUND, page_ids=(own,)),)))
    with pytest.raises(KernelBug):
        core.execute(StepPlan((), copies=((PageId(0), own),)))


def test_a_closed_core_computes_nothing_and_closes_again(folder: Path) -> None:
    core = load(folder)
    core.close()
    core.close()
    with pytest.raises(KernelBug):
        core.execute(StepPlan((SOUND,)))
    assert core.info.model == "tiny"


# ---------------------------------------------------------------- settings and memory


def test_every_bad_setting_is_named_at_once(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(folder, page_size=0, threads=-1, max_context=0, path="quick")
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize("setting", [{"dtype": "fp8"}, {"device": "nonsense"}])
def test_an_unknown_dtype_or_device_is_the_operators_mistake(
    folder: Path, setting: dict[str, str]
) -> None:
    with pytest.raises(ConfigError):
        load(folder, **setting)


def test_a_pool_too_small_for_a_page_is_refused_with_both_sizes(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not hold one page of 0\.\d MiB"):
        load(folder, kv_memory_bytes=100)


def test_more_kv_memory_than_is_free_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="ask for less"):
        load(folder, kv_memory_bytes=2**60)


def test_max_context_shortens_the_window_and_never_lengthens_it(folder: Path) -> None:
    assert load(folder, max_context=100).info.context_length == 100
    assert load(folder, max_context=10**6).info.context_length == CONTEXT


def test_fingerprint_tells_dtypes_and_paths_apart(folder: Path) -> None:
    cores = [
        load(folder, dtype=dtype, path=path)
        for dtype in ("fp32", "bf16")
        for path in ("fast", "generic")
    ]
    assert len({core.info.fingerprint for core in cores}) == 4
    assert load(folder).info.fingerprint == cores[0].info.fingerprint


# ---------------------------------------------------------------- broken and unsupported models


def test_a_missing_folder_is_a_model_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        load(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff" * 100])
def test_a_damaged_file_is_a_corrupt_model_that_names_the_file(
    folder: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    broken = edit_config(folder, tmp_path / "broken")
    (broken / name).unlink()
    if content is not None:
        (broken / name).write_bytes(content)
    with pytest.raises(ModelCorrupt, match=name):
        load(broken)


def test_a_truncated_weight_file_is_a_corrupt_model(folder: Path, tmp_path: Path) -> None:
    broken = edit_config(folder, tmp_path / "broken")
    weights = (folder / "model.safetensors").read_bytes()
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelCorrupt):
        load(broken)


@pytest.mark.parametrize("path", ["fast", "generic"])
def test_a_missing_tensor_is_a_corrupt_model_that_names_the_tensor(
    folder: Path, tmp_path: Path, path: str
) -> None:
    broken = edit_config(folder, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    (broken / "model.safetensors").unlink()
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelCorrupt, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(broken, path=path)


def test_weights_in_several_files_are_read_as_one(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    parts = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, tmp_path / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert torch.equal(alone(load(tmp_path), TOKENS), alone(load(folder), TOKENS))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "no causal language model"),
        ({"is_encoder_decoder": True, "model_type": "t5"}, "encoder"),
        ({"vision_config": {"a": 1}}, "more than text"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"model_type": "nobody_knows", "architectures": ["XForCausalLM"]}, "transformers says"),
        ({"is_causal": False}, "not causal"),
    ],
)
def test_a_model_that_cannot_run_is_refused_with_the_reason(
    folder: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        load(edit_config(folder, tmp_path / "other", **changes))
    assert not isinstance(caught.value, ModelCorrupt)


@pytest.mark.parametrize(
    ("prefix", "keywords"),
    [
        ("Mamba", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
        ("Bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
        ("GPTJ", {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 64}),
        ("GptOss", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}),
        ("DeepseekV3", {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}),
    ],
)
def test_a_model_that_does_not_attend_as_we_do_is_refused_and_never_wrong(
    prefix: str, keywords: dict[str, Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"intermediate_size": 64, "num_key_value_heads": 4, "num_local_experts": 4}
    routed = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
    config_type = getattr(transformers, f"{prefix}Config")
    known = {k: v for k, v in (small | routed).items() if k in config_type().to_dict()}
    config = config_type(**(known | keywords | {"vocab_size": VOCAB_SIZE}))
    save(transformers.AutoModelForCausalLM.from_config(config), tmp_path)
    with pytest.raises(ConfigError, match=r"cannot run here: (its attention|it does not|its keys)"):
        load(tmp_path)


# ---------------------------------------------------------------- booting


def test_the_fast_path_boots_without_importing_transformers(folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from llmasos.kernel.cores.torch_core import TorchCore;"
        f"TorchCore.load(Path({str(folder)!r}), name='m', fingerprint='f', kv_memory_bytes=2**22);"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

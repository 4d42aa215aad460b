"""The other side: `transformers.generate`, tuned as its documentation says.

Same weights, dtype and threads; scaled-dot-product attention, inference mode, left padding with a
mask for batches, greedy, end-of-text ignored. Dynamic and static caches are both tried on each
workload and the faster one is measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    StoppingCriteriaList,
)
from transformers.utils import logging

from benchmarks.harness import timed
from benchmarks.prompts import Prompt

CACHES: tuple[dict[str, Any], ...] = (
    {},
    {"cache_implementation": "static", "disable_compile": True},
)
"""A compiled static cache takes minutes to compile anew for each shape, so it is left out."""


class Transformers:
    """One model in transformers' own classes."""

    def __init__(self, folder: Path, *, dtype: torch.dtype, device: str) -> None:
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
        )
        self._model = loaded.to(device).eval()
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0
        self._device = device
        self._cache: dict[str, Any] = {}

    def choose_cache(self, prompts: Sequence[Prompt], new_tokens: int) -> str:
        """Measure with each cache and keep the faster one; returns its name."""

        def seconds(cache: dict[str, Any]) -> float:
            self._cache = cache
            self.padded(prompts[:1], 2)
            return self.padded(prompts, new_tokens)

        self._cache = min(CACHES, key=seconds)
        return str(self._cache.get("cache_implementation", "dynamic"))

    def one_by_one(self, prompts: Sequence[Prompt], new_tokens: int) -> list[float]:
        """Seconds for each of the prompts, one after another."""
        return [self.padded([prompt], new_tokens) for prompt in prompts]

    def padded(self, prompts: Sequence[Prompt], new_tokens: int) -> float:
        """Seconds for all prompts as one batch, padded on the left to the longest."""
        inputs, mask = self._inputs(prompts)
        return timed(lambda: self._generate(inputs, mask, new_tokens))

    def decode(self, prompts: Sequence[Prompt], new_tokens: int) -> tuple[float, float]:
        """Seconds until the first token of the padded batch, and of so many more after it."""
        stamps: list[float] = []

        def stamp(ids: torch.Tensor, _scores: Any, **_kwargs: Any) -> torch.Tensor:
            stamps.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        inputs, mask = self._inputs(prompts)
        begun = time.perf_counter()
        self._generate(
            inputs, mask, new_tokens + 1, stopping_criteria=StoppingCriteriaList([stamp])
        )
        return stamps[0] - begun, stamps[-1] - stamps[0]

    @torch.inference_mode()
    def continuous(self, prompts: Sequence[Prompt], new_tokens: int) -> float:
        """Seconds for all prompts through transformers' own continuous batching."""
        settings = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        tokens = sum(len(prompt.token_ids) + new_tokens for prompt in prompts)
        batching = ContinuousBatchingConfig(
            num_blocks=tokens // 256 + 2 * len(prompts), max_batch_tokens=512, use_cuda_graph=False
        )
        inputs = [list(prompt.token_ids) for prompt in prompts]
        return timed(
            lambda: self._model.generate_batch(
                inputs=inputs, generation_config=settings, continuous_batching_config=batching
            )
        )

    def _inputs(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = _left_padded(prompts).to(self._device)
        mask = (inputs >= 0).long()
        return inputs.clamp_(min=0), mask

    @torch.inference_mode()
    def ask(self, tokenizer: Any, question: str) -> tuple[float, str]:
        """Seconds until a chat's reply has its first token, and that token's text."""
        begun = time.perf_counter()
        turns = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self._device)
        output = self._model.generate(**inputs, max_new_tokens=1, do_sample=False)
        text: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
        return time.perf_counter() - begun, text

    @torch.inference_mode()
    def _generate(
        self, inputs: torch.Tensor, mask: torch.Tensor, new_tokens: int, **keywords: Any
    ) -> None:
        output = self._model.generate(
            inputs,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            **self._cache,
            **keywords,
        )
        made = output.cpu().shape[1] - inputs.shape[1]
        if made != new_tokens:
            raise SystemExit(f"transformers made {made} tokens instead of {new_tokens}.")


def _left_padded(prompts: Sequence[Prompt]) -> torch.Tensor:
    """[prompts, longest] token ids, -1 where there is padding."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    rows = [(-1,) * (longest - len(prompt.token_ids)) + prompt.token_ids for prompt in prompts]
    return torch.tensor(rows, dtype=torch.long)

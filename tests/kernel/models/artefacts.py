"""Model files small enough to make in a test: a Llama folder, a GGUF file, a wheel, an index."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from llmasos.kernel.models.catalogue import Packaged, Wheel
from tests.kernel.models import tiny

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CARD = "---\nlanguage: en\nlicense: apache-2.0\n---\n# Tiny\n"


def llama_folder(folder: Path, *, tied: bool = True) -> Path:
    """A random two-layer Llama with a byte-level tokenizer, as Hugging Face lays it out."""
    backend = tiny.byte_level(*SPECIALS)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    written = (folder / "config.json").read_text()
    tiny.write_tokenizer(
        folder, backend, template=tiny.CHATML, settings={"eos_token": "<|im_end|>"}
    )
    (folder / "config.json").write_text(written)
    (folder / "README.md").write_text(CARD)
    return folder


def bert_folder(folder: Path) -> Path:
    """A random one-layer BERT, as sentence-transformers lays it out."""
    backend = tiny.wordpiece()
    config = BertConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    written = (folder / "config.json").read_text()
    tiny.write_tokenizer(folder, backend)
    (folder / "config.json").write_text(written)
    (folder / "modules.json").write_text("[]")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder


def gguf_file(path: Path, *, architecture: str = "llama", quantised: bool = True) -> Path:
    """A random one-layer Llama as llama.cpp stores it, tied, its vocabulary split as SmolLM2's."""
    vocabulary = _vocabulary()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    writer.add_license("mit")
    writer.add_context_length(96)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary))
    writer.add_rope_dimension_count(8)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    control = gguf.TokenType.CONTROL
    types = [control if token in SPECIALS else gguf.TokenType.NORMAL for token in vocabulary]
    writer.add_token_types(types)
    writer.add_token_merges(["1 2", "t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(tiny.CHATML)
    for name, values in llama_tensors(len(vocabulary)).items():
        _add_tensor(writer, name, values, quantised=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_tensors(vocab_size: int) -> dict[str, np.ndarray]:
    """The weights of that Llama under llama.cpp's names."""
    draw = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (vocab_size, 32),
        "output_norm.weight": (32,),
        "blk.0.attn_norm.weight": (32,),
        "blk.0.ffn_norm.weight": (32,),
        "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32),
        "blk.0.attn_v.weight": (16, 32),
        "blk.0.attn_output.weight": (32, 32),
        "blk.0.ffn_gate.weight": (64, 32),
        "blk.0.ffn_up.weight": (64, 32),
        "blk.0.ffn_down.weight": (32, 64),
    }
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def quantised(values: np.ndarray) -> np.ndarray:
    """The values after a round trip through 4 bits."""
    kind = gguf.GGMLQuantizationType.Q4_1
    return np.asarray(gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind))


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, *, quantised: bool) -> None:
    if values.ndim == 1 or not quantised:
        writer.add_tensor(name, values)
        return
    kind = gguf.GGMLQuantizationType.Q4_1
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _vocabulary() -> list[str]:
    from llmasos.kernel.models.pieces import byte_alphabet

    return [*SPECIALS, *sorted(byte_alphabet()), "12", "th", "the"]


def wheel_file(folder: Path, package: str, files: Mapping[str, bytes]) -> Path:
    """A wheel that pip takes, with these files in it."""
    folder.mkdir(parents=True, exist_ok=True)
    name = package.replace("-", "_")
    info = f"{name}-1.0.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, data in content.items():
            archive.writestr(file, data)
        archive.writestr(f"{info}/RECORD", _record(content))
    return path


def _record(content: Mapping[str, bytes]) -> str:
    lines = []
    for file, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{file},sha256={digest},{len(data)}\n")
    return "".join(lines)


def pinned(path: Path, package: str, **where: object) -> Wheel:
    """The catalogue's entry for a wheel file."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Wheel(package, "1.0", digest, path.stat().st_size, "data", **where)  # type: ignore[arg-type]


def packaged_gguf(index: Path, gguf_path: Path) -> Packaged:
    """A built-in model whose GGUF file is split over two wheels in the folder `index`."""
    data = gguf_path.read_bytes()
    halves = {"tiny-part1": data[:5000], "tiny-part2": data[5000:]}
    wheels = []
    for package, half in halves.items():
        path = wheel_file(index, package, {"data/model.part": half, "data/TERMS.html": b"terms"})
        is_first = package == "tiny-part1"
        files = ("TERMS.html",) if is_first else ()
        wheels.append(pinned(path, package, gguf_parts=("model.part",), files=files))
    digest = hashlib.sha256(data).hexdigest()
    return Packaged("tiny", "Tiny", "mit", tuple(wheels), digest, 1000)

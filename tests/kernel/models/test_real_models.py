from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from llmasos.kernel.abi import Message
from llmasos.kernel.models import ModelKind, ModelTokenizer, StoredModel

pytestmark = pytest.mark.model

text = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"], include_characters="\n\t"),
    max_size=40,
).filter(lambda text: "<" not in text)
"""What SmolLM2 can spell: it has no tokens for some control characters and unassigned planes."""
messages = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), text),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def smollm2(real_model: Callable[[str], StoredModel]) -> StoredModel:
    return real_model("smollm2")


@pytest.fixture(scope="module")
def ours(smollm2: StoredModel) -> ModelTokenizer:
    return smollm2.load_tokenizer()


@pytest.fixture(scope="module")
def theirs(smollm2: StoredModel) -> Any:
    return AutoTokenizer.from_pretrained(smollm2.folder)


def test_smollm2_is_what_the_design_says(smollm2: StoredModel, ours: ModelTokenizer) -> None:
    info = smollm2.info
    assert (info.parameters, info.dtype, info.context_length) == (134_515_008, "float32", 8192)
    assert (info.license, info.kind, info.notes) == ("apache-2.0", ModelKind.DECODER, ())
    assert ours.encode("<|im_end|>", special=True)[0] in ours.eos_ids
    assert ours.bos_ids == ()


@settings(deadline=None)
@given(text=text)
def test_smollm2_tokens_are_those_of_transformers(
    ours: ModelTokenizer, theirs: Any, text: str
) -> None:
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.decode(ours.encode(text)) == text


@settings(deadline=None)
@given(messages=messages, reply=st.booleans())
def test_smollm2_chats_are_those_of_transformers(
    ours: ModelTokenizer, theirs: Any, messages: list[Message], reply: bool
) -> None:
    chat = [{"role": message.role, "content": message.content} for message in messages]
    expected = theirs.apply_chat_template(chat, add_generation_prompt=reply, return_dict=False)
    assert ours.render_chat(messages, reply=reply) == expected


def test_smollm2_sees_digits_one_by_one(ours: ModelTokenizer) -> None:
    assert len(ours.encode("1234")) == 4


def test_smollm2_answers_with_paris(smollm2: StoredModel, ours: ModelTokenizer) -> None:
    prompt = ours.render_chat([Message("user", "What is the capital of France?")], reply=True)
    model = AutoModelForCausalLM.from_pretrained(smollm2.folder, dtype=torch.float32)
    written = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
    assert "Paris" in ours.decode(written[0, len(prompt) :].tolist())


def test_opening_a_model_and_its_tokenizer_imports_neither_torch_nor_transformers(
    smollm2: StoredModel,
) -> None:
    program = (
        "import sys; from pathlib import Path; from llmasos.kernel.models import ModelStore;"
        "ModelStore(Path(sys.argv[1])).open('smollm2').load_tokenizer().encode('hello');"
        "assert not {'torch', 'transformers', 'huggingface_hub', 'gguf'} & set(sys.modules)"
    )
    folder: Path = smollm2.folder.parent
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)


def test_gemma_3_tokens_are_the_published_ones(
    real_model: Callable[[str], StoredModel],
) -> None:
    tokenizer = real_model("gemma3-270m").load_tokenizer()
    assert tokenizer.bos_ids == (2,)
    assert tokenizer.encode("Hello world") == [9259, 1902]
    assert tokenizer.encode("<end_of_turn>", special=True) == [106]
    assert tokenizer.decode(tokenizer.encode("a  b\n\n\n日本語 🏳️‍🌈 <b>12</b>")) == (
        "a  b\n\n\n日本語 🏳️‍🌈 <b>12</b>"
    )
    assert tokenizer.chat_stop_strings


def test_minilm_finds_the_paraphrase(real_model: Callable[[str], StoredModel]) -> None:
    stored = real_model("minilm")
    assert stored.kind is ModelKind.ENCODER
    tokenizer = AutoTokenizer.from_pretrained(stored.folder)
    texts = ["How do I reset my password?", "I forgot my login secret.", "Bananas are yellow."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    hidden = AutoModel.from_pretrained(stored.folder)(**batch).last_hidden_state
    mask = batch.attention_mask.unsqueeze(-1)
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    near, far = (vectors[0] @ vectors[1:].T).tolist()
    assert near > far + 0.2

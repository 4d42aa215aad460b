from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.kernel.errors import ModelCorrupt
from llmasos.kernel.models import ModelTokenizer
from tests.kernel.models import tiny

shared = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

HARD = "👩‍👩‍👧‍👦 e\u0301 न्दी 한국어 \u202eabc\u202c 🏳️‍🌈 𝒜\u0000\ufffd"
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
    [HARD, "", " ", "  a  ", "\n\n\n", "日本語🙂", "a" * 300]
)


def stream(tokenizer: ModelTokenizer, token_ids: list[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    return [*map(detokenizer.push, token_ids), detokenizer.flush()]


@shared
@given(text=text)
def test_a_text_comes_back_as_it_was(exact: ModelTokenizer, text: str) -> None:
    assert exact.decode(exact.encode(text)) == text


@shared
@given(first=text, second=text)
def test_texts_encoded_apart_read_as_the_joined_text(
    exact: ModelTokenizer, first: str, second: str
) -> None:
    assert exact.decode(exact.encode(first) + exact.encode(second)) == first + second


@shared
@given(text=text)
def test_a_streamed_text_never_shows_half_a_character(exact: ModelTokenizer, text: str) -> None:
    pieces = stream(exact, exact.encode(text))
    assert "".join(pieces) == text
    assert pieces[-1] == ""


@shared
@given(data=st.data())
def test_random_tokens_stream_to_what_they_decode_to(
    any_kind: ModelTokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, any_kind.vocab_size - 1), max_size=40))
    assert "".join(stream(any_kind, ids)) == any_kind.decode(ids)


@shared
@given(data=st.data())
def test_decoding_adds_up_at_every_character_boundary(
    any_kind: ModelTokenizer, data: st.DataObject
) -> None:
    first, second = (
        any_kind.encode(data.draw(st.text("abcdeh lo", max_size=20))) for _ in range(2)
    )
    assert any_kind.decode(first + second) == any_kind.decode(first) + any_kind.decode(second)


def test_bytes_that_never_become_a_character_come_as_replacement(chatml: ModelTokenizer) -> None:
    cut = chatml.encode("é🙂")[:-1]
    pieces = stream(chatml, cut)
    assert "".join(pieces).startswith("é")
    assert pieces[-1] == "\ufffd"


def test_ids_that_stand_for_no_token_have_no_text(chatml: ModelTokenizer) -> None:
    assert chatml.decode([chatml.vocab_size + 5, -1, *chatml.encode("a")]) == "a"


def test_control_tokens_in_text_are_ordinary_characters(any_kind: ModelTokenizer) -> None:
    for control in ("<|im_end|>", "<end_of_turn>", "</s>", "<s>", "<bos>"):
        ids = any_kind.encode(f"hello {control} hello")
        assert not any_kind.eos_ids & set(ids)
        assert not set(any_kind.bos_ids) & set(ids)


def test_control_tokens_are_recognised_when_asked_for(chatml: ModelTokenizer) -> None:
    ids = chatml.encode("a<|im_end|>b", special=True)
    assert len(ids) == 3
    assert ids[1] in chatml.eos_ids
    assert chatml.decode(ids) == "ab"
    assert chatml.decode(ids, special=True) == "a<|im_end|>b"


def test_a_control_token_among_the_words_is_spelt_out(old_llama_like: ModelTokenizer) -> None:
    ids = old_llama_like.encode("hello</s>")
    assert old_llama_like.decode(ids) == "hello</s>"
    assert old_llama_like.encode("hello</s>", special=True)[-1] in old_llama_like.eos_ids


def test_no_space_is_put_in_front_of_a_text(old_llama_like: ModelTokenizer) -> None:
    assert old_llama_like.decode(old_llama_like.encode("hello")) == "hello"
    assert old_llama_like.decode(old_llama_like.encode(" hello")) == " hello"


def test_unpaired_surrogates_become_replacement_characters(chatml: ModelTokenizer) -> None:
    assert chatml.decode(chatml.encode("a\ud800b\ud83d\ude42")) == "a\ufffdb🙂"


def test_an_empty_text_has_no_tokens(any_kind: ModelTokenizer) -> None:
    assert any_kind.encode("") == []
    assert any_kind.encode("", special=True) == []
    assert any_kind.decode([]) == ""


def test_the_first_token_comes_from_post_processing_or_settings(
    gemma_like: ModelTokenizer, old_llama_like: ModelTokenizer, chatml: ModelTokenizer
) -> None:
    assert gemma_like.bos_ids == tuple(gemma_like.encode("<bos>", special=True))
    assert old_llama_like.bos_ids == tuple(old_llama_like.encode("<s>", special=True))
    assert chatml.bos_ids == ()


def test_ends_are_the_models_list_the_templates_turn_end_and_the_settings(folder: Path) -> None:
    backend = tiny.byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tiny.write_tokenizer(folder, backend, template=tiny.CHATML, config={"eos_token_id": 7})
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    tokenizer = ModelTokenizer.load(folder)
    turn_end = tokenizer.encode("<|im_end|>", special=True)
    text_end = tokenizer.encode("<|endoftext|>", special=True)
    assert tokenizer.eos_ids == {5, 6, 7, *turn_end, *text_end}


def test_template_markup_is_control_but_stays_visible(folder: Path) -> None:
    template = tiny.CHATML + "{# <tool_response> <think> #}"
    backend = tiny.byte_level("<|im_start|>", "<|im_end|>", markup=("<tool_response>", "<think>"))
    tokenizer = tiny.load(folder, backend, template=template)
    markup = backend.token_to_id("<tool_response>")
    assert markup not in tokenizer.encode("<tool_response>")
    assert tokenizer.encode("<tool_response>", special=True) == [markup]
    assert tokenizer.decode([markup]) == "<tool_response>"
    assert tokenizer.encode("<think>") == [backend.token_to_id("<think>")]


def test_tokens_beyond_the_models_logits_are_never_made(folder: Path) -> None:
    backend = tiny.byte_level("<|im_end|>", markup=("<extra>",))
    size = backend.token_to_id("<extra>")
    tokenizer = tiny.load(folder, backend, config={"vocab_size": size})
    assert tokenizer.vocab_size == size
    for special in (False, True):
        assert max(tokenizer.encode("a<extra>b", special=special)) < size


def test_wordpiece_tokens_read_as_words(folder: Path) -> None:
    tokenizer = tiny.load(folder, tiny.wordpiece(), settings={"unk_token": "[UNK]"})
    assert tokenizer.decode(tokenizer.encode("Hello worlds!")) == " hello worlds !"


def test_many_threads_get_the_same_tokens(chatml: ModelTokenizer) -> None:
    texts = [f"hello {n} <|im_end|> {HARD}" * 3 for n in range(64)]
    alone = [chatml.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(chatml.encode, texts)) == alone
        assert list(pool.map(chatml.decode, alone)) == texts
        tokenizers = set(map(id, pool.map(lambda _: chatml.grammar_tokenizer(), range(8))))
    assert len(tokenizers) == 1


def test_the_grammar_tokenizer_spans_the_models_logits(folder: Path) -> None:
    backend = tiny.byte_level("<|im_end|>")
    size = backend.get_vocab_size() + 60
    settings = {"eos_token": "<|im_end|>"}
    tokenizer = tiny.load(folder, backend, settings=settings, config={"vocab_size": size})
    grammar_tokenizer = tokenizer.grammar_tokenizer()
    assert grammar_tokenizer.vocab_size == size
    assert set(grammar_tokenizer.eos_tokens) == tokenizer.eos_ids


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", '{"model": 3}'])
def test_a_broken_tokenizer_file_is_told(folder: Path, content: str) -> None:
    tiny.write_tokenizer(folder, tiny.byte_level())
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelCorrupt, match="model"):
        ModelTokenizer.load(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json", "tokenizer.json"])
def test_settings_that_are_no_json_are_told(folder: Path, name: str) -> None:
    tiny.write_tokenizer(folder, tiny.byte_level())
    (folder / name).write_bytes(b"\xff\xfe{")
    with pytest.raises(ModelCorrupt, match=name):
        ModelTokenizer.load(folder)


def test_a_missing_tokenizer_is_told(folder: Path) -> None:
    folder.mkdir()
    with pytest.raises(ModelCorrupt, match=r"tokenizer\.json"):
        ModelTokenizer.load(folder)

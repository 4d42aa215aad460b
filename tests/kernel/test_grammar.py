"""Grammar constraints: what they allow, where they end, and how one generation goes through."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from llmasos.kernel.abi import Sampling
from llmasos.kernel.core import SampleSpec
from llmasos.kernel.cores.sample import draw
from llmasos.kernel.errors import Failed
from llmasos.kernel.grammar import (
    GrammarCompiler,
    compile_grammar,
)
from llmasos.kernel.models.tokenizer import ModelTokenizer
from llmasos.kernel.sampling import uniform
from tests.kernel.grammars import (
    BPE,
    BYTES,
    TOKENIZERS,
    BpeTokenizer,
    accepts,
    allowed,
    choice,
    lark,
    regex,
    schema,
    walk,
)

# ---------------------------------------------------------------- JSON schemas


class Colour(Enum):
    RED = "red"
    DARK_GREEN = "dark green"


class Read(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Literal["fs.read"]
    path: str = Field(max_length=20)


class Add(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Literal["calc"]
    numbers: list[float] = Field(min_length=1, max_length=3)
    exact: bool = True


class Plan(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str = Field(min_length=1, max_length=12, pattern="^[A-Z][a-z ]*$")
    when: str | None = None
    colour: Colour
    rank: int = Field(ge=1, le=50)
    calls: list[Read | Add] = Field(max_length=2)
    notes: dict[str, int] = Field(default_factory=dict)


class Tree(BaseModel):
    model_config = ConfigDict(extra="forbid")
    value: int
    children: list[Tree] = Field(default_factory=list, max_length=2)


SHAPES: list[Any] = [Read, Add, Plan, Tree, Read | Add, list[Colour], int, bool, str, float | None]


@TOKENIZERS
@settings(max_examples=40, deadline=None)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32))
def test_any_walk_through_the_masks_ends_in_json_that_fits_the_schema(
    tokenizer: Any, shape: Any, seed: int
) -> None:
    adapter = TypeAdapter(shape)
    matcher = compile_grammar(schema(adapter.json_schema()), tokenizer)
    text = walk(matcher, tokenizer, seed=seed)
    adapter.validate_json(text)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_json_is_spelt_as_python_spells_it_with_no_other_whitespace(seed: int) -> None:
    shape = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"type": "boolean"}}}
    shape |= {"required": ["a", "b"], "additionalProperties": False}
    shape |= {
        "$defs": {"n": {"type": "array", "items": {"enum": [1, 22, "x", None]}, "minItems": 2}}
    }
    text = walk(compile_grammar(schema(shape), BYTES), BYTES, seed=seed)
    assert text == json.dumps(json.loads(text))


def test_whitespace_is_refused_unless_the_schema_asks_for_it() -> None:
    shape = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert accepts(schema(shape), '{"a": 1}')
    for text in ('{ "a": 1}', '{"a":1}', '{\n"a": 1}', '{"a": 1 }', ' {"a": 1}', '{"a":  1}'):
        assert not accepts(schema(shape), text)
    shape["x-guidance"] = {"whitespace_flexible": True}
    assert accepts(schema(shape), '{ "a":  1\n}')


def test_unicode_and_escapes_in_strings_are_allowed() -> None:
    for text in ("Grüße 東京 🙂", 'a "quoted" \\ line\nbreak', ""):
        assert accepts(schema({"type": "string"}), json.dumps(text, ensure_ascii=False), BPE)


def test_a_format_nobody_knows_is_an_annotation_and_a_known_one_is_kept_to() -> None:
    assert accepts(schema({"type": "string", "format": "path"}), '"a/b"')
    assert not accepts(schema({"type": "string", "format": "date"}), '"tomorrow"')
    assert accepts(schema({"type": "string", "format": "date"}), '"2026-11-23"')
    shape = {
        "type": "object",
        "properties": {"format": {"type": "string", "format": "password"}, "const": {"const": 1}},
        "required": ["format", "const"],
    }
    assert accepts(schema(shape), '{"format": "x", "const": 1}')
    assert accepts(schema({"const": {"format": "path"}}), '{"format": "path"}')
    assert not accepts(schema({"const": {"format": "path"}}), "{}")


@pytest.mark.parametrize(
    "name",
    ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"],
)
def test_every_format_that_is_passed_on_is_one_that_llguidance_knows(name: str) -> None:
    compile_grammar(schema({"type": "string", "format": name}), BYTES)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_core_that_draws_from_noise_under_the_masks_says_what_fits(temperature: float) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Read | Add)
    matcher = compile_grammar(schema(adapter.json_schema()), BPE)
    padded_vocab_size, token_ids = BPE.vocab_size + 100, []
    while not matcher.is_finished:
        noise = torch.Generator().manual_seed(len(token_ids))
        logits = torch.randn(1, padded_vocab_size, generator=noise)
        spec = SampleSpec(
            Sampling(temperature=temperature),
            uniform(1, 2, len(token_ids)),
            allowed=matcher.mask(),
        )
        (result,) = draw(logits, [spec])
        assert result.token_id is not None
        matcher.accept(result.token_id)
        token_ids.append(result.token_id)
    adapter.validate_json(BPE.decode(token_ids))


def test_the_schema_true_allows_any_json() -> None:
    assert accepts(schema(True), '[1, {"a": null}]')


# ---------------------------------------------------------------- the other kinds


@TOKENIZERS
def test_a_regex_matches_the_whole_text(tokenizer: Any) -> None:
    grammar = regex(r"(yes|no)( [0-9]{1,3})?")
    for text in ("yes", "no 12", "yes 999"):
        assert accepts(grammar, text, tokenizer)
    for text in ("", "y", "maybe", "yes 1234", "yes  1", " yes"):
        assert not accepts(grammar, text, tokenizer)


def test_anchors_in_a_regex_change_nothing_and_a_dot_is_no_newline() -> None:
    assert accepts(regex("^abc$"), "abc")
    assert accepts(regex(".+"), "Grüße / 🙂")
    assert not accepts(regex(".+"), "a\nb")
    assert accepts(regex("(?s:.+)"), "a\nb")
    assert accepts(regex(r"a/b\n"), "a/b\n")


@TOKENIZERS
@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1),
    data=st.data(),
)
def test_a_choice_allows_exactly_its_texts(
    tokenizer: Any, texts: list[str], data: st.DataObject
) -> None:
    chosen = data.draw(st.sampled_from(texts))
    assert accepts(choice(*texts), chosen, tokenizer)
    seed = data.draw(st.integers(0, 2**32))
    assert walk(compile_grammar(choice(*texts), tokenizer), tokenizer, seed=seed) in texts
    other = data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
    assert accepts(choice(*texts), other, tokenizer) == (other in texts)


def test_a_choice_that_begins_another_may_end_or_go_on() -> None:
    matcher = compile_grammar(choice("a", "ab", "abc|.*"), BYTES)
    matcher.accept(ord("a"))
    assert matcher.is_accepting
    assert not matcher.is_finished
    assert allowed(matcher) == {ord("b")} | BYTES.eos_ids


@TOKENIZERS
def test_a_lark_grammar_guides_a_walk(tokenizer: Any) -> None:
    grammar = lark('start: term ("+" term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[0-9]{1,3}/')
    for seed in range(5):
        text = walk(compile_grammar(grammar, tokenizer), tokenizer, seed=seed)
        assert set(text) <= set("0123456789+()")
        assert text.count("(") == text.count(")")
    assert not accepts(grammar, "1+", tokenizer)


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize(
    "tokenizer",
    [
        BPE,
        BpeTokenizer(believed_ends=[BpeTokenizer.END]),
        BpeTokenizer(believed_ends=[BpeTokenizer.TURN]),
        BpeTokenizer(believed_ends=[BpeTokenizer.TURN, BpeTokenizer.LAST]),
    ],
    ids=["all ends known", "one unknown", "another believed", "one unknown, another believed"],
)
def test_the_tokenizers_ends_are_allowed_exactly_where_the_text_may_end(
    tokenizer: BpeTokenizer,
) -> None:
    ends, turn = tokenizer.eos_ids, tokenizer.token_id(BpeTokenizer.TURN)
    matcher = compile_grammar(regex("a(bc)?"), tokenizer)
    b, c = tokenizer.encode("b") + tokenizer.encode("c")
    assert not allowed(matcher) & {*ends, turn}
    matcher.accept(*tokenizer.encode("a"))
    assert allowed(matcher) >= ends
    assert turn not in allowed(matcher)
    for end in ends:
        ended = matcher.fork()
        ended.accept(end)
        assert ended.is_finished
        assert ended.is_accepting
        assert allowed(ended) == ends
        assert ended.forced() == []
        ended.accept(end)
        with pytest.raises(Failed, match="does not fit"):
            ended.accept(b)
    assert not matcher.is_finished
    matcher.accept(b)
    assert not allowed(matcher) & {*ends, turn}
    matcher.accept(c)
    assert matcher.is_finished
    assert allowed(matcher) == ends


@TOKENIZERS
def test_control_tokens_are_never_part_of_a_text(tokenizer: Any) -> None:
    names = {BpeTokenizer.END, BpeTokenizer.TURN, BpeTokenizer.LAST}
    control = {BPE.token_id(name) for name in names} if tokenizer is BPE else set(range(256, 261))
    matcher = compile_grammar(regex("(?s:.*)"), tokenizer)
    assert allowed(matcher) & control == tokenizer.eos_ids
    for bad in control - tokenizer.eos_ids:
        with pytest.raises(Failed):
            matcher.accept(bad)


def test_the_empty_text_alone_may_be_asked_for() -> None:
    for grammar in (choice(""), regex("")):
        matcher = compile_grammar(grammar, BYTES)
        assert matcher.is_accepting
        assert allowed(matcher) == BYTES.eos_ids


def test_a_mask_covers_the_vocabulary_and_nothing_beyond_it() -> None:
    assert BPE.vocab_size % 32 != 0
    mask = compile_grammar(regex("(?s:.*)"), BPE).mask()
    assert mask.dtype == np.int32
    assert mask.shape == ((BPE.vocab_size + 31) // 32,)
    assert mask.view(np.uint32)[-1] >> (BPE.vocab_size % 32) == 0


# ---------------------------------------------------------------- standing, forks, forced tokens


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**40, ord("c")])
def test_a_token_that_does_not_fit_is_refused_and_changes_nothing(token_id: int) -> None:
    matcher = compile_grammar(regex("ab"), BYTES)
    matcher.accept(ord("a"))
    with pytest.raises(Failed, match=rf"Token {token_id} .*does not fit"):
        matcher.accept(token_id)
    assert allowed(matcher) == {ord("b")}
    matcher.accept(ord("b"))
    assert matcher.is_finished


def test_a_fork_goes_its_own_way() -> None:
    matcher = compile_grammar(choice("north", "nose"), BYTES)
    for char in "no":
        matcher.accept(ord(char))
    fork = matcher.fork()
    fork.accept(ord("s"))
    assert allowed(fork) == {ord("e")}
    assert allowed(matcher) == {ord("r"), ord("s")}
    matcher.accept(ord("r"))
    assert fork.forced() == [ord("e")]


def test_masks_are_not_written_to_after_they_are_given() -> None:
    matcher = compile_grammar(regex("ab"), BYTES)
    first = matcher.mask()
    before = first.copy()
    matcher.accept(ord("a"))
    matcher.mask()
    assert np.array_equal(first, before)


@TOKENIZERS
def test_forced_tokens_are_allowed_and_lead_to_the_next_choice(tokenizer: Any) -> None:
    shape = Read.model_json_schema()
    matcher = compile_grammar(schema(shape), tokenizer)
    forced = matcher.forced()
    assert len(forced) > 3
    spelt = tokenizer.decode(forced)
    assert '{"name": "fs.read", "path": "'.startswith(spelt)
    for token_id in forced:
        assert token_id in allowed(matcher)
        matcher.accept(token_id)
    assert matcher.forced() == []
    assert len(allowed(matcher)) > 1


def test_nothing_is_forced_where_the_text_is_finished_or_may_end() -> None:
    matcher = compile_grammar(regex("ab?"), BYTES)
    assert matcher.forced() == [ord("a")]
    matcher.accept(ord("a"))
    assert matcher.forced() == []
    matcher.accept(ord("b"))
    assert matcher.is_finished
    assert matcher.forced() == []


# ---------------------------------------------------------------- the real vocabulary


@pytest.mark.model
def test_tool_calls_of_the_real_vocabulary_fit_their_schema(real_home: Path) -> None:
    tokenizer = ModelTokenizer.load(real_home / "models" / "smollm2")
    compiler = GrammarCompiler(tokenizer)
    adapter: TypeAdapter[Any] = TypeAdapter(Read | Add | Plan)
    for seed in range(20):
        matcher = compiler.compile(schema(adapter.json_schema()))
        adapter.validate_json(walk(matcher, tokenizer, seed=seed))
        assert allowed(matcher) == tokenizer.eos_ids

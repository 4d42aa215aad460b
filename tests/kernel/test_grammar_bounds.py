"""Grammars that are refused, that are bounded, and that are remembered."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.kernel.abi import Grammar, GrammarKind
from llmasos.kernel.errors import Failed, InvalidArguments
from llmasos.kernel.grammar import (
    MAX_CHOICE_CHARS,
    MAX_CHOICES,
    MAX_FORCED_BYTES,
    MAX_SOURCE_CHARS,
    GrammarCompiler,
    compile_grammar,
)
from llmasos.kernel.models.tokenizer import ModelTokenizer
from llmasos.kernel.scripted import ByteTokenizer
from tests.kernel.grammars import (
    BPE,
    BYTES,
    CORPUS,
    accepts,
    allowed,
    choice,
    lark,
    regex,
    schema,
    take_any_tokens,
    walk,
)

# ---------------------------------------------------------------- what is refused


def nested_schema(depth: int) -> str:
    return '{"type":"object","properties":{"a":' * depth + "{}" + "}}" * depth


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar(GrammarKind.JSON_SCHEMA, '{"type":'), "Expecting value"),
        (Grammar(GrammarKind.JSON_SCHEMA, ""), "Expecting value"),
        (schema([1]), "a schema is a JSON object"),
        (schema(False), "a schema is a JSON object"),
        (schema({"type": "foo"}), "Invalid type: foo"),
        (schema({"type": "integer", "minimum": 5, "maximum": 4}), "minimum"),
        (schema({"not": {"type": "string"}}), "not"),
        (schema({"$ref": "#/nowhere"}), "nowhere"),
        (schema({"$ref": "http://example.com/x.json"}), "example.com"),
        (schema({"$ref": "#"}), "no text fits it"),
        (schema({"type": "string", "pattern": "("}), "unclosed group"),
        (schema({"type": "string", "x-guidance": {"bogus": 1}}), "bogus"),
        (schema({"const": "\ud800"}), "surrogates not allowed"),
        (Grammar(GrammarKind.JSON_SCHEMA, nested_schema(200)), "recursion limit"),
        (Grammar(GrammarKind.JSON_SCHEMA, "[" * 100_000), "recursion"),
        (regex("abc("), "unclosed group"),
        (regex("(?=a)b"), "look-around"),
        (regex(r"\bfoo\b"), "lookarounds"),
        (regex(r"(a)\1"), "backreferences"),
        (regex(r"[^\s\S]"), "no text fits it"),
        (regex("(" * 5000 + "a" + ")" * 5000), "nest"),
        (regex("\ud800"), "surrogate"),
        (schema({"const": "x" * (MAX_FORCED_BYTES + 1)}), "forces"),
        (regex("a{100000}"), "forces 100000 bytes"),
        (choice(), "empty"),
        (Grammar(GrammarKind.CHOICE, '{"a": 1}'), "list of strings"),
        (Grammar(GrammarKind.CHOICE, '["a", 1]'), "list of strings"),
        (Grammar(GrammarKind.CHOICE, "yes, no"), "Expecting value"),
        (choice("\ud800"), "surrogate"),
        (choice("x" * (MAX_CHOICE_CHARS + 1)), "at most"),
        (choice(*map(str, range(MAX_CHOICES + 1))), "at most"),
        (lark(""), "no start rule"),
        (lark("start: foo"), "line 1, column 8: unknown name"),
        (lark("foo: /a/"), "no start rule"),
        (lark("start: start"), "no text fits it"),
        (lark('{"grammars": []}'), "line 1, column 1"),
        (lark("start: " + "(" * 5000 + '"a"' + ")" * 5000), "nested"),
        *(
            (Grammar(kind, "x" * (limit + 1)), "at most")
            for kind, limit in MAX_SOURCE_CHARS.items()
        ),
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused_in_one_sentence(
    grammar: Grammar, reason: str
) -> None:
    with pytest.raises(InvalidArguments) as caught:
        compile_grammar(grammar, BPE)
    message = str(caught.value)
    assert reason in message
    assert message.startswith("This ")
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 300


PUNCTUATION = st.text(st.sampled_from("ab01 (){}[]|*+?.\\/^$-,:\"'%!@<>~&\nstart"), max_size=30)
JSON_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
KEYWORDS = st.sampled_from(
    [
        *(
            "type",
            "properties",
            "items",
            "enum",
            "const",
            "anyOf",
            "allOf",
            "oneOf",
            "$ref",
            "$defs",
        ),
        *(
            "pattern",
            "minimum",
            "maxLength",
            "required",
            "format",
            "additionalProperties",
            "string",
        ),
    ]
)
JSON_VALUES = st.recursive(
    JSON_LEAVES | KEYWORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS, inner, max_size=4),
    max_leaves=12,
)
SOURCES = PUNCTUATION | st.text(max_size=20) | JSON_VALUES.map(json.dumps)


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(GrammarKind), source=SOURCES)
def test_any_source_either_works_or_is_refused_in_one_sentence(
    kind: GrammarKind, source: str
) -> None:
    refusal = ""
    try:
        take_any_tokens(compile_grammar(Grammar(kind, source), BPE), BPE, count=5)
    except InvalidArguments as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert refusal == "" or refusal.endswith(".")


def test_a_deep_but_sane_schema_works() -> None:
    text = json.dumps({"a": {"a": {"a": {}}}})
    assert accepts(Grammar(GrammarKind.JSON_SCHEMA, nested_schema(40)), text)


def test_ten_thousand_choices_work() -> None:
    rng = random.Random(0)
    texts = [f"{rng.choice(CORPUS)[:20]} {i} {rng.random()}" for i in range(10_000)]
    matcher = compile_grammar(choice(*texts), BPE)
    assert walk(matcher, BPE, seed=1) in texts


def test_text_without_a_choice_is_bounded_also_further_on() -> None:
    matcher = compile_grammar(regex("(x|y)a{100000}"), BYTES)
    matcher.accept(ord("x"))
    with pytest.raises(Failed, match=r"at token 2 \(it forces \d+ bytes"):
        matcher.mask()


def hostile() -> Iterator[Any]:
    choices = "|".join(f".{{{i}}}{chr(97 + i % 26)}x" for i in range(15, 40))
    for name, grammar in {
        "counted repeats": regex("(a{1000}){1000}"),
        "counted thrice": regex("((a{1000}){1000}){1000}"),
        "nested plus": regex("(a+)+b"),
        "exponential states": regex("(a|b)*a(a|b){24}"),
        "many windows": regex(f".*({choices})"),
        "ambiguous": lark('start: s\ns: s s s | s s | "a" |'),
        "wide rule": lark("start: " + " | ".join(f'"{i}x"' for i in range(5000))),
        "long literal": regex("ab" * 8000),
        "huge string": schema({"type": "string", "minLength": 10**5, "maxLength": 10**6}),
        "huge array": schema({"type": "array", "items": {"type": "integer"}, "minItems": 10**5}),
        "exploding allOf": schema(
            {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(4)]} for i in range(12)]}
        ),
    }.items():
        yield pytest.param(grammar, id=name)


@pytest.mark.parametrize("grammar", list(hostile()))
def test_a_hostile_grammar_is_bounded(grammar: Grammar) -> None:
    began = time.monotonic()
    with contextlib.suppress(InvalidArguments, Failed):
        take_any_tokens(compile_grammar(grammar, BPE), BPE, count=30)
    assert time.monotonic() - began < 60, "bounded is what counts; busy machines are slow"


# ---------------------------------------------------------------- remembering


WINDOWS = regex(".*(a.{20}b|b.{25}c|c.{22}d|d.{19}e)x")
"""Its lexer fills up within some dozens of tokens, whatever they are."""


def test_the_compiler_gives_fresh_matchers_of_a_grammar_it_remembers() -> None:
    compiler = GrammarCompiler(BYTES)
    first = compiler.compile(choice("ab", "cd"))
    first.accept(ord("a"))
    second = compiler.compile(choice("ab", "cd"))
    assert allowed(second) == {ord("a"), ord("c")}
    assert allowed(first) == {ord("b")}


def test_the_compiler_forgets_what_was_not_used_for_longest() -> None:
    asked: list[str] = []

    class Counting(ByteTokenizer):
        def grammar_tokenizer(self) -> Any:
            asked.append("compiled")
            return super().grammar_tokenizer()

    compiler = GrammarCompiler(Counting(), capacity=2)
    for text in ("a", "b", "a", "c", "a"):
        compiler.compile(choice(text))
    assert len(asked) == 3
    compiler.compile(choice("b"))
    assert len(asked) == 4


def test_several_threads_may_compile_at_once() -> None:
    compiler = GrammarCompiler(BPE, capacity=3)
    grammars = [regex(f"(ab){{{count}}}") for count in range(1, 7)] * 8
    with ThreadPoolExecutor(4) as threads:
        matchers = list(threads.map(compiler.compile, grammars))
    for grammar, matcher in zip(grammars, matchers, strict=True):
        assert regex_count(grammar) == len(walk(matcher, BPE, seed=0)) // 2


def regex_count(grammar: Grammar) -> int:
    return int(grammar.source.strip("(ab){}"))


def test_the_compiler_does_not_remember_a_bad_grammar() -> None:
    compiler = GrammarCompiler(BYTES)
    for _ in range(2):
        with pytest.raises(InvalidArguments):
            compiler.compile(regex("("))


@pytest.mark.model
def test_a_process_that_fills_a_lexer_does_not_take_its_neighbours_along(real_home: Path) -> None:
    tokenizer = ModelTokenizer.load(real_home / "models" / "smollm2")
    compiler = GrammarCompiler(tokenizer)
    hungry, neighbour = compiler.compile(WINDOWS), compiler.compile(WINDOWS)
    neighbour.accept(tokenizer.encode("hello")[0])
    with pytest.raises(Failed, match=r"too complex at token \d+"):
        take_any_tokens(hungry, tokenizer, count=200)
    neighbour.accept(tokenizer.encode(" world")[0])
    assert len(allowed(neighbour)) > 1000
    assert len(allowed(compiler.compile(WINDOWS))) > 1000

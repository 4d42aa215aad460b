"""Grammar constraints: which tokens may come next, for JSON schemas, regexes, choices and Lark.

llguidance does the parsing; this module feeds it, bounds it, and keeps one process's trouble from
another. It draws nothing: a mask travels to the core in a `SampleSpec`.

How each kind reads its source:

- `json_schema`: JSON spelt as Python's `json.dumps` does, `{"a": 1, "b": [2, 3]}`, with no other
  whitespace between tokens: small models like to add it for ever. A schema's own `x-guidance` may
  ask for another style. Properties come in the schema's order. A `format` that llguidance does not
  know is a mere annotation, as the standard has it; any other unknown keyword is an error.
- `regex`: Rust's syntax, so no look-around and no back-references; it matches the whole text; `.`
  is anything but a newline; `\\d` and the like are Unicode, as in Python's `re`.
- `choice`: a JSON list of strings; the text is exactly one of them.
- `lark`: llguidance's dialect of Lark; the start rule is `start`.

The end: a token that ends a turn is allowed exactly where the text may end. Where nothing else may
follow, `is_finished` says so at once and nobody needs to draw it.

Bounds: the size of a source, and llguidance's own limits on a grammar and on the work of one step.
Compiling and the first masks of a hostile grammar may take a second or two, in Rust with the GIL
released; so compile in a worker thread. What exceeds a bound is an error to that process alone.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from llmasos.kernel.abi import Grammar, GrammarKind
from llmasos.kernel.errors import Failed, InvalidArguments
from llmasos.kernel.tokenizer import Tokenizer

MAX_SOURCE_CHARS = {
    GrammarKind.JSON_SCHEMA: 1 << 18,
    GrammarKind.REGEX: 1 << 14,
    GrammarKind.CHOICE: 1 << 20,
    GrammarKind.LARK: 1 << 16,
}
"""A mask can cost time in proportion to the longest literal, so these are not generous."""

MAX_FORCED_BYTES = 1 << 14
"""Text without a choice: each mask looks to the end of it, at about a microsecond a byte."""

MAX_CHOICE_CHARS = MAX_FORCED_BYTES // 4
MAX_CHOICES = 20_000

_NAMES = {
    GrammarKind.JSON_SCHEMA: "JSON schema",
    GrammarKind.REGEX: "regular expression",
    GrammarKind.CHOICE: "list of choices",
    GrammarKind.LARK: "Lark grammar",
}

_JSON_STYLE: Any = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}

_JSON_FORMATS = frozenset(
    ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"]
)
"""What llguidance can hold a string to."""

_LITERALS = frozenset(["const", "enum", "default", "examples", "x-guidance"])
_SCHEMAS_BY_NAME = frozenset(
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"]
)


def _limits() -> LLParserLimits:
    """Below llguidance's own: a process whose grammar is this hard is refused, not waited for."""
    return LLParserLimits(
        max_items_in_row=1000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        verbose_errors=False,
    )


@dataclass(frozen=True, slots=True)
class _Compiled:
    """What a matcher is made of, as often as one is needed."""

    name: str
    rules: str
    tokenizer: LLTokenizer
    eos_ids: frozenset[int]
    ends: NDArray[np.int32]
    """The bits of `eos_ids`: what stands for the end of the text."""
    strangers: NDArray[np.int32]
    """The bits of tokens that llguidance takes for ends and the kernel's tokenizer does not."""

    @classmethod
    def of(cls, grammar: Grammar, tokenizer: Tokenizer) -> _Compiled:
        """Raises `ValueError` or `RecursionError` for a source that is not even well-formed."""
        rules = _RULES[grammar.kind](grammar.source)
        inner: LLTokenizer = tokenizer.grammar_tokenizer()
        ends, strangers = tokenizer.eos_ids, set(inner.eos_tokens) - tokenizer.eos_ids
        return cls(
            _NAMES[grammar.kind],
            rules,
            inner,
            ends,
            _bitmask(ends, inner.vocab_size),
            _bitmask(strangers, inner.vocab_size),
        )

    def spell(self, token_id: int) -> str:
        """A token as people read it."""
        return self.tokenizer.dbg_tokens([token_id])

    def start(self) -> LLMatcher:
        """A matcher at the beginning, with a lexer of its own; may be in an error state."""
        return LLMatcher(self.tokenizer, self.rules, log_level=0, limits=_limits())


def _bitmask(token_ids: Iterable[int], vocab_size: int) -> NDArray[np.int32]:
    bits = np.zeros((vocab_size + 31) // 32 * 32, dtype=np.uint8)
    bits[[token_id for token_id in token_ids if token_id < vocab_size]] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


class Matcher:
    """Where one generation stands in its grammar. For one thread at a time.

    Forks share a lexer: a cache of states that grows with use, up to a bound. Once it is full every
    one of them fails. So a matcher that is not alone with its lexer takes a new one before it gives
    up, and what a process may do does not depend on its neighbours.
    """

    __slots__ = ("_compiled", "_has_ended", "_inner", "_is_alone", "_token_ids")

    def __init__(self, compiled: _Compiled) -> None:
        self._compiled = compiled
        self._inner = compiled.start()
        self._is_alone = True
        self._token_ids: list[int] = []
        self._has_ended = False

    @property
    def is_accepting(self) -> bool:
        """Whether the text so far is complete, though more may be able to follow."""
        return self._has_ended or self._inner.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether the text is complete and nothing may follow."""
        return self._has_ended or (self._inner.is_stopped() and not self._inner.is_error())

    def mask(self) -> NDArray[np.int32]:
        """The tokens that may come next, as `SampleSpec.allowed` has them; a new array each time.

        Raises `Failed` when the grammar needs more work in one step than its bounds allow.
        """
        mask = self._fill()
        if self._inner.is_error() and self._start_over():
            mask = self._fill()
        if problem := self._problem():
            raise Failed(
                f"The {self._compiled.name} became too complex at token {len(self._token_ids) + 1} "
                f"({problem}); make it simpler."
            )
        mask &= ~self._compiled.strangers
        if self.is_accepting:
            mask |= self._compiled.ends
        return mask

    def accept(self, token_id: int) -> None:
        """Append a token. Raises `Failed`, and changes nothing, if the grammar does not allow it."""
        if token_id in self._compiled.eos_ids and self.is_accepting:
            self._has_ended = True
        elif self._consume(token_id):
            self._token_ids.append(token_id)
        else:
            shown = f" ({self._compiled.spell(token_id)})" if self._is_token(token_id) else ""
            raise Failed(
                f"Token {token_id}{shown} does not fit the {self._compiled.name} at this point."
            )

    def forced(self) -> list[int]:
        """Tokens that must come next whatever the model wants; empty where it has a choice.

        Appending them without asking the model spells the text as the tokenizer would.
        """
        if self.is_finished or self._inner.is_error():
            return []
        return list(self._inner.compute_ff_tokens())

    def fork(self) -> Matcher:
        """An independent matcher at the same point."""
        copy = Matcher.__new__(Matcher)
        copy._compiled = self._compiled
        copy._inner = self._inner.deep_copy()
        copy._is_alone = self._is_alone = False
        copy._token_ids = self._token_ids.copy()
        copy._has_ended = self._has_ended
        return copy

    def check(self) -> str:
        """What keeps this matcher and its forks from giving a mask; empty if nothing does."""
        self._fill()
        return self._problem()

    def _fill(self) -> NDArray[np.int32]:
        """llguidance's mask; it means nothing where there is a problem afterwards."""
        mask = np.zeros_like(self._compiled.ends)
        if not self._has_ended:
            llguidance.numpy.fill_next_token_bitmask(self._inner, mask[None])
        return mask

    def _problem(self) -> str:
        if self._inner.is_error():
            return _reason(self._inner.get_error())
        forced = 0 if self.is_finished else len(self._inner.compute_ff_bytes())
        if forced > MAX_FORCED_BYTES:
            return f"it forces {forced} bytes of text at once, and may force {MAX_FORCED_BYTES}"
        return ""

    def _is_token(self, token_id: int) -> bool:
        return 0 <= token_id < self._compiled.tokenizer.vocab_size

    def _consume(self, token_id: int) -> bool:
        if not self._is_token(token_id) or self.is_finished:
            return False
        if self._inner.try_consume_tokens([token_id]) == 1:
            return True
        return self._start_over() and self._inner.try_consume_tokens([token_id]) == 1

    def _start_over(self) -> bool:
        """Come to this point again with a new lexer, if this one may be full of others' states."""
        if self._is_alone:
            return False
        self._is_alone = True
        inner = self._compiled.start()
        if inner.try_consume_tokens(self._token_ids) != len(self._token_ids):
            return False
        self._inner = inner
        return True


def compile_grammar(grammar: Grammar, tokenizer: Tokenizer) -> Matcher:
    """A matcher at the beginning of a text.

    Blocks for a millisecond or so, a hostile grammar for a second or two. Raises `InvalidArguments`
    that says in one sentence what is wrong, also for a grammar that no text fits.
    """
    _check_size(grammar)
    try:
        compiled = _Compiled.of(grammar, tokenizer)
    except (ValueError, RecursionError) as error:
        raise _unusable(grammar, _reason(str(error))) from error
    matcher = Matcher(compiled)
    if problem := matcher.check():
        raise _unusable(grammar, problem)
    return matcher


def _unusable(grammar: Grammar, problem: str) -> InvalidArguments:
    return InvalidArguments(f"This {_NAMES[grammar.kind]} cannot be used: {problem}.")


def _check_size(grammar: Grammar) -> None:
    name, limit = _NAMES[grammar.kind], MAX_SOURCE_CHARS[grammar.kind]
    if len(grammar.source) > limit:
        raise InvalidArguments(
            f"This {name} is {len(grammar.source)} characters long and may be at most {limit}."
        )


class GrammarCompiler:
    """`compile_grammar` for one tokenizer, remembering the latest grammars. Thread-safe.

    An agent asks for the same tool-call schema in every round; remembering it saves compiling it
    and, more than that, the lexer states that earlier generations found.
    """

    def __init__(self, tokenizer: Tokenizer, *, capacity: int = 32) -> None:
        self._tokenizer = tokenizer
        self._capacity = capacity
        self._masters: OrderedDict[Grammar, Matcher] = OrderedDict()
        self._lock = Lock()

    def compile(self, grammar: Grammar) -> Matcher:
        """See `compile_grammar`."""
        with self._lock:
            if (matcher := self._recall(grammar)) is not None:
                return matcher
        master = compile_grammar(grammar, self._tokenizer)
        with self._lock:
            self._masters[grammar] = master
            self._masters.move_to_end(grammar)
            if len(self._masters) > self._capacity:
                self._masters.popitem(last=False)
            return master.fork()

    def _recall(self, grammar: Grammar) -> Matcher | None:
        master = self._masters.get(grammar)
        if master is None or master.check():
            return None
        self._masters.move_to_end(grammar)
        return master.fork()


def _json_rules(source: str) -> str:
    schema = json.loads(source)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ValueError("a schema is a JSON object")
    text = json.dumps(_without_unknown_formats(schema), ensure_ascii=False)
    return LLMatcher.grammar_from_json_schema(_spellable(text), defaults=_JSON_STYLE)


def _spellable(text: str) -> str:
    """The same text; raises `ValueError` for a lone surrogate, which no token can spell."""
    text.encode()
    return text


def _without_unknown_formats(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_unknown_formats(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _without_unknown_formats_under(key, value)
        for key, value in node.items()
        if not (key == "format" and isinstance(value, str) and value not in _JSON_FORMATS)
    }


def _without_unknown_formats_under(key: str, value: Any) -> Any:
    if key in _LITERALS:
        return value
    if key in _SCHEMAS_BY_NAME and isinstance(value, dict):
        return {name: _without_unknown_formats(schema) for name, schema in value.items()}
    return _without_unknown_formats(value)


def _choice_rules(source: str) -> str:
    choices = json.loads(source)
    if not isinstance(choices, list) or not all(isinstance(text, str) for text in choices):
        raise ValueError("it must be a JSON list of strings")
    if not choices:
        raise ValueError("it is empty")
    if len(choices) > MAX_CHOICES:
        raise ValueError(f"it has {len(choices)} entries and may have at most {MAX_CHOICES}")
    if max(map(len, choices)) > MAX_CHOICE_CHARS:
        raise ValueError(f"an entry may be at most {MAX_CHOICE_CHARS} characters long")
    alternatives = (_regex_literal(_spellable(text)) for text in dict.fromkeys(choices))
    return LLMatcher.grammar_from_regex("|".join(alternatives))


def _regex_literal(text: str) -> str:
    """A regex that matches just this text, with no character that could mean anything else."""
    return "".join(
        char if char.isalnum() or char == " " else f"\\x{{{ord(char):x}}}" for char in text
    )


def _lark_rules(source: str) -> str:
    """Wrapped, for bare text that begins with a brace would be read as llguidance's own format."""
    return json.dumps({"grammars": [{"lark_grammar": source}]})


_RULES = {
    GrammarKind.JSON_SCHEMA: _json_rules,
    GrammarKind.REGEX: LLMatcher.grammar_from_regex,
    GrammarKind.CHOICE: _choice_rules,
    GrammarKind.LARK: _lark_rules,
}


def _reason(error: str) -> str:
    """llguidance's message, or Python's, as the end of a sentence: the one line that tells."""
    if "NoExtension" in error[:20]:
        return "no text fits it"
    told = re.search(r"^error: (.+)$", error, re.MULTILINE)
    line = told[1] if told else (error.strip().splitlines() or ["no reason was given"])[0]
    line = re.sub(r"^.*\(in regex\): ", "", line)
    line = re.sub(r"^(?:at )?(\d+)\((\d+)\): ", r"line \1, column \2: ", line)
    return line[:200].rstrip(" .")

"""A conversation without some of its turns, token for token: what a full window's policy leaves.

The turns that stay keep the very tokens that they have, sampled ones included. That is right only where the
chat template writes turns one after another, each as if those dropped had never been; so the template's own
rendering of what stays is compared with the pieces, and where the two differ (a system prompt folded into
the first user turn, say) what stays is rendered anew. The reply in progress keeps its tokens always.

A text without turns loses tokens after its first few instead. Nothing here changes a context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

from llmasos.kernel.abi import Message
from llmasos.kernel.chat import Turn, render, starts_with, turn_starts
from llmasos.kernel.context import Context, common_prefix
from llmasos.kernel.core import Run
from llmasos.kernel.errors import InvalidArguments
from llmasos.kernel.tokenizer import Tokenizer
from llmasos.kernel.window import SINK_TOKENS, droppable, fewest, num_system


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a context holds, or would hold: see `Context` for its fields."""

    tokens: list[int]
    messages: list[Message]
    starts: list[int]
    reply_start: int | None

    @classmethod
    def of(cls, context: Context) -> Conversation:
        """As it is now."""
        return cls(context.tokens, context.messages, context.starts, context.reply_start)

    @classmethod
    def after(cls, context: Context, turn: Turn) -> Conversation:
        """As it will be after a turn."""
        tokens = context.tokens[: turn.num_kept] + turn.token_ids
        return cls(tokens, turn.messages, turn.starts, turn.reply_start)

    @property
    def roles(self) -> list[str]:
        """Of each turn, the open one included."""
        said = [message.role for message in self.messages]
        return said if self.reply_start is None else [*said, "assistant"]

    @property
    def sizes(self) -> list[int]:
        """Tokens of each turn."""
        ends = [*self.starts[1:], len(self.tokens)]
        return [end - start for start, end in zip(self.starts, ends, strict=False)]

    def turn_of(self, context: Context) -> Turn:
        """What makes the context this."""
        kept = common_prefix(context.tokens, self.tokens)
        return Turn(kept, self.tokens[kept:], self.messages, self.reply_start, self.starts)


@dataclass(frozen=True, slots=True)
class Shorter:
    """A conversation made shorter."""

    conversation: Conversation
    runs: tuple[Run, ...]
    """The tokens that stay as they were, in order, the beginning first; none if rendered anew."""
    dropped: Sequence[int]
    """Indexes of the turns that went; of a text without turns none."""
    text: str
    """What went, to be read."""


def shorten(
    whole: Conversation, tokenizer: Tokenizer, *, target: int, limit: int, end: int
) -> Shorter | None:
    """Drop the oldest turns until `target` tokens are left, or as many as may go if those are at most
    `limit`; None if they are more. Of a text without turns nothing goes from position `end` on.
    """
    if not whole.messages:
        return _shorten_text(whole, tokenizer, target=target, limit=limit, end=end)
    runs = droppable(whole.roles)
    count = fewest(whole.sizes, runs, len(whole.tokens) - target)
    best = None
    for num_runs in range(max(count, 1), len(runs) + 1):
        shorter = without(whole, tokenizer, list(chain(*runs[:num_runs])))
        if shorter is not None and len(shorter.conversation.tokens) <= limit:
            best = shorter
            if len(shorter.conversation.tokens) <= target:
                break
    return best


def without(
    whole: Conversation,
    tokenizer: Tokenizer,
    dropped: Sequence[int],
    *,
    instead: Message | None = None,
) -> Shorter | None:
    """The conversation without these turns, and with another after the system prompt if there is one
    `instead`. None where the template refuses what stays."""
    gone = sorted(dropped)
    messages = [message for index, message in enumerate(whole.messages) if index not in gone]
    if instead is not None:
        messages.insert(num_system(whole.roles), instead)
    try:
        rendered = render(tokenizer, messages, reply=whole.reply_start is not None)
    except InvalidArguments:
        return None
    pieces = _pieces(whole, tokenizer, gone)
    canonical = list(chain(*(piece.canonical for piece in pieces)))
    if pieces and rendered[len(rendered) - len(canonical) :] == canonical:
        head = rendered[: len(rendered) - len(canonical)]
        beginning = _beginning(whole, tokenizer, gone[0], head)
        if beginning is None:
            beginning = _beginning_anew(whole, tokenizer, messages[: gone[0] + bool(instead)], head)
        conversation, runs = _spliced(whole, messages, *beginning, pieces)
    else:
        conversation, runs = _rendered_anew(whole, tokenizer, messages, rendered), []
    return Shorter(
        conversation, tuple(runs), gone, "\n".join(as_text(whole.messages[index]) for index in gone)
    )


def as_text(message: Message) -> str:
    """A turn to be read."""
    return f"{message.role}: {message.content.strip()}"


def with_text(left: Conversation, token_ids: list[int]) -> Conversation:
    """A shortened text with others' tokens in place of what went."""
    tokens = left.tokens[:SINK_TOKENS] + token_ids + left.tokens[SINK_TOKENS:]
    return replace(left, tokens=tokens)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of turns that stay, after the first that goes."""

    turns: range
    start: int
    end: int
    """Where its tokens are."""
    canonical: list[int]
    """What the template writes for it."""


def _pieces(whole: Conversation, tokenizer: Tokenizer, gone: Sequence[int]) -> list[_Piece]:
    """Empty where the template does not write the turns one after another."""
    num_turns = len(whole.starts)
    ends = [*whole.starts[1:], len(whole.tokens)]
    rendered = render(tokenizer, whole.messages, reply=whole.reply_start is not None)
    pieces = []
    for turns in _kept_after(gone, num_turns):
        try:
            before = render(tokenizer, whole.messages[: turns.start], reply=False)
            until = rendered
            if turns.stop < num_turns:
                until = render(tokenizer, whole.messages[: turns.stop], reply=False)
        except InvalidArguments:
            return []
        if not (starts_with(rendered, until) and starts_with(until, before)):
            return []
        start, end = whole.starts[turns.start], ends[turns.stop - 1]
        pieces.append(_Piece(turns, start, end, until[len(before) :]))
    return pieces


def _kept_after(gone: Sequence[int], num_turns: int) -> list[range]:
    """Runs of turns that stay, between those that go and after them."""
    edges = [*gone, num_turns]
    return [range(a + 1, b) for a, b in pairwise(edges) if a + 1 < b]


def _beginning(
    whole: Conversation, tokenizer: Tokenizer, num_turns: int, head: list[int]
) -> tuple[list[int], list[int]] | None:
    """Tokens and starts of the turns before the first gap as they are, if nothing of them changes."""
    if render(tokenizer, whole.messages[:num_turns], reply=False) != head:
        return None
    return whole.tokens[: whole.starts[num_turns]], whole.starts[:num_turns]


def _beginning_anew(
    whole: Conversation, tokenizer: Tokenizer, messages: Sequence[Message], head: list[int]
) -> tuple[list[int], list[int]]:
    """The same, as the template writes it now."""
    tokens = whole.tokens[: whole.starts[0]] + head
    return tokens, turn_starts(tokenizer, messages, head, (), end=len(tokens), reply=False)


def _spliced(
    whole: Conversation,
    messages: list[Message],
    tokens: list[int],
    starts: list[int],
    pieces: Sequence[_Piece],
) -> tuple[Conversation, list[Run]]:
    """The pieces after a beginning."""
    runs = [Run(0, 0, common_prefix(whole.tokens, tokens))]
    distance = 0
    for piece in pieces:
        distance = piece.start - len(tokens)
        runs.append(Run(piece.start, len(tokens), piece.end - piece.start))
        starts = starts + [whole.starts[turn] - distance for turn in piece.turns]
        tokens = tokens + whole.tokens[piece.start : piece.end]
    reply_start = None if whole.reply_start is None else whole.reply_start - distance
    return Conversation(tokens, messages, starts, reply_start), runs


def _rendered_anew(
    whole: Conversation, tokenizer: Tokenizer, messages: list[Message], rendered: list[int]
) -> Conversation:
    tokens = whole.tokens[: whole.starts[0]] + rendered
    is_open = whole.reply_start is not None
    starts = turn_starts(tokenizer, messages, rendered, (), end=len(tokens), reply=is_open)
    if whole.reply_start is None:
        return Conversation(tokens, messages, starts, None)
    said = whole.tokens[whole.reply_start :]
    return Conversation(tokens + said, messages, starts, len(tokens))


def _shorten_text(
    whole: Conversation, tokenizer: Tokenizer, *, target: int, limit: int, end: int
) -> Shorter | None:
    tokens = whole.tokens
    stop = min(SINK_TOKENS + len(tokens) - target, end)
    if stop <= SINK_TOKENS or len(tokens) - (stop - SINK_TOKENS) > limit:
        return None
    left = Conversation(tokens[:SINK_TOKENS] + tokens[stop:], [], [], None)
    runs = Run(0, 0, SINK_TOKENS), Run(stop, SINK_TOKENS, len(tokens) - stop)
    return Shorter(left, runs, (), tokenizer.decode(tokens[SINK_TOKENS:stop]))

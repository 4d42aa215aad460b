"""A conversation as text: the model's own Jinja template, or a plain form for base models.

Templates come with the model and are not trusted: they run in Jinja's immutable sandbox, which
keeps them from attributes and files (not from using up time). Roles that a template drops or
refuses are folded into roles it knows, so that every content reaches the model.

A base model has no template. It gets the plain form, whose roles are mere words, so that a content
that contains "User:" can pass for a turn; nothing better can be done for such a model:

    Be brief.

    User: What is two and two?
    Assistant: Four.
    User: ...
    Assistant:
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any, Final, Protocol

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from llmasos.kernel.abi import Message
from llmasos.kernel.errors import ConfigError, InvalidArguments

_PROBE: Final = "zq{}zq"
_ROLES: Final = frozenset({"system", "user", "assistant", "tool"})


class Chat(Protocol):
    """A way to write a conversation down."""

    def render(self, messages: Sequence[Message], *, reply: bool) -> list[str]:
        """The conversation in pieces that are to be tokenised one by one and joined."""
        ...

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end the assistant's turn, where no token does."""
        ...

    @property
    def after_reply(self) -> str:
        """What follows an assistant's content at the end of a conversation."""
        ...


class PlainChat:
    """The form for models without a template; see the module's docstring."""

    stop_strings = ("\nUser:", "\nAssistant:", "\nTool:")
    after_reply = ""

    def render(self, messages: Sequence[Message], *, reply: bool) -> list[str]:
        """Role, content and line end are pieces of their own, so a longer conversation's tokens
        begin with a shorter one's, and a reply's own tokens fit in unchanged."""
        pieces: list[str] = []
        for message in messages:
            content = message.content.strip()
            if message.role == "system":
                pieces += [content, "\n\n"]
            else:
                pieces += [f"{message.role.capitalize()}:", f" {content}", "\n"]
        return [*pieces, "Assistant:"] if reply else pieces


class TemplateChat:
    """A model's chat template."""

    stop_strings = ()

    def __init__(
        self, source: str, specials: Mapping[str, str], *, now: Callable[[], datetime]
    ) -> None:
        """`specials` are the names a template may use (`bos_token` ...); `now` serves the
        templates that write today's date. Raises `ConfigError` if the template is malformed."""
        try:
            self._template = _environment(now).from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"The model's chat template is malformed: {error}.") from error
        self._specials = dict(specials)

    def render(self, messages: Sequence[Message], *, reply: bool) -> list[str]:
        """The conversation in one piece; raises `InvalidArguments` if the template refuses it."""
        folded = self._fold(messages)
        try:
            return [self._render(folded, reply=reply)]
        except jinja2.TemplateError:
            return [self._render_strictly(folded, reply=reply)]

    @cached_property
    def after_reply(self) -> str:
        """What the template writes after an assistant's content at the end of a conversation."""
        answer = _PROBE.format("assistant")
        chat = [Message("user", _PROBE.format("user")), Message("assistant", answer)]
        try:
            return self._render(chat, reply=False).rpartition(answer)[2]
        except jinja2.TemplateError:
            return ""

    def _render(self, messages: Sequence[Message], *, reply: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(
                **self._specials, messages=turns, add_generation_prompt=reply, tools=None
            )
        except (TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise jinja2.TemplateRuntimeError(str(error)) from error

    def _render_strictly(self, messages: Sequence[Message], *, reply: bool) -> str:
        """For templates that want users and assistants to alternate and one system at the top."""
        rest = [_as_user(message, "system") for message in messages[1:]]
        merged = _merge_neighbours([*messages[:1], *rest])
        try:
            return self._render(merged, reply=reply)
        except jinja2.TemplateError as error:
            reason = str(error).strip().rstrip(".") or type(error).__name__
            message = f"The model's chat template refuses this conversation: {reason}."
            raise InvalidArguments(message) from error

    def _fold(self, messages: Sequence[Message]) -> list[Message]:
        """The messages in the roles that this template writes out."""
        used = {message.role for message in messages}
        if "tool" in used and not self._writes_tool:
            messages = [_as_user(message, "tool") for message in messages]
        if "system" in used and not self._writes_system:
            messages = _merge_neighbours([_as_user(message, "system") for message in messages])
        return list(messages)

    @cached_property
    def _writes_system(self) -> bool:
        return self._writes("system", "user")

    @cached_property
    def _writes_tool(self) -> bool:
        return self._writes("user", "assistant", "tool")

    def _writes(self, *roles: str) -> bool:
        """Whether contents in these roles all reach the text."""
        chat = [Message(role, _PROBE.format(role)) for role in roles]
        try:
            text = self._render(chat, reply=True)
        except jinja2.TemplateError:
            return False
        return all(message.content in text for message in chat)


def check_roles(messages: Sequence[Message]) -> None:
    """Raise `InvalidArguments` for a role that is none; templates write roles out unquoted."""
    wrong = sorted({message.role for message in messages} - _ROLES)
    if wrong:
        known = ", ".join(sorted(_ROLES))
        raise InvalidArguments(f"A message's role is one of {known}, not {wrong[0]!r}.")


def _as_user(message: Message, role: str) -> Message:
    return replace(message, role="user") if message.role == role else message


def _merge_neighbours(messages: Sequence[Message]) -> list[Message]:
    """Joins consecutive messages of one role with an empty line."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role:
            content = f"{merged[-1].content}\n\n{message.content}"
            merged[-1] = replace(message, content=content)
        else:
            merged.append(message)
    return merged


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    """What templates are written for: the extensions and helpers that transformers gives them."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _to_json
    environment.globals = {
        "range": environment.globals["range"],
        "dict": lambda *args, **names: dict(*args, **names),
        "namespace": _Namespace,
        "raise_exception": _refuse,
        "strftime_now": lambda form: now().strftime(form),
    }
    return environment


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's part for training; here it writes its body."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Jinja's namespace without names that reach into Python's own."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a template may not set {name}")
        super().__setitem__(name, value)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(reason: str) -> None:
    raise jinja2.TemplateRuntimeError(reason)

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.kernel.abi import Message
from llmasos.kernel.errors import ConfigError, InvalidArguments
from llmasos.kernel.models import ModelTokenizer
from llmasos.kernel.models.chat import TemplateChat
from tests.kernel.models import tiny

shared = settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NASTY = ["<|im_start|>", "<|im_end|>", "<end_of_turn>", "<start_of_turn>", "<bos>", "</s>"]
PARTS = [
    "<",
    "<|",
    "|>",
    ">",
    "im_end",
    "im_",
    "end|>",
    "_of_turn>",
    "system",
    "\n",
    " ",
    "a",
    "🙂",
]
content = st.lists(st.sampled_from([*NASTY, *PARTS]), max_size=8).map("".join)
benign = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>|"), max_size=20)


def turns(contents: list[str]) -> list[Message]:
    return [Message("user" if i % 2 == 0 else "assistant", c) for i, c in enumerate(contents)]


def specials_in(tokenizer: ModelTokenizer, token_ids: list[int]) -> list[int]:
    return [
        i for i in token_ids if not tokenizer.decode([i]) and tokenizer.decode([i], special=True)
    ]


@shared
@given(contents=st.lists(content, min_size=1, max_size=4))
def test_contents_never_forge_a_control_token(
    any_kind: ModelTokenizer, contents: list[str]
) -> None:
    plain = any_kind.render_chat(turns(["a" for _ in contents]), reply=True)
    nasty = any_kind.render_chat(turns(contents), reply=True)
    assert specials_in(any_kind, nasty) == specials_in(any_kind, plain)


@shared
@given(contents=st.lists(content, min_size=1, max_size=4))
def test_contents_arrive_letter_by_letter(chatml: ModelTokenizer, contents: list[str]) -> None:
    expected = "".join(
        f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns(contents)
    )
    assert chatml.decode(chatml.render_chat(turns(contents), reply=False), special=True) == expected


@shared
@given(contents=st.lists(benign, min_size=1, max_size=4))
def test_harmless_conversations_are_tokenised_as_their_text(
    chatml: ModelTokenizer, contents: list[str]
) -> None:
    text = "".join(
        f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns(contents)
    )
    assert chatml.render_chat(turns(contents), reply=False) == chatml.encode(text, special=True)


@shared
@given(contents=st.lists(content | benign, min_size=2, max_size=6))
def test_a_longer_conversation_begins_with_the_shorter_ones_tokens(
    any_kind: ModelTokenizer, contents: list[str]
) -> None:
    whole = any_kind.render_chat(turns(contents), reply=False)
    for length in range(1, len(contents)):
        part = any_kind.render_chat(turns(contents[:length]), reply=False)
        assert whole[: len(part)] == part


@shared
@given(contents=st.lists(benign, min_size=1, max_size=5))
def test_a_reply_continues_the_conversation_so_far(
    any_kind: ModelTokenizer, contents: list[str]
) -> None:
    so_far = any_kind.render_chat(turns(contents), reply=False)
    assert any_kind.render_chat(turns(contents), reply=True)[: len(so_far)] == so_far


def test_two_contents_that_touch_cannot_join_into_a_control_token(folder: Path) -> None:
    template = "{% for message in messages %}{{ message['content'] | trim }}{% endfor %}"
    tokenizer = tiny.load(folder, tiny.byte_level("<|im_end|>"), template=template)
    messages = [Message("user", "a <|im_ "), Message("user", " end|> b")]
    ids = tokenizer.render_chat(messages, reply=False)
    assert specials_in(tokenizer, ids) == []
    assert tokenizer.decode(ids) == "a <|im_end|> b"


def test_a_template_that_rearranges_contents_gets_them_unharmed(folder: Path) -> None:
    template = (
        "{% for message in messages %}{% if '</think>' in message.content %}"
        "{{ message.content.split('</think>')[-1] | trim }}{% else %}{{ message.content }}"
        "{% endif %}<|im_end|>{% endfor %}"
    )
    backend = tiny.byte_level("<|im_end|>", markup=("<think>", "</think>"))
    tokenizer = tiny.load(folder, backend, template=template)
    ids = tokenizer.render_chat([Message("assistant", "<think>hm</think>\n\nyes")], reply=False)
    assert tokenizer.decode(ids) == "yes"


def test_roles_that_a_template_refuses_reach_it_as_the_users(gemma_like: ModelTokenizer) -> None:
    messages = [
        Message("system", "be brief"),
        Message("user", "hello"),
        Message("assistant", "a call"),
        Message("tool", "a result"),
    ]
    assert gemma_like.decode(gemma_like.render_chat(messages, reply=True), special=True) == (
        "<bos><start_of_turn>user\nbe brief\n\nhello<end_of_turn>\n"
        "<start_of_turn>assistant\na call<end_of_turn>\n"
        "<start_of_turn>user\na result<end_of_turn>\n<start_of_turn>assistant\n"
    )


def test_neighbouring_turns_of_one_role_are_merged_where_they_must_be(
    gemma_like: ModelTokenizer, chatml: ModelTokenizer
) -> None:
    messages = [Message("user", "one"), Message("user", "two")]
    assert gemma_like.decode(gemma_like.render_chat(messages, reply=False)) == "user\none\n\ntwo\n"
    assert chatml.decode(chatml.render_chat(messages, reply=False)) == "user\none\nuser\ntwo\n"


def test_a_role_that_a_template_drops_is_not_lost(folder: Path) -> None:
    template = (
        "{% for message in messages %}{% if message.role == 'user' %}U:{{ message.content }}\n"
        "{% elif message.role == 'assistant' %}A:{{ message.content }}\n{% endif %}{% endfor %}"
    )
    tokenizer = tiny.load(folder, tiny.byte_level("<|im_end|>"), template=template)
    messages = [Message("system", "brief"), Message("user", "hi"), Message("tool", "42")]
    assert tokenizer.decode(tokenizer.render_chat(messages, reply=False)) == "U:brief\n\nhi\n\n42\n"


def test_a_conversation_that_a_template_refuses_is_told(gemma_like: ModelTokenizer) -> None:
    with pytest.raises(InvalidArguments, match="roles must alternate"):
        gemma_like.render_chat([Message("assistant", "hello")], reply=True)


@pytest.mark.parametrize("role", ["", "User", "<|im_end|>", "assistant\n"])
def test_a_role_that_is_none_is_refused(any_kind: ModelTokenizer, role: str) -> None:
    with pytest.raises(InvalidArguments, match="role"):
        any_kind.render_chat([Message(role, "hello")], reply=True)


def test_a_conversation_may_be_empty(chatml: ModelTokenizer) -> None:
    assert chatml.render_chat([], reply=False) == []
    assert chatml.decode(chatml.render_chat([], reply=True)) == "assistant\n"


def test_an_empty_conversation_that_a_template_refuses_is_told(folder: Path) -> None:
    tokenizer = tiny.load(folder, tiny.byte_level(), template="{{ messages[0].content.x }}")
    with pytest.raises(InvalidArguments, match="chat template refuses"):
        tokenizer.render_chat([], reply=True)


def test_a_model_without_a_template_gets_the_plain_form(old_llama_like: ModelTokenizer) -> None:
    messages = [Message("system", "brief"), Message("user", "hello\n"), Message("assistant", "a")]
    ids = old_llama_like.render_chat(messages, reply=False)
    assert tuple(ids[:1]) == old_llama_like.bos_ids
    assert old_llama_like.chat_stop_strings[0] == "\nUser:"


def test_the_plain_form_reads_as_documented(folder: Path) -> None:
    tokenizer = tiny.load(folder, tiny.byte_level())
    messages = [
        Message("system", "Be brief."),
        Message("user", " What is two and two? "),
        Message("assistant", "Four."),
        Message("user", "And three?"),
    ]
    assert tokenizer.decode(tokenizer.render_chat(messages, reply=True)) == (
        "Be brief.\n\nUser: What is two and two?\nAssistant: Four.\nUser: And three?\nAssistant:"
    )


def test_old_tokenizers_get_the_space_that_they_were_trained_with(folder: Path) -> None:
    template = "{% for message in messages %}{{ message.content }}</s>{% endfor %}"
    first = tiny.load(folder, tiny.unigram("<s>", "</s>"), template=template)
    every = tiny.load(
        folder.with_name("every"), tiny.unigram("<s>", "</s>", scheme="always"), template=template
    )
    messages = [Message("user", "hello"), Message("user", "hello")]
    assert first.decode(first.render_chat(messages, reply=False)) == " hellohello"
    assert every.decode(every.render_chat(messages, reply=False)) == " hello hello"


def test_templates_may_ask_for_the_date_and_mark_generations(folder: Path) -> None:
    template = (
        "{{ strftime_now('%d %b %Y') }}{% for message in messages %}{% generation %}"
        "{{ message.content }}{% endgeneration %}{% if loop.first %}{% continue %}{% endif %}!"
        "{% endfor %}"
    )
    tiny.write_tokenizer(folder, tiny.byte_level(), template=template)
    tokenizer = ModelTokenizer.load(folder, now=lambda: datetime(2024, 7, 26))
    messages = [Message("user", "a"), Message("user", "b")]
    assert tokenizer.decode(tokenizer.render_chat(messages, reply=False)) == "26 Jul 2024ab!"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'].dumps }}",
        "{% include 'config.json' %}",
        "{{ messages[99].content.x }}",
        "{{ 1 / 0 }}",
        "{{ 'a' * 3 + 1 }}",
    ],
)
def test_a_template_that_reaches_out_or_fails_is_refused(folder: Path, template: str) -> None:
    tokenizer = tiny.load(folder, tiny.byte_level(), template=template)
    with pytest.raises(InvalidArguments, match="chat template refuses"):
        tokenizer.render_chat([Message("user", "a")], reply=True)


def test_a_malformed_template_is_told() -> None:
    with pytest.raises(ConfigError, match="malformed"):
        TemplateChat("{% for %}", {}, now=datetime.now)


def test_the_template_file_wins_over_the_settings(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    settings = {"chat_template": named}
    tokenizer = tiny.load(folder, tiny.byte_level(), settings=settings)
    assert tokenizer.decode(tokenizer.render_chat([Message("user", "a")], reply=True)) == "D"
    tokenizer = tiny.load(folder, tiny.byte_level(), settings=settings, template="F")
    assert tokenizer.decode(tokenizer.render_chat([Message("user", "a")], reply=True)) == "F"

"""What becomes of a call: the first rule that matches decides."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.abi import Effect
from llmasos.kernel.rules import (
    ANYBODY,
    CLEAN,
    Asked,
    Decision,
    Policy,
    Rule,
    exact,
    rule_of,
    rule_values,
    spellings,
)
from llmasos.kernel.taint import MAX_LABELS, MORE, Trust, joined, label

ALLOW, ASK, DENY = Decision.ALLOW, Decision.ASK, Decision.DENY
WEB = ("web:https://example.org/",)


def asked(
    syscall: str = "fs.write",
    effect: Effect = Effect.WRITE,
    taint: tuple[str, ...] = (),
    root: str = "",
    reaches_out: bool = False,
    app: str = "agent",
    **arguments: object,
) -> Asked:
    return Asked(syscall, arguments, app, effect, taint, reaches_out, root)


def test_without_rules_a_clean_process_may_and_a_tainted_one_is_asked_about() -> None:
    policy = Policy(tainted=ASK)
    assert policy.decide(asked()) is ALLOW
    assert policy.decide(asked(taint=WEB)) is ASK
    assert policy.decide(asked("fs.read", Effect.READ, WEB)) is ALLOW
    assert policy.decide(asked("web.fetch", Effect.EXTERNAL, WEB)) is ASK


def test_a_read_that_tells_somebody_outside_its_arguments_is_risky() -> None:
    policy = Policy(tainted=DENY)
    assert policy.decide(asked("mcp.notes.get", Effect.READ, WEB, reaches_out=True)) is DENY


def test_what_carries_its_labels_along_is_not_risky() -> None:
    assert Policy(tainted=DENY).decide(asked("proc.spawn", Effect.WRITE, WEB)) is ALLOW


def test_the_first_rule_that_matches_decides_and_a_process_s_own_come_first() -> None:
    policy = Policy((Rule(DENY, ("fs.*",)), Rule(ALLOW, ("fs.write",))))
    assert policy.decide(asked()) is DENY
    assert policy.decide(asked(), [Rule(ALLOW, ("fs.write",))]) is ALLOW


def test_a_rule_wants_all_of_its_conditions() -> None:
    rule = Rule(ASK, ("fs.*",), ("agent",), (Effect.WRITE,), {"path": "*.md"}, (CLEAN,))
    assert rule.matches(asked(path="a.md"))
    assert not rule.matches(asked("exec.shell", path="a.md"))
    assert not rule.matches(asked(path="a.md", app="chat"))
    assert not rule.matches(asked(effect=Effect.READ, path="a.md"))
    assert not rule.matches(asked(path="a.txt"))
    assert not rule.matches(asked(other="a.md"))
    assert not rule.matches(asked(path="a.md", taint=WEB))


def test_a_rule_that_allows_speaks_of_tainted_processes_only_where_it_says_so() -> None:
    assert not Rule(ALLOW, ("fs.write",)).matches(asked(taint=WEB))
    assert Rule(ALLOW, ("fs.write",), taint=("web:https://example.org/*",)).matches(
        asked(taint=WEB)
    )
    assert Rule(ALLOW, ("fs.write",), taint=ANYBODY).matches(asked(taint=WEB))
    assert Rule(ALLOW, ("fs.write",), taint=ANYBODY).matches(asked())
    assert Rule(ALLOW, ("fs.read",)).matches(asked("fs.read", Effect.READ, WEB))


def test_to_allow_all_labels_must_match_and_to_deny_one_is_enough() -> None:
    mixed = (*WEB, "web:https://evil.example/")
    good = ("web:https://example.org/*",)
    assert not Rule(ALLOW, taint=good).matches(asked(taint=mixed))
    assert Rule(DENY, taint=good).matches(asked(taint=mixed))


def test_labels_that_are_summed_up_may_be_any() -> None:
    summed = (*WEB, MORE)
    assert Rule(DENY, taint=("web:https://evil.example/*",)).matches(asked(taint=summed))
    assert not Rule(ALLOW, taint=("web:*",)).matches(asked(taint=summed))


@pytest.mark.parametrize(
    "path", ["secret/key", "./secret/key", "secret//key", "a/../secret/key", "{root}/secret/key",
             "link/key"],
)  # fmt: skip
def test_no_spelling_of_a_path_evades_a_rule(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "link").symlink_to("secret")
    spelled = path.format(root=tmp_path)
    call = asked(path=spelled, root=str(tmp_path))
    assert Rule(DENY, arguments={"path": "secret/*"}).matches(call)
    allowed = Rule(ALLOW, arguments={"path": "*"})
    assert allowed.matches(call)
    notes = asked(path=f"notes/../{spelled}" if path == "secret/key" else spelled,
                  root=str(tmp_path))  # fmt: skip
    assert not Rule(ALLOW, arguments={"path": "notes/*"}).matches(notes)


@pytest.mark.parametrize(
    "url", ["https://evil.example/x", "HTTPS://EVIL.example/x", "https://evil.example:443/x",
            "https://evil.example./x", "https://evil.example/x#f"],
)  # fmt: skip
def test_no_spelling_of_a_url_evades_a_rule(url: str) -> None:
    call = asked("web.fetch", Effect.EXTERNAL, url=url)
    assert Rule(DENY, arguments={"url": "https://evil.example/*"}).matches(call)
    assert not Rule(ALLOW, arguments={"url": "https://good.example/*"}).matches(call)


def test_arguments_that_are_no_text_are_matched_as_json() -> None:
    assert Rule(DENY, arguments={"hidden": "true"}).matches(asked(hidden=True))
    assert Rule(DENY, arguments={"lines": '[[]1, "a"]'}).matches(asked(lines=[1, "a"]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
ARGUMENTS = st.dictionaries(st.text(min_size=1, max_size=4), VALUES, max_size=3)


@given(ARGUMENTS, ARGUMENTS)
def test_a_rule_for_exact_arguments_matches_those_and_no_others(
    one: dict[str, object], other: dict[str, object]
) -> None:
    rule = Rule(ALLOW, exactly=exact(one), taint=ANYBODY)
    assert rule.matches(Asked("fs.write", one, "agent", Effect.WRITE))
    same = repr(sorted(one.items(), key=str)) == repr(sorted(other.items(), key=str))
    if not same and one != other:
        assert not rule.matches(Asked("fs.write", other, "agent", Effect.WRITE))


RULES = st.builds(
    Rule,
    st.sampled_from(Decision),
    syscall=st.sampled_from([("*",), ("fs.*",), ("fs.write", "exec.*")]),
    app=st.sampled_from([("*",), ("agent",)]),
    effect=st.sampled_from([(), (Effect.WRITE,)]),
    arguments=st.sampled_from([{}, {"path": "notes/*"}]),
    taint=st.sampled_from([(), ("*",), (CLEAN,), ANYBODY, ("web:*",)]),
    exactly=st.none() | st.just(exact({"path": "a"})),
)
CALLS = st.builds(
    Asked,
    st.sampled_from(["fs.read", "fs.write", "exec.shell", "web.fetch"]),
    st.sampled_from([{}, {"path": "notes/a"}, {"path": "a"}, {"path": "notes/../a"}]),
    st.sampled_from(["agent", "chat"]),
    st.sampled_from(Effect),
    st.sampled_from([(), WEB, ("file:/x", *WEB), (MORE,)]),
    st.booleans(),
)


@given(st.lists(RULES, max_size=5), CALLS)
def test_a_decision_is_that_of_the_first_rule_that_matches_or_the_default(
    rules: list[Rule], call: Asked
) -> None:
    policy = Policy(tuple(rules), tainted=ASK, otherwise=ALLOW)
    first = next((rule.decision for rule in rules if rule.matches(call)), None)
    default = ASK if call.taint and call.is_risky else ALLOW
    assert policy.decide(call) is (first or default)


@given(RULES)
def test_a_rule_survives_being_written_down(rule: Rule) -> None:
    assert rule_of(rule_values(rule)) == rule


@given(st.lists(RULES, max_size=5), CALLS)
def test_no_rule_that_is_silent_about_taint_allows_a_tainted_process_to_do_harm(
    rules: list[Rule], call: Asked
) -> None:
    policy = Policy(tuple(rule for rule in rules if not rule.taint), tainted=ASK)
    if call.taint and call.is_risky:
        assert policy.decide(call) is not ALLOW


def test_labels_are_bounded_and_never_end_in_none() -> None:
    many = joined(f"web:{number}" for number in range(100))
    assert len(many) == MAX_LABELS
    assert many[-1] == MORE
    assert joined(many, ["web:one more"]) == many
    assert joined() == ()
    assert len(label("web", "x" * 10_000)) <= 200
    assert "\n" not in label("web", "a\nb")
    assert "\x1b" not in label("web", "\x1b[2J")


def test_trust_is_by_folder_and_distrust_wins() -> None:
    trust = Trust(trusted=("/home/me/work",), untrusted=("/home/me/work/downloads", "*.eml"))
    assert not trust.is_outside("/home/me/work/a.md")
    assert trust.is_outside("/home/me/other/a.md")
    assert trust.is_outside("/home/me/work/downloads/a.md")
    assert trust.is_outside("/home/me/work/a.eml")
    assert trust.is_outside("/home/me/workshop/a.md")
    assert not Trust().is_outside("/anything")


def test_a_path_s_spellings_are_relative_to_its_root(tmp_path: Path) -> None:
    assert spellings("a/./b", str(tmp_path)) == {"a/./b", "a/b"}
    assert "b" in spellings(os.path.join(tmp_path, "b"), str(tmp_path))

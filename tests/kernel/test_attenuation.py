"""What is left of a capability is never more than it was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.abi import ArgumentRule, Capabilities, Mount, Narrowing
from llmasos.kernel.attenuation import broken_rule, meet, meet_patterns, narrowed
from llmasos.kernel.errors import InvalidArguments

NAMES = ("fs.read", "fs.write", "fs.grep", "web.fetch", "calc", "f", "fs.", "x[a]", "mcp.a.read")
patterns = st.lists(
    st.sampled_from(
        ["*", "fs.*", "*.read", "fs.read", "web.*", "f*", "?s.read", "[fw]*", "x[[]a]", "*e*", "!"]
    ),
    max_size=4,
).map(tuple)


@given(patterns, patterns, patterns)
def test_two_lists_of_patterns_meet_in_exactly_the_names_of_both(
    one: tuple[str, ...], two: tuple[str, ...], three: tuple[str, ...]
) -> None:
    met = Capabilities(meet_patterns(meet_patterns(one, two), three))
    for name in NAMES:
        in_all = all(Capabilities(each).allows(name) for each in (one, two, three))
        assert met.allows(name) == in_all


def test_patterns_that_multiply_without_end_are_refused() -> None:
    mine = tuple(f"*{char}*" for char in "abcdefghijklmnopqrst")
    with pytest.raises(InvalidArguments, match="too many"):
        meet_patterns(mine, tuple(pattern.upper() for pattern in mine))


@pytest.mark.parametrize("within", ["..", "a/../../b", "/etc", "~/x", "a\0b"])
def test_a_folder_that_is_not_below_is_refused(within: str) -> None:
    with pytest.raises(InvalidArguments, match="below"):
        narrowed(Capabilities(within="a"), Narrowing(within=within), 0)


def test_folders_hosts_and_time_only_get_less() -> None:
    mine = Capabilities(hosts=("*.example.org",), within="a", expires_at=50.0)
    by = Narrowing(
        hosts=("www.example.org", "evil.example"), within="b/./c", read_only=True, expires_in_s=100
    )
    less = narrowed(mine, by, 10.0)
    assert less == Capabilities(
        hosts=("www.example.org",), within="a/b/c", read_only=True, expires_at=50.0
    )
    assert narrowed(less, Narrowing(read_only=False), 0.0).read_only


def test_a_mount_can_be_left_out_and_not_be_added() -> None:
    mine = Capabilities(mounts=(Mount("docs", "/d"), Mount("data", "/x")))
    less = narrowed(mine, Narrowing(mounts=("docs",), read_only=True), 0)
    assert less.mounts == (Mount("docs", "/d", read_only=True),)
    with pytest.raises(InvalidArguments, match="no mount 'data'"):
        narrowed(less, Narrowing(mounts=("data",)), 0)


@pytest.mark.parametrize(
    ("arguments", "is_kept"),
    [
        ({"path": "docs/a.md"}, True),
        ({"path": "secret"}, False),
        ({"path": "docs/../secret"}, False),
        ({"path": "docs\\..\\secret"}, False),
        ({"path": None}, False),
        ({"other": "docs/a.md"}, False),
        ({}, False),
    ],
)
def test_a_rule_about_an_argument_holds_whatever_the_argument_is(
    arguments: dict[str, Any], is_kept: bool
) -> None:
    allows = Capabilities(arguments=(ArgumentRule("fs.*", "path", ("docs/*",)),))
    assert (broken_rule(allows, "fs.read", arguments) is None) == is_kept
    assert broken_rule(allows, "calc", arguments) is None


def test_rules_add_up() -> None:
    mine = Capabilities(arguments=(ArgumentRule("calc", "expression", ("1*",)),))
    less = narrowed(mine, Narrowing(arguments=(ArgumentRule("calc", "expression", ("*2",)),)), 0)
    assert broken_rule(less, "calc", {"expression": "1+2"}) is None
    for expression in ("1+3", "2"):
        assert broken_rule(less, "calc", {"expression": expression}) is not None


def test_what_two_allow_together_is_under_the_first_ones_folder() -> None:
    ours = Capabilities(("fs.*", "io.*"), "/ours", ("*.example",), mounts=(Mount("m", "/m"),))
    theirs = Capabilities(
        ("*.read",), "/theirs", ("a.example",), "sub", True, (Mount("m", "/etc"),)
    )
    met = meet(ours, theirs)
    assert (met.root, met.within, met.read_only, met.mounts) == ("/ours", "sub", True, ())
    assert met.hosts == ("a.example",)
    assert met.allows("fs.read")
    assert not met.allows("fs.write")
    assert not met.allows("web.read")
    with pytest.raises(InvalidArguments):
        meet(ours, Capabilities(within="../up"))

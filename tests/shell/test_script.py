"""Scripts: parsing, variables, expectations, exit codes."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.errors import UsageError
from llmasos.shell.script import parse, uncommented
from llmasos.shell.script_run import ScriptRun

pytestmark = pytest.mark.anyio


@pytest.fixture
def runs(local, recorder, tmp_path):
    """Runs a script; returns its exit code and what it wrote."""

    async def run(text, *args, **options):
        seen = recorder(local)
        options = {"echo": False, "times": False, **options}
        script = ScriptRun(seen.environment, "dir/test.las", args, **options)
        code = await script.run(script.parse(text))
        return code, seen.out, seen.err

    return run


async def test_lines_are_done_in_order_and_plain_text_is_said_to_one_chat(runs):
    code, out, err = await runs(
        "# a comment\n\n/echo one\nhello\nhello again\n  /echo two # done\n"
    )
    assert (code, out, err) == (0, "one\nreply 1\nreply 2\ntwo\n", "")


async def test_a_line_that_fails_ends_the_script_with_its_code(runs):
    code, out, err = await runs("/echo a\n/run fail\n/echo b\n")
    assert (code, out) == (1, "a\n")
    assert "it broke" in err
    assert "test.las:2: the script ended here with exit code 1: /run fail" in err


async def test_errexit_can_be_turned_off(runs):
    code, out, _ = await runs("/set errexit off\n/run fail\n/echo $?\n")
    assert (code, out) == (0, "1\n")


async def test_a_verb_that_raises_fails_like_one_that_returns(runs):
    code, _, err = await runs("/set errexit off\n/kill 99\n/wait 98\n/ps --nope\n")
    assert code == 2
    assert "no process 99" in err
    assert "no process 98" in err
    assert "no flag --nope" in err


async def test_output_can_be_kept_in_a_variable(runs):
    code, out, _ = await runs('$x = /run count 2\n/echo "[$x]"\n$y = "a b" c\n/echo $y\n')
    assert (code, out) == (0, "[0\n1]\na b c\n")


async def test_background_processes_have_pids_and_are_awaited(runs):
    code, out, _ = await runs(
        "$a = /run count 1 &\n/run echo &\n/echo $a $!\n/ps\n/expect echo\n/wait\n/ps\n/expect --not echo\n"
    )
    assert code == 0
    assert "1 2\n" in out


async def test_wait_fails_where_a_background_process_failed(runs):
    code, _, err = await runs("/run fail &\n/wait\n/echo never\n")
    assert code == 1
    assert "Process 1 ended with exit code 1" in err


async def test_expect_looks_at_the_latest_output(runs):
    assert (await runs("/echo The Capital\n/expect Capital The\n/expect -i capital\n"))[0] == 0
    assert (await runs("/echo 42 apples\n/expect --regex '^[0-9]+ a'\n"))[0] == 0
    code, _, err = await runs("/echo yes\n/expect no\n")
    assert code == 1
    assert "'no' was expected in: yes" in err
    code, _, err = await runs("/echo yes\n/expect --not yes\n")
    assert "'yes' should not have been in: yes" in err
    assert (await runs("/echo x\n/expect --regex '('\n"))[0] == 2


async def test_fails_turns_failure_around(runs):
    code, out, err = await runs("/fails /run fail\n/fails kill 99\n/fails wait 98\n/echo fine\n")
    assert (code, out) == (0, "fine\n")
    assert "no process 98" in err
    code, _, err = await runs("/fails /echo fine\n")
    assert code == 1
    assert "should have failed" in err


async def test_exit_ends_the_script_with_its_code(runs):
    assert (await runs("/exit 3\n/echo never\n"))[:2] == (3, "")


async def test_arguments_and_places_are_variables(runs, tmp_path):
    code, out, _ = await runs("/echo $1 ${2} $0\n/echo $here\n", "first", "second")
    assert (code, out) == (0, f"first second dir/test.las\n{tmp_path}/dir\n")


async def test_cd_moves_where_processes_may_look(runs, tmp_path):
    (tmp_path / "sub").mkdir()
    assert (await runs("/cd sub\n/pwd\n"))[1] == f"{tmp_path}/sub\n"
    assert (await runs("/cd nowhere\n"))[0] == 2


async def test_times_and_echo_show_what_happens(runs):
    _, out, _ = await runs("$x = /pwd\n/echo hi\n/times\n", echo=True, times=True)
    assert out.startswith("> $x = /pwd\n# 0.0")
    assert "  DID\n   1  0.0" in out
    assert "/echo" not in out


async def test_a_conversation_can_begin_anew_with_other_settings(runs):
    code, out, _ = await runs("hello\n/new --max-tokens 3\nhello\n/echo $chat\n")
    assert (code, out) == (0, "reply 1\nrep\n2\n")


async def test_a_conversation_says_in_one_line_what_became_of_a_full_window(runs):
    told = "[The window is full; the oldest turns are forgotten.]"
    lines = "".join(f"{'x' * 700} {number}\n" for number in range(4))
    code, out, _ = await runs(f"/new --window slide\n{lines}")
    assert code == 0
    assert out.count(told) >= 1
    assert "reply" in out.splitlines()[-1]
    code, _, err = await runs("/new --window wide\n")
    assert code == 2
    assert "--window" in err
    assert "slide" in err


async def test_a_fork_of_the_chat_goes_on_by_itself(runs):
    code, out, _ = await runs("hello\n$twin = /fork $chat\n/tell $twin more\nmore\n")
    assert (code, out) == (0, "reply 1\nreply 2\nreply 2\n")


async def test_every_mistake_is_told_before_anything_runs(runs):
    with pytest.raises(UsageError) as caught:
        await runs("/echo hi\n/nope\n/echo 'open\n/top\n/\n")
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        "test.las:2", "test.las:3", "test.las:4", "test.las:5",
    ]  # fmt: skip


def test_lines_are_joined_and_numbered_by_their_first():
    lines = parse("\ufeff/echo a \\\n  b\r\n\nlast \\", name="x", check_verb=lambda words: None)
    assert [(line.number, line.text) for line in lines] == [(1, "/echo a   b"), (4, "last")]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("echo a # b", "echo a"),
        ("echo a#b", "echo a#b"),
        ("echo '# no' # yes", "echo '# no'"),
        ('echo "it\'s # no"', 'echo "it\'s # no"'),
        ("# all", ""),
    ],
)
def test_a_comment_begins_with_a_hash_after_a_space(text, kept):
    assert uncommented(text) == kept


@given(st.text())
def test_any_text_is_a_script_or_a_usage_error(text):
    with suppress(UsageError):
        numbers = [line.number for line in parse(text, name="x", check_verb=lambda words: None)]
        assert numbers == sorted(set(numbers))

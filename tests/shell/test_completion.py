"""Completion, as a pure function of the line."""

import pytest

from llmasos.kernel.abi import AppInfo, Pid, ProcessInfo, ProcessState
from llmasos.shell.completion import World, candidates
from llmasos.shell.verbs.table import VERBS

FILES = {
    "/w": [("notes.md", False), ("my folder", True), (".hidden", False), ("it's.txt", False)],
    "/w/my folder/": [("inside.txt", False)],
}
CHAT = AppInfo("chat", "1", "Talks.", (), {"properties": {"first": {"type": "string"}}})


def process(pid):
    return ProcessInfo(
        Pid(pid), Pid(0), "chat", "a title", ProcessState.WAITING, "", 0, 0.0, 0.0, 0.0,
        0, 0, 0, 0, 0.0, 0, 0, 0, 0, None,
    )  # fmt: skip


WORLD = World(
    VERBS,
    flags=lambda name: VERBS[name].parser("/").flags(),
    list_folder=lambda path: FILES.get(path.rstrip("/"), FILES.get(path, [])),
    apps=[CHAT, AppInfo("complete", "1", "Completes.", (), {})],
    processes=[process(3), process(31), process(4)],
    models=["smollm2"],
    pullable=lambda: ["gemma3-270m", "smollm2"],
    root="/w",
)


def offered(line):
    return [candidate.text for candidate in candidates(line, WORLD)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/ki", ["kill"]),
        ("/kill ", ["3", "31", "4"]),
        ("/kill 3", ["3", "31"]),
        ("/kill 3 ", ["31", "4"]),
        ("/kill -", ["--help", "--list", "--signal", "-h", "-l", "-s"]),
        ("/run ", ["chat", "complete"]),
        ("/run chat ", ["first="]),
        ("/model ", ["info", "list", "pull", "rm"]),
        ("/model p", ["pull"]),
        ("/model pull ", ["gemma3-270m", "smollm2"]),
        ("/model info ", ["smollm2"]),
        ("/script ", ["it\\'s.txt", "my\\ folder/", "notes.md"]),
        ("/script .", [".hidden"]),
        ("/script my\\ folder/", ["my\\ folder/inside.txt"]),
        ("/app info ch", ["chat"]),
        ("/nope ", []),
        ("plain te", []),
        ("//not a verb", []),
        ("", []),
        ("/ps ", []),
    ],
)
def test_what_could_come_next(line, words):
    assert offered(line) == words


@pytest.mark.parametrize(
    "line",
    [
        "/run -d chat first='a b' --seed 3 \\",
        "/kill -s TERM 3 31",
        "/script 'my folder/inside.txt' \"x",
        "/model pull gemma3-270m --name x",
        "/ask --tools fs.*,calc What is in 日本.md? &",
        'plain text with / and $ and "quotes\n/ps',
    ],
)
def test_every_prefix_of_a_line_is_answered(line):
    for end in range(len(line) + 1):
        for candidate in candidates(line[:end], WORLD):
            assert 0 <= candidate.start <= end
            typed = line[candidate.start : end]
            assert candidate.text.startswith(typed.lstrip("'\"")) or "\\" in candidate.text


def test_each_verb_and_its_flags_can_be_completed():
    for name in VERBS:
        head = f"/{name}"
        assert name.split(" ")[-1] in offered(head)
        assert "--help" in offered(f"{head} --")

"""Settings: where they come from, which wins, and what is said of wrong ones."""

import os
import re
from pathlib import Path

import pytest

from llmasos.kernel.errors import ConfigError
from llmasos.kernel.rules import Decision
from llmasos.shell.boot import policy_of
from llmasos.shell.home import home_folder, make_home
from llmasos.shell.settings import load_settings


@pytest.fixture(autouse=True)
def no_variables(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("LLMASOS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path))


def write(tmp_path, text):
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")


def test_without_anything_there_are_defaults(tmp_path):
    settings = load_settings()
    assert (settings.home, settings.model, settings.kv_memory) == (tmp_path, "smollm2", None)


def test_flags_win_over_variables_and_these_over_the_file(tmp_path, monkeypatch):
    write(tmp_path, 'model = "file"\nkv_memory = "1GiB"\nthreads = 1\n')
    assert load_settings().model == "file"
    monkeypatch.setenv("LLMASOS_MODEL", "variable")
    monkeypatch.setenv("LLMASOS_THREADS", "3")
    settings = load_settings({"model": "flag", "dtype": None})
    assert (settings.model, settings.threads, settings.kv_memory) == ("flag", 3, 1 << 30)


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 << 30), ("512MB", 512_000_000), ("1048576", 1 << 20)]
)
def test_memory_is_written_with_a_unit(text, size):
    assert load_settings({"kv_memory": text}).kv_memory == size


@pytest.mark.parametrize("text", ["float32", "fp32", "FP32"])
def test_a_dtype_has_a_long_and_a_short_name(text):
    assert load_settings({"dtype": text}).dtype == "fp32"


def test_every_problem_is_told_at_once_with_its_source(tmp_path, monkeypatch):
    write(tmp_path, 'modle = "x"\nthreads = 0\n')
    monkeypatch.setenv("LLMASOS_DTYPE", "int3")
    with pytest.raises(ConfigError) as caught:
        load_settings({"kv_memory": "much"})
    problems = caught.value.problems
    assert len(problems) == 4
    assert any("modle" in p and "did you mean model" in p for p in problems)
    assert any(p.startswith("--kv-memory is 'much'") for p in problems)
    assert any(p.startswith("LLMASOS_DTYPE is 'int3'") for p in problems)
    assert any(p.startswith(f"threads in {tmp_path / 'config.toml'}") for p in problems)
    assert all(p.endswith(".") for p in problems)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"model = ", "not valid TOML"),
        (b"model = '\xff'", "not UTF-8"),
        (b"\xef\xbb\xbf# bom", None),
    ],
)
def test_a_config_file_that_cannot_be_read_is_named(tmp_path, content, words):
    (tmp_path / "config.toml").write_bytes(content)
    if words is None:
        assert load_settings().model == "smollm2"
        return
    with pytest.raises(ConfigError, match=words):
        load_settings()


def test_a_flag_for_the_home_wins_over_the_variable(tmp_path):
    assert home_folder(tmp_path / "other") == tmp_path / "other"
    assert load_settings({"home": tmp_path / "other"}).home == tmp_path / "other"
    assert home_folder("~") == Path.home()


def test_a_home_is_made_for_its_owner_alone(tmp_path):
    make_home(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"not a folder; set LLMASOS_HOME"):
        make_home(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be created"):
        make_home(tmp_path / "file" / "below")


DOCUMENTED = re.compile(r"```toml\n(\[(?:taint|approvals)\].*?)```", re.DOTALL)


def test_the_rules_in_the_documents_are_understood(tmp_path):
    document = Path(__file__).parents[2] / "docs" / "security.md"
    (tmp_path / "config.toml").write_text("\n".join(DOCUMENTED.findall(document.read_text())))
    settings = load_settings({"home": tmp_path})
    assert settings.taint.untrusted == ("~/Downloads", "*.eml")
    policy = policy_of(settings)
    assert (policy.tainted, policy.otherwise) == (Decision.ASK, Decision.ALLOW)
    deny, allow = policy.rules
    assert (deny.decision, deny.syscall, deny.taint) == (Decision.DENY, ("exec.*",), ("web:*",))
    assert (allow.app, allow.arguments) == (("agent",), {"path": "drafts/*"})


def test_without_a_word_a_tainted_process_is_asked_about(tmp_path):
    policy = policy_of(load_settings({"home": tmp_path}))
    assert (policy.rules, policy.tainted) == ((), Decision.ASK)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[approvals]\ntainted = "perhaps"', "approvals.tainted"),
        ('[[approvals.rules]]\nsyscall = "fs.*"', "approvals.rules.0.decision"),
        ('[[approvals.rules]]\ndecision = "ask"\nefect = "write"', "approvals.rules.0.efect"),
    ],
)
def test_a_rule_that_cannot_be_understood_is_named(tmp_path, text, named):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=named):
        load_settings({"home": tmp_path})

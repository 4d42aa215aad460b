"""What the project says about itself: versions, pinned dependencies, documented commands, examples."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import llmasos
from llmasos.kernel.errors import UsageError
from llmasos.shell.main import understand

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = {
    canonicalize_name(requirement.name): requirement
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
    for requirement in [Requirement(line)]
}

EXAMPLE_ANSWERS = {
    "How many days does a customer have to return a bicycle?": ("30 days", "handbook/refunds.md"),
    "What time does the shop open on Saturday?": ("10:00", "handbook/opening-hours.md"),
    "How many years does the frame warranty last?": ("5 years", "handbook/warranty.md"),
    "How much does shipping parts to an island cost?": ("18.00 euros", "handbook/shipping.md"),
    "Which tyre pressure suits the Heron?": ("4 bar", "handbook/workshop.md"),
    "How much does a full service cost?": ("85 euros", "handbook/workshop.md"),
    "Who founded the co-op?": ("Marguerite Oduya", "handbook/about.md"),
    "In which year was the co-op founded?": ("1987", "handbook/about.md"),
    "What is the alarm company's telephone number?": ("555-0142", "handbook/safety.md"),
    "Who repairs wheels?": ("Zoë Lindqvist", "notes.md"),
    "What did the tools cost?": ("412.50", "expenses.csv"),
    "Which colour did Mr Takahashi order?": ("dark green", "letters/takahashi.txt"),
    "How long did Éowyn's first puncture take?": ("eleven minutes", "letters/brennan.txt"),
}


def test_the_package_and_the_project_have_the_same_version() -> None:
    assert llmasos.__version__ == PYPROJECT["project"]["version"]


def test_the_package_holds_the_four_folders_and_no_others() -> None:
    folders = {path.parent.name for path in (ROOT / "llmasos").glob("*/__init__.py")}
    assert folders == {"kernel", "syscalls", "apps", "shell"}


def test_importing_llmasos_does_not_load_torch() -> None:
    code = "import sys, llmasos; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("pin", PINS.values(), ids=str)
def test_every_constraint_is_one_exact_public_version(pin: Requirement) -> None:
    [specifier] = pin.specifier
    assert specifier.operator == "=="
    assert Version(specifier.version).local is None


def declared_requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    build = PYPROJECT["build-system"]["requires"]
    declared = [Requirement(line) for line in [*project["dependencies"], *extras, *build]]
    return [each for each in declared if each.name != project["name"]]  # an extra made of others


@pytest.mark.parametrize("requirement", declared_requirements(), ids=str)
def test_every_declared_requirement_is_pinned_within_its_range(requirement: Requirement) -> None:
    pin = PINS[canonicalize_name(requirement.name)]
    [specifier] = pin.specifier
    assert requirement.specifier.contains(specifier.version)


BENCH = [Requirement(line) for line in PYPROJECT["project"]["optional-dependencies"]["bench"]]
"""Peers of benchmarks, which `make` does not install; what they need is checked where they are."""


def is_installed(requirement: Requirement) -> bool:
    try:
        importlib.metadata.distribution(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def requirements_below(requirement: Requirement) -> Iterator[Requirement]:
    """What an installed distribution asks for on this machine."""
    for line in importlib.metadata.requires(requirement.name) or ():
        needed = Requirement(line)
        extras = requirement.extras or {""}
        if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
            yield needed


def test_every_transitive_dependency_is_pinned() -> None:
    waiting, seen, unpinned = declared_requirements(), set(), set()
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        if canonicalize_name(requirement.name) not in PINS:
            unpinned.add(requirement.name)
        if requirement not in BENCH or is_installed(requirement):
            waiting += requirements_below(requirement)
    assert unpinned == set()


def documented_commands() -> Iterator[tuple[str, list[str]]]:
    """Every command line in a code block of a document, as (document, words)."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        blocks = re.findall(r"^```(?:sh|bash|console|shell)?\n(.*?)^```", text, re.M | re.S)
        indented = re.findall(r"(?:^ {4}\S.*\n)+", text, re.M)
        for line in "\n".join([*blocks, *indented]).splitlines():
            for words in commands_in(line):
                yield document.name, words


def commands_in(line: str) -> Iterator[list[str]]:
    """The commands of a shell line that are ours, without prompt, comment and redirections."""
    if not re.match(
        r"(\$ )?(\w+=\S+ )*(\S*/)?(llmasos|make|python\S*|cat|echo)( |$)", line.strip()
    ):
        return
    lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="|<>;&")
    lexer.commenters = "#"
    lexer.whitespace_split = True
    words = [word for word in lexer if not re.fullmatch(r"[A-Z_]+=.*", word)]
    for is_end, group in itertools.groupby(words, lambda word: re.fullmatch("[|<>;&]+", word)):
        command = list(group)
        if not is_end and re.fullmatch(r"llmasos|make|python\S*", Path(command[0]).name):
            yield command


def test_documents_show_commands() -> None:
    assert any(words[0] == "make" for _, words in documented_commands())


def test_every_documented_llmasos_command_is_understood() -> None:
    for document, words in documented_commands():
        if Path(words[0]).name == "llmasos":
            try:
                understand(words[1:])
            except UsageError as error:
                pytest.fail(f"{document} shows `{shlex.join(words)}`: {error}")


def test_every_documented_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    asked = {words[1] for _, words in documented_commands() if words[0] == "make" and words[1:]}
    assert asked - targets == set()


def test_every_documented_module_exists() -> None:
    modules = {
        words[2]
        for _, words in documented_commands()
        if words[1:2] == ["-m"] and words[2].startswith(("benchmarks", "llmasos"))
    }
    assert {name for name in modules if importlib.util.find_spec(name) is None} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize(("question", "where"), EXAMPLE_ANSWERS.items())
def test_an_example_question_has_its_answer_in_one_file_alone(
    question: str, where: tuple[str, str]
) -> None:
    answer, file = where
    folder = ROOT / "examples"
    files = [path for path in folder.rglob("*") if path.suffix in (".md", ".csv", ".txt")]
    holding = [path for path in files if answer in path.read_text(encoding="utf-8")]
    assert [path.relative_to(folder).as_posix() for path in holding] == [file], question


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("pip_said", "told"),
    [
        ("WARNING: Retrying (Retry(total=1)) after NewConnectionError\nERROR: No", "network"),
        ("ERROR: No matching distribution found for torch==2.13.0", "no usable torch==2.13.0"),
        ("ERROR: Cannot install setuptools because these versions conflict", "setuptools"),
        ("ERROR: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: Could not install: [Errno 13] Permission denied: '.venv'", "cannot be written"),
        ("  noise\nERROR: something new\n", "something new"),
        ("", "no reason given"),
    ],
)
def test_what_pip_says_becomes_one_sentence(
    bootstrap: ModuleType, pip_said: str, told: str
) -> None:
    sentence = bootstrap.pip_sentence(pip_said)
    assert told in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_without_a_python_that_is_new_enough_says_so() -> None:
    command = ["make", "--silent", "setup", "PYTHON=/bin/false"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("LLMasOS needs Python 3.11 or newer")

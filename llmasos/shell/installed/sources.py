"""From what a user names - a folder, a wheel, a git repository, a package - to one wheel file.

Building runs the package's own build code as the user, outside any sandbox: who installs from source trusts
it that far. What a folder needs to be built is taken from this installation where it is there, so that
no index is asked; otherwise pip builds apart, with what it fetches.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from dataclasses import dataclass
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidName, canonicalize_name
from packaging.version import InvalidVersion, Version

from llmasos.kernel.errors import ConfigError
from llmasos.shell.installed.store import Source
from llmasos.shell.plain import one_line

GROUP = "llmasos.apps"
BUILD_S = 900.0
_GIT = re.compile(r"(git\+.+|(?:https?|ssh|git|file)://.+\.git|git@[^ ]+)(?:@([^@/-][^@/]*))?\Z")
_NETWORK = re.compile(
    "NewConnectionError|NameResolutionError|ConnectTimeout|Connection refused|ReadTimeout|ProxyError"
    "|Temporary failure in name resolution|Network is unreachable|Could not resolve host",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel and what it says of itself."""

    path: Path
    name: str
    version: str
    entries: dict[str, str]
    """Apps by name, each `module:attribute`."""


def understood(text: str, root: str) -> Source:
    """What a user's words for a source mean; `root` is the folder that paths are relative to.

    Raises `ConfigError`.
    """
    path = Path(root, os.path.expanduser(text))
    if text.endswith(".whl"):
        if not path.is_file():
            raise ConfigError(f"There is no wheel {text}.")
        return Source("wheel", str(path.resolve()))
    if path.is_dir():
        if not (path / "pyproject.toml").is_file() and not (path / "setup.py").is_file():
            raise ConfigError(
                f"The folder {text} has no pyproject.toml; `app new` makes one that has."
            )
        return Source("folder", str(path.resolve()))
    if _GIT.match(text):
        return Source("git", text)
    try:
        Requirement(text)
    except InvalidRequirement:
        raise ConfigError(
            f"{text} is no folder, wheel, git URL or package name, such as `haiku` or `haiku==1.2`."
        ) from None
    return Source("package", text)


def is_pinned(source: Source) -> bool:
    """Whether a source itself says which version it must be."""
    if source.kind == "git":
        match = _GIT.match(source.text)
        return bool(match and match[2])
    return source.kind == "package" and "==" in source.text


def fetched(source: Source, into: Path) -> tuple[Source, Wheel]:
    """A source's wheel, put into a folder; and the source as it was found. Raises `ConfigError`."""
    if source.kind == "wheel":
        return source, read_wheel(Path(source.text))
    if source.kind == "git":
        checkout = into / "checkout"
        source = _cloned(source, checkout)
        return source, _built(str(checkout), _can_build_here(checkout), into, source.text)
    is_here = source.kind == "folder" and _can_build_here(Path(source.text))
    return source, _built(source.text, is_here, into, source.text)


def read_wheel(path: Path) -> Wheel:
    """What a wheel says of itself. Raises `ConfigError` for what is none, or has no app."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise ConfigError(f"The wheel {path.name} is damaged.")
            metadata = Parser().parsestr(_text(archive, "METADATA"))
            entries = _entries(_text(archive, "entry_points.txt"))
    except (OSError, zipfile.BadZipFile, ValueError, ConfigParserError) as error:
        raise ConfigError(f"{path.name} is no wheel ({error}).") from error
    name, number = metadata["Name"], metadata["Version"]
    if not name or not number:
        raise ConfigError(f"{path.name} is no wheel (it does not say its name and version).")
    if not entries:
        raise ConfigError(
            f'{name} has no app: its pyproject.toml needs [project.entry-points."{GROUP}"],'
            ' with a line such as haiku = "haiku:haiku".'
        )
    try:
        named, numbered = canonicalize_name(name, validate=True), str(Version(number))
    except (InvalidName, InvalidVersion) as error:
        raise ConfigError(f"{path.name} is no wheel ({one_line(str(error))}).") from error
    return Wheel(path, named, numbered, entries)


def run_pip(arguments: list[str], what: str, *, python: str = sys.executable) -> None:
    """Run our pip. Blocks. Raises `ConfigError` with one sentence where it fails."""
    command = [python, "-m", "pip", *arguments, "--no-input", "--disable-pip-version-check"]
    _run([*command, "--retries", "1", "--timeout", "15"], f"pip could not {what}")


def _built(source: str, is_here: bool, into: Path, named: str) -> Wheel:
    arguments = ["wheel", "--no-deps", "--quiet", "--wheel-dir", str(into)]
    if is_here:
        arguments.append("--no-build-isolation")
    run_pip([*arguments, source], f"make a wheel of {named}")
    wheels = list(into.glob("*.whl"))
    if len(wheels) != 1:
        raise ConfigError(f"pip made {len(wheels)} wheels of {named}, where one was wanted.")
    return read_wheel(wheels[0])


def _can_build_here(folder: Path) -> bool:
    """Whether all that a folder needs to be built is in our own environment."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        needed = [Requirement(text) for text in project["build-system"]["requires"]]
        return all(each.specifier.contains(version(each.name)) for each in needed)
    except (OSError, ValueError, KeyError, TypeError, PackageNotFoundError):
        return False


def _cloned(source: Source, checkout: Path) -> Source:
    match = _GIT.match(source.text)
    if match is None or shutil.which("git") is None:
        raise ConfigError("Installing from a git repository needs git; it is not on the PATH.")
    url, revision = match[1].removeprefix("git+"), match[2]
    git = ["git", "-c", "protocol.ext.allow=never"]
    _run([*git, "clone", "--quiet", "--", url, str(checkout)], f"git could not clone {url}")
    if revision:
        _run(
            [*git, "-C", str(checkout), "checkout", "--quiet", "--detach", revision, "--"],
            f"{url} has no revision {revision}",
        )
    done = _run([*git, "-C", str(checkout), "rev-parse", "HEAD"], "git failed")
    return Source("git", source.text, done.strip())


def _run(command: list[str], problem: str) -> str:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "PIP_NO_PYTHON_VERSION_WARNING": "1"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=BUILD_S, check=False,
            text=True, errors="replace", env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{problem}: it took more than {BUILD_S:g} s.") from None
    except OSError as error:
        raise ConfigError(f"{problem}: {os.strerror(error.errno or 0)}.") from error
    if done.returncode:
        raise ConfigError(f"{problem}: {_reason(done.stderr or done.stdout)}.")
    return done.stdout


def _reason(said: str) -> str:
    """What a tool said, in a line."""
    if _NETWORK.search(said):
        return "the network cannot be reached"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [
        line.partition(":")[2].strip()
        for line in lines
        if re.match(r"(error|fatal)\s*:", line, re.IGNORECASE)
    ]
    told = [line for line in errors if line and not line.startswith("subprocess-exited")]
    return (told or lines or ["it failed"])[0].rstrip(".")[:300]


def _text(archive: zipfile.ZipFile, name: str) -> str:
    for path in archive.namelist():
        folder, _, file = path.partition("/")
        if folder.endswith(".dist-info") and file == name:
            return archive.read(path).decode("utf-8")
    return ""


def _entries(text: str) -> dict[str, str]:
    parser = ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return dict(parser[GROUP]) if parser.has_section(GROUP) else {}

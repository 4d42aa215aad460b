"""Makes `.venv` and installs LLMasOS in it, once: what `make run` and `make test` do first.

Runs on the system's Python with the standard library alone. Everything that can go wrong on a
stranger's machine ends in one sentence on stderr and exit status 1; pip's own words are kept in
`.venv/pip.log`. An install that was cut short is thrown away and begun again; one that is complete
is recognised by a stamp and costs a few milliseconds.

    python3 scripts/bootstrap.py [dev]        # dev: with what the tests and checks need

`TORCH_INDEX` in the environment names an extra package index, for the torch build wanted.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"
STAMP = VENV / "llmasos-setup.json"
UNFINISHED = VENV / "llmasos-unfinished"
"""Stands from before pip begins until it is done: while it stands, `.venv` is not trusted."""
PIP_LOG = VENV / "pip.log"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

NEEDED_BYTES = 3 * 1024**3
NEEDED_BYTES_CUDA = 10 * 1024**3
_MISSING = re.compile(r"(?:No matching distribution found for|Cannot install) (\S+)")
INPUTS = ("pyproject.toml", "constraints.txt", "setup.py", "llmasos/**/*.c", "llmasos/**/*.h")


class SetupFailed(Exception):
    """What the user reads: one sentence that says what to do."""


def main(arguments: Sequence[str]) -> int:
    """Bring `.venv` up to date; returns the exit status."""
    dev = "dev" in arguments
    try:
        with _only_one():
            if not _is_ready(dev=dev):
                _install(dev=dev)
    except SetupFailed as failure:
        _say(str(failure))
        return 1
    except KeyboardInterrupt:
        _say("Set-up was interrupted; the next make begins it again.")
        return 130
    return 0


@contextmanager
def _only_one() -> Iterator[None]:
    """Hold a lock that the system drops when we end, however we end: on this file, so that it
    leaves nothing behind and survives `.venv` being made anew."""
    with Path(__file__).open("rb") as this_file:
        try:
            fcntl.flock(this_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("Another make is setting up .venv; waiting for it.")
            fcntl.flock(this_file, fcntl.LOCK_EX)
        # A pip that outlives us, because only we were killed, goes on holding the lock.
        os.set_inheritable(this_file.fileno(), True)
        yield


def _is_ready(*, dev: bool) -> bool:
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    wanted = _stamp(dev=dev or stamp.get("dev") is True)
    return bool(stamp == wanted) and not UNFINISHED.exists() and _venv_works()


def _stamp(*, dev: bool) -> dict[str, object]:
    """What an installation depends on. The folder counts: scripts in a `.venv` hold its path."""
    digest = hashlib.sha256()
    for pattern in INPUTS:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return {"dev": dev, "folder": str(ROOT), "inputs": digest.hexdigest(), "compiler": _compiler()}


def _compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang"))


def _venv_works() -> bool:
    """Whether `.venv` has a pip that runs: its base Python may be gone, or it may be half made."""
    try:
        done = subprocess.run([PYTHON, "-c", "import pip"], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def _install(*, dev: bool) -> None:
    dev = dev or _had_dev()
    _check_disk(NEEDED_BYTES)
    if UNFINISHED.exists() or not _venv_works() or _was_moved():
        _make_venv()
    _say(f"Installing LLMasOS and its dependencies in {VENV.name} (a few minutes, once).")
    STAMP.unlink(missing_ok=True)
    UNFINISHED.touch()
    _pip("install", "--quiet", "setuptools")
    _warn_of_cuda()
    # With setuptools pinned and in place, building needs no environment of its own.
    project = ".[dev]" if dev else "."
    _pip("install", "--no-build-isolation", "--editable", project)
    STAMP.write_text(json.dumps(_stamp(dev=dev)) + "\n")
    UNFINISHED.unlink()
    if not any(ROOT.glob(f"llmasos/**/*{SUFFIX}")):
        _say(
            "The native kernel was not built, so LLMasOS computes with torch alone, which is"
            " slower; to have it, install a C compiler and Python's headers (Debian: gcc"
            " python3-dev), remove .venv and run make again."
        )


def _had_dev() -> bool:
    """Whether an earlier `make test` asked for the tools: then an update keeps them."""
    try:
        return json.loads(STAMP.read_text()).get("dev") is True
    except (OSError, ValueError):
        return False


def _was_moved() -> bool:
    try:
        return bool(json.loads(STAMP.read_text()).get("folder") != str(ROOT))
    except (OSError, ValueError):
        return False


def _make_venv() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
        raise SetupFailed(
            "This Python cannot make virtual environments; install its venv module"
            " (Debian and Ubuntu: apt install python3-venv) and run make again."
        )
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, close_fds=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise SetupFailed(
            _shortage(said)
            or f"Python could not make {VENV}: {_last_line(said)}; put it right and run make again."
        )


def _check_disk(needed: int) -> None:
    free = shutil.disk_usage(ROOT).free
    if free < needed and not STAMP.exists():
        raise SetupFailed(
            f"Only {free / 1024**3:.1f} GiB are free on the disk of {ROOT}, and set-up needs about"
            f" {needed // 1024**3} GiB; free some space and run make again."
        )


def _warn_of_cuda() -> None:
    """Say so before gigabytes of GPU libraries are fetched that nobody asked for.

    The plain Linux build of torch brings them; the CPU build calls itself 2.x.y+cpu.
    """
    if sys.platform != "linux" or os.environ.get("TORCH_INDEX") or _torch_is_installed():
        return
    report = VENV / "torch.json"
    _pip("install", "--quiet", "--dry-run", "--no-deps", "--report", str(report), "torch")
    version = json.loads(report.read_text())["install"][0]["metadata"]["version"]
    report.unlink()
    if "+" in version:
        return
    _say(
        f"The torch {version} that pip finds brings NVIDIA's libraries: several GB. For the CPU one"
        " press Ctrl-C and run make again with TORCH_INDEX=URL, where URL is the CPU package index"
        " that PyTorch's own install page names."
    )
    _check_disk(NEEDED_BYTES_CUDA)


def _torch_is_installed() -> bool:
    found = subprocess.run([PYTHON, "-m", "pip", "show", "-q", "torch"], capture_output=True)
    return found.returncode == 0


def _pip(*arguments: str) -> None:
    """Run pip in `.venv` with the pinned versions; its progress shows on a terminal only."""
    command = [str(PYTHON), "-m", "pip", *arguments, "--constraint", str(CONSTRAINTS)]
    command += ["--log", str(PIP_LOG), "--retries", "2", "--disable-pip-version-check"]
    if index := os.environ.get("TORCH_INDEX"):
        command += ["--extra-index-url", index]
    if not sys.stdout.isatty():
        command += ["--quiet", "--progress-bar", "off"]
    environment = {**os.environ, "PIP_USER": "0"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        close_fds=False,
    )
    if done.returncode != 0:
        if not _shortage(done.stderr):
            # What stands is whole: pip resolves and fetches everything before it installs.
            UNFINISHED.unlink(missing_ok=True)
        raise SetupFailed(pip_sentence(done.stderr))
    PIP_LOG.unlink(missing_ok=True)


def pip_sentence(said: str) -> str:
    """pip's many lines as one sentence that says what to do."""
    if shortage := _shortage(said):
        return shortage
    if _cannot_reach_index(said):
        sentence = (
            "pip cannot reach a package index; check the network and what `pip config list` says,"
            " and run make again"
        )
    elif missing := _MISSING.search(said):
        sentence = (
            f"The package index has no usable {missing[1]} for this machine and Python"
            f" {sys.version_info[0]}.{sys.version_info[1]}; try another Python (make run"
            " PYTHON=python3.12) or another index (`pip config list`)"
        )
    else:
        sentence = f"pip failed: {_last_line(said)}"
    return f"{sentence} (all that pip said is in {PIP_LOG.relative_to(ROOT)})."


def _cannot_reach_index(said: str) -> bool:
    signs = ("Retrying (", "NewConnectionError", "ConnectTimeout", "SSLError", "ProxyError")
    return any(sign in said for sign in signs)


def _shortage(said: str) -> str | None:
    if "No space left on device" in said or "Errno 28" in said or "Disk quota exceeded" in said:
        return (
            f"The disk is full: free some space where {ROOT} and temporary files (TMPDIR) are,"
            " and run make again."
        )
    if "Permission denied" in said or "Read-only file system" in said:
        return (
            f"{VENV} cannot be written; give yourself the right to write there and run make again."
        )
    return None


def _last_line(said: str) -> str:
    """The last line that says something, without pip's prefix and hints."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no reason given"]
    return errors[-1].removeprefix("ERROR:").strip().rstrip(".")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

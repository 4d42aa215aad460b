"""`audit`: what changed the world, who was refused, what came from outside; and its proof."""

from __future__ import annotations

import argparse
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio.to_thread

from llmasos.kernel.audit_chain import Finding, Head, entries_of, files_of, verify
from llmasos.kernel.errors import ConfigError, LlmosError
from llmasos.shell.arguments import Parser, pid, seconds
from llmasos.shell.environment import Environment
from llmasos.shell.home import JOURNAL_NAME, home_folder
from llmasos.shell.plain import one_line
from llmasos.shell.records import records_in
from llmasos.shell.verbs.verb import Verb

_PLAIN = frozenset(
    {"n", "at", "kind", "pid", "prev", "hash", "args", "args_sha256", "name", "call"}
)


def _configure(parser: Parser) -> None:
    parser.add_argument("--pid", type=pid, metavar="PID", help="of this process alone")
    parser.add_argument(
        "--since", type=_moment, metavar="WHEN",
        help="the last 10m, 2h ..., or from a date such as 2026-11-25T09:00",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the entries as they stand in the log")


def _moment(text: str) -> float:
    try:
        return time.time() - seconds(text)
    except argparse.ArgumentTypeError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a time (10m) nor a date (2026-11-25T09:00)"
        ) from None


async def audit(environment: Environment, args: Namespace) -> int:
    """Show the audit log of this home, whether a kernel runs or not."""
    folder = home_folder(environment.flags.home)
    lines = await anyio.to_thread.run_sync(lambda: list(_shown(folder, args)))
    await environment.output.stream("".join(lines))
    return 0


def _shown(folder: Path, args: Namespace) -> Iterator[str]:
    import json

    for entry in entries_of(_files(folder)):
        if args.pid is not None and entry.get("pid") != args.pid:
            continue
        if args.since is not None and float(entry.get("at", 0.0)) < args.since:
            continue
        yield (json.dumps(entry) if args.json else _line(entry)) + "\n"


def _files(folder: Path) -> list[Path]:
    files = files_of(folder)
    if not files:
        raise ConfigError(f"There is no audit log in {folder}; no kernel has kept one there yet.")
    return files


def _line(entry: Mapping[str, Any]) -> str:
    at = entry.get("at")
    when = f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}" if isinstance(at, float) else ""
    args = entry.get("args")
    called = ", ".join(f"{k}={v}" for k, v in args.items()) if isinstance(args, dict) else ""
    name = entry.get("name", entry.get("app", ""))
    more = " ".join(f"{key}={value}" for key, value in entry.items() if key not in _PLAIN)
    what = f"{name}({called})" if isinstance(args, dict) else str(name)
    whose = f"[{entry['pid']}]" if "pid" in entry else ""
    text = (
        f"{entry.get('n', '?'):>6} {when:<19} {entry.get('kind', '?'):<7} {whose:<6} {what} {more}"
    )
    return one_line_keeping_columns(text)


def one_line_keeping_columns(text: str) -> str:
    """Safe for a terminal and on one line, its spaces kept."""
    return " ".join(one_line(part, max_chars=2000) for part in text.split(" ")).rstrip()


def _configure_verify(parser: Parser) -> None:
    parser.add_argument(
        "--head", type=_head, metavar="N:HASH",
        help="a head that was noted before: the log must still have it",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")


def _head(text: str) -> Head:
    try:
        return Head.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


async def audit_verify(environment: Environment, args: Namespace) -> int:
    """Prove that nothing in the log was changed, taken out, put in, moved or cut off; exit 1 if it was."""
    folder = home_folder(environment.flags.home)
    heads = [args.head] if args.head else []
    kept, finding = await anyio.to_thread.run_sync(_verified, folder, heads)
    if args.json:
        environment.output.json(
            {
                "ok": not finding.problem, "entries": finding.head.number, "head": str(finding.head),
                "problem": finding.problem or None, "journal_head": str(kept) if kept else None,
                "torn_bytes": finding.torn_bytes,
            }
        )  # fmt: skip
        return int(bool(finding.problem))
    if finding.problem:
        raise LlmosError(finding.problem)
    _tell(environment, kept, finding)
    return 0


def _verified(folder: Path, heads: list[Head]) -> tuple[Head | None, Finding]:
    """The head that the journal knew before the log was read, and what the log comes to."""
    kept = _journal_head(folder)
    known = [*heads, *([kept] if kept else [])]
    files = files_of(folder) if known else _files(folder)
    try:
        return kept, verify(files, known)
    except OSError as error:
        raise ConfigError(f"The audit log in {folder} cannot be read: {error}.") from error


def _journal_head(folder: Path) -> Head | None:
    if not (folder / JOURNAL_NAME).exists():
        return None
    with records_in(folder) as records:
        try:
            return Head.parse(records.audit_head)
        except ValueError:
            return None


def _tell(environment: Environment, kept: Head | None, finding: Finding) -> None:
    output = environment.output
    output.line(f"{finding.head.number} entries, the chain is whole.")
    output.line(f"head {finding.head}")
    if kept is None:
        output.note(
            "The journal knows no head of it: that the end is there rests on the log alone."
        )
    if finding.torn_bytes:
        output.note(
            f"Its last {finding.torn_bytes} bytes are an entry that was being written when a kernel ended."
        )


VERBS = (
    Verb("audit", "Show what changed the world, and who was refused.", audit, _configure),
    Verb("audit verify", "Prove that the audit log is whole.", audit_verify, _configure_verify),
)

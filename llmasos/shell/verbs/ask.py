"""`ask`: one question to the agent app, its answer streamed."""

from __future__ import annotations

import re
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from llmasos.kernel.abi import ExitStatus, Pid
from llmasos.kernel.errors import UsageError
from llmasos.shell.arguments import Parser
from llmasos.shell.environment import Environment
from llmasos.shell.foreground import Attention, exit_code
from llmasos.shell.session import KernelSession
from llmasos.shell.stdin import everything
from llmasos.shell.verbs.run import add_process_flags, app_named, in_back, request_for
from llmasos.shell.verbs.verb import Verb, kernel_flags

APP = "agent"
MAX_CONTEXT_CHARS = 10_000_000
CALL, RESULT = "→ ", "← "
"""How the agent's lines about a tool call and its result begin."""


def _configure(parser: Parser) -> None:
    parser.usage = f"{parser.prog} [flags] TEXT ..."
    parser.add_argument(
        "--tools", metavar="PATTERNS", type=_patterns,
        help="let it use syscalls: alone for all, or such as fs.*,calc",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, metavar="N", help="tool calls it may make")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before all else")
    parser.add_argument("-q", "--quiet", action="store_true", help="the answer alone")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="tool calls too, also in a pipe"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    add_process_flags(parser)
    parser.add_argument("text", nargs="*", metavar="TEXT", help="the question; `-` is stdin")


def _patterns(text: str) -> list[str]:
    return [pattern for pattern in text.split(",") if pattern]


def spread_tools(words: Sequence[str]) -> list[str]:
    """`--tools` alone means all of them: give it its value, unless the next word is one.

    The next word is one if it can be patterns and either looks it (`fs.*,calc`) or leaves some
    other text to be the question. `--tools=PATTERNS` is never in doubt.
    """
    spread: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*spread, word, *rest]
        if word != "--tools":
            spread.append(word)
            continue
        has_value = bool(rest) and _is_patterns(rest[0], others=[*spread, *rest[1:]])
        spread.append(f"--tools={rest.pop(0) if has_value else '*'}")
    return spread


def _is_patterns(word: str, *, others: Sequence[str]) -> bool:
    if not re.fullmatch(r"[a-z0-9_.*?,\[\]]+", word):
        return False
    return bool(re.search(r"[.*,]", word)) or any(not other.startswith("-") for other in others)


async def ask(environment: Environment, args: Namespace) -> int:
    """Ask; the exit code is the agent's, or 130 where Ctrl-C ended the answer."""
    text, context = await _question(environment, args)
    session = await environment.sessions.needed(kernel_flags(args, environment.flags))
    given = {"system": args.system, "max_rounds": args.rounds, "context": context or None}
    params: dict[str, Any] = {
        "task": text,
        "tools": args.tools or [],
        "quiet": not args.json and not _shows_calls(environment, args),
        **{name: value for name, value in given.items() if value is not None},
    }
    args.title = args.title or text
    request = request_for(environment, await app_named(session, APP), args, params)
    if args.background:
        pid = await in_back(environment, session, request, detached=False)
        environment.output.line(str(pid))
        return 0
    pid = await session.spawn(request)
    attention = Attention(environment, session, pid, args.approve)
    if args.json:
        return await _as_json(environment, session, attention, pid)
    code = exit_code(environment, await attention.until_exit())
    return 130 if attention.interrupted and code == 0 else code


def _shows_calls(environment: Environment, args: Namespace) -> bool:
    """In a pipe the answer alone is wanted; people and scripts like to see what it did."""
    seen = environment.output.terminal or environment.jobs is not None
    return bool(args.verbose or (seen and not args.quiet))


async def _question(environment: Environment, args: Namespace) -> tuple[str, str]:
    """What to ask, and the text it is about. Raises `UsageError`."""
    text = " ".join(args.text).strip()
    context = await _piped(environment)
    if text in ("", "-"):
        text, context = context.strip(), ""
    if not text:
        raise UsageError('Say what to ask: `ask "What is in notes.md?" --tools`.')
    return text, context


async def _piped(environment: Environment) -> str:
    """What was piped in; empty where a terminal is."""
    if environment.stdin_fd is None or environment.stdin_is_terminal:
        return ""
    text = await everything(environment.stdin_fd, max_chars=MAX_CONTEXT_CHARS)
    if len(text) > MAX_CONTEXT_CHARS:
        raise UsageError(
            f"Stdin has more than {MAX_CONTEXT_CHARS:,} characters, more than any model reads;"
            " name the file in the question and let the agent search it (--tools)."
        )
    return text


async def _as_json(
    environment: Environment, session: KernelSession, attention: Attention, pid: Pid
) -> int:
    started = time.perf_counter()
    with environment.output.capturing(echo=False) as said:
        status = await attention.until_exit()
    wall_s = time.perf_counter() - started
    environment.output.json(
        {
            **_answer("".join(said)),
            "finish": _finish(status, interrupted=attention.interrupted),
            "exit_code": status.code,
            "message": status.message,
            "pid": pid,
            **await _usage(session, pid),
            "wall_s": round(wall_s, 4),
        }
    )
    return 130 if attention.interrupted and status.code == 0 else status.code


def _answer(text: str) -> dict[str, Any]:
    """The answer and the calls before it, from what the agent wrote."""
    lines = text.split("\n")
    calls: list[dict[str, str]] = []
    while len(lines) > 1 and lines[0].startswith(CALL) and lines[1].startswith(RESULT):
        calls.append({"call": lines[0][len(CALL) :], "result": lines[1][len(RESULT) :]})
        del lines[:2]
    return {"answer": "\n".join(lines).strip(), "calls": calls}


def _finish(status: ExitStatus, *, interrupted: bool) -> str:
    if interrupted:
        return "interrupted"
    return {0: "done", 124: "limit"}.get(status.code, "failed")


async def _usage(session: KernelSession, pid: Pid) -> dict[str, Any]:
    process = await session.info(pid)
    return {
        "tokens_in": process.tokens_in,
        "tokens_out": process.tokens_out,
        "tokens_cached": process.tokens_cached,
        "tokens_per_s": round(process.tokens_per_s, 2),
        "model_s": round(process.model_s, 4),
    }


VERBS = (
    Verb(
        "ask", "Ask one question (--tools lets it act).", ask, _configure,
        boots=True, jobs=True, completes=("path",), prepare=spread_tools,
    ),
)  # fmt: skip

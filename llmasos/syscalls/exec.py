"""`exec.*`: running code that a model wrote, in the sandbox and nowhere else."""

from __future__ import annotations

from typing import Annotated, TypedDict

from pydantic import Field

from llmasos.kernel.abi import Chunk, Effect
from llmasos.kernel.syscall import Call, Syscall, syscall
from llmasos.syscalls.sandbox import Ran, Sandbox, python_command

MAX_CODE_CHARS = 200_000
MAX_STDIN_CHARS = 1_000_000
MAX_TIMEOUT_S = 120.0
MAX_TEXT_CHARS = 20_000
_SCRIPT = "main.py"

Stdin = Annotated[str, Field(max_length=MAX_STDIN_CHARS, description="Text for its standard input")]
Timeout = Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S, description="Seconds until it is ended")]


class ExecResult(TypedDict):
    """What a program said and how it ended; `text` is all of that as a model reads it."""

    text: str
    stdout: str
    stderr: str
    exit_code: int
    """As a shell has it: 128+n where signal n ended it."""
    ended_for: str
    """Why it was ended before its own end; empty if it was not."""
    truncated: bool
    sandbox: str
    """What confined it: `bubblewrap`, `limits without network` or `limits`; see `Ran.kind`."""


def exec_syscalls(sandbox: Sandbox) -> tuple[Syscall, ...]:
    """`exec.*` in this sandbox."""

    @syscall("exec.python", effect=Effect.EXTERNAL, deadline_s=None, foreign=False)
    async def python(
        call: Call,
        code: Annotated[str, Field(max_length=MAX_CODE_CHARS, description="A Python program")],
        stdin: Stdin = "",
        timeout_s: Timeout = 10.0,
    ) -> ExecResult:
        """Run a Python program that prints its result."""
        await _label(call, sandbox)
        ran = await sandbox.run(
            lambda folder: python_command(f"{folder}/{_SCRIPT}"),
            files={_SCRIPT: code},
            stdin=stdin,
            timeout_s=timeout_s,
            on_output=_streaming(call),
        )
        return _result(ran)

    @syscall("exec.shell", effect=Effect.EXTERNAL, deadline_s=None, foreign=False)
    async def shell(
        call: Call,
        command: Annotated[str, Field(max_length=MAX_CODE_CHARS, description="Shell commands")],
        stdin: Stdin = "",
        timeout_s: Timeout = 10.0,
    ) -> ExecResult:
        """Run shell commands."""
        await _label(call, sandbox)
        ran = await sandbox.run(
            lambda folder: ["/bin/sh", f"{folder}/main.sh"],
            files={"main.sh": command},
            stdin=stdin,
            timeout_s=timeout_s,
            on_output=_streaming(call),
        )
        return _result(ran)

    return (python, shell)


async def _label(call: Call, sandbox: Sandbox) -> None:
    """A weak sandbox reads any file, also one that came from outside, and perhaps the network."""
    if not await sandbox.is_sealed():
        call.came_from(["exec:a sandbox that reads the user's files"])


class _Streaming:
    """Sends output on as it comes."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __call__(self, text: str) -> None:
        if self._call.on_chunk is not None:
            self._call.on_chunk(Chunk(text, ()))


def _streaming(call: Call) -> _Streaming | None:
    return None if call.on_chunk is None else _Streaming(call)


def _result(ran: Ran) -> ExecResult:
    stdout, is_cut = _shortened(ran.stdout)
    stderr, is_cut_too = _shortened(ran.stderr)
    ending = ""
    if ran.ended_for:
        ending = f"(ended: {ran.ended_for})\n"
    elif ran.exit_code:
        ending = f"(exit code {ran.exit_code})\n"
    errors = f"stderr:\n{stderr}" if stderr else ""
    return ExecResult(
        text=f"{stdout}{errors}{ending}" or "(it printed nothing)\n",
        stdout=stdout,
        stderr=stderr,
        exit_code=ran.exit_code,
        ended_for=ran.ended_for,
        truncated=is_cut or is_cut_too,
        sandbox=ran.kind,
    )


def _shortened(data: bytes) -> tuple[str, bool]:
    """Text that fits: of a long one its beginning and, since errors stand there, its end."""
    text = data.decode("utf-8", "replace")
    if len(text) <= MAX_TEXT_CHARS:
        return text, False
    half = MAX_TEXT_CHARS // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n... ({left_out} characters left out)\n{text[-half:]}", True
